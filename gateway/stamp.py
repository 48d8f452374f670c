"""What the gateway writes into a message, from the evidence: one Authentication-Results field, first (RFC 8601).

The words are the checks' own result words; the properties are the registered ones (RFC 8601 §2.7, RFC 6008, RFC 9989 §10).
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final

from gateway.auth.results import (
    ArcResult,
    ArcStatus,
    DkimResult,
    DmarcResult,
    DmarcStatus,
    Evidence,
    IprevResult,
    SpfIdentity,
    SpfResult,
)
from gateway.mail.authentication_results import (
    MethodResult,
    Property,
    join_results,
    property_piece,
    result_line,
    write_authentication_results,
)
from gateway.mail.edits import NewField
from gateway.mail.envelope import Envelope
from gateway.mail.headers import fold_line

_Result = IprevResult | SpfResult | DkimResult | DmarcResult | MethodResult

_REMEMBERED_LINES: Final = 1024
"""Of each method. A line rests on nothing but its result, and its safety was seen to when it was first written.

Whatever strangers fill this with, it is a domain, an address or a word of ours: a few KB a line at the worst, most of it
the result itself.
"""

_NO_SIGNATURE: Final = MethodResult("dkim", "none", None, ())


def stamp(authserv_id: str, envelope: Envelope, evidence: Evidence) -> NewField:
    """The Authentication-Results field for one message; `none` where nothing was checked."""
    results = _results(envelope, evidence)
    last = len(results) - 1
    return join_results(
        authserv_id,
        [_LINES[type(result)](result, "" if at == last else ";") for at, result in enumerate(results)],
    )


def stamp_failure(authserv_id: str, reason: str) -> NewField:
    """The field for a message that could not be judged because of a fault of ours: nothing passed."""
    methods = ("spf", "dkim", "dmarc")
    return write_authentication_results(
        authserv_id,
        [MethodResult(method, "temperror", reason, ()) for method in methods],
    )


def _results(envelope: Envelope, evidence: Evidence) -> list[_Result]:
    """What there is to say, in the order in which it is to stand."""
    results: list[_Result] = []
    login = envelope.session.login
    if login is not None:
        results.append(MethodResult("auth", "pass", None, (Property("smtp", "auth", login),)))
    if evidence.iprev is not None:
        results.append(evidence.iprev)
    if evidence.spf_helo is not None:
        results.append(evidence.spf_helo)
    if evidence.spf is not None:
        results.append(evidence.spf)
    results += evidence.dkim
    dmarc, arc = evidence.dmarc, evidence.arc
    if dmarc is not None:
        if not evidence.dkim:
            results.append(_NO_SIGNATURE)
        results.append(dmarc)
    if arc is not None and arc.status is not ArcStatus.NONE:
        results.append(_arc(arc, evidence.iprev))
    return results


def _silent(address: str) -> str:
    """The address, without a local part that looks like a result: `dmarc=pass@evil.example` is a legal address.

    Quoting is enough for those who read by the grammar; but filters that look for `dmarc=pass` anywhere in our field are
    common. RFC 8601 §2.2 lets the local part be left out.
    """
    local_part, _, domain = address.rpartition("@")
    return f"@{domain}" if "=" in local_part and "pass" in local_part.casefold() else address


@lru_cache(maxsize=_REMEMBERED_LINES)
def _spf_line(result: SpfResult, end: str) -> str:
    value = result.domain if result.identity is SpfIdentity.HELO else result.sender or result.domain
    properties = (Property("smtp", result.identity, _silent(value)),) if value else ()
    return _line(MethodResult("spf", result.status, result.problem, properties), end)


def _dkim_line(result: DkimResult, end: str) -> str:
    """Of a signer's messages only `header.b` differs, and it stands last."""
    begun, column = _dkim_beginning(
        result.status,
        result.problem,
        (result.domain, result.auid, result.selector, result.algorithm),
        "" if result.signature_start else end,
    )
    if not result.signature_start:
        return begun
    piece = property_piece("header", "b", result.signature_start) + end
    return fold_line((piece,), begun, column=column)[0]


@lru_cache(maxsize=_REMEMBERED_LINES)
def _dkim_beginning(
    status: str, problem: str | None, names: tuple[str | None, ...], end: str
) -> tuple[str, int]:
    domain, auid, selector, algorithm = names
    found = (("d", domain), ("i", _silent(auid or "")), ("s", selector), ("a", algorithm))
    properties = tuple(Property("header", name, value) for name, value in found if value)
    return result_line(MethodResult("dkim", status, problem, properties), end=end)


@lru_cache(maxsize=_REMEMBERED_LINES)
def _dmarc_line(result: DmarcResult, end: str) -> str:
    properties: list[Property] = []
    if result.author_domain:
        properties.append(Property("header", "from", result.author_domain))
    if result.record is not None:
        properties.append(Property("polrec", "p", result.record.policy))
        if result.record.domain != result.author_domain:
            properties.append(Property("polrec", "domain", result.record.domain))
        if result.status is DmarcStatus.FAIL:
            properties.append(Property("policy", "dmarc", result.applied))
    return _line(MethodResult("dmarc", result.status, result.problem, tuple(properties)), end)


def _arc(result: ArcResult, client: IprevResult | None) -> MethodResult:
    """RFC 8617 §10.1 registers no `temperror`: to those behind us it is a fail, with its reason."""
    status = ArcStatus.FAIL if result.status is ArcStatus.TEMPERROR else result.status
    properties: list[Property] = []
    if client is not None:
        properties.append(Property("smtp", "remote-ip", str(client.client_ip)))
    if result.oldest_pass is not None:
        properties.append(Property("header", "oldest-pass", str(result.oldest_pass)))
    return MethodResult("arc", status, result.problem, tuple(properties))


@lru_cache(maxsize=_REMEMBERED_LINES)
def _iprev_line(result: IprevResult, end: str) -> str:
    address = Property("policy", "iprev", str(result.client_ip))
    return _line(MethodResult("iprev", result.status, result.problem, (address,), comment=result.name), end)


def _line(result: MethodResult, end: str) -> str:
    return result_line(result, end=end)[0]


_LINES: Final[Mapping[type[_Result], Callable[[Any, str], str]]] = {
    IprevResult: _iprev_line,
    SpfResult: _spf_line,
    DkimResult: _dkim_line,
    DmarcResult: _dmarc_line,
    MethodResult: _line,
}

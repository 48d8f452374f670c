"""What the gateway writes into a message, from the evidence: one Authentication-Results field, first (RFC 8601).

The words are the checks' own result words; the properties are the registered ones (RFC 8601 §2.7, RFC 6008, RFC 9989 §10).
"""

from collections.abc import Iterator

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
from gateway.mail.authentication_results import MethodResult, Property, write_authentication_results
from gateway.mail.edits import NewField
from gateway.mail.envelope import Envelope


def stamp(authserv_id: str, envelope: Envelope, evidence: Evidence) -> NewField:
    """The Authentication-Results field for one message; `none` where nothing was checked."""
    return write_authentication_results(authserv_id, list(_results(envelope, evidence)))


def stamp_failure(authserv_id: str, reason: str) -> NewField:
    """The field for a message that could not be judged because of a fault of ours: nothing passed."""
    methods = ("spf", "dkim", "dmarc")
    return write_authentication_results(
        authserv_id,
        [MethodResult(method, "temperror", reason, ()) for method in methods],
    )


def _results(envelope: Envelope, evidence: Evidence) -> Iterator[MethodResult]:
    login = envelope.session.login
    if login is not None:
        yield MethodResult("auth", "pass", None, (Property("smtp", "auth", login),))
    if evidence.iprev is not None:
        yield _iprev(evidence.iprev)
    for result in (evidence.spf_helo, evidence.spf):
        if result is not None:
            yield _spf(result)
    if evidence.dkim:
        yield from map(_dkim, evidence.dkim)
    elif evidence.dmarc is not None:
        yield MethodResult("dkim", "none", None, ())
    if evidence.dmarc is not None:
        yield _dmarc(evidence.dmarc)
    if evidence.arc is not None and evidence.arc.status is not ArcStatus.NONE:
        yield _arc(evidence.arc, evidence.iprev)


def _silent(address: str) -> str:
    """The address, without a local part that looks like a result: `dmarc=pass@evil.example` is a legal address.

    Quoting is enough for those who read by the grammar; but filters that look for `dmarc=pass` anywhere in our field are
    common. RFC 8601 §2.2 lets the local part be left out.
    """
    local_part, _, domain = address.rpartition("@")
    return f"@{domain}" if "=" in local_part and "pass" in local_part.casefold() else address


def _spf(result: SpfResult) -> MethodResult:
    value = result.domain if result.identity is SpfIdentity.HELO else result.sender or result.domain
    properties = (Property("smtp", result.identity, _silent(value)),) if value else ()
    return MethodResult("spf", result.status, result.problem, properties)


def _dkim(result: DkimResult) -> MethodResult:
    found = (
        ("d", result.domain),
        ("i", _silent(result.auid or "")),
        ("s", result.selector),
        ("a", result.algorithm),
        ("b", result.signature_start),
    )
    properties = tuple(Property("header", name, value) for name, value in found if value)
    return MethodResult("dkim", result.status, result.problem, properties)


def _dmarc(result: DmarcResult) -> MethodResult:
    properties: list[Property] = []
    if result.author_domain:
        properties.append(Property("header", "from", result.author_domain))
    if result.record is not None:
        properties.append(Property("polrec", "p", result.record.policy))
        if result.record.domain != result.author_domain:
            properties.append(Property("polrec", "domain", result.record.domain))
        if result.status is DmarcStatus.FAIL:
            properties.append(Property("policy", "dmarc", result.applied))
    return MethodResult("dmarc", result.status, result.problem, tuple(properties))


def _arc(result: ArcResult, client: IprevResult | None) -> MethodResult:
    """RFC 8617 §10.1 registers no `temperror`: to those behind us it is a fail, with its reason."""
    status = ArcStatus.FAIL if result.status is ArcStatus.TEMPERROR else result.status
    properties: list[Property] = []
    if client is not None:
        properties.append(Property("smtp", "remote-ip", str(client.client_ip)))
    if result.oldest_pass is not None:
        properties.append(Property("header", "oldest-pass", str(result.oldest_pass)))
    return MethodResult("arc", status, result.problem, tuple(properties))


def _iprev(result: IprevResult) -> MethodResult:
    return MethodResult(
        "iprev",
        result.status,
        result.problem,
        (Property("policy", "iprev", str(result.client_ip)),),
        comment=result.name,
    )

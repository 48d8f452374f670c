"""The check: each signature of a message, its key fetched, its result and the reason (RFC 6376 §6, RFC 8601 §2.7.1)."""

from collections.abc import Mapping, Sequence
from typing import Final

from gateway.auth.dkim.content import SignedContent, verify_signature
from gateway.auth.dkim.key import KeyRecord
from gateway.auth.dkim.lookup import KeyLookup, KeyMemory
from gateway.auth.dkim.signature import Signature, claimed_domain, parse_signature
from gateway.auth.dkim.tags import DkimError, parse_tags
from gateway.auth.results import DkimResult, DkimStatus, Problem
from gateway.dns.resolver import Resolver
from gateway.mail.message import UNREAD, Message

MAX_SIGNATURES: Final = 8
"""Honest mail has one to four: the author's, the sending service's, a list's, each perhaps in two algorithms."""

MAX_UNEVALUATED_RESULTS: Final = 8
"""Of the signatures past the limit so many are reported; a message can carry two thousand."""

SIGNATURE_FIELD: Final = b"dkim-signature"

_MIN_SIGNATURE_START: Final = 8  # RFC 6008 §3
_MAX_SIGNATURE_START: Final = 64

STATUS: Final[Mapping[Problem, DkimStatus]] = {
    # Not understood: as if it were not there, but worth a line in the log.
    Problem.DKIM_SYNTAX: DkimStatus.NEUTRAL,
    Problem.DKIM_VERSION: DkimStatus.NEUTRAL,
    Problem.DKIM_MISSING_TAG: DkimStatus.NEUTRAL,
    Problem.DKIM_DUPLICATE_TAG: DkimStatus.NEUTRAL,
    Problem.DKIM_ALGORITHM_UNKNOWN: DkimStatus.NEUTRAL,
    Problem.DKIM_CANONICALIZATION_UNKNOWN: DkimStatus.NEUTRAL,
    Problem.DKIM_QUERY_METHOD_UNKNOWN: DkimStatus.NEUTRAL,
    Problem.DKIM_TOO_MANY: DkimStatus.NEUTRAL,
    # RFC 6376 §3.6.1: mail of a domain that is testing must not be treated worse than mail without a signature.
    Problem.DKIM_KEY_TESTING: DkimStatus.NEUTRAL,
    # It can never verify, now or later (RFC 6376 §6.1.1, §6.1.2: PERMFAIL).
    Problem.DKIM_DOMAIN_MISMATCH: DkimStatus.PERMERROR,
    Problem.DKIM_FROM_NOT_SIGNED: DkimStatus.PERMERROR,
    Problem.DKIM_SEVERAL_FROM: DkimStatus.PERMERROR,
    Problem.DKIM_HEADER_CUT: DkimStatus.PERMERROR,
    Problem.DKIM_EXPIRED: DkimStatus.PERMERROR,
    Problem.DKIM_BODY_TOO_SHORT: DkimStatus.PERMERROR,
    Problem.DKIM_KEY_MISSING: DkimStatus.PERMERROR,
    Problem.DKIM_KEY_REVOKED: DkimStatus.PERMERROR,
    Problem.DKIM_KEY_SYNTAX: DkimStatus.PERMERROR,
    Problem.DKIM_KEY_TOO_LARGE: DkimStatus.PERMERROR,
    Problem.DKIM_KEY_SEVERAL: DkimStatus.PERMERROR,
    Problem.DKIM_KEY_ALGORITHM: DkimStatus.PERMERROR,
    Problem.DKIM_KEY_HASH: DkimStatus.PERMERROR,
    Problem.DKIM_KEY_SERVICE: DkimStatus.PERMERROR,
    Problem.DKIM_KEY_STRICT: DkimStatus.PERMERROR,
    # Evaluated, and wrong.
    Problem.DKIM_BODY_HASH: DkimStatus.FAIL,
    Problem.DKIM_SIGNATURE: DkimStatus.FAIL,
    # Not to be trusted. The last three are said only of signatures that verify; the first two are never evaluated.
    Problem.DKIM_SHA1: DkimStatus.POLICY,
    Problem.DKIM_FROM_THE_FUTURE: DkimStatus.POLICY,
    Problem.DKIM_SHORT_KEY: DkimStatus.POLICY,
    Problem.DKIM_BODY_LENGTH: DkimStatus.POLICY,
    Problem.DKIM_UNSIGNED_FIELD: DkimStatus.POLICY,
    # No key for now.
    Problem.DNS_TIMEOUT: DkimStatus.TEMPERROR,
    Problem.DNS_SERVFAIL: DkimStatus.TEMPERROR,
    Problem.DNS_REFUSED: DkimStatus.TEMPERROR,
    Problem.DNS_MALFORMED: DkimStatus.TEMPERROR,
    Problem.DNS_BUDGET: DkimStatus.TEMPERROR,
}
"""The result word for each problem that a signature can have."""


async def check_dkim(
    message: Message,
    resolver: Resolver,
    *,
    now: float,
    max_signatures: int = MAX_SIGNATURES,
    memory: KeyMemory | None = None,
) -> tuple[DkimResult, ...]:
    """Verify the DKIM signatures of a message, one result each, in the order of their fields.

    Args:
        message: as received.
        resolver: asked once for each key, one after the other.
        now: seconds since 1970.
        memory: of keys; see `KeyLookup`.
        max_signatures: signatures evaluated, from the top; those past it are never a pass, and only a few are reported.
    """
    positions = message.positions(SIGNATURE_FIELD)
    if not positions:
        return ()
    found = [_read(message, position) for position in positions[:max_signatures]]
    signatures = [signature for signature in found if isinstance(signature, Signature)]
    content = SignedContent(message, signatures)
    start_length = _signature_start_length(signatures)
    refusal = refusal_of_all(message)
    keys = KeyLookup(resolver, memory)
    results: list[DkimResult] = []
    for position, signature in zip(positions, found, strict=False):
        if isinstance(signature, DkimResult):
            results.append(signature)
            continue
        key: KeyRecord | None = None
        problem = refusal or signature.problem_at(now)
        if not problem:
            answer = await keys.fetch(signature.terms.key_name)
            if isinstance(answer, Problem):
                problem = answer
            else:
                key = answer
                problem = verify_signature(content, position, signature, key)
        results.append(_result(position, signature, key, problem, start_length))
    for position in positions[max_signatures : max_signatures + MAX_UNEVALUATED_RESULTS]:
        results.append(_unread(position, Problem.DKIM_TOO_MANY))  # noqa: PERF401 - hardly ever one
    return tuple(results)


def _read(message: Message, position: int) -> Signature | DkimResult:
    """Read one signature field, or say why it cannot be read."""
    value = message.values[position]
    try:
        return parse_signature(value)
    except DkimError as error:
        tags = _claimed_tags(value)
        return _unread(
            position, error.problem, domain=claimed_domain(tags, "d"), selector=claimed_domain(tags, "s")
        )


def _claimed_tags(value: bytes) -> dict[str, str]:
    try:
        return parse_tags(value)
    except DkimError:
        return {}


def refusal_of_all(message: Message) -> Problem | None:
    """Why no signature of this message can pass, whatever it says."""
    if b"from" in message.repeated:
        return Problem.DKIM_SEVERAL_FROM  # RFC 6376 §8.15: signed is one, shown may be the other
    return None if message.defects.isdisjoint(UNREAD) else Problem.DKIM_HEADER_CUT


def _unread(
    position: int,
    problem: Problem,
    *,
    domain: str | None = None,
    selector: str | None = None,
) -> DkimResult:
    return DkimResult(
        position=position,
        status=STATUS[problem],
        domain=domain,
        selector=selector,
        problem=problem,
    )


def _result(
    position: int,
    signature: Signature,
    key: KeyRecord | None,
    problem: Problem | None,
    start_length: int,
) -> DkimResult:
    terms = signature.terms
    testing = key is not None and key.testing
    status = STATUS[problem] if problem else DkimStatus.PASS
    covers_whole_body = problem is not Problem.DKIM_BODY_LENGTH
    if testing and status is DkimStatus.FAIL:
        problem = Problem.DKIM_KEY_TESTING
        status = STATUS[problem]
    return DkimResult(
        position=position,
        status=status,
        domain=terms.domain,
        selector=terms.selector,
        auid=terms.auid,
        algorithm=terms.algorithm,
        key_bits=key.bits if key else None,
        canonicalization=terms.canonicalization,
        signature_start=signature.signature_text[:start_length],
        testing=testing,
        covers_whole_body=covers_whole_body,
        problem=problem,
    )


def _signature_start_length(signatures: Sequence[Signature]) -> int:
    """How much of each `b=` tells the signatures of one message apart (RFC 6008 §3), within reason."""
    length = _MIN_SIGNATURE_START
    if len(signatures) > 1:
        different = {signature.signature_text for signature in signatures}
        while length < _MAX_SIGNATURE_START and len({text[:length] for text in different}) < len(different):
            length += _MIN_SIGNATURE_START
    return length

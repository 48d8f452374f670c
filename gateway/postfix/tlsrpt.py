"""What Postfix 3.10 and newer tell of each TLS session, by sys4's libtlsrpt: one datagram with one JSON object (RFC 8460).

Its one-letter keys are explained in libtlsrpt.c and by their attribute here. The receiving server chose much of the text (its names, its greeting), so that
everything is looked at as a stranger's.
"""

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from ipaddress import ip_address
from typing import Any, Final

from gateway.mail.address import parse_domain
from gateway.mail.errors import ParseError
from gateway.tlspolicy.model import FailureType, PolicyType, TlsSession

MAX_DATAGRAM_BYTES: Final = 262_144  # Linux lets a sender have 212,992
MAX_POLICIES: Final = 100
MAX_LINES: Final = 600
MAX_TEXT_CHARACTERS: Final = 500
PROTOCOL_VERSION: Final = "1"  # `dpv`; libtlsrpt before 0.5 sends none

_POLICY_TYPES: Final = {1: PolicyType.TLSA, 2: PolicyType.STS, 9: PolicyType.NONE}
_FAILURES: Final = {
    201: FailureType.STARTTLS_NOT_SUPPORTED,
    202: FailureType.CERTIFICATE_HOST_MISMATCH,
    203: FailureType.CERTIFICATE_NOT_TRUSTED,
    204: FailureType.CERTIFICATE_EXPIRED,
    205: FailureType.VALIDATION_FAILURE,
    301: FailureType.STS_POLICY_FETCH_ERROR,
    302: FailureType.STS_POLICY_INVALID,
    303: FailureType.STS_WEBPKI_INVALID,
    304: FailureType.TLSA_INVALID,
    305: FailureType.DNSSEC_INVALID,
    306: FailureType.DANE_REQUIRED,
}


class DatagramError(ParseError):
    """It is no report of libtlsrpt's."""


def parse_datagram(data: bytes, at: datetime) -> tuple[TlsSession, ...]:
    """The sessions in one report, usually one; `at` is when it came, for it does not say.

    Unknown keys are skipped; a detail that cannot be read is left out. Postfix reports one final result for each session: of
    several failure details the first counts, so that no session is counted twice.

    Raises:
        DatagramError: whatever else it is.
    """
    if len(data) > MAX_DATAGRAM_BYTES:
        raise DatagramError(f"{len(data)} bytes")
    try:
        report = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DatagramError(f"not JSON: {str(error)[:100]}") from error
    report = _object(report)
    version = report.get("dpv", PROTOCOL_VERSION)
    if version != PROTOCOL_VERSION:
        raise DatagramError(f"protocol version {str(version)[:20]!r}; {PROTOCOL_VERSION!r} is known")
    domain = _domain(report.get("d"))
    if domain is None:
        raise DatagramError("names no domain")
    policies = report.get("policies")
    if not isinstance(policies, list) or not 0 < len(policies) <= MAX_POLICIES:
        raise DatagramError("has no policies, or too many")
    return tuple(_session(domain, _object(policy), at) for policy in policies)


def _session(domain: str, policy: Mapping[str, Any], at: datetime) -> TlsSession:
    policy_type = _POLICY_TYPES.get(_number(policy.get("policy-type")))
    failed = _number(policy.get("f"))  # 1: the session failed
    if policy_type is None or failed not in {0, 1}:
        raise DatagramError("a policy without known type or result")
    details = policy.get("failure-details")
    detail = _object(details[0]) if failed and isinstance(details, list) and details else {}
    failure = _FAILURES.get(_number(detail.get("c")), FailureType.VALIDATION_FAILURE)
    return TlsSession(
        at=at,
        policy_domain=domain,
        policy_type=policy_type,
        tlsa_domain=_domain(policy.get("policy-domain")) if policy_type is PolicyType.TLSA else None,
        policy_string=tuple(_lines(policy.get("policy-string"))),
        mx_host=tuple(_lines(policy.get("mx-host"))),
        failure=failure if failed else None,
        sending_mta_ip=_ip(detail.get("s")),
        receiving_mx_hostname=_domain(detail.get("n")),
        receiving_mx_helo=_helo(detail.get("h")),
        receiving_ip=_ip(detail.get("r")),
        reason=_text(detail.get("f")),
        delivery="postfix",
    )


def _object(value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise DatagramError("not an object where one belongs")
    return value


def _number(value: object) -> int:
    """A number as JSON has it; -1 for anything else. `true` is none, though Python takes it for 1."""
    return value if isinstance(value, int) and not isinstance(value, bool) else -1


def _text(value: object) -> str | None:
    """Text that prints, in one line, cut."""
    if not isinstance(value, str) or not value:
        return None
    return "".join(one if one.isprintable() else "?" for one in value[:MAX_TEXT_CHARACTERS])


def _lines(value: object) -> Iterator[str]:
    if isinstance(value, list):
        yield from filter(None, map(_text, value[:MAX_LINES]))


def _domain(value: object) -> str | None:
    try:
        return parse_domain(value) if isinstance(value, str) else None
    except ParseError:
        return None


def _ip(value: object) -> str | None:
    try:
        return str(ip_address(value)) if isinstance(value, str) else None
    except ValueError:
        return None


def _helo(value: object) -> str | None:
    """The server's name in its reply to EHLO, of which Postfix gives all lines: `250-mx.example.com`, …."""
    if not isinstance(value, str):
        return None
    first = value[:MAX_TEXT_CHARACTERS].splitlines()[:1]
    line = first[0] if first else ""
    for mark in ("250-", "250 "):
        line = line.removeprefix(mark)
    return _text(line.partition(" ")[0])

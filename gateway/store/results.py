"""Results of TLS sessions, as they come in and as RFC 8460 §4.4 wants them counted."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import Engine, RowMapping, func, select

from gateway.store.tables import MAX_DOMAIN_CHARACTERS, TLS_RESULTS
from gateway.tlspolicy.model import FailureType, PolicyType, TlsSession

MAX_POLICY_CHARACTERS: Final = 8_192
"""Of a policy's lines in one row; honest ones have some hundred. Thousands of rows may wait in memory."""

MAX_NAME_CHARACTERS: Final = 255
MAX_ADDRESS_CHARACTERS: Final = 45
MAX_REASON_CHARACTERS: Final = 500

_POLICY: Final = ("policy_domain", "policy_type", "tlsa_domain", "policy_string", "mx_host")
_columns: Final = TLS_RESULTS.c


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureCount:
    """Sessions that failed alike between the same two hosts (RFC 8460 §4.4 `failure-details`)."""

    failure: FailureType
    sessions: int
    sending_mta_ip: str | None
    receiving_mx_hostname: str | None
    receiving_mx_helo: str | None
    receiving_ip: str | None
    reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyResults:
    """All sessions under one policy of one domain (RFC 8460 §4.4 `policies`, each with its `summary`).

    Attributes:
        failures: the most frequent first.
    """

    policy_domain: str
    policy_type: PolicyType
    tlsa_domain: str | None
    policy_string: tuple[str, ...]
    mx_host: tuple[str, ...]
    succeeded: int
    failed: int
    failures: tuple[FailureCount, ...]


def session_row(session: TlsSession) -> dict[str, object]:
    """A row of `tls_results`; a peer's words cut to what the columns hold."""
    return {
        "at": session.at,
        "policy_domain": session.policy_domain[:MAX_DOMAIN_CHARACTERS],
        "policy_type": session.policy_type.value,
        "tlsa_domain": _cut(session.tlsa_domain, MAX_DOMAIN_CHARACTERS),
        "policy_string": _lines(session.policy_string),
        "mx_host": _lines(session.mx_host),
        "failure": session.failure and session.failure.value,
        "sending_mta_ip": _cut(session.sending_mta_ip, MAX_ADDRESS_CHARACTERS),
        "receiving_mx_hostname": _cut(session.receiving_mx_hostname, MAX_NAME_CHARACTERS),
        "receiving_mx_helo": _cut(session.receiving_mx_helo, MAX_NAME_CHARACTERS),
        "receiving_ip": _cut(session.receiving_ip, MAX_ADDRESS_CHARACTERS),
        "reason": _cut(session.reason, MAX_REASON_CHARACTERS),
        "delivery": session.delivery,
    }


def read_domains(engine: Engine, since: datetime, until: datetime) -> list[str]:
    """The policy domains that have results at or after `since` and before `until`, in order."""
    query = (
        select(_columns.policy_domain)
        .where(_columns.at >= since, _columns.at < until)
        .group_by(_columns.policy_domain)
        .order_by(_columns.policy_domain)
    )
    with engine.connect() as connection:
        return list(connection.scalars(query))


def read_results(
    engine: Engine, since: datetime, until: datetime, domain: str | None = None
) -> list[PolicyResults]:
    """What was recorded at or after `since` and before `until`, of one domain or of all, by policy."""
    policy = [_columns[name] for name in _POLICY]
    failure = (
        _columns.failure,
        _columns.sending_mta_ip,
        _columns.receiving_mx_hostname,
        _columns.receiving_mx_helo,
        _columns.receiving_ip,
        _columns.reason,
    )
    sessions = func.count().label("sessions")
    query = select(*policy, *failure, sessions).where(_columns.at >= since, _columns.at < until)
    if domain is not None:
        query = query.where(_columns.policy_domain == domain)
    query = query.group_by(*policy, *failure).order_by(*policy, sessions.desc())
    with engine.connect() as connection:
        return _fold(connection.execute(query).mappings())


def _fold(rows: Iterable[RowMapping]) -> list[PolicyResults]:
    by_policy: dict[tuple[object, ...], list[RowMapping]] = {}
    for row in rows:
        by_policy.setdefault(tuple(row[name] for name in _POLICY), []).append(row)
    return [_policy_results(rows) for rows in by_policy.values()]


def _policy_results(rows: list[RowMapping]) -> PolicyResults:
    first = rows[0]
    failed = [row for row in rows if row["failure"] is not None]
    return PolicyResults(
        policy_domain=first["policy_domain"],
        policy_type=PolicyType(first["policy_type"]),
        tlsa_domain=first["tlsa_domain"],
        policy_string=first["policy_string"],
        mx_host=first["mx_host"],
        succeeded=sum(row["sessions"] for row in rows if row["failure"] is None),
        failed=sum(row["sessions"] for row in failed),
        failures=tuple(
            FailureCount(
                failure=FailureType(row["failure"]),
                sessions=row["sessions"],
                sending_mta_ip=row["sending_mta_ip"],
                receiving_mx_hostname=row["receiving_mx_hostname"],
                receiving_mx_helo=row["receiving_mx_helo"],
                receiving_ip=row["receiving_ip"],
                reason=row["reason"],
            )
            for row in failed
        ),
    )


def _cut(text: str | None, limit: int) -> str | None:
    return None if text is None else text[:limit]


def _lines(lines: tuple[str, ...]) -> tuple[str, ...]:
    """As many whole lines as fit, from the first."""
    size = 0
    for number, line in enumerate(lines):
        size += len(line)
        if size > MAX_POLICY_CHARACTERS:
            return lines[:number]
    return lines

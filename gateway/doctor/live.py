"""The mail servers tried live: what each address shows, and whether mail would go over it."""

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from typing import Final

from gateway.doctor.case import Case, Session
from gateway.doctor.codes import Code
from gateway.doctor.report import Finding, finding
from gateway.tlspolicy.model import Decision, TlsProblem

LIVE_S: Final = 60.0
SOON: Final = timedelta(days=14)
_OLD: Final = frozenset({"SSLv3", "TLSv1", "TLSv1.1"})


async def examine_live(case: Case, decision: Decision) -> tuple[Finding, ...]:
    """Try them all, within a minute."""
    probe = case.tools.probe
    if probe is None or not decision.hosts:
        return ()
    try:
        async with asyncio.timeout(LIVE_S):
            sessions = await probe(decision)
    except TimeoutError:
        return (finding(Code.CONNECT_UNKNOWN, f"not done after {LIVE_S:g} s"),)
    return tuple(one for session in sessions for one in _session(case, session))


def _session(case: Case, session: Session) -> Iterator[Finding]:
    about = f"{session.host} [{session.address}]"
    if session.failure is not None:
        yield finding(Code.CONNECT_FAILED, session.failure, about=about)
        return
    if session.tls_version is None:
        yield finding(Code.CONNECT_NO_TLS, f"clear text ({session.pkix or 'no TLS'})", about=about)
        return
    shown = ", ".join(filter(None, (session.tls_version, session.cipher, session.certificate)))
    faults = list(_faults(case, session, about))
    if not faults or session.would_do:
        yield finding(Code.CONNECT_OK, shown, about=about)
    else:
        yield finding(Code.CONNECT_REFUSED, shown, about=about)
    yield from faults


def _faults(case: Case, session: Session, about: str) -> Iterator[Finding]:
    if session.tls_version in _OLD:
        yield finding(Code.CONNECT_OLD_TLS, session.tls_version or "", about=about)
    if session.has_tlsa and session.tlsa is not None:
        yield finding(Code.CONNECT_TLSA, str(session.tlsa), about=about)
    if session.pkix is not None:
        yield finding(Code.CONNECT_CERTIFICATE, f"{session.pkix}; {session.certificate}", about=about)
    if (
        session.expires is not None
        and session.pkix is not TlsProblem.CERTIFICATE_EXPIRED
        and session.expires - case.tools.now() < SOON
    ):
        yield finding(Code.CONNECT_EXPIRES_SOON, f"on {session.expires:%Y-%m-%d}", about=about)

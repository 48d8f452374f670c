"""What all of it comes to: how a sender that honours what the domain publishes would deliver to it."""

from typing import Final, assert_never

from gateway.doctor.codes import Code
from gateway.doctor.report import Finding, finding
from gateway.tlspolicy.model import Decision, NoRoute, TlsLevel, TlsProblem

_PROVEN: Final = frozenset({TlsLevel.SECURE, TlsLevel.DANE_ONLY})
_IN_DOUBT: Final = frozenset({TlsProblem.DANE_TLSA_DNS, TlsProblem.DANE_ADDRESS_DNS})


def _is_in_doubt(decision: Decision) -> bool:
    """Whether a lookup that failed could have said more; its own section tells of it."""
    return (
        decision.dane_problem is not None
        or decision.sts.problem is TlsProblem.STS_DNS
        or any(host.problem in _IN_DOUBT for host in decision.hosts)
    )


def examine_transport(decision: Decision) -> tuple[Finding, ...]:
    """From the same derivation that our own relay goes by; nothing where no mail goes, or where not enough is known."""
    if isinstance(decision.route, NoRoute):
        return ()
    if decision.level not in _PROVEN and _is_in_doubt(decision):
        return ()
    match decision.level:
        case TlsLevel.MAY:
            return (finding(Code.TRANSPORT_UNPROTECTED, "neither DANE nor MTA-STS demands TLS"),)
        case TlsLevel.ENCRYPT:
            return (finding(Code.TRANSPORT_UNPROTECTED, "TLS is demanded, and nobody is proven"),)
        case TlsLevel.DANE:
            return (
                finding(
                    Code.TRANSPORT_UNPROTECTED, "only some of the mail servers are bound by TLSA records"
                ),
            )
        case TlsLevel.SECURE:
            return (finding(Code.TRANSPORT_PROTECTED, "MTA-STS demands TLS and proven names"),)
        case TlsLevel.DANE_ONLY:
            return (finding(Code.TRANSPORT_PROTECTED, "TLSA records bind the mail servers"),)
        case TlsLevel.REFUSE:
            problems = dict.fromkeys(str(host.problem) for host in decision.hosts if host.problem)
            return (finding(Code.TRANSPORT_BLOCKED, ", ".join(problems)),)
        case _:
            assert_never(decision.level)

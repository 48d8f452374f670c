"""What a TLS report will say of a session (RFC 8460 §4): the policy that bound it, and how it failed, if it did."""

from datetime import datetime
from typing import Final

from gateway.listeners.remote.session import SessionFacts
from gateway.smtp.client import DownstreamFailure
from gateway.tlspolicy.decide import STS_FAILURES
from gateway.tlspolicy.model import Decision, FailureType, HostPolicy, PolicyType, TlsProblem, TlsSession

# RFC 8460 §4.3.1, §4.3.2: what is not here is a failure of the session as a whole.
_FAILURES: Final = {
    TlsProblem.TLS_NOT_OFFERED: FailureType.STARTTLS_NOT_SUPPORTED,
    TlsProblem.TLS_REFUSED: FailureType.STARTTLS_NOT_SUPPORTED,
    TlsProblem.CERTIFICATE_NAME: FailureType.CERTIFICATE_HOST_MISMATCH,
    TlsProblem.CERTIFICATE_EXPIRED: FailureType.CERTIFICATE_EXPIRED,
    TlsProblem.CERTIFICATE_UNTRUSTED: FailureType.CERTIFICATE_NOT_TRUSTED,
    TlsProblem.CERTIFICATE_TLSA: FailureType.TLSA_INVALID,
    **STS_FAILURES,
}


def describe_session(decision: Decision, facts: SessionFacts, *, at: datetime) -> TlsSession | None:
    """The session for the report; None where it did not come so far that TLS could fail."""
    policy = facts.policy
    if facts.failure not in {None, DownstreamFailure.TLS}:
        return None
    policy_type, problem = policy.policy_type, facts.problem
    if policy_type is PolicyType.NONE and decision.sts.mode is None and decision.sts.problem in STS_FAILURES:
        # RFC 8460 §4.3.2.2: the domain has a policy, and it could not be had.
        policy_type, problem = PolicyType.STS, decision.sts.problem
    failure = _failure(policy, problem)
    if (
        facts.address is None and failure is None
    ):  # barred, but not for anything that the domain should hear of
        return None
    return TlsSession(
        at=at,
        policy_domain=decision.domain,
        policy_type=policy_type,
        # RFC 8460 §1.1: where DANE was the policy, it is the mail server's own name that the report is about.
        tlsa_domain=(policy.server_name or policy.host.name) if policy_type is PolicyType.TLSA else None,
        policy_string=_policy_string(decision, policy),
        mx_host=decision.sts.mx if policy.policy_type is PolicyType.STS else (),
        failure=failure,
        sending_mta_ip=str(facts.source) if facts.source else None,
        receiving_mx_hostname=policy.host.name,
        receiving_mx_helo=facts.helo,
        receiving_ip=str(facts.address) if facts.address else None,
        reason=problem,
    )


def _failure(policy: HostPolicy, problem: TlsProblem | None) -> FailureType | None:
    if problem is None or problem is policy.problem:
        return policy.failure
    return _FAILURES.get(problem, FailureType.VALIDATION_FAILURE)


def _policy_string(decision: Decision, policy: HostPolicy) -> tuple[str, ...]:
    match policy.policy_type:
        case PolicyType.STS:
            return decision.sts.lines
        case PolicyType.TLSA:
            return tuple(
                f"{record.usage} {record.selector} {record.matching_type} {record.data.hex()}"
                for record in policy.tlsa
            )
        case PolicyType.NONE:
            return ()

"""What a delivery to a domain is bound to: its route, the demand on each mail server, and what became of each TLS session.

Values only. `gateway.tlspolicy.decide` makes a `Decision`; relay, socketmap and command line read the same one.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from gateway.dns.resolver import Tlsa


class TlsProblem(StrEnum):
    """Why a delivery is not possible, or not as safe as it was asked to be. Keep docs/problems.md in step: a test does."""

    # The route (RFC 5321 §5.1, RFC 7505)
    NULL_MX = "route.null-mx"
    NO_DOMAIN = "route.no-such-domain"
    NO_HOST = "route.no-host"
    ROUTE_TIMEOUT = "route.dns-timeout"
    ROUTE_SERVFAIL = "route.dns-servfail"
    ROUTE_REFUSED = "route.dns-refused"
    ROUTE_MALFORMED = "route.dns-malformed"
    ROUTE_LOOP = "route.loop"
    NO_ADDRESS = "route.host-without-address"

    # MTA-STS (RFC 8461)
    STS_RECORD_INVALID = "mta-sts.record-invalid"
    STS_SEVERAL_RECORDS = "mta-sts.several-records"
    STS_DNS = "mta-sts.dns"
    STS_RECORD_GONE = "mta-sts.record-gone"
    STS_FETCH_CONNECT = "mta-sts.fetch-connect"
    STS_FETCH_TIMEOUT = "mta-sts.fetch-timeout"
    STS_FETCH_BUSY = "mta-sts.fetch-busy"
    STS_FETCH_CERTIFICATE = "mta-sts.fetch-certificate"
    STS_FETCH_STATUS = "mta-sts.fetch-status"
    STS_FETCH_REDIRECT = "mta-sts.fetch-redirect"
    STS_FETCH_TYPE = "mta-sts.fetch-content-type"
    STS_FETCH_TOO_LARGE = "mta-sts.fetch-too-large"
    STS_POLICY_INVALID = "mta-sts.policy-invalid"
    STS_MX_NOT_LISTED = "mta-sts.mx-not-listed"

    # DANE (RFC 7672)
    DANE_TLSA_DNS = "dane.tlsa-dns"
    DANE_ADDRESS_DNS = "dane.address-dns"
    DANE_UNUSABLE = "dane.no-usable-tlsa"
    DANE_REQUIRED = "dane.required"
    DANE_NOT_VALIDATING = "dane.resolver-not-validating"

    # The session
    TLS_NOT_OFFERED = "tls.not-offered"
    TLS_REFUSED = "tls.starttls-refused"
    TLS_INJECTION = "tls.response-injection"
    TLS_HANDSHAKE = "tls.handshake"
    CERTIFICATE_NAME = "tls.certificate-name"
    CERTIFICATE_EXPIRED = "tls.certificate-expired"
    CERTIFICATE_UNTRUSTED = "tls.certificate-untrusted"
    CERTIFICATE_TLSA = "tls.certificate-tlsa"
    REQUIRETLS_NOT_OFFERED = "tls.requiretls-not-offered"
    OVERRIDE_REFUSE = "tls.override-refuse"


class PolicyType(StrEnum):
    """Which policy bound a session; the words are RFC 8460 §4.4's `policy-type`."""

    STS = "sts"
    TLSA = "tlsa"
    NONE = "no-policy-found"


class FailureType(StrEnum):
    """What a failed session is reported as (RFC 8460 §4.3 `result-type`)."""

    STARTTLS_NOT_SUPPORTED = "starttls-not-supported"
    CERTIFICATE_HOST_MISMATCH = "certificate-host-mismatch"
    CERTIFICATE_EXPIRED = "certificate-expired"
    CERTIFICATE_NOT_TRUSTED = "certificate-not-trusted"
    VALIDATION_FAILURE = "validation-failure"
    TLSA_INVALID = "tlsa-invalid"
    DNSSEC_INVALID = "dnssec-invalid"
    DANE_REQUIRED = "dane-required"
    STS_POLICY_FETCH_ERROR = "sts-policy-fetch-error"
    STS_POLICY_INVALID = "sts-policy-invalid"
    STS_WEBPKI_INVALID = "sts-webpki-invalid"


@dataclass(frozen=True, slots=True)
class MxHost:
    """One mail server of a domain: lower preference first (RFC 5321 §5.1). `name` is in A-labels, or `[192.0.2.1]`."""

    preference: int
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where mail for a domain goes.

    Attributes:
        domain: in A-labels, lower case; an address literal keeps its brackets.
        hosts: in the order of preference, equal ones as they came; at least one.
        implicit: no MX record, so the domain itself is the host.
        secure: the MX answer (or its absence, where `implicit`) was validated by DNSSEC, the CNAMEs that led there included.
        alias_of: the name at which the answer stands, where a CNAME led from `domain` to it.
        ttl: seconds for which it may be kept.
    """

    domain: str
    hosts: tuple[MxHost, ...]
    implicit: bool = False
    secure: bool = False
    alias_of: str | None = None
    ttl: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NoRoute:
    """There is none.

    Attributes:
        temporary: trying again later may help: it is a 4xx; otherwise a 5xx.
    """

    domain: str
    problem: TlsProblem
    temporary: bool


class Demand(StrEnum):
    """What a session with one host must have, before mail may go over it."""

    NONE = "none"  # TLS if it is there, else clear text
    ENCRYPT = "encrypt"  # TLS, whatever the certificate
    PKIX = "pkix"  # a certificate from a trusted authority, for one of `names`, valid now
    DANE = "dane"  # a certificate that one of `tlsa` vouches for


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPolicy:
    """What holds for one host of the route.

    Attributes:
        demand: what the session must have.
        is_enforced: False in MTA-STS `testing`: the demand is checked and reported, and mail goes all the same.
        policy_type: the source of the demand, for TLSRPT.
        names: for PKIX the names of which the certificate must bear one; for DANE those that usage 2 is checked with
            (RFC 7672 §3.2.2).
        server_name: SNI: the TLSA base domain for DANE, else the host's name; None for an address literal.
        tlsa: the usable records (usage 2 and 3).
        problem: not None: nothing may be delivered to this host now (where `is_enforced`).
        failure: what that is reported as.
        note: what is wrong with this host's records without forbidding delivery, for people.
    """

    host: MxHost
    demand: Demand
    is_enforced: bool = True
    policy_type: PolicyType = PolicyType.NONE
    names: tuple[str, ...] = ()
    server_name: str | None = None
    tlsa: tuple[Tlsa, ...] = ()
    problem: TlsProblem | None = None
    failure: FailureType | None = None
    note: TlsProblem | None = None


class TlsLevel(StrEnum):
    """The decision for the whole domain in one word; all but the last are Postfix's own (postconf(5) smtp_tls_policy_maps)."""

    MAY = "may"  # no demand: Postfix's default level holds
    ENCRYPT = "encrypt"
    SECURE = "secure"
    DANE = "dane"  # hosts with TLSA records are authenticated, others are not
    DANE_ONLY = "dane-only"
    REFUSE = "refuse"  # no delivery: the operator said so, or nothing that is allowed is left


@dataclass(frozen=True, slots=True, kw_only=True)
class StsView:
    """What MTA-STS says of a domain.

    Attributes:
        mode: `enforce`, `testing`, `none`; None where there is no policy.
        identifier: the record's `id`, None where it could not be had.
        mx: the policy's patterns.
        lines: the policy as `key: value` lines, for TLSRPT's policy-string.
        expires: when the policy may no longer be used.
        problem: what went wrong with record, fetch or policy; a cached policy may stand all the same.
        is_unknown: there may be a policy, and a moment later we may know: mail that nothing else protects waits for that.
    """

    mode: str | None = None
    identifier: str | None = None
    mx: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    expires: datetime | None = None
    problem: TlsProblem | None = None
    is_unknown: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """All that is known about delivering to one domain, and what follows from it.

    Attributes:
        hosts: one for each of the route's, in the same order; empty where there is no route.
        level: the whole in one word.
        override: the operator's own word for this domain, which stands before the domain's.
        dane_problem: why DANE was not asked for the whole domain.
        ttl: seconds for which this may be kept.
    """

    domain: str
    route: Route | NoRoute
    hosts: tuple[HostPolicy, ...]
    level: TlsLevel
    sts: StsView = StsView()
    override: str | None = None
    dane_problem: TlsProblem | None = None
    ttl: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsSession:
    """What became of one TLS session, or of the attempt (RFC 8460 §4.4): the reports are counted from these.

    Attributes:
        at: UTC.
        policy_domain: the recipient domain (or the smart host's): who asks for reports in its TLSRPT record.
        tlsa_domain: the TLSA base domain, which the report names in place of `policy_domain` where DANE was the policy
            (RFC 8460 §1.1).
        policy_string: `sts`: the policy's lines; `tlsa`: the records in presentation form.
        mx_host: the policy's patterns.
        failure: None for a session that was as demanded.
        reason: RFC 8460's failure-reason-code: our `TlsProblem`, or another MTA's own words, printable and cut.
        delivery: `relay`, or `postfix` where Postfix reported it.
    """

    at: datetime
    policy_domain: str
    policy_type: PolicyType
    tlsa_domain: str | None = None
    policy_string: tuple[str, ...] = ()
    mx_host: tuple[str, ...] = ()
    failure: FailureType | None = None
    sending_mta_ip: str | None = None
    receiving_mx_hostname: str | None = None
    receiving_mx_helo: str | None = None
    receiving_ip: str | None = None
    reason: str | None = None
    delivery: str = "relay"

"""What an examination is made with, and what all of its checks share."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from gateway.dns.resolver import Resolver, Temporary
from gateway.dns.stub import Validation
from gateway.doctor.codes import Code
from gateway.doctor.report import Finding, Section, finding, master_lines
from gateway.mail.envelope import IpAddress
from gateway.ops.config import MtaStsSettings, Settings
from gateway.publish.records import Purpose
from gateway.publish.wanted import Facts, wanted_records
from gateway.tlspolicy.model import Decision, NoRoute, Route, TlsProblem
from gateway.tlspolicy.mta_sts.fetch import Fetcher

TIMEOUT_S: Final = 20.0
MAX_QUESTIONS: Final = 600
MAX_PROPOSED_BYTES: Final = 1_024
"""A record that is longer is not proposed anew with one word changed: its owner must look at it anyhow."""

MAX_HOSTS: Final = 10
"""Mail servers that are looked at; the largest providers publish five."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What one address of one mail server showed when it was tried.

    Attributes:
        tls_version: None: in clear text.
        expires: of the certificate.
        certificate: its names and issuer, in words.
        pkix: what a certificate check found wrong; None: nothing. `tlsa`: the same of its TLSA records.
        has_tlsa: whether it has any.
        failure: why no mail could be handed over; None: it could.
        would_do: whether a sender that honours all policies would deliver.
    """

    host: str
    address: IpAddress | None
    tls_version: str | None = None
    cipher: str = ""
    expires: datetime | None = None
    certificate: str = ""
    pkix: TlsProblem | None = None
    tlsa: TlsProblem | None = None
    has_tlsa: bool = False
    failure: str | None = None
    would_do: bool = False


def _nobody(section: Section) -> None:
    del section


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What to examine with.

    Attributes:
        resolver: a validating one, if DNSSEC and DANE are to be judged.
        validation: whether it is.
        fetcher: of MTA-STS policies; None: they are not fetched.
        probe: tries the mail servers live; None: they are left alone.
        port: of mail servers, which is part of their TLSA names.
        selectors: DKIM selectors that the caller knows of.
        facts: what our config knows of the domain, where it is one of ours.
        timeout_s: for all questions to the DNS. Fetching and trying have bounds of their own.
        tell: hears of each section when it is done.
    """

    resolver: Resolver
    validation: Callable[[], Awaitable[Validation]]
    fetcher: Fetcher | None = None
    probe: Callable[[Decision], Awaitable[Sequence[Session]]] | None = None
    port: int = 25
    selectors: Sequence[str] = ()
    facts: Facts | None = None
    timeout_s: float = TIMEOUT_S
    max_questions: int = MAX_QUESTIONS
    now: Callable[[], datetime] = _now
    tell: Callable[[Section], None] = _nobody


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One examination.

    Attributes:
        resolver: with the bounds of this examination around it.
        route: where mail for the domain goes.
        validating: whether the resolver is known to validate.
    """

    domain: str
    tools: Tools
    resolver: Resolver
    route: Route | NoRoute
    validating: Validation
    _wanted: dict[Purpose, tuple[str, ...]] = field(default_factory=dict)

    @property
    def hosts(self) -> tuple[str, ...]:
        """The names of the mail servers; none where there is no route."""
        return tuple(host.name for host in self.route.hosts) if isinstance(self.route, Route) else ()

    @property
    def facts(self) -> Facts:
        """What our config knows of the domain; of a stranger's, where one would begin."""
        return self.tools.facts or beginning(self.domain, self.hosts)

    def to_publish(self, purpose: Purpose) -> tuple[str, ...]:
        """The record for this purpose, as a master file has it: our config's wish, or else where one begins."""
        if not self._wanted:
            self._wanted.update({one.purpose: master_lines(one) for one in wanted_records(self.facts)})
        return self._wanted.get(purpose, ())


def beginning(domain: str, hosts: Sequence[str]) -> Facts:
    """The domain as if a gateway stood in front of its mail servers: what it would publish is where one begins.

    Made without the config's own checks: a stranger's names may be such as no config would take.
    """
    names = tuple(hosts[:MAX_HOSTS]) or (domain,)
    settings = Settings.model_construct(
        authserv_id=domain,
        hostname=names[0],
        local_domains=(domain,),
        mta_sts=MtaStsSettings.model_construct(mode="testing", mx=names),
    )
    return Facts(domain=domain, settings=settings, report_to=f"postmaster@{domain}")


def unknown(what: str, failure: Temporary) -> Finding:
    """A lookup that failed."""
    return finding(Code.DNS_UNKNOWN, f"{what} could not be looked up ({failure.trouble})")

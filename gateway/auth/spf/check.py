"""The two questions a mail server asks of SPF, and the bridge from pyspf's plain calls to our resolver."""

from collections.abc import Callable
from typing import TypeVar

from greenlet import getcurrent, greenlet

from gateway.auth.results import Problem, SpfIdentity, SpfResult, SpfStatus
from gateway.auth.spf.evaluation import Ask, Evaluation, Question
from gateway.dns.names import canonical_name
from gateway.dns.resolver import Outcome, RecordType, Resolver
from gateway.mail.address import Mailbox, parse_domain
from gateway.mail.envelope import IpAddress
from gateway.mail.errors import ParseError

POSTMASTER = "postmaster"  # RFC 7208 §2.4, §4.3

T = TypeVar("T")


async def check_helo(
    client_ip: IpAddress, helo: str | None, resolver: Resolver, *, receiver: str
) -> SpfResult:
    """Whether the client may call itself by this name (RFC 7208 §2.3)."""
    domain = _helo_domain(helo)
    if domain is None or helo is None:
        return SpfResult(
            identity=SpfIdentity.HELO,
            status=SpfStatus.NONE,
            domain=None,
            problem=None if helo is None else Problem.SPF_DOMAIN_INVALID,
        )
    question = Question(
        client_ip=client_ip, domain=domain, local_part=POSTMASTER, helo=helo, receiver=receiver
    )
    return await _check_host(SpfIdentity.HELO, question, resolver)


async def check_mail_from(
    client_ip: IpAddress, mail_from: Mailbox | None, helo: str | None, resolver: Resolver, *, receiver: str
) -> SpfResult:
    """Whether the client may send mail from this address; for the null path, from postmaster@HELO (RFC 7208 §2.4)."""
    if mail_from is None:
        local_part, domain, sender = POSTMASTER, _helo_domain(helo), None
    else:
        local_part = mail_from.local_part or POSTMASTER  # RFC 7208 §4.3
        domain, sender = _fully_qualified(mail_from.domain), f"{local_part}@{mail_from.domain}"
    if domain is None:
        return SpfResult(
            identity=SpfIdentity.MAIL_FROM,
            status=SpfStatus.NONE,
            domain=None,
            sender=sender,
            problem=Problem.SPF_DOMAIN_INVALID,
        )
    question = Question(
        client_ip=client_ip, domain=domain, local_part=local_part, helo=helo or "unknown", receiver=receiver
    )
    return await _check_host(SpfIdentity.MAIL_FROM, question, resolver)


def _helo_domain(helo: str | None) -> str | None:
    """The name after HELO, where it can be one: address literals and garbage have no SPF record (RFC 7208 §2.3)."""
    try:
        return None if helo is None else _fully_qualified(parse_domain(helo))
    except ParseError:
        return None


def _fully_qualified(domain: str) -> str | None:
    """`domain` where it has a dot and could stand in the DNS, else None: the result is then `none` (RFC 7208 §4.3)."""
    return canonical_name(domain) if "." in domain and not domain.startswith("[") else None


async def _check_host(identity: SpfIdentity, question: Question, resolver: Resolver) -> SpfResult:
    finding = await run_with_dns(lambda ask: Evaluation(question, ask).evaluate(), resolver)
    return SpfResult(
        identity=identity,
        status=finding.status,
        domain=question.domain,
        sender=f"{question.local_part}@{question.domain}",
        mechanism=finding.mechanism,
        explanation=finding.explanation,
        lookups=finding.lookups,
        problem=finding.problem,
    )


async def run_with_dns(work: Callable[[Ask], T], resolver: Resolver) -> T:
    """Run plain code in a greenlet that steps aside for each DNS answer, so that only the resolver is awaited."""
    awaiter = getcurrent()

    def ask(name: str, record_type: RecordType, /) -> Outcome:
        outcome: Outcome = awaiter.switch((name, record_type))
        return outcome

    worker = greenlet(work)
    step = worker.switch(ask)
    while not worker.dead:
        try:
            outcome = await resolver.query(*step)
        except BaseException:
            worker.throw()  # cancelled: unwind pyspf's frames now, not whenever the collector finds them
            raise
        step = worker.switch(outcome)
    result: T = step
    return result

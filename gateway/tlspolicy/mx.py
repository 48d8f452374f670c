"""Where does mail for this domain go (RFC 5321 §5.1)? To its MX hosts; without any, to the domain itself; or nowhere.

An exchange's name is a stranger's text that ends up in connections, certificates' names and Postfix's replies: what is no host
name is left out here.
"""

import re
from collections.abc import Iterable
from typing import Final

from gateway.dns.resolver import Answer, Missing, Mx, NotFound, RecordType, Resolver, Temporary, Trouble
from gateway.mail.address import parse_domain
from gateway.mail.errors import ParseError
from gateway.tlspolicy.model import MxHost, NoRoute, Route, TlsProblem

MAX_HOSTS: Final = 50  # the largest providers publish five; each costs up to four questions more
_LITERAL_TTL: Final = 3_600
_NUMERIC: Final = re.compile(
    r"(?:.*\.)?[0-9]+"
)  # RFC 1123 §2.1: an address, or what some resolvers take for one

_PROBLEMS: Final = {
    Trouble.TIMEOUT: TlsProblem.ROUTE_TIMEOUT,
    Trouble.SERVFAIL: TlsProblem.ROUTE_SERVFAIL,
    Trouble.REFUSED: TlsProblem.ROUTE_REFUSED,
    Trouble.MALFORMED: TlsProblem.ROUTE_MALFORMED,
    Trouble.BUDGET: TlsProblem.ROUTE_TIMEOUT,
}


async def find_route(domain: str, resolver: Resolver) -> Route | NoRoute:
    """Find the hosts of `domain`, which is in A-labels and lower case, or an address literal.

    `Route.secure` is the resolver's AD on the answer: it vouches for every record in it, and so for each CNAME on the way
    (RFC 4035 §3.2.3, RFC 7672 §2.2.1).
    """
    if domain.startswith("["):  # RFC 5321 §2.3.5: the host is named, DNS is not asked
        return Route(domain=domain, hosts=(MxHost(0, domain),), ttl=_LITERAL_TTL)
    outcome = await resolver.query(domain, RecordType.MX)
    match outcome:
        case Answer():
            return _from_records(domain, outcome)
        case NotFound(missing=Missing.NXDOMAIN):
            return NoRoute(domain=domain, problem=TlsProblem.NO_DOMAIN, temporary=False)
        case NotFound():
            return await _implicit(domain, outcome, resolver)
        case Temporary():
            return NoRoute(domain=domain, problem=_PROBLEMS[outcome.trouble], temporary=True)


def _from_records(domain: str, answer: Answer) -> Route | NoRoute:
    records = [record for record in answer.records if isinstance(record, Mx)]
    if (
        len(records) == 1 and not records[0].exchange
    ):  # RFC 7505 §3: a null MX stands alone; beside others it means nothing
        return NoRoute(domain=domain, problem=TlsProblem.NULL_MX, temporary=False)
    hosts = _hosts(records)
    if not hosts:  # 4xx: its owner may mend the record before the queue gives up
        return NoRoute(domain=domain, problem=TlsProblem.ROUTE_MALFORMED, temporary=True)
    return Route(
        domain=domain,
        hosts=hosts,
        secure=answer.secure,
        alias_of=answer.name if answer.name != domain else None,
        ttl=answer.ttl,
    )


def _hosts(records: Iterable[Mx]) -> tuple[MxHost, ...]:
    """The hosts by preference, each once; what is no host name is left out (RFC 5321 §5.1: an exchange is a domain name)."""
    by_name: dict[str, MxHost] = {}
    for record in sorted(
        records, key=lambda record: record.preference
    ):  # stable: equal ones stay as they came
        name = _host_name(record.exchange)
        if name is not None and name not in by_name:
            by_name[name] = MxHost(record.preference, name)
            if len(by_name) == MAX_HOSTS:
                break
    return tuple(by_name.values())


def _host_name(text: str) -> str | None:
    try:
        name = parse_domain(text)
    except ParseError:
        return None
    return None if _NUMERIC.fullmatch(name) else name


async def _implicit(domain: str, absence: NotFound, resolver: Resolver) -> Route | NoRoute:
    """RFC 5321 §5.1: without any MX the domain is its own, if it has an address."""
    trouble: Trouble | None = None
    for record_type in (RecordType.A, RecordType.AAAA):
        outcome = await resolver.query(domain, record_type)
        if isinstance(outcome, Answer):
            return Route(
                domain=domain,
                hosts=(MxHost(0, domain),),
                implicit=True,
                secure=absence.secure,
                alias_of=outcome.name if outcome.name != domain else None,
                ttl=min(absence.ttl, outcome.ttl),
            )
        if isinstance(outcome, Temporary):
            trouble = trouble or outcome.trouble
    if trouble is not None:
        return NoRoute(domain=domain, problem=_PROBLEMS[trouble], temporary=True)
    return NoRoute(domain=domain, problem=TlsProblem.NO_HOST, temporary=False)

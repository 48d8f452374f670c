"""What a rule may ask about: one table of keys, each with its type, its source and when it is known.

The operator's file, its examples, the compiled rules and the documentation all read this table, so that a key means the
same everywhere: `KEYS["dmarc"]` says what `dmarc = "fail"` may hold, how it is found in a case, and from which stage on.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache, partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from gateway.auth.arc.custody import dmarc_before, is_trust_unknown, trusted_sets
from gateway.auth.results import (
    ArcStatus,
    DkimStatus,
    DmarcPolicy,
    DmarcStatus,
    Evidence,
    IprevStatus,
    Problem,
    SenderDomain,
    SpfStatus,
)
from gateway.mail.address import Mailbox, parse_domain
from gateway.mail.author import Author, AuthorFault, NoAuthor
from gateway.mail.envelope import Envelope, Listener
from gateway.mail.errors import ParseError
from gateway.mail.message import Defect, Message
from gateway.mail.value import Value
from gateway.verdict import Stage

Fact = object
"""What a key's source yields; only that key's own matchers look into it."""

Matcher = Callable[[Fact], bool]

NULL_PATH: Final = "<>"


class Case(Value, frozen=True, kw_only=True):
    """All that is known when rules are tried. Before the message stage `message` and `author` are None.

    Attributes:
        trusted_sealers: the operator's `[arc] trusted_sealers`.
    """

    envelope: Envelope
    evidence: Evidence
    message: Message | None = None
    author: Author | NoAuthor | None = None
    trusted_sealers: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Kind:
    """How values of one type are written in a rule file.

    Attributes:
        parse_condition: TOML value to matcher; raises ParseError saying what would be right.
        parse_fact: TOML value in an example to the fact that it stands for; raises likewise.
        absent: the fact in an example that does not mention the key.
        has_few: of all facts there are only a few, words of ours.
    """

    parse_condition: Callable[[object], Matcher]
    parse_fact: Callable[[object], Fact]
    absent: Fact = None
    has_few: bool = False


@dataclass(frozen=True, slots=True)
class Key:
    """One thing that a rule may ask about."""

    kind: Kind
    find: Callable[[Case], Fact]
    known_at: Stage
    about: str


# Reading TOML values


def _items(value: object) -> list[object]:
    items = value if isinstance(value, list) else [value]
    if not items:
        raise ParseError("an empty list never matches: name a value, or leave the key out")
    return items


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ParseError("a text in quotes is needed here")
    return value


def _truth(value: object) -> bool:
    if not isinstance(value, bool):
        raise ParseError("true or false is needed here")
    return value


def _number(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ParseError("a whole number of bytes is needed here")
    return value


def _word(words: type[StrEnum], value: object) -> StrEnum:
    try:
        return words(_text(value))
    except ValueError:
        raise ParseError(f"one of these is needed here: {', '.join(words)}") from None


MAX_WORDS: Final = 5
"""Of a list, in a trace; more say nothing that these do not."""


@lru_cache(maxsize=1024)
def fact_words(fact: Fact) -> str:
    """What was found, for people: as a rule file writes it; `nothing` where there is none."""
    match fact:
        case None:
            return "nothing"
        case bool():
            return "true" if fact else "false"
        case frozenset():
            return ", ".join(_some(sorted(map(str, fact)))) or "nothing"
        case tuple():
            return ", ".join(_some([str(each) for each in fact if each is not None])) or "nothing"
        case _:
            return str(fact)


def _some(words: list[str]) -> list[str]:
    more = len(words) - MAX_WORDS
    return words if more <= 0 else [*words[:MAX_WORDS], f"{more} more"]


# Matchers: small frozen classes, so that a compiled rule can be compared and printed


@dataclass(frozen=True, slots=True)
class _Equals:
    wanted: object

    def __call__(self, fact: Fact) -> bool:
        return fact == self.wanted

    def __str__(self) -> str:
        return fact_words(self.wanted)


@dataclass(frozen=True, slots=True)
class _OneOf:
    wanted: frozenset[object]

    def __call__(self, fact: Fact) -> bool:
        return fact in self.wanted

    def __str__(self) -> str:
        return " or ".join(_some(sorted(map(str, self.wanted))))


@dataclass(frozen=True, slots=True)
class _AnyOf:
    wanted: frozenset[object]

    def __call__(self, fact: Fact) -> bool:
        return isinstance(fact, frozenset) and not self.wanted.isdisjoint(fact)

    def __str__(self) -> str:
        return " or ".join(_some(sorted(map(str, self.wanted))))


@dataclass(frozen=True, slots=True)
class _MoreThan:
    limit: int

    def __call__(self, fact: Fact) -> bool:
        return isinstance(fact, int) and fact > self.limit

    def __str__(self) -> str:
        return str(self.limit)


class Selective(ABC):
    """A matcher that takes few of all possible facts, and can say which by words that both have: rules are found by them.

    It takes no fact that shares no word with it. Sharing one is not enough to be taken.
    """

    __slots__ = ()

    @abstractmethod
    def __call__(self, fact: Fact) -> bool:
        """Whether it takes this fact."""

    @abstractmethod
    def words(self) -> Iterable[Hashable]:
        """One of these is among `words_of` a fact that it takes."""

    @staticmethod
    @abstractmethod
    def words_of(fact: Fact) -> Iterable[Hashable]:
        """All words by which a matcher of this class may know a fact."""


@dataclass(frozen=True, slots=True)
class _WithinNetworks(Selective):
    networks: tuple[IPv4Network | IPv6Network, ...]

    def words(self) -> Iterable[Hashable]:
        for network in self.networks:
            host_bits = network.max_prefixlen - network.prefixlen
            yield network.version, host_bits, int(network.network_address) >> host_bits

    @staticmethod
    def words_of(fact: Fact) -> Iterable[Hashable]:
        if isinstance(fact, IPv4Address | IPv6Address):
            number = int(fact)
            for host_bits in range(fact.max_prefixlen + 1):
                yield fact.version, host_bits, number >> host_bits

    def __call__(self, fact: Fact) -> bool:
        return isinstance(fact, IPv4Address | IPv6Address) and any(
            fact in network for network in self.networks
        )

    def __str__(self) -> str:
        return " or ".join(_some(list(map(str, self.networks))))


@dataclass(frozen=True, slots=True)
class _Addresses(Selective):
    """Addresses, domains (`example.com`), everything below a domain (`.example.com`), and the null path (`<>`).

    Local parts compare without regard to case: a rule that is about a person should not miss it by a capital.
    """

    exact: frozenset[str]
    domains: frozenset[str]
    suffixes: tuple[str, ...]

    def __call__(self, fact: Fact) -> bool:
        return isinstance(fact, tuple) and any(self._one(item) for item in fact)

    def words(self) -> Iterable[Hashable]:
        return (*self.exact, *self.domains, *self.suffixes)

    @staticmethod
    def words_of(fact: Fact) -> Iterable[Hashable]:
        for item in fact if isinstance(fact, tuple) else ():
            domain = item.domain if isinstance(item, Mailbox) else item
            if not isinstance(domain, str):
                continue
            if isinstance(item, Mailbox):
                yield f"{item.local_part.casefold()}@{domain}"
            yield domain
            dot = domain.find(".")
            while dot >= 0:
                yield domain[dot:]
                dot = domain.find(".", dot + 1)

    def _one(self, item: object) -> bool:
        if isinstance(item, Mailbox):
            domain = item.domain
            if f"{item.local_part.casefold()}@{domain}" in self.exact:
                return True
        elif isinstance(item, str):
            domain = item
            if item in self.exact:
                return True
        else:
            return False
        return domain in self.domains or domain.endswith(self.suffixes)

    def __str__(self) -> str:
        return " or ".join(_some(sorted((*self.exact, *self.domains, *self.suffixes))))


def _parse_addresses(value: object, *, whole_allowed: bool) -> _Addresses:
    exact: set[str] = set()
    domains: set[str] = set()
    suffixes: list[str] = []
    for item in _items(value):
        text = _text(item)
        local_part, at, domain = text.rpartition("@")
        if text == NULL_PATH and whole_allowed:
            exact.add(text)
        elif at and whole_allowed:
            exact.add(f"{local_part.casefold()}@{parse_domain(domain)}")
        elif at:
            raise ParseError("a domain is needed here, not an address")
        elif text.startswith("."):
            suffixes.append("." + parse_domain(text[1:]))
        else:
            domains.add(parse_domain(text))
    return _Addresses(frozenset(exact), frozenset(domains), tuple(suffixes))


def _parse_address_fact(value: object) -> Fact:
    facts: list[object] = []
    for item in _items(value):
        text = _text(item)
        local_part, at, domain = text.rpartition("@")
        if text == NULL_PATH:
            facts.append(text)
        elif at:
            facts.append(Mailbox(local_part, parse_domain(domain), text))
        else:
            raise ParseError("an address is needed here, or <> for the null path")
    return tuple(facts)


def _parse_network(value: object) -> IPv4Network | IPv6Network:
    try:
        return ip_network(_text(value))
    except ValueError as error:
        raise ParseError(f"an address or a network such as 192.0.2.0/24 is needed here ({error})") from None


def _parse_ip(value: object) -> Fact:
    try:
        return ip_address(_text(value))
    except ValueError as error:
        raise ParseError(f"an IP address is needed here ({error})") from None


# Kinds


def _one_word(words: type[StrEnum]) -> Kind:
    parse = partial(_word, words)
    return Kind(lambda value: _OneOf(frozenset(map(parse, _items(value)))), parse, has_few=True)


def _some_words(words: type[StrEnum]) -> Kind:
    parse = partial(_word, words)
    return Kind(
        lambda value: _AnyOf(frozenset(map(parse, _items(value)))),
        lambda value: frozenset(map(parse, _items(value))),
        frozenset(),
        has_few=True,
    )


_FLAG = Kind(lambda value: _Equals(_truth(value)), _truth, absent=False, has_few=True)
_IP = Kind(lambda value: _WithinNetworks(tuple(map(_parse_network, _items(value)))), _parse_ip)
_ADDRESSES = Kind(partial(_parse_addresses, whole_allowed=True), _parse_address_fact, ())
_DOMAINS = Kind(
    partial(_parse_addresses, whole_allowed=False),
    lambda value: tuple(parse_domain(_text(item)) for item in _items(value)),
    (),
)
_SIZE = Kind(lambda value: _MoreThan(_number(value)), _number, 0)


# Sources

_DKIM_ORDER: Final = (
    DkimStatus.PASS,
    DkimStatus.TEMPERROR,
    DkimStatus.POLICY,
    DkimStatus.FAIL,
    DkimStatus.PERMERROR,
    DkimStatus.NEUTRAL,
)


def dkim_summary(evidence: Evidence) -> DkimStatus:
    """The best that any signature came to: one pass is a pass, and a pass that may yet come is a temperror."""
    found = {result.status for result in evidence.dkim}
    return next((status for status in _DKIM_ORDER if status in found), DkimStatus.NONE)


def problems(evidence: Evidence) -> frozenset[Problem]:
    """Every problem that any check named."""
    found = [result.problem for result in evidence.dkim if result.problem is not None]
    for result in (evidence.spf_helo, evidence.spf, evidence.dmarc, evidence.iprev, evidence.arc):
        if result is not None and result.problem is not None:
            found.append(result.problem)  # noqa: PERF401 - of five, most often none
    return frozenset(found)


def _mail_from(case: Case) -> Fact:
    mail_from = case.envelope.mail_from
    return (NULL_PATH if mail_from is None else mail_from,)


def _recipients(case: Case) -> Fact:
    return tuple(recipient.mailbox for recipient in case.envelope.recipients)


def _names(*names: str | None) -> tuple[str, ...]:
    return tuple(name.lower().rstrip(".") for name in names if name)


def _author(case: Case) -> Fact:
    return (case.author.mailbox,) if isinstance(case.author, Author) else ()


def _passed_domains(evidence: Evidence) -> Iterable[str]:
    return (result.domain for result in evidence.dkim if result.counts_for_dmarc and result.domain)


def _newest_sealer(case: Case) -> Fact:
    arc = case.evidence.arc
    return (arc.sets[0].sealer,) if arc is not None and arc.status is ArcStatus.PASS else ()


def _arc_dmarc(case: Case) -> Fact:
    dmarc = case.evidence.dmarc
    trusted = trusted_sets(case.evidence.arc, case.trusted_sealers)
    return dmarc_before(trusted, dmarc.author_domain if dmarc else None)


KEYS: Final[dict[str, Key]] = {
    "listener": Key(
        _one_word(Listener),
        lambda case: case.envelope.session.listener,
        Stage.MAIL,
        "the door it came in by",
    ),
    "ours": Key(
        _FLAG,
        lambda case: case.envelope.session.is_ours,
        Stage.MAIL,
        "from one of our own: a login, or one of trusted_networks",
    ),
    "authenticated": Key(
        _FLAG,
        lambda case: case.envelope.session.login is not None,
        Stage.MAIL,
        "the client has logged in",
    ),
    "client_ip": Key(
        _IP,
        lambda case: case.envelope.session.client_ip,
        Stage.MAIL,
        "the client's address: addresses or networks",
    ),
    "client_name": Key(
        _DOMAINS,
        lambda case: _names(case.evidence.iprev.name if case.evidence.iprev else None),
        Stage.MAIL,
        "the client's name, confirmed by DNS both ways: domains, .example.com for all below one",
    ),
    "helo": Key(
        _DOMAINS,
        lambda case: _names(case.envelope.session.helo),
        Stage.MAIL,
        "what the client says in EHLO, which may be a lie: domains",
    ),
    "tls": Key(
        _FLAG,
        lambda case: case.envelope.session.tls is not None,
        Stage.MAIL,
        "the session is encrypted",
    ),
    "mail_from": Key(
        _ADDRESSES,
        _mail_from,
        Stage.MAIL,
        "the envelope sender: addresses, domains, .example.com for all below one, <> for bounces",
    ),
    "sender_domain": Key(
        _one_word(SenderDomain),
        lambda case: case.evidence.sender_domain,
        Stage.MAIL,
        "whether the envelope sender's domain can receive an answer",
    ),
    "spf": Key(
        _one_word(SpfStatus),
        lambda case: case.evidence.spf.status if case.evidence.spf else None,
        Stage.MAIL,
        "SPF of the envelope sender (RFC 7208)",
    ),
    "spf_helo": Key(
        _one_word(SpfStatus),
        lambda case: case.evidence.spf_helo.status if case.evidence.spf_helo else None,
        Stage.MAIL,
        "SPF of the EHLO name (RFC 7208)",
    ),
    "iprev": Key(
        _one_word(IprevStatus),
        lambda case: case.evidence.iprev.status if case.evidence.iprev else None,
        Stage.MAIL,
        "the client's reverse DNS (RFC 8601 section 3)",
    ),
    "recipient": Key(
        _ADDRESSES,
        _recipients,
        Stage.RCPT,
        "any of the recipients: addresses, domains, .example.com",
    ),
    "author": Key(
        _ADDRESSES,
        _author,
        Stage.MESSAGE,
        "the one author in From: addresses, domains, .example.com",
    ),
    "author_fault": Key(
        _one_word(AuthorFault),
        lambda case: case.author.fault if isinstance(case.author, NoAuthor) else None,
        Stage.MESSAGE,
        "why there is not exactly one author",
    ),
    "dkim": Key(
        _one_word(DkimStatus),
        lambda case: dkim_summary(case.evidence),
        Stage.MESSAGE,
        "the best DKIM result of all signatures (RFC 6376)",
    ),
    "dkim_domain": Key(
        _DOMAINS,
        lambda case: tuple(_passed_domains(case.evidence)),
        Stage.MESSAGE,
        "domains with a DKIM signature that passed",
    ),
    "dmarc": Key(
        _one_word(DmarcStatus),
        lambda case: case.evidence.dmarc.status if case.evidence.dmarc else None,
        Stage.MESSAGE,
        "DMARC (RFC 9989)",
    ),
    "dmarc_applied": Key(
        _one_word(DmarcPolicy),
        lambda case: case.evidence.dmarc.applied if case.evidence.dmarc else None,
        Stage.MESSAGE,
        "what the author domain asks to be done with this message, t=y taken into account",
    ),
    "dmarc_requested": Key(
        _one_word(DmarcPolicy),
        lambda case: case.evidence.dmarc.requested if case.evidence.dmarc else None,
        Stage.MESSAGE,
        "the same before t=y",
    ),
    "arc": Key(
        _one_word(ArcStatus),
        lambda case: case.evidence.arc.status if case.evidence.arc else None,
        Stage.MESSAGE,
        "the ARC chain (RFC 8617); anybody can make one that passes",
    ),
    "arc_sealer": Key(
        _DOMAINS,
        _newest_sealer,
        Stage.MESSAGE,
        "who sealed last, of a chain that passes: domains",
    ),
    "arc_trusted": Key(
        _FLAG,
        lambda case: bool(trusted_sets(case.evidence.arc, case.trusted_sealers)),
        Stage.MESSAGE,
        "the chain passes, and who sealed last is one of [arc] trusted_sealers",
    ),
    "arc_trust_unknown": Key(
        _FLAG,
        lambda case: is_trust_unknown(case.evidence.arc, case.trusted_sealers),
        Stage.MESSAGE,
        "it would be, but DNS could not give the key now",
    ),
    "arc_dmarc": Key(
        _one_word(DmarcStatus),
        _arc_dmarc,
        Stage.MESSAGE,
        "what DMARC was for this author when the message came to the trusted sealers, in their words",
    ),
    "problem": Key(
        _some_words(Problem),
        lambda case: problems(case.evidence),
        Stage.MESSAGE,
        "any problem that a check named: see docs/problems.md",
    ),
    "defect": Key(
        _some_words(Defect),
        lambda case: case.message.defects if case.message else frozenset(),
        Stage.MESSAGE,
        "what is wrong with the message's form",
    ),
    "size_over": Key(
        _SIZE,
        lambda case: len(case.message) if case.message else 0,
        Stage.MESSAGE,
        "the message is larger than this many bytes",
    ),
}

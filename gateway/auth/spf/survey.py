"""A domain's SPF record read through to its end, as a client sees it that nothing in it allows (RFC 7208 §4.6.4).

A check stops at the first match and at the first limit. Whoever mends a record wants the whole: every record that is included, every
term, and how many lookups that costs. It is the same evaluation, in which no term ever matches.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

import spf

from gateway.auth.results import Problem, SpfStatus
from gateway.auth.spf.check import POSTMASTER, run_with_dns
from gateway.auth.spf.evaluation import MAX_LOOKUPS, Ask, Evaluation, Finding, Question
from gateway.auth.spf.record import MACRO, NO_MATCH, Stop, has_valid_macros, is_spf_record
from gateway.dns.names import canonical_name
from gateway.dns.resolver import Record, RecordType, Resolver
from gateway.mail.envelope import IpAddress

MAX_SURVEYED_LOOKUPS: Final = 60
"""Six times what any evaluation may ask: enough to say by how much a record is over."""

MAX_KEPT_TERMS: Final = 1_000

_V4: Final = IPv4Address("192.0.2.1")
_V6: Final = IPv6Address("2001:db8::1")
_STRANGER: Final = "unknown"
_OF_THE_CLIENT: Final = frozenset("silphctr")  # RFC 7208 §7.2: macros that differ from client to client


@dataclass(frozen=True, slots=True, kw_only=True)
class SpfTerm:
    """One mechanism.

    Attributes:
        domain: in whose record it stands.
        text: as published; printable ASCII.
        kind: its name: `ip4`, `include`, `all`.
        result: of a match: `pass`, `fail`, `softfail`, `neutral`.
        depth: 0 in the domain's own record and those that it is redirected to, more in included ones.
        prefix_length: of its networks.
    """

    domain: str
    text: str
    kind: str
    result: str
    depth: int
    prefix_length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SpfFault:
    """Where a record is broken.

    Attributes:
        domain: whose record.
        place: the term, or the part of it; empty where the record as a whole is meant.
        reason: pyspf's words, or ours; may hold a stranger's text.
    """

    domain: str
    place: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SpfSurvey:
    """All that there is.

    Attributes:
        record: the domain's own, as published; None where it has none, or several.
        status: of the evaluation: what becomes of a client that nothing allows.
        problem: why it cannot be used.
        fault: where.
        lookups: that a full evaluation costs; those of a record over `MAX_SURVEYED_LOOKUPS` are not counted on.
        void_names: that were asked for and do not exist, once for each time.
        terms: in the order of evaluation.
        redirect: whether the domain's own record has one.
    """

    record: bytes | None = None
    status: SpfStatus = SpfStatus.NONE
    problem: Problem | None = None
    fault: SpfFault | None = None
    lookups: int = 0
    void_names: tuple[str, ...] = ()
    terms: tuple[SpfTerm, ...] = ()
    redirect: bool = False


async def survey_record(domain: str, resolver: Resolver, *, ipv6: bool = False) -> SpfSurvey:
    """Read the whole record of `domain`, which is in A-labels; `ipv6` asks for AAAA where the client's family decides.

    What the resolver cannot say now ends it with `temperror`.
    """
    question = Question(
        client_ip=_V6 if ipv6 else _V4,
        domain=domain,
        local_part=POSTMASTER,
        helo=_STRANGER,
        receiver=_STRANGER,
    )
    return await run_with_dns(lambda ask: _Surveyor(question, ask).survey(), resolver)


class _Surveyor(Evaluation):
    """An evaluation in which nothing matches, and which goes on beyond the limits."""

    def __init__(self, question: Question, ask: Ask) -> None:
        super().__init__(question, ask)
        self._redirect = False
        self._terms: list[SpfTerm] = []
        self._void_names: list[str] = []
        self._fault: SpfFault | None = None
        self._depth = 0
        self._term = ""
        self._of_the_client: set[str] = set()
        self._texts: dict[str, list[bytes]] = {}

    def survey(self) -> SpfSurvey:
        """Ask and answer. Never raises, whatever the record says."""
        finding: Finding = self.evaluate()
        if finding.problem is Problem.SPF_SYNTAX and self._fault is None:
            self._broken(self._question.domain, *self._place_in(self._question.domain))
        texts = self._texts.get(self._question.domain, [])
        return SpfSurvey(
            record=texts[0] if len(texts) == 1 else None,
            status=finding.status,
            problem=finding.problem,
            fault=self._fault,
            lookups=self.lookups,
            void_names=tuple(self._void_names),
            terms=tuple(self._terms),
            redirect=self._redirect,
        )

    # What pyspf calls

    def check1(self, spf_record: str | None, domain: str, recursion: int) -> tuple[str, int, object]:
        """One record, and all below it."""
        if domain == self._question.domain and not recursion:
            self._redirect = " redirect=" in (spf_record or "")
        if recursion > MAX_LOOKUPS:
            raise Stop(SpfStatus.PERMERROR, Problem.SPF_TOO_MANY_LOOKUPS)
        self._depth, self._term = recursion, ""
        try:
            outcome: tuple[str, int, object] = super().check1(spf_record, domain, recursion)
        except spf.PermError as error:
            self._broken(domain, str(error.mech or self._term), str(error.msg))
            raise
        except Stop as stop:
            if stop.problem is Problem.SPF_SYNTAX:
                self._broken(domain, self._term, "a domain name or macro that cannot be one")
            raise
        return outcome

    def validate_mechanism(self, mech: str) -> tuple[str, str, str, int, str]:
        """One term read, before any is evaluated."""
        self._term = mech
        parsed: tuple[str, str, str, int, str] = super().validate_mechanism(mech)
        text, kind, argument, prefix_length, result = parsed
        if not _OF_THE_CLIENT.isdisjoint(_macro_letters(mech)):
            self._of_the_client.add(argument)
        if len(self._terms) < MAX_KEPT_TERMS:
            self._terms.append(
                SpfTerm(
                    domain=self.d,
                    text=text,
                    kind=kind,
                    result=result,
                    depth=self._depth,
                    prefix_length=prefix_length,
                )
            )
        self._term = ""
        return parsed

    def dns_spf(self, domain: str) -> str | None:
        """The record of an include or a redirect; of a name that differs from client to client, what there is."""
        try:
            record = super().dns_spf(domain)
        except Stop as stop:
            if stop.status is SpfStatus.PERMERROR:
                self._broken(domain, *self._place_in(domain))
            raise
        return NO_MATCH if record is None and domain in self._of_the_client else record

    def dns_a(self, name: str, record_type: str = "A") -> tuple[Record, ...]:
        """Counted, and no match."""
        super().dns_a(name, record_type)
        return ()

    def cidrmatch(self, addresses: Iterable[str | IpAddress], prefix_length: int) -> bool:
        """Never; but the addresses of `mx` are asked for one by one, and all of them are to be asked for."""
        del prefix_length
        deque(addresses, maxlen=0)
        return False

    def validated_ptrs(self) -> list[str]:
        """Counted; the client has no name."""
        self._count_term()
        return []

    def _validated_names(self) -> list[str]:
        return []

    # Counting

    def _count_term(self) -> None:
        self.lookups += 1
        if self.lookups > MAX_SURVEYED_LOOKUPS:
            raise Stop(SpfStatus.PERMERROR, Problem.SPF_TOO_MANY_LOOKUPS)

    def _count_void(self) -> None:
        self.void_lookups += 1

    def _counted_records(self, name: str, record_type: RecordType) -> tuple[Record, ...]:
        records = self._records(name, record_type)
        if not records and name not in self._of_the_client and canonical_name(name) is not None:
            self._void_names.append(name)
        return records

    def _exchange_addresses(self, exchange: str) -> tuple[Record, ...]:
        before = self.void_lookups
        records = super()._exchange_addresses(exchange)
        if self.void_lookups > before:
            self._void_names.append(exchange)
        return records

    # Places

    def _records(self, name: str, record_type: RecordType) -> tuple[Record, ...]:
        records = super()._records(name, record_type)
        if record_type is RecordType.TXT:
            self._texts[name] = [text for text in records if isinstance(text, bytes) and is_spf_record(text)]
        return records

    def _place_in(self, domain: str) -> tuple[str, str]:
        """What in the text of a record keeps it from being read at all."""
        texts = self._texts.get(domain, [])
        if len(texts) != 1:
            return "", f"{len(texts)} SPF records at one name"
        for term in texts[0].decode("latin-1").split(" "):
            if not (term.isascii() and term.isprintable()):
                return term, "a character that is not printable ASCII"
            if not has_valid_macros(term):
                return term, "a % that begins no macro"
        return "", f"{len(texts[0])} bytes"

    def _broken(self, domain: str, place: str, reason: str) -> None:
        if self._fault is None:  # the innermost is first
            self._fault = SpfFault(domain=domain, place=place, reason=reason)


def _macro_letters(text: str) -> Iterator[str]:
    return (macro["letter"].lower() for macro in MACRO.finditer(text) if macro["letter"])

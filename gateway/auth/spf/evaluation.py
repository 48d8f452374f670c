"""One evaluation of check_host() (RFC 7208 §4) by pyspf, with all that touches the world or counts taken out of its hands.

pyspf reads terms and decides which one matches. Names, records, macros, limits and the explanation are ours, because there it
errs or can be abused; each override says how. Nothing of pyspf's module state is changed.
"""

import logging
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from socket import AF_INET, AF_INET6, inet_pton
from typing import Final, NoReturn, Protocol
from urllib.parse import quote

import spf

from gateway.auth.results import Problem, SpfStatus
from gateway.auth.spf.record import (
    MACRO,
    MAX_RECORD_BYTES,
    NO_MATCH,
    Stop,
    ends_as_domain,
    has_valid_macros,
    select_record,
)
from gateway.auth.trouble import problem_of
from gateway.dns.names import MAX_NAME_BYTES, canonical_name
from gateway.dns.resolver import Answer, Missing, Mx, NotFound, Outcome, Record, RecordType, Temporary
from gateway.mail.envelope import IpAddress

MAX_LOOKUPS = 10  # RFC 7208 §4.6.4
MAX_VOID_LOOKUPS = 2  # RFC 7208 §4.6.4
MAX_MX_RECORDS = 10  # RFC 7208 §4.6.4
MAX_CLIENT_NAMES = 10  # RFC 7208 §4.6.4
MAX_EXPLANATION_CHARS = 256  # fits a reply line and a header field
MAX_MECHANISM_CHARS = 128
MAX_HELO_CHARS = 255  # RFC 5321 §4.5.3.1.2

_log = logging.getLogger(__name__)

_UNPRINTABLE: Final = re.compile(r"[^ -~]")
_NO_EXPLANATIONS: Final = dict.fromkeys(("pass", "fail", "softfail", "neutral", "permerror"))
_MACRO_LITERALS: Final = {"%": "%", "_": " ", "-": "%20"}  # RFC 7208 §7.2
_EXPLANATION_MACROS: Final = frozenset("crt")  # RFC 7208 §7.2


class Ask(Protocol):
    """How an evaluation asks the DNS: a plain call that returns when the answer is there."""

    def __call__(self, name: str, record_type: RecordType, /) -> Outcome:
        """See `Resolver.query`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What check_host() is asked (RFC 7208 §4.1).

    Attributes:
        domain: A-labels, at least two of them.
        local_part: its meaning, without quotes; never empty.
        helo: as the client said it; may be anything.
        receiver: our own name, for `%{r}`.
    """

    client_ip: IpAddress
    domain: str
    local_part: str
    helo: str
    receiver: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What check_host() found out; the fields are those of `SpfResult`."""

    status: SpfStatus
    mechanism: str | None = None
    explanation: str | None = None
    lookups: int = 0
    problem: Problem | None = None


@dataclass(frozen=True, slots=True)
class _Explanation:
    """An `exp=` of the record that decided: where its text stands, and `%{d}` there."""

    name: str
    domain: str


class Evaluation(spf.query):  # type: ignore[misc]  # pyspf is not typed
    """The state of one check_host().

    The attributes with one letter are pyspf's: `d` the current domain, `v` and `i` the client's address for macros.
    """

    strict = True
    verbose = False
    default_modifier = False
    perm_error = None
    defexps = _NO_EXPLANATIONS

    def __init__(self, question: Question, ask: Ask) -> None:
        """Take the question apart ourselves: pyspf would split the sender at its first `@` and parse the address again."""
        self._question = question
        self._ask_dns = ask
        self.d = question.domain
        self._set_client(question.client_ip)
        self.exps = self.defexps.copy()
        self.options: dict[str, bool] = {}
        self.mechanism: str | None = None
        self.lookups = 0
        self.void_lookups = 0
        self._reverse_names: tuple[Record, ...] | None = None
        self._client_names: list[str] | None = None

    def evaluate(self) -> Finding:
        """Ask and answer. Never raises, whatever the record says."""
        try:
            record = select_record(self._records(self.d, RecordType.TXT))
            if record is None:
                return Finding(status=SpfStatus.NONE)
            word, _, explanation = self.check1(record, self.d, 0)
            status = SpfStatus(word)
            text = self._explain(explanation) if status is SpfStatus.FAIL and explanation else None
        except Stop as stop:
            return self._stopped(stop.status, stop.problem)
        except spf.PermError as error:
            return self._stopped(SpfStatus.PERMERROR, _problem_in(error))
        except Exception:  # noqa: BLE001 - of pyspf's, known to raise more than it says
            # Whatever it trips over is our fault and not known to be the domain's: no pass, and nobody is refused for it.
            _log.exception("spf.internal domain=%s", self._question.domain)
            return self._stopped(SpfStatus.TEMPERROR, Problem.SPF_INTERNAL)
        return Finding(
            status=status,
            mechanism=self.mechanism and self.mechanism[:MAX_MECHANISM_CHARS],
            explanation=text,
            lookups=self.lookups,
        )

    # What pyspf calls for DNS

    def dns(self, *_args: object, **_kwargs: object) -> NoReturn:
        """Nothing of pyspf's own may reach the network."""
        raise AssertionError("pyspf asked the DNS by itself")

    def dns_spf(self, domain: str) -> str | None:
        """The record of an include or a redirect."""
        self._count_term()
        if not domain.isascii():
            return NO_MATCH  # RFC 8616 §4: a term with a non-ASCII local part in it matches nothing
        return select_record(self._counted_records(domain, RecordType.TXT))

    def dns_a(self, name: str, record_type: str = "A") -> tuple[Record, ...]:
        """The addresses for `a`, the existence for `exists`."""
        self._count_term()
        return self._counted_records(name, RecordType(record_type))

    def dns_mx(self, name: str) -> Iterator[Record]:
        """The addresses for `mx`, host by host, so that none is asked for after a match."""
        self._count_term()
        exchanges = [mx for mx in self._counted_records(name, RecordType.MX) if isinstance(mx, Mx)]
        if len(exchanges) > MAX_MX_RECORDS:
            raise Stop(SpfStatus.PERMERROR, Problem.SPF_TOO_MANY_MX)
        return (address for mx in sorted(exchanges) for address in self._exchange_addresses(mx.exchange))

    def validated_ptrs(self) -> list[str]:
        """The client's names for `ptr`."""
        self._count_term()
        if not self._reverse():
            self._count_void()
        return self._validated_names()

    def get_explanation(self, name: str) -> _Explanation:
        """Remember where the text is: pyspf would fetch it for every record that has one, whatever the result."""
        return _Explanation(name, self.d)

    # What pyspf counts and compares

    def check_lookups(self) -> None:
        """Count where a term is looked up, not here: pyspf counts a `redirect=` that is never followed."""

    def cidrmatch(self, addresses: Iterable[str | IpAddress], prefix_length: int) -> bool:
        """Whether the client is in one of these networks."""
        shift = self.cidrmax - prefix_length
        wanted = self._client >> shift
        return any(self._number(address) >> shift == wanted for address in addresses)

    # Macros (RFC 7208 §7)

    def expand_domain(self, domain_spec: str) -> str:
        """A domain-spec's name, at most 253 characters long."""
        if (
            domain_spec is self.d
        ):  # no domain-spec was given; what is in the current domain is not a macro any more
            return domain_spec
        if not ends_as_domain(domain_spec):
            raise Stop(SpfStatus.PERMERROR, Problem.SPF_SYNTAX)
        return self.expand(domain_spec)

    def expand(self, text: str, stripdot: bool = True) -> str:  # noqa: FBT001, FBT002 - pyspf's signature
        """Expand macros; `stripdot` for names: `%{c}`, `%{r}` and `%{t}` are refused and labels cut off until it fits."""
        if "%" in text:
            text = MACRO.sub(lambda macro: self._expand_macro(macro, in_name=stripdot), text)
        if not stripdot:
            return text
        name = text.removesuffix(".")
        if len(name) > MAX_NAME_BYTES:  # RFC 7208 §7.3: whole labels from the left; pyspf cuts only one
            name = name[name.find(".", len(name) - MAX_NAME_BYTES - 1) + 1 :]
        return name

    def _expand_macro(self, macro: re.Match[str], *, in_name: bool) -> str:
        if literal := macro["literal"]:
            return _MACRO_LITERALS[literal]
        letter = macro["letter"].lower()
        if in_name and letter in _EXPLANATION_MACROS:
            raise Stop(SpfStatus.PERMERROR, Problem.SPF_SYNTAX)
        value = self._macro_value(letter)
        if macro["digits"] or macro["reverse"] or macro["delimiters"]:
            value = _transform(value, macro)
        return (
            quote(value, safe="~") if letter != macro["letter"] else value
        )  # RFC 7208 §7.3: upper case is for URLs

    def _macro_value(self, letter: str) -> str:
        question = self._question
        match letter:
            case "i":
                return self._dotted
            case "p":
                return self._client_name()
            case "t":
                return str(int(time.time()))
            case _:
                return {
                    "s": f"{question.local_part}@{question.domain}",
                    "l": question.local_part,
                    "o": question.domain,
                    "d": str(self.d),
                    "v": str(self.v),
                    "h": question.helo[:MAX_HELO_CHARS],
                    "c": str(self._client_ip),
                    "r": question.receiver,
                }[letter]

    def _client_name(self) -> str:
        """`%{p}`: the current domain if the client has that name, else one below it, else any (RFC 7208 §7.3)."""
        names = self._validated_names()
        domain = self.d.lower()
        below = f".{domain}"
        return max(names, key=lambda name: (name == domain, name.endswith(below)), default="unknown")

    # The DNS

    def _ask(self, name: str, record_type: RecordType) -> Outcome | None:
        """None where no such name can exist: macros make any text a name, and a question not asked is not void."""
        return self._ask_dns(wanted, record_type) if (wanted := canonical_name(name)) is not None else None

    def _records(self, name: str, record_type: RecordType) -> tuple[Record, ...]:
        outcome = self._ask(name, record_type)
        if isinstance(outcome, Temporary):
            raise Stop(SpfStatus.TEMPERROR, problem_of(outcome.trouble))
        return outcome.records if isinstance(outcome, Answer) else ()

    def _counted_records(self, name: str, record_type: RecordType) -> tuple[Record, ...]:
        """A term's own records: none is a void lookup (RFC 7208 §4.6.4)."""
        records = self._records(name, record_type)
        if not records and canonical_name(name) is not None:
            self._count_void()
        return records

    def _exchange_addresses(self, exchange: str) -> tuple[Record, ...]:
        """An MX host's addresses. One that has only the other family's is not void: half of all mail hosts are like that."""
        outcome = self._ask(exchange, self._address_type)
        match outcome:
            case Answer():
                return outcome.records
            case Temporary():
                raise Stop(SpfStatus.TEMPERROR, problem_of(outcome.trouble))
            case NotFound(missing=Missing.NXDOMAIN):
                self._count_void()
                return ()
            case NotFound() | None:
                return ()

    def _reverse(self) -> tuple[Record, ...]:
        """The client's names as its own network says them; an error is no name (RFC 7208 §5.5)."""
        if self._reverse_names is None:
            outcome = self._ask(self._client_ip.reverse_pointer, RecordType.PTR)
            self._reverse_names = outcome.records if isinstance(outcome, Answer) else ()
        return self._reverse_names

    def _validated_names(self) -> list[str]:
        """Those of the first ten that have the client's address; one that cannot be looked up is skipped (RFC 7208 §5.5).

        Not counted as void: who owns the address could otherwise break the record of any domain.
        """
        if self._client_names is None:
            self._client_names = []
            for name in self._reverse()[:MAX_CLIENT_NAMES]:
                outcome = self._ask(str(name), self._address_type)
                if isinstance(outcome, Answer) and self._client_ip in outcome.records:
                    self._client_names.append(str(name))
        return self._client_names

    def _count_term(self) -> None:
        self.lookups += 1
        if self.lookups > MAX_LOOKUPS:
            raise Stop(SpfStatus.PERMERROR, Problem.SPF_TOO_MANY_LOOKUPS)

    def _count_void(self) -> None:
        self.void_lookups += 1
        if self.void_lookups > MAX_VOID_LOOKUPS:
            raise Stop(SpfStatus.PERMERROR, Problem.SPF_TOO_MANY_VOID_LOOKUPS)

    # The rest

    def _set_client(self, client_ip: IpAddress) -> None:
        """IPv4-mapped addresses are IPv4 (RFC 7208 §5); a zone index (`%eth0`) is not part of the address."""
        client: IpAddress
        if isinstance(client_ip, IPv6Address) and (mapped := client_ip.ipv4_mapped) is not None:
            client = mapped
        elif isinstance(client_ip, IPv6Address) and client_ip.scope_id:
            client = IPv6Address(int(client_ip))
        else:
            client = client_ip
        self._client_ip = client
        self._client = int(client)
        if isinstance(client, IPv4Address):
            self.A, self.v, self.cidrmax, self._family = "A", "in-addr", 32, AF_INET
        else:
            self.A, self.v, self.cidrmax, self._family = "AAAA", "ip6", 128, AF_INET6
        self._address_type = RecordType(self.A)

    @property
    def _dotted(self) -> str:
        """`%{i}` (RFC 7208 §7.3): an IPv6 address by its nibbles."""
        return str(self._client_ip) if self.v == "in-addr" else ".".join(f"{self._client:032X}")

    def _number(self, address: str | IpAddress) -> int:
        """An address of the client's family; pyspf makes inet_pton's OSError a PermError."""
        return int.from_bytes(inet_pton(self._family, address)) if isinstance(address, str) else int(address)

    def _explain(self, explanation: _Explanation) -> str | None:
        """The domain's words for a fail; None for anything out of order (RFC 7208 §6.2)."""
        outcome = self._ask(explanation.name, RecordType.TXT)
        if not isinstance(outcome, Answer) or len(outcome.records) != 1:
            return None
        text = outcome.records[0]
        if not isinstance(text, bytes) or not text.isascii() or len(text) > MAX_RECORD_BYTES:
            return None
        template = text.decode("ascii")
        if not has_valid_macros(template):
            return None
        self.d = explanation.domain
        # CRLF in it would begin a new header field or a new reply line.
        return _UNPRINTABLE.sub("?", self.expand(template, stripdot=False)[:MAX_EXPLANATION_CHARS]) or None

    def _stopped(self, status: SpfStatus, problem: Problem) -> Finding:
        return Finding(status=status, lookups=self.lookups, problem=problem)


def _transform(value: str, macro: re.Match[str]) -> str:
    """Split, reverse, keep the right-hand parts, join with dots (RFC 7208 §7.3)."""
    delimiters = (
        "".join(sorted(set(macro["delimiters"]))) or "."
    )  # a set: thousands of them take long to compile
    parts = re.split(f"[{re.escape(delimiters)}]", value)
    if macro["reverse"]:
        parts.reverse()
    if macro["digits"]:
        parts = parts[-int(macro["digits"]) :]
    return ".".join(parts)


def _problem_in(error: spf.PermError) -> Problem:
    """Which fault pyspf means; it tells them apart only in words."""
    match str(error.msg).split(" ", 1)[0]:
        case "redirect":
            return Problem.SPF_REDIRECT_WITHOUT_RECORD
        case "No":
            return Problem.SPF_INCLUDE_WITHOUT_RECORD
        case _:
            return Problem.SPF_SYNTAX

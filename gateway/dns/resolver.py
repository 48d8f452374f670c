"""What a check may ask of the DNS, and the three things that it can hear back (RFC 1035, RFC 2308, RFC 4035).

A check awaits only this. `Answer` is data, `NotFound` is an authoritative no, `Temporary` is "could not be known now": a
check must never take the third for the second (a DNS failure is never a pass and never a permanent refusal by itself).
"""

from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Final, NamedTuple, Protocol

MAX_CNAMES: Final = 10  # in one answer; unbound follows 11, BIND 16; honest chains have one or two


class RecordType(StrEnum):
    """The record types that mail asks for; the word is the metric label."""

    A = "A"
    AAAA = "AAAA"
    CNAME = "CNAME"
    MX = "MX"
    PTR = "PTR"
    TXT = "TXT"
    TLSA = "TLSA"


class Mx(NamedTuple):
    """A mail exchanger (RFC 5321 §5.1); exchange `""` is the root: a null MX (RFC 7505)."""

    preference: int
    exchange: str


class Tlsa(NamedTuple):
    """A TLSA record (RFC 6698 §2.1)."""

    usage: int
    selector: int
    matching_type: int
    data: bytes


Record = IPv4Address | IPv6Address | str | Mx | bytes | Tlsa
"""A: IPv4Address · AAAA: IPv6Address · CNAME, PTR: str · MX: Mx · TXT: bytes (its strings joined) · TLSA: Tlsa.

Names are in lower case, in A-labels, without a final dot.
"""


@dataclass(frozen=True, slots=True)
class Answer:
    """Records exist.

    Attributes:
        records: at least one, in the order received.
        ttl: seconds for which this may be kept, the least along the CNAME chain.
        secure: the validating resolver vouches for it (AD); always False where it does not validate.
        name: the name at which the records stand, after any CNAME.
    """

    records: tuple[Record, ...]
    ttl: int
    secure: bool
    name: str


class Missing(StrEnum):
    """Which authoritative no (RFC 2308 §2)."""

    NXDOMAIN = "nxdomain"  # nothing exists at this name or below it
    NODATA = "nodata"  # the name exists, with other types


@dataclass(frozen=True, slots=True)
class NotFound:
    """The name or the type does not exist, and an authority says so."""

    missing: Missing
    ttl: int
    secure: bool


class Trouble(StrEnum):
    """Why an answer could not be had; trying again later may help."""

    TIMEOUT = "timeout"  # no server answered in time: look at the resolver, then at the network
    SERVFAIL = "servfail"  # the resolver gave up: broken or bogus (DNSSEC) zone, or its servers are down
    REFUSED = "refused"  # the resolver does not serve us: look at its access list
    MALFORMED = "malformed"  # an answer that makes no sense
    BUDGET = "budget"  # this message has used up its queries or its time; hostile or very long chains


@dataclass(frozen=True, slots=True)
class Temporary:
    """Nothing can be said now."""

    trouble: Trouble


Outcome = Answer | NotFound | Temporary


def outcome_word(outcome: Outcome) -> str:
    """The one word for logs, traces and metric labels: `answer`, or why there is none."""
    match outcome:
        case Answer():
            return "answer"
        case NotFound():
            return outcome.missing.value
        case Temporary():
            return outcome.trouble.value


class Resolver(Protocol):
    """Where records come from: a zone text, a stub resolver, or one of those with a message's budget around it."""

    async def query(self, name: str, record_type: RecordType) -> Outcome:
        """Look up `name` (A-labels, no final dot, any case). Never raises for anything that the network does.

        A name that cannot exist (a label over 63 or all over 253 bytes, an empty label) is NXDOMAIN, unasked.
        """
        ...

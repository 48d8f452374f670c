"""DNS messages on the wire (RFC 1035 §4.1): the question that we send, and the one answer that we want out of the reply.

Only what a stub resolver needs, because a general parser reads a stranger's 64 KiB into thousands of objects that nobody
asked for, and on the loop that every other message waits for. dnspython is the oracle in the tests.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Final, NamedTuple

from gateway.dns.names import MAX_NAME_BYTES, name_from_labels
from gateway.dns.resolver import (
    MAX_CNAMES,
    Answer,
    Missing,
    Mx,
    NotFound,
    Outcome,
    Record,
    RecordType,
    Temporary,
    Tlsa,
    Trouble,
)
from gateway.mail.errors import ParseError

MAX_RECORDS = 2_000  # of one reply; no name that mail asks about has a tenth of it
UDP_PAYLOAD_BYTES = 1232  # DNS flag day 2020: fits every path unfragmented
ROOT = ""

_TYPE_NUMBERS: Final = {
    RecordType.A: 1,
    RecordType.CNAME: 5,
    RecordType.PTR: 12,
    RecordType.MX: 15,
    RecordType.TXT: 16,
    RecordType.AAAA: 28,
    RecordType.TLSA: 52,
}
_NS: Final = 2
_CNAME: Final = 5
_SOA: Final = 6
_IN: Final = 1

_HEADER = struct.Struct("!HHHHHH")
_RECORD = struct.Struct("!HHIH")
_QUESTION_TAIL = struct.Struct("!HH")
_QUERY_FLAGS: Final = 0x0120  # RD, and AD: "tell me whether it is secure" (RFC 6840 §5.7)
_OPT: Final = b"\0" + struct.pack("!HHIH", 41, UDP_PAYLOAD_BYTES, 0, 0)  # RFC 6891 §6.1.2
_QR: Final = 0x8000
_OPCODE: Final = 0x7800
_TC: Final = 0x0200
_AD: Final = 0x0020
_RCODE: Final = 0x000F
_MAX_TTL: Final = 0x7FFFFFFF
_POINTER: Final = 0xC0
_MAX_POINTERS: Final = 127  # in one name: as many as it can have labels

_RCODE_TROUBLE: Final = {2: Trouble.SERVFAIL, 5: Trouble.REFUSED}
_NXDOMAIN: Final = 3


class WireError(ParseError):
    """A reply that is no DNS message."""


class Query(NamedTuple):
    """A question ready to send, with what is needed to know its reply."""

    wire: bytes
    question: bytes
    name: str


def encode_query(identifier: int, name: str, record_type: RecordType) -> Query:
    """Ask for `name`, which is canonical (see `canonical_name`)."""
    return _encode(identifier, name, _TYPE_NUMBERS[record_type])


def encode_root_query(identifier: int) -> Query:
    """Ask for the root's SOA, which every signed tree can vouch for."""
    return _encode(identifier, ROOT, _SOA)


def _encode(identifier: int, name: str, number: int) -> Query:
    labels = [bytes((len(label),)) + label.encode("ascii") for label in name.split(".") if label]
    question = b"".join(labels) + b"\0" + _QUESTION_TAIL.pack(number, _IN)
    header = _HEADER.pack(identifier, _QUERY_FLAGS, 1, 0, 0, 1)
    return Query(header + question + _OPT, question, name)


def is_reply(wire: bytes, query: Query) -> bool:
    """Whether `wire` answers `query` and not something else (RFC 5452 §9.1): the identifier and the question are ours.

    A server that could make nothing of the question may leave it out of its error.
    """
    if len(wire) < _HEADER.size or wire[:2] != query.wire[:2]:
        return False
    _, flags, questions, *_ = _HEADER.unpack_from(wire)
    if flags & (_QR | _OPCODE) != _QR:
        return False
    if questions == 0:
        return flags & _RCODE not in {0, _NXDOMAIN}
    echoed = wire[_HEADER.size : _HEADER.size + len(query.question)]
    return questions == 1 and echoed.lower() == query.question.lower()


def is_truncated(wire: bytes) -> bool:
    """Whether the reply says that it did not fit: ask again by TCP (RFC 7766 §5)."""
    return bool(_flags(wire) & _TC)


def is_vouched_for(wire: bytes) -> bool:
    """Whether this is data with AD set: the server says that it has validated it (RFC 4035 §3.2.3)."""
    flags = _flags(wire)
    return bool(flags & _AD) and flags & _RCODE == 0 and _HEADER.unpack_from(wire)[3] > 0


def _flags(wire: bytes) -> int:
    return int.from_bytes(wire[2:4])


def decode_reply(wire: bytes, query: Query, record_type: RecordType) -> Outcome:
    """What the reply to `query` says. Nonsense is `Temporary(MALFORMED)`: this never raises."""
    flags = _flags(wire)
    rcode = flags & _RCODE
    if rcode not in {0, _NXDOMAIN}:
        return Temporary(_RCODE_TROUBLE.get(rcode, Trouble.MALFORMED))
    try:
        reader = _Reader(wire)
        reader.position = _HEADER.size + len(query.question)
        return _conclude(reader, query.name, record_type)
    except (WireError, struct.error, IndexError):
        return Temporary(Trouble.MALFORMED)


@dataclass(slots=True)
class _Found:
    """The records of one name in the answer section."""

    ttl: int = _MAX_TTL
    records: list[Record] = field(default_factory=list)
    alias: str | None = None
    alias_ttl: int = _MAX_TTL


def _conclude(reader: "_Reader", name: str, record_type: RecordType) -> Outcome:
    _, flags, _, answers, authorities, _ = _HEADER.unpack_from(reader.wire)
    secure = bool(flags & _AD)
    found = _read_answers(reader, answers, record_type)
    ttl = _MAX_TTL
    for _ in range(MAX_CNAMES + 1):
        here = found.get(name)
        if here is None:
            break
        if here.records:
            if flags & _RCODE:
                raise WireError("the name does not exist, and here is its data")
            return Answer(tuple(here.records), min(ttl, here.ttl), secure, name)
        if here.alias is None:
            break
        ttl = min(ttl, here.alias_ttl)
        name = here.alias
    else:
        return Temporary(Trouble.MALFORMED)  # CNAMEs in a circle, or nearly
    negative_ttl, is_referral = _read_authorities(reader, authorities)
    if flags & _RCODE == _NXDOMAIN:
        return NotFound(Missing.NXDOMAIN, min(ttl, negative_ttl), secure)
    if (
        is_referral
    ):  # a server that does not recurse tells us to ask others: RFC 2308 §2.2, "no such data" type 3
        return Temporary(Trouble.REFUSED)
    return NotFound(Missing.NODATA, min(ttl, negative_ttl), secure)


def _read_answers(reader: "_Reader", count: int, record_type: RecordType) -> dict[str, _Found]:
    if count > MAX_RECORDS:
        raise WireError(f"{count} records")
    wanted = _TYPE_NUMBERS[record_type]
    decode = _DECODERS[record_type]
    found: dict[str, _Found] = {}
    for _ in range(count):
        name = reader.name()
        number, dns_class, ttl, length = reader.fixed(_RECORD)
        end = reader.end_of(length)
        if dns_class == _IN and number in {wanted, _CNAME}:
            if ttl > _MAX_TTL:
                ttl = 0  # RFC 2181 §8
            here = found.get(name)
            if here is None:
                here = found[name] = _Found()
            if number == wanted:
                here.records.append(decode(reader, end))
                here.ttl = min(here.ttl, ttl)
            else:
                if here.alias is not None:
                    raise WireError("two CNAMEs at one name")
                here.alias, here.alias_ttl = reader.name(), ttl
            if reader.position != end:
                raise WireError(f"{record_type} data of the wrong length")
        reader.position = end
    return found


def _read_authorities(reader: "_Reader", count: int) -> tuple[int, bool]:
    """The seconds for which a "no" may be kept (RFC 2308 §5; 0 without a SOA), and whether this is a referral."""
    seen_ns = False
    for _ in range(min(count, MAX_RECORDS)):
        reader.skip_name()
        number, _, ttl, length = reader.fixed(_RECORD)
        end = reader.end_of(length)
        if number == _SOA and length >= 22:  # noqa: PLR2004  # RFC 1035 §3.3.13: two names and five figures
            minimum = int.from_bytes(reader.wire[end - 4 : end])
            return min(0 if ttl > _MAX_TTL else ttl, minimum), False
        seen_ns = seen_ns or number == _NS
        reader.position = end
    return 0, seen_ns


class _Reader:
    """A place in a message. Reading past its end raises WireError, struct.error or IndexError."""

    __slots__ = ("_suffixes", "position", "wire")

    def __init__(self, wire: bytes) -> None:
        self.wire = wire
        self.position = 0
        self._suffixes: dict[
            int, str
        ] = {}  # what a pointer stands for: nearly every record begins with the same one

    def fixed(self, layout: struct.Struct) -> tuple[int, ...]:
        values = layout.unpack_from(self.wire, self.position)
        self.position += layout.size
        return values

    def end_of(self, length: int) -> int:
        end = self.position + length
        if end > len(self.wire):
            raise WireError("a record runs past the end")
        return end

    def name(self) -> str:
        wire = self.wire
        if wire[self.position] >= _POINTER:  # the whole name is a pointer
            target = self._pointer(self.position)
            name = self._suffixes.get(target)
            if name is None:
                name = self._suffixes[target] = self._labels(target)[0]
            self.position += 2
            return name
        name, self.position = self._labels(self.position)
        return name

    def skip_name(self) -> None:
        while 0 < (length := self.wire[self.position]) < _POINTER:
            self.position += 1 + length
        self.position += 2 if length else 1

    def _pointer(self, position: int) -> int:
        target = int.from_bytes(self.wire[position : position + 2]) & 0x3FFF
        if target >= position:  # only ever backwards (RFC 1035 §4.1.4 "prior occurrence"): so it ends
            raise WireError("a pointer that does not go back")
        return target

    def _labels(self, position: int) -> tuple[str, int]:
        """The name at `position`, and where what follows it begins."""
        wire = self.wire
        labels: list[bytes] = []
        total = 0
        pointers = 0
        after: int | None = None
        while length := wire[position]:
            if length >= _POINTER:
                if after is None:
                    after = position + 2
                position = self._pointer(position)
                pointers += 1
                if pointers > _MAX_POINTERS:
                    raise WireError("a name made of pointers")
                continue
            if length >= 0x40:  # noqa: PLR2004  # RFC 6891 §5: extended label types are gone
                raise WireError("an unknown kind of label")
            label = wire[position + 1 : position + 1 + length]
            position += 1 + length
            total += 1 + length
            if total > MAX_NAME_BYTES + 1:
                raise WireError("a name over 255 bytes")
            labels.append(label)
        return name_from_labels(labels), position + 1 if after is None else after


def _read_ipv4(reader: _Reader, end: int) -> Record:
    return IPv4Address(_exactly(reader, end, 4))


def _read_ipv6(reader: _Reader, end: int) -> Record:
    return IPv6Address(_exactly(reader, end, 16))


def _exactly(reader: _Reader, end: int, size: int) -> bytes:
    if end - reader.position != size:
        raise WireError("an address of the wrong length")
    data = reader.wire[reader.position : end]
    reader.position = end
    return data


def _read_name(reader: _Reader, _end: int) -> Record:
    return reader.name()


def _read_mx(reader: _Reader, _end: int) -> Record:
    preference = int.from_bytes(reader.wire[reader.position : reader.position + 2])
    reader.position += 2
    return Mx(preference, reader.name())


def _read_txt(reader: _Reader, end: int) -> Record:
    wire = reader.wire
    position = reader.position
    if position == end:
        raise WireError("TXT without a string")
    strings: list[bytes] = []
    while position < end:
        after = position + 1 + wire[position]
        strings.append(wire[position + 1 : after])
        position = after
    reader.position = position  # past the end where the last string is: the caller sees it
    return b"".join(strings)


def _read_tlsa(reader: _Reader, end: int) -> Record:
    start = reader.position
    if end - start < 4:  # noqa: PLR2004  # RFC 6698 §2.1: three bytes, then data
        raise WireError("TLSA without data")
    reader.position = end
    usage, selector, matching_type = reader.wire[start : start + 3]
    return Tlsa(usage, selector, matching_type, reader.wire[start + 3 : end])


_DECODERS: Final[dict[RecordType, Callable[[_Reader, int], Record]]] = {
    RecordType.A: _read_ipv4,
    RecordType.AAAA: _read_ipv6,
    RecordType.CNAME: _read_name,
    RecordType.PTR: _read_name,
    RecordType.MX: _read_mx,
    RecordType.TXT: _read_txt,
    RecordType.TLSA: _read_tlsa,
}

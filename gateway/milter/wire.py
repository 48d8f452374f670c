"""The milter protocol on the wire, version 6, as Sendmail defined it and Postfix speaks it: packets in, packets out.

A packet is a length (4 bytes, big-endian), a letter, and data; each text in it ends with a NUL. The mail server begins with what it can
do, and is told what we will do and which steps it need neither tell us of nor wait for: each answer that it waits for costs it more
than the question.
"""

import struct
from collections.abc import Mapping, Sequence
from enum import IntEnum, IntFlag
from typing import Final, NamedTuple

from gateway.mail.errors import ParseError
from gateway.milter.actions import Accept, Action, DeleteHeader, InsertHeader, Quarantine, Refuse

VERSION: Final = 6
MAX_PACKET_BYTES: Final = 1024 * 1024
"""Postfix sends a body in pieces of 64 KB, and of a header field 60,000 bytes at most: libmilter takes no packet over 64 KB."""

# What the mail server says.
NEGOTIATE: Final = ord("O")
CONNECT: Final = ord("C")
HELO: Final = ord("H")
MAIL: Final = ord("M")
RCPT: Final = ord("R")
DATA: Final = ord("T")
HEADER: Final = ord("L")
END_OF_HEADER: Final = ord("N")
BODY: Final = ord("B")
END_OF_BODY: Final = ord("E")
ABORT: Final = ord("A")
QUIT: Final = ord("Q")
NEXT_SESSION: Final = ord("K")  # QUIT, but the connection stays for another client
MACROS: Final = ord("D")
UNKNOWN: Final = ord("U")

MAX_TEXTS: Final = 512
"""Texts in one packet: macros with their values, or an address with its parameters."""

_LENGTH: Final = struct.Struct(">I")
_NEGOTIATION: Final = struct.Struct(">III")


class May(IntFlag):
    """What a milter does to messages (SMFIF_*)."""

    ADD_HEADERS = 0x1
    CHANGE_HEADERS = 0x10
    QUARANTINE = 0x20
    CHOOSE_MACROS = 0x100


class Skip(IntFlag):
    """What the mail server need not tell, or wait for (SMFIP_*)."""

    NO_END_OF_HEADER = 0x40
    NO_HEADER_REPLY = 0x80
    NO_UNKNOWN = 0x100
    NO_DATA = 0x200
    NO_CONNECT_REPLY = 0x1000
    NO_HELO_REPLY = 0x2000
    NO_MAIL_REPLY = 0x4000
    NO_RCPT_REPLY = 0x8000
    NO_BODY_REPLY = 0x80000
    LEADING_SPACE = (
        0x100000  # header values come with the blank behind the colon: else no `simple` signature survives
    )


class MacroStage(IntEnum):
    """When macros are sent (SMFIM_*)."""

    CONNECT = 0
    HELO = 1
    MAIL = 2
    RCPT = 3
    END_OF_BODY = 5


class Packet(NamedTuple):
    """One packet: its letter, as a number, and its data."""

    command: int
    data: bytes


class PacketReader:
    """Bytes to packets, wherever they are cut."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[Packet]:
        """The packets that are complete now.

        Raises:
            ParseError: an empty packet, or one that is too long: the other side speaks something else.
        """
        if self._rest:
            self._rest += data
            if len(self._rest) < _LENGTH.size or len(self._rest) < _LENGTH.size + self._size(self._rest, 0):
                return []
            data = bytes(self._rest)
            self._rest.clear()
        packets: list[Packet] = []
        at, end, width = 0, len(data), _LENGTH.size
        size_at, make = self._size, tuple.__new__  # half the cost of the named tuple's own constructor
        while end - at > width:
            begin = at + width
            past = begin + size_at(data, at)
            if past > end:
                break
            packets.append(make(Packet, (data[begin], data[begin + 1 : past])))
            at = past
        if at < end:
            self._rest += data[at:]
            if end - at == _LENGTH.size:
                self._size(data, at)
        return packets

    @staticmethod
    def _size(data: bytes | bytearray, at: int) -> int:
        (size,) = _LENGTH.unpack_from(data, at)
        if not 0 < size <= MAX_PACKET_BYTES:
            raise ParseError(f"a packet of {size} bytes: this is not the milter protocol")
        return size  # type: ignore[no-any-return] # an int, by the format


class Offer(NamedTuple):
    """What the mail server can do."""

    version: int
    actions: int
    protocol: int


class Client(NamedTuple):
    """Who connected to the mail server; the address is None where it knows none."""

    name: str
    address: str | None


def parse_offer(data: bytes) -> Offer:
    """Read its opening word. Raises ParseError, as do the next."""
    if len(data) < _NEGOTIATION.size:
        raise ParseError("an opening word that is cut short")
    return Offer(*_NEGOTIATION.unpack_from(data))


def parse_client(data: bytes) -> Client:
    """Read CONNECT: name, family (`4`, `6`, `L`, `U`), port, address."""
    name, end, rest = data.partition(b"\0")
    if not end or not rest:
        raise ParseError("a client without a family")
    address: str | None = None
    if rest[:1] in {b"4", b"6"}:
        address = rest[3:].partition(b"\0")[0].decode("ascii", "replace").removeprefix("IPv6:")
    return Client(name.decode("utf-8", "replace"), address)


def parse_texts(data: bytes) -> list[bytes]:
    """Read texts that each end with NUL."""
    texts = data.split(b"\0", MAX_TEXTS)
    if texts.pop():
        raise ParseError(f"a text without its end, or more than {MAX_TEXTS} of them")
    return texts


def parse_address(data: bytes) -> list[bytes]:
    """Read MAIL or RCPT: the path, then each parameter."""
    texts = parse_texts(data)
    if not texts:
        raise ParseError("an address that is none")
    return texts


def parse_helo(data: bytes) -> str | None:
    """Read HELO: the name; None, which is nobody's, where it is not UTF-8."""
    name = parse_texts(data)
    if len(name) != 1:
        raise ParseError("a HELO that is not one name")
    return _decode(name[0])


def parse_header(data: bytes) -> tuple[bytes, bytes]:
    """Read a header field: its name, and all that is behind its colon."""
    try:
        name, value, end = data.split(b"\0")
    except ValueError:
        end = b"?"
    if end:
        raise ParseError("a header field that is not a name and a value")
    return name, value


def parse_macros(data: bytes) -> tuple[int, dict[str, str | None]]:
    """Read MACROS: for which command, and names with values; None for one that is not UTF-8 and so is nobody's."""
    if not data:
        raise ParseError("macros for nothing")
    texts = parse_texts(data[1:])
    names = [name.decode("ascii", "replace") for name in texts[0::2]]
    return data[0], dict(zip(names, map(_decode, texts[1::2]), strict=False))


def _decode(text: bytes) -> str | None:
    try:
        return text.decode()
    except UnicodeDecodeError:
        return None


def write_packet(letter: bytes, data: bytes = b"") -> bytes:
    """One packet."""
    return _LENGTH.pack(len(data) + 1) + letter + data


def write_answer(actions: int, protocol: int, macros: Mapping[MacroStage, str]) -> bytes:
    """Our answer to the offer: what we do, what it may leave out, and the macros that we want at each stage."""
    lists = b"".join(_LENGTH.pack(stage) + names.encode() + b"\0" for stage, names in macros.items())
    return write_packet(b"O", _NEGOTIATION.pack(VERSION, actions, protocol) + lists)


CARRY_ON: Final = write_packet(b"c")
ACCEPT: Final = write_packet(b"a")
REJECT: Final = write_packet(b"r")


def write_refusal(refusal: Refuse) -> bytes:
    """REPLYCODE: the whole reply, each line with its codes."""
    last = len(refusal.lines) - 1
    enhanced = f"{refusal.enhanced} " if refusal.enhanced else ""
    lines = [
        f"{refusal.code}{' ' if at == last else '-'}{enhanced}{line}" for at, line in enumerate(refusal.lines)
    ]
    return write_packet(b"y", "\r\n".join(lines).encode("ascii", "replace") + b"\0")


def write_actions(actions: Sequence[Action]) -> bytes:
    """What `gateway.milter.actions.plan` wants done, the last word included."""
    return b"".join(map(_write_action, actions))


def _write_action(action: Action) -> bytes:
    match action:
        case InsertHeader(name, value):
            return write_packet(b"i", _LENGTH.pack(0) + name.encode() + b"\0" + value.encode() + b"\0")
        case DeleteHeader(name, occurrence):
            return write_packet(b"m", _LENGTH.pack(occurrence) + name.encode() + b"\0\0")
        case Quarantine(reason):
            return write_packet(b"q", reason.encode() + b"\0")
        case Accept():
            return ACCEPT
        case Refuse():
            return write_refusal(action)

"""The mail server's side of the milter protocol, byte by byte: for tests without Postfix and for the bench.

Packets are a length (4 bytes, big-endian), a command byte and its data; strings end with NUL.
"""

import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

ALL_ACTIONS: Final = 0x1FF
ALL_PROTOCOL: Final = 0x1FFFFF
MAX_CHUNK: Final = 65_535

NO_CONNECT_REPLY, NO_HELO_REPLY = 0x1000, 0x2000
NO_MAIL_REPLY, NO_RCPT_REPLY = 0x4000, 0x8000
NO_DATA, NO_EOH = 0x200, 0x40
NO_HEADER_REPLY, NO_EOH_REPLY, NO_BODY_REPLY = 0x80, 0x40000, 0x80000
LEADING_SPACE: Final = 0x100000

FINAL: Final = frozenset(b"acdrty")  # accept, continue, discard, reject, tempfail, reply code


@dataclass(frozen=True, slots=True)
class Reply:
    """One packet from the milter: its command, as a character, and its data."""

    command: str
    data: bytes = b""


@dataclass(slots=True)
class Answer:
    """What the milter said at the end of one message, its edits in order, then its last word."""

    edits: list[Reply] = field(default_factory=list)
    last: Reply = field(default_factory=lambda: Reply(""))

    @property
    def inserted(self) -> list[tuple[int, str, bytes]]:
        """Index, name and value of each inserted field."""
        return [
            (struct.unpack(">I", edit.data[:4])[0], *_name_value(edit.data[4:]))
            for edit in self.edits
            if edit.command == "i"
        ]

    @property
    def deleted(self) -> list[tuple[int, str]]:
        """Occurrence and name of each deleted field."""
        found = []
        for edit in self.edits:
            if edit.command == "m":
                name, value = _name_value(edit.data[4:])
                assert value == b"", "changed, not deleted"
                found.append((struct.unpack(">I", edit.data[:4])[0], name))
        return found

    @property
    def quarantined(self) -> list[str]:
        """The reasons for putting it on hold."""
        return [edit.data.rstrip(b"\0").decode() for edit in self.edits if edit.command == "q"]

    @property
    def text(self) -> str:
        """The SMTP reply of a refusal, as given: `%` doubled."""
        return self.last.data.rstrip(b"\0").decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Mail:
    """One message for `RawClient.send`; `headers` have all behind the colon as their value, LF within folded ones."""

    mail_from: Sequence[bytes] = (b"<a@example.org>",)
    recipients: Sequence[Sequence[bytes]] = ((b"<b@example.net>",),)
    headers: Sequence[tuple[bytes, bytes]] = ((b"From", b" <a@example.org>"), (b"Subject", b" hi"))
    body: bytes = b"hello\r\n"
    macros: Sequence[tuple[bytes, bytes]] = ((b"i", b"4fQ2Z1"),)


class RawClient:
    """One connection to the milter's socket."""

    def __init__(self, path: Path, *, protocol: int = ALL_PROTOCOL, actions: int = ALL_ACTIONS) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(20)
        self._socket.connect(str(path))
        self._buffer = b""
        self._out: list[bytes] = []
        try:
            self.put(b"O", struct.pack(">III", 6, actions, protocol))
            self.flush()
            reply = self.read()
            assert reply.command == "O", reply
            _, self.actions, self.protocol = struct.unpack(">III", reply.data[:12])
            self.macro_lists = reply.data[12:]
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def connect(
        self, name: bytes = b"out.example.org", address: bytes = b"192.0.2.1", family: bytes = b"4"
    ) -> None:
        """Say who the client is; family `4`, `6`, `L`, or `U` for unknown."""
        where = b"" if family == b"U" else struct.pack(">H", 25) + address + b"\0"
        self.put(b"C", name + b"\0" + family + where)
        if not self.protocol & NO_CONNECT_REPLY:
            self.ask()

    def helo(self, name: bytes = b"out.example.org") -> None:
        """Say HELO for the client."""
        self.put(b"H", name + b"\0")
        if not self.protocol & NO_HELO_REPLY:
            self.ask()

    def mail(self, arguments: Sequence[bytes], macros: Iterable[tuple[bytes, bytes]] = ()) -> Reply:
        """Say MAIL FROM."""
        self.macros(b"M", macros)
        self.put(b"M", b"".join(argument + b"\0" for argument in arguments))
        return self.ask() if not self.protocol & NO_MAIL_REPLY else Reply("c")

    def rcpt(self, arguments: Sequence[bytes], macros: Iterable[tuple[bytes, bytes]] = ()) -> Reply:
        """Say RCPT TO."""
        self.macros(b"R", macros)
        self.put(b"R", b"".join(argument + b"\0" for argument in arguments))
        return self.ask() if not self.protocol & NO_RCPT_REPLY else Reply("c")

    def content(self, mail: Mail) -> None:
        """Hand over headers and body, without the end."""
        for name, value in mail.headers:
            self.put(b"L", name + b"\0" + value + b"\0")
            if not self.protocol & NO_HEADER_REPLY:
                self.ask()
        if not self.protocol & NO_EOH:
            self.put(b"N", b"")
            if not self.protocol & NO_EOH_REPLY:
                self.ask()
        for start in range(0, len(mail.body), MAX_CHUNK):
            self.put(b"B", mail.body[start : start + MAX_CHUNK])
            if not self.protocol & NO_BODY_REPLY:
                self.ask()

    def end(self, macros: Iterable[tuple[bytes, bytes]] = ()) -> Answer:
        """End the message and take everything that the milter says to it."""
        self.macros(b"E", macros)
        self.put(b"E", b"")
        self.flush()
        answer = Answer()
        while True:
            reply = self.read()
            if ord(reply.command) in FINAL:
                answer.last = reply
                return answer
            answer.edits.append(reply)

    def send(self, mail: Mail) -> Answer:
        """One whole message, from MAIL to the end; a refusal before the end is the answer."""
        reply = self.mail(mail.mail_from, mail.macros)
        if reply.command != "c":
            return Answer(last=reply)
        for recipient in mail.recipients:
            reply = self.rcpt(recipient)
            if reply.command != "c":
                self.put(b"A", b"")
                return Answer(last=reply)
        self.content(mail)
        return self.end()

    def abort(self) -> None:
        """Give up the message, not the connection."""
        self.put(b"A", b"")
        self.flush()

    def quit(self) -> None:
        """End as a mail server does."""
        self.put(b"Q", b"")
        self.flush()

    def close(self) -> None:
        """Drop the connection."""
        self._socket.close()

    def macros(self, command: bytes, macros: Iterable[tuple[bytes, bytes]]) -> None:
        """Define macros for the command that comes next."""
        flat = b"".join(name + b"\0" + value + b"\0" for name, value in macros)
        if flat:
            self.put(b"D", command + flat)

    def put(self, command: bytes, data: bytes) -> None:
        """Add a packet to those to be sent."""
        self._out.append(struct.pack(">I", len(data) + 1) + command + data)

    def flush(self) -> None:
        """Send what was put."""
        out, self._out = self._out, []
        self._socket.sendall(b"".join(out))

    def ask(self) -> Reply:
        """Send, and read one packet."""
        self.flush()
        return self.read()

    def read(self) -> Reply:
        """The next packet from the milter; ConnectionError where it hung up."""
        size = struct.unpack(">I", self._take(4))[0]
        packet = self._take(size)
        return Reply(chr(packet[0]), packet[1:])

    def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            piece = self._socket.recv(65_536)
            if not piece:
                raise ConnectionError("the milter hung up")
            self._buffer += piece
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken


def _name_value(data: bytes) -> tuple[str, bytes]:
    name, value, _ = data.split(b"\0", 2)
    return name.decode(), value

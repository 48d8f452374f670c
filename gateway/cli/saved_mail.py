"""Saved mail: a Maildir, a folder of .eml files, or an mbox; and what our own trace field in a message says of its client.

Only what we wrote ourselves is believed: a Received field by our own host name, the topmost one first, for whatever stands
below it may be a stranger's. Return-Path is the mail server's behind us (RFC 5321 §4.4).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import BinaryIO, Final

from gateway.mail.envelope import IpAddress
from gateway.mail.message import Message

MAX_MESSAGE_BYTES: Final = 64 * 1024 * 1024
MBOX_START: Final = b"From "

_MAX_LINE_BYTES: Final = 1024 * 1024
_QUOTED_FROM: Final = re.compile(rb">+From ")
_RECEIVED: Final = re.compile(
    r"\s*from\s+(?P<helo>\S{1,255})\s+\([^()]{0,300}\[(?:IPv6:)?(?P<ip>[0-9A-Fa-f.:]{2,45})\][^()]{0,300}\)"
    r"\s+(?:\(.{0,400}?\)\s+)?by\s+(?P<by>[^\s;]{1,255})"
)
_MAX_RECEIVED_CHARACTERS: Final = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """Who gave us a message."""

    ip: IpAddress
    helo: str | None


def is_saved_mail(path: Path) -> bool:
    """Whether it is a folder, a message or an mbox, and not a log.

    Raises:
        OSError: it cannot be read.
    """
    if path.is_dir() or path.suffix == ".eml":
        return True
    with path.open("rb") as file:
        return file.read(len(MBOX_START)) == MBOX_START


def count_saved(path: Path) -> int | None:
    """How many messages a folder has; None for an mbox, which would have to be read for that."""
    return sum(1 for _ in _files(path)) if path.is_dir() else None


def read_saved(path: Path) -> Iterator[tuple[str, Message | None]]:
    """Each message with its name, one at a time; None where it is too large or cannot be read.

    Raises:
        OSError: the folder or the mbox itself cannot be read.
    """
    if not path.is_dir():
        yield from _mbox(path) if path.suffix != ".eml" else [(path.name, _file(path))]
        return
    for one in _files(path):
        yield one.name, _file(one)


def _files(path: Path) -> Iterator[Path]:
    folders = [path / name for name in ("cur", "new") if (path / name).is_dir()]
    for folder in folders or [path]:
        for one in sorted(folder.iterdir()):
            if one.is_file() and (folders or one.suffix == ".eml"):
                yield one


def _file(path: Path) -> Message | None:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_MESSAGE_BYTES + 1)
    except OSError:
        return None
    return Message.from_file(content) if len(content) <= MAX_MESSAGE_BYTES else None


def _mbox(path: Path) -> Iterator[tuple[str, Message | None]]:
    """Messages begin with a line `From ` after an empty one; `>From ` in them had one `>` put before it (mboxrd)."""
    with path.open("rb") as file:
        for number, content in enumerate(_mbox_parts(file), start=1):
            message = Message.from_file(content) if content is not None else None
            yield f"{path.name}:{number}", message


def _mbox_parts(file: BinaryIO) -> Iterator[bytes | None]:
    part, size, is_after_empty, is_open, starts_line = bytearray(), 0, True, False, True
    while line := file.readline(_MAX_LINE_BYTES):
        if starts_line and is_after_empty and line.startswith(MBOX_START):
            if is_open:
                yield bytes(part) if size <= MAX_MESSAGE_BYTES else None
            part, size, is_open = bytearray(), 0, True
        elif is_open:
            piece = line[1:] if starts_line and _QUOTED_FROM.match(line) else line
            size += len(piece)
            if size <= MAX_MESSAGE_BYTES:
                part += piece
            else:
                part.clear()
        is_after_empty = starts_line and line in {b"\n", b"\r\n"}
        starts_line = line.endswith(b"\n")
    if is_open:
        yield bytes(part) if size <= MAX_MESSAGE_BYTES else None


def client_of(message: Message, hostname: str) -> Client | None:
    """Who gave us the message, by the topmost Received field of ours that names a client from outside; None: nobody says."""
    for position in message.positions(b"received"):
        text = message.unfolded(position)[:_MAX_RECEIVED_CHARACTERS].decode("ascii", "replace")
        found = _RECEIVED.match(text)
        if found is None or found["by"].lower().rstrip(".") != hostname:
            continue
        try:
            address = ip_address(found["ip"])
        except ValueError:
            return None
        if address.is_loopback:  # from one of our own programs to the next
            continue
        helo = found["helo"]
        return Client(ip=address, helo=None if helo.startswith("[") and "helo=" in found[0] else helo)
    return None

"""The PROXY protocol, versions 1 and 2 (HAProxy's proxy-protocol.txt): a load balancer tells whose connection it hands on.

It comes before everything else on the connection and is believed without question, so it is read only from configured
peers, and then it must be there and must be right: there is no reply to a bad one, the connection is closed.
"""

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from gateway.mail.envelope import IpAddress, unmapped
from gateway.mail.errors import ParseError

MAX_V1_BYTES: Final = 107  # §2.1, with its CRLF
MAX_V2_BYTES: Final = 16 + 2048  # §2.2 allows 64 KB of extensions; 536 bytes is what it says must be enough
MAX_PORT: Final = 65_535

_MIN_BYTES: Final = len("PROXY UNKNOWN\r\n")
_V2_SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
_V2_HEADER_BYTES: Final = 16
_V1: Final = re.compile(
    rb"PROXY (TCP4|TCP6) ([0-9A-Fa-f:.]{2,45}) ([0-9A-Fa-f:.]{2,45}) ([0-9]{1,5}) ([0-9]{1,5})"
)
_V1_UNKNOWN: Final = re.compile(rb"PROXY UNKNOWN(?: .*)?", re.DOTALL)
_V1_START: Final = b"PROXY "
_LOCAL: Final = 0x20
_PROXY: Final = 0x21
_INET_STREAM: Final = 0x11
_INET6_STREAM: Final = 0x21
_ADDRESS_BYTES: Final = {_INET_STREAM: 4, _INET6_STREAM: 16}


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """A whole header.

    Attributes:
        client: whose connection it is; None where the balancer speaks for itself (health checks) or does not know.
        size: its length in bytes; what follows is the client's.
    """

    client: IpAddress | None
    size: int


def parse_proxy_header(data: bytes) -> ProxyHeader | None:
    """Read the header that `data` begins with; None where more is needed.

    Raises:
        ParseError: it is none, or a bad one.
    """
    if data[: len(_V2_SIGNATURE)] == _V2_SIGNATURE[: len(data)]:
        return _parse_v2(data)
    if data[: len(_V1_START)] == _V1_START[: len(data)]:
        return _parse_v1(data)
    raise ParseError(f"no PROXY header: {data[:16]!r}")


def bytes_to_read(data: bytes) -> int:
    """Bytes that are surely still the header's, where `data` is its beginning and not all of it; at least one."""
    if len(data) < _MIN_BYTES:
        return _MIN_BYTES - len(data)
    if not data.startswith(_V2_SIGNATURE):
        return 1
    if len(data) < _V2_HEADER_BYTES:
        return _V2_HEADER_BYTES - len(data)
    return max(1, _V2_HEADER_BYTES + int.from_bytes(data[14:16], "big") - len(data))


def _parse_v1(data: bytes) -> ProxyHeader | None:
    end = data.find(b"\r\n", 0, MAX_V1_BYTES)
    if end < 0:
        if len(data) >= MAX_V1_BYTES:
            raise ParseError(f"a PROXY header of more than {MAX_V1_BYTES} bytes")
        return None
    line, size = data[:end], end + 2
    match = _V1.fullmatch(line)
    if not match:
        if _V1_UNKNOWN.fullmatch(line):
            return ProxyHeader(None, size)
        raise ParseError(f"a bad PROXY header: {line!r}")
    family, source, destination, *ports = (group.decode("ascii") for group in match.groups())
    if any(int(port) > MAX_PORT or str(int(port)) != port for port in ports):
        raise ParseError(f"a bad port in a PROXY header: {line!r}")
    address_type = IPv4Address if family == "TCP4" else IPv6Address
    try:
        address_type(destination)
        return ProxyHeader(unmapped(address_type(source)), size)
    except ValueError:
        raise ParseError(f"a bad address in a PROXY header: {line!r}") from None


def _parse_v2(data: bytes) -> ProxyHeader | None:
    if len(data) < _V2_HEADER_BYTES:
        return None
    command, family = data[12], data[13]
    size = _V2_HEADER_BYTES + int.from_bytes(data[14:16], "big")
    if command not in {_LOCAL, _PROXY}:
        raise ParseError(f"an unknown PROXY version or command: {command:#x}")
    if size > MAX_V2_BYTES:
        raise ParseError(f"a PROXY header of {size} bytes")
    is_local = command == _LOCAL or family == 0  # §2.2: LOCAL and UNSPEC: use the real connection's addresses
    length = _ADDRESS_BYTES.get(family)
    if not is_local and (length is None or size < _V2_HEADER_BYTES + 2 * length + 4):
        raise ParseError(f"a PROXY header with a bad address family, {family:#x}, or without its addresses")
    if len(data) < size:
        return None
    if is_local or length is None:
        return ProxyHeader(None, size)
    source = data[_V2_HEADER_BYTES : _V2_HEADER_BYTES + length]
    return ProxyHeader(unmapped(IPv4Address(source) if length == 4 else IPv6Address(source)), size)  # noqa: PLR2004 - bytes of an IPv4 address

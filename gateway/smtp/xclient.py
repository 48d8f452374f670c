"""XCLIENT: a proxy tells a mail server who its client really is (Postfix's XCLIENT_README).

Whoever may say it may be anybody: it is taken only from configured peers, and said only where it is offered.
"""

import re
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import Final

from gateway.mail.envelope import IpAddress, Session, unmapped
from gateway.mail.errors import ParseError
from gateway.smtp.xtext import decode_xtext, encode_xtext

MAX_VALUE_CHARACTERS: Final = 255
UNAVAILABLE: Final = frozenset({"[UNAVAILABLE]", "[TEMPUNAVAIL]"})

_HOST_NAME: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,253}[A-Za-z0-9_])?")
_HELO: Final = re.compile(r"[!-~]{1,255}")
_PORT: Final = re.compile(r"[0-9]{1,5}")
_PREFIX: Final = "IPV6:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """Who the client is, as XCLIENT tells it; None where it tells nothing of this.

    Attributes:
        address: never None when read: a message from nobody knows where cannot be judged.
        name: None also for `[UNAVAILABLE]`.
    """

    address: IpAddress
    name: str | None = None
    helo: str | None = None
    esmtp: bool | None = None


def parse_xclient(argument: str) -> Client:
    """Read the attributes that follow XCLIENT.

    Raises:
        ParseError: an attribute that we do not offer, one twice, a bad value, or no address.
    """
    values: dict[str, str] = {}
    for word in argument.split():
        name, equals, value = word.partition("=")
        name = name.upper()
        if not equals or name in values or len(value) > 3 * MAX_VALUE_CHARACTERS:
            raise ParseError(f"not an XCLIENT attribute: {word[:80]!r}")
        values[name] = decode_xtext(value).decode("latin-1")
    client = Client(
        address=_read_address(values.pop("ADDR", "")),
        name=_read(values.pop("NAME", None), _HOST_NAME),
        helo=_read(values.pop("HELO", None), _HELO),
        esmtp=_read_protocol(values.pop("PROTO", None)),
    )
    _read(values.pop("PORT", None), _PORT)
    if values:
        raise ParseError("an XCLIENT attribute that is not offered")
    return client


def write_xclient(session: Session, offered: frozenset[str]) -> bytes:
    """The command that makes downstream see our client; only with attributes that it takes.

    The port is left out: it differs on every connection of the same client, and the connection downstream could then
    never be used again without a new introduction.
    """
    address = session.client_ip
    values = {
        "ADDR": f"{_PREFIX}{address}" if isinstance(address, IPv6Address) else str(address),
        "NAME": session.client_name or "[UNAVAILABLE]",
        "PROTO": "ESMTP" if session.esmtp else "SMTP",
        "HELO": session.helo or "[UNAVAILABLE]",
    }
    said = [f"{name}={encode_xtext(value.encode())}" for name, value in values.items() if name in offered]
    return f"XCLIENT {' '.join(said)}\r\n".encode("ascii")


def _read_address(value: str) -> IpAddress:
    text = value[len(_PREFIX) :] if value.upper().startswith(_PREFIX) else value
    try:
        address = ip_address(text)
    except ValueError:
        raise ParseError(f"not an address: {value[:80]!r}") from None
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        raise ParseError("an address with a scope")
    return unmapped(address)


def _read(value: str | None, form: re.Pattern[str]) -> str | None:
    if value is None or value.upper() in UNAVAILABLE:
        return None
    if not form.fullmatch(value):
        raise ParseError(f"a bad XCLIENT value: {value[:80]!r}")
    return value


def _read_protocol(value: str | None) -> bool | None:
    if value is None or value.upper() in UNAVAILABLE:
        return None
    if value.upper() not in {"SMTP", "ESMTP"}:
        raise ParseError("PROTO is SMTP or ESMTP")
    return value.upper() == "ESMTP"

"""What a server offers in its EHLO reply (RFC 5321 §4.1.1.1), and how we mirror it: promising only what can be kept."""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from gateway.mail.reply import Reply
from gateway.mail.value import Value, field

_SIZE: Final = re.compile(r"[0-9]{1,20}")


class Capabilities(Value, frozen=True, kw_only=True):
    """What a mail server offers, of that which concerns us.

    Attributes:
        takes_size: it takes the SIZE parameter (RFC 1870).
        max_bytes: its limit; None where it has none or tells none.
        eight_bit: 8BITMIME (RFC 6152).
        smtputf8: SMTPUTF8 (RFC 6531).
        dsn: DSN (RFC 3461).
        pipelining: PIPELINING (RFC 2920).
        chunking: CHUNKING (RFC 3030); ours does not depend on it.
        starttls: STARTTLS (RFC 3207); ours is our own, and never mirrored.
        requiretls: REQUIRETLS (RFC 8689).
        xclient: the XCLIENT attributes that it takes, in upper case.
        auth: the SASL mechanisms that it takes, in upper case (RFC 4954 §3).
    """

    takes_size: bool = False
    max_bytes: int | None = None
    eight_bit: bool = False
    smtputf8: bool = False
    dsn: bool = False
    pipelining: bool = False
    chunking: bool = False
    starttls: bool = False
    requiretls: bool = False
    xclient: frozenset[str] = field(default_factory=frozenset)
    auth: tuple[str, ...] = ()


def parse_capabilities(reply: Reply) -> Capabilities:
    """Read the reply to EHLO. Keywords that are not known are not mirrored, so they are not kept."""
    offered: dict[str, str] = {}
    for line in reply.lines[1:]:
        keyword, _, arguments = line.strip().partition(" ")
        offered.setdefault(keyword.upper(), arguments.strip())
    size = offered.get("SIZE", "")
    return Capabilities(
        takes_size="SIZE" in offered,
        max_bytes=(int(size) or None) if _SIZE.fullmatch(size) else None,  # RFC 1870 §4: 0 is no limit
        eight_bit="8BITMIME" in offered,
        smtputf8="SMTPUTF8" in offered,
        dsn="DSN" in offered,
        pipelining="PIPELINING" in offered,
        chunking="CHUNKING" in offered,
        starttls="STARTTLS" in offered,
        requiretls="REQUIRETLS" in offered,
        xclient=frozenset(offered.get("XCLIENT", "").upper().split()),
        auth=tuple(offered.get("AUTH", "").upper().split()),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What we offer one client."""

    capabilities: Capabilities
    max_bytes: int
    starttls: bool
    xclient: bool


@lru_cache(maxsize=64)  # few differ, and every session wants one
def write_ehlo_reply(hostname: str, offer: Offer) -> Reply:
    """The EHLO reply: our own keywords, and of downstream's those that it keeps."""
    downstream = offer.capabilities
    keywords = [
        (True, "PIPELINING"),
        (True, f"SIZE {offer.max_bytes}"),
        (offer.starttls, "STARTTLS"),
        (True, "ENHANCEDSTATUSCODES"),
        (downstream.eight_bit, "8BITMIME"),
        (downstream.dsn, "DSN"),
        (downstream.smtputf8, "SMTPUTF8"),
        (True, "CHUNKING"),
        (bool(downstream.auth), f"AUTH {' '.join(downstream.auth)}"),
        (downstream.requiretls, "REQUIRETLS"),
        (offer.xclient, "XCLIENT NAME ADDR PORT PROTO HELO"),
    ]
    return Reply(250, None, (hostname, *(keyword for offered, keyword in keywords if offered)))

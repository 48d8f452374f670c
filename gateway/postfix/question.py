"""What Postfix asks of smtp_tls_policy_maps: a map name and a next hop (socketmap_table(5), postconf(5)).

The next hop is the recipient's domain, or what the operator wrote into a transport table: `example.com:587`,
`[mail.example.com]:587`, `[192.0.2.1]`. Where a domain is not found, Postfix asks for `.example.com` and `.com` as well.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import idna

from gateway.mail.address import parse_domain, parse_domain_or_literal
from gateway.mail.errors import ParseError

MAX_QUESTION_BYTES: Final = (
    1_024  # Postfix itself reads replies of up to 100,000 bytes; a next hop has 255 or less
)
WITH_TLSRPT: Final = "querywithtlsrpt"
"""A map of this name is answered with TLSRPT attributes, whatever the config says: several Postfixes may share a gateway."""

_NEXT_HOP: Final = re.compile(
    r"(?P<host>\[[^\[\]]*\]|[^\[\]:]+)(?::(?P<port>[A-Za-z0-9-]{1,32}))?", re.DOTALL
)
_SMTP_PORTS: Final = frozenset({None, "25", "smtp"})


class QuestionError(ParseError):
    """It is no request of socketmap_table(5)."""


class Kind(StrEnum):
    """What a next hop is, which says where a policy for it can come from."""

    DOMAIN = "domain"  # its MX hosts are looked up; it is the policy domain (RFC 8461 §3.4)
    HOST = "host"  # in brackets: this very host, no MX; no standard says anything of it
    PARENT = "parent"  # `.example.com`: Postfix goes up the tree; policies are not inherited (RFC 8461 §3.4)
    OTHER = "other"  # nothing that is in the DNS: a socket's path, or no valid name


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question.

    Attributes:
        name: the domain or host in A-labels and lower case, or an address literal with its brackets; as it came for
            PARENT and OTHER.
        smtp_port: whether the hosts are to be reached at port 25, for which TLSA records were looked up.
        with_tlsrpt: asked for by the map's name.
    """

    kind: Kind
    name: str
    smtp_port: bool = True
    with_tlsrpt: bool = False


def parse_question(request: bytes) -> Question:
    """Read `NAME KEY`.

    Raises:
        QuestionError: there is no name, or no key; a key that is no next hop is a question of kind OTHER.
    """
    if len(request) > MAX_QUESTION_BYTES:
        raise QuestionError(f"{len(request)} bytes")
    name, blank, key = request.partition(b" ")
    if not name or not blank or not key:
        raise QuestionError(f"not `name key`: {request[:60]!r}")
    with_tlsrpt = name.decode("utf-8", "replace").lower() == WITH_TLSRPT
    text = key.decode("utf-8", "replace")
    if text.startswith("."):
        return Question(kind=Kind.PARENT, name=text, with_tlsrpt=with_tlsrpt)
    try:
        kind, host, port = _parse_next_hop(text)
    except ParseError:
        return Question(kind=Kind.OTHER, name=text, with_tlsrpt=with_tlsrpt)
    smtp_port = (port and port.lower()) in _SMTP_PORTS
    return Question(kind=kind, name=host, smtp_port=smtp_port, with_tlsrpt=with_tlsrpt)


def _parse_next_hop(text: str) -> tuple[Kind, str, str | None]:
    next_hop = _NEXT_HOP.fullmatch(text)
    if next_hop is None:
        raise ParseError(f"not a next hop: {text[:80]!r}")
    return *_parse_host(next_hop["host"]), next_hop["port"]


def _parse_host(text: str) -> tuple[Kind, str]:
    if not text.startswith("["):
        return Kind.DOMAIN, _parse_name(text)
    inner = text[1:-1]
    try:
        return Kind.HOST, parse_domain_or_literal(text)
    except ParseError:
        # Postfix writes IPv6 with and without the tag, and names in brackets, too.
        return Kind.HOST, parse_domain_or_literal(f"[IPv6:{inner}]") if ":" in inner else _parse_name(inner)


def _parse_name(text: str) -> str:
    try:
        return parse_domain(text)
    except ParseError:
        if text.isascii():
            raise
    # Postfix maps by UTS #46 alone, so it delivers to names that IDNA 2008 forbids: to those, too, a policy may apply.
    try:
        labels = idna.uts46_remap(text, std3_rules=False).split(".")
    except ValueError as error:
        raise ParseError(f"not a domain name: {text[:80]!r}") from error
    return parse_domain(".".join(map(_a_label, labels)))


def _a_label(label: str) -> str:
    return label if label.isascii() else f"xn--{label.encode('punycode').decode('ascii')}"

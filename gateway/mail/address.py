"""Addresses and domain names as SMTP and header fields write them (RFC 5321 §4.1.2, RFC 5322 §3.4, RFC 6531, RFC 5890).

One reading for every check: the last `@` outside quotes parts the local part from the domain, and a domain is always
compared in its A-label form. What two servers could read in two ways is refused.
"""

import re
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import Final

import idna

from gateway.mail.errors import ParseError

MAX_DOMAIN_BYTES: Final = 253  # RFC 1035 §2.3.4: 255 on the wire, less the length bytes at both ends
MAX_LABEL_BYTES: Final = 63
MAX_MAILBOX_BYTES: Final = 254  # RFC 5321 §4.5.3.1.3: 256 for a path, less its brackets
"""Deviation: §4.5.3.1.1's 64 for the local part alone is what a server must at least take, and it asks for no limit;
SRS and VERP reverse paths of large senders are longer, and every mail server takes them."""

# A-labels, LDH labels and the underscore labels of service names; at most one final dot.
_LDH_DOMAIN: Final = re.compile(
    r"(?:[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.)*[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.?",
)

# Never in an address: controls, blanks and line separators of any script, direction marks, lone surrogates.
_FORBIDDEN: Final = re.compile(
    r"[\x00-\x1f\x7f-\xa0\u1680\u2000-\u200b\u200e\u200f\u2028-\u202f\u205f-\u206f\u3000\ud800-\udfff\ufeff]",
)

# Deviation: dots may stand anywhere in an unquoted local part; `a..b@` and `a.@` exist at large providers.
_DOT_STRING: Final = re.compile(r"[^\x00-\x20\x7f\"(),:;<>@\[\\\]]+")
_QUOTED_STRING: Final = re.compile(r'"([^"\\]*+(?:\\[\x20-\x7e][^"\\]*+)*)"')  # RFC 5321 §4.1.2 Quoted-string
_ATOM: Final = r"[^\x00-\x20\x7f\"(),:;<>@\[\\\].]+"
_PLAIN_LOCAL: Final = re.compile(rf"{_ATOM}(?:\.{_ATOM})*")
_QUOTED_PAIR: Final = re.compile(r"\\(.)")
_NEEDS_ESCAPE: Final = re.compile(r'(["\\])')
_SOURCE_ROUTE: Final = re.compile(r"(?:,?@[^@,:<>\"\s]{1,255}+)+:")  # RFC 5321 §4.1.2 A-d-l
_PATH: Final = re.compile(r'<[^"<>]*+(?:"[^"\\]*+(?:\\.[^"\\]*+)*"[^"<>]*+)*>|[^ <>"]++')
_LITERAL_TAG: Final = "ipv6:"


@dataclass(frozen=True, slots=True)
class Mailbox:
    """One address.

    Attributes:
        local_part: its meaning: quotes and backslashes undone, case kept.
        domain: A-labels in lower case without a final dot, or an address literal with its brackets.
        text: as the peer wrote it, without angle brackets and source route; safe to put into an SMTP command again.
    """

    local_part: str
    domain: str
    text: str = field(compare=False)

    def __str__(self) -> str:
        """`local-part@domain`, the local part quoted where it must be; `parse_mailbox` reads it back."""
        return f"{quote_local_part(self.local_part)}@{self.domain}"


def quote_local_part(local_part: str) -> str:
    """A local part's meaning as it is written (RFC 5321 §4.1.2), quoted only where it must be."""
    if _PLAIN_LOCAL.fullmatch(local_part):
        return local_part
    return '"' + _NEEDS_ESCAPE.sub(r"\\\1", local_part) + '"'


@lru_cache(maxsize=4096)
def parse_domain(text: str) -> str:
    """Read a DNS name as written by a peer, with A-labels or U-labels; give A-labels in lower case, no final dot.

    U-labels are mapped by UTS #46 and checked by IDNA 2008. A-labels are taken as they are: a name that decodes to
    nonsense can still exist in the DNS, and only that form is ever looked up or compared.

    Raises:
        ParseError: not a name that could be looked up.
    """
    # In characters: no A-label is shorter than its U-label but for mapped-away characters; idna never sees more.
    if not 0 < len(text) <= MAX_DOMAIN_BYTES + 1:
        raise ParseError("a domain has 1 to 253 characters")
    name = text if text.isascii() else _to_a_labels(text)
    if not _LDH_DOMAIN.fullmatch(name):
        raise ParseError(f"not a domain name: {text!r}")
    name = name.removesuffix(".")
    if len(name) > MAX_DOMAIN_BYTES:
        raise ParseError(f"a domain has at most {MAX_DOMAIN_BYTES} characters: {name[:40]!r}…")
    return name.lower()


def _to_a_labels(text: str) -> str:
    """Label by label, because idna as a whole refuses the underscore labels that DKIM and DMARC use."""
    try:
        mapped = idna.uts46_remap(text, std3_rules=False)
        labels = mapped.split(".")
        return ".".join(label if label.isascii() else idna.alabel(label).decode() for label in labels)
    except ValueError as error:  # IDNAError and UnicodeError are ValueErrors
        raise ParseError(f"not an internationalised domain name: {text!r}") from error


def parse_domain_or_literal(text: str) -> str:
    """Read a domain as `parse_domain` does, or an address literal: `[192.0.2.1]`, `[IPv6:2001:db8::1]`.

    Raises:
        ParseError: neither.
    """
    if not text.startswith("["):
        return parse_domain(text)
    content = text[1:-1]
    if not text.endswith("]") or len(content) > MAX_DOMAIN_BYTES or not content.isascii():
        raise ParseError(f"not an address literal: {text[:80]!r}")
    try:
        if content.lower().startswith(_LITERAL_TAG):
            address = IPv6Address(content[len(_LITERAL_TAG) :])
            if address.scope_id is None:
                return f"[IPv6:{address}]"
        else:
            return f"[{IPv4Address(content)}]"
    except ValueError:
        pass
    raise ParseError(f"not an address literal: {text[:80]!r}")


def parse_mailbox(text: str) -> Mailbox:
    """Read `local-part@domain` alone (RFC 5321 §4.1.2 Mailbox, RFC 6531 §3.3): no brackets, no route, no blank around it.

    Raises:
        ParseError: anything else.
    """
    # In characters first: the rest is not free on a hostile megabyte.
    if len(text) > MAX_MAILBOX_BYTES:
        raise ParseError(f"over {MAX_MAILBOX_BYTES} bytes: {text[:80]!r}")
    return _read_mailbox(text)


@lru_cache(maxsize=8192)  # the same people write, and are written to, again and again
def _read_mailbox(text: str) -> Mailbox:
    if _FORBIDDEN.search(text) or (not text.isascii() and len(text.encode()) > MAX_MAILBOX_BYTES):
        raise ParseError(f"over {MAX_MAILBOX_BYTES} bytes, or not printable: {text[:80]!r}")
    if text.startswith('"'):
        quoted = _QUOTED_STRING.match(text)
        if not quoted:
            raise ParseError(f"a quoted local part without its end: {text[:80]!r}")
        local_part, at = _QUOTED_PAIR.sub(r"\1", quoted[1]), quoted.end()
    else:
        unquoted = _DOT_STRING.match(text)
        if not unquoted:
            raise ParseError(f"not an address: {text[:80]!r}", offset=0)
        local_part, at = unquoted[0], unquoted.end()
    if text[at : at + 1] != "@":
        raise ParseError(f"expected @ after the local part: {text[:80]!r}", offset=at)
    return Mailbox(local_part, parse_domain_or_literal(text[at + 1 :]), text)


def parse_path(text: str | bytes, *, smtputf8: bool) -> Mailbox | None:
    """Read what stands after `MAIL FROM:` (RFC 5321 §4.1.1.2); None for the null path `<>`.

    A source route is read and dropped (RFC 5321 §4.1.1.3, App. C). Deviation: an address without brackets is taken,
    because devices leave them out and there is only one way to read it; a quoted local part must have them.

    Args:
        text: the path alone, no blank around it; see `split_path`.
        smtputf8: whether the client asked for RFC 6531; without that, only ASCII is taken.

    Raises:
        ParseError: anything else.
    """
    inner = _inside_brackets(_decode(text, smtputf8=smtputf8))
    return parse_mailbox(inner) if inner else None


def parse_forward_path(text: str | bytes, *, smtputf8: bool) -> Mailbox | None:
    """Read what stands after `RCPT TO:` as `parse_path` does; None for `<Postmaster>` (RFC 5321 §4.1.1.3), any case.

    Raises:
        ParseError: anything else, the null path included.
    """
    inner = _inside_brackets(_decode(text, smtputf8=smtputf8))
    if inner.lower() == "postmaster":
        return None
    return parse_mailbox(inner)


def split_path(text: str) -> tuple[str, str]:
    r"""Part a path from the ESMTP parameters behind it: `<"a> b"@x.example> SIZE=1` at the blank before `SIZE`.

    Raises:
        ParseError: no path there, or no blank behind it.
    """
    path = _PATH.match(text)
    if not path:
        raise ParseError("expected an address in angle brackets")
    rest = text[path.end() :]
    if rest and not rest.startswith(" "):
        raise ParseError("expected a blank after the address", offset=path.end())
    return path[0], rest.strip(" ")


def _decode(text: str | bytes, *, smtputf8: bool) -> str:
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ParseError("an address that is not UTF-8", offset=error.start) from error
    if not smtputf8 and not text.isascii():
        raise ParseError("an address with non-ASCII characters needs SMTPUTF8 (RFC 6531 §3.4)")
    return text


def _inside_brackets(path: str) -> str:
    """The mailbox within a path, without brackets and source route; "" for the null path."""
    if not path.startswith("<"):
        if not path or path.startswith(('"', "@")):
            raise ParseError("expected an address in angle brackets")
        return path
    if not path.endswith(">"):
        raise ParseError("an angle bracket without its partner")
    inner = path[1:-1]
    if inner.startswith("@"):
        route = _SOURCE_ROUTE.match(inner)
        if not route or route.end() == len(inner):
            raise ParseError("a source route without an address")
        return inner[route.end() :]
    return inner

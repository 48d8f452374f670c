"""Who a message says it is from (RFC 5322 §3.6.2): the one address that its reader will see and DMARC must vouch for.

An attacker wants the gateway to find one author and the reader's program another. So this reader takes what the
standard allows and every mail program reads alike, and calls all else unclear; an unclear author never passes.
Sender and Resent-From are ignored: a reader is shown From.
"""

import re
import unicodedata
from enum import StrEnum
from functools import lru_cache
from typing import Final

from gateway.mail.address import Mailbox, parse_domain, parse_mailbox
from gateway.mail.author_domains import MAX_VALUE_BYTES, domains_named
from gateway.mail.comments import end_of_comment
from gateway.mail.encoded_words import decode_words
from gateway.mail.errors import ParseError
from gateway.mail.message import AMBIGUOUS, Defect, Message, has_bare_line_end
from gateway.mail.value import Value


class AuthorFault(StrEnum):
    """Why a message has no author that can be relied on."""

    NO_FROM = "no-from"  # no From field at all
    SEVERAL_FROM = "several-from"  # readers differ in which one they show
    NO_AUTHOR = "no-author"  # an empty field, an empty group, or `<>`
    SEVERAL_AUTHORS = "several-authors"  # allowed by RFC 5322, but nobody can vouch for all of them
    UNCLEAR = "unclear"  # it cannot be read in exactly one way
    DOMAIN_INVALID = "domain-invalid"  # an address, but not at a name that the DNS could know
    AMBIGUOUS_MESSAGE = "ambiguous-message"  # readers may differ in what the header section is


class Author(Value, frozen=True):
    """The one author.

    Attributes:
        mailbox: its address; the domain is a DNS name, never an address literal.
        display_name: the name before it, encoded-words decoded (RFC 2047); None where there is none. Only for show.
        position: the place of the From field in `Message.fields`.
    """

    mailbox: Mailbox
    display_name: str | None
    position: int


class NoAuthor(Value, frozen=True):
    """Why there is none.

    Attributes:
        domains: those that the From fields may seem to name to some reader, a few at most.
        unread: there may be more of them: From is longer, or names more, than is read.
    """

    fault: AuthorFault
    domains: tuple[str, ...]
    unread: bool = False


def find_author(message: Message) -> Author | NoAuthor:
    """Find the one author of a message, or say why it has none. Reads the whole message once, for its defects."""
    if _is_ambiguous(message):
        return NoAuthor(AuthorFault.AMBIGUOUS_MESSAGE, *domains_named(message, ambiguous=True))
    positions = message.positions(b"from")
    if len(positions) != 1:
        fault = AuthorFault.SEVERAL_FROM if positions else AuthorFault.NO_FROM
        return NoAuthor(fault, *domains_named(message, ambiguous=False))
    try:
        mailbox, display_name = _parse_from(message.values[positions[0]])
    except _FaultyFromError as error:
        return NoAuthor(error.fault, *domains_named(message, ambiguous=False))
    return Author(mailbox, display_name, positions[0])


def find_mailboxes(message: Message, key: bytes) -> tuple[Mailbox, ...] | AuthorFault:
    """Every address of the one field of this name (`from`, `sender`), or why they are not beyond doubt."""
    if _is_ambiguous(message):
        return AuthorFault.AMBIGUOUS_MESSAGE
    positions = message.positions(key)
    if len(positions) != 1:
        return AuthorFault.SEVERAL_FROM if positions else AuthorFault.NO_FROM
    try:
        return tuple(mailbox for mailbox, _ in _parse_mailboxes(message.values[positions[0]]))
    except _FaultyFromError as error:
        return error.fault


def _is_ambiguous(message: Message) -> bool:
    """Whether readers may differ in the header section; a bare line end in the body alone cannot move From."""
    if message.defects.isdisjoint(AMBIGUOUS):
        return False
    in_body_at_most = message.defects & AMBIGUOUS == {Defect.BARE_LINE_END}
    return not in_body_at_most or has_bare_line_end(message.raw[: message.body_start])


class _FaultyFromError(ParseError):
    def __init__(self, fault: AuthorFault, message: str) -> None:
        super().__init__(message)
        self.fault = fault


class _UnclearError(_FaultyFromError):
    def __init__(self, message: str) -> None:
        super().__init__(AuthorFault.UNCLEAR, message)


_Token = tuple[str, str]  # its kind, which is the name of a group of _TOKEN or "comment", and its text

_TOKEN: Final = re.compile(
    r"(?P<blank>[ \t]+)"
    r"|(?P<word>[^\x00-\x20\x7f-\x9f\"(),:;<>@\[\\\]\u2028\u2029]+)"  # atoms, their dots, and non-ASCII (RFC 6532)
    r'|(?P<quoted>"[^"\\\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]*+(?:\\[\t\x20-\x7e][^"\\\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]*+)*")'
    r"|(?P<literal>\[[^\[\]\\\x00-\x20\x7f]*+\])"
    r"|(?P<bracket>[\[\]])"
    r"|(?P<mark>[<>@,:;])",
)
_REMEMBERED_BYTES: Final = 256
_COMMA: Final = ("mark", ",")
_COLON: Final = ("mark", ":")
_SEMICOLON: Final = ("mark", ";")
_OPENING: Final = ("mark", "<")
_CLOSING: Final = ("mark", ">")
_UNPRINTABLE: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")
_BLANK_LINE: Final = re.compile(rb"\r\n[ \t]*(?:\r\n|\Z)")
_QUOTED_PAIR: Final = re.compile(r"\\(.)")
_BLANKS: Final = re.compile(r"[ \t]+")
_ADDRESS_TRAP: Final = re.compile(r"[@<>]")
_ANGLED: Final = re.compile(r"<[^<>@]*+@([^<>@]*+)")
_LOCAL_TRAP: Final = re.compile(r"[@<>,;:()\[\]\"\\\s]|=\?")


def _parse_from(value: bytes) -> tuple[Mailbox, str | None]:
    """The one mailbox of a From field's value, folding and all, and its display name."""
    return _parse_short_from(value) if len(value) <= _REMEMBERED_BYTES else _read_from(value)


def _read_from(value: bytes) -> tuple[Mailbox, str | None]:
    mailboxes = _parse_mailboxes(value)
    if len(mailboxes) > 1:
        raise _FaultyFromError(AuthorFault.SEVERAL_AUTHORS, "several addresses")
    return mailboxes[0]


_parse_short_from = lru_cache(maxsize=4096)(_read_from)
"""Who writes once writes again."""


def _parse_mailboxes(value: bytes) -> list[tuple[Mailbox, str | None]]:
    """Every mailbox, at least one."""
    members = _split_members(_tokenize(_to_text(value)))
    mailboxes = [_read_member(member) for member in members]
    if not mailboxes:
        raise _FaultyFromError(AuthorFault.NO_AUTHOR, "no address")
    return mailboxes


def _to_text(value: bytes) -> str:
    if len(value) > MAX_VALUE_BYTES:
        raise _UnclearError("longer than any author")
    if b"\r\n" in value:
        # The first line may hold the name alone; a later line of blanks ends the header section for some readers.
        if _BLANK_LINE.search(value):
            raise _UnclearError("a line of blanks")
        value = value.replace(b"\r\n", b"")
    # Old programs write names in charsets that they do not name. Such bytes may stand in a name, never in an address:
    # there the lone surrogates that they become are refused.
    return value.decode("utf-8", "surrogateescape")


def _tokenize(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    at, size = 0, len(text)
    match_token = _TOKEN.match
    while at < size:
        token = match_token(text, at)
        if token:
            tokens.append((token.lastgroup or "", token[0]))
            at = token.end()
            continue
        if text[at] != "(":
            raise _UnclearError("a character that cannot stand there")
        try:
            end = end_of_comment(text, at)
        except ParseError:
            raise _UnclearError("a comment that is never closed") from None
        comment = text[at:end]
        if _ADDRESS_TRAP.search(comment) or _UNPRINTABLE.search(decode_words(comment)):
            raise _UnclearError("a comment that a simpler reader may take for an address")
        tokens.append(("comment", comment))
        at = end
    return tokens


def _split_members(tokens: list[_Token]) -> list[list[_Token]]:
    """The tokens of each address in the list, or in the one group that the list may be (RFC 5322 §3.4, RFC 6854)."""
    tokens = _strip(tokens)
    if _COLON in tokens or _SEMICOLON in tokens:
        tokens = _open_group(tokens)
    if _COMMA not in tokens:
        return [tokens] if tokens else []
    members: list[list[_Token]] = []
    current: list[_Token] = []
    for token in tokens:
        if token == _COMMA:
            members.append(_strip(current))
            current = []
        else:
            current.append(token)
    members.append(_strip(current))
    # Deviation: the empty members that RFC 5322 §4.4 asks to accept are refused: readers take different ones.
    if not all(members):
        raise _UnclearError("a comma without an address")
    return members


def _open_group(tokens: list[_Token]) -> list[_Token]:
    """The tokens of the group's list; a group beside anything else is unclear."""
    if _COLON not in tokens or tokens[-1] != _SEMICOLON:
        raise _UnclearError("half a group")
    at = tokens.index(_COLON)
    inside = _strip(tokens[at + 1 : -1])
    if not _is_phrase(_strip(tokens[:at])) or _COLON in inside or _SEMICOLON in inside:
        raise _UnclearError("a group without a name, a source route, or several groups")
    return inside


def _strip(tokens: list[_Token]) -> list[_Token]:
    """Without the blanks and comments at both ends."""
    first, end = 0, len(tokens)
    while first < end and tokens[first][0] in {"blank", "comment"}:
        first += 1
    while end > first and tokens[end - 1][0] in {"blank", "comment"}:
        end -= 1
    return tokens[first:end]


def _is_phrase(tokens: list[_Token]) -> bool:
    """Whether this is a name. Deviation: `[Tracker] Ann` is taken, which old programs write and all readers read alike."""
    return bool(tokens) and all(
        kind != "mark" and not (kind == "literal" and _ADDRESS_TRAP.search(text)) for kind, text in tokens
    )


def _read_member(tokens: list[_Token]) -> tuple[Mailbox, str | None]:
    """One mailbox: `a@x.example`, or `<a@x.example>` with or without a phrase before it."""
    if _OPENING not in tokens:
        return _read_address(tokens), None
    at = tokens.index(_OPENING)
    phrase = _strip(tokens[:at])
    if tokens[-1] != _CLOSING:
        raise _UnclearError("angle brackets that are not closed, or words after them")
    inside = tokens[at + 1 : -1]
    if not inside:
        raise _FaultyFromError(AuthorFault.NO_AUTHOR, "empty angle brackets")
    if inside[0][0] == "blank":
        inside = inside[1:]
    if inside and inside[-1][0] == "blank":
        inside = inside[:-1]
    mailbox = _read_address(inside)
    if phrase and not _is_phrase(phrase):
        # Deviation: `a@x.example <a@x.example>`, without the quotes, is common in honest mail, and there is one address.
        if phrase == inside:
            return mailbox, mailbox.text
        raise _UnclearError("a second address, or half of one, before the angle brackets")
    name = _read_phrase(phrase)
    if name and any(kind in {"word", "quoted"} and "=?" in text for kind, text in phrase):
        _check_decoded_name(name, mailbox)
    return mailbox, name


def _check_decoded_name(name: str, mailbox: Mailbox) -> None:
    """Some readers decode the whole field before they look for the angle brackets, and find those of an encoded name."""
    for shown in _ANGLED.finditer(name):
        try:
            domain = parse_domain(shown[1])
        except ParseError:
            domain = ""
        if domain != mailbox.domain:
            raise _UnclearError("an encoded name with another address in angle brackets")


def _read_address(tokens: list[_Token]) -> Mailbox:
    """Exactly local part, `@`, domain: blanks and comments within (RFC 5322 §4.4) and source routes mislead readers."""
    match tokens:
        case [("word" | "quoted", local), ("mark", "@"), ("word" | "literal", domain)]:
            pass
        case _:
            raise _UnclearError("not one address")
    bare = _QUOTED_PAIR.sub(r"\1", local[1:-1]) if local.startswith('"') else local
    # What a reader makes of it that splits at the first @, undoes compatibility forms, or decodes encoded-words in it.
    if not bare or _LOCAL_TRAP.search(bare if bare.isascii() else unicodedata.normalize("NFKC", bare)):
        raise _UnclearError("a local part that another reader may take apart")
    text = f"{local}@{domain}"
    try:
        parse_domain(domain)
    except ParseError:
        raise _FaultyFromError(AuthorFault.DOMAIN_INVALID, "not a DNS name") from None
    try:
        return parse_mailbox(text)
    except ParseError:
        raise _UnclearError("an address that SMTP could not carry") from None


def _read_phrase(tokens: list[_Token]) -> str | None:
    """The display name (RFC 5322 §3.4), decoded."""
    if not tokens:
        return None
    words: list[str] = []
    for kind, text in tokens:
        match kind:
            case "quoted":
                if "\\" in text and _ADDRESS_TRAP.search(text):
                    raise _UnclearError("a quoted name that ends early for readers without escapes")
                words.append(_QUOTED_PAIR.sub(r"\1", text[1:-1]))
            case "word" | "literal" | "bracket":
                words.append(text)
            case _:
                words.append(" ")
    raw = "".join(words)
    if not raw.isascii():
        raw = raw.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    name = decode_words(raw)
    if _UNPRINTABLE.search(name):
        raise _UnclearError("a name that hides control characters")
    return _BLANKS.sub(" ", name).strip() or None

"""Authentication-Results (RFC 8601): how the gateway tells those behind it what it found out, and how nobody else may.

The reader inside trusts a field by its authserv-id alone (RFC 8601 §5). So the gateway writes one field under its own
name, and first takes out every field that came in under that name, in whatever disguise.
"""

import re
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Final

from gateway.mail.address import parse_domain
from gateway.mail.comments import skip_comments
from gateway.mail.edits import NewField
from gateway.mail.errors import ParseError
from gateway.mail.headers import comment, fold_line, join_lines, quote_pvalue, quote_value
from gateway.mail.message import AMBIGUOUS, UNREAD, Message
from gateway.mail.value import Value

FIELD_NAME: Final = "Authentication-Results"

MAX_READ_CHARACTERS: Final = 16 * 1024
"""Results longer than this are not read: an honest field is a few hundred."""

MAX_READ_RESULTS: Final = 200
"""Nor are more results and properties, each of which has its `=`: an honest field has some twenty, and each takes memory."""

_KEYWORD: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]*[A-Za-z0-9])?")
_AUTHSERV_ID: Final = re.compile(
    r'"([^"\\]*+(?:\\.[^"\\]*+)*)"|([^\x00-\x20\x7f()<>@,;:\\"/\[\]?=]++)'
)  # RFC 2045 §5.1 value
_VERSION: Final = re.compile(r"[0-9]++")
_NAME: Final = re.compile(r"[A-Za-z0-9_-]++")
# Wider than RFC 8601 §2.2 has it: honest writers leave `/` and `=` unquoted.
_VALUE: Final = re.compile(r'"([^"\\]*+(?:\\.[^"\\]*+)*)"|([^\s;()"]++)')
# Where readers differ in what a line is, and in what may stand before and behind a name.
_ANYWHERE: Final = re.compile(
    rb"(?:\A|[\r\n\0])[^!-~]{0,8}(authentication-results)[^!-~]{0,8}:", re.IGNORECASE
)
_VALUE_ENDS: Final = frozenset({"", " ", "\t", ";", "("})
_NONE: Final[frozenset[int]] = frozenset()
_QUOTED_PAIR: Final = re.compile(r"\\(.)")


class Property(Value, frozen=True):
    """What a result speaks of (RFC 8601 §2.3): `smtp.mailfrom=a@example.net`; the value may be any text of a peer's."""

    ptype: str
    name: str
    value: str


class MethodResult(Value, frozen=True):
    """One result (RFC 8601 §2.2 resinfo).

    Attributes:
        method: its IANA keyword: `spf`, `dkim`, `dmarc`, `iprev`.
        result: its result word.
        reason: why, in one token or a few words.
        properties: in the order in which they are to stand.
        comment: for human readers only.
    """

    method: str
    result: str
    reason: str | None
    properties: tuple[Property, ...]
    comment: str | None = None


def write_authentication_results(authserv_id: str, results: Sequence[MethodResult]) -> NewField:
    """The field that says these results, one on a line; `none` where there are none (RFC 8601 §2.2).

    Raises:
        ValueError: a method, result or property name that is no keyword: a mistake of ours, never of a peer's.
    """
    last = len(results) - 1
    lines = [result_line(result, end="" if at == last else ";")[0] for at, result in enumerate(results)]
    return join_results(authserv_id, lines)


def join_results(authserv_id: str, lines: Iterable[str]) -> NewField:
    """The field of results that `result_line` wrote; all but the last end with a semicolon."""
    first, none = _first_line(authserv_id)
    lines = tuple(lines)
    return join_lines(FIELD_NAME, (first, *lines)) if lines else join_lines(FIELD_NAME, (none,))


def result_line(result: MethodResult, *, end: str) -> tuple[str, int]:
    """One result as it stands on lines of its own, and the column at which the last of them ends.

    Args:
        result: what it says.
        end: `;` where another result follows.

    Raises:
        ValueError: see `write_authentication_results`.
    """
    return fold_line(_result_pieces(result, end=end))


def property_piece(ptype: str, name: str, value: str) -> str:
    """A property as it stands in a line."""
    return f"{_keyword(ptype)}.{_keyword(name)}={quote_pvalue(value)}"


@lru_cache(maxsize=16)
def _first_line(authserv_id: str) -> tuple[str, str]:
    """What stands before the results, and the whole value where there are none."""
    name = quote_value(authserv_id) + ";"
    column = len(FIELD_NAME) + len(": ")
    return fold_line((name,), column=column)[0], fold_line((name, "none"), column=column)[0]


def as_arc_results(results: NewField, instance: int) -> NewField:
    """What `write_authentication_results` wrote, as part of an ARC Set (RFC 8617 §4.1.1)."""
    return NewField(f"ARC-{FIELD_NAME}", f"i={instance}; {results.value}")


def parse_results(text: str, start: int = 0) -> tuple[MethodResult, ...]:
    """Read what another host found out: authserv-id and results (RFC 8601 §2.2), comments left out.

    Words that are no result's property, as some hosts write between them (`action=none`), are passed over. Method, result
    and property names come in lower case; a value may hold anything.

    Args:
        text: unfolded.
        start: where the authserv-id stands.

    Raises:
        ParseError: it cannot be read in exactly one way, or is too long to be honest.
    """
    if len(text) - start > MAX_READ_CHARACTERS:
        raise ParseError("results that are too long")
    if text.count("=", start) > MAX_READ_RESULTS:
        raise ParseError("too many results")
    named = _AUTHSERV_ID.match(text, skip_comments(text, start))
    if not named:
        raise ParseError("no authserv-id", offset=start)
    at = skip_comments(text, named.end())
    if version := _VERSION.match(text, at):
        at = skip_comments(text, version.end())
    results: list[MethodResult] = []
    while at < len(text):
        at = _after(text, at, ";")
        if at == len(text):
            break  # the list may end with a semicolon
        method, at = _name(text, at)
        if method == "none" and text[at : at + 1] in {"", ";"}:
            continue
        if text.startswith("/", at):
            _, at = _name(text, _after(text, at, "/"))  # the method's version
        word, at = _name(text, _after(text, at, "="))
        reason, properties, at = _parse_properties(text, at)
        results.append(MethodResult(method, word, reason, properties))
    return tuple(results)


def _parse_properties(text: str, at: int) -> tuple[str | None, tuple[Property, ...], int]:
    """The reason and the properties of one result, and the place of the semicolon or the end behind them."""
    reason: str | None = None
    properties: list[Property] = []
    while at < len(text) and text[at] != ";":
        ptype, at = _name(text, at)
        name = ""
        if text.startswith(".", at):
            name, at = _name(text, _after(text, at, "."))
        found = _VALUE.match(text, _after(text, at, "="))
        if not found:
            raise ParseError("a property without a value", offset=at)
        value = found[2] if found[1] is None else _QUOTED_PAIR.sub(r"\1", found[1])
        if text[found.end() : found.end() + 1] not in _VALUE_ENDS:
            raise ParseError("a value that goes on behind its quotation mark", offset=found.end())
        at = skip_comments(text, found.end())
        if name:
            properties.append(Property(ptype, name, value))
        elif ptype == "reason" and reason is None:
            reason = value
    return reason, tuple(properties), at


def _name(text: str, at: int) -> tuple[str, int]:
    """A keyword in lower case, and the place of the next word."""
    found = _NAME.match(text, at)
    if not found:
        raise ParseError("a keyword is missing", offset=at)
    return found[0].lower(), skip_comments(text, found.end())


def _after(text: str, at: int, delimiter: str) -> int:
    if not text.startswith(delimiter, at):
        raise ParseError(f"{delimiter!r} is missing", offset=at)
    return skip_comments(text, at + 1)


def forged_positions(message: Message, authserv_ids: Collection[str]) -> frozenset[int]:
    """Where in `message.fields` an Authentication-Results field claims to be ours (RFC 8601 §5), or may to some reader.

    A field whose authserv-id is missing or cannot be read in exactly one way counts as a claim.
    """
    positions = message.positions(b"authentication-results")
    is_ambiguous = not message.defects.isdisjoint(AMBIGUOUS)
    if not positions and not is_ambiguous:
        return _NONE
    forged = set(_hidden_positions(message)) if is_ambiguous else set()
    ours = {_canonical_id(authserv_id) for authserv_id in authserv_ids}
    for position in positions:
        claimed = _claimed_id(message.unfolded(position))
        if claimed is None or claimed in ours:
            forged.add(position)
    return frozenset(forged)


def hides_results(message: Message) -> bool:
    """Whether such a field, of whatever id, stands in the part of a giant header section that is not read.

    It has no place in `message.fields`, so nobody can take it out.
    """
    if message.defects.isdisjoint(UNREAD):
        return False
    # A field that was cut off is not whole, so its own beginning is looked at again.
    last = message.fields[-1].start if message.fields else 0
    return _ANYWHERE.search(message.raw[max(0, last - 2) : message.body_start]) is not None


def _hidden_positions(message: Message) -> Iterator[int]:
    """Fields, and lines that are none, in which another reader may find the beginning of such a field, of whatever id.

    A bare line end in a field's value is enough, if the next server makes a line end of it.
    """
    starts = [field.start for field in message.fields]
    for found in _ANYWHERE.finditer(message.raw[: message.body_start]):
        position = bisect_right(starts, found.start(1)) - 1
        if starts[position] != found.start(1) or not message.fields[position].key:
            yield position


def _result_pieces(result: MethodResult, *, end: str) -> list[str]:
    pieces = [f"{_keyword(result.method)}={_keyword(result.result)}"]
    if result.comment:
        pieces.append(comment(result.comment))
    if result.reason:
        pieces.append(f"reason={quote_value(result.reason)}")
    # An empty value says nothing, and readers stumble over `""`.
    pieces += [property_piece(item.ptype, item.name, item.value) for item in result.properties if item.value]
    pieces[-1] += end
    return pieces


@lru_cache(maxsize=256)
def _keyword(word: str) -> str:
    if not _KEYWORD.fullmatch(word):
        raise ValueError(f"not a keyword of Authentication-Results: {word!r}")
    return word


def _claimed_id(value: bytes) -> str | None:
    """The authserv-id of a field in the form in which ids are compared; None where it is not beyond doubt."""
    try:
        text = value.decode("utf-8")
        named = _AUTHSERV_ID.match(text, skip_comments(text, 0))
        if not named:
            return None
        at = skip_comments(text, named.end())
        if version := _VERSION.match(text, at):
            at = skip_comments(text, version.end())
        if text[at : at + 1] not in {"", ";"}:
            return None
        return _canonical_id(named[2] if named[1] is None else _QUOTED_PAIR.sub(r"\1", named[1]))
    except (UnicodeDecodeError, ParseError):
        return None


def _canonical_id(authserv_id: str) -> str:
    """A name in any spelling as one; an id that is no domain name stands for itself, without regard to case."""
    try:
        return parse_domain(authserv_id.strip(" \t.'"))  # readers are sloppier than the grammar
    except ParseError:
        if not authserv_id.isascii() or not authserv_id.isprintable():
            raise
        return authserv_id.strip().lower()

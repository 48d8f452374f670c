"""Master files (RFC 1035 §5): the DNS written down, for tests, for `--zone` and for the demo.

One text may hold names of many domains; there are no zone cuts. Two directives are ours:

    $TROUBLE name TYPE timeout|servfail|refused|malformed    asking for this fails; TYPE may be ANY
    $SECURE on|off                                           what follows is (not) vouched for by DNSSEC

Types that mail does not ask for (NS, SRV, ...) are taken as proof that their name exists; their data is not read.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

import dns.exception
import dns.rdatatype

from gateway.dns.names import MAX_LABEL_BYTES, MAX_NAME_BYTES, name_from_labels
from gateway.dns.resolver import Mx, Record, RecordType, Tlsa, Trouble
from gateway.mail.errors import ParseError

DEFAULT_TTL = 300
MAX_TTL = 2**31 - 1  # RFC 2181 §8
MAX_FAULTS = 50  # a file that is no zone at all need not be told so once a line
MAX_TXT_BYTES = 65_000  # all of a TXT record must fit in one message

_TOKEN = re.compile(
    r'"(?P<quoted>[^"\\\n]*+(?:\\[^\n][^"\\\n]*+)*)"'
    r"|(?P<word>(?:[^\s\"();\\]++|\\[^\n])+)"
    r"|(?P<space>[^\S\n]++)"
    r"|(?P<comment>;[^\n]*+)"
    r"|(?P<mark>[()\n])"
    r"|(?P<junk>[^\n]++)"
)
_ESCAPE = re.compile(r"\\(?:([0-9]{3})|(.))", re.DOTALL)
_LABEL = re.compile(r"(?:[^.\\]++|\\.)+|\.", re.DOTALL)
_TTL = re.compile(r"(?=.)(?:[0-9]{1,10}+[smhdw])*(?:[0-9]{1,10})?", re.IGNORECASE)
_TTL_PART = re.compile(r"([0-9]{1,10})([smhdw]?)", re.IGNORECASE)
_TTL_UNIT = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_TYPES = {record_type.value: record_type for record_type in RecordType}
_ALONGSIDE_CNAME = frozenset({"CNAME", "RRSIG", "NSEC", "KEY"})  # RFC 2181 §10.1, RFC 4034 §3, §4


class Fault(NamedTuple):
    """One thing wrong in a master file; lines count from 1."""

    line: int
    message: str


class ZoneError(ParseError):
    """A text that is no master file; `faults` holds everything found, in the order of the lines, at most 50."""

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        super().__init__("; ".join(f"line {line}: {message}" for line, message in faults))
        self.faults = faults


@dataclass(slots=True)
class RecordSet:
    """The records of one type at one name."""

    ttl: int
    records: list[Record]


@dataclass(slots=True)
class Node:
    """Everything that stands at one name; an empty one says that the name exists."""

    secure: bool
    sets: dict[RecordType, RecordSet] = field(default_factory=dict)
    trouble: dict[RecordType, Trouble] = field(default_factory=dict)
    negative_ttl: int | None = None  # at a zone's top, from its SOA


def parse_master_file(text: str, *, origin: str = ".", secure: bool = False) -> dict[str, Node]:
    """Read a whole text; `origin` completes relative names until a $ORIGIN.

    Raises:
        ZoneError: with every fault in the text.
    """
    return _Reader(origin, secure=secure).read(text)


class _FaultError(Exception):
    """A fault whose line the reader knows."""


class _Word(NamedTuple):
    text: str
    quoted: bool


@dataclass(slots=True)
class _Entry:
    """One logical line: a record or a directive, its parentheses joined and its comments gone."""

    line: int
    indented: bool
    words: list[_Word] = field(default_factory=list)
    depth: int = 0
    fault: str | None = None


def _split_entries(text: str) -> Iterator[_Entry]:
    line = 1
    entry: _Entry | None = None
    for token in _TOKEN.finditer(text):
        if entry is None:
            entry = _Entry(line, indented=token.lastgroup == "space")
        if token[0] == "\n":
            line += 1
            if not entry.depth or entry.fault:  # after a fault begin afresh at the next line
                yield entry
                entry = None
        else:
            _extend(entry, token)
    if entry is not None:
        if entry.depth and not entry.fault:
            entry.fault = "a parenthesis that is never closed"
        yield entry


def _extend(entry: _Entry, token: re.Match[str]) -> None:
    match token.lastgroup:
        case "quoted":
            entry.words.append(_Word(token["quoted"], quoted=True))
        case "word":
            entry.words.append(_Word(token[0], quoted=False))
        case "junk":
            entry.fault = (
                f"unreadable from {_shown(token[0])}: a quote that is not closed, or a lone backslash"
            )
        case "mark":
            entry.depth += 1 if token[0] == "(" else -1
            if entry.depth < 0:
                entry.fault = "a closing parenthesis that was never opened"
        case _:  # white space and comments only part words
            pass


class _Reader:
    """Reads entries in order: each may lean on the owner, the TTL and the directives before it."""

    def __init__(self, origin: str, *, secure: bool) -> None:
        self._nodes: dict[str, Node] = {}
        self._origin = origin.lower().rstrip(".")
        self._secure = secure
        self._owner: str | None = None
        self._default_ttl: int | None = None
        self._last_ttl = DEFAULT_TTL
        self._types: dict[str, set[str]] = {}
        self._directives: dict[str, tuple[int, Callable[..., None]]] = {
            "$ORIGIN": (1, self._set_origin),
            "$TTL": (1, self._set_ttl),
            "$SECURE": (1, self._set_secure),
            "$TROUBLE": (3, self._add_trouble),
        }

    def read(self, text: str) -> dict[str, Node]:
        faults: list[Fault] = []
        for entry in _split_entries(text):
            try:
                if entry.fault:
                    raise _FaultError(entry.fault)  # noqa: TRY301  # one place that gathers faults with their lines
                self._take(entry)
            except _FaultError as fault:
                faults.append(Fault(entry.line, str(fault)))
                if len(faults) == MAX_FAULTS:
                    break
        if faults:
            raise ZoneError(tuple(faults))
        return self._nodes

    def _take(self, entry: _Entry) -> None:
        words = entry.words
        if not words:
            return
        first = words[0]
        if first.text.startswith("$") and not first.quoted and not entry.indented:
            self._obey(first.text.upper(), [word.text for word in words[1:]])
            return
        if not entry.indented:
            if first.quoted:
                raise _FaultError(
                    f"a record begins with the name it belongs to, not with {_shown(first.text)}"
                )
            self._owner = None  # so that a bad name does not give its later records to the one before it
            self._owner = self._name(first.text)
            words = words[1:]
        if self._owner is None:
            raise _FaultError("no name for this record to belong to")
        self._add_record(self._owner, words)

    def _obey(self, directive: str, arguments: list[str]) -> None:
        if directive not in self._directives:
            known = ", ".join(self._directives)
            raise _FaultError(f"{_shown(directive)} is not a directive that can be used here ({known})")
        count, action = self._directives[directive]
        if len(arguments) != count:
            raise _FaultError(f"{directive} takes {count} argument{'s' * (count > 1)}, not {len(arguments)}")
        action(*arguments)

    def _set_origin(self, name: str) -> None:
        self._origin = self._name(name)

    def _set_ttl(self, ttl: str) -> None:
        if not _TTL.fullmatch(ttl):
            raise _FaultError(f"{_shown(ttl)} is not a TTL")
        self._default_ttl = _seconds(ttl)

    def _set_secure(self, word: str) -> None:
        if word.lower() not in {"on", "off"}:
            raise _FaultError(f"$SECURE is on or off, not {_shown(word)}")
        self._secure = word.lower() == "on"

    def _add_trouble(self, name: str, type_word: str, trouble_word: str) -> None:
        try:
            types = list(RecordType) if type_word.upper() == "ANY" else [RecordType(type_word.upper())]
        except ValueError:
            raise _FaultError(f"{_shown(type_word)} is not a type that mail asks for, nor ANY") from None
        try:
            trouble = Trouble(trouble_word.lower())
        except ValueError:
            trouble = Trouble.BUDGET
        if trouble is Trouble.BUDGET:  # a message's own doing, which no server can answer
            known = ", ".join(word for word in Trouble if word is not Trouble.BUDGET)
            raise _FaultError(f"{_shown(trouble_word)} is not one of {known}")
        self._node(self._name(name)).trouble.update(dict.fromkeys(types, trouble))

    def _name(self, word: str) -> str:
        if word == "@":
            return self._origin
        if "\\" in word:
            labels = [_unescape(label) for label in _LABEL.findall(word) if label != "."]
            absolute = _LABEL.findall(word)[-1] == "."
            name = name_from_labels(labels)
        elif not word.isascii():
            raise _FaultError(f"the name {_shown(word)} must be written in A-labels (xn--...)")
        else:
            absolute = word.endswith(".")
            name = word.lower().removesuffix(".")
        if not absolute and self._origin:
            name = f"{name}.{self._origin}"
        if name and not (
            len(name) <= MAX_NAME_BYTES
            and all(0 < len(label) <= MAX_LABEL_BYTES for label in name.split("."))
        ):
            raise _FaultError(
                f"the name {_shown(word)} has an empty label, one over 63 bytes or over 253 in all"
            )
        return name

    def _node(self, name: str) -> Node:
        node = self._nodes.get(name)
        if node is None:
            node = self._nodes[name] = Node(self._secure)
        node.secure = node.secure and self._secure
        return node

    def _add_record(self, owner: str, words: list[_Word]) -> None:
        ttl, words = self._split_ttl_and_class(words)
        if not words:
            raise _FaultError("a record without a type")
        type_word, data = words[0].text.upper(), words[1:]
        record_type = _TYPES.get(type_word)
        if record_type is None:
            self._add_other(owner, type_word, data, ttl)
            return
        if not data:
            raise _FaultError(f"{type_word} without data")
        record = self._record(record_type, data)
        self._check_cname_alone(owner, type_word)
        sets = self._node(owner).sets
        found = sets.get(record_type)
        if found is None:
            found = sets[record_type] = RecordSet(ttl, [])
        found.ttl = min(found.ttl, ttl)  # RFC 2181 §5.2: one set, one TTL
        found.records.append(record)

    def _split_ttl_and_class(self, words: list[_Word]) -> tuple[int, list[_Word]]:
        """Take the TTL and the class, which may stand in either order, both or neither (RFC 1035 §5.1)."""
        ttl: int | None = None
        seen_class = False
        while words and not words[0].quoted:
            word = words[0].text
            if not seen_class and word.upper() == "IN":
                seen_class = True
            elif ttl is None and _TTL.fullmatch(word):
                ttl = self._last_ttl = _seconds(word)
            else:
                break
            words = words[1:]
        if ttl is None:
            ttl = self._last_ttl if self._default_ttl is None else self._default_ttl
        return ttl, words

    def _add_other(self, owner: str, type_word: str, data: list[_Word], ttl: int) -> None:
        try:
            dns.rdatatype.from_text(type_word)
        except (dns.exception.DNSException, ValueError):
            raise _FaultError(f"{_shown(type_word)} is not a record type") from None
        if not data:
            raise _FaultError(f"{type_word} without data")
        negative_ttl = None
        if type_word == "SOA":
            if len(data) != 7 or not all(_TTL.fullmatch(word.text) for word in data[2:]):  # noqa: PLR2004  # RFC 1035 §3.3.13
                raise _FaultError("SOA is: server mailbox serial refresh retry expire minimum")
            negative_ttl = min(ttl, _seconds(data[6].text))  # RFC 2308 §5
        self._check_cname_alone(owner, type_word)
        node = self._node(owner)
        node.negative_ttl = negative_ttl if negative_ttl is not None else node.negative_ttl

    def _check_cname_alone(self, owner: str, type_word: str) -> None:
        types = self._types.setdefault(owner, set())
        if type_word in types and type_word == "CNAME":
            raise _FaultError(f"{_shown(owner)} has more than one CNAME")
        types.add(type_word)
        if "CNAME" in types and not types <= _ALONGSIDE_CNAME:  # RFC 1034 §3.6.2
            raise _FaultError(f"{_shown(owner)} has a CNAME and other data")

    def _record(self, record_type: RecordType, data: list[_Word]) -> Record:
        words = [word.text for word in data]
        try:
            match record_type, words:
                case RecordType.A, [address]:
                    return IPv4Address(address)
                case RecordType.AAAA, [address]:
                    return IPv6Address(address)
                case ((RecordType.CNAME | RecordType.PTR), [name]):
                    return self._name(name)
                case RecordType.MX, [preference, exchange]:
                    return Mx(_number(preference, 0xFFFF), self._name(exchange))
                case RecordType.TXT, _:
                    return _txt(words)
                case RecordType.TLSA, [usage, selector, matching, *hexadecimal] if hexadecimal:
                    association = bytes.fromhex("".join(hexadecimal))
                    return Tlsa(
                        _number(usage, 0xFF), _number(selector, 0xFF), _number(matching, 0xFF), association
                    )
        except ValueError as fault:
            raise _FaultError(f"{record_type}: {_shown(str(fault))}") from None
        raise _FaultError(f"{record_type} takes another number of values than {len(words)}")


def _txt(words: list[str]) -> bytes:
    """Join the strings. Deviation: one over 255 bytes is taken as if it were split (keys are pasted whole)."""
    joined = b"".join([_unescape(word) for word in words])
    if len(joined) > MAX_TXT_BYTES:
        raise _FaultError(f"TXT of {len(joined)} bytes: no DNS message can carry it")
    return joined


def _unescape(word: str) -> bytes:
    r"""Undo `\DDD` and `\X` (RFC 1035 §5.1); text beyond ASCII becomes UTF-8, or the byte that it was in the file."""
    try:
        if "\\" not in word:
            return word.encode("utf-8", "surrogateescape")
        pieces: list[bytes] = []
        end = 0
        for escape in _ESCAPE.finditer(word):
            pieces.append(word[end : escape.start()].encode("utf-8", "surrogateescape"))
            digits, character = escape.groups()
            pieces.append(
                character.encode("utf-8", "surrogateescape")
                if digits is None
                else bytes([_number(digits, 0xFF)])
            )
            end = escape.end()
        pieces.append(word[end:].encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError:
        raise _FaultError(f"{_shown(word)} holds half a surrogate pair") from None
    return b"".join(pieces)


def _number(word: str, most: int) -> int:
    if not (word.isascii() and word.isdigit() and len(word) <= 10 and int(word) <= most):  # noqa: PLR2004  # digits of 2**32
        raise _FaultError(f"{_shown(word)} is not a number from 0 to {most}")
    return int(word)


def _seconds(word: str) -> int:
    total = sum(int(figure) * _TTL_UNIT[unit.lower()] for figure, unit in _TTL_PART.findall(word))
    if total > MAX_TTL:
        raise _FaultError(f"{_shown(word)} is over {MAX_TTL} seconds")
    return total


def _shown(text: str) -> str:
    """Text from the file, escaped and cut for a message."""
    return ascii(text if len(text) <= 60 else text[:57] + "...")  # noqa: PLR2004  # what fits on a terminal's line

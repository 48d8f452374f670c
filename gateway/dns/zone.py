"""A resolver that answers from a text: the tests' DNS, the demo's, and that of `gateway check --zone`.

It answers as a real recursive resolver would: empty non-terminals exist (RFC 8020), wildcards cover what is not there
(RFC 4592), CNAMEs are followed, and what is not in the text does not exist. It never suspends and never touches the network.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Self

from gateway.dns.names import canonical_name
from gateway.dns.resolver import (
    MAX_CNAMES,
    Answer,
    Missing,
    NotFound,
    Outcome,
    Record,
    RecordType,
    Temporary,
    Trouble,
)
from gateway.dns.zone_text import DEFAULT_TTL, Fault, Node, RecordSet, ZoneError, parse_master_file

__all__ = ["Fault", "ZoneError", "ZoneResolver"]

_SERVFAIL: Final = Temporary(Trouble.SERVFAIL)  # what a resolver says of a CNAME loop
_EMPTY: Final = Node(secure=True)  # as secure as what is above it: see `_not_found`


class ZoneResolver:
    """Answers every question from records given beforehand."""

    def __init__(self, nodes: Mapping[str, Node]) -> None:
        self._nodes = nodes
        self._exists = {""}
        for name in nodes:
            self._add_with_parents(name)

    @classmethod
    def from_text(cls, text: str, *, origin: str = ".", secure: bool = False) -> Self:
        """Read a master file, with `$TROUBLE` and `$SECURE` (see `zone_text`); `secure` stands until a `$SECURE`.

        Raises:
            ZoneError: with every fault in the text.
        """
        return cls(parse_master_file(text, origin=origin, secure=secure))

    @classmethod
    def from_file(cls, path: Path, *, origin: str = ".", secure: bool = False) -> Self:
        """Read a master file; bytes that are not UTF-8 are kept as they are.

        Raises:
            ZoneError: with every fault in the file.
            OSError: it cannot be read.
        """
        text = path.read_bytes().decode("utf-8", "surrogateescape")
        return cls.from_text(text, origin=origin, secure=secure)

    @classmethod
    def from_records(
        cls,
        records: Mapping[tuple[str, RecordType], Sequence[Record]],
        *,
        trouble: Mapping[tuple[str, RecordType], Trouble] | None = None,
        secure: bool = False,
        ttl: int = DEFAULT_TTL,
    ) -> Self:
        """Take records and failures as they are; names in any case, without a final dot."""
        nodes: dict[str, Node] = {}
        for (name, record_type), found in records.items():
            node = nodes.setdefault(name.lower(), Node(secure))
            if found:  # none at all: only the name exists
                node.sets[record_type] = RecordSet(ttl, list(found))
        for (name, record_type), word in (trouble or {}).items():
            nodes.setdefault(name.lower(), Node(secure)).trouble[record_type] = word
        return cls(nodes)

    async def query(self, name: str, record_type: RecordType) -> Outcome:
        """Look up `name`; see `Resolver.query`."""
        return self.peek(name, record_type)

    def peek(self, name: str, record_type: RecordType) -> Outcome:
        """The same, at once."""
        wanted = canonical_name(name)
        if wanted is None:
            return NotFound(Missing.NXDOMAIN, ttl=DEFAULT_TTL, secure=False)
        return self._follow(wanted, record_type)

    def _follow(self, name: str, record_type: RecordType) -> Outcome:
        ttl: int | None = None
        secure = True
        for _ in range(MAX_CNAMES + 1):
            node = self._find(name)
            if node is None:
                return self._not_found(Missing.NXDOMAIN, name, ttl, secure=secure)
            if record_type in node.trouble:
                return Temporary(node.trouble[record_type])
            secure = secure and node.secure
            if found := node.sets.get(record_type):
                return Answer(tuple(found.records), _least(ttl, found.ttl), secure, name)
            alias = node.sets.get(RecordType.CNAME)
            if alias is None:
                return self._not_found(Missing.NODATA, name, ttl, secure=secure)
            ttl = _least(ttl, alias.ttl)
            name = str(alias.records[0])
        return _SERVFAIL

    def _find(self, name: str) -> Node | None:
        """The node that answers for `name`: its own, an empty one where only names below it exist, or a wildcard's."""
        if name in self._nodes:
            return self._nodes[name]
        if name in self._exists:
            return _EMPTY
        encloser = name
        while encloser not in self._exists:  # RFC 4592 §3.3.1: the closest encloser's wildcard, and no other
            encloser = _parent(encloser)
        return self._nodes.get(f"*.{encloser}" if encloser else "*")

    def _not_found(self, missing: Missing, name: str, ttl: int | None, *, secure: bool) -> NotFound:
        """An authoritative no: vouched for where the closest name written down is; TTL from the SOA above (RFC 2308 §5)."""
        negative_ttl: int | None = None
        closest: Node | None = None
        while True:
            if node := self._nodes.get(name):
                closest = closest or node
                negative_ttl = node.negative_ttl
            if negative_ttl is not None or not name:
                break
            name = _parent(name)
        vouched = closest is not None and closest.secure
        return NotFound(
            missing, _least(ttl, DEFAULT_TTL if negative_ttl is None else negative_ttl), secure and vouched
        )

    def _add_with_parents(self, name: str) -> None:
        while name not in self._exists:
            self._exists.add(name)
            name = _parent(name)


def _parent(name: str) -> str:
    """The name one label shorter; the root is its own parent."""
    return name.partition(".")[2]


def _least(one: int | None, other: int) -> int:
    return other if one is None else min(one, other)

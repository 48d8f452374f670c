"""A small world for key rotations: a zone that takes updates and is looked up in, with failures on demand."""

from collections.abc import Sequence

from gateway.dns.resolver import Answer, Missing, NotFound, Outcome, RecordType, Temporary, Trouble
from gateway.keys.errors import PublishError, UnreachableError
from gateway.keys.model import ManagedKey


class World:
    """The resolver and the publisher of a rotation.

    Attributes:
        primary: the texts at each name, as the primary server has them.
        seen: the same as the world sees them; `spread` makes it so.
        down: the resolver does not answer.
        locked: the primary server refuses.
        unreachable: it does not answer at all.
        attempts: how often it was asked.
    """

    def __init__(self, *, at_once: bool = True) -> None:
        self.primary: dict[str, bytes] = {}
        self.seen: dict[str, bytes] = {}
        self.at_once = at_once
        self.down = False
        self.locked = False
        self.unreachable = False
        self.attempts = 0

    def spread(self) -> None:
        self.seen = dict(self.primary)

    async def query(self, name: str, record_type: RecordType) -> Outcome:
        assert record_type is RecordType.TXT
        if self.down:
            return Temporary(Trouble.SERVFAIL)
        text = self.seen.get(name)
        if text is None:
            return NotFound(Missing.NXDOMAIN, ttl=60, secure=False)
        return Answer((text,), ttl=60, secure=False, name=name)

    async def publish(self, records: Sequence[tuple[ManagedKey, bytes | None]]) -> None:
        self.attempts += 1
        if self.unreachable:
            raise UnreachableError("192.0.2.53:53 cannot be reached")
        if self.locked:
            raise PublishError("192.0.2.53:53: refuses")
        for key, record in records:
            if record is None:
                self.primary.pop(key.name, None)
            else:
                self.primary[key.name] = record
        if self.at_once:
            self.spread()

"""The zone as the rotation of keys needs it: each key's name holds its record and no other key (RFC 6376 §3.6.2.2)."""

from collections.abc import Sequence

from gateway.auth.dkim.key import parse_key
from gateway.auth.dkim.tags import DkimError
from gateway.auth.results import Problem
from gateway.dns.resolver import Record, RecordType
from gateway.keys.errors import PublishError
from gateway.keys.model import ManagedKey
from gateway.publish.records import Purpose, is_of_purpose
from gateway.publish.update import Change, Mode, Primary, Wish


def is_key(record: Record) -> bool:
    """Whether it is meant as a DKIM key."""
    return is_of_purpose(Purpose.DKIM, record)


class KeyPublisher:
    """A `gateway.keys.rotation.Publisher` by dynamic update."""

    def __init__(self, primary: Primary) -> None:
        self._primary = primary

    async def publish(self, records: Sequence[tuple[ManagedKey, bytes | None]]) -> None:
        """See `Publisher`."""
        wishes = [
            Wish(
                name=key.name,
                record_type=RecordType.TXT,
                records=() if record is None else (record,),
                mode=Mode.REPLACE,
                is_of_kind=is_key,
            )
            for key, record in records
        ]
        changes = await self._primary.plan(wishes)
        for change, (key, _) in zip(changes, records, strict=True):
            _refuse_other_key(change, key)
        await self._primary.write(changes)


def _refuse_other_key(change: Change, key: ManagedKey) -> None:
    """Without hands, another's key is not overwritten.

    Raises:
        PublishError: one stands there.
    """
    for record in change.before:
        if isinstance(record, bytes) and is_key(record) and not _is_own(record, key):
            raise PublishError(
                f"at {key.name} stands another key: take it away by hand if it is none of yours any more"
            )


def _is_own(record: bytes, key: ManagedKey) -> bool:
    try:
        return parse_key(record).key == key.key_record.key
    except DkimError as error:
        return error.problem is Problem.DKIM_KEY_REVOKED

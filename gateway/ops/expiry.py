"""What ends by itself if nobody acts: certificates, and the time at which a DKIM key should have taken its next step."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple, assert_never

from cryptography import x509

from gateway.keys.directory import KeyDirectory
from gateway.keys.errors import KeyDirectoryError
from gateway.keys.model import KeyState, ManagedKey
from gateway.keys.rotation import Schedule

_NEVER = (0, 0)


def certificate_end(path: Path) -> datetime | None:
    """When the first of the file's certificates ends to be valid: a chain is good for as long as all of it is.

    None where the file cannot be read: whoever uses it says why.
    """
    try:
        chain = x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError):
        return None
    return min(certificate.not_valid_after_utc for certificate in chain)


class KeyDue(NamedTuple):
    """A managed key and when its next step is due (UTC)."""

    domain: str
    selector: str
    state: KeyState
    due: datetime


class KeyWatch:
    """The managed keys' state, read again when the file has changed: `gateway keys rotate` is another process.

    Args:
        directory: of `[keys]`.
        schedule: likewise.
    """

    def __init__(self, directory: KeyDirectory, schedule: Schedule) -> None:
        self._directory = directory
        self._schedule = schedule
        self._seen = _NEVER
        self._known: tuple[KeyDue, ...] = ()

    def look(self) -> tuple[KeyDue, ...]:
        """What is known now; what was known before where the file cannot be read."""
        try:
            status = self._directory.state_path.stat()
            seen = (status.st_mtime_ns, status.st_ino)
            if seen != self._seen:
                self._known = tuple(self._due(self._directory.read()))
                self._seen = seen
        except (OSError, KeyDirectoryError):
            pass
        return self._known

    def _due(self, keys: tuple[ManagedKey, ...]) -> Iterator[KeyDue]:
        for key in keys:
            due = next_step(key, self._schedule)
            if due is not None:
                yield KeyDue(key.domain, key.selector, key.state, due)


def next_step(key: ManagedKey, schedule: Schedule) -> datetime | None:
    """When the key should leave the state it is in; None where nothing is to come by itself."""
    state = key.state
    since = key.time_of(state) or key.created
    match state:
        case KeyState.MADE:  # its record should be seen at once
            return since
        case KeyState.PUBLISHED:
            return since + timedelta(seconds=schedule.publish_ahead_s)
        case KeyState.ACTIVE:
            every = schedule.rotate_every_s
            return None if every is None else since + timedelta(seconds=every)
        case KeyState.RETIRING:
            return since + timedelta(seconds=schedule.keep_old_s)
        case KeyState.GONE:  # only its record's last trace is left
            return None
        case _:
            assert_never(state)

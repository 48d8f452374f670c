"""Where managed keys are kept: one PEM file a key, one state file, one lock.

Every file is written whole beside its place and then moved there, so that whoever reads meets the old one or the new one and
a loss of power loses neither. A private key is on the disk before the state names it, and leaves only after the state says
that it is gone.
"""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Final

from gateway.auth.dkim.key import KeyType
from gateway.auth.dkim.key_table import KeyFileError, PrivateKey, load_private_key
from gateway.keys.errors import KeyDirectoryError
from gateway.keys.model import ManagedKey, record_name
from gateway.keys.private_key import make_private_key, public_text, to_pem, type_of
from gateway.keys.state_file import StateError, format_state, is_managed_name, parse_state

STATE_FILE: Final = "keys.toml"
LOCK_FILE: Final = "lock"
_DIRECTORY_MODE: Final = 0o700
_FILE_MODE: Final = 0o600
_MAX_STATE_BYTES: Final = 4 * 1024 * 1024


class KeyDirectory:
    """The directory of `[keys]`."""

    def __init__(self, path: Path) -> None:
        self.path: Final = path

    @property
    def state_path(self) -> Path:
        """The state file."""
        return self.path / STATE_FILE

    def read(self) -> tuple[ManagedKey, ...]:
        """All keys, as the state file has them; none where nothing has been made yet.

        Raises:
            KeyDirectoryError: the state file cannot be read or cannot be right.
        """
        path = self.state_path
        try:
            with path.open("rb") as file:
                text = file.read(_MAX_STATE_BYTES).decode()
        except FileNotFoundError:
            return ()
        except PermissionError as error:
            raise KeyDirectoryError(
                path, "may not be read by this user", f"give {self.path} to the gateway's user"
            ) from error
        except UnicodeDecodeError as error:
            raise KeyDirectoryError(path, "is not in UTF-8", "restore it from a backup") from error
        except OSError as error:
            raise KeyDirectoryError(
                path, f"cannot be read: {error.strerror or error}", "look at the directory"
            ) from error
        try:
            return parse_state(text)
        except StateError as error:
            raise KeyDirectoryError(path, str(error), "mend it, or restore it from a backup") from error

    def write(self, keys: Sequence[ManagedKey]) -> None:
        """Replace the state file; the lock must be held.

        Raises:
            KeyDirectoryError: it cannot be written; the old one is still there.
        """
        self._put(self.state_path, format_state(keys).encode())

    def make_key(
        self, domain: str, selector: str, algorithm: KeyType, *, bits: int, now: datetime
    ) -> ManagedKey:
        """Make a key and its file; the caller writes the state. The lock must be held.

        Raises:
            KeyDirectoryError: it cannot be written, or there is such a file already.
        """
        private = make_private_key(algorithm, bits)
        key = ManagedKey(
            domain=domain,
            selector=selector,
            algorithm=algorithm,
            public=public_text(private),
            created=now.replace(microsecond=0),
        )
        if not is_managed_name(key):
            raise KeyDirectoryError(
                self.path, f"{key.name[:80]} is no name for a key", "choose a shorter selector"
            )
        if self.has_file(key):
            raise KeyDirectoryError(self.path_of(key), "is there already", "choose another selector")
        self._put(self.path_of(key), to_pem(private))
        return key

    def path_of(self, key: ManagedKey) -> Path:
        """The file of its private key."""
        return self.path / key.file_name

    def has_file(self, key: ManagedKey) -> bool:
        """Whether that file is there."""
        return os.path.lexists(self.path_of(key))

    def load(self, key: ManagedKey) -> PrivateKey:
        """Its private key.

        Raises:
            KeyDirectoryError: the file cannot be used, or is another key's.
        """
        path = self.path_of(key)
        new = f"begin with a new key: `gateway keys rotate {key.domain} --now`"
        if not self.has_file(key):
            raise KeyDirectoryError(path, "is missing", f"restore it from a backup, or {new}")
        try:
            private = load_private_key(path)
        except KeyFileError as error:
            raise KeyDirectoryError(path, error.what, error.remedy) from error
        if type_of(private) is not key.algorithm or public_text(private) != key.public:
            raise KeyDirectoryError(
                path,
                f"is not the key that {STATE_FILE} has under this name",
                f"restore both from the same backup, or {new}",
            )
        return private

    def delete_file(self, key: ManagedKey) -> None:
        """Delete its private key, where it is still there.

        Raises:
            KeyDirectoryError: it cannot be deleted.
        """
        path = self.path_of(key)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise KeyDirectoryError(
                path,
                f"cannot be deleted: {error.strerror or error}",
                "delete it by hand: it is no more in use",
            ) from error

    def selectors(self, domain: str) -> set[str]:
        """Those that are taken: of the domain's keys, and of key files that the state does not name."""
        tail = f"{record_name(domain, '')}.pem"
        files = {path.name.removesuffix(tail) for path in self.path.glob(f"*{tail}")}
        return files | {key.selector for key in self.read() if key.domain == domain}

    def orphans(self) -> tuple[Path, ...]:
        """Key files that the state does not name: of a command that was interrupted, or put there by hand."""
        known = {key.file_name for key in self.read()}
        return tuple(sorted(path for path in self.path.glob("*.pem") if path.name not in known))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep others out; the directory is made where there is none. The kernel frees the lock however we end.

        Raises:
            KeyDirectoryError: another command is at work there, or the directory cannot be had.
        """
        lock = self.path / LOCK_FILE
        try:
            self.path.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE)
        except OSError as error:
            raise KeyDirectoryError(
                lock, f"cannot be made: {error.strerror or error}", "run it as the gateway's user"
            ) from error
        with os.fdopen(descriptor, "rb") as file:
            try:
                self._give_to_owner(descriptor)
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise KeyDirectoryError(
                    lock, "another `gateway keys` is at work here", "run it again when that one is done"
                ) from error
            except OSError as error:
                raise KeyDirectoryError(
                    lock, f"cannot be locked: {error.strerror or error}", "keep the keys on a local disk"
                ) from error
            yield

    def _put(self, path: Path, content: bytes) -> None:
        fresh = path.with_name(f".{path.name}.new")
        try:
            fresh.unlink(missing_ok=True)  # of a run that was interrupted
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                self._give_to_owner(descriptor)
                os.fsync(descriptor)
            fresh.replace(path)
            directory = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise KeyDirectoryError(
                path, f"cannot be written: {error.strerror or error}", "look at the disk and at its owner"
            ) from error

    def _give_to_owner(self, descriptor: int) -> None:
        """What root makes here must be readable by the gateway's user, who owns the directory."""
        if os.geteuid() == 0:
            owner = self.path.stat()
            os.fchown(descriptor, owner.st_uid, owner.st_gid)

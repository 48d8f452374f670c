"""Which managed keys sign now: the entries that stand beside those of `[[signing]]` in the key table."""

from gateway.auth.dkim.key_table import SigningEntry
from gateway.keys.directory import KeyDirectory
from gateway.keys.model import KeyState


def signing_entries(directory: KeyDirectory) -> tuple[SigningEntry, ...]:
    """An entry for each active key.

    Raises:
        KeyDirectoryError: the state file cannot be used.
    """
    return tuple(
        SigningEntry(domain=key.domain, selector=key.selector, key_path=directory.path_of(key))
        for key in directory.read()
        if key.state is KeyState.ACTIVE
    )

"""What keeps keys from being kept or published, said to the operator."""

from pathlib import Path
from typing import Final


class KeyDirectoryError(Exception):
    """A file of the key directory cannot be used; nothing that was in force before changes by it.

    Attributes:
        path: which file.
        what: what is wrong with it.
        remedy: what to do about it.
    """

    def __init__(self, path: Path, what: str, remedy: str) -> None:
        super().__init__(f"{path}: {what}; {remedy}")
        self.path: Final = path
        self.what: Final = what
        self.remedy: Final = remedy


class PublishError(Exception):
    """A zone could not be written to; the message says why and what to do."""


class UnreachableError(PublishError):
    """The server that takes updates does not answer at all: there is no use in trying it again now."""

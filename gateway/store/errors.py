"""Why a store cannot be used, in words for the operator."""

from typing import Final


class StoreError(Exception):
    """It cannot be opened, read or written.

    Attributes:
        what: what happened, with the store's name; never with its password.
        remedy: what to do; empty where `what` says it.
    """

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(f"{what}; {remedy}" if remedy else what)
        self.what: Final = what
        self.remedy: Final = remedy

"""A message as it is remembered, in a log or in a trace: what was done with it, and what is known of it by the rules' keys."""

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.mail.address import Mailbox
from gateway.policy.facts import Fact
from gateway.verdict import Disposition


@dataclass(frozen=True, slots=True, kw_only=True)
class Recalled:
    """One message.

    Attributes:
        facts: what is known, by the rules' keys; a key that is not there is unknown.
        is_by_rules: False where no rule file has a say: a bug, a header section beyond reading, a user as somebody else, a dialog
            that ended before.
        recipients: who was to get it, where they are known; None: `<Postmaster>`.
    """

    id: str
    rule: str
    disposition: Disposition
    facts: Mapping[str, Fact]
    is_by_rules: bool
    recipients: tuple[Mailbox | None, ...] = ()


@dataclass(slots=True)
class Passed:
    """What was passed by."""

    lines: int = 0
    """Of other events and programs."""
    broken: int = 0
    """Too long, or nothing of ours that can be read."""
    read_bytes: int = 0
    """How far a file has been read."""
    is_cut: bool = False
    """The file ends in the middle, as a compressed one may."""

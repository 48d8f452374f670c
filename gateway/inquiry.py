"""What is written down on the way to a verdict, for whoever asks later why it came out so."""

import time
from typing import TYPE_CHECKING, Final

from gateway.mail.edits import Edits
from gateway.mail.message import Message
from gateway.policy.facts import Case
from gateway.policy.rules import Rule, RuleSet
from gateway.verdict import Inquiry, RuleTried, Stage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.dns.budget import BudgetedResolver
    from gateway.mail.author import Author, NoAuthor

MAX_MESSAGE_ID_BYTES: Final = 300
_NAMELESS: Final = "(no field)"


class Notes:
    """One message's; or one command's, before there is a message.

    Args:
        is_told: whether what is written down here will be read; if not, no trouble is taken.

    Attributes:
        resolver: who is asked for it; None where nothing has to be.
        message, author: as far as there are any.
    """

    __slots__ = ("_facts", "_is_told", "_started", "_tried", "author", "message", "resolver")

    def __init__(self, *, is_told: bool, message: Message | None = None) -> None:
        self._is_told = is_told
        self._started = time.perf_counter()
        self._tried: tuple[RuleTried, ...] = ()
        self._facts: Mapping[str, str] = {}
        self.resolver: BudgetedResolver | None = None
        self.message = message
        self.author: Author | NoAuthor | None = None

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.perf_counter() - self._started

    def decide(self, rules: RuleSet, stage: Stage, case: Case) -> Rule | None:
        """The rule that takes the case; which did not, and why, is written down."""
        if not self._is_told:
            return rules.decide(stage, case)
        rule, self._tried, self._facts = rules.decide_and_tell(stage, case)
        return rule

    def inquiry(self, edits: Edits) -> Inquiry | None:
        """All of it; None where nobody reads it."""
        if not self._is_told:
            return None
        resolver, message = self.resolver, self.message
        return Inquiry(
            seconds=self.seconds,
            author=self.author,
            message_id=_message_id(message) if message is not None else None,
            questions=resolver.asked if resolver is not None else (),
            is_remembered=resolver is not None and resolver.charged > 0,
            tried=self._tried,
            facts=self._facts,
            removed=_removed(message, edits) if message is not None and edits.remove else (),
        )


def _message_id(message: Message) -> str | None:
    """As it stands there (RFC 5322 §3.6.4); the first where there are several."""
    positions = message.positions(b"message-id")
    if not positions:
        return None
    value = message.unfolded(positions[0])
    return value[:MAX_MESSAGE_ID_BYTES].decode("utf-8", "replace")


def _removed(message: Message, edits: Edits) -> tuple[str, ...]:
    fields = message.fields
    return tuple(fields[at].key.decode("ascii", "replace") or _NAMELESS for at in sorted(edits.remove))

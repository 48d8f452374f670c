"""What is written down on the way to a verdict, for whoever asks later why it came out so."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from gateway.mail.author import Author, NoAuthor
from gateway.mail.message import Message
from gateway.policy.facts import Fact
from gateway.policy.rules import RuleSet
from gateway.verdict import Inquiry, RuleTried, Stage, Verdict

if TYPE_CHECKING:
    from gateway.dns.budget import BudgetedResolver

MAX_MESSAGE_ID_BYTES: Final = 300
_NAMELESS: Final = "(no field)"


class Notes:
    """One message's; or one command's, before there is a message.

    Attributes:
        resolver: who is asked for it; None where nothing has to be.
        is_told: whether what is written down here will be read; if not, no trouble is taken.
    """

    __slots__ = ("_facts", "_tried", "is_told", "resolver")

    def __init__(self, *, is_told: bool) -> None:
        self.is_told = is_told
        self.resolver: BudgetedResolver | None = None
        self._tried: tuple[RuleTried, ...] = ()
        self._facts: Mapping[str, str] = {}

    def rules_tried(self, rules: RuleSet, stage: Stage, facts: Mapping[str, Fact]) -> None:
        """The rules of this stage were tried on these facts."""
        if self.is_told:
            self._tried, self._facts = rules.tried(stage, facts)

    def inquiry(
        self,
        verdict: Verdict,
        seconds: float,
        message: Message | None = None,
        author: Author | NoAuthor | None = None,
    ) -> Inquiry:
        """All of it."""
        resolver = self.resolver
        return Inquiry(
            seconds=seconds,
            author=author,
            message_id=_message_id(message) if message is not None else None,
            questions=tuple(resolver.asked) if resolver is not None else (),
            is_remembered=resolver is not None and resolver.charged > 0,
            tried=self._tried,
            facts=self._facts,
            removed=_removed(message, verdict) if message is not None and verdict.edits.remove else (),
        )


def _message_id(message: Message) -> str | None:
    """As it stands there (RFC 5322 §3.6.4); the first where there are several."""
    positions = message.positions(b"message-id")
    if not positions:
        return None
    value = message.unfolded(message.fields[positions[0]])
    return value[:MAX_MESSAGE_ID_BYTES].decode("utf-8", "replace")


def _removed(message: Message, verdict: Verdict) -> tuple[str, ...]:
    fields = message.fields
    return tuple(
        fields[at].key.decode("ascii", "replace") or _NAMELESS for at in sorted(verdict.edits.remove)
    )

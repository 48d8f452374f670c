"""What one message may cost in DNS: so many questions and so much time, whatever its sender has published.

SPF, DKIM and DMARC have limits of their own; a hostile message drives all of them at once. Every distinct name and type counts,
whether or not the answer happens to be cached: the verdict on a message must not depend on which mail came before it.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from gateway.dns.cache import Key
from gateway.dns.resolver import Outcome, RecordType, Resolver, Temporary, Trouble, outcome_word

_OVER_BUDGET: Final = Temporary(Trouble.BUDGET)


class DnsQuestion(NamedTuple):
    """One question that a message's checks asked, for the trace.

    Attributes:
        name: as the check wrote it; a stranger's text.
        record_type: what was asked for.
        outcome: see `outcome_word`.
        ms: milliseconds that it took; 0 where the answer was known from an earlier message.
    """

    name: str
    record_type: RecordType
    outcome: str
    ms: float


class PaidQuestion(NamedTuple):
    """A question whose answer is known from an earlier message, as it is put on another's account."""

    key: Key
    question: DnsQuestion

    @classmethod
    def of(cls, name: str, record_type: RecordType, outcome: Outcome) -> "PaidQuestion":
        """For what was asked, and answered so."""
        question = DnsQuestion(name, record_type, outcome_word(outcome), 0.0)
        return cls(_key(name, record_type), question)


class BudgetedResolver:
    """One message's view of the DNS: bounded, each question asked once, everything asked written down.

    Args:
        inner: who is asked. Its `peek(name, record_type)`, where it has one, answers at once what is known already.
        max_queries: distinct questions.
        deadline: on `now`'s clock; whatever is not known by then is `Temporary(BUDGET)`.
        now: a clock that never goes back, in seconds.

    Attributes:
        asked: the questions in the order of their answers; the first that was over the budget is the last.
        charged: questions that were paid for and not asked (see `charge`).
    """

    __slots__ = (
        "_deadline",
        "_known",
        "_left",
        "_max_queries",
        "_now",
        "_peek",
        "_query",
        "asked",
        "charged",
        "exhausted",
    )

    def __init__(
        self,
        inner: Resolver,
        *,
        max_queries: int,
        deadline: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._query = inner.query
        self._peek: Callable[[str, RecordType], Outcome | None] | None = getattr(inner, "peek", None)
        self._left = self._max_queries = max_queries
        self._deadline = deadline
        self._now = now
        self._known: dict[Key, Outcome | None] = {}
        self.asked: list[DnsQuestion] = []
        self.charged = 0
        self.exhausted = False

    async def query(self, name: str, record_type: RecordType) -> Outcome:
        """Look up `name`; see `Resolver.query`."""
        key = _key(name, record_type)
        known = self._known.get(key)
        if known is not None:
            return known
        start = self._now()
        if start >= self._deadline or not self._reserve(key):
            return self._refuse(name, record_type, 0.0)
        outcome = self._peek(name, record_type) if self._peek is not None else None
        if outcome is None:
            outcome = await self._wait_for(name, record_type, self._deadline - start)
        ms = round((self._now() - start) * 1000, 2)
        if outcome is _OVER_BUDGET:
            return self._refuse(name, record_type, ms)
        if self._known[key] is None:  # two checks may have waited for the same question
            self._known[key] = outcome
            self.asked.append(DnsQuestion(name, record_type, outcome_word(outcome), ms))
        return outcome

    @property
    def spent(self) -> int:
        """Distinct questions so far."""
        return self._max_queries - self._left

    def charge(self, questions: int) -> bool:
        """Pay for so many questions whose answers are known already; False, and nothing is paid, where they are too many."""
        if questions > self._left:
            return False
        self._left -= questions
        self.charged += questions
        return True

    def recall(self, questions: Sequence[PaidQuestion]) -> bool:
        """Pay for questions and note them as asked; False, and nothing is paid, where that is more than is left."""
        known, left = self._known, self._left
        for key, _ in questions:
            left -= key not in known
        if left < 0 or self._now() >= self._deadline:
            return False
        self._left = left
        for key, question in questions:
            if key not in known:
                known[key] = None  # counted, and to be asked all the same if anybody wants the answer itself
                self.asked.append(question)
        return True

    def _reserve(self, key: Key) -> bool:
        if key not in self._known:  # being waited for by another check: counted already
            if not self._left:
                return False
            self._left -= 1
            self._known[key] = None
        return True

    async def _wait_for(self, name: str, record_type: RecordType, seconds: float) -> Outcome:
        try:
            async with asyncio.timeout(seconds):
                return await self._query(name, record_type)
        except TimeoutError:
            return _OVER_BUDGET

    def _refuse(self, name: str, record_type: RecordType, ms: float) -> Outcome:
        if not self.exhausted:
            self.exhausted = True
            self.asked.append(DnsQuestion(name, record_type, Trouble.BUDGET.value, ms))
        return _OVER_BUDGET


def _key(name: str, record_type: RecordType) -> Key:
    return (name.lower() if name.isascii() else name, record_type)

"""What was found out by asking the DNS, kept for as long as the answers that it rests on may be.

A check is a function of what it is given and of what the DNS answers. Where both are as they were, so is its result: a sender of
many messages is looked into once. A verdict does not depend on that: a message pays for remembered questions, too.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeVar

from gateway.dns.budget import BudgetedResolver, PaidQuestion
from gateway.dns.resolver import Answer, Outcome, RecordType, Temporary

MAX_AGE_S: Final = 3_600.0

MAX_TEXT_BYTES: Final = 2_048
"""What rests on longer texts is found out each time, so that nobody fills our memory with them."""

if TYPE_CHECKING:
    from gateway.dns.cache import Key

_K = TypeVar("_K", bound=Hashable)
_V = TypeVar("_V")


class Watch:
    """A resolver that notes what was asked, and for how long the answers hold.

    Attributes:
        answers: each question once, with its outcome.
        in_doubt: something could not be known now.
        text_bytes: the size of all TXT records among them.
    """

    __slots__ = ("_resolver", "answers", "in_doubt", "text_bytes")

    def __init__(self, resolver: BudgetedResolver) -> None:
        self._resolver = resolver
        self.answers: dict[Key, Outcome] = {}
        self.in_doubt = False
        self.text_bytes = 0

    async def query(self, name: str, record_type: RecordType) -> Outcome:
        """See `Resolver.query`."""
        outcome = await self._resolver.query(name, record_type)
        if isinstance(outcome, Temporary):
            self.in_doubt = True
        elif isinstance(outcome, Answer):
            self.text_bytes += sum(len(record) for record in outcome.records if isinstance(record, bytes))
        self.answers[name, record_type] = outcome
        return outcome

    @property
    def ttl(self) -> float:
        """For so many seconds all that was answered may be kept; `MAX_AGE_S` at most."""
        ttls = [outcome.ttl for outcome in self.answers.values() if not isinstance(outcome, Temporary)]
        return min((MAX_AGE_S, *ttls))


class _Known(NamedTuple, Generic[_V]):
    value: _V
    expires: float
    questions: tuple[PaidQuestion, ...]


class DnsMemory(Generic[_K, _V]):
    """Results by whatever they depend on besides the DNS; bounded, the least recently used first to go.

    Args:
        max_entries: results kept; each rests on texts of `MAX_TEXT_BYTES` at most.
        now: a clock that never goes back, in seconds.
    """

    def __init__(self, max_entries: int, *, now: Callable[[], float] = time.monotonic) -> None:
        self._max_entries = max_entries
        self._now = now
        self._known: OrderedDict[_K, _Known[_V]] = OrderedDict()

    def recall(self, key: _K, resolver: BudgetedResolver) -> _V | None:
        """The result, paid for by `resolver`; None where it is not known, too old, or more than may be paid."""
        known = self._known.get(key)
        if known is None:
            return None
        if self._now() >= known.expires:
            del self._known[key]
            return None
        if not resolver.recall(known.questions):
            return None
        self._known.move_to_end(key)
        return known.value

    def keep(self, key: _K, value: _V, watch: Watch) -> None:
        """Keep a result, unless it rests on something that could not be known, or that is too long."""
        if watch.in_doubt or watch.text_bytes > MAX_TEXT_BYTES:
            return
        asked = (PaidQuestion.of(*question, outcome) for question, outcome in watch.answers.items())
        questions = {one.key: one for one in asked}  # in another case it is the same question
        self._known[key] = _Known(value, self._now() + watch.ttl, tuple(questions.values()))
        if len(self._known) > self._max_entries:
            self._known.popitem(last=False)

"""How many connections to the world there may be, in all and to one domain; who comes first is served first."""

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from typing import Final, NamedTuple


class _Waiter(NamedTuple):
    domain: str
    turn: asyncio.Future[None]


class Places:
    """Places for connections. One is taken for each, until it is closed.

    Args:
        total: in all.
        per_domain: to one recipient domain.
        may_reuse: whether somebody who waits for this domain could have an idle connection.
    """

    def __init__(self, total: int, per_domain: int, *, may_reuse: Callable[[str], bool]) -> None:
        self._total: Final = total
        self._per_domain: Final = per_domain
        self._may_reuse = may_reuse
        self._taken: Counter[str] = Counter()
        self._waiting: deque[_Waiter] = deque()

    @property
    def is_full(self) -> bool:
        """Whether there is none left for any domain."""
        return self._taken.total() >= self._total

    def is_full_for(self, domain: str) -> bool:
        """Whether this domain has as many as it may."""
        return self._taken[domain] >= self._per_domain

    def must_queue(self, domain: str) -> bool:
        """Whether others wait for this domain already."""
        return any(waiter.domain == domain for waiter in self._waiting)

    def take(self, domain: str) -> bool:
        """Take a place, if there is one."""
        if self.is_full or self.is_full_for(domain):
            return False
        self._taken[domain] += 1
        return True

    def give_back(self, domain: str) -> None:
        """A connection is closed."""
        self._taken[domain] -= 1
        if self._taken[domain] <= 0:
            del self._taken[domain]
        self.call_next()

    async def wait(self, domain: str, *, first: bool) -> None:
        """Until it is worth trying again; `first`: this one has waited before, and was overtaken."""
        waiter = _Waiter(domain, asyncio.get_running_loop().create_future())
        if first:
            self._waiting.appendleft(waiter)
        else:
            self._waiting.append(waiter)
        try:
            await waiter.turn
        except asyncio.CancelledError:
            if waiter.turn.done() and not waiter.turn.cancelled():  # the turn goes to the next
                self.call_next()
            raise
        finally:
            if waiter in self._waiting:
                self._waiting.remove(waiter)

    def call_next(self) -> None:
        """Something has become free: the first who can use it may try."""
        for waiter in self._waiting:
            free = not self.is_full and not self.is_full_for(waiter.domain)
            if not waiter.turn.done() and (free or self._may_reuse(waiter.domain)):
                self._waiting.remove(waiter)
                waiter.turn.set_result(None)
                return

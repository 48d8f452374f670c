"""The doctor's reports for the pages: few at a time, each with an end, several who ask for the same one served by one."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from gateway.doctor.report import Report

AT_ONCE: Final = 3
MAX_WAITING: Final = 20
WAIT_S: Final = 60.0
"""A report is waited for so long; the doctor's own limits end it before that."""

FIRST_WAIT_S: Final = 4.0
"""The page of our own domains waits so long for a look at them, and is then shown without."""

Examine = Callable[[str], Awaitable[Report]]
Look = Callable[[], Awaitable[tuple[Report, ...]]]

_T = TypeVar("_T")


class TooManyError(Exception):
    """So many are being made that one more would not end in time."""


class Examinations:
    """Reports of any domain, and of our own.

    Args:
        examine: makes a report.
        look: gives those of our own domains; remembers them for a while.
    """

    def __init__(self, examine: Examine, look: Look) -> None:
        self._examine = examine
        self._look = look
        self._running: dict[str, asyncio.Task[Report]] = {}
        self._looking: asyncio.Task[tuple[Report, ...]] | None = None
        self._places = asyncio.Semaphore(AT_ONCE)

    async def of(self, domain: str) -> Report:
        """A report of this domain.

        Raises:
            TooManyError: so many are being made already.
            TimeoutError: it took too long.
        """
        task = self._running.get(domain)
        if task is None:
            if len(self._running) >= MAX_WAITING:
                raise TooManyError
            task = self._running[domain] = asyncio.create_task(self._make(domain))
            task.add_done_callback(lambda _: self._running.pop(domain, None))
        return await asyncio.shield(task)

    async def ours(self) -> tuple[Report, ...] | None:
        """Those of our own domains; None: they are being looked at."""
        if self._looking is None:
            self._looking = asyncio.create_task(_run(self._look()))
        task = self._looking
        await asyncio.wait({task}, timeout=FIRST_WAIT_S)
        if not task.done():
            return None
        self._looking = None
        return task.result()

    async def close(self) -> None:
        """End what is under way."""
        tasks: list[asyncio.Task[Any]] = [*self._running.values()]
        if self._looking is not None:
            tasks.append(self._looking)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _make(self, domain: str) -> Report:
        async with asyncio.timeout(WAIT_S), self._places:
            return await self._examine(domain)


async def _run(work: Awaitable[_T]) -> _T:
    return await work

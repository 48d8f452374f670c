"""How the domains that we receive for stand in the world's eyes: a report for each, kept for some minutes."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final

from gateway.doctor.case import Tools
from gateway.doctor.examine import examine
from gateway.doctor.report import Report

KEEP_S: Final = 300.0
AT_ONCE: Final = 4
"""Domains looked at at the same time; each asks some fifty questions, most of them cached."""


class Posture:
    """Looks when asked, and not again before the answer is old; several askers cause one look.

    Args:
        local_domains: the config's; those written with a dot, which stand for all below them, are left out.
        tools_for: what to examine a domain with: without a probe, so that no server is connected to.
        now: a clock that never goes back, in seconds.
    """

    def __init__(
        self,
        local_domains: Sequence[str],
        tools_for: Callable[[str], Tools],
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._domains = [domain for domain in local_domains if not domain.startswith(".")]
        self._tools_for = tools_for
        self._now = now
        self._lock = asyncio.Lock()
        self._seen: tuple[float, tuple[Report, ...]] | None = None

    async def look(self) -> tuple[Report, ...]:
        """A report for each domain, in the config's order."""
        async with self._lock:
            if self._seen is None or self._now() - self._seen[0] >= KEEP_S:
                self._seen = (self._now(), await self._examine())
            return self._seen[1]

    async def _examine(self) -> tuple[Report, ...]:
        places = asyncio.Semaphore(AT_ONCE)

        async def one(domain: str) -> Report:
            async with places:
                return await examine(domain, self._tools_for(domain))

        return tuple(await asyncio.gather(*map(one, self._domains)))

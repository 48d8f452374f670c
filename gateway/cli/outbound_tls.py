"""Outbound TLS in a running gateway: the decider, the MTA-STS policies behind it, and the task that renews them."""

import asyncio
import time
from contextlib import suppress
from typing import Final

import structlog

from gateway.cli.wiring import build_decider, build_policies, remote_port
from gateway.dns.stub import StubResolver
from gateway.dns.zone import ZoneResolver
from gateway.ops.config import Settings
from gateway.ops.metrics import Metrics
from gateway.tlspolicy.mta_sts.events import Change, PolicyEvent, Summary
from gateway.tlspolicy.mta_sts.policy import Mode
from gateway.tlspolicy.mta_sts.shelf import PolicyShelf

SUMMARY_EVERY_S: Final = 15.0

_QUIET: Final = frozenset({Change.FETCHED, Change.RENEWED})

_NOTES: Final = {
    Change.WEAKENED: "it was enforced; ask the domain's postmaster if in doubt",
    Change.MX_CHANGED: "still enforced, for other hosts",
    Change.EXPIRED: "it was enforced and could not be renewed; deliveries are no longer bound by it",
    Change.RECORD_GONE: "the policy stands until it expires",
    Change.SHELF_FAILED: "policies in memory stand; a restart would forget those that are not stored",
}


class OutboundTls:
    """Build it on the loop that uses it."""

    def __init__(
        self,
        settings: Settings,
        resolver: StubResolver | ZoneResolver,
        shelf: PolicyShelf | None,
        metrics: Metrics,
    ) -> None:
        self._metrics = metrics
        self._log = structlog.get_logger().bind()
        self._policies = build_policies(settings.outbound_tls, resolver, shelf, self._changed)
        self._summary = Summary(by_mode={}, nearest_end=None, overdue=0)
        self._count_again = 0.0
        self._renewing: asyncio.Task[None] | None = None
        self.decider: Final = build_decider(
            settings.outbound_tls,
            resolver,
            port=remote_port(settings.outbound),
            sts=self._policies,
            observe=metrics.decided,
        )
        if self._policies is not None:
            self._policies.count = metrics.sts_looked_up
            metrics.sts_policies_from(self._summarise)

    def start(self) -> None:
        """Begin to renew."""
        if self._policies is not None:
            self._renewing = asyncio.get_running_loop().create_task(self._policies.run())

    async def close(self) -> None:
        """End the renewing and every fetch; what was fetched is stored before."""
        if self._renewing is not None:
            self._renewing.cancel()
            with suppress(asyncio.CancelledError):
                await self._renewing
        if self._policies is not None:
            await self._policies.aclose()
        await self.decider.aclose()

    def _summarise(self) -> Summary:
        """What the metrics are told; not counted anew at each scrape."""
        now = time.monotonic()
        if self._policies is not None and now >= self._count_again:
            self._summary, self._count_again = self._policies.summary(), now + SUMMARY_EVERY_S
        return self._summary

    def _changed(self, event: PolicyEvent) -> None:
        self._metrics.sts_policy(event.change, event.problem)
        # RFC 8461 §3.3: failed renewals are for the administrator, unless the policy demands nothing
        is_quiet = event.change in _QUIET or (
            event.change is Change.FETCH_FAILED and event.before in {None, Mode.NONE}
        )
        log = self._log.info if is_quiet else self._log.warning
        log(
            "mta_sts.policy",
            change=event.change,
            domain=event.domain or None,
            before=event.before,
            mode=event.mode,
            problem=event.problem,
            detail=event.detail or None,
            note=_NOTES.get(event.change),
        )

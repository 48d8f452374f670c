"""Whether what we depend on answered lately: the metrics, with a memory of the last failures.

A failure counts for half a minute only. A gateway that is not ready gets no mail, so it could never see things get better.
"""

import time
from collections.abc import Callable
from typing import Final

from gateway.dns.resolver import Trouble
from gateway.dns.stub import DnsObservation
from gateway.mail.envelope import Envelope, Listener
from gateway.ops.metrics import Metrics
from gateway.verdict import Answered, Verdict

FAILURE_COUNTS_S: Final = 30.0
DNS_FAILURES: Final = 10
"""So many questions in a row without an answer say that the resolver is down; one says that somebody's domain is."""

_RESOLVER_DOWN: Final = frozenset({Trouble.TIMEOUT, Trouble.REFUSED})


class Health(Metrics):
    """Metrics that also know how things stand. `now`: a clock that never goes back, in seconds."""

    def __init__(
        self, now: Callable[[], float] = time.monotonic, *, workers: int = 1, worker: str = "0"
    ) -> None:
        super().__init__(workers=workers, worker=worker)
        self._now = now
        self._downstream_failure: tuple[float, str] | None = None
        self._dns_failures = 0
        self._last_dns_failure = 0.0

    def downstream_reply(self, command: str, code: int, seconds: float) -> None:
        """The mail server replied, so it is there."""
        self._downstream_failure = None
        super().downstream_reply(command, code, seconds)

    def downstream_failed(self, failure: str) -> None:
        """The mail server could not be used."""
        self._downstream_failure = (self._now(), str(failure))
        super().downstream_failed(failure)

    def dns(self, observation: DnsObservation) -> None:
        """A check asked the DNS."""
        if not observation.cached:
            if observation.outcome in _RESOLVER_DOWN:
                self._dns_failures += 1
                self._last_dns_failure = self._now()
            else:
                self._dns_failures = 0
        super().dns(observation)

    def downstream_state(self) -> tuple[bool, str]:
        """Whether the mail server is usable, and why not."""
        failure = self._downstream_failure
        if failure is None or self._now() - failure[0] > FAILURE_COUNTS_S:
            return True, "no failure lately"
        return False, f"failed: {failure[1]}"

    def dns_state(self) -> tuple[bool, str]:
        """Whether the resolver answers, and why not."""
        if self._dns_failures < DNS_FAILURES or self._now() - self._last_dns_failure > FAILURE_COUNTS_S:
            return True, "no failure lately"
        return False, f"{self._dns_failures} questions in a row without an answer"


class Unwatched(Health):
    """Where there is no `[http]`, nobody can ask, and what a message would be counted by costs it nothing."""

    def session_opened(self, listener: Listener) -> None:
        """Not counted; likewise below."""

    def session_closed(self, listener: Listener, end: str) -> None:  # noqa: D102
        pass

    def command(self, listener: Listener, verb: str, code: int) -> None:  # noqa: D102
        pass

    def message(self, listener: Listener, answered: Answered) -> None:  # noqa: D102
        pass

    def downstream_reply(self, command: str, code: int, seconds: float) -> None:  # noqa: D102
        pass

    def judged(self, verdict: Verdict, envelope: Envelope) -> None:  # noqa: D102
        pass

    def dns(self, observation: DnsObservation) -> None:  # noqa: D102
        pass

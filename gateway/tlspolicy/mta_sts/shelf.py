"""Where policies outlive the process, so that a restart cannot be used to downgrade (RFC 8461 §10.2)."""

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPolicy:
    """A policy as it was fetched.

    Attributes:
        domain: the policy domain, in A-labels.
        identifier: the `id` of the TXT record under which it was fetched.
        text: the policy itself; parsed again when it is read, so that an old version's mistake does not stay.
        fetched: UTC, when it was last confirmed by a fetch.
        expires: UTC, `fetched` + max_age.
    """

    domain: str
    identifier: str
    text: str
    fetched: datetime
    expires: datetime


class PolicyShelf(Protocol):
    """Keeps policies. Raises `ShelfError` where it cannot; the policies in memory then stand."""

    async def get(self, domain: str) -> StoredPolicy | None:
        """The policy of this domain, expired or not."""
        ...

    async def put(self, policy: StoredPolicy) -> None:
        """Keep it, in place of an older one."""
        ...

    async def drop(self, domain: str, now: datetime) -> None:
        """Forget it, unless it holds beyond `now`: another process may have renewed it."""
        ...

    async def all(self) -> list[StoredPolicy]:
        """All of them, for the refresher; soonest to expire first, at most 100,000."""
        ...


class ShelfError(Exception):
    """It cannot be read or written now; the message says why."""


class MemoryShelf:
    """For tests and for commands that keep nothing."""

    def __init__(self) -> None:
        self._policies: dict[str, StoredPolicy] = {}

    async def get(self, domain: str) -> StoredPolicy | None:
        """See `PolicyShelf`."""
        return self._policies.get(domain)

    async def put(self, policy: StoredPolicy) -> None:
        """See `PolicyShelf`."""
        self._policies[policy.domain] = policy

    async def drop(self, domain: str, now: datetime) -> None:
        """See `PolicyShelf`."""
        policy = self._policies.get(domain)
        if policy is not None and policy.expires <= now:
            del self._policies[domain]

    async def all(self) -> list[StoredPolicy]:
        """See `PolicyShelf`."""
        return sorted(self._policies.values(), key=lambda policy: policy.expires)

"""From one DKIM key to the next, without hands and without a moment in which mail is signed by a key that nobody can find.

A rotation is not a procedure but a set of rules, each of which looks at what is: the state file, the clock, the live DNS. So
it may be run as often as one likes, may be interrupted anywhere, and takes each step when its time has come:

1. a key that will soon be old gets a successor, whose record is published ahead of its use;
2. a successor takes over when all new keys of its domain have been seen in the DNS for long enough; the old one stops signing
   in the same write of the state;
3. a key that has long stopped is revoked (RFC 6376 §3.6.1: an empty `p=`) and its private half deleted; later the record, too,
   goes.

No rule acts on a guess: what could not be looked up is waited for. A key that signs is never taken away.
"""

import asyncio
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, Protocol

from gateway.auth.dkim.key import KeyType
from gateway.dns.resolver import Resolver
from gateway.keys.directory import KeyDirectory
from gateway.keys.errors import KeyDirectoryError, PublishError, UnreachableError
from gateway.keys.model import KeyState, ManagedKey
from gateway.keys.sight import Seen, Sight, look_at_key

_NEXT: Final = frozenset({KeyState.MADE, KeyState.PUBLISHED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """When what happens, in seconds; see `[keys]` in the config."""

    publish_ahead_s: int
    keep_old_s: int
    rotate_every_s: int | None


class Step(StrEnum):
    """What a run did, or found that must be done."""

    MADE = "made"
    PUBLISHED = "published"
    ACTIVATED = "activated"
    RETIRED = "retired"
    GONE = "gone"
    FORGOTTEN = "forgotten"
    WAITING = "waiting"  # nothing is wrong: its time has not come, or the DNS has not caught up
    TO_PUBLISH = "to-publish"  # the operator is to add a record: nobody else may write to the zone
    TO_REVOKE = "to-revoke"  # likewise to take one away
    FAULT = "fault"  # something is wrong; nothing was changed by it


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """One line of a run's report.

    Attributes:
        selector: None where it is of the whole domain.
        says: what happened and, where it is the operator's turn, what to do.
    """

    step: Step
    domain: str
    says: str
    selector: str | None = None


class Publisher(Protocol):
    """Who writes key records into zones."""

    async def publish(self, records: Sequence[tuple[ManagedKey, bytes | None]]) -> None:
        """Let each key's name hold this record and no other key; None: no key record at all.

        Raises:
            PublishError: they could not all be written, or another key stands at one of the names.
        """
        ...


def next_selector(now: datetime, algorithm: KeyType, taken: Collection[str]) -> str:
    """A selector that tells when its key was made, and that no key has had: `20261124-rsa`, then `20261124b-rsa`."""
    day = f"{now:%Y%m%d}"
    for letter in ("", *"bcdefghijklmnopqrstuvwxyz"):
        if (selector := f"{day}{letter}-{algorithm}") not in taken:
            return selector
    return f"{day}-{now:%H%M%S}-{algorithm}"


class Rotation:
    """One run over one directory, whose lock the caller holds.

    Args:
        directory: the keys.
        schedule: when what happens.
        resolver: the live DNS, as the world sees it.
        publisher: who writes records; None: the operator does.
        now: UTC.
    """

    def __init__(
        self,
        directory: KeyDirectory,
        schedule: Schedule,
        *,
        resolver: Resolver,
        publisher: Publisher | None,
        now: datetime,
    ) -> None:
        self._directory = directory
        self._schedule = schedule
        self._resolver = resolver
        self._publisher = publisher
        self._now = now.replace(microsecond=0)
        self._keys = {key.name: key for key in directory.read()}
        self._notes: list[Note] = []
        self._is_unreachable = False  # the publisher: it is not waited for once more for every domain

    async def run(self, domains: Sequence[str] = (), *, start: bool = False) -> tuple[Note, ...]:
        """Take every step whose time has come.

        Args:
            domains: only these; none: all that have keys.
            start: begin the next change of keys now, however young the keys are; where one is under way, nothing more.

        Raises:
            KeyDirectoryError: the directory cannot be written; what was done before is kept.
        """
        for domain in domains or sorted({key.domain for key in self._keys.values()}):
            self._begin(domain, start=start)
            await self._publish(domain)
            seen = await self._look(domain)
            self._note_sights(domain, seen)
            self._activate(domain, seen)
            self._end(domain, seen)
        return tuple(self._notes)

    # What is known

    def _of(self, domain: str, *states: KeyState) -> list[ManagedKey]:
        """The domain's keys in these states, in all where none is named."""
        return [
            key for key in self._keys.values() if key.domain == domain and (not states or key.state in states)
        ]

    def _has_passed(self, since: datetime | None, seconds: int) -> bool:
        return since is not None and self._now >= since + timedelta(seconds=seconds)

    def _is_over(self, key: ManagedKey) -> bool:
        """Whether no mail that it signed can still be under way."""
        return self._has_passed(key.retiring, self._schedule.keep_old_s)

    def _note(self, step: Step, key: ManagedKey, says: str) -> None:
        self._notes.append(Note(step=step, domain=key.domain, selector=key.selector, says=says))

    def _save(self, *changed: ManagedKey) -> None:
        """Write the state; a step that could not be written has not been taken."""
        keys = self._keys | {key.name: key for key in changed}
        self._directory.write(tuple(keys.values()))
        self._keys = keys

    # The rules

    def _begin(self, domain: str, *, start: bool) -> None:
        """Rule 1: a successor for each key that signs, in time."""
        active = self._of(domain, KeyState.ACTIVE)
        if not (start or self._is_due(active)):
            return
        under_way = {key.algorithm for key in self._of(domain, *_NEXT)}
        for old in active:
            if old.algorithm in under_way:
                continue
            taken = self._directory.selectors(domain)
            selector = next_selector(self._now, old.algorithm, taken)
            try:
                key = self._directory.make_key(
                    domain, selector, old.algorithm, bits=old.key_record.bits, now=self._now
                )
            except KeyDirectoryError as error:
                self._note(Step.FAULT, old, f"no successor could be made: {error}")
                continue
            self._save(key)
            self._note(Step.MADE, key, f"made as the successor of {old.selector}")

    def _is_due(self, active: Sequence[ManagedKey]) -> bool:
        every = self._schedule.rotate_every_s
        if every is None:
            return False
        return any(self._has_passed(key.active, every - self._schedule.publish_ahead_s) for key in active)

    async def _publish(self, domain: str) -> None:
        """Let the zone hold what should be seen of each key."""
        if self._publisher is None or self._is_unreachable:
            return
        try:
            await self._publisher.publish([(key, self._wanted_record(key)) for key in self._of(domain)])
        except PublishError as error:
            self._is_unreachable = isinstance(error, UnreachableError)
            self._notes.append(Note(step=Step.FAULT, domain=domain, says=str(error)))

    def _wanted_record(self, key: ManagedKey) -> bytes | None:
        if self._has_passed(key.gone, self._schedule.keep_old_s):
            return None
        return key.revoked_record if key.gone or self._is_over(key) else key.record

    async def _look(self, domain: str) -> dict[str, Seen]:
        keys = self._of(domain)
        seen = await asyncio.gather(*(look_at_key(self._resolver, key.name, key.key_record) for key in keys))
        return {key.name: one for key, one in zip(keys, seen, strict=True)}

    def _note_sights(self, domain: str, seen: dict[str, Seen]) -> None:
        """Take note of new keys that have come into sight, and of old ones that have gone out of it."""
        for key in self._of(domain):
            sight = seen[key.name]
            match key.state:
                case KeyState.MADE if sight.sight is Sight.VISIBLE:
                    self._save(replace(key, published=self._now))
                    self._note(Step.PUBLISHED, key, "its record is seen in the DNS")
                case KeyState.MADE | KeyState.PUBLISHED if sight.sight is not Sight.VISIBLE:
                    self._note_unseen(key, sight)
                case KeyState.ACTIVE if sight.sight not in {Sight.VISIBLE, Sight.UNKNOWN}:
                    self._note(Step.FAULT, key, f"it signs, but at {key.name} stands {sight.found}")
                case KeyState.ACTIVE if sight.sight is Sight.UNKNOWN:
                    self._note(
                        Step.WAITING, key, f"whether its record is still seen is not known: {sight.found}"
                    )
                case _:
                    pass

    def _note_unseen(self, key: ManagedKey, sight: Seen) -> None:
        if sight.sight is Sight.OTHER:
            self._note(Step.FAULT, key, f"at {key.name} stands {sight.found}; put its own record there")
        elif self._publisher is None and sight.sight is not Sight.UNKNOWN:
            self._note(Step.TO_PUBLISH, key, f"publish its record: `gateway dns {key.domain}` prints it")
        else:
            self._note(Step.WAITING, key, f"its record is not seen yet: {sight.found}")

    def _activate(self, domain: str, seen: dict[str, Seen]) -> None:
        """Rule 2: all new keys of the domain take over together, and what they replace stops in the same moment."""
        new, old = self._of(domain, *_NEXT), self._of(domain, KeyState.ACTIVE)
        if not new or any(seen[key.name].sight is not Sight.VISIBLE or not key.published for key in new):
            return
        ahead = (
            self._schedule.publish_ahead_s if old else 0
        )  # nothing signs yet: there is nothing to wait for
        if waiting := [key for key in new if not self._has_passed(key.published, ahead)]:
            for key in waiting:
                until = (key.published or self._now) + timedelta(seconds=ahead)
                self._note(Step.WAITING, key, f"takes over from {until:%Y-%m-%d %H:%M} UTC on")
            return
        if faults := list(self._unusable(new)):
            self._notes += faults
            return
        replaced = [key for key in old if key.algorithm in {one.algorithm for one in new}]
        self._save(
            *(replace(key, active=self._now) for key in new),
            *(replace(key, retiring=self._now) for key in replaced),
        )
        for key in new:
            self._note(Step.ACTIVATED, key, "signs from the next reload on")
        for key in replaced:
            self._note(Step.RETIRED, key, "signs no more; its record stays for mail that is under way")

    def _unusable(self, keys: Sequence[ManagedKey]) -> Iterator[Note]:
        for key in keys:
            try:
                self._directory.load(key)
            except KeyDirectoryError as error:
                yield Note(
                    step=Step.FAULT,
                    domain=key.domain,
                    selector=key.selector,
                    says=f"cannot take over: {error}",
                )

    def _end(self, domain: str, seen: dict[str, Seen]) -> None:
        """Rule 3: a key that has stopped for long is revoked, then forgotten."""
        for key in self._of(domain, KeyState.RETIRING, KeyState.GONE):
            sight = seen[key.name].sight
            is_taken_back = sight in {Sight.REVOKED, Sight.ABSENT}
            if key.state is KeyState.RETIRING and self._is_over(key):
                if is_taken_back:
                    self._save(replace(key, gone=self._now))
                    self._note(Step.GONE, key, "its record is taken back and its private key deleted")
                elif self._publisher is None:
                    self._note(
                        Step.TO_REVOKE, key, f"take the record at {key.name} away, or leave its p= empty"
                    )
                else:
                    self._note(Step.WAITING, key, "its record is still seen; it is being taken back")
            if self._keys[key.name].gone is not None:
                self._directory.delete_file(key)
            if self._has_passed(key.gone, self._schedule.keep_old_s) and sight is Sight.ABSENT:
                self._forget(key)

    def _forget(self, key: ManagedKey) -> None:
        kept = {name: one for name, one in self._keys.items() if name != key.name}
        self._directory.write(tuple(kept.values()))
        self._keys = kept
        self._note(Step.FORGOTTEN, key, "its record is gone, too")

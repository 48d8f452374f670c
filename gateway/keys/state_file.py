"""The state of all keys as one TOML text that a person can read, and, with care, mend.

    [[key]]
    domain = "example.net"
    selector = "20261124-rsa"
    algorithm = "rsa"
    state = "active"
    created = 2026-11-24T06:00:00Z
    published = 2026-11-24T06:00:05Z
    active = 2026-11-25T06:00:00Z
    public = "MIIBIjANBg…"

`state` repeats what the times say, for the reader's eye; where it contradicts them, somebody has edited one and not the other,
and nothing is guessed.
"""

import re
import tomllib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from gateway.auth.dkim.key import KeyType, parse_key
from gateway.auth.dkim.tags import DkimError
from gateway.keys.model import MAX_NAME_CHARACTERS, STEPS, KeyState, ManagedKey
from gateway.mail.errors import ParseError

_HEAD: Final = """\
# Kept by `gateway keys`; `gateway keys list` shows it. Times are UTC. made → published → active → retiring → gone
"""
_LABELS: Final = re.compile(
    r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9])?(?:\.[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9])?)*"
)
_BASE64: Final = re.compile(r"[A-Za-z0-9+/]+={0,2}")
_UTC: Final = "+00:00"
_TEXTS: Final = ("domain", "selector", "algorithm", "state", "public")
_TIMES: Final = ("created", *(step.value for step in STEPS))


class StateError(ParseError):
    """A text that is no state file; the message says where and why."""


def parse_state(text: str) -> tuple[ManagedKey, ...]:
    """Read the state of all keys.

    Raises:
        StateError: the first thing in it that cannot be right.
    """
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        raise StateError(f"is not TOML: {error}") from error
    entries = table.pop("key", [])
    if table or not isinstance(entries, list):
        raise StateError("holds something else than [[key]] tables")
    keys = tuple(_key(entry, number) for number, entry in enumerate(entries, 1))
    names = [key.name for key in keys]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise StateError(f"has {twice} twice")
    return keys


def _key(entry: Any, number: int) -> ManagedKey:
    place = f"[[key]] number {number}"
    if not isinstance(entry, dict):
        raise StateError(f"{place} is not a table")
    _check_types(entry, place)
    try:
        times = {name: entry[name].astimezone(UTC) for name in _TIMES if name in entry}
    except OverflowError as error:
        raise StateError(f"{place} has a time that is in no calendar") from error
    key = ManagedKey(
        domain=entry["domain"],
        selector=entry["selector"],
        algorithm=KeyType(entry["algorithm"]),
        public=entry["public"],
        **times,
    )
    _check(key, entry["state"], place)
    return key


def _check_types(entry: dict[str, Any], place: str) -> None:
    """Whether everything is there, and is text or a time as it should be."""
    if unknown := sorted(set(entry) - {*_TEXTS, *_TIMES}):
        raise StateError(f"{place} has an unknown key: {unknown[0][:40]!r}")
    for name in _TEXTS:
        if not isinstance(entry.get(name), str):
            raise StateError(f"{place} has no text {name}")
    for name in _TIMES:
        if name in entry and not (isinstance(entry[name], datetime) and entry[name].tzinfo is not None):
            raise StateError(f"{place} has a time {name} that is not like 2026-11-24T06:00:00Z")
    if "created" not in entry:
        raise StateError(f"{place} has no time created")
    if entry["algorithm"] not in frozenset(KeyType):
        raise StateError(f'{place} has an algorithm that is neither "rsa" nor "ed25519"')
    if not _BASE64.fullmatch(entry["public"]):
        raise StateError(f"{place} has a public key that is not base64")


def _check(key: ManagedKey, state: str, place: str) -> None:
    """What the single values do not show: names that can be, steps in order, a state that the times bear out."""
    if not is_managed_name(key):  # the file's name is made of it
        raise StateError(f"{place} has a domain or selector that cannot be")
    times = [key.time_of(step) for step in (KeyState.MADE, *STEPS)]
    taken = [time for time in times if time is not None]
    if times[: len(taken)] != taken or sorted(taken) != taken:
        raise StateError(f"{place} has a step before an earlier one")
    if state != key.state:
        raise StateError(f"{place} says state = {state[:20]!r}, but its times say {str(key.state)!r}")
    try:
        parse_key(key.record)
    except DkimError as error:
        raise StateError(f"{place} has a public key that cannot be: {error}") from error


def is_managed_name(key: ManagedKey) -> bool:
    """Whether domain and selector can be, in the DNS and as a file's name."""
    labels = _LABELS.fullmatch(key.domain) and _LABELS.fullmatch(key.selector)
    return bool(labels) and len(key.name) <= MAX_NAME_CHARACTERS


def format_state(keys: Sequence[ManagedKey]) -> str:
    """The text of these keys, in the order given."""
    return "\n".join([_HEAD, *("\n".join([*_lines(key), ""]) for key in keys)])


def _lines(key: ManagedKey) -> Iterator[str]:
    yield "[[key]]"
    yield f'domain = "{key.domain}"'
    yield f'selector = "{key.selector}"'
    yield f'algorithm = "{key.algorithm}"'
    yield f'state = "{key.state}"'
    yield f"created = {key.created.isoformat().removesuffix(_UTC)}Z"
    for step in STEPS:
        if time := key.time_of(step):
            yield f"{step} = {time.isoformat().removesuffix(_UTC)}Z"
    yield f'public = "{key.public}"'

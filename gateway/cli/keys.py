"""`gateway keys`: make DKIM keys, show them, and take the steps from one to the next."""

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from rich.text import Text

from gateway.auth.dkim.key import KeyType
from gateway.cli.choices import KeyChoice
from gateway.cli.errors import UsageFault
from gateway.cli.selector import selector_from
from gateway.cli.show import terminal
from gateway.cli.wiring import build_resolver, rotation_schedule
from gateway.dns.stub import StubResolver
from gateway.dns.zone import ZoneError, ZoneResolver
from gateway.keys.directory import KeyDirectory
from gateway.keys.making import Order, make_keys
from gateway.keys.model import STEPS, KeyState, ManagedKey
from gateway.keys.rotation import Note, Rotation, Step
from gateway.mail.address import parse_domain
from gateway.mail.errors import ParseError
from gateway.ops.config import KeysSettings, Settings
from gateway.ops.config.files import load_secret
from gateway.ops.config.load import load_config
from gateway.ops.config.values import is_domain
from gateway.ops.text import printable
from gateway.publish.key_records import KeyPublisher
from gateway.publish.master_file import format_record
from gateway.publish.update import Primary

_STATE_STYLE: Final = {
    KeyState.MADE: "yellow",
    KeyState.PUBLISHED: "cyan",
    KeyState.ACTIVE: "bold green",
    KeyState.RETIRING: "dim",
    KeyState.GONE: "dim",
}
_EXIT_STATUS: Final = {Step.TO_PUBLISH: 10, Step.TO_REVOKE: 10, Step.FAULT: 12}
"""Of several notes, the highest; all others are 0."""

_STEP_STYLE: Final = {Step.TO_PUBLISH: "yellow", Step.TO_REVOKE: "yellow", Step.FAULT: "red"}
_STEP_WIDTH: Final = max(len(step) for step in Step)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKeys:
    """What `keys new` was asked for."""

    config: Path
    domain: str
    selector: str | None
    algorithm: KeyChoice
    bits: int
    as_json: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RotateKeys:
    """What `keys rotate` was asked for."""

    config: Path
    domain: str | None = None
    publish: bool = False
    start: bool = False
    as_json: bool = False


def run_keys_new(request: NewKeys, *, now: datetime | None = None) -> int:
    """Make the keys and say what is to be done with them.

    Raises:
        UsageFault, ConfigError, KeyDirectoryError: they cannot be made.
    """
    directory = key_directory(_keys_settings(read_settings(request.config), request.config))
    order = Order(
        domain=read_domain(request.domain),
        algorithms=list(KeyType) if request.algorithm is KeyChoice.BOTH else [KeyType(request.algorithm)],
        bits=request.bits,
        selector=None if request.selector is None else selector_from(request.selector),
    )
    with directory.locked():
        made = make_keys(directory, order, now=now or datetime.now(UTC))
    if request.as_json:
        _write_json({"keys": [_as_object(key, directory) for key in made]})
        return 0
    for key in made:
        print(f"; {directory.path_of(key)}")
        for line in format_record(f"{key.name}. IN TXT", key.record):
            print(line)
    print("\n; They do not sign yet. Publish these records, or let `gateway keys rotate --publish` do it;")
    print("; `gateway keys rotate` takes them into use when it sees them in the DNS.")
    return 0


def run_keys_list(config: Path, *, as_json: bool = False) -> int:
    """Show every key.

    Raises:
        UsageFault, ConfigError, KeyDirectoryError: the directory cannot be read.
    """
    directory = key_directory(_keys_settings(read_settings(config), config))
    keys = directory.read()
    if as_json:
        for key in keys:
            _write_json(_as_object(key, directory))
        return 0
    console = terminal()
    width = max((len(key.name) for key in keys), default=0)
    for key in keys:
        since = key.time_of(key.state)
        console.print(
            Text.assemble(
                (f"{key.state:<{_STEP_WIDTH}}", _STATE_STYLE[key.state]),
                f"{key.name:<{width}}  {key.algorithm:<7}  ",
                (f"since {since:%Y-%m-%d %H:%M} UTC", "dim"),
            )
        )
    for path in directory.orphans():
        terminal(to_stderr=True).print(
            f"{printable(str(path))}: is not in the state file; delete it unless it was put there on purpose",
            style="yellow",
        )
    return 0


def run_keys_rotate(request: RotateKeys, *, now: datetime | None = None) -> int:
    """Take every step whose time has come, and tell of it.

    Raises:
        UsageFault, ConfigError, KeyDirectoryError: nothing could be done.
    """
    settings = read_settings(request.config)
    keys = _keys_settings(settings, request.config)
    directory = key_directory(keys)
    domains = [] if request.domain is None else [read_domain(request.domain)]
    known = {key.domain for key in directory.read()}
    if missing := [domain for domain in domains if domain not in known]:
        raise UsageFault(f"there is no key for {missing[0]}: `gateway keys new {missing[0]}` makes one")
    publisher = KeyPublisher(primary_of(settings)) if request.publish else None

    async def rotate() -> tuple[Note, ...]:
        resolver = live_resolver(settings)
        try:
            rotation = Rotation(
                directory,
                rotation_schedule(keys),
                resolver=resolver,
                publisher=publisher,
                now=now or datetime.now(UTC),
            )
            return await rotation.run(domains, start=request.start)
        finally:
            if isinstance(resolver, StubResolver):
                await resolver.aclose()

    with directory.locked():
        notes = asyncio.run(rotate())
    _show_notes(notes, as_json=request.as_json)
    return max((_EXIT_STATUS.get(note.step, 0) for note in notes), default=0)


def _show_notes(notes: Sequence[Note], *, as_json: bool) -> None:
    console = terminal()
    for note in notes:
        if as_json:
            _write_json(asdict(note))
            continue
        name = note.domain if note.selector is None else f"{note.domain}/{note.selector}"
        console.print(
            Text.assemble(
                (f"{note.step:<{_STEP_WIDTH}}", _STEP_STYLE.get(note.step, "green")),
                f" {name}: {printable(note.says)}",
            )
        )


def _as_object(key: ManagedKey, directory: KeyDirectory) -> dict[str, object]:
    """A key for programs; keys are only ever added; absent is null."""
    times = {step.value: key.time_of(step) for step in STEPS}
    return {
        "domain": key.domain,
        "selector": key.selector,
        "algorithm": key.algorithm,
        "state": key.state,
        "created": key.created.isoformat(),
        **{step: None if time is None else time.isoformat() for step, time in times.items()},
        "name": key.name,
        "record": key.record.decode("ascii"),
        "file": str(directory.path_of(key)),
    }


def _write_json(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")


# What the commands about keys and records share


def read_settings(config: Path) -> Settings:
    """The config, without the files that it names: a key that cannot be read must not keep one from mending it.

    Raises:
        ConfigError: it cannot be used.
    """
    return load_config(config, os.environ, look_at_files=False).settings


def read_domain(text: str) -> str:
    """A domain from the command line, in A-labels.

    Raises:
        UsageFault: it is none.
    """
    try:
        domain = parse_domain(text.removesuffix("."))
    except ParseError:
        raise UsageFault(f"{printable(text, 80)} is no domain: write it like example.net") from None
    if not is_domain(domain):
        raise UsageFault(f"{printable(text, 80)} is no domain of mail: write it like example.net")
    return domain


def _keys_settings(settings: Settings, config: Path) -> KeysSettings:
    if settings.keys is None:
        raise UsageFault(
            f"{config}: there is no [keys] section; add it: it says where keys are kept, and lets them sign"
        )
    return settings.keys


def key_directory(keys: KeysSettings) -> KeyDirectory:
    """The managed directory."""
    return KeyDirectory(keys.directory)


def live_resolver(settings: Settings) -> StubResolver | ZoneResolver:
    """The DNS as the config has it."""
    try:
        return build_resolver(settings.dns)
    except OSError as error:
        raise UsageFault(f"{settings.dns.zone_file}: cannot be read: {error.strerror}") from None
    except ZoneError as error:
        raise UsageFault(
            "\n".join(f"{settings.dns.zone_file}:{fault.line}: {fault.message}" for fault in error.faults)
        ) from None


def primary_of(settings: Settings) -> Primary:
    """The server that takes our updates.

    Raises:
        UsageFault: the config names none, or its secret cannot be read.
        PublishError: its TSIG key cannot be one.
    """
    update = settings.dns_update
    if update is None:
        raise UsageFault(
            "--publish needs a section [dns_update]: the zone's primary server and a TSIG key that may update it"
        )
    path = update.tsig_secret_file
    try:
        secret = load_secret(path)
    except OSError as error:
        raise UsageFault(f"{path}: cannot be read: {error.strerror or error}; see [dns_update]") from None
    except ValueError:
        raise UsageFault(f"{path}: holds no TSIG secret: write it alone, in base64") from None
    return Primary(update, secret)

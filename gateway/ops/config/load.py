"""Reading the config file: `Settings`, or a `ConfigError` with everything that is wrong. Nothing is opened or bound here."""

import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import ValidationError

from gateway.ops.config import files
from gateway.ops.config.environment import overlay
from gateway.ops.config.faults import ConfigError, Fault, Location, explain, key_path, shown
from gateway.ops.config.models import (
    ArcSettings,
    DnsSettings,
    DnsUpdateSettings,
    HttpSettings,
    InboundSettings,
    KeysSettings,
    MtaStsSettings,
    OutboundSettings,
    OutboundTlsSettings,
    PolicySettings,
    Section,
    Settings,
    SigningSettings,
    SmtpSettings,
    SubmissionSettings,
    TraceSettings,
)

MAX_FILE_BYTES: Final = 4 * 1024 * 1024

NOT_YET: Final = ("reports",)
"""Keys of the design that this release does not have: present, they are a fault, never silently nothing."""

_WITH_TLS: Final[Mapping[str, type[SmtpSettings] | type[MtaStsSettings]]] = {
    "inbound": InboundSettings,
    "submission": SubmissionSettings,
    "outbound": OutboundSettings,
    "mta_sts": MtaStsSettings,
}
"""Sections that name a certificate."""

_WITH_FILES: Final[Sequence[tuple[str, type[Section], Callable[[Any], Iterable[files.FileFault]]]]] = (
    ("dns", DnsSettings, files.check_zone),
    ("outbound_tls", OutboundTlsSettings, files.check_authorities),
    ("arc", ArcSettings, files.check_seal),
    ("policy", PolicySettings, files.check_rules),
    ("keys", KeysSettings, files.check_keys),
    ("dns_update", DnsUpdateSettings, files.check_update),
    ("trace", TraceSettings, files.check_hash_key),
    ("http", HttpSettings, files.check_token),
)
"""Sections that name other files, and who looks at them."""

S = TypeVar("S", bound=Section)

_TOML_PLACE: Final = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")
_TABLE: Final = re.compile(r"\s*\[\[?\s*([A-Za-z0-9_.-]+)\s*\]\]?")
_KEY: Final = re.compile(r"\s*([A-Za-z0-9_.-]+)\s*=")


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A usable config, and what the operator should nevertheless know."""

    settings: Settings
    warnings: tuple[Fault, ...] = ()


def load_settings(path: Path | None, environ: Mapping[str, str], *, now: datetime | None = None) -> Settings:
    """Read the file at `path` (None: the environment alone) with the environment's `GATEWAY_…` over it.

    Raises:
        ConfigError: with every fault.
    """
    return load_config(path, environ, now=now).settings


def load_config(
    path: Path | None, environ: Mapping[str, str], *, now: datetime | None = None, look_at_files: bool = True
) -> Loaded:
    """As `load_settings`, with the warnings.

    `look_at_files`: whether the files that the config names are read; a command that needs none of them need not be able to.

    Raises:
        ConfigError: with every fault.
    """
    document = _Document.read(path)
    merged, origins = overlay(document.table, environ, Settings)
    report = _Report(document, origins)
    faults = list(report.not_yet(merged))
    context = {"directory": path.parent if path else Path()}
    settings: Settings | None = None
    try:
        settings = Settings.model_validate(merged, context=context)
    except ValidationError as error:
        faults += report.invalid(error, merged)
    about_files: list[files.FileFault] = []
    if look_at_files:
        about_files += _check_files(settings, merged, context, now or files.utc_now())
    faults += (report.about_file(one, merged) for one in about_files if not one.is_warning)
    if faults or settings is None:
        raise ConfigError(sorted(faults, key=_place))
    warnings = tuple(report.about_file(one, merged) for one in about_files if one.is_warning)
    return Loaded(settings=settings, warnings=warnings)


def _place(fault: Fault) -> tuple[bool, int]:
    """The order of the file; what has no line, and other files and the environment, last."""
    return fault.line is None, fault.line or 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Document:
    """The file as TOML, and its text for finding lines again."""

    name: str
    text: str
    table: dict[str, Any]

    @classmethod
    def read(cls, path: Path | None) -> "_Document":
        if path is None:
            return cls(name="environment", text="", table={})
        name = str(path)
        try:
            with path.open("rb") as file:
                content = file.read(MAX_FILE_BYTES + 1)
            if len(content) > MAX_FILE_BYTES:
                raise _whole_file(
                    name, f"is over {MAX_FILE_BYTES} bytes", "give the gateway's own config file"
                )
            text = content.decode("utf-8")
            return cls(name=name, text=text, table=tomllib.loads(text))
        except FileNotFoundError:
            raise _whole_file(
                name, "there is no such file", "`gateway config example` prints one to start from"
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            raise _unreadable(name, error) from error

    def line_of(self, location: Location) -> int | None:
        """The line of a key, or else of the section that it is missing in; None where neither is found."""
        wanted = ".".join(str(step) for step in location if isinstance(step, str))
        parent = wanted.rpartition(".")[0]
        nth = location[1] if len(location) > 1 and isinstance(location[1], int) else 0
        table, table_line = "", None
        seen: Counter[str] = Counter()
        for number, line in enumerate(self.text.splitlines(), 1):
            if header := _TABLE.match(line):
                table = header[1]
                if table in {wanted, parent} and seen[table] == nth:
                    table_line = number
                seen[table] += 1
                continue
            key = _KEY.match(line)
            named = key and (f"{table}.{key[1]}" if table else key[1])
            if named == wanted and (not table or seen[table] == nth + 1):
                return number
        return table_line


def _whole_file(name: str, what: str, remedy: str, line: int | None = None) -> ConfigError:
    return ConfigError([Fault(source=name, line=line, key="", what=what, remedy=remedy)])


def _unreadable(name: str, error: OSError | ValueError | RecursionError) -> ConfigError:
    match error:
        case tomllib.TOMLDecodeError():
            place = _TOML_PLACE.search(str(error))
            what = f"is not TOML: {_TOML_PLACE.sub('', str(error))}"
            line = int(place[1]) if place and place[1] else None
            return _whole_file(name, what, 'text stands in quotes, a list in brackets: key = ["…"]', line)
        case UnicodeDecodeError():
            return _whole_file(name, "is not in UTF-8", "save it as UTF-8")
        case PermissionError():
            return _whole_file(name, "may not be read", "give the gateway's user the right to read it")
        case OSError():
            return _whole_file(name, f"cannot be read: {error.strerror or error}", "give the path of a file")
        case _:
            return _whole_file(
                name, "is not TOML: it is nested too deeply, or a number is too long", "write it more simply"
            )


class _Report:
    """Turns what was found into faults that name file, line, key and value."""

    def __init__(self, document: _Document, origins: Mapping[Location, str]) -> None:
        self._document = document
        self._origins = origins

    def _fault(self, location: Location, value: object, what: str, remedy: str) -> Fault:
        origin = next(
            (
                self._origins[location[:n]]
                for n in range(len(location), 0, -1)
                if location[:n] in self._origins
            ),
            None,
        )
        key = key_path(location)
        return Fault(
            source=f"environment variable {origin}" if origin else self._document.name,
            line=None if origin else self._document.line_of(location),
            key=key,
            value="" if value is None else shown(key, value),
            what=what,
            remedy=remedy,
        )

    def not_yet(self, merged: dict[str, Any]) -> Iterator[Fault]:
        """Take the keys of later releases out, with a fault for each."""
        for name in NOT_YET:
            section, _, key = name.partition(".")
            holder = merged.get(section) if key else merged
            if isinstance(holder, dict) and (key or section) in holder:
                del holder[key or section]
                yield self._fault(
                    tuple(name.split(".")),
                    None,
                    "is not in this release",
                    "take it out; a later one will have it",
                )

    def invalid(self, error: ValidationError, merged: Mapping[str, Any]) -> Iterator[Fault]:
        """One fault for each of pydantic's."""
        for one in error.errors(include_url=False):
            location = one["loc"]
            if location == ("hostname",) and "hostname" not in merged:
                continue  # it was taken from authserv_id, which has the same fault
            if location == ("tls_policy",) and "tls_policy" not in merged:
                location = ()  # no door at all: not this one's fault
            what, remedy = explain(one, Settings)
            yield self._fault(location, _find(merged, location), what, remedy)

    def about_file(self, found: files.FileFault, merged: Mapping[str, Any]) -> Fault:
        """A fault of a file that the config names."""
        place = () if found.index is None else (found.index,)
        location: Location = (found.section, *place, found.key)
        if not found.file:
            return self._fault(location, _find(merged, location), found.what, found.remedy)
        return Fault(source=found.file, key="", what=found.what, remedy=found.remedy)


def _find(merged: object, location: Location) -> object:
    """The value as it was given; None where nothing was."""
    found = merged
    for step in location:
        match found, step:
            case dict(), str():
                found = found.get(step)
            case list(), int() if step < len(found):
                found = found[step]
            case _:
                return None
    return None if found is merged else found


def _check_files(
    settings: Settings | None, merged: Mapping[str, Any], context: Mapping[str, object], now: datetime
) -> Iterable[files.FileFault]:
    """Look at every file named in a section that is itself in order, even if another section is not."""
    for name, with_tls in _WITH_TLS.items():
        tls = getattr(settings, name) if settings else _section(with_tls, merged.get(name), context)
        if tls is not None:
            yield from files.check_tls(name, tls, now)
    yield from files.check_signing(list(_signing(settings, merged, context)))
    for name, model, check in _WITH_FILES:
        absent: Mapping[str, Any] | None = None if Settings.model_fields[name].default is None else {}
        section = getattr(settings, name) if settings else _section(model, merged.get(name, absent), context)
        if section is not None:
            yield from check(section)
    if settings is not None and settings.mta_sts is not None:
        yield from files.check_policy_host(settings.mta_sts, settings)


def _signing(
    settings: Settings | None, merged: Mapping[str, Any], context: Mapping[str, object]
) -> Iterator[tuple[int, SigningSettings]]:
    """Each `[[signing]]` section that is itself in order, with its place."""
    if settings is not None:
        yield from enumerate(settings.signing)
        return
    given = merged.get("signing")
    for index, one in enumerate(given if isinstance(given, list) else ()):
        section = _section(SigningSettings, one, context)
        if section is not None:
            yield index, section


def _section(model: type[S], given: object, context: Mapping[str, object]) -> S | None:
    try:
        return model.model_validate(given, context=dict(context))
    except ValidationError:
        return None

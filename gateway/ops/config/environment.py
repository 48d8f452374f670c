"""Environment variables over the file: `GATEWAY_DNS__SERVERS=127.0.0.1:53` is `servers` in `[dns]`.

Deviation: not by pydantic-settings. It drops what it does not know, and it wants JSON; here a misspelt variable is a fault
like a misspelt key, and every fault names the variable that it came from.
"""

import tomllib
from collections.abc import Mapping
from typing import Any, Final, get_origin

from pydantic import BaseModel

from gateway.ops.config.faults import Location, field_at, section_model

PREFIX: Final = "GATEWAY_"
NESTED: Final = "__"


def overlay(
    file: Mapping[str, Any],
    environ: Mapping[str, str],
    model: type[BaseModel],
) -> tuple[dict[str, Any], dict[Location, str]]:
    """The file's values with those of the environment over them, and which keys came from which variable.

    A variable without `__` is ours only if it names a key: `GATEWAY_PORT` may be another program's (Kubernetes makes such
    names for every service).
    """
    merged = {key: dict(value) if isinstance(value, dict) else value for key, value in file.items()}
    origins: dict[Location, str] = {}
    for name in sorted(environ):
        location: Location = tuple(name.removeprefix(PREFIX).lower().split(NESTED))
        if not name.startswith(PREFIX) or (len(location) == 1 and not _is_single(location, model)):
            continue
        holder = merged
        for step in location[:-1]:
            inner = holder.setdefault(str(step), {})
            if not isinstance(inner, dict):
                break
            holder = inner
        else:
            holder[str(location[-1])] = _value(environ[name], location, model)
            origins[location] = name
    return merged, origins


def _is_single(location: Location, model: type[BaseModel]) -> bool:
    field = field_at(location, model)
    return field is not None and section_model(field.annotation) is None


def _value(text: str, location: Location, model: type[BaseModel]) -> object:
    """A TOML value where it reads as one, else text; commas make a list where a list belongs."""
    field = field_at(location, model)
    is_list = field is not None and get_origin(field.annotation) is tuple
    try:
        table = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        table = {}
    value: object = table["value"] if len(table) == 1 else text
    if not is_list or isinstance(value, list):
        return value
    return [one.strip() for one in text.split(",") if one.strip()]

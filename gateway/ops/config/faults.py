"""What is said to the operator about a config file that cannot be used: everything at once, each with its remedy."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, Final, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from gateway.ops.text import printable

MAX_VALUE_CHARACTERS: Final = 80
MAX_FAULT_CHARACTERS: Final = 2_000
_SECRET_KEY: Final = re.compile(r"pass|secret|token|credential", re.IGNORECASE)
_URL_PASSWORD: Final = re.compile(r"(://[^/@:\s]*):[^/@\s]*@")


_PLAIN: Final = {
    "bool_type": ("is not true or false", "write true or false, without quotes"),
    "int_type": ("is not a whole number", "write digits, without quotes"),
    "int_from_float": ("is not a whole number", "write digits, without quotes"),
    "float_type": ("is not a number", "write a number, without quotes: 30 or 0.5"),
    "finite_number": ("is not a number", "write a number, without quotes: 30 or 0.5"),
    "string_type": ("is not text", "write it in quotes"),
    "path_type": ("is not text", "write the path in quotes"),
    "tuple_type": ("is not a list", 'write a list: ["…", "…"]'),
    "too_short": ("is empty", "give at least one"),
}
"""What pydantic's plain errors are in an operator's words: what is wrong, and the remedy."""

_LIMITS: Final = {
    "greater_than": ("gt", "is too small", "it must be more than {:g}"),
    "greater_than_equal": ("ge", "is too small", "it must be at least {:g}"),
    "less_than_equal": ("le", "is too large", "it may be at most {:.15g}"),
}
"""The same for limits, which pydantic names beside the error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing wrong.

    Attributes:
        source: the file, or the environment variable, that the value came from.
        line: in the file, counted from 1; None where it is not known.
        key: where in the config: `inbound.listen[0]`; empty for the file as a whole.
        value: what stands there, printable, cut, secrets masked; empty where nothing does.
        what: what is wrong with it.
        remedy: what to do about it; empty where `what` says it.
    """

    source: str
    key: str
    what: str
    remedy: str = ""
    value: str = ""
    line: int | None = None

    def __str__(self) -> str:
        """One printable line, whatever was in the file: `gateway.toml:12: inbound.listen[0] = "0.0.0.0": has no port; write "0.0.0.0:25"`."""
        place = self.source if self.line is None else f"{self.source}:{self.line}"
        named = f"{self.key} = {self.value}" if self.value else self.key
        said = f"{self.what}; {self.remedy}" if self.remedy else self.what
        return printable(": ".join(part for part in (place, named, said) if part), MAX_FAULT_CHARACTERS)


class ConfigError(Exception):
    """A config that cannot be used. `faults` is everything that is wrong with it."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__("\n".join(map(str, faults)))
        self.faults: Final = tuple(faults)


Location = tuple[int | str, ...]


def key_path(location: Location) -> str:
    """`("inbound", "listen", 0)` as `inbound.listen[0]`."""
    path = ""
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        else:
            path += f".{printable(step, 60)}" if path else printable(step, 60)
    return path


def shown(key: str, value: object) -> str:
    """A value as the operator would write it, fit to be printed."""
    if _SECRET_KEY.search(key) and not key.endswith("_file"):
        return '"***"'
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            text = repr(value) if not isinstance(value, int) or abs(value) < 2**63 else "…"
        case str() | Path():
            unmasked = str(value)
            text = '"' + _URL_PASSWORD.sub(r"\1:***@", unmasked) + '"'
        case datetime():
            text = value.isoformat()
        case list() | tuple():
            text = f"[{', '.join(shown('', one) for one in value[:10])}{', …' if len(value) > 10 else ''}]"  # noqa: PLR2004 - enough to know it by
        case Mapping():
            text = "{…}"
        case _:
            text = str(value)
    return printable(text, MAX_VALUE_CHARACTERS)


def explain(error: ErrorDetails, model: type[BaseModel]) -> tuple[str, str]:
    """What is wrong, and the remedy, for one of pydantic's errors."""
    context: Mapping[str, Any] = error.get("ctx", {})
    location = error["loc"]
    match error["type"]:
        case "gateway":
            return context["what"], context["remedy"]
        case "missing":
            return "is required and is not there", _add(location, model)
        case "extra_forbidden":
            return "there is no such key", _known(str(location[-1]), _model_at(location[:-1], model))
        case "literal_error":
            return "is not one of the possible values", f"write {context['expected']}".replace("'", '"')
        case "too_long":
            return f"has more than {context['max_length']} entries", "give fewer"
        case "model_type":
            return "is not a section", f"write a line [{location[-1]}] and its keys below it"
        case "tuple_type" if section_model_at(location, model) is not None:
            return "is one section where several may stand", f"write [[{location[-1]}]], with two brackets"
        case plain if plain in _PLAIN:
            return _PLAIN[plain]
        case ordered if ordered in _LIMITS:
            limit, what, remedy = _LIMITS[ordered]
            return what, remedy.format(context[limit])
        case _:
            return error["msg"], ""


def _add(location: Location, model: type[BaseModel]) -> str:
    field = field_at(location, model)
    example = field.examples[0] if field is not None and field.examples else "…"
    return f"add {location[-1]} = {shown('', example)}"


def _known(word: str, model: type[BaseModel] | None) -> str:
    known = list(model.model_fields) if model else []
    close = get_close_matches(word[:100].lower(), known, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else f"possible here: {', '.join(known)}"


def section_model(annotation: object) -> type[BaseModel] | None:
    """The model of a section from a field's type: `InboundSettings | None`, or `tuple[SigningSettings, ...]`."""
    is_compound = isinstance(annotation, UnionType) or get_origin(annotation) is tuple
    choices: Iterable[object] = get_args(annotation) if is_compound else (annotation,)
    return next((one for one in choices if isinstance(one, type) and issubclass(one, BaseModel)), None)


def section_model_at(location: Location, model: type[BaseModel]) -> type[BaseModel] | None:
    """The model of the section, or sections, at this place."""
    field = field_at(location, model)
    return section_model(field.annotation) if field else None


def is_repeated(annotation: object) -> bool:
    """Whether sections of this type may stand several times: `[[signing]]`."""
    return get_origin(annotation) is tuple and section_model(annotation) is not None


def _model_at(location: Location, model: type[BaseModel]) -> type[BaseModel] | None:
    found: type[BaseModel] | None = model
    for step in location:
        if isinstance(step, int):  # one of several tables of the same name
            continue
        field = found.model_fields.get(str(step)) if found else None
        found = section_model(field.annotation) if field else None
    return found


def field_at(location: Location, model: type[BaseModel]) -> FieldInfo | None:
    """The field of a key; None where there is no such key."""
    holder = _model_at(location[:-1], model)
    return holder.model_fields.get(str(location[-1])) if holder else None

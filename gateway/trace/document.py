"""A trace as one JSON document: what the store keeps, and what `--json` shows.

It is written for every message, so it is written by msgspec, which takes a third of pydantic's time for these values and a
quarter of `json`'s; it is read one at a time, and then every word in it is checked.
"""

from dataclasses import fields, is_dataclass, replace
from enum import Enum
from functools import cache, lru_cache
from typing import Any, Final, TypeVar, cast

import msgspec
from pydantic import BaseModel, ValidationError, create_model

from gateway.mail.errors import ParseError
from gateway.trace.model import Trace

MAX_BYTES: Final = 32 * 1024
"""An honest message's trace is 2 to 4 KB; a hostile one is cut until it fits."""

_CUTS: Final = ((300, 60), (80, 20), (40, 5))
"""Characters of each text and entries of each list, in each further attempt."""

_T = TypeVar("_T")

address_words: Final = lru_cache(maxsize=4096)(str)
"""An IP address as text; the same few come again and again, and each takes a microsecond."""

_encode: Final = msgspec.json.Encoder(enc_hook=address_words).encode


def write_document(trace: Trace) -> bytes:
    """The document, at most `MAX_BYTES`; UTF-8 without NUL."""
    try:
        document = _encode(trace)
    except UnicodeEncodeError:  # a lone surrogate, from a text that was no UTF-8
        document = b""
    if document and len(document) <= MAX_BYTES:
        return document
    for characters, entries in _CUTS:
        document = _encode(_cut(trace, characters, entries))
        if len(document) <= MAX_BYTES:
            return document
    raise ValueError(f"a trace of {len(document)} bytes, after all was cut")


def mend(value: _T) -> _T:
    """The same, every text in it such as can be written as UTF-8."""
    return _cut(value, MAX_BYTES, MAX_BYTES)


def read_document(document: bytes | str) -> Trace:
    """Read it.

    Raises:
        ParseError: it is none, or one of a release that had other words.
    """
    try:
        found = _reader().model_validate_json(document)
        return Trace(**{name: getattr(found, name) for name in found.model_fields_set})
    except (ValidationError, ValueError) as error:
        raise ParseError(f"not a trace of this release: {str(error)[:300]}") from error


@cache
def _reader() -> type[BaseModel]:
    """`Trace` as pydantic knows values. Made when it is first needed: that takes some 30 ms."""
    known = msgspec.structs.fields(Trace)
    known_fields: dict[str, Any] = {each.name: (each.type, ... if each.required else None) for each in known}
    return create_model("Document", **known_fields)


def _cut(value: _T, characters: int, entries: int) -> _T:
    """The same with every text and list cut, whatever it is made of."""
    cut: Any = value
    match value:
        case Enum():
            pass
        case str():
            cut = value.encode("utf-8", "replace").decode()[:characters]
        case tuple() if hasattr(value, "_fields"):
            cut = type(value)(*(_cut(each, characters, entries) for each in value))
        case tuple() | list():
            cut = type(value)(_cut(each, characters, entries) for each in value[:entries])
        case dict():
            cut = {key: _cut(each, characters, entries) for key, each in list(value.items())[:entries]}
        case msgspec.Struct():
            parts = msgspec.structs.asdict(value)
            cut = type(value)(**{name: _cut(each, characters, entries) for name, each in parts.items()})
        case _ if is_dataclass(value) and not isinstance(value, type):
            names = [each.name for each in fields(value) if each.init]
            cut = replace(value, **{name: _cut(getattr(value, name), characters, entries) for name in names})
        case _:
            pass
    return cast("_T", cut)

"""A trace as one JSON document: what the store keeps, without what is as ever, and what `--json` shows, with it.

It is written for every message, so it is written by msgspec, which takes a third of pydantic's time for these values and a
quarter of `json`'s; it is read one at a time, and then every word in it is checked.
"""

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from functools import cache, partial, reduce
from operator import or_
from types import UnionType
from typing import Annotated, Any, Final, TypeVar, cast, get_args, get_origin

import msgspec
from pydantic import AfterValidator, BaseModel, TypeAdapter, ValidationError, create_model

from gateway.mail.envelope import ip_text
from gateway.mail.errors import ParseError
from gateway.trace.model import Trace

MAX_BYTES: Final = 32 * 1024
"""An honest message's trace is 2 to 4 KB; a hostile one is cut until it fits."""

_CUTS: Final = ((300, 60), (80, 20), (40, 5))
"""Characters of each text and entries of each list, in each further attempt."""

_T = TypeVar("_T")

_encoder: Final = msgspec.json.Encoder(enc_hook=ip_text)
_encode: Final = _encoder.encode


def write_documents(traces: Sequence[Trace]) -> bytes:
    """The document of each, below each other, none over `MAX_BYTES`; UTF-8 without NUL.

    Raises:
        ValueError: one that is too large after all was cut: a mistake of ours.
    """
    try:
        documents = _encoder.encode_lines(traces)
    except UnicodeEncodeError:  # a lone surrogate, from a text that was no UTF-8
        documents = b""
    if documents and not _has_long_line(documents):
        return documents[:-1]
    return b"\n".join(map(_write_document, traces))


def _has_long_line(documents: bytes) -> bool:
    start = 0
    while len(documents) - start > MAX_BYTES:
        start = documents.rfind(b"\n", start, start + MAX_BYTES + 1) + 1
        if not start:
            return True
    return False


def _write_document(trace: Trace) -> bytes:
    try:
        document = _encode(trace)
    except UnicodeEncodeError:
        document = _encode(mend(trace))
    if len(document) <= MAX_BYTES:
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
        return _reader().validate_json(document)
    except (ValidationError, ValueError) as error:
        raise ParseError(f"not a trace of this release: {str(error)[:300]}") from error


def spell_out(document: str) -> str:
    """The same with every field in it; what another release wrote, and this one does not know, as it is."""
    try:
        known = _spelled(read_document(document))
    except ParseError:
        return document
    kept = msgspec.json.decode(document, type=dict[str, Any])
    return _encode(known | {name: value for name, value in kept.items() if name not in known}).decode()


def _spelled(value: Any) -> Any:
    match value:
        case msgspec.Struct():
            return {name: _spelled(getattr(value, name)) for name in value.__struct_fields__}
        case tuple():
            return [_spelled(each) for each in value]
        case _:
            return value


@cache
def _reader() -> TypeAdapter[Trace]:
    """`Trace` as pydantic knows values. Made when it is first needed: that takes some 30 ms."""
    return TypeAdapter(_readable(Trace))


def _readable(kind: Any) -> Any:
    """A type as pydantic can read it: structs, which it does not know, by way of models with the same fields."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return Annotated[_model(kind), AfterValidator(partial(_made, kind))]
    origin, arguments = get_origin(kind), tuple(map(_readable, get_args(kind)))
    if origin is None:
        return kind
    return reduce(or_, arguments) if origin is UnionType else origin[arguments]


def _model(kind: type[msgspec.Struct]) -> type[BaseModel]:
    known: dict[str, Any] = {
        each.name: (_readable(each.type), ... if each.required else None)
        for each in msgspec.structs.fields(kind)
    }
    return create_model(kind.__name__, **known)


def _made(kind: type[msgspec.Struct], model: BaseModel) -> msgspec.Struct:
    return kind(**{name: getattr(model, name) for name in model.model_fields_set})


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

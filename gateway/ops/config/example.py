"""The commented example, written from the models: every key, its default, what it does."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import wrap
from typing import Final

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from gateway.ops.config.faults import is_repeated, section_model
from gateway.ops.config.models import Settings
from gateway.ops.config.values import HostPort

WIDTH: Final = 110

_HEAD: Final = """\
# The gateway's config. `gateway config check FILE` reports every fault at once.
#
# What stands here after "# " is the default or an example: take the "# " away to change it. A section that is absent is a
# listener that is off; one must be there. [[…]] may stand several times. Relative paths start at this file.
# Any key can be set from the environment: GATEWAY_DNS__TIMEOUT_S=3 is timeout_s in [dns].
"""

_ON: Final = frozenset({"inbound", "dns", "policy", "dkim", "arc", "outbound_tls", "trace", "log"})
"""Sections that stand in the example: the proxy, and what has defaults. All others are shown, and off."""


def example_config() -> str:
    """A whole config file that works where a mail server listens on 127.0.0.1:10025."""
    single = [
        name for name, field in Settings.model_fields.items() if section_model(field.annotation) is None
    ]
    parts = [_HEAD, *(_key(name, Settings.model_fields[name], is_set=_is_set(name)) for name in single)]
    for name, field in Settings.model_fields.items():
        if model := section_model(field.annotation):
            parts.append(_section(name, model))
    return "\n".join(parts)


def _is_set(name: str) -> bool:
    return name == "local_domains" or Settings.model_fields[name].is_required()


def _section(name: str, model: type[BaseModel]) -> str:
    on = name in _ON
    comment = "\n".join(_comment(model.__doc__ or ""))
    table = f"[[{name}]]" if is_repeated(Settings.model_fields[name].annotation) else f"[{name}]"
    head = f"\n{comment}\n{'' if on else '# '}{table}\n"
    return "\n".join(
        [
            head,
            *(
                _key(key, field, is_set=on and field.is_required())
                for key, field in model.model_fields.items()
            ),
        ]
    )


def _key(name: str, field: FieldInfo, *, is_set: bool) -> str:
    lines = [*_comment(field.description or ""), f"{'' if is_set else '# '}{name} = {_example(name, field)}"]
    return "\n".join(lines) + "\n"


def _comment(text: str) -> Iterator[str]:
    return (f"# {line}" for line in wrap(" ".join(text.split()), WIDTH))


def _example(name: str, field: FieldInfo) -> str:
    if field.examples:
        return _toml(field.examples[0])
    if field.default is PydanticUndefined:
        raise LookupError(f"{name} has neither a default nor an example")
    return oct(field.default) if name == "socket_mode" else _toml(field.default)


def _toml(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case float():
            return f"{value:g}"
        case int():
            return f"{value:_}"
        case HostPort() | str() | Path():
            return f'"{value}"'
        case Mapping():
            pairs = ", ".join(f'"{key}" = {_toml(one)}' for key, one in value.items())
            return f"{{ {pairs} }}" if pairs else "{}"
        case list() | tuple():
            return f"[{', '.join(_toml(one) for one in value)}]"
        case _:
            raise TypeError(f"no TOML for {value!r}")

"""From values to HTML: the templates, and the one place where text of strangers is made harmless.

Every value that a template shows passes `shown` and then Jinja's escaping, so that no template can forget it.
"""

import re
from datetime import UTC, datetime
from functools import cache
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from gateway.ops.text import printable

MAX_SHOWN_CHARACTERS: Final = 300
_SECTION: Final = re.compile(r"RFC (\d{3,5})(?: §([0-9A-Za-z.]+))?")


def shown(value: object) -> object:
    """A value fit to be shown: text without anything that does not print, and not too long; all else as it is."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return printable(value, MAX_SHOWN_CHARACTERS)


def rfc_url(section: str) -> str | None:
    """Where `RFC 7208 §4.6.4` can be read; None where that is no RFC."""
    found = _SECTION.match(section)
    if found is None:
        return None
    number, part = found.groups()
    return f"https://www.rfc-editor.org/rfc/rfc{number}" + (f"#section-{part.rstrip('.')}" if part else "")


@cache
def environment() -> Environment:
    """The templates, compiled when they are first needed."""
    made = Environment(
        loader=PackageLoader("gateway.pages"),
        autoescape=True,
        finalize=shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters.update(
        rfc_url=rfc_url, clock=_clock, moment=_moment, iso=_iso, milliseconds=_milliseconds, size=_size
    )
    return made


def render(template: str, **values: Any) -> str:
    """One page or part of one."""
    return environment().get_template(template).render(values)


def _clock(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%H:%M:%S")


def _moment(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _iso(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds")


def _milliseconds(ms: float) -> str:
    if ms >= 10_000:  # noqa: PLR2004 - from ten seconds on nobody counts milliseconds
        return f"{ms / 1000:.1f} s"
    return f"{ms:.0f} ms" if ms >= 10 else f"{ms:.1f} ms"  # noqa: PLR2004


def _size(count: int) -> str:
    if count < 1_024:  # noqa: PLR2004
        return f"{count} bytes"
    kib = count / 1_024
    return f"{kib:.1f} KiB" if kib < 1_024 else f"{kib / 1_024:.1f} MiB"  # noqa: PLR2004

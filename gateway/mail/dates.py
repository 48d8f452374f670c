"""Dates as header fields write them (RFC 5322 §3.3)."""

from datetime import datetime, timedelta
from functools import lru_cache
from typing import Final

_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def write_date(now: datetime) -> str:
    """In English, whatever the locale.

    Raises:
        ValueError: it has no time zone: a mistake of ours.
    """
    return _write_second(now.replace(microsecond=0), now.utcoffset())


@lru_cache(maxsize=4)  # many messages a second
def _write_second(now: datetime, offset: timedelta | None) -> str:
    if offset is None:
        raise ValueError("a date without a time zone")
    minutes = int(offset.total_seconds()) // 60
    zone = f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02}{abs(minutes) % 60:02}"
    return f"{_DAYS[now.weekday()]}, {now.day} {_MONTHS[now.month - 1]} {now.year} {now:%H:%M:%S} {zone}"

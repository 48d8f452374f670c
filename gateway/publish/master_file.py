"""Records as a master file (RFC 1035 §5): to be read by a person, pasted into a zone, or loaded by any name server."""

from collections.abc import Iterator, Sequence
from textwrap import wrap
from typing import Final

from gateway.dns.resolver import Record
from gateway.publish.records import Wanted, presentation, split_strings

_WIDTH: Final = 100


def format_master_file(domain: str, wanted: Sequence[Wanted], *, ttl_s: int) -> str:
    """The text. What only the operator can fill in is a comment."""
    head = [
        f"; What {domain} should publish, and why. Names are complete: it may be pasted into any zone file.",
        "",
    ]
    return "\n".join([*head, f"$TTL {ttl_s}", *(line for one in wanted for line in _entry(one))]) + "\n"


def _entry(wanted: Wanted) -> Iterator[str]:
    yield ""
    yield from (f"; {line}" for line in wrap(wanted.why, _WIDTH))
    for record in wanted.records:
        yield from format_record(f"{wanted.name}. IN {wanted.record_type}", record)
    if not wanted.records:
        yield f"; {wanted.name}. IN {wanted.record_type} …"


def format_record(owner: str, record: Record) -> Iterator[str]:
    """The lines of one record; `owner` is all that stands before its data."""
    if not isinstance(record, bytes) or len(strings := split_strings(record)) == 1:
        yield f"{owner} {presentation(record)}"
        return
    yield f"{owner} ("
    yield from (f"    {presentation(string)}" for string in strings)
    yield ")"

"""Reading our own log again: the facts of each `message.judged`, as far as they stand there.

A log may have been cut, rotated, compressed, mixed with other programs' lines, or written by whoever could: every line is
looked at by itself, in bounded memory, and one that is not ours is counted and passed by.
"""

import gzip
import json
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import BinaryIO, Final, cast

from gateway.auth.results import ArcStatus, DkimResult, DkimStatus, Evidence
from gateway.cli.recalled import Passed, Recalled
from gateway.mail.address import Mailbox, parse_mailbox
from gateway.mail.errors import ParseError
from gateway.ops.log import MAX_ITEMS
from gateway.ops.text import MAX_CHARACTERS
from gateway.policy.facts import KEYS, NULL_PATH, Fact, dkim_summary
from gateway.verdict import Disposition

MAX_LINE_BYTES: Final = 256 * 1024
"""An event of ours is 1 to 2 KB, and never more than some 60."""

_GZIP: Final = b"\x1f\x8b"
_OURS_BY_NAME: Final = "gateway."
_WORDS: Final = {
    "listener": "listener",
    "spf": "spf",
    "spf_helo": "spf_helo",
    "iprev": "iprev",
    "dmarc": "dmarc",
    "dmarc_applied": "dmarc_applied",
    "sender_domain": "sender_domain",
    "author_fault": "author_fault",
    "arc": "arc",
}
"""Keys that are one word, by the field that it stands in."""


def read_log(path: Path, sealers: Collection[str] | None, passed: Passed) -> Iterator[Recalled]:
    """Every message of the log, in its order; `sealers`: the config's `[arc] trusted_sealers`, where there is one.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        is_packed = file.read(len(_GZIP)) == _GZIP
        file.seek(0)
        content = cast("BinaryIO", gzip.GzipFile(fileobj=file)) if is_packed else file
        try:
            for line in _lines(content, passed):
                passed.read_bytes = file.tell()
                if (recalled := _read_line(line, sealers, passed)) is not None:
                    yield recalled
        except (EOFError, zlib.error, gzip.BadGzipFile):
            passed.is_cut = True


def _lines(content: BinaryIO, passed: Passed) -> Iterator[bytes]:
    is_too_long = False
    while line := content.readline(MAX_LINE_BYTES):
        ends = line.endswith(b"\n")
        if is_too_long or (not ends and len(line) == MAX_LINE_BYTES):
            passed.broken += ends
            is_too_long = not ends
            continue
        yield line


def _read_line(line: bytes, sealers: Collection[str] | None, passed: Passed) -> Recalled | None:
    if b"message.judged" not in line or b"{" not in line:
        passed.lines += 1
        return None
    try:  # before the object may stand what syslog puts there
        event = json.loads(line[line.index(b"{") :])
        if event["event"] != "message.judged":
            passed.lines += 1
            return None
        return Recalled(
            id=_text(event["id"]),
            rule=_text(event["rule"]),
            disposition=Disposition(event["disposition"]),
            facts=known_facts(event, sealers),
            is_by_rules=not event["rule"].startswith(_OURS_BY_NAME),
        )
    except (KeyError, TypeError, ValueError, RecursionError):
        passed.broken += 1
        return None


def known_facts(event: Mapping[str, object], sealers: Collection[str] | None) -> dict[str, Fact]:
    """What an event says of the keys that rules ask about; what it does not say, or not beyond doubt, is not there."""
    facts: dict[str, Fact] = {}
    for key, field in _WORDS.items():
        _learn(facts, key, event, field, partial(_word, key))
    _learn(facts, "client_ip", event, "client_ip", lambda value: ip_address(_text(value)))
    _learn(facts, "authenticated", event, "login", lambda value: value is not None)
    _learn(facts, "tls", event, "tls", lambda value: value is not None)
    _learn(facts, "helo", event, "helo", _helo)
    _learn(facts, "mail_from", event, "mail_from", lambda value: (_mailbox(value) if value else NULL_PATH,))
    _learn(facts, "author", event, "author", lambda value: (_mailbox(value),) if value else ())
    _learn(facts, "dkim", event, "dkim", lambda value: dkim_summary(Evidence(dkim=_signatures(value))))
    _learn(facts, "dkim_domain", event, "dkim", _passed_domains)
    _learn(facts, "dmarc_requested", event, "dmarc_policy", KEYS["dmarc_requested"].kind.parse_fact)
    _learn(facts, "problem", event, "problems", lambda value: _words("problem", value))
    _learn(facts, "defect", event, "defects", lambda value: _words("defect", value))
    _learn(facts, "size_over", event, "size", KEYS["size_over"].kind.parse_fact)
    if "dmarc" in event:  # asked of every stranger's message, and of no other
        facts["ours"] = event["dmarc"] is None
    facts |= _arc(facts, event, sealers)
    return facts


def _learn(
    facts: dict[str, Fact],
    key: str,
    event: Mapping[str, object],
    field: str,
    read: Callable[[object], Fact],
) -> None:
    if field not in event:
        return
    try:
        facts[key] = read(event[field])
    except (ParseError, ValueError, TypeError):
        return


def _text(value: object) -> str:
    """The text as it was; one that was escaped or cut on its way into the log is no longer that."""
    if not isinstance(value, str) or "\\" in value or len(value) >= MAX_CHARACTERS:
        raise ParseError("not the text itself")
    return value


def _items(value: object) -> list[str]:
    if not isinstance(value, list) or len(value) >= MAX_ITEMS:
        raise ParseError("not the whole list")
    return [_text(one) for one in value]


def _mailbox(value: object) -> Mailbox:
    return parse_mailbox(_text(value))


def _helo(value: object) -> Fact:
    return (_text(value).lower().rstrip("."),) if value else ()


def _word(key: str, value: object) -> Fact:
    return None if value is None else KEYS[key].kind.parse_fact(value)


def _words(key: str, value: object) -> Fact:
    items = _items(value)
    return KEYS[key].kind.parse_fact(items) if items else KEYS[key].kind.absent


def _signatures(value: object) -> tuple[DkimResult, ...]:
    parts = (one.partition(":") for one in _items(value))
    return tuple(
        DkimResult(position=at, status=DkimStatus(status), domain=domain or None)
        for at, (status, _, domain) in enumerate(parts)
    )


def _passed_domains(value: object) -> Fact:
    signatures = _signatures(value)
    return tuple(one.domain for one in signatures if one.status is DkimStatus.PASS and one.domain)


def _arc(
    facts: Mapping[str, Fact], event: Mapping[str, object], sealers: Collection[str] | None
) -> dict[str, Fact]:
    """What only a chain that passes, or cannot be checked now, may say otherwise."""
    if "arc" not in facts:
        return {}
    status = facts["arc"]
    try:
        names = _items(event.get("arc_sealers"))
    except ParseError:
        return {}
    known: dict[str, Fact] = {"arc_sealer": tuple(names[:1]) if status is ArcStatus.PASS else ()}
    is_trusted = None if sealers is None else bool(names) and names[0] in sealers
    for key, decisive in (("arc_trusted", ArcStatus.PASS), ("arc_trust_unknown", ArcStatus.TEMPERROR)):
        if status is not decisive:
            known[key] = False
        elif is_trusted is not None:
            known[key] = is_trusted
    if known.get("arc_trusted") is False:
        known["arc_dmarc"] = None
    return known

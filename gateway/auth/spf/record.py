"""The text of an SPF record before it is evaluated (RFC 7208 §4.5, §6, §7.1).

A record is a stranger's text and pyspf trusts it in places: what it would misread is refused or put right here, once and in
linear time, so that everything behind this module meets printable ASCII of bounded length with well-formed macros.
"""

import re
from collections.abc import Iterable
from typing import Final

from gateway.auth.results import Problem, SpfStatus
from gateway.dns.resolver import Record

MAX_RECORD_BYTES = 4096
"""Deviation: RFC 7208 §3.4 only advises 512. Much of pyspf is quadratic in the length of one term."""

NO_MATCH: Final = "v=spf1"
"""A record without a term: neutral, and so never a match for an include."""

MACRO: Final = re.compile(
    r"%(?:(?P<literal>[%_-])"
    r"|\{(?P<letter>[slodiphcrtv])(?P<digits>0*[1-9][0-9]*)?(?P<reverse>r?)(?P<delimiters>[-.+,/_=]*)\})",
    re.IGNORECASE,
)
"""RFC 7208 §7.1 macro-expand; that the digits are not zero is §7.3's."""

_UNPRINTABLE: Final = re.compile(rb"[^ -~]")
_MODIFIER: Final = re.compile(r"([a-z][a-z0-9_.-]*)=", re.IGNORECASE)
_KNOWN_MODIFIERS: Final = frozenset({"exp", "redirect"})
_TOP_LABEL: Final = re.compile(r"[0-9a-z](?:[0-9a-z-]*[0-9a-z])?", re.IGNORECASE)


class Stop(Exception):  # noqa: N818 - not an error of ours: an evaluation that is over, with its result
    """The evaluation ends here with this result."""

    def __init__(self, status: SpfStatus, problem: Problem) -> None:
        super().__init__(status, problem)
        self.status = status
        self.problem = problem


def select_record(records: Iterable[Record]) -> str | None:
    """The one SPF record among a name's TXT records, ready for pyspf; None where there is none (RFC 7208 §4.5).

    Raises:
        Stop: there are several, or the one cannot be an SPF record.
    """
    chosen = [text for text in records if isinstance(text, bytes) and is_spf_record(text)]
    if not chosen:
        return None
    if len(chosen) > 1:
        raise Stop(SpfStatus.PERMERROR, Problem.SPF_SEVERAL_RECORDS)
    return prepare_record(chosen[0])


def is_spf_record(text: bytes) -> bool:
    """Whether a TXT record claims to be SPF: the version, then a space or the end (RFC 7208 §4.5)."""
    return text[:6].lower() == b"v=spf1" and text[6:7] in {b"", b" "}


def prepare_record(record: bytes) -> str:
    """The record as text that pyspf reads as the standard means it.

    Raises:
        Stop: it is too large, not printable ASCII (RFC 7208 §3.1, §4.6.1) or has a malformed macro.
    """
    if len(record) > MAX_RECORD_BYTES:
        raise Stop(SpfStatus.PERMERROR, Problem.SPF_RECORD_TOO_LARGE)
    if _UNPRINTABLE.search(record):
        raise Stop(SpfStatus.PERMERROR, Problem.SPF_SYNTAX)
    text = record.decode("ascii")
    if not has_valid_macros(text):
        raise Stop(SpfStatus.PERMERROR, Problem.SPF_SYNTAX)
    return _settle_modifiers(text) if "=" in text[6:] else text


def has_valid_macros(text: str) -> bool:
    """Whether every `%` begins a macro (RFC 7208 §7.1). pyspf takes `%{d`, `%{d0}` and `%{d!}` for something."""
    return "%" not in text or "%" not in MACRO.sub("", text)


def ends_as_domain(domain_spec: str) -> bool:
    """Whether a domain-spec ends in a macro, or in a dot and a top label (RFC 7208 §7.1 domain-end).

    A top label is letters, digits and inner hyphens, and not digits alone. pyspf's own expression is quadratic.
    """
    end = 0
    for macro in MACRO.finditer(domain_spec):
        end = macro.end()
    if end and end == len(domain_spec):
        return True
    _, dot, label = domain_spec[end:].removesuffix(".").rpartition(".")
    return bool(dot) and _TOP_LABEL.fullmatch(label) is not None and not label.isdigit()


def _settle_modifiers(text: str) -> str:
    """Known modifiers in lower case, unknown ones left out.

    pyspf ignores `Redirect=` (names are case-insensitive), and calls it an error when an unknown modifier appears twice
    ("MUST be ignored no matter where, or how often": RFC 7208 §6).
    """
    terms = [text[:6]]
    for term in text[6:].split(" "):
        modifier = _MODIFIER.match(term)
        if modifier is None:
            terms.append(term)
        elif (name := modifier[1].lower()) in _KNOWN_MODIFIERS:
            terms.append(f"{name}={term[modifier.end() :]}")
    return " ".join(terms)

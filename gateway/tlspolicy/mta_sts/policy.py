"""The policy file: which mail servers are a domain's own, and how sternly to take it (RFC 8461 §3.2, errata 6253 and 7282)."""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from gateway.mail.address import parse_domain
from gateway.mail.errors import ParseError

MAX_POLICY_BYTES: Final = 65_536  # RFC 8461 §3.3
MAX_AGE_S: Final = 31_557_600  # RFC 8461 §3.2: about a year
MAX_PATTERNS: Final = 500  # each is held against each mail server

_LINE_END: Final = re.compile(r"\r?\n")  # erratum 6253: LF or CRLF
_KEY: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")
_VALUE: Final = re.compile(
    r"[\x21-\x7e\x80-\U0010ffff](?:[\x20-\x7e\x80-\U0010ffff]*[\x21-\x7e\x80-\U0010ffff])?"
)
_MAX_AGE: Final = re.compile(r"[0-9]{1,10}")
_VERSION: Final = "STSv1"


class PolicyError(ParseError):
    """It is no valid policy; the domain is treated as if the file could not be had."""


class Mode(StrEnum):
    """What a sender does about a mail server that fails the policy."""

    ENFORCE = "enforce"  # nothing is delivered to it
    TESTING = "testing"  # mail goes all the same; the failure is reported
    NONE = "none"  # the domain takes its policy back


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One policy.

    Attributes:
        mx: host names, or `*.` and the rest of one; in A-labels and lower case.
        max_age_s: for how long it may be kept.
    """

    mode: Mode
    mx: tuple[str, ...]
    max_age_s: int

    def __str__(self) -> str:
        """The policy in its own form; `parse_policy` reads it back."""
        return "".join(f"{line}\r\n" for line in self.lines())

    def lines(self) -> tuple[str, ...]:
        """`key: value`, one by one: what a TLS report quotes (RFC 8460 §4.4 policy-string)."""
        return (
            f"version: {_VERSION}",
            f"mode: {self.mode}",
            *(f"mx: {pattern}" for pattern in self.mx),
            f"max_age: {self.max_age_s}",
        )

    def lists(self, host: str) -> bool:
        """Whether `host` is one of the domain's own mail servers."""
        return any(matches(pattern, host) for pattern in self.mx)


def parse_policy(body: bytes) -> Policy:
    """Read a policy file. Keys may come in any order; unknown ones are skipped; of a repeated one, but `mx`, the first counts.

    Raises:
        PolicyError: a line, a value or a key that must be there is not as RFC 8461 §3.2 has it.
    """
    if len(body) > MAX_POLICY_BYTES:
        raise PolicyError(f"over {MAX_POLICY_BYTES} bytes")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PolicyError("is not UTF-8", offset=error.start) from error
    values: dict[str, str] = {}
    patterns: list[str] = []
    for number, line in enumerate(_LINE_END.split(text), 1):
        if not line.strip(" \t"):  # Deviation: empty lines, which editors leave behind, are skipped
            continue
        key, value = _split(line, number)
        if key == "mx":
            patterns.append(_pattern(value, number))
        else:
            values.setdefault(key, value)
    return _policy(values, tuple(dict.fromkeys(patterns)))


def _split(line: str, number: int) -> tuple[str, str]:
    key, colon, value = line.partition(":")
    value = value.strip(" \t")
    if not colon or not _KEY.fullmatch(key) or not _VALUE.fullmatch(value):
        raise PolicyError(f"line {number} is not `key: value`: {line[:60]!r}")
    return key, value


def _pattern(value: str, number: int) -> str:
    """A host name; a wildcard is the whole leftmost label and no other (RFC 8461 §4.1)."""
    star, name = ("*.", value[2:]) if value.startswith("*.") else ("", value)
    if name.isascii():  # A-labels only (RFC 8461 §4.1)
        try:
            return star + parse_domain(name)
        except ParseError:
            pass
    raise PolicyError(f"line {number}: mx is no host name: {value[:60]!r}")


def _policy(values: dict[str, str], patterns: tuple[str, ...]) -> Policy:
    if values.get("version") != _VERSION:
        raise PolicyError("version is not STSv1")
    try:
        mode = Mode(values.get("mode", ""))
    except ValueError:
        raise PolicyError(f"mode is not one of {', '.join(Mode)}") from None
    max_age = values.get("max_age", "")
    if not _MAX_AGE.fullmatch(max_age):
        raise PolicyError("max_age is no number of seconds")
    if len(patterns) > MAX_PATTERNS:
        raise PolicyError(f"over {MAX_PATTERNS} mx lines")
    if not patterns and mode is not Mode.NONE:
        raise PolicyError("has no mx")
    # Erratum 7282: more than the maximum is taken as the maximum; to drop the policy would take its protection away.
    return Policy(mode=mode, mx=patterns, max_age_s=min(int(max_age), MAX_AGE_S))


def matches(pattern: str, host: str) -> bool:
    """Whether the pattern covers the host name (RFC 8461 §4.1): `*.` stands for exactly one label."""
    if pattern.startswith("*."):
        label, _, rest = host.partition(".")
        return bool(label) and rest == pattern[2:]
    return host == pattern

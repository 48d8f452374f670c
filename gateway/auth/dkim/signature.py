"""What a DKIM-Signature field says (RFC 6376 §3.5, RFC 8301, RFC 8463, RFC 8616 §4)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Final, NamedTuple

from gateway.auth.dkim.canonical import Canonicalization
from gateway.auth.dkim.tags import DkimError, decode_base64, parse_tags, split_words, without_white_space
from gateway.auth.results import Problem
from gateway.mail.address import parse_domain
from gateway.mail.errors import ParseError

CLOCK_SKEW_S: Final = 300
"""By how much a signer's clock may be ahead of ours before `t=` counts as lying in the future."""

MAX_AUID_LENGTH: Final = 512
"""Longer than any address (RFC 5321 §4.5.3.1) with every byte of its local part in quoted-printable."""

_SHA256_BYTES: Final = 32
_ENCODED_BYTE: Final = re.compile(rb"=([0-9A-F]{2})")
_REMEMBERED_BYTES: Final = 1024
_USUAL_TAGS: Final = 50
_TIME_DIGITS: Final = 12
_CHANGING: Final = frozenset({"b", "bh", "t", "x"})
_CHANGING_TAG: Final = re.compile(rb";[ ]*+(bh?|t|x)[ ]*+=([^;]*+)")
_FIELD_NAME: Final = re.compile(rb"[!-9;-~]+")
_DIGITS: Final = {
    "t": re.compile(r"[0-9]{1,12}"),
    "x": re.compile(r"[0-9]{1,12}"),
    "l": re.compile(r"[0-9]{1,76}"),
}


class Algorithm(StrEnum):
    """`a=`."""

    RSA_SHA256 = "rsa-sha256"
    ED25519_SHA256 = "ed25519-sha256"  # RFC 8463
    RSA_SHA1 = "rsa-sha1"  # known only to be refused by its name: RFC 8301 §3.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a signature field says besides hash, signature and times: in most mail of one signer the same.

    Attributes:
        domain: `d=` in A-labels, lower case.
        auid: `i=`, decoded, its domain in A-labels; printable, but the local part may hold anything else.
        signed_fields: the names in `h=` in lower case, in the order in which they are hashed.
        signed_turns: the same, each with how often its name has come up by then.
        body_length: `l=`; None where absent, which is not 0.
        key_name: where the public key is published (RFC 6376 §3.6.2.1).
        canonicalization: `c=` in full: `relaxed/relaxed`.
    """

    algorithm: Algorithm
    header_canonicalization: Canonicalization
    body_canonicalization: Canonicalization
    domain: str
    selector: str
    auid: str
    signed_fields: tuple[bytes, ...]
    signed_turns: tuple[tuple[bytes, int], ...]
    body_length: int | None
    key_name: str
    canonicalization: str


class Signature(NamedTuple):
    """A signature field of good form; an ARC-Message-Signature (RFC 8617 §4.1.2) says the same things.

    Attributes:
        signature: `b=`, decoded.
        signature_text: `b=` as written, without white space.
        body_hash: `bh=`, decoded.
        timestamp: `t=`, in seconds since 1970, as is `expiration`, `x=`.
    """

    terms: Terms
    signature: bytes
    signature_text: str
    body_hash: bytes
    timestamp: int | None = None
    expiration: int | None = None

    def problem_at(self, now: float) -> Problem | None:
        """Why this signature is not to be evaluated at `now` (seconds since 1970), if it is not."""
        if b"from" not in self.terms.signed_fields:
            return Problem.DKIM_FROM_NOT_SIGNED  # RFC 6376 §6.1.1
        if self.expiration is not None and now > self.expiration:
            return Problem.DKIM_EXPIRED
        if self.terms.algorithm is Algorithm.RSA_SHA1:
            return Problem.DKIM_SHA1  # RFC 8301 §3.1: MUST NOT be verified
        if self.timestamp is not None and self.timestamp > now + CLOCK_SKEW_S:
            return Problem.DKIM_FROM_THE_FUTURE
        return None


def parse_signature(value: bytes) -> Signature:
    """Read the value of a DKIM-Signature field, as received.

    Raises:
        DkimError: it cannot be understood; its `problem` says in what.
    """
    return _of_known_signer(value) or dkim_signature(parse_tags(value))


def _of_known_signer(value: bytes) -> Signature | None:
    """The shorter way: what changes from message to message is taken out and read, and the rest is looked up.

    None where anything is unusual: what exactly, or whether it may be so, is for the long way to say.
    """
    unfolded = value.replace(b"\t", b" ").replace(b"\r\n ", b" ")
    parts = _CHANGING_TAG.split(b";" + unfolded.rstrip(b" ").removesuffix(b";"))
    changing = dict(zip(parts[1::3], parts[2::3], strict=True))
    text, hash_text = changing.get(b"b"), changing.get(b"bh")
    rest = b"".join(parts[::3])
    if (
        text is None
        or hash_text is None
        or 3 * len(changing) + 1 < len(parts)
        or len(rest) > _REMEMBERED_BYTES
    ):
        return None
    try:
        terms = _terms(rest)
        signature_text = text.replace(b" ", b"").decode()
        body_hash = decode_base64(hash_text.replace(b" ", b"").decode())
        signature = decode_base64(signature_text)
        timestamp, expiration = _seconds(changing.get(b"t")), _seconds(changing.get(b"x"))
    except ValueError:
        return None
    is_ordered = timestamp is None or expiration is None or timestamp < expiration
    if len(body_hash) != _SHA256_BYTES or not is_ordered:
        return None
    return Signature(terms, signature, signature_text, body_hash, timestamp, expiration)


@lru_cache(maxsize=2048)
def _terms(rest: bytes) -> Terms:
    """The terms of a tag list from which a `b=`, a `bh=` and the times were taken out, with a semicolon put before it.

    Raises:
        DkimError: they cannot be understood, or the list has more than those in it that is not as it should be.
    """
    tags = parse_tags(rest[1:])
    if len(tags) > _USUAL_TAGS or not _CHANGING.isdisjoint(tags) or rest.rstrip(b" ").endswith(b";"):
        raise DkimError(Problem.DKIM_SYNTAX, "a tag list that is not as usual")
    return dkim_signature({**tags, "b": "AAAA", "bh": "A" * 43 + "="}).terms


def _seconds(text: bytes | None) -> int | None:
    if text is None:
        return None
    digits = text.strip(b" ")
    if not digits.isdigit() or len(digits) > _TIME_DIGITS:
        raise DkimError(Problem.DKIM_SYNTAX, "not a number, or too many digits")
    return int(digits)


def dkim_signature(tags: Mapping[str, str]) -> Signature:
    """Make sense of the tags of a DKIM-Signature. Raises DkimError."""
    if required_tag(tags, "v") != "1":  # a string, not a number: `01` is another version (RFC 6376 §3.5)
        raise DkimError(Problem.DKIM_VERSION, "v= is not 1")
    if "dns/txt" not in split_words(tags.get("q", "dns/txt").lower()):
        raise DkimError(Problem.DKIM_QUERY_METHOD_UNKNOWN, "q= without dns/txt")
    return message_signature(tags, auid=tags.get("i"))


def message_signature(tags: Mapping[str, str], *, auid: str | None) -> Signature:
    """Make sense of the tags that DKIM-Signature and ARC-Message-Signature share.

    Args:
        tags: all tags of the field; those with no meaning here are ignored.
        auid: the `i=` of DKIM; None where there is none (in ARC `i=` is something else).

    Raises:
        DkimError: it cannot be understood.
    """
    algorithm = parse_algorithm(tags)
    signature_text = without_white_space(required_tag(tags, "b"))
    header, body = _canonicalization(tags.get("c", "simple/simple"))
    domain = parse_signing_domain(required_tag(tags, "d"))
    body_hash = decode_base64(without_white_space(required_tag(tags, "bh")))
    if len(body_hash) != _SHA256_BYTES and algorithm is not Algorithm.RSA_SHA1:
        raise DkimError(Problem.DKIM_SYNTAX, "bh= is not a SHA-256 hash")
    timestamp, expiration = parse_number(tags, "t"), parse_number(tags, "x")
    if timestamp is not None and expiration is not None and expiration <= timestamp:
        raise DkimError(Problem.DKIM_SYNTAX, "x= is not after t=")  # RFC 6376 §3.5
    signature = decode_base64(signature_text)
    selector = parse_signing_domain(required_tag(tags, "s"))
    auid = _auid(auid, domain)
    signed_fields = _field_names(required_tag(tags, "h"))
    terms = Terms(
        algorithm=algorithm,
        header_canonicalization=header,
        body_canonicalization=body,
        domain=domain,
        selector=selector,
        auid=auid,
        signed_fields=signed_fields,
        signed_turns=turns(signed_fields),
        body_length=parse_number(tags, "l"),
        key_name=f"{selector}._domainkey.{domain}",
        canonicalization=f"{header}/{body}",
    )
    return Signature(terms, signature, signature_text, body_hash, timestamp, expiration)


def claimed_domain(tags: Mapping[str, str], name: str) -> str | None:
    """The `d=` or `s=` of a signature that is otherwise not understood, where that much can be read."""
    try:
        return parse_signing_domain(tags[name])
    except (KeyError, DkimError):
        return None


def required_tag(tags: Mapping[str, str], name: str) -> str:
    """The value of a tag that must be there. Raises DkimError, as do the next."""
    value = tags.get(name)
    if value is None:
        raise DkimError(Problem.DKIM_MISSING_TAG, f"no {name}=")
    return value


def parse_algorithm(tags: Mapping[str, str]) -> Algorithm:
    """`a=`."""
    try:
        return Algorithm(required_tag(tags, "a").lower())
    except ValueError as error:
        if isinstance(error, DkimError):
            raise
        raise DkimError(
            Problem.DKIM_ALGORITHM_UNKNOWN, "a= names an algorithm that we do not know"
        ) from error


def _canonicalization(value: str) -> tuple[Canonicalization, Canonicalization]:
    header, slash, body = value.lower().partition("/")
    try:
        return Canonicalization(header), Canonicalization(body if slash else "simple")
    except ValueError as error:
        raise DkimError(
            Problem.DKIM_CANONICALIZATION_UNKNOWN, "c= names a form that we do not know"
        ) from error


def parse_signing_domain(text: str) -> str:
    """`d=`, or `s=`, which has the same form: in A-labels, lower case."""
    try:
        return parse_domain(text)
    except ParseError as error:
        raise DkimError(Problem.DKIM_SYNTAX, f"not a domain name: {error}") from error


def _auid(text: str | None, domain: str) -> str:
    if text is None:
        return "@" + domain
    if len(text) > MAX_AUID_LENGTH:
        raise DkimError(Problem.DKIM_SYNTAX, "i= is longer than an address can be")
    local_part, at, host = _from_quoted_printable(text).rpartition("@")
    if not at:
        raise DkimError(Problem.DKIM_SYNTAX, "i= without @")
    host = parse_signing_domain(host)
    if host != domain and not host.endswith("." + domain):
        raise DkimError(Problem.DKIM_DOMAIN_MISMATCH, "i= is not within d=")
    return f"{local_part}@{host}"


def _from_quoted_printable(text: str) -> str:
    """Undo dkim-quoted-printable (RFC 6376 §2.11). What it hides must be text: a CRLF would end up in our own fields."""
    encoded = without_white_space(text).encode()
    if b"=" in _ENCODED_BYTE.sub(b"", encoded):
        raise DkimError(Problem.DKIM_SYNTAX, "i= with an equals sign that encodes nothing")
    try:
        decoded = _ENCODED_BYTE.sub(lambda match: bytes((int(match[1], 16),)), encoded).decode()
    except UnicodeDecodeError as error:
        raise DkimError(Problem.DKIM_SYNTAX, "i= that is not UTF-8") from error
    if not decoded.isprintable():
        raise DkimError(Problem.DKIM_SYNTAX, "i= with something that cannot be printed")
    return decoded


def _field_names(value: str) -> tuple[bytes, ...]:
    if not value.isascii():
        raise DkimError(Problem.DKIM_SYNTAX, "h= with something other than ASCII")
    names = [name.strip(b" \t") for name in value.lower().encode().split(b":")]
    if not all(map(_FIELD_NAME.fullmatch, names)):
        raise DkimError(Problem.DKIM_SYNTAX, "h= with something that is not a field's name")
    return tuple(names)


def turns(names: tuple[bytes, ...]) -> tuple[tuple[bytes, int], ...]:
    """Each name with how often it has come up by then: from the bottom up, that field is the one meant (RFC 6376 §5.4.2)."""
    so_far = dict.fromkeys(names, 0)
    found: list[tuple[bytes, int]] = []
    for name in names:
        so_far[name] += 1
        found.append((name, so_far[name]))
    return tuple(found)


def parse_number(tags: Mapping[str, str], name: str) -> int | None:
    """`t=`, `x=` or `l=`; None where absent."""
    text = tags.get(name)
    if text is None:
        return None
    if not _DIGITS[name].fullmatch(text):
        raise DkimError(Problem.DKIM_SYNTAX, f"{name}= is not a number, or has too many digits")
    return int(text)

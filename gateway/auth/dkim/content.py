"""What a signature is computed over, and whether it is right (RFC 6376 §3.7, §6.1.3).

Nothing here knows a signature field by its name, so that ARC (RFC 8617) verifies its own by the same code.
"""

import hashlib
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Final, NamedTuple

from gateway.auth.dkim.canonical import (
    CRLF,
    Canonicalization,
    canonical_body,
    canonical_field,
    canonical_text,
    relaxed_header,
    without_signature,
)
from gateway.auth.dkim.key import MIN_TRUSTED_RSA_BITS, KeyRecord
from gateway.auth.dkim.signature import Algorithm, Signature
from gateway.auth.results import Problem
from gateway.mail.message import Message

CHUNK_BYTES: Final = 128 * 1024
"""How much of a body is looked at at once: fits in a processor's cache, and keeps memory flat for a mapped file."""


_SHOWN_ONCE: Final = frozenset(
    (
        b"subject",
        b"date",
        b"to",
        b"cc",
        b"reply-to",
        b"content-type",
        b"content-transfer-encoding",
    )
)
"""Fields that RFC 5322 §3.6 and RFC 2045 allow once, and that decide what the reader sees or whom he answers."""


class BodyHashes(NamedTuple):
    """One body in one canonical form.

    Attributes:
        whole: the SHA-256 hash of all of it.
        length: its size in bytes.
        prefixes: the hashes of its first so many bytes, for each `l=` that is asked for and not longer than the body.
    """

    whole: bytes
    length: int
    prefixes: dict[int, bytes]


class SignedContent:
    """A message as its signatures see it; its body is canonicalised and hashed once, however many signatures cover it.

    Args:
        message: the message.
        signatures: all that may be asked about.
    """

    def __init__(self, message: Message, signatures: Iterable[Signature]) -> None:
        self._message = message
        self._lengths = {
            (signature.terms.body_canonicalization, signature.terms.body_length)
            for signature in signatures
            if signature.terms.body_length is not None
        }
        self._bodies: dict[Canonicalization, BodyHashes] = {}

    def body(self, how: Canonicalization) -> BodyHashes:
        """Hash the body in this form."""
        known = self._bodies.get(how)
        if known is None:
            known = self._bodies[how] = self._hash_body(how)
        return known

    def _hash_body(self, how: Canonicalization) -> BodyHashes:
        message = self._message
        start = message.body_start
        if not self._lengths and len(message.raw) - start <= CHUNK_BYTES:
            text = canonical_text(message.raw[start:], how)
            return BodyHashes(hashlib.sha256(text).digest(), len(text), {})
        lengths = [length for form, length in self._lengths if form is how]
        return hash_body(canonical_body(_body_chunks(message), how), lengths)

    def has_unsigned_double(self, signature: Signature) -> bool:
        """Whether a field that may occur once is signed, and stands in the message once more than that.

        Signed is the lowest; most readers are shown the highest, which anybody may have put there (RFC 6376 §8.15).
        """
        message = self._message
        signed = signature.terms.signed_fields
        for name in message.repeated:
            if name in _SHOWN_ONCE and 0 < signed.count(name) < len(message.index[name]):
                return True
        return False

    def header_digest(self, position: int, signature: Signature) -> bytes:
        """Hash the header fields that a signature covers, then its own field (RFC 6376 §3.7).

        Args:
            position: the place of the signature's own field in the message.
            signature: what that field says.
        """
        message = self._message
        own_key, own_value = message.keys[position], without_signature(message.values[position])
        places = self._signed_places(position, signature)
        if signature.terms.header_canonicalization is Canonicalization.RELAXED:
            keys, values = message.keys, message.values
            fields = [(keys[place], values[place]) for place in places]
            fields.append((own_key, own_value))
            return hashlib.sha256(relaxed_header(fields)[: -len(CRLF)]).digest()
        parts = [canonical_field(message.field_bytes(place), Canonicalization.SIMPLE) for place in places]
        name, colon, _ = message.field_bytes(position).partition(b":")
        return hashlib.sha256(b"".join((*parts, name, colon, own_value))).digest()

    def _signed_places(self, position: int, signature: Signature) -> list[int]:
        """Where the fields of `h=` stand, in its order: of each name from the bottom up (RFC 6376 §5.4.2).

        A name listed more often than it occurs signs that there is no further one.
        """
        message, terms = self._message, signature.terms
        index, own_key = message.index, message.keys[position]
        if own_key in terms.signed_fields:  # it is hashed last, without its b=
            others = tuple(place for place in index[own_key] if place != position)
            index = {**index, own_key: others}
        return [
            places[-turn]
            for name, turn in terms.signed_turns
            if (places := index.get(name)) is not None and turn <= len(places)
        ]


def hash_body(pieces: Iterable[bytes], lengths: Iterable[int]) -> BodyHashes:
    """Hash a canonical body in one pass, noting the hash at each of the `lengths` on the way."""
    digest = hashlib.sha256()
    prefixes: dict[int, bytes] = {}
    ahead = sorted(lengths, reverse=True)
    done = 0
    for piece in chain((b"",), pieces):  # the first is for a length of 0, which an empty body has too
        rest = piece
        while ahead and ahead[-1] <= done + len(rest):
            cut = ahead[-1] - done
            digest.update(rest[:cut])
            rest = rest[cut:]
            done += cut
            prefixes[ahead.pop()] = digest.digest()
        digest.update(rest)
        done += len(rest)
    return BodyHashes(digest.digest(), done, prefixes)


def verify_signature(
    content: SignedContent,
    position: int,
    signature: Signature,
    record: KeyRecord,
) -> Problem | None:
    """Verify one signature with its key; None where it is right and nothing speaks against it.

    A signature that is right and yet not to be trusted is told from a wrong one: `dkim.short-key`, `dkim.body-length`
    and `dkim.unsigned-field` are only ever said of right ones.
    """
    terms = signature.terms
    problem = record.problem_with(signature)
    if problem:
        return problem
    body = content.body(terms.body_canonicalization)
    length = terms.body_length
    if length is not None and length > body.length:
        return (
            Problem.DKIM_BODY_TOO_SHORT
        )  # RFC 6376 §3.5, §6.1.1: it was cut on the way, or never was that long
    if (body.whole if length is None else body.prefixes[length]) != signature.body_hash:
        return Problem.DKIM_BODY_HASH
    if not record.verifies(signature.signature, content.header_digest(position, signature)):
        return Problem.DKIM_SIGNATURE
    if terms.algorithm is Algorithm.RSA_SHA256 and record.bits < MIN_TRUSTED_RSA_BITS:
        return Problem.DKIM_SHORT_KEY  # RFC 8301 §3.2
    if length is not None and length < body.length:
        return Problem.DKIM_BODY_LENGTH  # RFC 6376 §8.2: anything may have been added after the signed part
    if content.has_unsigned_double(signature):
        return Problem.DKIM_UNSIGNED_FIELD
    return None


def _body_chunks(message: Message) -> Iterator[bytes]:
    raw = message.raw
    for start in range(message.body_start, len(raw), CHUNK_BYTES):
        yield raw[start : start + CHUNK_BYTES]

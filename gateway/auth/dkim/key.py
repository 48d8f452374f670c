"""What a signing domain publishes at `selector._domainkey.domain` (RFC 6376 §3.6, RFC 8301 §3.2, RFC 8463 §4)."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Final, cast

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key

from gateway.auth.dkim.signature import Algorithm, Signature
from gateway.auth.dkim.tags import DkimError, decode_base64, parse_tags, split_words, without_white_space
from gateway.auth.results import Problem

MIN_TRUSTED_RSA_BITS: Final = 1024  # RFC 8301 §3.2
MAX_RSA_BITS: Final = 8192
"""RFC 8301 §3.2 asks for 4096 and allows more. At 8192 a verification still costs only a fraction of a millisecond."""

MAX_RECORD_BYTES: Final = 4096
"""An 8192-bit key is 1.5 KB of base64; more is refused unread, so that what the cache holds is bounded in bytes too."""

_MAX_KEY_BYTES: Final = MAX_RSA_BITS // 8 + 64  # the modulus, a small exponent and the DER around them
_MAX_RSA_EXPONENT: Final = (
    2**32
)  # an exponent as long as the modulus makes each verification a hundred times dearer
_ED25519_BYTES: Final = 32
ED25519_BITS: Final = 256
_CACHED_KEYS: Final = 2048

_PADDING: Final = PKCS1v15()
_PREHASHED: Final = Prehashed(SHA256())


class KeyType(StrEnum):
    """`k=`."""

    RSA = "rsa"
    ED25519 = "ed25519"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecord:
    """A key that may be used for mail and with SHA-256.

    Attributes:
        algorithm: what it verifies; the classes of `key` are slow to ask.
        bits: of the RSA modulus; 256 for Ed25519.
        testing: `t=y`: its failures are not to be held against the message (RFC 6376 §3.6.1).
        strict: `t=s`: the domain of `i=` must be `d=` itself, no subdomain.
    """

    key: RSAPublicKey | Ed25519PublicKey
    algorithm: Algorithm
    bits: int
    testing: bool = False
    strict: bool = False

    def problem_with(self, signature: Signature) -> Problem | None:
        """Why this key must not be used for this signature, if it must not."""
        terms = signature.terms
        if not self.fits(terms.algorithm):
            return Problem.DKIM_KEY_ALGORITHM
        if self.strict and terms.auid.rpartition("@")[2] != terms.domain:
            return Problem.DKIM_KEY_STRICT
        return None

    def fits(self, algorithm: Algorithm) -> bool:
        """Whether it is a key of this algorithm."""
        return self.algorithm is algorithm

    def verifies(self, signature: bytes, digest: bytes) -> bool:
        """Whether `signature` was made with this key's private half over the SHA-256 hash `digest`."""
        try:
            if self.algorithm is Algorithm.RSA_SHA256:
                cast("RSAPublicKey", self.key).verify(signature, digest, _PADDING, _PREHASHED)
            else:  # RFC 8463 §3: plain Ed25519 over the hash
                cast("Ed25519PublicKey", self.key).verify(signature, digest)
        except (InvalidSignature, ValueError):  # ValueError: a key too short for the padding
            return False
        return True


def select_key(records: Sequence[bytes]) -> KeyRecord:
    """Choose and read the key among the TXT records found at its name.

    RFC 6376 §3.6.2.2 leaves several records undefined. Where a wildcard or a stray verification string stands beside one
    key there is no doubt which is meant; where two different keys stand there, taking either would let the answer's order
    decide.

    Raises:
        DkimError: none or several are meant as keys, or the one that is cannot be used.
    """
    if len(records) == 1:
        return parse_key(records[0])
    candidates = {record for record in records if _looks_like_key(record)}
    if len(candidates) > 1:
        raise DkimError(Problem.DKIM_KEY_SEVERAL, "several keys at one name")
    if not candidates:
        raise DkimError(Problem.DKIM_KEY_SYNTAX, "several TXT records, none of which is a key")
    return parse_key(candidates.pop())


def parse_key(record: bytes) -> KeyRecord:
    """Read a key record; usable keys are remembered by the bytes of their record.

    Raises:
        DkimError: it cannot be used; its `problem` says why.
    """
    if len(record) > MAX_RECORD_BYTES:
        raise DkimError(Problem.DKIM_KEY_TOO_LARGE, "a key record that is too long")
    return _parse_key(record)


@lru_cache(maxsize=_CACHED_KEYS)
def _parse_key(record: bytes) -> KeyRecord:
    try:
        tags = parse_tags(record)
    except DkimError as error:
        raise DkimError(Problem.DKIM_KEY_SYNTAX, str(error)) from error
    if "v" in tags and (tags["v"] != "DKIM1" or next(iter(tags)) != "v"):  # RFC 6376 §3.6.1
        raise DkimError(Problem.DKIM_KEY_SYNTAX, "v= is not DKIM1, or not first")
    if not {"*", "email"}.intersection(split_words(tags.get("s", "*").lower())):
        raise DkimError(Problem.DKIM_KEY_SERVICE, "s= does not allow the key for mail")
    if "sha256" not in split_words(tags.get("h", "sha256").lower()):
        raise DkimError(Problem.DKIM_KEY_HASH, "h= does not allow SHA-256")
    key_type = tags.get("k", "rsa").lower()
    if key_type not in frozenset(KeyType):
        raise DkimError(Problem.DKIM_KEY_ALGORITHM, "k= names an algorithm that we do not know")
    key, algorithm, bits = _load(KeyType(key_type), _key_bytes(tags))
    flags = split_words(tags.get("t", "").lower())
    return KeyRecord(key=key, algorithm=algorithm, bits=bits, testing="y" in flags, strict="s" in flags)


def _key_bytes(tags: dict[str, str]) -> bytes:
    if "p" not in tags:
        raise DkimError(Problem.DKIM_KEY_SYNTAX, "no p=")
    text = without_white_space(tags["p"])
    if not text:
        raise DkimError(Problem.DKIM_KEY_REVOKED, "p= is empty: the key is revoked")
    try:
        return decode_base64(text)
    except DkimError as error:
        raise DkimError(Problem.DKIM_KEY_SYNTAX, "p= is not base64") from error


def _load(key_type: KeyType, data: bytes) -> tuple[RSAPublicKey | Ed25519PublicKey, Algorithm, int]:
    match key_type:
        case KeyType.RSA:
            key = _load_rsa(data)
            return key, Algorithm.RSA_SHA256, key.key_size
        case KeyType.ED25519:
            if len(data) != _ED25519_BYTES:
                raise DkimError(Problem.DKIM_KEY_SYNTAX, "an Ed25519 key is 32 bytes")
            return Ed25519PublicKey.from_public_bytes(data), Algorithm.ED25519_SHA256, ED25519_BITS


def _load_rsa(data: bytes) -> RSAPublicKey:
    """Read a SubjectPublicKeyInfo, or a bare RSAPublicKey: RFC 6376 §3.6.1 asks for the second, all publish the first."""
    if len(data) > _MAX_KEY_BYTES:
        raise DkimError(Problem.DKIM_KEY_TOO_LARGE, "an RSA key that is too large")
    try:
        key = load_der_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise DkimError(Problem.DKIM_KEY_SYNTAX, "p= is not a public key") from error
    if not isinstance(key, RSAPublicKey):
        raise DkimError(Problem.DKIM_KEY_ALGORITHM, "p= is not an RSA key")
    if key.key_size > MAX_RSA_BITS:
        raise DkimError(Problem.DKIM_KEY_TOO_LARGE, "an RSA key that is too large")
    exponent = key.public_numbers().e
    if exponent > _MAX_RSA_EXPONENT or exponent % 2 == 0:
        raise DkimError(Problem.DKIM_KEY_SYNTAX, "an RSA exponent that no honest key has")
    return key


def _looks_like_key(record: bytes) -> bool:
    try:
        tags = parse_tags(record)
    except DkimError:
        return False
    return "p" in tags and tags.get("v", "DKIM1") == "DKIM1"

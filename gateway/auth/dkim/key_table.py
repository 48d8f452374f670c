"""The private keys that we sign with, and whose mail each may sign (RFC 6376 §3.6, RFC 8301 §3.2, RFC 8463).

All are read at once, at start and at SIGHUP: with one of them missing or unusable none is taken, and what was in force
before stays so. A message that leaves unsigned because of a mistyped path is found out weeks later, by a receiver.
"""

import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from gateway.auth.dkim.key import ED25519_BITS, KeyRecord
from gateway.auth.dkim.signature import Algorithm

MIN_RSA_BITS: Final = 1024  # RFC 8301 §3.2: MUST
RECOMMENDED_RSA_BITS: Final = 2048  # RFC 8301 §3.2: SHOULD
MAX_RSA_BITS: Final = 4096
"""RFC 8301 §3.2: verifiers need not take more; and each doubling makes a signature seven times dearer."""

MAX_KEY_FILE_BYTES: Final = 64 * 1024

PrivateKey = RSAPrivateKey | Ed25519PrivateKey

_PADDING: Final = PKCS1v15()
_PREHASHED: Final = Prehashed(SHA256())
_NEW_KEY: Final = "`gateway keys new` makes a good one"
_PASTED: Final = {
    b"PUBLIC KEY": ("holds a public key", "give the file of the private key that belongs to it"),
    b"CERTIFICATE": ("holds a certificate", "give a private key; DKIM has no certificates"),
    b"OPENSSH PRIVATE KEY": ("holds a key of OpenSSH's own form", _NEW_KEY),
}
"""What is found in PEM files that hold no private key for us."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningEntry:
    """One key that is to sign, as config or key directory name it.

    Attributes:
        domain: `d=`, in A-labels and lower case.
        selector: `s=`, likewise.
        key_path: the private key (PEM): RSA or Ed25519.
        subdomains: whether it signs for authors in subdomains, too, that have no key of their own.
        expires_after_s: how long its signatures are good (`x=`); None: for ever.
    """

    domain: str
    selector: str
    key_path: Path
    subdomains: bool = True
    expires_after_s: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFault:
    """What is wrong with one entry, and what to do about it."""

    entry: SigningEntry
    what: str
    remedy: str

    def __str__(self) -> str:
        """One line that names the file."""
        entry = self.entry
        return f"{entry.key_path}: the key {entry.domain}/{entry.selector} {self.what}; {self.remedy}"


class KeyTableError(Exception):
    """Keys that cannot be used. `faults` is everything that is wrong with all of them."""

    def __init__(self, faults: Sequence[KeyFault]) -> None:
        super().__init__("\n".join(map(str, faults)))
        self.faults: Final = tuple(faults)


class KeyFileError(Exception):
    """A file that holds no key to sign with: what is wrong with it, and the remedy."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what}; {remedy}")
        self.what: Final = what
        self.remedy: Final = remedy


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningKey:
    """A private key in use."""

    domain: str
    selector: str
    subdomains: bool
    expires_after_s: int | None
    private_key: PrivateKey

    @property
    def name(self) -> str:
        """What operators know it by: `example.net/2026a`."""
        return f"{self.domain}/{self.selector}"

    @property
    def algorithm(self) -> Algorithm:
        """`a=`."""
        return algorithm_of(self.private_key)

    @property
    def record(self) -> KeyRecord:
        """Its public half, as the DNS should have it."""
        return _public_half(self.private_key)

    def sign(self, digest: bytes) -> bytes:
        """`b=` for a SHA-256 hash."""
        return sign_digest(self.private_key, digest)


class KeyTable:
    """Which keys sign for which author's domain.

    Args:
        keys: in the order in which the signatures of one domain are to stand.
        warnings: what the operator should know about keys that are nevertheless used.
    """

    def __init__(self, keys: Iterable[SigningKey] = (), warnings: Iterable[KeyFault] = ()) -> None:
        self.keys: Final = tuple(keys)
        self.warnings: Final = tuple(warnings)
        self._own: dict[str, tuple[SigningKey, ...]] = {}
        self._with_subdomains: dict[str, tuple[SigningKey, ...]] = {}
        for key in self.keys:
            self._own[key.domain] = (*self._own.get(key.domain, ()), key)
            if key.subdomains:
                self._with_subdomains[key.domain] = (*self._with_subdomains.get(key.domain, ()), key)

    @property
    def names(self) -> tuple[str, ...]:
        """What operators know the keys by, in order."""
        return tuple(key.name for key in self.keys)

    def keys_for(self, author_domain: str) -> tuple[SigningKey, ...]:
        """The keys of this very domain, else those of the nearest parent that signs for its subdomains; or none.

        `author_domain` is in A-labels and lower case. A parent's signature is aligned with the author only where DMARC's
        alignment is relaxed (RFC 9989 §5.1), as it is unless a domain asks for `adkim=s`.
        """
        own = self._own.get(author_domain)
        if own:
            return own
        _, dot, parent = author_domain.partition(".")
        while dot:
            keys = self._with_subdomains.get(parent)
            if keys:
                return keys
            _, dot, parent = parent.partition(".")
        return ()


def load_key_table(entries: Iterable[SigningEntry]) -> KeyTable:
    """Read every entry's key.

    Raises:
        KeyTableError: with every fault of every entry.
    """
    keys: list[SigningKey] = []
    faults: list[KeyFault] = []
    warnings: list[KeyFault] = []
    names: set[tuple[str, str]] = set()
    for entry in entries:
        if (entry.domain, entry.selector) in names:
            faults.append(
                KeyFault(
                    entry=entry,
                    what=f"is under a name that another key has already ({entry.domain}/{entry.selector})",
                    remedy="take one of the two out, or give it a selector of its own",
                )
            )
            continue
        names.add((entry.domain, entry.selector))
        try:
            private_key = load_private_key(entry.key_path)
        except KeyFileError as error:
            faults.append(KeyFault(entry=entry, what=error.what, remedy=error.remedy))
            continue
        warnings += (
            KeyFault(entry=entry, what=what, remedy=remedy)
            for what, remedy in _doubts(entry.key_path, private_key)
        )
        keys.append(
            SigningKey(
                domain=entry.domain,
                selector=entry.selector,
                subdomains=entry.subdomains,
                expires_after_s=entry.expires_after_s,
                private_key=private_key,
            )
        )
    if faults:
        raise KeyTableError(faults)
    return KeyTable(keys, warnings)


def load_private_key(path: Path) -> PrivateKey:
    """Read one private key to sign with.

    Raises:
        KeyFileError: there is none, or not one that may be used.
    """
    content = _read(path)
    try:
        # OpenSSL's own check takes 100 ms a key, while which nothing else runs; `_can_sign` asks what matters in half of one.
        key = load_pem_private_key(content, password=None, unsafe_skip_rsa_key_validation=True)
    except TypeError:
        raise KeyFileError(
            "is encrypted", "give it without a passphrase: nobody is there to type it at start-up"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        for words, (what, remedy) in _PASTED.items():
            if b"-----BEGIN " + words in content:
                raise KeyFileError(what, remedy) from None
        raise KeyFileError("is no readable private key in PEM form", _NEW_KEY) from None
    if isinstance(key, Ed25519PrivateKey):
        return key
    if not isinstance(key, RSAPrivateKey):
        kind = type(key).__name__.removeprefix("_").removesuffix("PrivateKey")
        raise KeyFileError(f"is of a kind that DKIM does not know ({kind})", "give an RSA or Ed25519 key")
    if key.key_size < MIN_RSA_BITS:
        raise KeyFileError(
            f"has {key.key_size} bits, and no verifier takes less than {MIN_RSA_BITS}", _NEW_KEY
        )
    if key.key_size > MAX_RSA_BITS:
        raise KeyFileError(
            f"has {key.key_size} bits, and verifiers need not take more than {MAX_RSA_BITS}", _NEW_KEY
        )
    if not _can_sign(key):
        raise KeyFileError("is damaged: what it signs, its own public half does not verify", _NEW_KEY)
    return key


def algorithm_of(key: PrivateKey) -> Algorithm:
    """`a=` for signatures of this key."""
    return Algorithm.RSA_SHA256 if isinstance(key, RSAPrivateKey) else Algorithm.ED25519_SHA256


def sign_digest(key: PrivateKey, digest: bytes) -> bytes:
    """The signature over a SHA-256 hash; Ed25519 signs the hash itself (RFC 8463 §3)."""
    if isinstance(key, RSAPrivateKey):
        return key.sign(digest, _PADDING, _PREHASHED)
    return key.sign(digest)


def _public_half(key: PrivateKey) -> KeyRecord:
    if isinstance(key, RSAPrivateKey):
        return KeyRecord(key=key.public_key(), algorithm=Algorithm.RSA_SHA256, bits=key.key_size)
    return KeyRecord(key=key.public_key(), algorithm=Algorithm.ED25519_SHA256, bits=ED25519_BITS)


def _can_sign(key: PrivateKey) -> bool:
    digest = bytes(32)
    try:
        return _public_half(key).verifies(sign_digest(key, digest), digest)
    except Exception:  # noqa: BLE001 - what OpenSSL says of numbers that are no key is not documented
        return False


def _read(path: Path) -> bytes:
    try:
        # Not every path is a file that ends: a FIFO would keep the start waiting.
        if not stat.S_ISREG(path.stat().st_mode):
            raise KeyFileError("is not a regular file", "give the key's own file")
        with path.open("rb") as file:
            content = file.read(MAX_KEY_FILE_BYTES + 1)
    except FileNotFoundError:
        raise KeyFileError(
            "is missing: there is no such file", "look at the path; a relative one starts at the config file"
        ) from None
    except PermissionError:
        raise KeyFileError(
            "may not be read by the gateway's user", "give that user, and nobody else, the right to read it"
        ) from None
    except OSError as error:
        raise KeyFileError(f"cannot be read: {error.strerror or error}", "look at the file") from None
    if len(content) > MAX_KEY_FILE_BYTES:
        raise KeyFileError(f"is over {MAX_KEY_FILE_BYTES} bytes", "give the file of one private key")
    return content


def _doubts(path: Path, key: PrivateKey) -> Iterable[tuple[str, str]]:
    """What is not as it should be with a key that can be used."""
    try:
        is_open = bool(path.stat().st_mode & stat.S_IROTH)
    except OSError:  # it has gone since it was read
        is_open = False
    if is_open:
        yield "can be read by every user of this host", f"chmod o-r {path}"
    if isinstance(key, RSAPrivateKey) and key.key_size < RECOMMENDED_RSA_BITS:
        yield (
            f"has {key.key_size} bits, where RFC 8301 asks for {RECOMMENDED_RSA_BITS}",
            "change to a longer one: some receivers do not count it",
        )

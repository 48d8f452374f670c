"""Making private keys (PEM, PKCS #8), and their public halves as DKIM publishes them (RFC 6376 §3.6.1, RFC 8463 §4.2)."""

import base64
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from gateway.auth.dkim.key import KeyType
from gateway.auth.dkim.key_table import PrivateKey

_EXPONENT: Final = 65_537


def make_private_key(algorithm: KeyType, bits: int) -> PrivateKey:
    """A new key; `bits` is for RSA alone."""
    match algorithm:
        case KeyType.RSA:
            return generate_private_key(_EXPONENT, bits)
        case KeyType.ED25519:
            return Ed25519PrivateKey.generate()


def to_pem(key: PrivateKey) -> bytes:
    """The text of its file."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def type_of(key: PrivateKey) -> KeyType:
    """Its `k=`."""
    return KeyType.RSA if isinstance(key, RSAPrivateKey) else KeyType.ED25519


def public_text(key: PrivateKey) -> str:
    """`p=`: a SubjectPublicKeyInfo for RSA, as all publish it; the bare 32 bytes for Ed25519 (RFC 8463 §4.2)."""
    public = key.public_key()
    if isinstance(key, RSAPrivateKey):
        encoded = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    else:
        encoded = public.public_bytes(Encoding.Raw, PublicFormat.Raw)
    return base64.b64encode(encoded).decode("ascii")

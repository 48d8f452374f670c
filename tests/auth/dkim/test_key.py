import base64
import os

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from gateway.auth.dkim.key import MAX_RSA_BITS, parse_key, select_key
from gateway.auth.dkim.tags import DkimError
from gateway.auth.results import Problem
from tests.auth.dkim.signing import ed25519_public, rsa_key, rsa_public, short_public


def published(modulus: int, exponent: int = 65537) -> bytes:
    key = RSAPublicNumbers(exponent, modulus).public_key()
    return b"p=" + base64.b64encode(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def modulus(bits: int) -> int:
    return int.from_bytes(os.urandom(bits // 8)) | 1 << (bits - 1) | 1


def elliptic() -> bytes:
    public = generate_private_key(SECP256R1()).public_key()
    return b"p=" + base64.b64encode(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def test_sizes_are_reported() -> None:
    assert parse_key(b"p=" + rsa_public().encode()).bits == 2048
    assert parse_key(b"k=ed25519; p=" + ed25519_public().encode()).bits == 256
    assert parse_key(b"p=" + short_public().encode()).bits == 768
    assert parse_key(published(modulus(MAX_RSA_BITS))).bits == MAX_RSA_BITS


def test_a_key_is_parsed_once() -> None:
    record = b"v=DKIM1; p=" + rsa_public().encode()

    assert parse_key(record) is parse_key(bytes(bytearray(record)))


BAD = [
    (published(modulus(MAX_RSA_BITS + 8)), Problem.DKIM_KEY_TOO_LARGE, "a little too large"),
    (published(modulus(16384)), Problem.DKIM_KEY_TOO_LARGE, "seconds per verification elsewhere"),
    (
        published(rsa_key(2048).public_key().public_numbers().n, 2**64 + 1),
        Problem.DKIM_KEY_SYNTAX,
        "a dear exponent",
    ),
    (elliptic(), Problem.DKIM_KEY_ALGORITHM, "another kind of key under k=rsa"),
    (b"p=" + ed25519_public().encode(), Problem.DKIM_KEY_SYNTAX, "Ed25519 without k="),
    (b"p=AAAA", Problem.DKIM_KEY_SYNTAX, "not a key"),
    (b"p=A", Problem.DKIM_KEY_SYNTAX, "not base64"),
    (b"p=" + rsa_public().encode() + b"AAAA", Problem.DKIM_KEY_SYNTAX, "bytes after the key"),
    (b"k=ed25519; p=AAAA", Problem.DKIM_KEY_SYNTAX, "not 32 bytes"),
    (b"p=AAAA; p=AAAA", Problem.DKIM_KEY_SYNTAX, "a tag twice"),
    (b"\xff", Problem.DKIM_KEY_SYNTAX, "not text"),
]


@pytest.mark.parametrize(("record", "problem", "why"), BAD)
def test_bad(record: bytes, problem: Problem, why: str) -> None:
    with pytest.raises(DkimError) as caught:
        parse_key(record)
    assert caught.value.problem is problem, why


def test_the_order_of_the_records_does_not_decide() -> None:
    records = [b"p=" + rsa_public().encode(), b"k=ed25519; p=" + ed25519_public().encode()]

    for several in (records, records[::-1]):
        with pytest.raises(DkimError) as caught:
            select_key(several)
        assert caught.value.problem is Problem.DKIM_KEY_SEVERAL


PARTS = st.sampled_from(
    [b"v=DKIM1", b"k=rsa", b"k=ed25519", b"p=", b"p=AAAA", b"t=y:s", b"h=sha256", b"s=*", b";", b" "]
)


@given(
    st.lists(PARTS).map(b";".join)
    | st.binary()
    | st.binary(max_size=400).map(lambda data: b"p=" + base64.b64encode(data))
)
def test_anything_is_read_or_refused(record: bytes) -> None:
    for records in ([record], [record, b"p=AAAA"]):
        problem = None
        try:
            select_key(records)
        except DkimError as error:
            problem = error.problem
        assert problem is None or problem.startswith("dkim.key-")

"""Keys: those that are named, and those that are found by chance."""

from base64 import b64encode
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from gateway.doctor.codes import Code
from gateway.doctor.examine import examine
from tests.doctor.zones import DOMAIN, HOST, tools


def public(bits: int) -> str:
    """Of that size; nobody need have its private half."""
    key = RSAPublicNumbers(65_537, (1 << (bits - 1)) + 1).public_key()
    text = b64encode(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).decode()
    return '" "'.join(text[at : at + 200] for at in range(0, len(text), 200))


SHORT, WEAK, GOOD = public(512), public(1024), public(2048)
CASES = [
    (f"v=DKIM1; p={GOOD}", Code.DKIM_OK, "RSA, 2048 bits"),
    (f"p={GOOD}", Code.DKIM_OK, "RSA, 2048 bits"),
    (f"v=DKIM1; t=s; p={GOOD}", Code.DKIM_OK, "t=s"),
    (f"v=DKIM1; k=ed25519; p={b64encode(b'k' * 32).decode()}", Code.DKIM_OK, "Ed25519"),
    (f"v=DKIM1; t=y; p={GOOD}", Code.DKIM_TESTING, "2048 bits, t=y"),
    (f"v=DKIM1; p={WEAK}", Code.DKIM_WEAK_KEY, "1024 bits"),
    (f"v=DKIM1; p={SHORT}", Code.DKIM_SHORT_KEY, "512 bits"),
    ("v=DKIM1; p=", Code.DKIM_REVOKED, "revoked"),
    ("v=DKIM1; p=AAAA", Code.DKIM_UNUSABLE, "not a public key"),
    (f"v=DKIM1; h=sha1; p={GOOD}", Code.DKIM_UNUSABLE, "SHA-256"),
    (f"v=DKIM2; p={GOOD}", Code.DKIM_UNUSABLE, "DKIM1"),
]


@pytest.mark.parametrize(("record", "code", "found"), CASES)
@pytest.mark.parametrize("selector", ["named", "google"])
async def test_keys(record: str, code: Code, found: str, selector: str) -> None:
    """The same by a name that was given and by one that many use."""
    with_selector = replace(tools(f'{HOST}{selector}._domainkey TXT "{record}"\n'), selectors=["named"])
    report = await examine(DOMAIN, with_selector)
    (one,) = [one for one in report.findings if one.about == selector]
    assert one.code is code
    assert found in one.found


async def test_a_key_that_was_named_and_is_not_there_is_an_error() -> None:
    report = await examine(DOMAIN, replace(tools(HOST), selectors=["2026a"]))
    assert [one.about for one in report.findings if one.code is Code.DKIM_MISSING] == ["2026a"]


async def test_a_wildcard_with_a_key_beside_it() -> None:
    zone = f'{HOST}*._domainkey TXT "v=DKIM1; p="\ns1._domainkey TXT "v=DKIM1; p={GOOD}"\n'
    report = await examine(DOMAIN, tools(zone))
    found = {(one.code, one.about) for one in report.findings if one.code.startswith("dkim.")}
    assert found == {(Code.DKIM_WILDCARD, "*"), (Code.DKIM_OK, "s1")}

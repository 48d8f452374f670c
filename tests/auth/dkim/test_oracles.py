"""Foreign signers' messages verify here, and a foreign verifier agrees, but where it is known to be wrong.

dkimpy is known to differ, on purpose or not, where: From is not in h= or there twice; rsa-sha1; l=; the key's t=s, h=, s=; white
space beyond blank and tab; bare line ends; an unterminated last line. None of these is generated here.
"""

import base64
import re
import shutil
import subprocess
import time
from pathlib import Path

import dkim
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.auth.dkim import check_dkim
from gateway.auth.dkim.canonical import Canonicalization
from gateway.auth.results import DkimStatus
from gateway.mail.message import Message
from tests.auth.dkim.signing import (
    MESSAGE,
    NOW,
    Signer,
    canonical_message,
    ed25519_key,
    ed25519_public,
    rsa_pem,
    rsa_public,
    zone,
)

SIMPLE, RELAXED = Canonicalization.SIMPLE, Canonicalization.RELAXED
FORMS = [(header, body) for header in Canonicalization for body in Canonicalization]

START = b"From: Joe <joe@example.org>\r\nDate: Fri, 11 Jul 2025 21:00:37 -0700\r\n"
MESSAGES = {
    "7-bit": START + b"Subject: x\r\n\r\nHello.\r\n",
    "8-bit": START + "Subject: Grüße\r\n\r\nGrüße aus Köln, 你好.\r\n".encode(),
    "binary": START + b"Subject: x\r\n\r\n\x80\xff\xfe\r\n",
    "no body": START + b"Subject: x\r\n\r\n",
    "one empty line": START + b"Subject: x\r\n\r\n\r\n",
    "empty lines at the end": START + b"Subject: x\r\n\r\nHi\r\n\r\n\r\n\r\n",
    "blank lines at the end": START + b"Subject: x\r\n\r\nHi\r\n \r\n\t\r\n",
    "blanks and tabs": START + b"Subject:  a \t b \r\n\r\n  a\t\tb  c \r\n\t\r\nd\r\n",
    "dots": START + b"Subject: x\r\n\r\n.\r\n..\r\n.x\r\n",
    "folded": START + b"Subject: " + b"\r\n ".join([b"word" * 10] * 40) + b"\r\n\r\nHi\r\n",
    "folded at once": START + b"Subject:\r\n\tx\r\n \r\n y\r\n\r\nHi\r\n",
    "obsolete name": START + b"Subject : x\r\n\r\nHi\r\n",
    "many fields": START + b"".join(b"X-Hop: %d\r\n" % hop for hop in range(50)) + b"\r\nHi\r\n",
    "a long line": START + b"Subject: x\r\n\r\n" + b"x" * 998 + b"\r\n",
    "100 KB": START + b"Subject: x\r\n\r\n" + b"A line of \t text, neither long nor short. \r\n" * 2400,
}


def foreign_verdict(raw: bytes) -> bool:
    records = {
        b"rsa._domainkey.example.org.": b"v=DKIM1; p=" + rsa_public().encode(),
        b"ed._domainkey.example.org.": b"v=DKIM1; k=ed25519; p=" + ed25519_public().encode(),
    }
    try:
        return bool(dkim.verify(raw, dnsfunc=lambda name, timeout=5: records.get(name)))
    except dkim.DKIMException:
        return False


async def our_verdict(raw: bytes, now: float = NOW) -> DkimStatus:
    return (await check_dkim(Message(raw), zone(), now=now))[0].status


@pytest.mark.parametrize(("header", "body"), FORMS)
@pytest.mark.parametrize("raw", MESSAGES.values(), ids=MESSAGES)
@pytest.mark.parametrize("algorithm", [b"rsa-sha256", b"ed25519-sha256"])
async def test_what_dkimpy_signs(
    raw: bytes,
    header: Canonicalization,
    body: Canonicalization,
    algorithm: bytes,
) -> None:
    if b"Subject :" in raw:
        pytest.skip("dkimpy refuses the obsolete form")
    ed25519 = algorithm == b"ed25519-sha256"
    field = dkim.sign(
        raw,
        b"ed" if ed25519 else b"rsa",
        b"example.org",
        base64.b64encode(ed25519_key().private_bytes_raw()) if ed25519 else rsa_pem(),
        canonicalize=(header.encode(), body.encode()),
        signature_algorithm=algorithm,
        include_headers=[b"from", b"date", b"subject", b"subject", b"x-hop", b"x-hop"],
        length=raw.endswith(b"Hello.\r\n"),
    )

    assert await our_verdict(field + raw, time.time()) is DkimStatus.PASS  # dkimpy stamps t= by the clock


@pytest.mark.parametrize(("header", "body"), FORMS)
@pytest.mark.parametrize("raw", MESSAGES.values(), ids=MESSAGES)
def test_what_we_sign_for_tests_verifies_with_dkimpy(
    raw: bytes,
    header: Canonicalization,
    body: Canonicalization,
) -> None:
    if b"Subject :" in raw:
        pytest.skip("dkimpy refuses the obsolete form")

    assert foreign_verdict(Signer(header=header, body=body, signed="from:date:subject:subject").sign(raw))


BLANK_BEFORE_COLON = re.compile(rb"^[!-9;-~]+[ \t]+:", re.MULTILINE)
"""A field in the obsolete form (RFC 5322 §4.5)."""

WORDS = st.sampled_from(
    [b"a", b"b", b" ", b"\t", b"  ", b"\r\n", b"\r\n ", b"\r\n\r\n", b".", b":", b"\xc3\xbc"]
)


@settings(max_examples=60)
@given(st.sampled_from(FORMS), st.integers(0, len(MESSAGE)), WORDS, st.integers(0, 3))
async def test_dkimpy_agrees_on_every_change(
    forms: tuple[Canonicalization, Canonicalization],
    at: int,
    word: bytes,
    cut: int,
) -> None:
    raw = Signer(header=forms[0], body=forms[1]).sign(MESSAGE)
    place = len(raw) - len(MESSAGE) + at
    changed = raw[:place] + word + raw[place + cut :]
    message = Message(changed)
    if message.defects or len(message.positions(b"from")) != 1 or not changed.endswith(b"\r\n"):
        return  # where dkimpy is known to differ
    if BLANK_BEFORE_COLON.search(changed[: message.body_start]):
        return  # it does not find a field that is written so; see below

    assert (await our_verdict(changed) is DkimStatus.PASS) == foreign_verdict(changed)


@pytest.mark.parametrize("body", [SIMPLE, RELAXED])
async def test_relaxed_forgives_a_blank_before_the_colon(body: Canonicalization) -> None:
    """RFC 6376 §3.4.2: white space before and after the colon is deleted; the form is obsolete, not wrong (RFC 5322 §4.5)."""
    raw = Signer(header=RELAXED, body=body).sign(MESSAGE)
    start = len(raw) - len(MESSAGE)
    changed = raw[:start] + MESSAGE.replace(b"Subject:", b"Subject \t:", 1)
    assert changed != raw
    assert await our_verdict(changed) is DkimStatus.PASS
    assert not foreign_verdict(changed), "dkimpy has learnt it: BLANK_BEFORE_COLON can go"


@pytest.mark.parametrize(("header", "body"), FORMS)
async def test_no_byte_can_be_changed_unnoticed(header: Canonicalization, body: Canonicalization) -> None:
    raw = Signer(header=header, body=body).sign(MESSAGE)
    start = len(raw) - len(MESSAGE)
    before = canonical_message(MESSAGE, header, body)
    passed = 0
    for at in range(start, len(raw)):
        for change in (raw[at] ^ 1, raw[at] ^ 0x20, 0x20):
            changed = raw[:at] + bytes([change]) + raw[at + 1 :]
            if changed == raw:
                continue
            same = canonical_message(changed[start:], header, body) == before
            assert (await our_verdict(changed) is DkimStatus.PASS) == same, (at - start, change)
            passed += same
    assert passed > 0 or header is SIMPLE, "relaxed forgives the case of a name"


async def test_no_byte_of_the_signature_field_can_be_changed_but_for_white_space() -> None:
    raw = Signer(header=SIMPLE, body=SIMPLE).sign(MESSAGE)
    size = len(raw) - len(MESSAGE)
    for at in range(len(b"DKIM-Signature:"), size - 2):
        changed = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
        results = await check_dkim(Message(changed), zone(), now=NOW)
        harmless = raw[at + 1 : at + 2] == b"="  # the unused bits before base64's padding
        assert harmless or all(result.status is not DkimStatus.PASS for result in results), at


def test_opendkim_agrees(tmp_path: Path) -> None:
    program = shutil.which("opendkim", path="/usr/sbin:/usr/bin:/usr/local/sbin")
    if program is None:
        pytest.skip("opendkim is not installed")
    (tmp_path / "keys").write_text(f"rsa._domainkey.example.org v=DKIM1; k=rsa; p={rsa_public()}\n")
    (tmp_path / "conf").write_text(f"TestPublicKeys {tmp_path}/keys\nMode v\n")
    right: set[str] = set()
    for number, raw in enumerate(MESSAGES.values()):
        for header, body in FORMS:
            if header is SIMPLE and not re.search(rb"Subject ?: \S", raw):
                continue  # like a milter, opendkim's test mode loses the white space after a colon
            signed = Signer(header=header, body=body, signed="from:date:subject:subject").sign(raw)
            name = f"{number}-{header}-{body}"
            (tmp_path / name).write_bytes(signed)
            (tmp_path / f"{name}-altered").write_bytes(signed + b"x\r\n")
            right.add(name)
    files = [name for good in sorted(right) for name in (good, f"{good}-altered")]

    done = subprocess.run(
        [program, "-x", "conf", "-t", ",".join(files)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    passed = {line.split(": ")[1] for line in done.stdout.splitlines() if line.endswith("succeeded")}
    assert passed == right, done.stdout + done.stderr

"""What we sign verifies with foreign verifiers: dkimpy, and OpenDKIM as a program."""

import random
import shutil
import subprocess
from pathlib import Path

import dkim
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.auth.dkim import check_dkim
from gateway.auth.results import DkimStatus
from gateway.mail.edits import Edits, NewField
from gateway.mail.message import Message
from tests.auth.dkim.signing import NOW, ed25519_public, rsa_public, zone
from tests.auth.dkim.test_sign import BOTH, handed_on, sign

START = b"From: Joe <joe@example.org>\r\nDate: Fri, 11 Jul 2025 21:00:37 -0700\r\n"

SIGNED_MAIL = {
    "7-bit": START + b"Subject: x\r\n\r\nHello.\r\n",
    "8-bit": START + "Subject: x\r\n\r\nGrüße aus Köln, 你好.\r\n".encode(),
    "UTF-8 in the header": START.replace(b"Joe ", "Jörg Müller ".encode()) + "Subject: Grüße, 你好\r\n\r\nHi\r\n".encode(),
    "Latin-1 in the header": START + b"Subject: Gr\xfc\xdfe\r\n\r\nHi\r\n",
    "binary": START + b"Subject: x\r\n\r\n\x80\xff\xfe\r\n",
    "no body": START + b"Subject: x\r\n\r\n",
    "one empty line": START + b"Subject: x\r\n\r\n\r\n",
    "empty lines at the end": START + b"Subject: x\r\n\r\nHi\r\n\r\n\r\n\r\n",
    "blank lines at the end": START + b"Subject: x\r\n\r\nHi\r\n \r\n\t\r\n",
    "blanks and tabs": START + b"Subject:  a \t b \r\n\r\n  a\t\tb  c \r\n\t\r\nd\r\n",
    "dots": START + b"Subject: x\r\n\r\n.\r\n..\r\n.x\r\n",
    "folded": START + b"Subject: " + b"\r\n ".join([b"word" * 10] * 40) + b"\r\n\r\nHi\r\n",
    "folded at once": START + b"Subject:\r\n\tx\r\n \r\n y\r\n\r\nHi\r\n",
    "no blank behind the colon": b"From:joe@example.org\r\nSubject:x\r\nTo:\r\n\r\nHi\r\n",
    "many recipients": START + b"To: " + b",\r\n\t".join(b"user%d@example.net" % n for n in range(300)) + b"\r\n\r\nHi\r\n",
    "many hops": START + b"".join(b"Received: by hop%d\r\n" % hop for hop in range(40)) + b"\r\nHi\r\n",
    "two of a kind": START + b"Subject: a\r\nSubject: b\r\nTo: c@example.net\r\nTo: d@example.net\r\n\r\nHi\r\n",
    "a list's": START + b"List-Id: <a.example.org>\r\nList-Unsubscribe: <https://a.example/>\r\n\r\nHi\r\n",
    "another's signature": START + b"DKIM-Signature: v=1; a=rsa-sha256; d=list.example; s=x; h=from; bh=YQ==; b=YQ==\r\n\r\nHi\r\n",
    "a line of 998": START + b"Subject: x\r\n\r\n" + b"x" * 998 + b"\r\n",
    "a line of 5000": START + b"Subject: x\r\n\r\n" + b"word " * 1000 + b"\r\n",
    "a subdomain's": b"From: root@host.example.org\r\nSubject: cron\r\n\r\nHi\r\n",
    "5 MB": START + b"Subject: x\r\n\r\n" + b"A line of \t text, neither long nor short. \r\n" * 116_000,
}  # fmt: skip


def dkimpy_verdicts(raw: bytes, count: int) -> list[bool]:
    """What dkimpy says of the first signatures of a message."""
    records = {
        b"rsa._domainkey.example.org.": b"v=DKIM1; p=" + rsa_public().encode(),
        b"ed._domainkey.example.org.": b"v=DKIM1; k=ed25519; p=" + ed25519_public().encode(),
    }
    verifier = dkim.DKIM(raw)
    return [verifier.verify(at, dnsfunc=lambda name, timeout=5: records.get(name)) for at in range(count)]


@pytest.mark.parametrize("raw", SIGNED_MAIL.values(), ids=SIGNED_MAIL)
def test_dkimpy(raw: bytes) -> None:
    left = handed_on(raw, Edits(prepend=(NewField("Message-ID", "<1@example.org>"),)))
    assert dkimpy_verdicts(left, 2) == [True, True]


WORDS = st.sampled_from(
    [b"a", b"b", b" ", b"\t", b"  ", b"\r\n", b"\r\n ", b".", b":", b"=", b"\xc3\xbc", b"b=x;"]
)


@settings(max_examples=100, deadline=None)
@given(st.lists(WORDS, max_size=12).map(b"".join), st.lists(WORDS, max_size=12).map(b"".join))
def test_dkimpy_on_any_subject_and_body(subject: bytes, body: bytes) -> None:
    raw = START + b"Subject: " + subject.replace(b"\r\n", b"\r\n ") + b"x\r\n\r\n" + body + b"\r\n"
    if sign(raw).fields:
        assert dkimpy_verdicts(handed_on(raw), 2) == [True, True]


def test_opendkim(tmp_path: Path) -> None:
    """Each algorithm by itself: OpenDKIM's test mode says one word for a whole message."""
    program = shutil.which("opendkim", path="/usr/sbin:/usr/bin:/usr/local/sbin")
    if program is None:
        pytest.skip("opendkim is not installed")
    (tmp_path / "keys").write_text(
        f"rsa._domainkey.example.org v=DKIM1; k=rsa; p={rsa_public()}\n"
        f"ed._domainkey.example.org v=DKIM1; k=ed25519; p={ed25519_public()}\n"
    )
    (tmp_path / "conf").write_text(f"TestPublicKeys {tmp_path}/keys\nMode v\n")
    able = {"rsa": BOTH[:1]}
    known = subprocess.run([program, "-V"], capture_output=True, text=True, check=False).stdout
    if "ed25519-sha256" in known:
        able |= {"ed25519": BOTH[1:], "both": BOTH}
    right: set[str] = set()
    for number, raw in enumerate(SIGNED_MAIL.values()):
        if b"list.example" in raw:
            continue  # a signature that nobody can verify is the one that it speaks of
        for word, keys in able.items():
            name = f"{number}-{word}"
            left = handed_on(raw, keys=keys)
            (tmp_path / name).write_bytes(left)
            (tmp_path / f"{name}-altered").write_bytes(left + b"x\r\n")
            right.add(name)
    files = [name for good in sorted(right) for name in (good, f"{good}-altered")]

    done = subprocess.run(
        [program, "-x", "conf", "-t", ",".join(files)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    passed = {line.split(": ")[1] for line in done.stdout.splitlines() if line.endswith("succeeded")}
    assert passed == right, done.stdout + done.stderr


async def test_no_byte_of_what_is_signed_can_be_changed_unnoticed() -> None:
    raw = handed_on(SIGNED_MAIL["7-bit"])
    start = raw.index(b"From:")
    choice = random.Random(6376)
    for at in range(start, len(raw) - 2):
        if raw[at : at + 1].isspace() or raw[at - 1 : at + 2] == b"\r\n":
            continue
        changed = raw[:at] + bytes([raw[at] ^ choice.choice((1, 2, 4))]) + raw[at + 1 :]
        statuses = {result.status for result in await check_dkim(Message(changed), zone(), now=NOW)}
        assert DkimStatus.PASS not in statuses, changed[start:]

"""What opendkim signs, as a signing milter on the real thing's own protocol, verifies here."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from gateway.auth.dkim import check_dkim
from gateway.auth.results import DkimStatus
from gateway.dns.zone import ZoneResolver
from gateway.mail.message import Message
from tests.corpus.make import rsa_record, txt
from tests.live.postfix import wait_until
from tests.milter.raw_client import Mail, RawClient

pytestmark = pytest.mark.live

OPENDKIM = shutil.which("opendkim", path="/usr/sbin:/usr/bin")

CONFIG = """\
Syslog no
Mode s
Domain signer.example
Selector test
KeyFile {folder}/key.pem
Canonicalization {canonicalization}
SignatureAlgorithm rsa-sha256
OversignHeaders From
Socket local:{folder}/socket
UMask 000
RequireSafeKeys no
"""


@pytest.fixture(
    scope="module",
    params=["relaxed/relaxed", "relaxed/simple", "simple/relaxed", "simple/simple"],
)
def signer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, ZoneResolver]]:
    if OPENDKIM is None:
        pytest.skip("opendkim is not installed: apt-get install opendkim")
    tmp_path = tmp_path_factory.mktemp("opendkim")
    key = rsa.generate_private_key(65537, 2048)
    (tmp_path / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )
    (tmp_path / "key.pem").chmod(0o600)
    (tmp_path / "conf").write_text(CONFIG.format(folder=tmp_path, canonicalization=request.param))
    process = subprocess.Popen([OPENDKIM, "-f", "-x", str(tmp_path / "conf")])
    try:
        wait_until((tmp_path / "socket").exists, "opendkim's socket")
        record = txt(rsa_record(key.public_key()))
        yield tmp_path / "socket", ZoneResolver.from_text(f"test._domainkey.signer.example. TXT {record}\n")
    finally:
        process.kill()  # it takes five seconds to end by itself, and has nothing to tidy
        process.wait()


@pytest.mark.parametrize(
    "body",
    [
        b"hello\r\n",
        b"",
        b"trailing blanks  \t\r\n\r\n\r\n",
        "Grüße\r\n.\r\n..dots\r\n".encode(),
        b"x" * 990 + b"\r\n",
    ],
    ids=["plain", "empty", "blanks", "8bit-and-dots", "long-line"],
)
async def test_a_signature_of_opendkim_verifies(signer: tuple[Path, ZoneResolver], body: bytes) -> None:
    path, resolver = signer
    headers = [
        (b"From", " Änn <ann@signer.example>".encode()),
        (b"To", b" bob@example.net,\n\tcarol@example.net"),
        (b"Subject", b"  two  blanks "),
        (b"Date", b" Mon, 23 Nov 2026 10:00:00 +0000"),
        (b"Message-ID", b" <1@signer.example>"),
    ]
    with RawClient(path) as client:
        client.connect(name=b"localhost", address=b"127.0.0.1")
        client.helo(b"localhost")
        answer = client.send(Mail(mail_from=(b"<ann@signer.example>",), headers=headers, body=body))
    ((_, name, value),) = answer.inserted
    assert name == "DKIM-Signature"
    signed = b"".join(
        field.replace(b"\n", b"\r\n") + b"\r\n"
        for field in [
            name.encode() + b":" + (b"" if value.startswith(b" ") else b" ") + value,
            *(n + b":" + v for n, v in headers),
        ]
    )
    message = Message(signed + b"\r\n" + body)
    (result,) = await check_dkim(message, resolver, now=2_000_000_000)
    assert result.status is DkimStatus.PASS, result
    altered = Message(signed.replace(b"two  blanks", b"too  blanks") + b"\r\n" + body)
    (result,) = await check_dkim(altered, resolver, now=2_000_000_000)
    assert result.status is DkimStatus.FAIL

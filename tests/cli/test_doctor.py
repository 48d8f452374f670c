"""`gateway doctor` from the command line: what a person reads, what a program gets, and the exit status."""

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from typer.testing import CliRunner

from gateway.cli.app import app
from gateway.doctor.codes import Code, Severity
from tests.doctor.zones import HOST

RUNNER = CliRunner()
GOOD = f"""$ORIGIN example.net.
{HOST}
@ TXT "v=spf1 mx -all"
_dmarc TXT "v=DMARC1; p=reject; rua=mailto:reports@example.net"
_smtp._tls TXT "v=TLSRPTv1; rua=mailto:reports@example.net"
"""
SIGNED = f"$SECURE on\n{GOOD}_25._tcp.mx TLSA 3 1 1 {'ab' * 32}\n"


def doctor(tmp_path: Path, zone: str, *arguments: str) -> tuple[int, str, str]:
    path = tmp_path / "zone.txt"
    path.write_text(zone)
    result = RUNNER.invoke(app, ["doctor", "--zone", str(path), *arguments])
    return result.exit_code, result.stdout, result.stderr


STATUS = [
    (SIGNED, 0),  # notes only
    (GOOD, 10),  # nothing protects the transport
    (SIGNED + "$TROUBLE _mta-sts ANY timeout\n", 11),
    (GOOD.replace("-all", "+all"), 12),
    ("other.example. A 192.0.2.1\n", 12),
]


@pytest.mark.parametrize(("zone", "status"), STATUS)
def test_exit_status_by_the_worst_finding(tmp_path: Path, zone: str, status: int) -> None:
    assert doctor(tmp_path, zone, "example.net")[0] == status


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["no domain"], "is no domain"), (["example.net", "--selector", "a b"], "is no selector")],
)
def test_what_cannot_be_used_is_2(tmp_path: Path, arguments: list[str], says: str) -> None:
    status, _, stderr = doctor(tmp_path, GOOD, *arguments)
    assert status == 2
    assert says in stderr


def test_a_person_reads_what_is_wrong_why_and_what_to_publish(tmp_path: Path) -> None:
    status, stdout, stderr = doctor(tmp_path, GOOD.replace("-all", "+all"), "postmaster@example.net")
    lines = stdout.splitlines()
    assert lines[0].startswith("example.net: 1 error, 1 warning, ")
    at = next(at for at, line in enumerate(lines) if "spf.allows-all" in line)
    assert lines[at].split() == ["SPF", "-", "+all", "spf.allows-all"]
    assert "Every server in the world passes, a spammer's too. (RFC 7208 §5.1)" in lines[at + 1]
    assert lines[at + 2].strip() == 'example.net. IN TXT "v=spf1 mx ~all"'
    assert (status, stderr) == (12, "")  # quick, so that no progress was told


def test_a_program_gets_one_object_and_nothing_else(tmp_path: Path) -> None:
    status, stdout, stderr = doctor(tmp_path, GOOD, "example.net", "--json")
    answer: dict[str, Any] = json.loads(stdout)
    assert stderr == ""
    assert (answer["domain"], answer["worst"], status) == ("example.net", "warning", 10)
    assert set(answer["counts"]) == set(Severity)
    assert {one["code"] for one in answer["findings"]} <= set(Code)
    (spf,) = [one for one in answer["findings"] if one["section"] == "spf"]
    assert spf == {
        "section": "spf",
        "code": "spf.ok",
        "severity": "ok",
        "about": None,
        "found": '"v=spf1 mx -all", 1 of 10 lookups',
        "why": "Receivers can tell which servers may send for the domain.",
        "standard": "RFC 7208 §2.6",
        "publish": [],
    }


CONFIG = """
authserv_id = "mx.example.net"
local_domains = ["example.net"]
[dns]
zone_file = "{zone}"
[inbound]
listen = ["127.0.0.1:2525"]
downstream = "127.0.0.1:10025"
[mta_sts]
mode = "enforce"
mx = ["other.example.net"]
[[signing]]
domain = "example.net"
selector = "2026a"
key = "{key}"
"""


@pytest.fixture
def rsa_key_file(tmp_path: Path) -> Path:
    key = rsa.generate_private_key(65_537, 2048)
    path = tmp_path / "2026a.pem"
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path.chmod(0o600)
    return path


def test_a_domain_of_ours_is_held_against_our_config(tmp_path: Path, rsa_key_file: Path) -> None:
    config, zone = tmp_path / "gateway.toml", tmp_path / "zone.txt"
    config.write_text(CONFIG.format(zone=zone, key=rsa_key_file))
    status, stdout, _ = doctor(tmp_path, GOOD, "example.net", "--config", str(config), "--json")
    found = {(one["code"], one["about"]): one for one in json.loads(stdout)["findings"]}
    assert found["ours.differs", "example.net"]["found"].startswith(
        "mx: [mta_sts] mx does not name mx.example.net"
    )
    missing = found["dkim.missing", "2026a"]
    assert missing["publish"][0].startswith("2026a._domainkey.example.net. IN TXT ")
    assert status == 12


def test_a_key_that_cannot_be_read_is_no_reason_to_look_at_nothing(tmp_path: Path) -> None:
    config, zone = tmp_path / "gateway.toml", tmp_path / "zone.txt"
    config.write_text(CONFIG.format(zone=zone, key=tmp_path / "nowhere.pem"))
    status, stdout, stderr = doctor(tmp_path, GOOD, "example.net", "--config", str(config), "--json")
    assert "what the config knows of example.net is left out" in stderr
    assert (status, json.loads(stdout)["worst"]) == (10, "warning")

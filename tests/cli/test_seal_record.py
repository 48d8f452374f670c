"""`gateway dns` knows the key that seals, so that nobody seals with one that is not published."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from gateway.cli.app import app
from tests.auth.dkim.signing import rsa_pem, rsa_public

CONFIG = """\
authserv_id = "mx.example.net"
local_domains = ["example.net"]
[milter]
listen = "unix:/run/gateway/milter.sock"
[arc]
seal_domain = "example.net"
seal_selector = "2026a"
seal_key = "key.pem"
"""
SIGNING = '[[signing]]\ndomain = "example.net"\nselector = "2026a"\nkey = "key.pem"\n'


@pytest.mark.parametrize(("config", "use"), [(CONFIG, "seals (ARC)"), (CONFIG + SIGNING, "signs")])
def test_the_seals_key_is_to_be_published_once(tmp_path: Path, config: str, use: str) -> None:
    (tmp_path / "gateway.toml").write_text(config)
    (tmp_path / "key.pem").write_bytes(rsa_pem())
    (tmp_path / "key.pem").chmod(0o600)

    result = CliRunner().invoke(app, ["dns", "example.net", "--config", str(tmp_path / "gateway.toml")])

    assert result.exit_code == 0, result.output
    assert result.output.count("2026a._domainkey.example.net.") == 1
    assert f"key.pem, {use}." in result.output
    assert rsa_public() in result.output.replace('"', "").replace("\n", "").replace(" ", "")

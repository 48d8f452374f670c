import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from gateway.cli.app import app
from gateway.cli.check import EXIT_STATUS
from gateway.verdict import Disposition
from tests.corpus import AUTHSERV_ID, FOLDER, NOW, TRUSTED_SEALERS, CorpusCase, load_cases, zone_text

CASES = [case for case in load_cases() if not case.trusted]


@pytest.fixture(scope="module")
def zone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("zone") / "world.zone"
    path.write_text(zone_text(), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whom the corpus trusts; all else is given on the command line."""
    path = tmp_path_factory.mktemp("config") / "gateway.toml"
    path.write_text(
        f'authserv_id = "{AUTHSERV_ID}"\n[milter]\nlisten = "unix:/run/gateway/milter.sock"\n'
        f"[arc]\ntrusted_sealers = {list(TRUSTED_SEALERS)}\n"
    )
    return path


def run(*arguments: str | Path, stdin: bytes = b"") -> Result:
    return CliRunner().invoke(app, ["check", *map(str, arguments)], input=stdin)


def judge(case: CorpusCase, zone: Path, *more: str | Path) -> Result:
    return run(
        FOLDER / f"{case.name}.eml",
        *("--ip", case.ip, "--helo", case.helo, "--mail-from", case.mail_from or "<>"),
        *("--zone", zone, "--now", str(NOW), "--authserv-id", AUTHSERV_ID, "--rcpt", "bob@example.net"),
        *more,
    )


def case_named(name: str) -> CorpusCase:
    return next(case for case in CASES if case.name == name)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_corpus_is_judged_as_everywhere(case: CorpusCase, zone: Path, config: Path) -> None:
    result = judge(case, zone, "--json", "--config", config)
    judged = json.loads(result.stdout)
    disposition = Disposition(case.expect["disposition"])
    assert judged["disposition"] == disposition
    assert judged["rule"] == case.expect["rule"]
    assert result.exit_code == EXIT_STATUS[disposition]


def test_json_has_a_stable_shape(zone: Path) -> None:
    judged = json.loads(judge(case_named("spoofed-reject"), zone, "--json").stdout)
    assert set(judged) == {
        "file",
        "disposition",
        "intended",
        "rule",
        "reply",
        "client_known",
        "findings",
        "edits",
        "event",
    }
    assert judged["reply"].startswith("550 5.7.1 ")
    assert set(judged["findings"][0]) == {"check", "status", "problem", "says", "section"}
    assert judged["edits"]["prepend"][0]["name"] == "Authentication-Results"
    assert judged["event"]["dmarc"] == "fail"


def test_people_are_told_why(zone: Path) -> None:
    said = judge(case_named("spoofed-reject"), zone).stdout
    assert "REJECT by rule dmarc-reject" in said
    assert "Nothing shows that" in said
    assert "(RFC 9989 §5.3)" in said
    assert "> Authentication-Results: mx.example.net;" in said
    assert "\x1b" not in said  # not a terminal: no colours


def test_forged_fields_that_are_taken_out_are_shown(zone: Path) -> None:
    said = judge(case_named("forged-results"), zone).stdout
    assert any(line.startswith("  < Authentication-Results:") for line in said.splitlines())


def test_only_what_without_why(zone: Path) -> None:
    said = judge(case_named("honest-rsa"), zone, "--no-explain").stdout
    assert len(said.splitlines()) == 1


def test_monitor_refuses_nothing_and_says_what_it_would_have(zone: Path) -> None:
    result = judge(case_named("spoofed-reject"), zone, "--rules", "monitor", "--json")
    judged = json.loads(result.stdout)
    assert (result.exit_code, judged["disposition"], judged["intended"]) == (0, "accept", "reject")


def test_without_an_address_spf_is_not_judged_and_that_is_said(zone: Path) -> None:
    result = run(FOLDER / "spf-only.eml", "--zone", zone, "--json")
    judged = json.loads(result.stdout)
    assert judged["client_known"] is False
    assert judged["event"]["spf"] is judged["event"]["iprev"] is judged["event"]["client_ip"] is None
    assert judged["findings"][0]["status"] == "not checked"


def test_return_path_is_the_sender_where_none_is_given(zone: Path) -> None:
    mail = b"Return-Path: <ann@bank.example>\nFrom: ann@bank.example\n\nhello\n"
    assert (
        json.loads(run("-", "--zone", zone, "--json", stdin=mail).stdout)["event"]["mail_from"]
        == "ann@bank.example"
    )


def test_several_messages_give_one_line_each_and_the_highest_status(zone: Path) -> None:
    result = run(
        FOLDER / "honest-rsa.eml",
        FOLDER / "two-from.eml",
        "--zone",
        zone,
        "--now",
        str(NOW),
        "--json",
        "--ip",
        "192.0.2.10",
    )
    assert [json.loads(line)["disposition"] for line in result.stdout.splitlines()] == ["accept", "reject"]
    assert result.exit_code == 12


def test_a_config_is_judged_by(tmp_path: Path, zone: Path) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text(
        f'authserv_id = "mx.of.config.example"\n[milter]\nlisten = "unix:/run/m.sock"\n'
        f'[dns]\nzone_file = "{zone}"\n[policy]\nrules = "monitor"\n'
    )
    result = run(FOLDER / "two-from.eml", "--config", config, "--json")
    judged = json.loads(result.stdout)
    assert (judged["disposition"], judged["intended"]) == ("accept", "reject")
    assert judged["edits"]["prepend"][0]["value"].startswith("mx.of.config.example;")


def test_hostile_text_cannot_move_the_cursor(zone: Path) -> None:
    mail = (
        "From: ann@bank.example\nAuthentication-Results: gateway.invalid; \x1b[2J\u202edkim=pass\n\nhello\n"
    )
    result = run(
        "-",
        "--zone",
        zone,
        "--ip",
        "192.0.2.1",
        "--helo",
        "x\x1b[31m\u202e",
        "--mail-from",
        "<>",
        stdin=mail.encode(),
    )
    assert all(line.isprintable() for line in result.stdout.splitlines())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing.eml"], "nothing.eml: cannot be read: No such file"),
        (["-", "--ip", "localhost"], "--ip localhost: is not an address; write 192.0.2.1"),
        (["-", "--mail-from", "ann"], "--mail-from ann: "),
        (["-", "--rcpt", "a b@c"], "--rcpt a b@c: "),
        (["-", "--now", "tomorrow"], "--now tomorrow: write 2026-05-01T12:00:00Z"),
        (["-", "--authserv-id", "a b"], "--authserv-id a b: "),
        (["-", "--zone", "none.zone"], "none.zone: cannot be read"),
        (["-", "--rules", "none.toml"], "none.toml"),
        (["-", "--config", "none.toml"], "there is no such file"),
    ],
)
def test_what_cannot_be_used_is_said_without_a_traceback(arguments: list[str], said: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_every_fault_of_a_zone_is_said(tmp_path: Path) -> None:
    zone = tmp_path / "bad.zone"
    zone.write_text("a.example. 1 IN A 1.2.3\nb.example. 1 IN MX x\n")
    result = run("-", "--zone", zone)
    assert result.exit_code == 2
    assert [
        line.startswith(f"{zone}:{number}: ") for number, line in enumerate(result.stderr.splitlines(), 1)
    ] == [True] * 2


@pytest.mark.parametrize("when", ["2026-11-23T00:00:00Z", "2026-11-23T00:00:00", "1796000000"])
def test_times_are_read(when: str, zone: Path) -> None:
    assert run("-", "--zone", zone, "--now", when, stdin=b"From: a@b.example\n\n").exit_code == 0


def test_a_reader_that_goes_away_is_no_error(zone: Path) -> None:
    message = FOLDER / "honest-rsa.eml"
    command = f"{sys.executable} -m gateway check {message} {message} --zone {zone} | head -c 1"
    finished = subprocess.run(["sh", "-c", command], capture_output=True, check=False)
    assert finished.stderr == b""

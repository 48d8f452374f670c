import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gateway import __version__
from gateway.cli.app import app
from gateway.ops.config.example import example_config

COMMANDS = [
    ["check"],
    ["serve"],
    ["config", "check"],
    ["config", "example"],
    ["policy", "check"],
    ["keys", "new"],
    ["keys", "list"],
    ["keys", "rotate"],
    ["dns"],
]


def test_version() -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout == f"gateway {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example(command: list[str]) -> None:
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert f"gateway {' '.join(command)}" in " ".join(result.stdout.split())
    assert "Example" in result.stdout


def test_help_loads_nothing_of_the_gateway() -> None:
    program = (
        "import sys; import gateway.cli.app; print(*[m for m in sys.modules if m.startswith('gateway.')])"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    assert set(loaded) == {"gateway.cli", "gateway.cli.app", "gateway.cli.choices"}


def test_the_example_is_printed() -> None:
    assert CliRunner().invoke(app, ["config", "example"]).stdout == example_config()


def test_a_good_config_says_what_it_opens(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(example_config())
    result = CliRunner().invoke(app, ["config", "check", str(path)])
    assert result.exit_code == 0
    assert result.stdout == f"{path}: good; listeners: inbound; rules: default\n"


def test_a_bad_config_is_2_and_every_fault_on_standard_error(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text("workers = 0\nfoo = 1\n")
    result = CliRunner().invoke(app, ["config", "check", str(path)])
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 4


def test_shipped_rules_hold_their_own_examples() -> None:
    result = CliRunner().invoke(app, ["policy", "check"])
    assert result.exit_code == 0
    assert result.stdout.count("all examples hold") == 3


def test_a_rule_whose_example_fails_is_2_and_the_other_files_are_still_read(tmp_path: Path) -> None:
    bad = tmp_path / "rules.toml"
    bad.write_text(
        '[[rule]]\nid = "all"\nwhy = "everything"\naction = "accept"\nskip = [{ dmarc = "pass" }]\n'
    )
    result = CliRunner().invoke(app, ["policy", "check", str(bad), "default"])
    assert result.exit_code == 2
    assert "is not for this rule" in result.stderr
    assert "default: " in result.stdout


def test_a_faulty_rule_file_is_2_with_every_fault(tmp_path: Path) -> None:
    bad = tmp_path / "rules.toml"
    bad.write_text('[[rule]]\nid = "No"\naction = "destroy"\n')
    result = CliRunner().invoke(app, ["policy", "check", str(bad)])
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) >= 3

"""The demo is the first thing that a new user sees: it must tell the truth, with and without Postfix."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

HEARD = {
    "Honest": "250 ",
    "Forwarded": "250 ",
    "Forged, p=reject": "550 5.7.1 ",
    "Forged, p=quarantine": "250 ",
    "Altered": "550 5.7.1 ",
    "Two authors": "550 5.6.0 ",
    "Forged stamp": "250 ",
    "Smuggled": "550 ",
    "Author's DNS is down": "451 4.7.1 ",
    "Relay attempt": "550 5.7.1 ",
    "Unknown user": "550 5.1.1 ",
}


@pytest.mark.parametrize(
    "options", [[], pytest.param(["--postfix"], marks=pytest.mark.live)], ids=["sink", "postfix"]
)
def test_the_tour_says_what_became_of_each_message(options: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "deploy/demo.py", "--once", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    panels = done.stdout.split("╭─ ")[1:]
    heard = {
        panel.split(":", 1)[0]: next(line for line in panel.splitlines() if "hears" in line).split(None, 2)[2]
        for panel in panels
    }
    assert list(heard) == list(HEARD)
    for title, reply in HEARD.items():
        assert heard[title].startswith(reply), f"{title}: {heard[title]}"
    assert "4 messages arrived" in done.stdout
    assert 'Refused by the rule "dmarc-reject"' in done.stdout  # and the trace says why
    assert "Authentication-Results: mx.example.net" in done.stdout

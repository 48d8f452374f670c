"""The regression guard: instructions per message of the engine and of the SMTP proxy's core, against what they were.

Time depends on the machine and on who else is busy; callgrind's count does not (three runs agree within a thousandth). More than
`TOLERANCE` above the baseline fails: make it cheaper, or, where the work is worth its price, accept it with

    python -m tests.guard.test_instructions

and commit `baseline.json`. There is a baseline for each version of Python; where there is none, the count is printed and skipped.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import pytest

from tests.guard.workload import MESSAGES

TOLERANCE: Final = 0.15
REMEDY: Final = "see tests/guard/test_instructions.py for what to do"

_HERE: Final = Path(__file__).parent
_BASELINE: Final = _HERE / "baseline.json"
_KEY: Final = (
    f"{platform.python_implementation()} {platform.python_version().rpartition('.')[0]} {platform.machine()}"
)
_HEADER: Final = "/usr/include/valgrind/callgrind.h"


def missing() -> str | None:
    """What this machine has not got."""
    if shutil.which("valgrind") is None or not Path(_HEADER).exists():
        return "valgrind is not installed (Debian: valgrind)"
    return None if shutil.which("cc") else "no C compiler (Debian: gcc)"


def count_instructions(directory: Path) -> dict[str, int]:
    """Instructions per message, by part."""
    library, output = directory / "switch.so", directory / "callgrind"
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, _HERE / "callgrind_switch.c"], check=True)
    command: list[str | Path] = [
        *("valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={output}"),
        *(sys.executable, "-m", "tests.guard.workload", library),
    ]
    # Sets and dictionaries of strings must not lie otherwise each time.
    environment = {
        **os.environ,
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(Path.cwd()), os.environ.get("PYTHONPATH")))),
    }
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=120, cwd=Path.cwd()
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    found: dict[str, int] = {}
    for dump in directory.glob("callgrind.*"):
        text = dump.read_text()
        part = re.search(r"^desc: Trigger: Client Request: (\w+)$", text, re.MULTILINE)
        total = re.search(r"^totals: (\d+)$", text, re.MULTILINE)
        if part and total:
            found[part[1]] = int(total[1]) // MESSAGES
    assert set(found) == {"judge", "proxy"}, done.stderr[-2_000:]
    return found


def excesses(found: dict[str, int], baseline: dict[str, int]) -> list[str]:
    """What has become too dear, in words."""
    return [
        f"{part}: {found[part]:,} instructions a message, {found[part] / was - 1:+.1%} against {was:,}"
        for part, was in baseline.items()
        if found[part] > was * (1 + TOLERANCE)
    ]


def test_a_message_costs_no_more_than_it_did(tmp_path: Path) -> None:
    if lack := missing():
        pytest.skip(lack)
    found = count_instructions(tmp_path)
    baseline = json.loads(_BASELINE.read_text()).get(_KEY)
    if baseline is None:
        pytest.skip(f"no baseline for {_KEY}; counted: {found}")
    assert not excesses(found, baseline), REMEDY


@pytest.mark.parametrize(("found", "count"), [(1_000, 0), (1_149, 0), (1_151, 1), (500, 0)])
def test_the_guard_speaks_up_above_its_tolerance_only(found: int, count: int) -> None:
    assert len(excesses({"judge": found}, {"judge": 1_000})) == count


def main() -> None:
    """Count, and take it as the baseline of this Python."""
    if lack := missing():
        raise SystemExit(lack)
    with tempfile.TemporaryDirectory() as directory:
        found = count_instructions(Path(directory))
    baselines = json.loads(_BASELINE.read_text()) if _BASELINE.exists() else {}
    sys.stdout.write(f"{_KEY}: {baselines.get(_KEY)} -> {found}\n")
    _BASELINE.write_text(json.dumps(baselines | {_KEY: found}, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()

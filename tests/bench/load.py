"""What a sender is to send and what came of it, as one line of JSON each way between two processes."""

import json
import subprocess
import sys
from dataclasses import asdict, dataclass

SEND_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """`messages` altogether, `per_session` in each session, over `connections` at a time.

    `address` is `127.0.0.1:2525` for SMTP and a path for the milter protocol.
    """

    address: str
    message_file: str
    messages: int
    per_session: int
    connections: int = 10

    @classmethod
    def from_arguments(cls) -> "Load":
        return cls(**json.loads(sys.argv[1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """`cpu_seconds` are the sender's own."""

    accepted: int
    seconds: float
    cpu_seconds: float

    def report(self) -> None:
        sys.stdout.write(json.dumps(asdict(self)) + "\n")


def run_sender(module: str, load: Load) -> Sent:
    """Send from a process of its own; what it complains of is seen."""
    command = [sys.executable, "-m", module, json.dumps(asdict(load))]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=SEND_S)
    return Sent(**json.loads(done.stdout))

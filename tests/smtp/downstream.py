"""A mail server to stand behind the proxy in tests, without sockets: polite unless it is told otherwise."""

import base64
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

CLOSE: Final = b"<close>"
SILENCE: Final = b"<silence>"

_CHALLENGES: Final = {
    "LOGIN": (b"UGFzc3dvcmQ6",),  # after the user's name: "Password:"
    "SCRAM-SHA-256": (b"cj1mcmVzaCxzPXNhbHQsaT00MDk2", b"dj1wcm9vZg=="),
}
"""What is asked after the first response, by mechanism."""

_RECEIVED: Final = re.compile(rb"\AReceived: .*?\r\n(?![ \t])", re.DOTALL)


@dataclass(slots=True)
class FakeDownstream:
    """One mail server, over all its connections.

    Attributes:
        keywords: its EHLO keywords.
        at: what it says instead, by step (`GREETING`, `EHLO`, `MAIL`, `RCPT`, `DATA`, `CONTENT`, `RSET`, …) and how
            many times that step has come by, from 1; 0 is every time. `CLOSE` closes, `SILENCE` says nothing.
        log: every command it has heard, `<content>` for content.
        messages: every content that it has said 2xx to, as it was after unstuffing.
        connections: how many there have been.
        passwords: last responses that it lets in; before the last one it asks as the mechanism does.
    """

    keywords: tuple[str, ...] = (
        "PIPELINING",
        "SIZE 10240000",
        "8BITMIME",
        "SMTPUTF8",
        "DSN",
        "ENHANCEDSTATUSCODES",
    )
    at: dict[tuple[str, int], bytes] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    messages: list[bytes] = field(default_factory=list)
    connections: int = 0
    seen: Counter[str] = field(default_factory=Counter)
    passwords: frozenset[bytes] = frozenset({b"\0ann\0secret", b"secret"})

    def connect(self) -> "FakeConnection":
        self.connections += 1
        return FakeConnection(self)

    def answer(self, step: str, usual: bytes) -> bytes:
        self.seen[step] += 1
        return self.at.get((step, self.seen[step])) or self.at.get((step, 0)) or usual

    def bodies(self) -> list[bytes]:
        """The messages without the trace field that the proxy puts on top."""
        return [_RECEIVED.sub(b"", message, count=1) for message in self.messages]


class FakeConnection:
    """One connection to it."""

    def __init__(self, server: FakeDownstream) -> None:
        self._server = server
        self._input = b""
        self._in_content = False
        self._chunk: int | None = None  # bytes of BDAT … LAST
        self._challenges: list[bytes] | None = None  # of the log-in that is under way, those to come

    def greeting(self) -> bytes:
        return self._server.answer("GREETING", b"220 back.example ESMTP\r\n")

    def receive(self, data: bytes) -> bytes:
        """What it answers; `CLOSE` at the end where it closes after that."""
        self._input += data
        answers: list[bytes] = []
        while not (answers and answers[-1].endswith(CLOSE)):
            if self._chunk is not None:
                answer = self._whole_chunk(self._chunk)
            else:
                answer = self._content() if self._in_content else self._command()
            if answer is None:
                break
            if answer != SILENCE:
                answers.append(answer)
        return b"".join(answers)

    def _content(self) -> bytes | None:
        end = (b"\r\n" + self._input).find(b"\r\n.\r\n")
        if end < 0:
            early = self._server.at.get(("EARLY", 0))
            return self._server.at.pop(("EARLY", 0)) if early else None
        content = (b"\r\n" + self._input)[2 : end + 2]
        self._input = self._input[end + 3 :]
        self._in_content = False
        self._server.log.append("<content>")
        answer = self._server.answer("CONTENT", b"250 2.0.0 Ok: queued\r\n")
        if answer.startswith(b"2"):
            self._server.messages.append((b"\r\n" + content).replace(b"\r\n.", b"\r\n")[2:])
        return answer

    def _whole_chunk(self, size: int) -> bytes | None:
        if len(self._input) < size:
            early = self._server.at.get(("EARLY", 0))
            return self._server.at.pop(("EARLY", 0)) if early else None
        content, self._input = self._input[:size], self._input[size:]
        self._chunk = None
        self._server.log.append("<content>")
        answer = self._server.answer("CONTENT", b"250 2.0.0 Ok: queued\r\n")
        if answer.startswith(b"2"):
            self._server.messages.append(content)
        return answer

    def _command(self) -> bytes | None:
        line, end, rest = self._input.partition(b"\r\n")
        if not end:
            return None
        self._input = rest
        text = line.decode()
        self._server.log.append(text)
        if text.startswith("BDAT "):
            _, size, last = text.split(" ")
            assert last == "LAST"
            self._chunk = int(size)
            return SILENCE
        if self._challenges is not None:
            return self._response(line)
        verb = text.split(" ")[0].split(":")[0].upper()
        answer = self._server.answer(verb, self._usual(verb))
        if verb == "AUTH" and answer.startswith(b"334"):
            self._challenges = list(_CHALLENGES.get(text.split(" ")[1], ()))
        self._in_content = verb == "DATA" and answer.startswith(b"354")
        return answer

    def _response(self, line: bytes) -> bytes:
        """A line within a log-in."""
        assert self._challenges is not None
        if line == b"*":
            usual = b"501 5.7.0 Authentication aborted\r\n"
        elif self._challenges:
            usual = b"334 " + self._challenges.pop(0) + b"\r\n"
        elif base64.b64decode(line) in self._server.passwords:
            usual = b"235 2.7.0 Authentication successful\r\n"
        else:
            usual = b"535 5.7.8 Error: authentication failed\r\n"
        answer = self._server.answer("RESPONSE", usual)
        if not answer.startswith(b"334"):
            self._challenges = None
        return answer

    def _usual(self, verb: str) -> bytes:
        match verb:
            case "AUTH":
                return b"334 \r\n"
            case "EHLO":
                lines = ["back.example", *self._server.keywords]
                return b"".join(
                    f"250{' ' if line is lines[-1] else '-'}{line}\r\n".encode() for line in lines
                )
            case "XCLIENT":
                return b"220 back.example ESMTP\r\n"
            case "MAIL":
                return b"250 2.1.0 Ok\r\n"
            case "RCPT":
                return b"250 2.1.5 Ok\r\n"
            case "DATA":
                return b"354 Go on\r\n"
            case "QUIT":
                return b"221 2.0.0 Bye\r\n" + CLOSE
            case "RSET":
                return b"250 2.0.0 Ok\r\n"
            case _:
                return b"500 5.5.2 what?\r\n"

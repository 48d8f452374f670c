r"""Wire conversations as files: one danger each (`tests/dialogs/*.smtp`).

    # The attack, and what must come of it.
    @ max_message_bytes 100              a setting of the proxy; see `_SETTINGS` and `_BENCH` for what else can be set
    @ relay                              the outbound relay: `a.example` is at the server below, `b.example` at another
    @ at RCPT 550 5.1.1 No such user     what downstream says instead; `RCPT#2`: the second time only
    @ at CONTENT 421 4.3.2 Bye<close>    likewise, and then it closes; or `<close>` alone, or `<silence>`
    @ submission 5                       a log-in comes first; so many wrong guesses are asked about
    @ tls                                the session begins with TLS
    c -> EHLO client.example             the client sends a line; lines that follow each other are sent in one piece
    c => MAIL\n                          raw bytes, nothing added; escapes: \r \n \0 \t \\ \xNN, {N*text} repeats
    c <- 250                             the next reply has this code (and, where given, holds this text)
    c <- closed                          we close the connection
    d <- MAIL FROM:<a@b.example>         the next command that downstream has heard; EHLO is not shown
    m <- none | escaped content          what downstream has taken, Received left out; one line for each message

At the end nothing may be left: no reply, no command to downstream (where there are `d` lines), no message (where `m`).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Final

from gateway.mail.envelope import Tls
from gateway.mail.reply import Reply
from gateway.smtp.guesses import Guesses
from gateway.smtp.relay_transfer import RelayTransfer, offered
from gateway.verdict import Disposition, Verdict
from tests.smtp.bench import ACCEPT, Bench, settings
from tests.smtp.downstream import FakeDownstream

DIALOGS: Final = Path(__file__).parent.parent / "dialogs"

_LINE: Final = re.compile(r"(c ->|c =>|c <-|d <-|m <-|@)(?: (.*))?")
_ESCAPE: Final = re.compile(r"\\(r|n|0|t|\\|x[0-9A-Fa-f]{2})")
_REPEAT: Final = re.compile(r"\{(\d+)\*([^{}]+)\}")
_PLAIN: Final = {"r": "\r", "n": "\n", "0": "\0", "t": "\t", "\\": "\\"}
_VERDICTS: Final = {
    "accept": ACCEPT,
    "quarantine": Verdict(disposition=Disposition.QUARANTINE, rule="test"),
    "defer": Verdict(
        disposition=Disposition.DEFER, rule="test", reply=Reply.of(451, "4.7.1", "Later (test)")
    ),
    "reject": Verdict(disposition=Disposition.REJECT, rule="test", reply=Reply.of(550, "5.7.1", "No (test)")),
}

_SETTINGS: Final[dict[str, Callable[[str], object]]] = {
    "max_message_bytes": int,
    "max_recipients": int,
    "max_errors": int,
    "trusted_networks": lambda value: (ip_network(value),),
    "proxy_protocol_from": lambda value: (ip_network(value),),
    "xclient_from": lambda value: (ip_network(value),),
    "normalize": lambda _: True,
}
_BENCH: Final[dict[str, Callable[[str], object]]] = {
    "peer": ip_address,
    "judge": _VERDICTS.__getitem__,
    "starttls": lambda _: True,
    "xclient": lambda _: True,
    "is_downstream_down": lambda _: True,
    "room": int,
    "submission": lambda value: Guesses(
        max_failures=int(value or 5), window_s=600, delay_s=1, clock=lambda: 0.0
    ),
    "tls": lambda _: Tls(version="TLSv1.3", cipher="TLS_AES_256_GCM_SHA384"),
}

_FIELDS: Final = {"judge": "verdict", "submission": "guesses"}


def unescape(text: str) -> bytes:
    text = _REPEAT.sub(lambda match: match[2] * int(match[1]), text)
    text = _ESCAPE.sub(lambda match: _PLAIN.get(match[1]) or chr(int(match[1][1:], 16)), text)
    return text.encode("latin-1") if all(ord(each) < 256 for each in text) else text.encode()


@dataclass(frozen=True, slots=True)
class Line:
    number: int
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Dialog:
    name: str
    lines: tuple[Line, ...]

    @property
    def options(self) -> tuple[str, ...]:
        return tuple(line.text for line in self.lines if line.kind == "@")


def load_dialogs() -> list[Dialog]:
    return [load_dialog(path) for path in sorted(DIALOGS.glob("*.smtp"))]


def load_dialog(path: Path) -> Dialog:
    lines = []
    rows = path.read_text().splitlines()
    assert rows[0].startswith("#"), f"{path.name}: begins with what it is about"
    for number, row in enumerate(rows, 1):
        if not row.strip() or row.startswith("#"):
            continue
        match = _LINE.fullmatch(row)
        assert match, f"{path.name}:{number}: not a dialog line: {row}"
        lines.append(Line(number, match[1], match[2] or ""))
    return Dialog(path.stem, tuple(lines))


def make_bench(dialog: Dialog) -> Bench:
    changes: dict[str, object] = {}
    bench: dict[str, object] = {}
    downstream = FakeDownstream()
    for option in dialog.options:
        name, _, value = option.partition(" ")
        if name == "at":
            _misbehave(downstream, value)
        elif name == "relay":
            bench["make_transfer"] = RelayTransfer
            bench["known"] = offered(dsn=True)
            bench["world"] = {"a.example": [downstream], "b.example": [FakeDownstream()]}
            changes["trusted_networks"] = (ip_network("192.0.2.0/24"),)
        elif name == "keywords":
            downstream.keywords = tuple(each.strip() for each in value.split(","))
        elif name in _SETTINGS:
            changes[name] = _SETTINGS[name](value)
        elif name in _BENCH:
            bench[_FIELDS.get(name, name)] = _BENCH[name](value)
        else:
            raise AssertionError(f"{dialog.name}: unknown option {name}")
    return Bench(settings=settings(**changes), downstream=downstream, **bench)  # type: ignore[arg-type]  # by name


def _misbehave(downstream: FakeDownstream, value: str) -> None:
    step, _, said = value.partition(" ")
    verb, _, count = step.partition("#")
    words, opened, mark = said.partition("<")
    answer = unescape(words) + b"\r\n" if words else b""
    downstream.at[verb, int(count or 0)] = answer + (opened + mark).encode()


class Transcript:
    """Replies as they come, to be compared one by one."""

    def __init__(self) -> None:
        self.raw = b""
        self._at = 0

    def add(self, data: bytes) -> None:
        self.raw += data

    def next_reply(self) -> str | None:
        """The next whole reply, its lines joined by a blank."""
        lines = []
        at = self._at
        while True:
            end = self.raw.find(b"\r\n", at)
            if end < 0:
                return None
            line = self.raw[at:end].decode("ascii")
            assert re.match(r"[2-5]\d\d[ -]", line), f"not a reply line: {line!r}"
            lines.append(line)
            at = end + 2
            if line[3] == " ":
                break
        self._at = at
        return f"{lines[0][:3]} {' '.join(line[4:] for line in lines)}"


def run_dialog(
    dialog: Dialog, *, cut: int = 0, is_screening: bool = True, is_chunking: bool = False
) -> tuple[Bench, bytes]:
    """Play it on the bench, the client's bytes cut into pieces; the whole of what the client heard.

    Without screening recipients that are sent ahead are asked ahead; with chunking downstream offers it.
    """
    bench = make_bench(dialog)
    bench.downstream.keywords += ("CHUNKING",) if is_chunking else ()
    bench.is_screening = is_screening
    heard = Transcript()
    heard.add(bench.take_output())
    commands = 0
    messages = 0
    sent = b""
    for line in dialog.lines:
        where = f"{dialog.name}.smtp:{line.number}"
        if line.kind in {"c ->", "c =>"}:
            sent += unescape(line.text) + (b"\r\n" if line.kind == "c ->" else b"")
            continue
        if sent:
            heard.add(bench.send(sent, cut=cut))
            sent = b""
        match line.kind:
            case "c <-" if line.text == "closed":
                assert bench.end, f"{where}: the session goes on"
            case "c <-" if line.text == "tls":
                assert bench.is_tls_pending, f"{where}: no handshake"
                bench.finish_tls()
                heard.add(bench.take_output())
            case "c <-":
                check_reply(heard.next_reply(), line.text, where)
            case "d <-":
                log = [each for each in bench.downstream.log if not each.startswith("EHLO")]
                assert commands < len(log), f"{where}: downstream has heard no more; all of it: {log}"
                assert log[commands] == line.text, where
                commands += 1
            case "m <-":
                bodies = bench.downstream.bodies()
                if line.text == "none":
                    assert not bodies, f"{where}: {bodies}"
                else:
                    assert messages < len(bodies), f"{where}: no message"
                    assert bodies[messages] == unescape(line.text), where
                    messages += 1
            case _:  # options
                pass
    assert not sent, f"{dialog.name}: what is sent last has no answer"
    _check_rest(dialog, bench, heard, (commands, messages))
    return bench, heard.raw


def check_reply(reply: str | None, expected: str, where: str) -> None:
    assert reply is not None, f"{where}: expected {expected}, heard nothing"
    code, _, text = expected.partition(" ")
    assert reply.startswith(code), f"{where}: expected {expected}, heard {reply}"
    assert text in reply, f"{where}: expected {expected}, heard {reply}"


def _check_rest(dialog: Dialog, bench: Bench, heard: Transcript, counts: tuple[int, int]) -> None:
    kinds = {line.kind for line in dialog.lines}
    rest = heard.next_reply()
    assert rest is None, f"{dialog.name}: heard unexpectedly: {rest}"
    log = [each for each in bench.downstream.log if not each.startswith("EHLO")]
    if "d <-" in kinds:
        assert len(log) == counts[0], f"{dialog.name}: downstream heard as well: {log[counts[0] :]}"
    if "m <-" in kinds:
        assert len(bench.downstream.messages) == counts[1], f"{dialog.name}: more messages than told"

"""The same wire conversations as on the bench, through the real listener on uvloop, with a real socket on either side."""

import pytest
import uvloop

from tests.listeners.proxy import Bed, Client, Config, FakeJudge, open_bed
from tests.smtp.dialog import Dialog, Line, check_reply, load_dialogs, make_bench, unescape

# Those that need another client address, a certificate or a smaller memory have tests of their own.
PLAYABLE = {"at", "keywords", "judge", "max_message_bytes", "max_recipients", "max_errors", "normalize"}
DIALOGS = [
    dialog
    for dialog in load_dialogs()
    if all(option.partition(" ")[0] in PLAYABLE for option in dialog.options)
]


@pytest.mark.parametrize("dialog", DIALOGS, ids=lambda dialog: dialog.name)
def test_dialog_over_sockets(dialog: Dialog) -> None:
    uvloop.run(play(dialog))


async def play(dialog: Dialog) -> None:
    bench = make_bench(dialog)
    config = Config(
        max_message_bytes=bench.settings.max_message_bytes,
        max_recipients=bench.settings.max_recipients,
        max_errors=bench.settings.max_errors,
        bare_line_end="normalize" if bench.settings.normalize else "reject",
    )
    async with open_bed(config, downstream=bench.downstream, judge=FakeJudge(bench.verdict)) as bed:
        client = await bed.connect()
        sent = b""
        for line in dialog.lines:
            if line.kind in {"c ->", "c =>"}:
                sent += unescape(line.text) + (b"\r\n" if line.kind == "c ->" else b"")
                continue
            if sent:
                await client.send(sent)
                sent = b""
            if line.kind == "c <-":
                await hear(client, line, f"{dialog.name}.smtp:{line.number}")
        check(dialog, bed)


async def hear(client: Client, line: Line, where: str) -> None:
    if line.text == "closed":
        assert await client.is_closed(), where
    else:
        check_reply(await client.reply(), line.text, where)


def check(dialog: Dialog, bed: Bed) -> None:
    commands = [line.text for line in dialog.lines if line.kind == "d <-"]
    heard = [each for each in bed.downstream.log if not each.startswith(("EHLO", "RSET", "QUIT"))]
    if commands:  # RSET and QUIT may still be on their way
        assert heard == [each for each in commands if each != "RSET"]
    messages = [line.text for line in dialog.lines if line.kind == "m <-"]
    if messages:
        assert bed.downstream.bodies() == [unescape(text) for text in messages if text != "none"]

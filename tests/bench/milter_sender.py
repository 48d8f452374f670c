"""Sends one prepared message many times by the milter protocol: `python -m tests.bench.milter_sender '<Load as JSON>'`.

Each connection is a thread. What a mail server would say of the message is put together once; a message is then one write
and the reading of the answer. Anything but accept is an error.
"""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.bench.load import Load, Sent
from tests.bench.mail import CLIENT_IP, HELO, RECIPIENT, SENDER
from tests.milter.raw_client import NO_DATA, Mail, RawClient

_CONNECT_MACROS = ((b"j", b"mx.example.net"), (b"{daemon_name}", b"smtpd"), (b"v", b"Postfix 3.9"))
_MAIL_MACROS = ((b"{mail_addr}", SENDER.encode()), (b"i", b"4fQ2Z1"))
_RCPT_MACROS = ((b"{rcpt_addr}", RECIPIENT.encode()),)


def as_mail(raw: bytes) -> Mail:
    """The message as Postfix hands it on: all behind each field's colon, LF within a folded one."""
    header, _, body = raw.partition(b"\r\n\r\n")
    fields = header.replace(b"\r\n\t", b"\n\t").replace(b"\r\n ", b"\n ").split(b"\r\n")
    pairs = [field.partition(b":") for field in fields]
    return Mail(headers=[(name, value) for name, _, value in pairs], body=body)


def _send_session(path: Path, mail: Mail, messages: int) -> int:
    with RawClient(path) as client:
        client.macros(b"C", _CONNECT_MACROS)
        client.connect(HELO.encode(), CLIENT_IP.encode())
        client.helo(HELO.encode())
        content = _content(client, mail)
        for _ in range(messages):
            client.mail((f"<{SENDER}>".encode(),), _MAIL_MACROS)
            client.rcpt((f"<{RECIPIENT}>".encode(),), _RCPT_MACROS)
            client._out.append(content)
            answer = client.end()
            if answer.last.command not in "ac" or not answer.inserted:
                raise ValueError(f"not accepted and stamped: {answer}")
        client.quit()
    return messages


def _content(client: RawClient, mail: Mail) -> bytes:
    """The packets of header and body, as one piece to be sent again and again."""
    assert client.protocol & NO_DATA, "the milter wants DATA, which this sender does not say"
    before, client._out = client._out, []
    client.content(mail)
    content, client._out = b"".join(client._out), before
    return content


def send(load: Load) -> Sent:
    mail = as_mail(Path(load.message_file).read_bytes())
    waiting = [load.per_session] * (load.messages // load.per_session)
    lock = threading.Lock()

    def work(_number: int) -> int:
        accepted = 0
        while True:
            with lock:
                if not waiting:
                    return accepted
                count = waiting.pop()
            accepted += _send_session(Path(load.address), mail, count)

    started, cpu_started = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(load.connections) as pool:
        accepted = sum(pool.map(work, range(load.connections)))
    return Sent(
        accepted=accepted,
        seconds=time.perf_counter() - started,
        cpu_seconds=time.process_time() - cpu_started,
    )


if __name__ == "__main__":
    socket.setdefaulttimeout(60)
    send(Load.from_arguments()).report()

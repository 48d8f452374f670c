"""A primary server that misbehaves: whatever it does, the operator hears what is wrong, and nothing is believed."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import dns.tsig
import pytest

from gateway.dns.resolver import RecordType
from gateway.keys.errors import PublishError
from gateway.ops.config import DnsUpdateSettings, HostPort
from gateway.publish import update
from gateway.publish.update import Mode, Primary, Wish

SECRET = "Z2F0ZXdheS1nYXRld2F5LWdhdGV3YXktZ2F0ZXdheSE="
KEY = dns.tsig.Key("gateway", SECRET, "hmac-sha256")
WISH = Wish(
    name="_mta-sts.example.net",
    record_type=RecordType.TXT,
    records=(b"v=STSv1; id=1;",),
    mode=Mode.REPLACE,
    is_of_kind=lambda _record: True,
)
Answer = Callable[[bytes], bytes | None]


@asynccontextmanager
async def primary(answer: Answer) -> AsyncIterator[Primary]:
    """A server on TCP; None: it says nothing at all, b"": it hangs up."""
    silent = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            length = int.from_bytes(await reader.readexactly(2))
            reply = answer(await reader.readexactly(length))
            if reply is None:
                await silent.wait()
            elif reply:
                writer.write(len(reply).to_bytes(2) + reply)
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    settings = DnsUpdateSettings(
        server=HostPort(host, port), tsig_name="gateway", tsig_secret_file=Path("unused")
    )
    try:
        yield Primary(settings, SECRET)
    finally:
        silent.set()
        server.close()
        await server.wait_closed()


def respond(*, rcode: dns.rcode.Rcode = dns.rcode.NOERROR, signed: bool = True) -> Answer:
    def answer(asked: bytes) -> bytes:
        query = dns.message.from_wire(asked, keyring=KEY)
        reply = dns.message.make_response(query)
        reply.set_rcode(rcode)
        reply.flags |= dns.flags.AA
        if not signed:
            reply.keyring = None
            reply.tsig = None
        return reply.to_wire()

    return answer


def forged(wire: bytes) -> bytes:
    query = dns.message.from_wire(wire, keyring=KEY)
    reply = dns.message.make_response(query)
    reply.use_tsig(dns.tsig.Key("gateway", "b3RoZXI=", "hmac-sha256"))
    reply.request_mac = query.mac or b""
    return reply.to_wire()


CASES = [
    (respond(signed=False), "cannot be believed"),
    (forged, "the TSIG secret is not the same"),
    (respond(), "holds no zone for"),  # signed, and without an SOA
    (respond(rcode=dns.rcode.SERVFAIL), "answers SERVFAIL; look at its log"),
    (respond(rcode=dns.rcode.REFUSED), "refuses; let this TSIG key update the zone"),
    (respond(rcode=dns.rcode.NOTAUTH), "is not the primary server"),
    (respond(rcode=dns.rcode.NOTIMP), "does not take updates"),
    (respond(rcode=dns.rcode.NXRRSET), "somebody else changed it"),
    (lambda _wire: b"", "cannot be reached by TCP: it hung up"),
    (lambda _wire: b"\0", "cannot be believed"),
    (lambda wire: wire[:12], "cannot be believed"),
    (lambda _wire: b"\xff" * 100, "cannot be believed"),
    (lambda _wire: None, "gave no answer in"),
]


@pytest.mark.parametrize(("answer", "said"), CASES)
async def test_what_is_wrong_is_said(answer: Answer, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update, "TIMEOUT_S", 0.3)
    async with primary(answer) as server:
        with pytest.raises(PublishError) as caught:
            await server.plan([WISH])
    assert said in str(caught.value)


@pytest.mark.parametrize("secret", ["a", "not base64!"])
def test_a_secret_that_cannot_be_one(secret: str) -> None:
    settings = DnsUpdateSettings(
        server=HostPort("127.0.0.1", 53), tsig_name="gateway", tsig_secret_file=Path("unused")
    )
    with pytest.raises(PublishError, match="the TSIG key gateway cannot be used"):
        Primary(settings, secret)

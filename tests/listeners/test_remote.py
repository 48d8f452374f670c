"""The parts of the way out, each by itself: names in certificates, places in their order, addresses begun by turns."""

import asyncio
import socket
from ipaddress import ip_address
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.listeners.remote import session as session_module
from gateway.listeners.remote.connection import ConversationError, RemoteConnection
from gateway.listeners.remote.places import Places
from gateway.listeners.remote.session import RemoteOptions, interleaved, probe_host
from gateway.listeners.remote.tls import is_named, make_client_contexts
from gateway.mail.envelope import IpAddress
from gateway.mail.reply import Reply
from gateway.smtp.client import DownstreamFailure
from tests.listeners.proxy import settle
from tests.listeners.remote import RemoteServer, policy

FOUR, SIX = ip_address("127.0.0.1"), ip_address("::1")


@pytest.mark.parametrize(
    ("name", "pattern", "fits"),
    [
        ("mx.example.net", "mx.example.net", True),
        ("MX.Example.NET", "mx.EXAMPLE.net", True),
        ("mx.example.net", "*.example.net", True),
        ("a.mx.example.net", "*.example.net", False),  # one label and no more
        ("example.net", "*.example.net", False),
        ("example.net", "*.net", False),  # a whole top-level domain
        ("mx.example.net", "m*.example.net", False),  # RFC 9525 §6.3: the whole label or nothing
        ("mx.example.net", "*.*.net", False),
        ("mx.example.net", "*", False),
        ("mx.example.net", "", False),
        (".example.net", "*.example.net", False),
        ("mx.example.net", "mx.example.net.evil.example", False),
    ],
)
def test_names_in_certificates(name: str, pattern: str, *, fits: bool) -> None:
    assert is_named(name, pattern) is fits


def test_addresses_take_turns_and_are_not_many() -> None:
    four = [ip_address(f"192.0.2.{number}") for number in range(9)]
    six = [ip_address("2001:db8::1")]
    assert interleaved([*four, *six, *six]) == [six[0], *four[:5]]
    assert interleaved([]) == []


async def test_an_address_that_does_not_answer_is_waited_for_only_a_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun: list[IpAddress] = []

    async def connect(address: IpAddress, *_: object) -> RemoteConnection:
        begun.append(address)
        if address == SIX:
            await asyncio.Event().wait()
        raise ConversationError(DownstreamFailure.CONNECT, "refused")

    monkeypatch.setattr(session_module, "_connect", connect)
    monkeypatch.setattr(session_module, "STAGGER_S", 0.01)
    options = RemoteOptions(ehlo_name="x.example", contexts=make_client_contexts())
    trying = asyncio.ensure_future(
        session_module._connect_first([SIX, FOUR], options, session_module._Leaving())
    )
    await settle(lambda: begun == [SIX, FOUR])
    trying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await trying


async def test_probing_says_what_a_delivery_would_meet_and_sends_nothing() -> None:
    server = RemoteServer()
    listening = await asyncio.get_running_loop().create_server(server.accept, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    options = RemoteOptions(ehlo_name="x.example", contexts=make_client_contexts(), port=port)
    found = await probe_host(policy("mx.example"), [FOUR, ip_address("127.0.0.9")], options)
    assert [facts.failure for facts in found] == [None, DownstreamFailure.CONNECT]
    assert found[0].helo == "back.example"
    await settle(lambda: server.mail.log == ["EHLO x.example", "QUIT"])
    listening.close()
    await settle(lambda: all(protocol.is_lost for protocol in server.protocols))


async def test_places_go_to_who_came_first_and_no_domain_stops_another() -> None:
    places = Places(3, 2, may_reuse=lambda _domain: False)
    assert places.take("a")
    assert places.take("a")
    assert not places.take("a")
    got: list[str] = []

    async def wait(domain: str, name: str) -> None:
        while True:
            await places.wait(domain, first=False)
            if places.take(domain):
                got.append(name)
                return

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(wait("a", "first"))
        tasks.create_task(wait("a", "second"))
        lost = tasks.create_task(wait("a", "gone"))
        await asyncio.sleep(0)
        assert places.must_queue("a")
        assert places.take("b")  # though others wait for `a`
        assert places.is_full
        lost.cancel()
        places.give_back("a")
        await settle(lambda: got == ["first"])
        places.give_back("a")
    assert got == ["first", "second"]
    assert not places.must_queue("a")


class DeafTransport(asyncio.Transport):
    """Takes what is written, and notes when nothing more is to be read."""

    def __init__(self) -> None:
        super().__init__()
        self.is_paused = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False

    def abort(self) -> None:
        pass

    def get_extra_info(self, name: str, default: object = None) -> object:
        return SimpleNamespace(family=socket.AF_UNIX) if name == "socket" else default


def feed(connection: RemoteConnection, data: bytes, cut: int) -> None:
    for at in range(0, len(data), cut):
        connection.data_received(data[at : at + cut])


async def answer_to(line: bytes, data: bytes, cut: int) -> tuple[Reply | None, bool, bool]:
    """What a connection makes of these bytes: the reply, whether there was more, whether it reads on."""
    connection = RemoteConnection(session_module._Leaving(), "x.example")
    transport = DeafTransport()
    connection.connection_made(transport)
    asked = connection.ask_starttls(0.01) if line else connection.ask(b"", 0.01)
    asking = asyncio.ensure_future(asked)
    await asyncio.sleep(0)
    feed(connection, data, cut)
    try:
        return await asking, connection.has_unasked, transport.is_paused
    except ConversationError:
        return None, False, False


REPLY_BYTES = st.one_of(
    st.binary(max_size=60),
    st.lists(
        st.sampled_from([b"220 ok\r\n", b"220-", b"454 no\r\n", b"2", b"\n", b"\r\n", b"x"]), max_size=6
    ).map(b"".join),
)


@settings(deadline=None)
@given(data=REPLY_BYTES)
def test_any_bytes_are_a_reply_or_the_end_and_where_they_are_cut_does_not_matter(data: bytes) -> None:
    (whole, more, _), (single, more_singly, _) = (
        asyncio.run(answer_to(b"", data, cut)) for cut in (max(len(data), 1), 1)
    )
    if whole:
        assert (whole, more) == (single, more_singly)
    else:  # cut up, a good reply may have been read before the garbage behind it
        assert single is None or more_singly


@pytest.mark.parametrize("cut", [1, 3, 100])
@pytest.mark.parametrize(
    ("data", "is_injected"),
    [
        (b"220 go on\r\n", False),
        (b"220-go\r\n220 on\r\n", False),
        (b"220 go on\r\n250 ok\r\n", True),
        (b"220 go on\r\n2", True),
        (b"220 go on\r\n\r\n", True),
        (b"220 go on\r\n\x16\x03\x01", True),  # a handshake is begun by us
    ],
)
async def test_nothing_may_stand_between_starttls_and_the_handshake(
    data: bytes, *, is_injected: bool, cut: int
) -> None:
    reply, has_unasked, is_paused = await answer_to(b"STARTTLS", data, cut)
    assert (reply is None or has_unasked) is is_injected
    if reply:
        assert is_paused, "nothing more is read in clear text"

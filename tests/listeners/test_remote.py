"""The parts of the way out, each by itself: names in certificates, places in their order, addresses begun by turns."""

import asyncio
from ipaddress import ip_address

import pytest

from gateway.listeners.remote import session as session_module
from gateway.listeners.remote.connection import ConversationError, RemoteConnection
from gateway.listeners.remote.places import Places
from gateway.listeners.remote.session import RemoteOptions, interleaved, probe_host
from gateway.listeners.remote.tls import is_named, make_client_contexts
from gateway.mail.envelope import IpAddress
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
        session_module._connect_first([SIX, FOUR], options, session_module._NOBODY)
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

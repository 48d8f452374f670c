"""The relay's core without sockets: what it promises at any cut of the bytes and at any moment to leave."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.mail.envelope import Tls
from gateway.smtp.ehlo import Capabilities
from gateway.smtp.relay_transfer import RelayTransfer, offered
from tests.smtp.bench import Bench, settings
from tests.smtp.downstream import CLOSE, FakeDownstream

RELAY = settings(trusted_networks=(ip_network("192.0.2.0/24"),), max_message_bytes=100_000)
DIALOG = (
    b"EHLO mail.example\r\nMAIL FROM:<a@sender.example>\r\nRCPT TO:<x@a.example>\r\nRCPT TO:<y@b.example>\r\n"
    b"DATA\r\nSubject: x\r\n\r\n..text\r\n.\r\nMAIL FROM:<>\r\nRCPT TO:<y@b.example>\r\nBDAT 4 LAST\r\nhi\r\nQUIT\r\n"
)


def relay(*servers: FakeDownstream, **changes: object) -> Bench:
    world = {"a.example": list(servers) or [FakeDownstream()], "b.example": [FakeDownstream()]}
    values: dict[str, object] = {"known": offered(dsn=True), "world": world, "make_transfer": RelayTransfer}
    return Bench(settings=RELAY, **(values | changes))  # type: ignore[arg-type]  # by name


def codes(output: bytes) -> list[str]:
    return [line[:3].decode() for line in output.split(b"\r\n") if line[3:4] == b" "]


@given(cut=st.integers(1, len(DIALOG)))
def test_where_the_bytes_are_cut_does_not_matter(cut: int) -> None:
    bench = relay()
    said = codes(bench.take_output() + bench.send(DIALOG, cut=cut))
    assert said == ["220", "250", "250", "250", "452", "354", "250", "250", "250", "250", "221"]
    a, b = bench.world["a.example"][0], bench.world["b.example"][0]
    assert a.bodies() == [b"Subject: x\r\n\r\n.text\r\n"]
    assert b.bodies() == [b"hi\r\n"]
    assert bench.held is None


@pytest.mark.parametrize("step", ["MAIL", "RCPT", "DATA", "CONTENT"])
@pytest.mark.parametrize(
    "said",
    [b"250 ok\r\n", b"354 go on\r\n", b"421 bye\r\n", b"451 no\r\n", b"550 no\r\n", b"what\r\n", CLOSE],
)
def test_250_is_only_ever_the_servers_own_word_about_the_whole_message(step: str, said: bytes) -> None:
    """Promise 1, and never a 5xx for what the server has not refused for good."""
    server = FakeDownstream(at={(step, 0): said})
    bench = relay(server)
    bench.world["b.example"] = []
    heard = codes(bench.send(DIALOG.partition(b"MAIL FROM:<>")[0]))
    is_told = heard[5:7] == ["354", "250"]
    assert is_told == bool(server.messages)
    assert heard[3].startswith("5") == (step in {"MAIL", "RCPT"} and said.startswith(b"550"))
    assert all(code < 500 for _, code in bench.answered if not said.startswith(b"550"))


@given(at=st.integers(0, len(DIALOG)))
def test_a_client_that_leaves_at_any_moment_leaves_nothing_behind(at: int) -> None:
    bench = relay()
    bench.send(DIALOG[:at])
    bench.perform(bench.core.client_lost())
    assert bench.held is None
    assert all(spool.is_discarded for spool in bench.spools)


def test_the_next_server_is_asked_until_one_answers_for_good() -> None:
    busy = FakeDownstream(at={("MAIL", 0): b"451 4.7.1 not now\r\n"})
    dead = FakeDownstream(at={("MAIL", 0): CLOSE})
    good = FakeDownstream()
    bench = relay(busy, dead, good)
    assert codes(bench.send(DIALOG))[3] == "250"
    assert bench.sought[:3] == [("a.example", False), ("a.example", True), ("a.example", True)]
    assert len(good.messages) == 1


def test_a_server_that_dies_after_the_recipient_costs_the_message_one_more_attempt() -> None:
    bench = relay(FakeDownstream(at={("DATA", 0): CLOSE}), FakeDownstream())
    assert codes(bench.send(DIALOG))[6] == "451"
    assert bench.sought[0] == ("a.example", False)
    assert ("a.example", True) not in bench.sought


def test_a_stranger_relays_nothing() -> None:
    bench = relay(peer=ip_address("198.51.100.1"))
    assert codes(bench.send(DIALOG))[3] == "554"
    assert not bench.sought


@pytest.mark.parametrize(
    ("peer", "tls", "offers"),
    [
        ("192.0.2.1", None, False),  # RFC 8689 §2: only within TLS
        ("192.0.2.1", Tls(version="TLSv1.3", cipher="x"), True),
        ("127.0.0.1", None, True),  # on this host
    ],
)
@pytest.mark.parametrize("known", [offered(dsn=False), Capabilities(requiretls=True)])
def test_requiretls_is_offered_where_the_session_is_safe(
    peer: str, tls: Tls | None, known: Capabilities, *, offers: bool
) -> None:
    """By the relay, and by the proxy where downstream offers it."""
    bench = relay(peer=ip_address(peer), tls=tls, known=known)
    bench.take_output()
    assert (b"REQUIRETLS" in bench.send(b"EHLO mail.example\r\n")) is offers
    assert codes(bench.send(b"MAIL FROM:<a@sender.example> REQUIRETLS\r\n")) == ["250" if offers else "555"]


def test_requiretls_is_mirrored_to_those_who_send_to_us() -> None:
    downstream = FakeDownstream(keywords=("REQUIRETLS",))
    bench = Bench(downstream=downstream, tls=Tls(version="TLSv1.3", cipher="x"))
    bench.take_output()
    assert b"REQUIRETLS" in bench.send(b"EHLO client.example\r\n")
    bench.send(b"MAIL FROM:<a@sender.example> REQUIRETLS\r\n")
    assert downstream.log[-1] == "MAIL FROM:<a@sender.example> REQUIRETLS"

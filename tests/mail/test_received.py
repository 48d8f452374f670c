from datetime import UTC, datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.mail.address import Mailbox
from gateway.mail.envelope import Envelope, Listener, Recipient, Session, Tls
from gateway.mail.message import Message
from gateway.mail.received import write_received

NOW = datetime(2026, 11, 3, 9, 5, 7, tzinfo=UTC)
TLS = Tls(version="TLSv1.3", cipher="TLS_AES_256_GCM_SHA384")
ANN = Recipient(mailbox=Mailbox("ann", "example.net", "ann@example.net"))


def envelope(
    helo: str | None = "mail.x.example",
    *,
    client_ip: str = "192.0.2.1",
    client_name: str | None = None,
    login: str | None = None,
    tls: Tls | None = None,
    esmtp: bool = True,
    smtputf8: bool = False,
    recipients: tuple[Recipient, ...] = (),
) -> Envelope:
    session = Session(
        id="s",
        listener=Listener.INBOUND,
        client_ip=ip_address(client_ip),
        client_name=client_name,
        helo=helo,
        esmtp=esmtp,
        tls=tls,
        login=login,
    )
    return Envelope(id="4f2a", session=session, mail_from=None, recipients=recipients, smtputf8=smtputf8)


def received(of: Envelope, *, for_recipient: bool = True, now: datetime = NOW) -> str:
    field = write_received(of, by="mx.example.net", now=now, for_recipient=for_recipient)
    message = Message(field.to_bytes() + b"\r\n")
    assert [found.key for found in message.fields] == [b"received"]
    assert not message.defects
    return " ".join(field.value.split())


def test_all_of_it() -> None:
    of = envelope(client_name="mail.x.example", tls=TLS, recipients=(ANN,))
    assert received(of) == (
        "from mail.x.example (mail.x.example [192.0.2.1]) by mx.example.net with ESMTPS id 4f2a"
        " (using TLSv1.3 with cipher TLS_AES_256_GCM_SHA384) for <ann@example.net>; Tue, 3 Nov 2026 09:05:07 +0000"
    )


@pytest.mark.parametrize(
    ("of", "keyword"),
    [
        (envelope(esmtp=False), "SMTP"),
        (envelope(), "ESMTP"),
        (envelope(tls=TLS), "ESMTPS"),
        (envelope(login="ann"), "ESMTPA"),
        (envelope(tls=TLS, login="ann"), "ESMTPSA"),
        (envelope(smtputf8=True), "UTF8SMTP"),
        (envelope(smtputf8=True, tls=TLS), "UTF8SMTPS"),
        (envelope(smtputf8=True, login="ann"), "UTF8SMTPA"),
        (envelope(smtputf8=True, tls=TLS, login="ann"), "UTF8SMTPSA"),
    ],
)
def test_with(of: Envelope, keyword: str) -> None:
    assert f" with {keyword} id " in received(of)


@pytest.mark.parametrize(
    ("of", "start"),
    [
        (envelope(client_ip="2001:db8::1"), "from mail.x.example (unknown [IPv6:2001:db8::1]) by"),
        (envelope("[192.0.2.9]"), "from [192.0.2.9] (unknown [192.0.2.1]) by"),
        (envelope("bücher.example"), "from xn--bcher-kva.example (unknown [192.0.2.1]) by"),
        (envelope(None), "from [192.0.2.1] (unknown [192.0.2.1] helo=) by"),
        (envelope("x (y) \\"), "from [192.0.2.1] (unknown [192.0.2.1] helo=x [y] /) by"),
        (envelope("x\r\nBcc: y"), "from [192.0.2.1] (unknown [192.0.2.1] helo=x??Bcc: y) by"),
        (
            envelope("x by mx.bank.example; Mon"),
            "from [192.0.2.1] (unknown [192.0.2.1] helo=x by mx.bank.example; Mon) by",
        ),
    ],
)
def test_from(of: Envelope, start: str) -> None:
    assert received(of).startswith(start)


def test_one_recipient_is_named_and_no_more() -> None:
    bob = Recipient(mailbox=Mailbox("b b", "example.net", '"b b"@example.net'))
    eai = Recipient(mailbox=Mailbox("jörg", "example.net", "jörg@example.net"))
    assert ' for <"b b"@example.net>;' in received(envelope(recipients=(bob,)))
    assert " for <Postmaster>;" in received(envelope(recipients=(Recipient(mailbox=None),)))
    assert " for <jörg@example.net>;" in received(envelope(recipients=(eai,), smtputf8=True))
    for of in (envelope(), envelope(recipients=(ANN, bob)), envelope(recipients=(eai,))):
        assert " for " not in received(of)
    assert " for " not in received(envelope(recipients=(ANN,)), for_recipient=False)


@pytest.mark.parametrize("minutes", [0, 330, -210, 840, -720])
def test_the_date_is_read_back(minutes: int) -> None:
    now = NOW.astimezone(timezone(timedelta(minutes=minutes)))
    read = parsedate_to_datetime(received(envelope(), now=now).rpartition("; ")[2])
    assert (read, read.utcoffset()) == (now, timedelta(minutes=minutes))


def test_a_date_without_a_zone_is_our_own_mistake() -> None:
    with pytest.raises(ValueError, match="zone"):
        received(envelope(), now=NOW.replace(tzinfo=None))


@settings(deadline=None)
@given(st.text(max_size=600), st.text(max_size=600))
def test_no_helo_or_name_gets_out_of_its_place(helo: str, name: str) -> None:
    text = received(envelope(helo, client_name=name))
    assert text.count("(") == text.count(")") == 1
    assert text.endswith(") by mx.example.net with ESMTP id 4f2a; Tue, 3 Nov 2026 09:05:07 +0000")

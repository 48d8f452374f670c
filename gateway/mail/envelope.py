"""Who is talking to us, and what they said before the message: the session and the envelope (RFC 5321 §2.3.1)."""

from collections.abc import Mapping
from enum import StrEnum
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from gateway.mail.address import Mailbox
from gateway.mail.value import Value, field

IpAddress = IPv4Address | IPv6Address


_TEXTS_KEPT: Final = 4_096
_texts: dict[int, tuple[IpAddress, str]] = {}
_write: Final = lru_cache(_TEXTS_KEPT)(str)


def ip_text(address: IpAddress) -> str:
    """The address as text. It is asked for several times in a message, and takes a microsecond to write, or half of one to hash."""
    known = _texts.get(id(address))
    if known is not None:  # who is kept here lives, so that nobody else has its id
        return known[1]
    if len(_texts) >= _TEXTS_KEPT:
        _texts.clear()
    text = _write(address)
    _texts[id(address)] = address, text
    return text


def unmapped(address: IpAddress) -> IpAddress:
    """`::ffff:192.0.2.1` is another spelling of 192.0.2.1 (RFC 4291 §2.5.5.2), and IPv4 to every check."""
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


class Listener(StrEnum):
    """The door by which a message came in; the word is the log field and the metric label."""

    INBOUND = "inbound"  # the SMTP proxy in front of the mail server, port 25
    SUBMISSION = "submission"  # our own users' mail programs, ports 587 and 465
    OUTBOUND = "outbound"  # our mail server hands in what is to leave
    MILTER = "milter"  # the mail server asks us over the milter protocol
    CHECK = "check"  # `gateway check`: a saved message, judged offline


class Tls(Value, frozen=True, kw_only=True):
    """What protects the session, as the TLS library names it: `TLSv1.3`, `TLS_AES_256_GCM_SHA384`."""

    version: str
    cipher: str


class Session(Value, frozen=True, kw_only=True):
    """One connection from a client, as it stood when a message was given to us.

    Attributes:
        id: ours, unique, printable; on every log line of the session.
        listener: the door it came in by.
        client_ip: the client's address; IPv4-mapped IPv6 addresses are given as IPv4.
        client_name: the client's name, where forward and reverse DNS agree and something told us so; else None.
        helo: what it said in HELO or EHLO, as received (may be anything); None before it has.
        esmtp: whether it said EHLO.
        tls: None where the session is in clear text.
        login: who it proved to be by AUTH; None for strangers.
        trusted: it connects from one of the operator's `trusted_networks`.
    """

    id: str
    listener: Listener
    client_ip: IpAddress
    client_name: str | None = None
    helo: str | None = None
    esmtp: bool = False
    tls: Tls | None = None
    login: str | None = None
    trusted: bool = False

    @property
    def is_ours(self) -> bool:
        """One of our own users or hosts: not judged by SPF and DMARC."""
        return self.trusted or self.login is not None


class Recipient(Value, frozen=True, kw_only=True):
    """One accepted RCPT.

    Attributes:
        mailbox: None for `<Postmaster>` without a domain (RFC 5321 §4.1.1.3).
        params: ESMTP parameters as given, keywords in upper case (`NOTIFY`, `ORCPT`); None where one has no value.
    """

    mailbox: Mailbox | None
    params: Mapping[str, str | None] = field(default_factory=dict)


class Envelope(Value, frozen=True, kw_only=True):
    """One mail transaction.

    Attributes:
        id: ours, unique, printable; it is in our replies, logs, the trace and the Received field.
        queue_id: the mail server's own name for the message, where it told us (milter `i`).
        mail_from: the reverse path; None for the null path `<>`.
        recipients: in the order given; only those that downstream accepted.
        smtputf8: the client asked for internationalised mail (RFC 6531).
        params: ESMTP parameters of MAIL as given, keywords in upper case (`SIZE`, `BODY`, `RET`, `ENVID`, …).
    """

    id: str
    session: Session
    mail_from: Mailbox | None
    recipients: tuple[Recipient, ...] = ()
    queue_id: str | None = None
    smtputf8: bool = False
    params: Mapping[str, str | None] = field(default_factory=dict)

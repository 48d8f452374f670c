"""The messages that every door must judge alike: `cases.toml` says what each is, `make.py` made them."""

import tomllib
from dataclasses import dataclass, field
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from gateway.dns.zone import ZoneResolver
from gateway.mail.address import Mailbox, parse_mailbox
from gateway.mail.envelope import Envelope, Listener, Recipient, Session

FOLDER = Path(__file__).parent
AUTHSERV_ID = "mx.example.net"
NOW = 1_796_000_000
TRUSTED_SEALERS = ("lists.example", "slow.example")
RECIPIENT = "bob@example.net"

_SENDERS = {
    "honest": ("192.0.2.10", "mail.honest.example", "ann@honest.example"),
    "bank": ("192.0.2.20", "mail.bank.example", "ann@bank.example"),
    "list": ("192.0.2.30", "mail.lists.example", "bounces@lists.example"),
    "evil": ("203.0.113.66", "mx.evil.example", "x@evil.example"),
}
TRUSTED_IP = "198.51.100.7"


@dataclass(frozen=True, kw_only=True)
class CorpusCase:
    name: str
    ip: str
    helo: str
    mail_from: str
    trusted: bool
    expect: dict[str, Any] = field(repr=False)
    content: bytes | None = field(default=None, repr=False)
    """Another message from the same client; None: the file of this name."""

    @property
    def raw(self) -> bytes:
        if self.content is not None:
            return self.content
        return (FOLDER / f"{self.name}.eml").read_bytes()

    @property
    def mailbox(self) -> Mailbox | None:
        return parse_mailbox(self.mail_from) if self.mail_from else None

    def envelope(self, listener: Listener = Listener.CHECK) -> Envelope:
        return Envelope(
            id="corpus.1",
            session=Session(
                id="corpus",
                listener=listener,
                client_ip=ip_address(self.ip),
                helo=self.helo,
                esmtp=True,
                trusted=self.trusted,
            ),
            mail_from=self.mailbox,
            recipients=(Recipient(mailbox=parse_mailbox(RECIPIENT)),),
        )


@cache
def load_cases() -> tuple[CorpusCase, ...]:
    tables = tomllib.loads((FOLDER / "cases.toml").read_text())
    cases = []
    for name, table in tables.items():
        ip, helo, mail_from = _SENDERS[table.get("from", "evil")]
        trusted = table.get("trusted", False)
        cases.append(
            CorpusCase(
                name=name,
                ip=TRUSTED_IP if trusted else ip,
                helo=helo,
                mail_from=table.get("mail_from", mail_from),
                trusted=trusted,
                expect=table["expect"],
            )
        )
    return tuple(cases)


def zone_text() -> str:
    return (FOLDER / "world.zone").read_text() + (FOLDER / "keys.zone").read_text()


def world() -> ZoneResolver:
    return ZoneResolver.from_text(zone_text())

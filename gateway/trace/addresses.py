"""Mail addresses as they are kept: as they are, or so that nobody can read from a trace who wrote to whom.

Hashed, an address keeps its domain, without which no trace could be understood, and gives its local part up for a keyed hash:
the same address has the same hash in every trace, and whoever has the key (the gateway, and `gateway trace`) still finds it.
"""

import hashlib
from collections.abc import Iterable
from typing import Final

from gateway.auth.results import DkimResult, Evidence, SpfResult
from gateway.dns.budget import DnsQuestion
from gateway.mail.envelope import Session
from gateway.mail.value import replace

MARK: Final = "~"
"""Begins a hash, so that nobody takes it for a local part."""

_HASH_BYTES: Final = 8
_HIDDEN: Final = "(hidden)"


class AddressHider:
    """Hashes local parts and logins.

    Args:
        key: whoever has it can try addresses out.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key[: hashlib.blake2b.MAX_KEY_SIZE]

    def address(self, text: str) -> str:
        """`~6f1c…@example.net` for an address, `~6f1c…` for a text without a domain; what is hashed already stays."""
        local_part, at, domain = text.rpartition("@")
        if not at:
            local_part, domain = text, ""
        if not local_part or local_part.startswith(MARK):
            return text
        return f"{MARK}{self._hash(text)}{at}{domain.lower()}"

    def session(self, session: Session) -> Session:
        """The client, its login hashed."""
        return session if session.login is None else replace(session, login=self.address(session.login))

    def evidence(self, evidence: Evidence) -> Evidence:
        """The findings without a person in them."""
        return replace(
            evidence,
            spf_helo=evidence.spf_helo and self._spf(evidence.spf_helo),
            spf=evidence.spf and self._spf(evidence.spf),
            dkim=tuple(map(_without_user, evidence.dkim)),
        )

    def questions(self, asked: Iterable[DnsQuestion], sender: str) -> tuple[DnsQuestion, ...]:
        """What was asked, without names that SPF's macros made from the sender's local part (RFC 7208 §7.2)."""
        person = sender.rpartition("@")[0].lower()
        if not person:
            return tuple(asked)
        return tuple(
            each._replace(name=_HIDDEN) if _mentions(each.name.lower(), person) else each for each in asked
        )

    def _spf(self, result: SpfResult) -> SpfResult:
        sender = result.sender and self.address(result.sender)
        return replace(result, sender=sender, explanation=_HIDDEN if result.explanation else None)

    def _hash(self, text: str) -> str:
        return hashlib.blake2b(
            text.lower().encode("utf-8", "replace"), key=self._key, digest_size=_HASH_BYTES
        ).hexdigest()


def _without_user(result: DkimResult) -> DkimResult:
    """`i=` names a user or agent of the signer's (RFC 6376 §3.5); its domain is enough."""
    auid = result.auid
    if auid is None or auid.startswith("@"):
        return result
    return replace(result, auid=f"@{auid.rpartition('@')[2]}")


def _mentions(name: str, person: str) -> bool:
    # `%{l}` and `%{l-}`, reversed or not, in labels of their own; the sender's own domain may stand behind them.
    labels = name.split(".")
    parts = set(person.replace("-", ".").replace("+", ".").split("."))
    return person in name or not parts.isdisjoint(labels[:-2])

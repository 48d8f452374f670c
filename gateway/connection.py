"""What can be found out before the message: client, HELO and reverse path, and it is found out once for many messages.

Big senders send a thousand messages from one address in the name of one domain. What SPF, reverse DNS and the sender's
domain say of them is the same each time, for as long as the DNS answers that it rests on may be kept.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from gateway.auth.iprev import check_iprev
from gateway.auth.results import IprevResult, SenderDomain, SpfResult
from gateway.auth.sender_domain import check_sender_domain
from gateway.auth.spf import check_helo, check_mail_from
from gateway.dns.budget import BudgetedResolver
from gateway.dns.memory import Watch
from gateway.dns.resolver import Outcome
from gateway.mail.address import Mailbox
from gateway.mail.envelope import Session, ip_text
from gateway.mail.value import Value, replace

MAX_ENTRIES: Final = 20_000
"""Each takes about 2 KB."""

_LOCAL_PART_MACROS: Final = (b"%{l", b"%{s")  # RFC 7208 §7.2: local-part, sender


class ConnectionEvidence(Value, frozen=True, kw_only=True):
    """The results of the checks that need no message."""

    spf_helo: SpfResult
    spf: SpfResult
    iprev: IprevResult
    sender_domain: SenderDomain


class _Key(NamedTuple):
    client_ip: str
    helo: str | None
    domain: str | None


@dataclass(frozen=True, slots=True)
class _Known:
    """Attributes: local_part: None where the results do not depend on it. questions: what it cost, once more each time."""

    evidence: ConnectionEvidence
    expires: float
    local_part: str | None
    questions: int


class ConnectionChecks:
    """SPF for both identities, reverse DNS and the sender's domain; remembered, bounded, the least recently used first to go.

    Args:
        receiver: our name, for SPF's macros.
        now: a clock that never goes back, in seconds.
    """

    def __init__(self, receiver: str, *, now: Callable[[], float] = time.monotonic) -> None:
        self._receiver = receiver
        self._now = now
        self._known: OrderedDict[_Key, _Known] = OrderedDict()

    async def check(
        self, session: Session, mail_from: Mailbox | None, resolver: BudgetedResolver
    ) -> ConnectionEvidence:
        """Check, or remember. `resolver` pays for what is remembered, too: a verdict must not depend on earlier mail."""
        key = _Key(ip_text(session.client_ip), session.helo, mail_from.domain if mail_from else None)
        known = self._recall(key, mail_from)
        if known is not None and resolver.charge(known.questions):
            return _said_by(known.evidence, mail_from)
        watch = Watch(resolver)
        before = resolver.spent
        evidence = await self._ask(session, mail_from, watch)
        if not watch.in_doubt:
            sees_local_part = any(map(_mentions_local_part, watch.answers.values()))
            local_part = mail_from.local_part if mail_from and sees_local_part else None
            expires = self._now() + watch.ttl
            self._remember(key, _Known(evidence, expires, local_part, resolver.spent - before))
        return evidence

    async def _ask(self, session: Session, mail_from: Mailbox | None, resolver: Watch) -> ConnectionEvidence:
        client_ip, helo, receiver = session.client_ip, session.helo, self._receiver
        return ConnectionEvidence(
            spf_helo=await check_helo(client_ip, helo, resolver, receiver=receiver),
            spf=await check_mail_from(client_ip, mail_from, helo, resolver, receiver=receiver),
            iprev=await check_iprev(client_ip, resolver),
            sender_domain=await check_sender_domain(mail_from, resolver),
        )

    def _recall(self, key: _Key, mail_from: Mailbox | None) -> _Known | None:
        known = self._known.get(key)
        if known is None:
            return None
        if self._now() >= known.expires:
            del self._known[key]
            return None
        if (
            known.local_part is not None
            and mail_from is not None
            and known.local_part != mail_from.local_part
        ):
            return None
        self._known.move_to_end(key)
        return known

    def _remember(self, key: _Key, known: _Known) -> None:
        self._known[key] = known
        if len(self._known) > MAX_ENTRIES:
            self._known.popitem(last=False)


def _said_by(evidence: ConnectionEvidence, mail_from: Mailbox | None) -> ConnectionEvidence:
    """The same results for another mailbox of the same domain."""
    spf = evidence.spf
    if mail_from is None or spf.sender is None:
        return evidence
    local_part, _, domain = spf.sender.rpartition("@")
    if local_part == mail_from.local_part or not mail_from.local_part:
        return evidence
    return replace(evidence, spf=replace(spf, sender=f"{mail_from.local_part}@{domain}"))


def _mentions_local_part(outcome: Outcome) -> bool:
    records = getattr(outcome, "records", ())
    return any(
        isinstance(record, bytes)
        and b"%{" in record
        and any(macro in record.lower() for macro in _LOCAL_PART_MACROS)
        for record in records
    )

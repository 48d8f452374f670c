"""What should be published against what the live DNS says, by meaning and not by letter.

A record may be right without being ours: an SPF record that allows more than our senders, a DMARC policy that has grown up.
What could not be looked up is neither right nor wrong.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

from gateway.auth.dkim.key import select_key
from gateway.auth.dmarc.walk import Absent, TreeWalk
from gateway.auth.results import DmarcRecord, SpfStatus
from gateway.auth.spf.check import check_mail_from
from gateway.dns.resolver import Answer, Mx, NotFound, Record, RecordType, Resolver, Temporary, Tlsa
from gateway.keys.sight import Sight, look_at_key
from gateway.mail.address import Mailbox
from gateway.mail.envelope import IpAddress
from gateway.publish.records import Purpose, Wanted, is_of_purpose, presentation
from gateway.publish.wanted import Facts
from gateway.tlspolicy.mta_sts.policy import Mode, Policy
from gateway.tlspolicy.mta_sts.record import RecordError, parse_record
from gateway.tlspolicy.tlsrpt_record import TlsrptRecordError, parse_tlsrpt_record

_POSTMASTER = "postmaster"
_MAX_SHOWN = 10


class Status(StrEnum):
    """How the live DNS does; from good to bad."""

    OK = "ok"
    UNKNOWN = "unknown"  # it cannot be known now: ask again later
    MISSING = "missing"
    DIFFERS = "differs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One of the wanted, and what became of it.

    Attributes:
        found: what stands there, as a master file has it; text of others, not yet fit to be printed.
        note: what it means; empty where the status says it.
    """

    wanted: Wanted
    status: Status
    note: str = ""
    found: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Opinion:
    status: Status
    note: str = ""


async def compare(facts: Facts, wanted: Sequence[Wanted], resolver: Resolver) -> tuple[Comparison, ...]:
    """Look each of them up, all at the same time: a resolver that is silent is waited for once."""
    return tuple(await asyncio.gather(*(_compare(facts, one, resolver) for one in wanted)))


async def _compare(facts: Facts, wanted: Wanted, resolver: Resolver) -> Comparison:
    outcome = await resolver.query(wanted.name, wanted.record_type)
    match outcome:
        case Temporary():
            note = f"the resolver gave no answer ({outcome.trouble})"
            return Comparison(wanted=wanted, status=Status.UNKNOWN, note=note)
        case NotFound():
            opinion = await _without_records(facts, wanted, outcome, resolver)
            return Comparison(wanted=wanted, status=opinion.status, note=opinion.note)
        case Answer():
            opinion = await _with_records(facts, wanted, outcome, resolver)
            found = tuple(presentation(record) for record in _relevant(wanted.purpose, outcome.records))
            return Comparison(
                wanted=wanted, status=opinion.status, note=opinion.note, found=found[:_MAX_SHOWN]
            )
        case _:
            assert_never(outcome)


def _relevant(purpose: Purpose, records: Sequence[Record]) -> list[Record]:
    """Those that are of this purpose: at a domain's own name all sorts of TXT records stand."""
    return [record for record in records if is_of_purpose(purpose, record)]


async def _without_records(facts: Facts, wanted: Wanted, outcome: NotFound, resolver: Resolver) -> _Opinion:
    match wanted.purpose:
        case Purpose.DMARC:
            return await _dmarc(facts, resolver)
        case Purpose.MTA_STS_HOST:
            return await _policy_host(wanted, resolver)
        case Purpose.TLSA if not outcome.secure:
            return _Opinion(
                Status.OK,
                "none, and none is missed: the zone is not signed, or the resolver does not validate (DNSSEC)",
            )
        case _:
            return _Opinion(Status.MISSING)


async def _with_records(facts: Facts, wanted: Wanted, answer: Answer, resolver: Resolver) -> _Opinion:
    match wanted.purpose:
        case Purpose.MX:
            return _mx(facts, wanted, answer)
        case Purpose.SPF:
            return await _spf(facts, answer, resolver)
        case Purpose.DKIM:
            return await _dkim(wanted, resolver)
        case Purpose.DMARC:
            return await _dmarc(facts, resolver)
        case Purpose.MTA_STS | Purpose.TLSRPT:
            return _one_of_its_kind(wanted, answer)
        case Purpose.MTA_STS_HOST:
            return _Opinion(Status.OK)
        case Purpose.TLSA:
            return _tlsa(wanted, answer)
        case _:
            assert_never(wanted.purpose)


def _mx(facts: Facts, wanted: Wanted, answer: Answer) -> _Opinion:
    live = {record.exchange for record in answer.records if isinstance(record, Mx)}
    ours = {record.exchange for record in wanted.records if isinstance(record, Mx)}
    mta_sts = facts.settings.mta_sts
    if mta_sts is not None and (left_out := _left_out(mta_sts.policy, live)):
        return _Opinion(
            Status.DIFFERS,
            f"[mta_sts] mx does not name {', '.join(left_out)}: senders that honour the policy will not deliver there",
        )
    if missing := sorted(ours - live):
        return _Opinion(Status.DIFFERS, f"mail does not come to {', '.join(missing)}")
    if others := sorted(live - ours):
        return _Opinion(Status.OK, f"other servers, too: {', '.join(others[:_MAX_SHOWN])}")
    return _Opinion(Status.OK)


def _left_out(policy: Policy, live: set[str]) -> list[str]:
    if policy.mode is Mode.NONE:
        return []
    return sorted(host for host in live if not policy.lists(host))[:_MAX_SHOWN]


async def _spf(facts: Facts, answer: Answer, resolver: Resolver) -> _Opinion:
    """Whether the record that is there allows every address that we are known to send from."""
    if not any(is_of_purpose(Purpose.SPF, record) for record in answer.records):
        return _Opinion(Status.MISSING)
    senders = await _senders(facts, resolver)
    if isinstance(senders, Temporary):
        return _Opinion(Status.UNKNOWN, f"our senders' addresses could not be looked up ({senders.trouble})")
    if not senders:
        return _Opinion(Status.OK, "one is there; which addresses it must allow is not known from the config")
    postmaster = Mailbox(_POSTMASTER, facts.domain, f"{_POSTMASTER}@{facts.domain}")
    worst = _Opinion(Status.OK, f"allows {', '.join(map(str, senders))}")
    for address in senders:
        result = await check_mail_from(
            address, postmaster, facts.settings.hostname, resolver, receiver=facts.settings.hostname
        )
        match result.status:
            case SpfStatus.PASS:
                pass
            case SpfStatus.TEMPERROR:
                worst = _Opinion(Status.UNKNOWN, f"whether it allows {address} cannot be known now")
            case SpfStatus.PERMERROR:
                return _Opinion(Status.DIFFERS, f"cannot be used: {result.problem}")
            case _:
                return _Opinion(
                    Status.DIFFERS, f"does not allow {address}, which we send from ({result.status})"
                )
    return worst


async def _senders(facts: Facts, resolver: Resolver) -> list[IpAddress] | Temporary:
    """The addresses that the domain's mail leaves from: those of `[outbound]`, else those of its mail servers."""
    outbound = facts.settings.outbound
    configured = (outbound.source_ipv4, outbound.source_ipv6) if outbound else ()
    if addresses := [address for address in configured if address is not None]:
        return addresses
    found: list[IpAddress] = []
    hosts = facts.mail_hosts if facts.is_local else (facts.settings.hostname,)
    for host in hosts:
        for record_type in (RecordType.A, RecordType.AAAA):
            outcome = await resolver.query(host, record_type)
            if isinstance(outcome, Temporary):
                return outcome
            if isinstance(outcome, Answer):
                found += [record for record in outcome.records if isinstance(record, IpAddress)]
    return found


async def _dkim(wanted: Wanted, resolver: Resolver) -> _Opinion:
    texts = [record for record in wanted.records if isinstance(record, bytes)]
    seen = await look_at_key(resolver, wanted.name, select_key(texts))
    match seen.sight:
        case Sight.VISIBLE:
            return _Opinion(Status.OK)
        case Sight.UNKNOWN:
            return _Opinion(Status.UNKNOWN, seen.found)
        case Sight.ABSENT:
            return _Opinion(Status.MISSING, seen.found)
        case Sight.REVOKED | Sight.OTHER:
            return _Opinion(Status.DIFFERS, f"there stands {seen.found}: signatures of this key fail")
        case _:
            assert_never(seen.sight)


async def _dmarc(facts: Facts, resolver: Resolver) -> _Opinion:
    """Any policy of the domain's own choice is right; none may be needed where the organization has one."""
    discovery = await TreeWalk(resolver).discover(facts.domain)
    if isinstance(discovery, Temporary):
        return _Opinion(Status.UNKNOWN, f"the resolver gave no answer ({discovery.trouble})")
    match discovery.record:
        case DmarcRecord() as record:
            where = "" if record.domain == facts.domain else f", from {record.domain}"
            reports = "" if record.aggregate_to else "; nobody is told of failures (no rua)"
            return _Opinion(Status.OK, f"p={record.policy}{where}{reports}")
        case Absent.NONE:
            return _Opinion(Status.MISSING)
        case Absent.SEVERAL:
            return _Opinion(Status.DIFFERS, "there are several, so that all of them count for nothing")
        case _:
            return _Opinion(
                Status.DIFFERS, "its policy cannot be understood: p= must be none, quarantine or reject"
            )


def _one_of_its_kind(wanted: Wanted, answer: Answer) -> _Opinion:
    standing = _relevant(wanted.purpose, answer.records)
    if not standing:
        return _Opinion(Status.MISSING)
    if len(standing) > 1:
        return _Opinion(Status.DIFFERS, "there are several, so that all of them count for nothing")
    (found,) = standing
    if wanted.purpose is Purpose.TLSRPT:
        return _tlsrpt(wanted, found)
    if found in wanted.records or _identifier(found) == _identifier(wanted.records[0]):
        return _Opinion(Status.OK)
    return _Opinion(Status.DIFFERS, "its id is of another policy: senders keep the old one until it changes")


def _tlsrpt(wanted: Wanted, found: Record) -> _Opinion:
    try:
        parse_tlsrpt_record(found if isinstance(found, bytes) else b"")
    except TlsrptRecordError as error:
        return _Opinion(Status.DIFFERS, f"nobody gets the reports: it {error}")
    return _Opinion(Status.OK, "" if found in wanted.records else "reports go where its owner wants them")


def _identifier(record: Record) -> str | None:
    """`id=` of an MTA-STS record; None where it has none that counts."""
    try:
        return parse_record(record) if isinstance(record, bytes) else None
    except RecordError:
        return None


async def _policy_host(wanted: Wanted, resolver: Resolver) -> _Opinion:
    outcome = await resolver.query(wanted.name, RecordType.AAAA)
    match outcome:
        case Answer():
            return _Opinion(Status.OK)
        case NotFound():
            return _Opinion(Status.MISSING, "senders cannot fetch the policy")
        case Temporary():
            return _Opinion(Status.UNKNOWN, f"the resolver gave no answer ({outcome.trouble})")
        case _:
            assert_never(outcome)


def _tlsa(wanted: Wanted, answer: Answer) -> _Opinion:
    live = {record for record in answer.records if isinstance(record, Tlsa)}
    current, *coming = wanted.records
    if current not in live:
        return _Opinion(
            Status.DIFFERS, "none is of the certificate's key: senders that honour DANE will not deliver"
        )
    if missing := [record for record in coming if record not in live]:
        return _Opinion(Status.MISSING, f"{len(missing)} of the keys to come are not there yet")
    if not answer.secure:
        return _Opinion(Status.OK, "not vouched for by the resolver (DNSSEC): it does not count yet")
    if others := len(live - set(wanted.records)):
        return _Opinion(Status.OK, f"{others} others, too: take away those of keys that are no more in use")
    return _Opinion(Status.OK)

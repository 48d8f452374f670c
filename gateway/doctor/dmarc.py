"""The DMARC record that holds for the domain: its own or its organization's, and whether its reports get anywhere (RFC 9989)."""

import asyncio
import re
from collections.abc import Iterator
from typing import Final

from gateway.auth.dmarc.record import UnusableRecord, ignored_tags, unusable_report_uris
from gateway.auth.dmarc.report_to import AUTHORISATION, authorisation_name, wants_reports
from gateway.auth.dmarc.walk import Absent, TreeWalk
from gateway.auth.results import DmarcPolicy, DmarcRecord
from gateway.dns.resolver import Answer, RecordType, Temporary
from gateway.doctor.case import MAX_PROPOSED_BYTES, Case, unknown
from gateway.doctor.codes import Code
from gateway.doctor.report import Finding, finding
from gateway.publish.master_file import format_record
from gateway.publish.records import Purpose, is_of_purpose

_SHOWN: Final = 5
_POLICY_NONE: Final = re.compile(rb"(;[ \t]*p[ \t]*=[ \t]*)none\b", re.IGNORECASE)
_STRENGTH: Final = {policy: strength for strength, policy in enumerate(DmarcPolicy)}


async def examine_dmarc(case: Case) -> tuple[Finding, ...]:
    """By the tree walk, as a receiver finds it (RFC 9989 §4.10)."""
    walk = TreeWalk(case.resolver)
    discovery = await walk.discover(case.domain)
    if isinstance(discovery, Temporary):
        return (unknown("the DMARC record", discovery),)
    match discovery.record:
        case Absent.NONE:
            lines = case.to_publish(Purpose.DMARC)
            return (finding(Code.DMARC_MISSING, "no DMARC record, and none above", publish=lines),)
        case Absent.SEVERAL:
            return (finding(Code.DMARC_SEVERAL, f"several records at _dmarc.{case.domain} or above"),)
        case UnusableRecord(domain=domain):
            text = await _text(case, domain)
            shown = f'"{text.decode("latin-1")}"'
            lines = case.to_publish(Purpose.DMARC)
            return (finding(Code.DMARC_UNUSABLE, shown, about=f"_dmarc.{domain}", publish=lines),)
        case DmarcRecord() as record:
            text = await _text(case, record.domain)
            return (*_policy(case, record, text), *await _reports(case, record, text, walk))


async def _text(case: Case, domain: str) -> bytes:
    """The record as published; it was asked for already."""
    outcome = await case.resolver.query(f"_dmarc.{domain}", RecordType.TXT)
    records = outcome.records if isinstance(outcome, Answer) else ()
    return next((one for one in records if isinstance(one, bytes) and is_of_purpose(Purpose.DMARC, one)), b"")


def _policy(case: Case, record: DmarcRecord, text: bytes) -> Iterator[Finding]:
    is_own = record.domain == case.domain
    policy = record.policy if is_own else record.subdomain_policy or record.policy
    shown = f'"{text.decode("latin-1")}"'
    if not is_own:
        yield finding(Code.DMARC_INHERITED, f"{policy} by the record of {record.domain}", about=record.domain)
    if policy is DmarcPolicy.NONE:
        stronger = (
            _POLICY_NONE.sub(rb"\1quarantine", text) if is_own and len(text) <= MAX_PROPOSED_BYTES else text
        )
        lines = format_record(f"_dmarc.{case.domain}. IN TXT", stronger) if stronger != text else ()
        yield finding(Code.DMARC_POLICY_NONE, shown, publish=tuple(lines))
    else:
        yield finding(Code.DMARC_OK, shown)
    weaker = [
        f"{tag}={below}"
        for tag, below in (("sp", record.subdomain_policy), ("np", record.nonexistent_policy))
        if below is not None and _STRENGTH[below] < _STRENGTH[record.policy]
    ]
    if is_own and weaker:
        yield finding(Code.DMARC_SUBDOMAINS, f"p={record.policy}, but {', '.join(weaker)}")
    if record.testing:
        yield finding(Code.DMARC_TESTING, "t=y")
    if ignored := ignored_tags(text):
        yield finding(Code.DMARC_IGNORED_TAGS, "; ".join(ignored[:_SHOWN]))


async def _reports(case: Case, record: DmarcRecord, text: bytes, walk: TreeWalk) -> list[Finding]:
    found: list[Finding] = []
    if not record.aggregate_to:
        found.append(finding(Code.DMARC_NO_REPORTS, "no address in rua"))
    if wrong := unusable_report_uris(text):
        found.append(finding(Code.DMARC_REPORT_URI, ", ".join(wrong[:_SHOWN])))
    addresses = (*record.aggregate_to, *record.failure_to)
    readers = list(dict.fromkeys(address.rpartition("@")[2] for address in addresses))
    answers = await asyncio.gather(
        *[wants_reports(record.domain, reader, case.resolver, walk) for reader in readers]
    )
    for reader, wanted in zip(readers, answers, strict=True):
        if isinstance(wanted, Temporary):
            found.append(unknown(f"whether {reader} wants reports", wanted))
        elif not wanted:
            owner = f"{authorisation_name(record.domain, reader)}. IN TXT"
            lines = tuple(format_record(owner, AUTHORISATION))
            found.append(
                finding(
                    Code.DMARC_REPORTS_UNAUTHORISED,
                    "does not say in its DNS that it wants them",
                    about=reader,
                    publish=lines,
                )
            )
    return found

"""DKIM keys: those that are known of, and those at the names that senders use most (RFC 6376 §3.6).

The keys of a domain cannot be listed. What is not found here may yet be there, under a name that only its signatures tell.
"""

import asyncio
from collections.abc import Sequence
from typing import Final

from gateway.auth.dkim.key import MIN_TRUSTED_RSA_BITS, KeyRecord, select_key
from gateway.auth.dkim.signature import Algorithm
from gateway.auth.dkim.tags import DkimError
from gateway.auth.results import Problem
from gateway.dns.resolver import Answer, Outcome, RecordType, Temporary
from gateway.doctor.case import Case, unknown
from gateway.doctor.codes import Code
from gateway.doctor.report import Finding, finding
from gateway.publish.master_file import format_record
from gateway.publish.records import Purpose, is_of_purpose

GOOD_RSA_BITS: Final = 2048  # RFC 8301 §3.2

COMMON_SELECTORS: Final = (
    "default",
    "dkim",
    "dkim1",
    "mail",
    "smtp",
    "email",
    "key1",
    "s1",
    "s2",
    "s1024",
    "s2048",
    "selector1",  # Microsoft 365
    "selector2",
    "google",
    "20230601",  # Gmail's own
    "k1",  # Mailchimp
    "k2",
    "k3",
    "fm1",  # Fastmail
    "fm2",
    "fm3",
    "sig1",  # iCloud
    "protonmail",
    "protonmail2",
    "protonmail3",
    "zoho",
    "mandrill",
    "mailjet",
    "pm",  # Postmark
    "zendesk1",
    "mxvault",
    "gw1",
)
"""What the large services and the manuals of mail servers call their keys."""

_NOBODYS: Final = "no-key-has-this-name"
"""Whoever has a record here has one at every name."""


async def examine_dkim(case: Case) -> tuple[Finding, ...]:
    """All at the same time; of the common names only those that hold a key are told."""
    known = _known(case)
    tried = [*known, *(name for name in COMMON_SELECTORS if name not in known), _NOBODYS]
    outcomes = dict(zip(tried, await asyncio.gather(*[_look(case, name) for name in tried]), strict=True))
    everywhere = _keys_in(outcomes.pop(_NOBODYS))
    found: list[Finding] = []
    if everywhere:
        found.append(finding(Code.DKIM_WILDCARD, _text(everywhere), about="*"))
    for selector, outcome in outcomes.items():
        if selector in known or (_keys_in(outcome) and _keys_in(outcome) != everywhere):
            found.append(_judge(case, selector, outcome))
    if not any(one.code is not Code.DKIM_WILDCARD for one in found) and not everywhere:
        found.append(_none(outcomes))
    return tuple(found)


def _known(case: Case) -> list[str]:
    ours = [key.selector for key in case.tools.facts.keys] if case.tools.facts else []
    return list(dict.fromkeys([*case.tools.selectors, *ours]))


async def _look(case: Case, selector: str) -> Outcome:
    return await case.resolver.query(f"{selector}._domainkey.{case.domain}", RecordType.TXT)


def _keys_in(outcome: Outcome) -> list[bytes]:
    """The records that are meant as keys; a wildcard's other text is none."""
    records = outcome.records if isinstance(outcome, Answer) else ()
    return [record for record in records if isinstance(record, bytes) and is_of_purpose(Purpose.DKIM, record)]


def _judge(case: Case, selector: str, outcome: Outcome) -> Finding:
    if isinstance(outcome, Temporary):
        return unknown(f"the key {selector}", outcome)
    records = _keys_in(outcome)
    if not records:
        return finding(Code.DKIM_MISSING, "no key", about=selector, publish=_wanted(case, selector))
    try:
        key = select_key(records)
    except DkimError as error:
        if error.problem is Problem.DKIM_KEY_REVOKED:
            return finding(Code.DKIM_REVOKED, "revoked (p= is empty)", about=selector)
        return finding(Code.DKIM_UNUSABLE, f"{error}: {_text(records)}", about=selector)
    return _strength(selector, key)


def _strength(selector: str, key: KeyRecord) -> Finding:
    is_rsa = key.fits(Algorithm.RSA_SHA256)
    what = f"RSA, {key.bits} bits" if is_rsa else "Ed25519"
    if key.testing:
        return finding(Code.DKIM_TESTING, f"{what}, t=y", about=selector)
    if is_rsa and key.bits < MIN_TRUSTED_RSA_BITS:
        return finding(Code.DKIM_SHORT_KEY, what, about=selector)
    if is_rsa and key.bits < GOOD_RSA_BITS:
        return finding(Code.DKIM_WEAK_KEY, what, about=selector)
    return finding(Code.DKIM_OK, f"{what}{', for no subdomain (t=s)' if key.strict else ''}", about=selector)


def _wanted(case: Case, selector: str) -> tuple[str, ...]:
    """Our config's own key, where it is one."""
    keys = case.tools.facts.keys if case.tools.facts else ()
    owner = f"{selector}._domainkey.{case.domain}. IN TXT"
    return tuple(
        line for key in keys if key.selector == selector for line in format_record(owner, key.record)
    )


def _none(outcomes: dict[str, Outcome]) -> Finding:
    failures = [outcome for outcome in outcomes.values() if isinstance(outcome, Temporary)]
    if failures:
        return unknown("the usual keys", failures[0])
    return finding(Code.DKIM_NONE_KNOWN, f"no key at the {len(outcomes)} usual names")


def _text(records: Sequence[bytes]) -> str:
    return '"' + '" "'.join(record.decode("latin-1") for record in records) + '"'

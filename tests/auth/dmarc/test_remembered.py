"""A verdict that is remembered is the verdict that would be found: whatever came before, and at the same price."""

import time

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.auth.dmarc.evaluate import check_dmarc
from gateway.auth.dmarc.remembered import DmarcChecks
from gateway.auth.results import (
    DkimResult,
    DkimStatus,
    DmarcStatus,
    Problem,
    SpfIdentity,
    SpfResult,
    SpfStatus,
)
from gateway.dns.budget import BudgetedResolver
from tests.auth.dmarc.facts import Dns, author, dkim, spf

DOMAINS = st.sampled_from(
    ["example.org", "a.example.org", "b.example.org", "strict.example", "x.strict.example", "open.example"]
)
SPF = st.none() | st.builds(
    SpfResult,
    identity=st.sampled_from(SpfIdentity),
    status=st.sampled_from([SpfStatus.PASS, SpfStatus.FAIL, SpfStatus.TEMPERROR]),
    domain=st.none() | DOMAINS,
    problem=st.sampled_from([None, Problem.DNS_TIMEOUT, Problem.DNS_SERVFAIL]),
)
DKIM = st.builds(
    DkimResult,
    position=st.just(0),
    status=st.sampled_from([DkimStatus.PASS, DkimStatus.FAIL, DkimStatus.TEMPERROR]),
    domain=st.none() | DOMAINS,
    covers_whole_body=st.booleans(),
    problem=st.sampled_from([None, Problem.DNS_TIMEOUT, Problem.DNS_SERVFAIL]),
)
MESSAGES = st.tuples(DOMAINS, SPF, st.lists(DKIM, max_size=2))


def budget(dns: Dns, max_queries: int = 60) -> BudgetedResolver:
    return BudgetedResolver(dns, max_queries=max_queries, deadline=time.monotonic() + 60)


@settings(deadline=None)
@given(st.lists(MESSAGES, min_size=2, max_size=6), st.integers(0, 6), st.sampled_from(["", "open.example"]))
async def test_what_came_before_makes_no_difference(
    messages: list[tuple[str, SpfResult | None, list[DkimResult]]], max_queries: int, trouble: str
) -> None:
    records = {
        "example.org": "v=DMARC1; p=reject",
        "strict.example": "v=DMARC1; p=reject; aspf=s; adkim=s; np=none",
    }
    dns = Dns(records, trouble=[trouble])
    checks = DmarcChecks()
    for domain, sender, signatures in messages * 2:
        alone, remembering = budget(dns, max_queries), budget(dns, max_queries)
        expected = await check_dmarc(author(domain), sender, signatures, alone)
        assert await checks.check(author(domain), sender, signatures, remembering) == expected
        assert remembering.spent == alone.spent
        assert [one.name for one in remembering.asked] == [one.name for one in alone.asked]


async def test_nobody_is_asked_twice() -> None:
    dns, checks = Dns({"example.org": "v=DMARC1; p=reject"}), DmarcChecks()
    for _ in range(3):
        found = await checks.check(
            author("example.org"), spf("mail.example.org"), [dkim("example.org")], budget(dns)
        )
        assert (found.status, found.spf_aligned, found.dkim_aligned) == (
            DmarcStatus.PASS,
            True,
            "example.org",
        )
    assert dns.domains_asked == ["example.org", "mail.example.org"]

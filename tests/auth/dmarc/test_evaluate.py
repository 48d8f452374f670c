from collections.abc import Sequence
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.auth.dmarc.evaluate import check_dmarc
from gateway.auth.dmarc.suffix import SuffixList
from gateway.auth.results import (
    DkimResult,
    DkimStatus,
    DmarcPolicy,
    DmarcResult,
    DmarcStatus,
    Problem,
    SpfIdentity,
    SpfResult,
    SpfStatus,
)
from gateway.dns.resolver import Outcome, RecordType, Temporary, Trouble
from gateway.dns.zone import ZoneResolver
from gateway.mail.author import AuthorFault, NoAuthor
from tests.auth.dmarc.facts import Dns, author, dkim, spf

NONE, QUARANTINE, REJECT = DmarcPolicy.NONE, DmarcPolicy.QUARANTINE, DmarcPolicy.REJECT
PLAIN: Final = "v=DMARC1; p=reject"
STRICT: Final = "v=DMARC1; p=reject; aspf=s; adkim=s"


async def check(
    dns: Dns,
    domain: str = "example.org",
    *,
    mail_from: SpfResult | None = None,
    signatures: Sequence[DkimResult] = (),
) -> DmarcResult:
    return await check_dmarc(author(domain), mail_from, signatures, dns)


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        (AuthorFault.NO_FROM, Problem.DMARC_NO_AUTHOR),
        (AuthorFault.NO_AUTHOR, Problem.DMARC_NO_AUTHOR),
        (AuthorFault.SEVERAL_FROM, Problem.DMARC_SEVERAL_FROM),
        (AuthorFault.SEVERAL_AUTHORS, Problem.DMARC_SEVERAL_AUTHORS),
        (AuthorFault.UNCLEAR, Problem.DMARC_AUTHOR_UNCLEAR),
        (AuthorFault.DOMAIN_INVALID, Problem.DMARC_AUTHOR_DOMAIN),
        (AuthorFault.AMBIGUOUS_MESSAGE, Problem.DMARC_MESSAGE_AMBIGUOUS),
    ],
)
async def test_without_exactly_one_author_nothing_passes(fault: AuthorFault, problem: Problem) -> None:
    dns = Dns({"example.org": PLAIN})
    nobody = NoAuthor(fault=fault, domains=("example.org",))
    result = await check_dmarc(nobody, spf("example.org"), [dkim("example.org")], dns)
    assert (result.status, result.problem) == (DmarcStatus.PERMERROR, problem)
    assert (result.author_domain, result.record) == (None, None)


@pytest.mark.parametrize(
    ("domains", "applied"),
    [
        (("lenient.example", "example.org", "careful.example"), DmarcPolicy.REJECT),
        (("lenient.example", "careful.example"), DmarcPolicy.QUARANTINE),
        (("testing.example",), DmarcPolicy.QUARANTINE),  # p=reject; t=y
        (("lenient.example", "nothing.example"), DmarcPolicy.NONE),
        ((), DmarcPolicy.NONE),
    ],
)
async def test_without_exactly_one_author_the_strictest_domain_in_sight_is_told(
    domains: tuple[str, ...], applied: DmarcPolicy
) -> None:
    dns = Dns(
        {
            "example.org": "v=DMARC1; p=reject",
            "careful.example": "v=DMARC1; p=quarantine",
            "lenient.example": "v=DMARC1; p=none",
            "testing.example": "v=DMARC1; p=reject; t=y",
        }
    )
    nobody = NoAuthor(fault=AuthorFault.SEVERAL_AUTHORS, domains=domains)
    result = await check_dmarc(nobody, spf("example.org"), [dkim("example.org")], dns)
    assert (result.status, result.applied) == (DmarcStatus.PERMERROR, applied)


def test_every_author_fault_has_its_problem() -> None:
    from gateway.auth.dmarc.evaluate import _FAULTS  # noqa: PLC0415 - the table itself is what is tested

    assert set(_FAULTS) == set(AuthorFault)


async def test_an_address_literal_has_nobody_to_vouch_for_it() -> None:
    result = await check(
        Dns({}), "[192.0.2.1]", mail_from=spf("[192.0.2.1]"), signatures=[dkim("[192.0.2.1]")]
    )
    assert (result.status, result.problem) == (DmarcStatus.PERMERROR, Problem.DMARC_AUTHOR_DOMAIN)


PASSES = [
    ("SPF, the same domain", PLAIN, spf("example.org"), [], (True, None)),
    ("DKIM, the same domain", PLAIN, None, [dkim("example.org")], (False, "example.org")),
    ("both", PLAIN, spf("example.org"), [dkim("example.org")], (True, "example.org")),
    ("SPF, a subdomain", PLAIN, spf("bounce.example.org"), [], (True, None)),
    ("DKIM, a subdomain", PLAIN, None, [dkim("mail.example.org")], (False, "mail.example.org")),
    ("strict, the same domain", STRICT, spf("example.org"), [dkim("example.org")], (True, "example.org")),
    ("names ignore case", STRICT, spf("Example.ORG"), [dkim("EXAMPLE.org")], (True, "example.org")),
    ("one good signature among bad", PLAIN, None, [dkim("example.org", DkimStatus.FAIL), dkim("esp.example"), dkim("a.example.org")], (False, "a.example.org")),
    ("the author's own signature is named first", PLAIN, None, [dkim("a.example.org"), dkim("example.org")], (False, "example.org")),
    ("DKIM decides; SPF is of the provider", PLAIN, spf("esp.example"), [dkim("example.org")], (False, "example.org")),
    ("a null path's HELO name is its MAIL FROM identity", PLAIN, spf("mx.example.org"), [], (True, None)),
    ("DKIM decides; SPF could not be checked", PLAIN, spf("example.org", SpfStatus.TEMPERROR), [dkim("example.org")], (False, "example.org")),
]  # fmt: skip


@pytest.mark.parametrize(("why", "record", "mail_from", "signatures", "aligned"), PASSES)
async def test_passes(
    why: str,
    record: str,
    mail_from: SpfResult | None,
    signatures: list[DkimResult],
    aligned: tuple[bool, str | None],
) -> None:
    result = await check(Dns({"example.org": record}), mail_from=mail_from, signatures=signatures)
    assert result.status is DmarcStatus.PASS, why
    assert (result.spf_aligned, result.dkim_aligned) == aligned
    assert (result.requested, result.applied, result.problem) == (REJECT, NONE, None)


FAILS = [
    ("nothing at all", PLAIN, None, []),
    ("SPF passed for HELO only", PLAIN, spf("example.org", identity=SpfIdentity.HELO), []),
    ("SPF softfail", PLAIN, spf("example.org", SpfStatus.SOFTFAIL), []),
    ("a pass that local policy does not count", PLAIN, spf("example.org", SpfStatus.POLICY), []),
    ("no domain to align", PLAIN, spf(None), [dkim(None)]),
    ("another organization", PLAIN, spf("example.net"), [dkim("evil.example")]),
    ("a name that only looks alike", PLAIN, spf("notexample.org"), [dkim("example.org.evil.example")]),
    ("strict, a subdomain", STRICT, spf("a.example.org"), [dkim("a.example.org")]),
    ("a signature that leaves bytes unsigned", PLAIN, None, [dkim("example.org", whole=False)]),
    ("a weak signature", PLAIN, None, [dkim("example.org", DkimStatus.POLICY)]),
    ("a broken key", PLAIN, None, [dkim("example.org", DkimStatus.PERMERROR)]),
    ("another's temperror could not have helped", PLAIN, spf("example.net", SpfStatus.TEMPERROR), [dkim("evil.example", DkimStatus.TEMPERROR)]),
    ("nor could one out of strict alignment", STRICT, spf("a.example.org", SpfStatus.TEMPERROR), [dkim("a.example.org", DkimStatus.TEMPERROR)]),
    ("nor one that would not count", PLAIN, None, [dkim("example.org", DkimStatus.TEMPERROR, whole=False)]),
    ("nor HELO's", PLAIN, spf("example.org", SpfStatus.TEMPERROR, SpfIdentity.HELO), []),
]  # fmt: skip


@pytest.mark.parametrize(("why", "record", "mail_from", "signatures"), FAILS)
async def test_fails(
    why: str, record: str, mail_from: SpfResult | None, signatures: list[DkimResult]
) -> None:
    result = await check(Dns({"example.org": record}), mail_from=mail_from, signatures=signatures)
    assert result.status is DmarcStatus.FAIL, why
    assert (result.spf_aligned, result.dkim_aligned) == (False, None)
    assert (result.requested, result.applied, result.problem) == (REJECT, REJECT, None)


@pytest.mark.parametrize(
    ("mail_from", "signatures"),
    [
        (spf("example.org", SpfStatus.TEMPERROR), []),
        (spf("bounce.example.org", SpfStatus.TEMPERROR), []),
        (None, [dkim("example.org", DkimStatus.TEMPERROR)]),
        (spf("example.net"), [dkim("evil.example"), dkim("a.example.org", DkimStatus.TEMPERROR)]),
    ],
)
async def test_what_could_not_be_checked_and_might_have_been_a_proof_is_no_fail(
    mail_from: SpfResult | None, signatures: list[DkimResult]
) -> None:
    result = await check(Dns({"example.org": PLAIN}), mail_from=mail_from, signatures=signatures)
    assert (result.status, result.applied) == (DmarcStatus.TEMPERROR, NONE)
    assert result.record is not None


async def test_a_temperror_says_whose_it_is() -> None:
    late = SpfResult(
        identity=SpfIdentity.MAIL_FROM,
        status=SpfStatus.TEMPERROR,
        domain="example.org",
        problem=Problem.DNS_TIMEOUT,
    )
    assert (await check(Dns({"example.org": PLAIN}), mail_from=late)).problem is Problem.DNS_TIMEOUT
    dns = Dns({"example.org": PLAIN}, trouble=["a.example.org"])
    assert (await check(dns, mail_from=spf("a.example.org"))).problem is Problem.DNS_SERVFAIL


async def test_a_policy_that_cannot_be_looked_up_is_neither_pass_nor_fail() -> None:
    dns = Dns({}, trouble=["example.org"])
    result = await check(dns, mail_from=spf("example.org"), signatures=[dkim("example.org")])
    assert (result.status, result.problem) == (DmarcStatus.TEMPERROR, Problem.DNS_SERVFAIL)
    assert (result.requested, result.applied) == (NONE, NONE)


async def test_no_record_is_none_whatever_passed() -> None:
    result = await check(Dns({}), mail_from=spf("example.org"), signatures=[dkim("example.org")])
    assert (result.status, result.problem, result.record) == (DmarcStatus.NONE, None, None)


async def test_several_records_are_none_and_said() -> None:
    dns = Dns({"example.org": (b"v=DMARC1; p=reject", b"v=DMARC1; p=none")})
    result = await check(dns, mail_from=spf("example.org"))
    assert (result.status, result.problem) == (DmarcStatus.NONE, Problem.DMARC_SEVERAL_RECORDS)


async def test_an_unusable_record_is_permerror_and_applies_nothing() -> None:
    result = await check(Dns({"example.org": "v=DMARC1; p=rejct"}), mail_from=spf("example.org"))
    assert (result.status, result.problem) == (DmarcStatus.PERMERROR, Problem.DMARC_SYNTAX)
    assert (result.requested, result.applied) == (NONE, NONE)


POLICIES = [
    ("p=reject", "example.org", REJECT, "the domain's own record: p"),
    ("p=reject; sp=none; np=none", "example.org", REJECT, "sp and np do not speak for the domain itself"),
    ("p=reject", "www.example.org", REJECT, "p speaks for subdomains too"),
    ("p=reject; sp=none", "www.example.org", NONE, "unless sp does"),
    ("p=none; sp=quarantine; np=reject", "www.example.org", QUARANTINE, "sp, for what exists"),
    ("p=none; sp=quarantine; np=reject", "nosuch.example.org", REJECT, "np, for what does not"),
    ("p=none; np=reject", "www.example.org", NONE, "np is not for what exists"),
    ("p=none; sp=reject", "nosuch.example.org", REJECT, "sp stands in for np"),
    ("p=reject; psd=y", "www.example.org", REJECT, "a public suffix's p for its customers"),
    (
        "p=none; psd=y; np=reject",
        "nosuch.example.org",
        REJECT,
        "a public suffix's np for names never registered",
    ),
]


@pytest.mark.parametrize(("tags", "domain", "requested", "why"), POLICIES)
async def test_which_policy_applies(tags: str, domain: str, requested: DmarcPolicy, why: str) -> None:
    dns = Dns({"example.org": f"v=DMARC1; {tags}"}, exist=["www.example.org"])
    result = await check(dns, domain)
    assert (result.status, result.requested, result.applied) == (DmarcStatus.FAIL, requested, requested), why


async def test_existence_is_asked_only_where_it_makes_a_difference() -> None:
    for tags in ("p=reject", "p=none; sp=reject; np=reject", "p=reject; np=reject"):
        dns = Dns({"example.org": f"v=DMARC1; {tags}"})
        await check(dns, "www.example.org")
        assert not [name for name in dns.asked if name.startswith("CNAME")]
    dns = Dns({"example.org": "v=DMARC1; p=none; np=reject"})
    await check(dns, "www.example.org", signatures=[dkim("example.org")])
    assert not [name for name in dns.asked if name.startswith("CNAME")]  # passed


async def test_where_existence_cannot_be_known_no_policy_is_applied() -> None:
    class Silent(Dns):
        async def query(self, name: str, record_type: RecordType) -> Outcome:
            if record_type is not RecordType.TXT:
                return Temporary(Trouble.TIMEOUT)
            return await super().query(name, record_type)

    result = await check(Silent({"example.org": "v=DMARC1; p=none; np=reject"}), "www.example.org")
    assert (result.status, result.problem, result.applied) == (
        DmarcStatus.TEMPERROR,
        Problem.DNS_TIMEOUT,
        NONE,
    )


@pytest.mark.parametrize(
    ("zone", "requested", "why"),
    [
        ("sub.example.org. TXT other", NONE, "any record is existence (RFC 9989 A.4)"),
        ("a.sub.example.org. TXT other", NONE, "so is a name below (RFC 8020)"),
        ("sub.example.org. CNAME gone.example.net.", NONE, "so is an alias, even one to nowhere"),
        ("", REJECT, "NXDOMAIN"),
    ],
)
async def test_what_existence_is(zone: str, requested: DmarcPolicy, why: str) -> None:
    resolver = ZoneResolver.from_text(f'_dmarc.example.org. TXT "v=DMARC1; p=none; np=reject"\n{zone}\n')
    result = await check_dmarc(author("sub.example.org"), None, [], resolver)
    assert result.requested is requested, why


@pytest.mark.parametrize(("asked", "applied"), [("reject", QUARANTINE), ("quarantine", NONE), ("none", NONE)])
async def test_test_mode_lowers_what_is_applied_by_one_level(asked: str, applied: DmarcPolicy) -> None:
    result = await check(Dns({"example.org": f"v=DMARC1; p={asked}; t=y"}))
    assert (result.requested, result.applied) == (DmarcPolicy(asked), applied)


async def test_a_pass_of_the_author_domain_itself_takes_one_query() -> None:
    dns = Dns({"example.org": PLAIN})
    await check(dns, mail_from=spf("example.org"), signatures=[dkim("example.org")] * 10)
    assert dns.asked == ["_dmarc.example.org"]


async def test_a_spoof_from_another_top_level_domain_takes_one_query() -> None:
    dns = Dns({"example.org": PLAIN})
    await check(dns, mail_from=spf("a.b.c.evil.example"), signatures=[dkim("d.e.f.evil.example")] * 10)
    assert dns.asked == ["_dmarc.example.org"]


async def test_says_where_the_public_suffix_list_would_have_answered_differently() -> None:
    records = {"example.com": PLAIN, "dept.example.com": "v=DMARC1; p=none; psd=n"}
    for domain, differs in (("a.example.com", False), ("a.dept.example.com", True)):
        result = await check_dmarc(author(domain), None, [], Dns(records), suffix_list=SuffixList())
        assert result.suffix_list_differs is differs
    assert not (await check_dmarc(author("a.dept.example.com"), None, [], Dns(records))).suffix_list_differs


_DOMAINS = st.sampled_from(["example.org", "a.example.org", "b.a.example.org", "example.net", "org"])
_SPF = st.none() | st.builds(spf, _DOMAINS, st.sampled_from(SpfStatus), st.sampled_from(SpfIdentity))
_DKIM = st.lists(st.builds(dkim, _DOMAINS, st.sampled_from(DkimStatus), whole=st.booleans()), max_size=4)
_RECORDS = st.sampled_from(
    [PLAIN, STRICT, "v=DMARC1; p=none; psd=n", "v=DMARC1; p=reject; psd=y", "v=DMARC1; p=bad"]
)


@given(
    st.dictionaries(_DOMAINS, _RECORDS),
    st.frozensets(_DOMAINS, min_size=1, max_size=2),
    _DOMAINS,
    _SPF,
    _DKIM,
)
@settings(max_examples=400, deadline=None)
async def test_a_dns_failure_never_makes_a_pass_or_a_fail(
    records: dict[str, str],
    trouble: frozenset[str],
    domain: str,
    mail_from: SpfResult | None,
    signatures: list[DkimResult],
) -> None:
    """With failures the result is that of a DNS without them, whatever the failing names hold, or it is temperror."""
    result = await check(Dns(records, trouble=trouble), domain, mail_from=mail_from, signatures=signatures)
    if result.status is DmarcStatus.TEMPERROR:
        assert result.applied is NONE
        return
    for hidden in (None, PLAIN, "v=DMARC1; p=reject; psd=n", "v=DMARC1; p=reject; psd=y"):
        whole = {name: text for name, text in records.items() if name not in trouble}
        if hidden:
            whole |= dict.fromkeys(trouble, hidden)
        assert (
            await check(Dns(whole), domain, mail_from=mail_from, signatures=signatures)
        ).status is result.status

"""The examples of RFC 9989, each under its section. The facts are the RFC's, the words ours."""

from typing import Final

import pytest

from gateway.auth.dmarc.evaluate import check_dmarc
from gateway.auth.dmarc.record import UnusablePolicyError, parse_record
from gateway.auth.dmarc.walk import TreeWalk, names_to_query
from gateway.auth.results import (
    Alignment,
    DkimResult,
    DmarcPolicy,
    DmarcRecord,
    DmarcResult,
    DmarcStatus,
    SpfResult,
)
from tests.auth.dmarc.facts import Dns, author, dkim, spf

REJECT: Final = "v=DMARC1; p=reject"
NONE: Final = "v=DMARC1; p=none"


async def evaluate(
    dns: Dns, author_domain: str, mail_from: SpfResult | None = None, signature: DkimResult | None = None
) -> DmarcResult:
    return await check_dmarc(author(author_domain), mail_from, [signature] if signature else [], dns)


@pytest.mark.parametrize(
    ("section", "authenticated", "author_domain", "relaxed", "strict"),
    [
        ("§4.4 Table 1 row 1", "foo.example.com", "news.example.com", True, False),
        ("§4.4 Table 1 row 2", "news.example.com", "news.example.com", True, True),
        ("§4.4 Table 1 row 3", "foo.example.net", "news.example.com", False, False),
        ("B.1.1 example 1", "example.com", "example.com", True, True),
        ("B.1.1 example 2", "child.example.com", "example.com", True, False),
        ("B.1.1 example 3", "example.net", "child.example.com", False, False),
        ("B.1.2 example 1", "example.com", "example.com", True, True),
        ("B.1.2 example 2", "example.com", "child.example.com", True, False),
        ("B.1.2 example 3", "example.net", "child.example.com", False, False),
    ],
)
@pytest.mark.parametrize("method", ["spf", "dkim"])
async def test_alignment(
    method: str, section: str, authenticated: str, author_domain: str, *, relaxed: bool, strict: bool
) -> None:
    for mode, expected in (("r", relaxed), ("s", strict)):
        record = f"v=DMARC1; p=reject; aspf={mode}; adkim={mode}"
        dns = Dns({"example.com": record, "example.net": record})
        if method == "spf":
            result = await evaluate(dns, author_domain, mail_from=spf(authenticated))
        else:
            result = await evaluate(dns, author_domain, signature=dkim(authenticated))
        assert result.status is (DmarcStatus.PASS if expected else DmarcStatus.FAIL), section


@pytest.mark.parametrize(
    ("section", "domain", "expected"),
    [
        (
            "§4.10",
            "a.b.c.d.e.f.g.h.i.j.mail.example.com",
            [
                "a.b.c.d.e.f.g.h.i.j.mail.example.com",
                "g.h.i.j.mail.example.com",
                "h.i.j.mail.example.com",
                "i.j.mail.example.com",
                "j.mail.example.com",
                "mail.example.com",
                "example.com",
                "com",
            ],
        ),
        (
            "§5.1.8",
            "mail.a.b.c.d.e.f.g.example.com",
            [
                "mail.a.b.c.d.e.f.g.example.com",
                "c.d.e.f.g.example.com",
                "d.e.f.g.example.com",
                "e.f.g.example.com",
                "f.g.example.com",
                "g.example.com",
                "example.com",
                "com",
            ],
        ),
        (
            "B.4.2",
            "a.b.c.d.e.f.g.h.i.j.k.example.com",
            [
                "a.b.c.d.e.f.g.h.i.j.k.example.com",
                "g.h.i.j.k.example.com",
                "h.i.j.k.example.com",
                "i.j.k.example.com",
                "j.k.example.com",
                "k.example.com",
                "example.com",
                "com",
            ],
        ),
    ],
)
async def test_the_queries_of_a_long_walk(section: str, domain: str, expected: list[str]) -> None:
    dns = Dns({})
    await TreeWalk(dns).organizational_domain(domain)
    assert dns.domains_asked == expected == names_to_query(domain), section


async def test_5_1_8_a_record_that_the_walk_jumps_over_is_not_found() -> None:
    dns = Dns({"example.com": REJECT, "b.c.d.e.f.g.example.com": "v=DMARC1; p=none; psd=n"})
    result = await evaluate(dns, "mail.a.b.c.d.e.f.g.example.com")
    assert result.record is not None
    assert (result.record.domain, result.organizational_domain) == ("example.com", "example.com")


@pytest.mark.parametrize(
    ("section", "records", "expected"),
    [
        ("§4.10.2, first", {"mail.example.com": NONE, "example.com": NONE}, "example.com"),
        ("§4.10.2, second", {"mail.example.com": "v=DMARC1; p=none; psd=n"}, "mail.example.com"),
        (
            "§4.10.2, second",
            {"mail.example.com": "v=DMARC1; p=none; psd=n", "example.com": NONE},
            "mail.example.com",
        ),
        ("§4.10.2, last", {"com": "v=DMARC1; p=none; psd=y"}, "example.com"),
        ("§4.10.2, rule 2", {"example.com": "v=DMARC1; p=none; psd=y"}, "mail.example.com"),
        ("§4.10.2, nothing found", {}, "a.mail.example.com"),
    ],
)
async def test_4_10_2_the_organizational_domain_of_a_mail_example_com(
    section: str, records: dict[str, str], expected: str
) -> None:
    assert await TreeWalk(Dns(records)).organizational_domain("a.mail.example.com") == expected, section


async def test_4_10_2_one_domain_in_all_places_is_treated_as_the_organization() -> None:
    dns = Dns({"mail.example.com": REJECT})
    result = await evaluate(dns, "mail.example.com", spf("mail.example.com"), dkim("mail.example.com"))
    assert result.status is DmarcStatus.PASS
    assert dns.domains_asked == ["mail.example.com"]


RECORDS = [
    (
        "B.2.1",
        "v=DMARC1; p=none; rua=mailto:dmarc-feedback@example.com",
        DmarcRecord(
            domain="example.com", policy=DmarcPolicy.NONE, aggregate_to=("dmarc-feedback@example.com",)
        ),
    ),
    (
        "B.2.2",
        "v=DMARC1; p=none; rua=mailto:dmarc-feedback@example.com; ruf=mailto:auth-reports@example.com",
        DmarcRecord(
            domain="example.com",
            policy=DmarcPolicy.NONE,
            aggregate_to=("dmarc-feedback@example.com",),
            failure_to=("auth-reports@example.com",),
        ),
    ),
    (
        "B.2.3",
        "v=DMARC1; p=none; rua=mailto:dmarc-feedback@example.com; ruf=mailto:auth-reports@thirdparty.example.net",
        DmarcRecord(
            domain="example.com",
            policy=DmarcPolicy.NONE,
            aggregate_to=("dmarc-feedback@example.com",),
            failure_to=("auth-reports@thirdparty.example.net",),
        ),
    ),
    (
        "B.2.4",
        "v=DMARC1; rua=mailto:aggregate-reports@thirdparty.example.net; ruf=mailto:failure-reports@thirdparty.example.net",
        DmarcRecord(
            domain="example.com",
            policy=DmarcPolicy.NONE,
            aggregate_to=("aggregate-reports@thirdparty.example.net",),
            failure_to=("failure-reports@thirdparty.example.net",),
        ),
    ),
    (
        "B.2.5, testing",
        "v=DMARC1; p=quarantine; rua=mailto:dmarc-feedback@example.com,mailto:tld-test@thirdparty.example.net; t=y",
        DmarcRecord(
            domain="example.com",
            policy=DmarcPolicy.QUARANTINE,
            aggregate_to=("dmarc-feedback@example.com", "tld-test@thirdparty.example.net"),
            testing=True,
        ),
    ),
    (
        "B.2.5, in earnest",
        "v=DMARC1; p=reject; rua=mailto:dmarc-feedback@example.com,mailto:tld-test@thirdparty.example.net",
        DmarcRecord(
            domain="example.com",
            policy=DmarcPolicy.REJECT,
            aggregate_to=("dmarc-feedback@example.com", "tld-test@thirdparty.example.net"),
        ),
    ),
    (
        "B.3.1",
        "v=DMARC1; p=reject; aspf=r; rua=mailto:dmarc-feedback@example.com",
        DmarcRecord(
            domain="example.com",
            policy=DmarcPolicy.REJECT,
            spf_alignment=Alignment.RELAXED,
            aggregate_to=("dmarc-feedback@example.com",),
        ),
    ),
]


@pytest.mark.parametrize(("section", "text", "expected"), RECORDS)
def test_domain_owners_records(section: str, text: str, expected: DmarcRecord) -> None:
    assert parse_record("example.com", text.encode()) == expected, section


def test_b_2_3_a_record_that_only_authorizes_reports_is_no_policy() -> None:
    with pytest.raises(UnusablePolicyError):
        parse_record("example.com._report._dmarc.thirdparty.example.net", b"v=DMARC1;")


async def test_b_2_5_test_mode_applies_one_level_less() -> None:
    result = await evaluate(Dns({"test.example.com": "v=DMARC1; p=quarantine; t=y"}), "test.example.com")
    assert (result.requested, result.applied) == (DmarcPolicy.QUARANTINE, DmarcPolicy.NONE)


async def test_b_3_1_a_receivers_evaluation() -> None:
    dns = Dns({"example.com": "v=DMARC1; p=reject; aspf=r; rua=mailto:dmarc-feedback@example.com"})
    result = await evaluate(dns, "example.com", spf("mail.example.com"), dkim("example.com"))
    assert (result.status, result.spf_aligned, result.dkim_aligned) == (DmarcStatus.PASS, True, "example.com")


@pytest.mark.parametrize(
    ("section", "author_domain"),
    [("B.4.1", "example.com"), ("B.4.2", "a.b.c.d.e.f.g.h.i.j.k.example.com")],
)
async def test_b_4_1_and_2_simple_and_deep_walks(section: str, author_domain: str) -> None:
    dns = Dns({"example.com": REJECT, "signing.example.com": NONE})
    for domain in (author_domain, "example.com", "signing.example.com"):
        assert await TreeWalk(dns).organizational_domain(domain) == "example.com", section
    by_spf = await evaluate(dns, author_domain, mail_from=spf("example.com"))
    by_dkim = await evaluate(dns, author_domain, signature=dkim("signing.example.com"))
    by_nothing = await evaluate(dns, author_domain)
    assert (by_spf.status, by_spf.spf_aligned) == (DmarcStatus.PASS, True)
    assert (by_dkim.status, by_dkim.dkim_aligned) == (DmarcStatus.PASS, "signing.example.com")
    assert (by_nothing.status, by_nothing.applied) == (DmarcStatus.FAIL, DmarcPolicy.REJECT)
    assert by_nothing.record is not None
    assert by_nothing.record.domain == "example.com"


async def test_b_4_3_a_public_suffix_with_a_record() -> None:
    dns = Dns({"bank.example": "v=DMARC1; p=none; psd=y", "giant.bank.example": REJECT})
    for domain, expected in (
        ("giant.bank.example", "giant.bank.example"),
        ("mail.giant.bank.example", "giant.bank.example"),
        ("mail.mega.bank.example", "mega.bank.example"),
    ):
        assert await TreeWalk(dns).organizational_domain(domain) == expected
    result = await evaluate(
        dns, "giant.bank.example", spf("mail.giant.bank.example"), dkim("mail.mega.bank.example")
    )
    assert (result.status, result.spf_aligned, result.dkim_aligned) == (DmarcStatus.PASS, True, None)
    result = await evaluate(dns, "giant.bank.example", signature=dkim("mail.mega.bank.example"))
    assert (result.status, result.applied) == (DmarcStatus.FAIL, DmarcPolicy.REJECT)
    assert result.record is not None
    assert result.record.domain == "giant.bank.example"

from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.auth.dmarc.record import UnusableRecord
from gateway.auth.dmarc.walk import Absent, Discovery, TreeWalk, names_to_query
from gateway.auth.results import DmarcRecord
from gateway.dns.resolver import Answer, RecordType, Temporary, Trouble
from tests.auth.dmarc.facts import Dns

PLAIN: Final = "v=DMARC1; p=reject"
ORGANIZATION: Final = "v=DMARC1; p=reject; psd=n"
SUFFIX: Final = "v=DMARC1; p=reject; psd=y"


async def discover(dns: Dns, domain: str) -> Discovery:
    found = await TreeWalk(dns).discover(domain)
    assert isinstance(found, Discovery)
    return found


def domain_of(found: Discovery) -> str:
    assert isinstance(found.record, DmarcRecord | UnusableRecord)
    return found.record.domain


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        ("com", ["com"]),
        ("example.com", ["example.com", "com"]),
        ("a.b.c.d.e.example.com", ["a.b.c.d.e.example.com", "b.c.d.e.example.com", "c.d.e.example.com", "d.e.example.com", "e.example.com", "example.com", "com"]),
        ("8.7.6.5.4.3.2.1", ["8.7.6.5.4.3.2.1", "7.6.5.4.3.2.1", "6.5.4.3.2.1", "5.4.3.2.1", "4.3.2.1", "3.2.1", "2.1", "1"]),
        ("9.8.7.6.5.4.3.2.1", ["9.8.7.6.5.4.3.2.1", "7.6.5.4.3.2.1", "6.5.4.3.2.1", "5.4.3.2.1", "4.3.2.1", "3.2.1", "2.1", "1"]),
    ],
)  # fmt: skip
def test_the_names_of_a_walk(domain: str, expected: list[str]) -> None:
    assert names_to_query(domain) == expected


async def test_a_record_at_the_author_domain_needs_one_query() -> None:
    dns = Dns({"a.example.com": PLAIN, "example.com": PLAIN})
    found = await discover(dns, "a.example.com")
    assert (domain_of(found), found.organizational_domain) == ("a.example.com", None)
    assert dns.asked == ["_dmarc.a.example.com"]


@pytest.mark.parametrize("record", [ORGANIZATION, SUFFIX])
async def test_a_psd_tag_at_the_author_domain_makes_it_its_own_organization(record: str) -> None:
    dns = Dns({"a.example.com": record, "example.com": PLAIN})
    assert (await discover(dns, "a.example.com")).organizational_domain == "a.example.com"
    assert await TreeWalk(dns).organizational_domain("a.example.com") == "a.example.com"


async def test_a_record_between_the_author_domain_and_its_organization_does_not_apply() -> None:
    dns = Dns({"b.example.com": "v=DMARC1; p=none", "example.com": PLAIN})
    found = await discover(dns, "a.b.example.com")
    assert (domain_of(found), found.organizational_domain) == ("example.com", "example.com")


async def test_an_organization_ends_the_walk() -> None:
    dns = Dns({"b.example.com": ORGANIZATION, "example.com": PLAIN})
    found = await discover(dns, "a.b.example.com")
    assert (domain_of(found), found.organizational_domain) == ("b.example.com", "b.example.com")
    assert "example.com" not in dns.domains_asked


async def test_a_public_suffix_speaks_for_customers_without_a_record_only() -> None:
    dns = Dns({"bank.example": SUFFIX, "rich.bank.example": "v=DMARC1; p=none"})
    found = await discover(dns, "mail.poor.bank.example")
    assert (domain_of(found), found.organizational_domain) == ("bank.example", "poor.bank.example")
    found = await discover(dns, "mail.rich.bank.example")
    assert (domain_of(found), found.organizational_domain) == ("rich.bank.example", "rich.bank.example")


async def test_several_records_at_a_name_are_none_and_the_walk_goes_on() -> None:
    both = (b"v=DMARC1; p=none", b"v=DMARC1; p=reject")
    found = await discover(Dns({"a.example.com": both, "example.com": PLAIN}), "a.example.com")
    assert domain_of(found) == "example.com"
    found = await discover(Dns({"example.com": both}), "a.example.com")
    assert found == Discovery(record=Absent.SEVERAL, organizational_domain="a.example.com")


async def test_other_text_records_beside_it_do_not_matter() -> None:
    texts = (b"google-site-verification=1", PLAIN.encode(), b"v=spf1 -all", b"p=none; v=DMARC1")
    assert domain_of(await discover(Dns({"example.com": texts}), "example.com")) == "example.com"


async def test_no_record_at_all() -> None:
    found = await discover(Dns({}), "a.example.com")
    assert found == Discovery(record=Absent.NONE, organizational_domain="a.example.com")


async def test_an_unusable_record_ends_discovery_and_counts_for_the_walk() -> None:
    dns = Dns({"example.com": "v=DMARC1; psd=n; sp=bad"})
    found = await discover(dns, "a.example.com")
    assert found == Discovery(
        record=UnusableRecord("example.com", public_suffix=False), organizational_domain="example.com"
    )


async def test_a_name_that_cannot_be_looked_up_leaves_everything_above_it_open() -> None:
    dns = Dns({"example.com": PLAIN}, trouble=["b.example.com"])
    assert await TreeWalk(dns).discover("a.b.example.com") == Temporary(Trouble.SERVFAIL)
    assert dns.domains_asked == ["a.b.example.com", "b.example.com"]  # asking on could not change that


async def test_a_name_that_the_walk_does_not_get_to_may_fail() -> None:
    dns = Dns({"b.example.com": ORGANIZATION}, trouble=["example.com", "com"])
    assert domain_of(await discover(dns, "a.b.example.com")) == "b.example.com"


ALIGNMENT = [
    ("example.com", "example.com", {}, True, [], "the same name needs no DNS"),
    ("example.com", "example.net", {}, False, [], "nor do names without a common parent"),
    ("example.com", "notexample.com", {"com": None}, False, ["com"], "a common ending is not a common parent"),
    ("a.example.com", "b.example.com", {"example.com": PLAIN}, True, ["example.com", "a.example.com", "b.example.com"], "siblings"),
    ("example.com", "b.example.com", {"example.com": PLAIN}, True, ["example.com", "b.example.com"], "parent and child; nobody asks for com"),
    ("a.example.com", "b.example.com", {}, False, ["example.com", "com"], "no record in common: strangers, whatever theirs say"),
    ("a.example.com", "b.example.com", {"example.com": SUFFIX}, False, ["example.com"], "two customers of one suffix"),
    ("example.com", "b.example.com", {"example.com": SUFFIX}, False, ["example.com"], "a suffix and its customer"),
    ("a.x.example.com", "b.x.example.com", {"example.com": SUFFIX}, True, ["x.example.com", "example.com", "a.x.example.com", "b.x.example.com"], "one customer of a suffix"),
    ("a.example.com", "b.example.com", {"example.com": PLAIN, "b.example.com": ORGANIZATION}, False, ["example.com", "a.example.com", "b.example.com"], "b stands alone"),
    ("a.example.com", "c.b.example.com", {"example.com": PLAIN, "b.example.com": SUFFIX}, False, ["example.com", "a.example.com", "c.b.example.com", "b.example.com"], "c is below a suffix"),
    ("a.example.com", "b.example.com", {"example.com": ORGANIZATION, "com": SUFFIX}, True, ["example.com", "a.example.com", "b.example.com"], "psd=n in common"),
    ("a.example.com", "b.example.com", {"com": PLAIN}, True, ["example.com", "com", "a.example.com", "b.example.com"], "as RFC 9989 §11.8 warns"),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other", "records", "expected", "asked", "why"), ALIGNMENT)
async def test_relaxed_alignment_asks_for_no_more_than_decides_it(
    one: str, other: str, records: dict[str, str | None], *, expected: bool, asked: list[str], why: str
) -> None:
    dns = Dns({name: text for name, text in records.items() if text})
    assert await TreeWalk(dns).in_relaxed_alignment(one, other) is expected, why
    assert dns.domains_asked == asked


async def test_a_stranger_cannot_make_it_uncertain_with_broken_servers_of_his_own() -> None:
    dns = Dns({"bank.com": PLAIN}, trouble=["evil.com", "a.evil.com"])
    assert await TreeWalk(dns).in_relaxed_alignment("bank.com", "a.evil.com") is False


@pytest.mark.parametrize("trouble", ["example.com", "a.example.com", "b.example.com"])
async def test_alignment_is_uncertain_where_an_unknown_name_could_decide_it(trouble: str) -> None:
    dns = Dns({"example.com": PLAIN}, trouble=[trouble])
    assert await TreeWalk(dns).in_relaxed_alignment("a.example.com", "b.example.com") == Temporary(
        Trouble.SERVFAIL
    )


async def test_alignment_is_certain_where_an_unknown_name_could_not() -> None:
    dns = Dns({"example.com": PLAIN}, trouble=["com"])
    assert await TreeWalk(dns).in_relaxed_alignment("a.example.com", "b.example.com") is True


async def test_names_are_asked_once_for_all_walks_of_a_message() -> None:
    dns = Dns({"example.com": PLAIN})
    walk = TreeWalk(dns)
    await walk.discover("a.example.com")
    for other in ("b.example.com", "c.example.com", "b.example.com"):
        await walk.in_relaxed_alignment("a.example.com", other)
    assert sorted(dns.domains_asked) == sorted(set(dns.domains_asked))


async def literal_organizational_domain(dns: Dns, start: str) -> str:
    """RFC 9989 §4.10 and §4.10.2, step by step as they stand there, sharing nothing with the code under test."""
    labels = start.split(".")
    target = labels.copy()
    found: list[tuple[list[str], str]] = []
    while target:
        outcome = await dns.query(f"_dmarc.{'.'.join(target)}", RecordType.TXT)
        if isinstance(outcome, Answer):
            text = b"".join(text for text in outcome.records if isinstance(text, bytes)).decode()
            found.append((target, text))
            if "psd=n" in text or "psd=y" in text:
                break
        target = target[-7:] if len(target) >= 8 else target[1:]
    for name, text in found:
        if "psd=n" in text:
            return ".".join(name)
        if "psd=y" in text and name != labels:
            return ".".join(labels[-len(name) - 1 :])
    return ".".join(found[-1][0] if found else labels)  # the last found has the fewest labels


_NAMES = st.lists(st.sampled_from("ab"), min_size=1, max_size=11).map(".".join)
_ZONES = st.dictionaries(
    _NAMES, st.sampled_from([PLAIN, ORGANIZATION, SUFFIX, "v=DMARC1", "v=DMARC1; psd=y"]), max_size=8
)


@st.composite
def _related(draw: st.DrawFn) -> tuple[dict[str, str], str, str]:
    """Two names with much in common, and records mostly at their parents: where the rules bite."""
    common = draw(st.lists(st.sampled_from("ab"), min_size=0, max_size=9))
    one = [*draw(st.lists(st.sampled_from("ab"), min_size=1, max_size=4)), *common]
    other = [*draw(st.lists(st.sampled_from("ab"), min_size=1, max_size=4)), *common]
    parents = sorted({".".join(name[start:]) for name in (one, other) for start in range(len(name))})
    records = draw(
        st.dictionaries(st.sampled_from(parents), st.sampled_from([PLAIN, ORGANIZATION, SUFFIX]), max_size=5)
    )
    return records, ".".join(one), ".".join(other)


@given(_related())
@settings(max_examples=600, deadline=None)
async def test_relaxed_alignment_is_what_two_full_walks_find(case: tuple[dict[str, str], str, str]) -> None:
    records, one, other = case
    dns = Dns(records)
    expected = await literal_organizational_domain(dns, one) == await literal_organizational_domain(
        dns, other
    )
    assert await TreeWalk(dns).in_relaxed_alignment(one, other) is expected
    assert await TreeWalk(dns).in_relaxed_alignment(other, one) is expected


@given(_ZONES, _NAMES)
@settings(max_examples=300, deadline=None)
async def test_a_walk_is_the_standards_and_takes_at_most_eight_queries(
    zone: dict[str, str], domain: str
) -> None:
    dns = Dns(zone)
    found = await TreeWalk(dns).organizational_domain(domain)
    assert len(dns.asked) <= 8
    assert len(set(dns.asked)) == len(dns.asked)
    assert found == await literal_organizational_domain(dns, domain)


@given(_ZONES, _NAMES)
@settings(max_examples=200, deadline=None)
async def test_discovery_takes_at_most_eight_queries_and_keeps_to_the_order_of_preference(
    zone: dict[str, str], domain: str
) -> None:
    dns = Dns(zone)
    found = await discover(dns, domain)
    assert len(dns.asked) <= 8
    organizational_domain = await literal_organizational_domain(dns, domain)
    if domain in zone:
        assert domain_of(found) == domain
    elif organizational_domain in zone:
        assert domain_of(found) == organizational_domain
    elif not isinstance(found.record, Absent):
        assert found.record.public_suffix is True
        assert organizational_domain.endswith(f".{found.record.domain}")


@given(st.text(alphabet="a.", min_size=1, max_size=300))
@settings(max_examples=200, deadline=None)
async def test_no_name_however_odd_takes_more_than_eight_queries(domain: str) -> None:
    dns = Dns({})
    await TreeWalk(dns).discover(domain)
    assert len(dns.asked) <= 8

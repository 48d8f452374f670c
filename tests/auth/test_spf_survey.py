"""An SPF record read to its end: what it costs, and where it is broken. Oracle: the evaluation that judges mail."""

from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.auth.results import Problem, SpfStatus
from gateway.auth.spf import check_mail_from
from gateway.auth.spf.evaluation import MAX_LOOKUPS, MAX_VOID_LOOKUPS
from gateway.auth.spf.survey import SpfFault, survey_record
from gateway.dns.resolver import RecordType
from gateway.dns.zone import ZoneResolver
from gateway.mail.address import parse_mailbox

ELSE = """
mx MX 10 mx
mx A 192.0.2.1
ok.example. TXT "v=spf1 a:h.ok.example ip4:192.0.2.0/28 -all"
h.ok.example. A 192.0.2.9
bad.example. TXT "v=spf1 ip4:192.0.2.300 -all"
two.example. TXT "v=spf1 -all"
two.example. TXT "v=spf1 +all"
loop.example. TXT "v=spf1 include:loop.example"
deep.example. TXT "v=spf1 include:ok.example include:bad.example -all"
"""
COSTS = [
    ("v=spf1 -all", 0),
    ("v=spf1 ip4:192.0.2.0/24 ip6:2001:db8::/32 -all", 0),
    ("v=spf1 mx:mx.example.net a ptr exists:%{i}.x.example include:ok.example -all", 6),
    ("v=spf1 redirect=ok.example", 2),
    ("v=spf1 " + "a:h.ok.example " * 14 + "-all", 14),  # beyond the limit the count goes on
]
FAULTS = [
    ("v=spf1 ip4:192.0.2 -all", "example.net", "ip4:192.0.2"),
    ("v=spf1 a:%{z} -all", "example.net", "a:%{z}"),
    ("v=spf1 mx foo -all", "example.net", "foo"),
    ("v=spf1 include:bad.example -all", "bad.example", "ip4:192.0.2.300"),
    ("v=spf1 include:deep.example -all", "bad.example", "ip4:192.0.2.300"),
    ("v=spf1 include:nowhere.example -all", "example.net", "include:nowhere.example"),
    ("v=spf1 include:two.example -all", "two.example", ""),
]


def resolver(record: str) -> ZoneResolver:
    return ZoneResolver.from_text(f'@ TXT "{record}"\n@ A 192.0.2.8\n{ELSE}', origin="example.net.")


@pytest.mark.parametrize(("record", "lookups"), COSTS)
async def test_what_a_record_costs(record: str, lookups: int) -> None:
    assert (await survey_record("example.net", resolver(record))).lookups == lookups


@pytest.mark.parametrize(("record", "domain", "place"), FAULTS)
async def test_where_a_record_is_broken(record: str, domain: str, place: str) -> None:
    survey = await survey_record("example.net", resolver(record))
    assert survey.status is SpfStatus.PERMERROR
    assert survey.fault is not None
    assert (survey.fault.domain, survey.fault.place) == (domain, place)


async def test_a_loop_ends() -> None:
    survey = await survey_record("example.net", resolver("v=spf1 include:loop.example -all"))
    assert survey.problem in {Problem.SPF_TOO_MANY_LOOKUPS, Problem.SPF_SYNTAX}


async def test_a_name_that_differs_from_client_to_client_is_not_void() -> None:
    record = "v=spf1 include:%{i}._ip.%{d}.x.example exists:%{l}.y.example a:gone.example -all"
    survey = await survey_record("example.net", resolver(record))
    assert survey.void_names == ("gone.example",)
    assert survey.problem is None


async def test_what_cannot_be_looked_up_is_no_fault() -> None:
    zone = '$TROUBLE x.example. TXT timeout\n@ TXT "v=spf1 include:x.example -all"\n'
    survey = await survey_record("example.net", ZoneResolver.from_text(zone, origin="example.net."))
    assert (survey.status, survey.problem, survey.fault) == (SpfStatus.TEMPERROR, Problem.DNS_TIMEOUT, None)


WORDS = [
    "mx",
    "a",
    "include:ok.example",
    "include:bad.example",
    "ip4:192.0.2.0/24",
    "ptr",
    "?all",
    "-all",
    "+all",
    "redirect=ok.example",
    "exists:%{i}.q",
    "a:%{d",
    "exp=x",
    "ip4:1",
    "a:nowhere.example",
]


@settings(deadline=None)  # a shared machine
@given(st.lists(st.sampled_from(WORDS), max_size=12))
async def test_it_finds_every_fault_that_a_check_finds(terms: list[str]) -> None:
    """A client that nothing allows meets the same end in a check and in a survey, up to the limits."""
    zone = resolver(" ".join(["v=spf1", *terms]))
    survey = await survey_record("example.net", zone)
    checked = await check_mail_from(
        ip_address("198.51.100.1"), parse_mailbox("a@example.net"), "h.example", zone, receiver="mx.example"
    )
    of_the_client = terms.count("ptr") + terms.count("exists:%{i}.q")  # void for this one client
    if survey.lookups <= MAX_LOOKUPS and len(survey.void_names) + of_the_client <= MAX_VOID_LOOKUPS:
        assert checked.status is survey.status
        assert checked.problem is survey.problem


@settings(deadline=None)  # a shared machine
@given(st.text(alphabet=st.characters(codec="latin-1", exclude_characters='"\\\r\n'), max_size=200))
async def test_any_text_is_surveyed(text: str) -> None:
    zone = ZoneResolver.from_records({("example.net", RecordType.TXT): [b"v=spf1 " + text.encode("latin-1")]})
    survey = await survey_record("example.net", zone)
    assert survey.fault is None or isinstance(survey.fault, SpfFault)

import asyncio
from collections.abc import Sequence

import pytest

from gateway.dns.resolver import Outcome, RecordType, Tlsa
from gateway.dns.stub import Validation
from gateway.dns.zone import ZoneResolver
from gateway.tlspolicy.dane import ASK_AGAIN_S, HostTlsa, ValidationWatch, find_tlsa, usable
from gateway.tlspolicy.model import TlsProblem

D1, D2, D512 = "11" * 32, "22" * 32, "55" * 64
EE1, EE2 = Tlsa(3, 1, 1, bytes.fromhex(D1)), Tlsa(3, 1, 1, bytes.fromhex(D2))

ZONE = f"""
$SECURE on
mx.example. A 192.0.2.1
_25._tcp.mx.example. 60 TLSA 3 1 1 {D1}
_2525._tcp.mx.example. TLSA 3 1 1 {D2}
v6.example. AAAA 2001:db8::1
_25._tcp.v6.example. TLSA 3 1 1 {D1}
none.example. A 192.0.2.1
unusable.example. A 192.0.2.1
_25._tcp.unusable.example. TLSA 1 1 1 {D1}
nowhere.example. TXT x
alias.example. CNAME mx.example.
own.example. CNAME none.example.
_25._tcp.own.example. TLSA 3 1 1 {D2}
out.example. CNAME plain.example.
_25._tcp.out.example. TLSA 3 1 1 {D2}
delegated.example. A 192.0.2.1
_25._tcp.delegated.example. CNAME tlsa.example.net.
delegated-out.example. A 192.0.2.1
_25._tcp.delegated-out.example. CNAME tlsa-out.example.net.
tlsa.example.net. TLSA 3 1 1 {D1}
fails.example. A 192.0.2.1
$TROUBLE _25._tcp.fails.example. TLSA servfail
$TROUBLE no-a.example. A timeout
no-a.example. AAAA 2001:db8::1
_25._tcp.no-a.example. TLSA 3 1 1 {D1}
$TROUBLE bogus.example. ANY servfail
alias-fails.example. CNAME fails.example.
$TROUBLE half.example. A servfail
half.example. TXT x
$SECURE off
tlsa-out.example.net. TLSA 3 1 1 {D1}
plain.example. A 192.0.2.1
$TROUBLE _25._tcp.plain.example. TLSA servfail
into.example. CNAME mx.example.
$TROUBLE _25._tcp.into.example. TLSA timeout
"""


class Watched:
    """A resolver that remembers what it was asked."""

    def __init__(self) -> None:
        self._zone = ZoneResolver.from_text(ZONE)
        self.asked: list[tuple[str, RecordType]] = []

    async def query(self, name: str, record_type: RecordType) -> Outcome:
        self.asked.append((name, record_type))
        return await self._zone.query(name, record_type)


@pytest.mark.parametrize(
    ("host", "base_domain", "records", "problem"),
    [
        ("mx.example", "mx.example", [EE1], None),
        ("v6.example", "v6.example", [EE1], None),
        ("no-a.example", "no-a.example", [EE1], None),  # one family is enough
        ("none.example", None, [], None),  # signed, and says that there is none
        ("unusable.example", "unusable.example", [], None),  # TLS, whoever it is
        ("alias.example", "mx.example", [EE1], None),  # the end of the alias first
        ("own.example", "own.example", [EE2], None),  # then the alias itself
        ("out.example", "out.example", [EE2], None),  # a signed alias into an unsigned zone: only its own
        ("delegated.example", "delegated.example", [EE1], None),  # RFC 7671 §7: the base domain stays
        ("delegated-out.example", None, [], None),  # TLSA that nobody vouches for
        ("plain.example", None, [], None),  # not asked, so its broken server does no harm
        ("into.example", None, [], None),  # an unsigned alias could lead anywhere
        ("fails.example", None, [], TlsProblem.DANE_TLSA_DNS),
        ("alias-fails.example", None, [], TlsProblem.DANE_TLSA_DNS),  # never on to the next candidate
        ("bogus.example", None, [], TlsProblem.DANE_ADDRESS_DNS),
        ("half.example", None, [], TlsProblem.DANE_ADDRESS_DNS),  # no AAAA, and A unknown
        ("nowhere.example", None, [], TlsProblem.NO_ADDRESS),
        ("absent.example", None, [], TlsProblem.NO_ADDRESS),
    ],
)
async def test_what_dane_says_of_a_host(
    host: str, base_domain: str | None, records: list[Tlsa], problem: TlsProblem | None
) -> None:
    found = await find_tlsa(host, ZoneResolver.from_text(ZONE))
    assert (found.base_domain, list(found.records), found.problem) == (base_domain, records, problem)


@pytest.mark.parametrize("host", ["plain.example", "into.example"])
async def test_an_unsigned_host_is_not_asked_for_tlsa(host: str) -> None:
    resolver = Watched()
    await find_tlsa(host, resolver)
    assert RecordType.TLSA not in {record_type for _, record_type in resolver.asked}


async def test_the_names_for_usage_2_are_the_base_domain_then_the_host() -> None:
    zone = ZoneResolver.from_text(ZONE)
    assert (await find_tlsa("alias.example", zone)).names == ("mx.example", "alias.example")
    assert (await find_tlsa("mx.example", zone)).names == ("mx.example",)


async def test_the_port_is_part_of_the_question_and_the_ttl_is_the_least() -> None:
    zone = ZoneResolver.from_text(ZONE)
    assert (await find_tlsa("mx.example", zone, port=2525)).records == (EE2,)
    assert (await find_tlsa("mx.example", zone)).ttl == 60


async def test_a_resolver_that_does_not_validate_vouches_for_nothing() -> None:
    zone = ZoneResolver.from_text(ZONE.replace("$SECURE on", "$SECURE off"))
    assert await find_tlsa("mx.example", zone) == HostTlsa(ttl=300)


SHA256, SHA512 = b"\x11" * 32, b"\x22" * 64


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ([(3, 1, 1, SHA256)], [0]),
        ([(2, 0, 2, SHA512)], [0]),
        ([(0, 1, 1, SHA256), (1, 1, 1, SHA256)], []),  # RFC 7672 §3.1.3: PKIX usages
        ([(255, 1, 1, SHA256), (4, 1, 1, SHA256)], []),
        ([(3, 2, 1, SHA256), (3, 255, 1, SHA256)], []),  # unknown selectors
        ([(3, 1, 3, SHA256), (3, 1, 255, SHA256)], []),  # unknown digests
        ([(3, 1, 1, SHA256[1:]), (3, 1, 2, SHA256), (3, 1, 1, b"")], []),  # digests of the wrong length
        ([(3, 0, 0, b"no certificate"), (3, 1, 0, b"no key"), (2, 0, 0, b"")], []),
        ([(1, 1, 1, SHA256), (3, 1, 1, SHA256)], [1]),
        # RFC 7671 §9: the strongest digest of one usage and selector
        ([(3, 1, 1, SHA256), (3, 1, 2, SHA512)], [1]),
        ([(3, 1, 1, SHA256), (3, 0, 2, SHA512), (2, 1, 2, SHA512)], [0, 1, 2]),
        ([(3, 1, 1, SHA256), (3, 1, 2, SHA256)], [0]),  # one that cannot be used does not count
    ],
)
def test_usable_records(given: Sequence[tuple[int, int, int, bytes]], kept: list[int]) -> None:
    records = [Tlsa(*one) for one in given]
    assert usable(records) == tuple(records[at] for at in kept)


class Asked:
    def __init__(self, *answers: Validation) -> None:
        self.answers = list(answers)
        self.times = 0
        self.now = 0.0

    async def check(self) -> Validation:
        self.times += 1
        await asyncio.sleep(0)
        return self.answers.pop(0)


async def test_a_resolver_that_validates_is_asked_once() -> None:
    asked = Asked(Validation.YES)
    watch = ValidationWatch(asked.check, lambda: asked.now)
    assert await asyncio.gather(*[watch.look() for _ in range(5)]) == [Validation.YES] * 5
    asked.now += 100_000
    assert (await watch.look(), asked.times) == (Validation.YES, 1)


@pytest.mark.parametrize("first", [Validation.NO, Validation.UNKNOWN])
async def test_others_are_asked_again_after_a_while_and_nobody_waits_for_it(first: Validation) -> None:
    asked = Asked(first, Validation.YES)
    watch = ValidationWatch(asked.check, lambda: asked.now)
    assert await watch.look() is first
    asked.now += ASK_AGAIN_S - 1
    assert (await watch.look(), asked.times) == (first, 1)
    asked.now += 1
    assert await watch.look() is first
    assert watch._asking is not None
    await watch._asking
    assert (await watch.look(), asked.times) == (Validation.YES, 2)
    await watch.aclose()


async def test_closing_ends_the_question() -> None:
    async def never() -> Validation:
        await asyncio.Event().wait()
        return Validation.YES

    watch = ValidationWatch(never)
    asker = asyncio.create_task(watch.look())
    await asyncio.sleep(0)
    await watch.aclose()
    with pytest.raises(asyncio.CancelledError):
        await asker

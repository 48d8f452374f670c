from ipaddress import IPv4Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.dns.cache import CacheLimits, DnsCache
from gateway.dns.resolver import (
    Answer,
    Missing,
    Mx,
    NotFound,
    Outcome,
    Record,
    RecordType,
    Temporary,
    Tlsa,
    Trouble,
)

TXT = RecordType.TXT


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def txt(ttl: int, data: bytes = b"x") -> Answer:
    return Answer((data,), ttl, secure=True, name="a.example")


@pytest.mark.parametrize(
    ("outcome", "seconds", "reason"),
    [
        (txt(60), 60, "its own TTL"),
        (txt(0), 5, "the least"),
        (txt(10**6), 86_400, "the most"),
        (NotFound(Missing.NXDOMAIN, 60, secure=False), 60, "its own TTL"),
        (NotFound(Missing.NODATA, 86_400, secure=False), 900, "the most for a no"),
        (Temporary(Trouble.SERVFAIL), 5, "a failure"),
        (Temporary(Trouble.REFUSED), 5, "a failure"),
        (Temporary(Trouble.MALFORMED), 5, "a failure"),
        (Temporary(Trouble.TIMEOUT), 1, "silence"),
    ],
)
def test_how_long_an_outcome_is_kept(outcome: Outcome, seconds: float, reason: str) -> None:
    clock = Clock()
    cache = DnsCache(CacheLimits(), clock)
    cache.put(("a.example", TXT), outcome)
    clock.now += seconds - 0.01
    assert cache.get(("a.example", TXT)) is not None, reason
    clock.now += 0.01
    assert cache.get(("a.example", TXT)) is None, reason
    assert (len(cache), cache.size_bytes) == (0, 0)


def test_the_ttl_handed_out_is_what_is_left() -> None:
    clock = Clock()
    cache = DnsCache(CacheLimits(), clock)
    cache.put(("a.example", TXT), txt(60))
    cache.put(("b.example", TXT), NotFound(Missing.NODATA, 60, secure=False))
    cache.put(("c.example", TXT), txt(0))
    clock.now += 20.5
    assert cache.get(("a.example", TXT)) == txt(39)
    assert cache.get(("b.example", TXT)) == NotFound(Missing.NODATA, 39, secure=False)
    clock.now -= 18
    assert cache.get(("c.example", TXT)) == txt(0)


@pytest.mark.parametrize(
    ("outcome", "ttl"),
    [(txt(60), 60), (txt(10**6), 86_400), (NotFound(Missing.NODATA, 86_400, secure=False), 900)],
)
def test_whoever_asks_first_hears_no_longer_ttl_than_the_others(outcome: Answer | NotFound, ttl: int) -> None:
    """Results that rest on it are kept for as long (`gateway.dns.memory`): a record just published must be seen soon."""
    for limits in (CacheLimits(), CacheLimits(max_bytes=1)):
        heard = DnsCache(limits, Clock()).put(("a.example", TXT), outcome)
        assert isinstance(heard, (Answer, NotFound))
        assert heard.ttl == ttl


def test_the_same_object_is_handed_out_within_a_second() -> None:
    clock = Clock()
    cache = DnsCache(CacheLimits(), clock)
    cache.put(("a.example", TXT), txt(60))
    clock.now += 7
    first = cache.get(("a.example", TXT))
    clock.now += 0.9
    assert cache.get(("a.example", TXT)) is first


def test_types_are_kept_apart() -> None:
    cache = DnsCache(CacheLimits(), Clock())
    cache.put(("a.example", TXT), txt(60))
    assert cache.get(("a.example", RecordType.A)) is None


def test_the_least_recently_used_goes_first() -> None:
    cache = DnsCache(CacheLimits(max_entries=3), Clock())
    for name in "abc":
        cache.put((name, TXT), txt(60))
    cache.get(("a", TXT))
    cache.put(("d", TXT), txt(60))
    assert [name for name in "abcd" if cache.get((name, TXT))] == ["a", "c", "d"]


def test_bytes_are_bounded_and_one_answer_cannot_push_out_all_the_others() -> None:
    cache = DnsCache(CacheLimits(max_bytes=10_000), Clock())
    for number in range(100):
        cache.put((f"n{number}", TXT), txt(60, b"x" * 1000))
        assert cache.size_bytes <= 10_000
    kept = len(cache)
    assert 4 <= kept <= 10
    cache.put(("huge", TXT), txt(60, b"x" * 10_001))
    assert cache.get(("huge", TXT)) is None
    assert len(cache) == kept


@pytest.mark.parametrize("record", [b"x" * 900, "x" * 900, Mx(1, "x" * 900), Tlsa(3, 1, 1, b"x" * 900)])
def test_every_kind_of_record_has_its_weight(record: Record) -> None:
    cache = DnsCache(CacheLimits(), Clock())
    cache.put(("light", RecordType.A), Answer((IPv4Address("192.0.2.1"),), 60, secure=False, name="light"))
    light = cache.size_bytes
    cache.put(("heavy", TXT), Answer((record,), 60, secure=False, name="heavy"))
    assert cache.size_bytes - light >= light + 900 - 100


def test_a_new_outcome_takes_the_old_ones_place() -> None:
    cache = DnsCache(CacheLimits(), Clock())
    cache.put(("a", TXT), txt(60, b"x" * 500))
    cache.put(("a", TXT), txt(60, b"y"))
    assert cache.get(("a", TXT)) == txt(60, b"y")
    assert len(cache) == 1
    cache.clear()
    assert (len(cache), cache.size_bytes) == (0, 0)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 30), st.integers(0, 3000), st.booleans()))
)
def test_nothing_expired_is_ever_served_and_the_books_balance(
    steps: list[tuple[str, int, int, bool]],
) -> None:
    clock = Clock()
    limits = CacheLimits(max_entries=4, max_bytes=6000, min_ttl_s=0)
    cache = DnsCache(limits, clock)
    expires: dict[str, float] = {}
    for name, seconds, size, put in steps:
        if put:
            cache.put((name, TXT), txt(seconds, b"x" * size))
            expires[name] = clock.now + seconds
        else:
            clock.now += seconds / 2
        if cache.get((name, TXT)) is not None:
            assert clock.now < expires[name]
        assert len(cache) <= 4
        assert 0 <= cache.size_bytes <= 6000
        assert (cache.size_bytes == 0) == (len(cache) == 0)

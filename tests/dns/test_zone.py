import contextlib
import time
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.dns.resolver import (
    Answer,
    Missing,
    Mx,
    NotFound,
    Outcome,
    RecordType,
    Temporary,
    Tlsa,
    Trouble,
)
from gateway.dns.zone import Fault, ZoneError, ZoneResolver

A, AAAA, CNAME, MX, PTR, TXT, TLSA = RecordType

WORLD = r"""
$TTL 600
example.com. SOA ns.example.com. h.example.com. 1 3600 600 86400 120
    NS ns.example.com.
    MX 10 MX1.Example.com.
    MX 20 mx2.example.org.
    TXT "v=spf1 " "mx -all"  ; two strings
    TXT (second
         record)
mx1.example.com. 60 IN A 192.0.2.1
                 IN 30 A 192.0.2.2
                 AAAA 2001:DB8::1
_25._tcp.mx1.example.com. TLSA 3 1 1 e3b0c442 98FC1C14
a.b.c.example.com. A 192.0.2.9
*.wild.example.com. TXT any
here.wild.example.com. A 192.0.2.3
alias.example.com. 90 CNAME chain.example.com.
chain.example.com. 80 CNAME mx1.example.com.
dangling.example.com. CNAME gone.example.com.
loop1.example.com. CNAME loop2.example.com.
loop2.example.com. CNAME loop1.example.com.
null.example. MX 0 .
caf\195\169.example.com. A 192.0.2.4
bytes.example.com. TXT "caf\195\169 \"quoted\" \; back\\slash" tail
raw.example.com. TXT "café"
$ORIGIN 2.0.192.in-addr.arpa.
1 PTR mx1.example.com.
  PTR evil\.example.net.attacker.test.
@ PTR root-of-origin
$ORIGIN .
$TROUBLE broken.example.com TXT servfail
$TROUBLE slow.example.com ANY timeout
$SECURE on
signed.example. 30 SOA a b 1 2 3 4 40
    MX 5 mx.signed.example.
mx.signed.example. A 192.0.2.7
    TXT safe
to-unsigned.signed.example. CNAME mx1.example.com.
"""


@pytest.fixture(scope="module")
def world() -> ZoneResolver:
    return ZoneResolver.from_text(WORLD)


@pytest.mark.parametrize(
    ("name", "record_type", "expected"),
    [
        ("example.com", TXT, Answer((b"v=spf1 mx -all", b"secondrecord"), 600, secure=False, name="example.com")),
        ("EXAMPLE.com", MX, Answer((Mx(10, "mx1.example.com"), Mx(20, "mx2.example.org")), 600, secure=False, name="example.com")),
        ("example.com.", A, NotFound(Missing.NODATA, 120, secure=False)),
        # one set has one TTL, the least
        ("mx1.example.com", A, Answer((IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")), 30, secure=False, name="mx1.example.com")),
        ("mx1.example.com", AAAA, Answer((IPv6Address("2001:db8::1"),), 600, secure=False, name="mx1.example.com")),
        ("_25._tcp.mx1.example.com", TLSA, Answer((Tlsa(3, 1, 1, bytes.fromhex("e3b0c44298fc1c14")),), 600, secure=False, name="_25._tcp.mx1.example.com")),
        # the CNAME chain: least TTL, final name
        ("alias.example.com", AAAA, Answer((IPv6Address("2001:db8::1"),), 80, secure=False, name="mx1.example.com")),
        ("alias.example.com", CNAME, Answer(("chain.example.com",), 90, secure=False, name="alias.example.com")),
        ("alias.example.com", TXT, NotFound(Missing.NODATA, 80, secure=False)),
        ("dangling.example.com", A, NotFound(Missing.NXDOMAIN, 120, secure=False)),
        ("loop1.example.com", A, Temporary(Trouble.SERVFAIL)),
        # what does not exist, and what only seems not to
        ("nowhere.example.com", A, NotFound(Missing.NXDOMAIN, 120, secure=False)),
        ("b.c.example.com", A, NotFound(Missing.NODATA, 120, secure=False)),
        ("other.test", A, NotFound(Missing.NXDOMAIN, 300, secure=False)),
        ("wild.example.com", TXT, NotFound(Missing.NODATA, 120, secure=False)),
        # wildcards: RFC 4592
        ("x.wild.example.com", TXT, Answer((b"any",), 600, secure=False, name="x.wild.example.com")),
        ("y.x.wild.example.com", TXT, Answer((b"any",), 600, secure=False, name="y.x.wild.example.com")),
        ("x.wild.example.com", A, NotFound(Missing.NODATA, 120, secure=False)),
        ("here.wild.example.com", TXT, NotFound(Missing.NODATA, 120, secure=False)),
        ("x.here.wild.example.com", TXT, NotFound(Missing.NXDOMAIN, 120, secure=False)),
        # odd data
        ("null.example", MX, Answer((Mx(0, ""),), 600, secure=False, name="null.example")),
        ("bytes.example.com", TXT, Answer((b'caf\xc3\xa9 "quoted" ; back\\slashtail',), 600, secure=False, name="bytes.example.com")),
        ("raw.example.com", TXT, Answer(("café".encode(),), 600, secure=False, name="raw.example.com")),
        ("1.2.0.192.in-addr.arpa", PTR, Answer(("mx1.example.com", r"evil\046example.net.attacker.test"), 600, secure=False, name="1.2.0.192.in-addr.arpa")),
        ("2.0.192.in-addr.arpa", PTR, Answer(("root-of-origin.2.0.192.in-addr.arpa",), 600, secure=False, name="2.0.192.in-addr.arpa")),
        # failures
        ("broken.example.com", TXT, Temporary(Trouble.SERVFAIL)),
        ("broken.example.com", A, NotFound(Missing.NODATA, 120, secure=False)),
        ("slow.example.com", MX, Temporary(Trouble.TIMEOUT)),
        # secure
        ("mx.signed.example", A, Answer((IPv4Address("192.0.2.7"),), 600, secure=True, name="mx.signed.example")),
        ("_25._tcp.mx.signed.example", TLSA, NotFound(Missing.NXDOMAIN, 30, secure=True)),
        ("to-unsigned.signed.example", A, Answer((IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")), 30, secure=False, name="mx1.example.com")),
        # names that cannot exist are not asked for
        ("", A, NotFound(Missing.NXDOMAIN, 300, secure=False)),
        ("a..example.com", A, NotFound(Missing.NXDOMAIN, 300, secure=False)),
        ("x" * 64 + ".example.com", A, NotFound(Missing.NXDOMAIN, 300, secure=False)),
        (".".join(["x" * 49] * 6), A, NotFound(Missing.NXDOMAIN, 300, secure=False)),
        ("café.example.com", A, NotFound(Missing.NXDOMAIN, 300, secure=False)),
        ("\u212aelvin.example.com", A, NotFound(Missing.NXDOMAIN, 300, secure=False)),
        # a backslash asked for is a backslash, not an escape
        (r"mx\049.example.com", A, NotFound(Missing.NXDOMAIN, 120, secure=False)),
    ],
)  # fmt: skip
async def test_answers(world: ZoneResolver, name: str, record_type: RecordType, expected: Outcome) -> None:
    assert await world.query(name, record_type) == expected


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("example. A 300.0.0.1", [(1, "A: ")]),
        ("example. A", [(1, "A without data")]),
        ("example. A 192.0.2.1 192.0.2.2", [(1, "another number of values")]),
        ("example. MX 70000 mx", [(1, "'70000' is not a number from 0 to 65535")]),
        ("example. MX mx", [(1, "another number of values")]),
        ("example. TLSA 3 1 1 xyz", [(1, "TLSA: ")]),
        ("example. BANANA yellow", [(1, "'BANANA' is not a record type")]),
        ("example.", [(1, "without a type")]),
        ("  A 192.0.2.1", [(1, "no name for this record")]),
        ('"example." A 192.0.2.1', [(1, "begins with the name")]),
        ("a..b. A 192.0.2.1\n  A 192.0.2.2", [(1, "empty label"), (2, "no name")]),
        ("müller.example. A 192.0.2.1", [(1, "A-labels")]),
        ('x. TXT "open\nx. A bad', [(1, "not closed"), (2, "A: ")]),
        ("x. TXT (a\nb\nx. TXT c", [(1, "never closed")]),
        ("x. TXT a)", [(1, "never opened")]),
        ("x. CNAME y.\nx. A 192.0.2.1", [(2, "CNAME and other data")]),
        ("x. NS y.\nx. CNAME z.", [(2, "CNAME and other data")]),
        ("x. CNAME y.\nx. CNAME z.", [(2, "more than one CNAME")]),
        ("x. SOA a b 1 2 3 4", [(1, "SOA is:")]),
        ("x. 9999999999 A 192.0.2.1", [(1, "over 2147483647 seconds")]),
        ("$TTL soon", [(1, "not a TTL")]),
        ("$ORIGIN", [(1, "takes 1 argument, not 0")]),
        ("$INCLUDE /etc/shadow", [(1, "not a directive that can be used here")]),
        ("$SECURE maybe", [(1, "on or off")]),
        ("$TROUBLE x. TXT budget", [(1, "'budget' is not one of timeout, servfail")]),
        ("$TROUBLE x. SOA timeout", [(1, "not a type that mail asks for")]),
        (r"x. TXT \999", [(1, "'999' is not a number")]),
        ("x. TXT \ud800", [(1, "half a surrogate pair")]),
        ("x. TXT " + "a" * 65_001, [(1, "no DNS message can carry it")]),
        ("\n\nx. A 1\n; fine\ny. A 2\nz. A 192.0.2.1", [(3, "A: "), (5, "A: ")]),
    ],
)
def test_every_fault_is_told_at_once_with_its_line(text: str, faults: list[Fault]) -> None:
    with pytest.raises(ZoneError) as caught:
        ZoneResolver.from_text(text)
    assert [line for line, _ in caught.value.faults] == [line for line, _ in faults]
    for (_, message), (_, part) in zip(caught.value.faults, faults, strict=True):
        assert part in message


def test_a_file_that_is_no_zone_stops_at_fifty_faults() -> None:
    with pytest.raises(ZoneError) as caught:
        ZoneResolver.from_text("x. A nonsense\n" * 1000)
    assert len(caught.value.faults) == 50


@pytest.mark.parametrize(
    "text",
    [
        "a" * 1_000_000,
        '"' * 1_000_000,
        "(" * 1_000_000,
        "\\" * 1_000_000,
        "x. TXT (" + "a " * 500_000,
        ("x." * 10 + "\n") * 50_000,
        ".".join(["a"] * 500_000),
        r"\." * 500_000,
        "9" * 1_000_000,
        "x. 1h" + "1h" * 500_000,
        "x. " + "9" * 60 + "x A 192.0.2.1",
        "$TTL " + "9" * 1_000_000,
        "x. SOA a b " + "9" * 5000 + " 1 1 1 1",
        "x. MX " + "9" * 1_000_000 + " a",
    ],
)
def test_a_megabyte_of_nonsense_is_refused_in_bounded_time(text: str) -> None:
    start = time.process_time()
    with pytest.raises(ZoneError):
        ZoneResolver.from_text(text)
    assert time.process_time() - start < 3.0  # an operator's file, not a peer's words: linear is enough


@settings(deadline=None, max_examples=200)
@given(
    st.text(
        alphabet=st.sampled_from(list('$ABCTXMIN01."\\();\n \té\udc80 @*_-')) | st.characters(), max_size=80
    )
)
def test_any_text_is_a_zone_or_a_zone_error(text: str) -> None:
    with contextlib.suppress(ZoneError):
        ZoneResolver.from_text(text)


async def test_from_file_keeps_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "zone.txt"
    path.write_bytes(b'latin TXT "caf\xe9"\n')
    resolver = ZoneResolver.from_file(path, origin="example.com")
    answer = await resolver.query("latin.example.com", TXT)
    assert isinstance(answer, Answer)
    assert answer.records == (b"caf\xe9",)


async def test_from_records() -> None:
    resolver = ZoneResolver.from_records(
        {
            ("Example.com", TXT): [b"one"],
            ("example.com", MX): [],
            ("*.w.example.com", A): [IPv4Address("192.0.2.1")],
        },
        trouble={("example.com", AAAA): Trouble.TIMEOUT},
        secure=True,
        ttl=60,
    )
    assert await resolver.query("example.com", TXT) == Answer((b"one",), 60, secure=True, name="example.com")
    assert await resolver.query("example.com", MX) == NotFound(Missing.NODATA, 300, secure=True)
    assert await resolver.query("example.com", AAAA) == Temporary(Trouble.TIMEOUT)
    assert isinstance(await resolver.query("x.w.example.com", A), Answer)
    assert await resolver.query("example.org", A) == NotFound(Missing.NXDOMAIN, 300, secure=False)


async def test_secure_stands_for_what_follows_and_one_insecure_record_makes_the_name_insecure() -> None:
    resolver = ZoneResolver.from_text("a. TXT x\n$SECURE off\nb. TXT x\na. MX 1 b.", secure=True)
    answers = [await resolver.query("a", TXT), await resolver.query("b", TXT)]
    assert [isinstance(answer, Answer) and answer.secure for answer in answers] == [False, False]

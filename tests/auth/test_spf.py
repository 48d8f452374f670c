"""What a postmaster sees of SPF; the dangers of pyspf itself are in test_spf_pyspf."""

import asyncio
import gc
from ipaddress import ip_address
from textwrap import dedent

import pytest

from gateway.auth.results import Problem, SpfIdentity, SpfResult, SpfStatus
from gateway.auth.spf import check_helo, check_mail_from
from gateway.auth.spf.record import MAX_RECORD_BYTES
from gateway.dns.resolver import Answer, Outcome, Record, RecordType, Temporary, Trouble
from gateway.dns.zone import ZoneResolver
from gateway.mail.address import Mailbox, parse_mailbox

V4 = "192.0.2.1"
V6 = "2001:db8::1"


class Recorder:
    """Remembers what was asked."""

    def __init__(self, resolver: ZoneResolver) -> None:
        self.resolver = resolver
        self.asked: list[tuple[str, RecordType]] = []

    async def query(self, name: str, record_type: RecordType) -> Outcome:
        self.asked.append((name, record_type))
        return await self.resolver.query(name, record_type)


def read_zone(text: str) -> ZoneResolver:
    return ZoneResolver.from_text(dedent(text))


def mailbox(text: str) -> Mailbox:
    local_part, _, domain = text.rpartition("@")
    return Mailbox(local_part, domain, text)


async def mail_from(
    zone: str | ZoneResolver | Recorder,
    sender: str = "user@example.com",
    *,
    ip: str = V4,
    helo: str = "mx.example.net",
) -> SpfResult:
    resolver = read_zone(zone) if isinstance(zone, str) else zone
    return await check_mail_from(
        ip_address(ip), mailbox(sender) if sender else None, helo, resolver, receiver="mx.example.org"
    )


def texts(**records: str | bytes) -> ZoneResolver:
    """TXT records, `_` for the dot in each name."""
    found: dict[tuple[str, RecordType], list[Record]] = {
        (name.replace("_", "."), RecordType.TXT): [text.encode() if isinstance(text, str) else text]
        for name, text in records.items()
    }
    return ZoneResolver.from_records(found)


class TestIdentities:
    ZONE = """
        example.com. TXT "v=spf1 ip4:192.0.2.1 -all"
        mx.example.net. TXT "v=spf1 ip4:192.0.2.1 -all"
        bank.example. TXT "v=spf1 ip4:198.51.100.1 -all"
        thief.example. TXT "v=spf1 +all"
    """

    async def test_a_pass_says_whom_and_why(self) -> None:
        assert await mail_from(self.ZONE) == SpfResult(
            identity=SpfIdentity.MAIL_FROM,
            status=SpfStatus.PASS,
            domain="example.com",
            sender="user@example.com",
            mechanism="ip4:192.0.2.1",
        )

    async def test_helo_is_an_identity_of_its_own(self) -> None:
        zone = read_zone(self.ZONE)
        result = await check_helo(ip_address(V4), "MX.example.NET", zone, receiver="mx.example.org")
        assert result == SpfResult(
            identity=SpfIdentity.HELO,
            status=SpfStatus.PASS,
            domain="mx.example.net",
            sender="postmaster@mx.example.net",
            mechanism="ip4:192.0.2.1",
        )

    @pytest.mark.parametrize(
        "helo",
        [
            "[192.0.2.1]",
            "[IPv6:2001:db8::1]",
            "localhost",
            "a b.example",
            "",
            "x" * 5000,
            "bank.example\r\nX: y",
            "é\ud800.x",
        ],
    )
    async def test_a_helo_that_is_no_name_is_none(self, helo: str) -> None:
        zone = read_zone(self.ZONE)
        result = await check_helo(ip_address(V4), helo, zone, receiver="mx.example.org")
        assert (result.status, result.domain, result.problem) == (
            SpfStatus.NONE,
            None,
            Problem.SPF_DOMAIN_INVALID,
        )
        null_path = await mail_from(zone, "", helo=helo)
        assert (null_path.status, null_path.domain) == (SpfStatus.NONE, None)

    async def test_no_helo_yet_is_not_a_fault(self) -> None:
        zone = read_zone(self.ZONE)
        result = await check_helo(ip_address(V4), None, zone, receiver="mx.example.org")
        assert (result.status, result.problem) == (SpfStatus.NONE, None)

    async def test_the_null_path_is_postmaster_at_helo_and_still_mail_from(self) -> None:
        result = await mail_from(self.ZONE, "", helo="thief.example")
        assert (result.identity, result.sender) == (SpfIdentity.MAIL_FROM, "postmaster@thief.example")
        assert (result.status, result.domain) == (SpfStatus.PASS, "thief.example")

    async def test_an_address_literal_has_no_record(self) -> None:
        result = await mail_from(self.ZONE, "user@[192.0.2.1]")
        assert (result.status, result.domain) == (SpfStatus.NONE, None)
        assert result.sender == "user@[192.0.2.1]"

    @pytest.mark.parametrize(
        ("path", "domain", "status"),
        [
            (
                '"user@thief.example"@bank.example',
                "bank.example",
                SpfStatus.FAIL,
            ),  # pyspf asks thief.example"@bank…
            ('"a@thief.example@b"@bank.example', "bank.example", SpfStatus.FAIL),
            (
                '"x@bank.example"@thief.example',
                "thief.example",
                SpfStatus.PASS,
            ),  # the pass is the thief's own
            ('"<user@bank.example>,"@thief.example', "thief.example", SpfStatus.PASS),
            ('" "@bank.example', "bank.example", SpfStatus.FAIL),
        ],
    )
    async def test_several_at_signs_never_move_the_domain(
        self, path: str, domain: str, status: SpfStatus
    ) -> None:
        zone = read_zone(self.ZONE)
        result = await check_mail_from(
            ip_address(V4), parse_mailbox(path), "bank.example", zone, receiver="mx.example.org"
        )
        assert (result.domain, result.status) == (domain, status)

    async def test_helo_as_the_bank_gives_no_pass_for_the_thief(self) -> None:
        zone = read_zone(self.ZONE)
        result = await check_helo(ip_address(V4), "bank.example", zone, receiver="mx.example.org")
        assert result.status is SpfStatus.FAIL

    @pytest.mark.parametrize(
        ("ip", "status"), [(f"::ffff:{V4}", SpfStatus.PASS), ("::ffff:192.0.2.2", SpfStatus.FAIL)]
    )
    async def test_mapped_addresses_are_ipv4(self, ip: str, status: SpfStatus) -> None:
        assert (await mail_from(self.ZONE, ip=ip)).status is status


class TestProblems:
    @pytest.mark.parametrize(
        ("record", "problem"),
        [
            ("v=spf1 ip4:192.0.2 -all", Problem.SPF_SYNTAX),
            ("v=spf1 moo -all", Problem.SPF_SYNTAX),
            ("v=spf1 a:%{x}.example.com", Problem.SPF_SYNTAX),
            ("v=spf1 a:%{d.example.com", Problem.SPF_SYNTAX),  # pyspf asks for `%{d.example.com`
            ("v=spf1 a:%{d0}.example.com", Problem.SPF_SYNTAX),  # RFC 7208 §7.3: not zero
            ("v=spf1 a:%{c}.example.com", Problem.SPF_SYNTAX),  # only in explanations
            ("v=spf1 a:example", Problem.SPF_SYNTAX),
            ("v=spf1 redirect=", Problem.SPF_SYNTAX),
            ("v=spf1 REDIRECT=a.example redirect=b.example", Problem.SPF_SYNTAX),
            ("v=spf1\tall", None),  # the version ends with a space or not at all: no SPF record
            ("v=spf1 ip4:192.0.2.1\n -all", Problem.SPF_SYNTAX),
            ("v=spf1 a/24\n -all", Problem.SPF_SYNTAX),  # pyspf takes the line feed for the end
            ("v=spf1 redirect=absent.example", Problem.SPF_REDIRECT_WITHOUT_RECORD),
            ("v=spf1 include:absent.example", Problem.SPF_INCLUDE_WITHOUT_RECORD),
            ("v=spf1 include:%{l}..example", Problem.SPF_INCLUDE_WITHOUT_RECORD),
            ("v=spf1 include:example.net", Problem.SPF_TOO_MANY_LOOKUPS),
            (
                "v=spf1 a:a.absent.example a:b.absent.example a:c.absent.example",
                Problem.SPF_TOO_MANY_VOID_LOOKUPS,
            ),
        ],
    )
    async def test_permerror(self, record: str, problem: Problem | None) -> None:
        zone = texts(example_com=record, example_net="v=spf1 redirect=example.net")
        result = await mail_from(zone)
        assert (result.status, result.problem) == (
            SpfStatus.PERMERROR if problem else SpfStatus.NONE,
            problem,
        )

    async def test_several_records(self) -> None:
        result = await mail_from('example.com. TXT "v=spf1 +all"\nexample.com. TXT "V=SPF1 -all"')
        assert (result.status, result.problem) == (SpfStatus.PERMERROR, Problem.SPF_SEVERAL_RECORDS)

    async def test_eleven_mail_hosts(self) -> None:
        hosts = "\n".join(f"example.com. MX {i} h{i}.example.com." for i in range(11))
        result = await mail_from(f'example.com. TXT "v=spf1 mx +all"\n{hosts}')
        assert (result.status, result.problem) == (SpfStatus.PERMERROR, Problem.SPF_TOO_MANY_MX)

    async def test_non_ascii_is_only_an_error_in_an_spf_record(self) -> None:
        bad = await mail_from(texts(example_com=b"v=spf1 a:\xef\xbb\xbf.example.com +all"))
        assert (bad.status, bad.problem) == (SpfStatus.PERMERROR, Problem.SPF_SYNTAX)
        other: list[Record] = [b"v=spf1 +all", b"\xff\x00", b"v=spf10 -all"]
        assert (
            await mail_from(ZoneResolver.from_records({("example.com", RecordType.TXT): other}))
        ).status is SpfStatus.PASS

    @pytest.mark.parametrize("trouble", list(Trouble))
    @pytest.mark.parametrize("at", ["example.com", "a.example", "i.example"])
    async def test_dns_trouble_is_temperror_by_its_name(self, trouble: Trouble, at: str) -> None:
        records: dict[tuple[str, RecordType], list[Record]] = {
            ("example.com", RecordType.TXT): [b"v=spf1 include:i.example a:a.example +all"],
            ("i.example", RecordType.TXT): [b"v=spf1 -all"],
        }
        zone = ZoneResolver.from_records(records, trouble={(at, kind): trouble for kind in RecordType})
        result = await mail_from(zone)
        assert (result.status, result.problem) == (SpfStatus.TEMPERROR, Problem(f"dns.{trouble}"))

    async def test_type_99_is_never_asked(self) -> None:
        recorder = Recorder(ZoneResolver.from_text("example.com. A 192.0.2.1"))
        assert (await mail_from(recorder)).status is SpfStatus.NONE
        assert recorder.asked == [("example.com", RecordType.TXT)]


class TestMacros:
    @pytest.mark.parametrize(
        ("macro", "ip", "name"),
        [
            ("%{i}", V4, "192.0.2.1"),
            ("%{ir}", V4, "1.2.0.192"),
            ("%{ir}.%{v}", V6, "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6"),
            ("%{i1}.%{v}", f"::ffff:{V4}", "1.in-addr"),
            ("%{l}.%{o}.%{d2}", V4, "a-b.example.com.example.com"),
            ("%{l1r-}", V4, "a"),
            ("%{lR-}", V4, "b.a"),  # pyspf does not know the capital
            ("%{o1}%%%-%_", V4, "com%%20 "),
            ("%{h2}", V4, "example.net"),
            ("%{p}", V4, "unknown"),
        ],
    )
    async def test_expansion(self, macro: str, ip: str, name: str) -> None:
        recorder = Recorder(texts(example_com=f"v=spf1 exists:{macro}.q.example -all"))
        await mail_from(recorder, "a-b@example.com", ip=ip)
        assert (f"{name}.q.example", RecordType.A) in recorder.asked

    async def test_long_names_lose_whole_labels_from_the_left(self) -> None:
        recorder = Recorder(texts(example_com="v=spf1 exists:" + "%{l}." * 10 + "q.example -all"))
        await mail_from(recorder, f"{'x' * 60}@example.com")
        [*_, (name, _)] = recorder.asked
        assert name == ".".join(
            ["x" * 60] * 4 + ["q", "example"]
        )  # RFC 7208 §7.3; pyspf drops one label only

    async def test_the_client_prefers_a_name_within_the_domain(self) -> None:
        result = await mail_from(f"""
            {ip_address(V4).reverse_pointer}. PTR other.example.
            {ip_address(V4).reverse_pointer}. PTR mx.example.com.
            {ip_address(V4).reverse_pointer}. PTR boast.example.
            other.example. A 192.0.2.1
            mx.example.com. A 192.0.2.1
            example.com. TXT "v=spf1 exists:%{{p}}.ok.example -all"
            mx.example.com.ok.example. A 127.0.0.2
        """)
        assert result.status is SpfStatus.PASS

    @pytest.mark.parametrize(
        ("record", "status"),
        [
            ("v=spf1 exists:%{l}.q.example -all", SpfStatus.FAIL),
            ("v=spf1 include:%{s}.q.example -all", SpfStatus.FAIL),
            ("v=spf1 redirect=%{l}.q.example", SpfStatus.NEUTRAL),
        ],
    )
    async def test_a_non_ascii_local_part_matches_nothing(self, record: str, status: SpfStatus) -> None:
        recorder = Recorder(texts(example_com=record))  # RFC 8616 §4
        assert (await mail_from(recorder, "jürgen@example.com")).status is status
        assert recorder.asked == [("example.com", RecordType.TXT)]

    async def test_a_local_part_is_not_expanded_a_second_time(self) -> None:
        """With `a` alone pyspf expands macros in the name that a macro gave: the sender would write the record."""
        recorder = Recorder(
            texts(example_com="v=spf1 redirect=%{l}.s.example", **{"%{h}_s_example": "v=spf1 a -all"})
        )
        await mail_from(recorder, "%{h}@example.com", helo="thief.example")
        assert recorder.asked[-1] == ("%{h}.s.example", RecordType.A)


class TestPtr:
    async def test_trouble_in_the_clients_own_network_is_no_match(self) -> None:
        reverse = ip_address(V4).reverse_pointer
        zone = ZoneResolver.from_records(
            {("example.com", RecordType.TXT): [b"v=spf1 ptr -all"]},
            trouble={(reverse, RecordType.PTR): Trouble.TIMEOUT},
        )
        assert (await mail_from(zone)).status is SpfStatus.FAIL  # RFC 7208 §5.5

    async def test_names_that_lead_nowhere_are_not_void_lookups(self) -> None:
        """Else the client's owner could turn any domain's fail into a permerror."""
        names = "\n".join(f"{ip_address(V4).reverse_pointer}. PTR n{i}.absent.example." for i in range(12))
        result = await mail_from(f'{names}\nexample.com. TXT "v=spf1 ptr a:absent.example -all"')
        assert (result.status, result.lookups) == (SpfStatus.FAIL, 2)


class TestExplanation:
    async def explain(self, text: bytes, **more: str) -> str | None:
        result = await mail_from(texts(example_com="v=spf1 -all exp=why.example", why_example=text), **more)
        assert result.status is SpfStatus.FAIL
        return result.explanation

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            (b"%{i} is not one of %{d}'s.", "192.0.2.1 is not one of example.com's."),
            (b"ask %{r} (%{C})", "ask mx.example.org (192.0.2.1)"),
            (b"http://x.example/?s=%{S}", "http://x.example/?s=a%2Fb%40example.com"),
            (b"no\r\nX-Spam: no\r\n\r\nbody", "no??X-Spam: no????body"),
            (b"bell\x07 nul\x00 del\x7f", "bell? nul? del?"),
            (b"x" * 1000, "x" * 256),
            (b"x" * (MAX_RECORD_BYTES + 1), None),
            (b"caf\xc3\xa9", None),  # RFC 7208 §6.2: US-ASCII only
            (b"%{x}", None),
            (b"", None),
        ],
    )
    async def test_text(self, text: bytes, expected: str | None) -> None:
        assert await self.explain(text, sender="a/b@example.com") == expected

    async def test_what_a_sender_puts_into_it_is_printable_too(self) -> None:
        assert (
            await self.explain(b"%{l}%{h}", sender="jürg\r\n@example.com", helo="x\r\ny\u202e")
            == "j?rg??x??y?"
        )

    @pytest.mark.parametrize("record", ["v=spf1 +all exp=why.example", "v=spf1 ~all exp=why.example"])
    async def test_is_only_asked_for_a_fail(self, record: str) -> None:
        recorder = Recorder(texts(example_com=record, why_example="because"))
        assert (await mail_from(recorder)).explanation is None
        assert recorder.asked == [("example.com", RecordType.TXT)]


class Slow:
    """Answers only when told to."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.answer = asyncio.Event()

    async def query(self, name: str, record_type: RecordType) -> Outcome:
        self.asked.set()
        await self.answer.wait()
        return Answer((b"v=spf1 +all",), 60, secure=False, name=name)


class TestBridge:
    async def test_cached_answers_do_not_suspend(self) -> None:
        check = mail_from(texts(example_com="v=spf1 include:i.example -all", i_example="v=spf1 +all"))
        with pytest.raises(StopIteration) as stop:
            check.send(None)  # one step, to its end
        assert stop.value.value.status is SpfStatus.PASS

    async def test_many_at_once(self) -> None:
        slow = Slow()
        checks = [asyncio.create_task(mail_from(slow)) for _ in range(20)]  # type: ignore[arg-type]  # any resolver
        await slow.asked.wait()
        slow.answer.set()
        assert {result.status for result in await asyncio.gather(*checks)} == {SpfStatus.PASS}

    async def test_cancelling_leaves_nothing_behind(self) -> None:
        slow = Slow()
        check = asyncio.create_task(mail_from(slow))  # type: ignore[arg-type]  # any resolver
        await slow.asked.wait()
        check.cancel()
        with pytest.raises(asyncio.CancelledError):
            await check
        gc.collect()
        assert (await mail_from(texts(example_com="v=spf1 +all"))).status is SpfStatus.PASS

    async def test_a_resolvers_bug_is_not_spfs(self) -> None:
        class Broken:
            async def query(self, name: str, record_type: RecordType) -> Outcome:
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await mail_from(Broken())  # type: ignore[arg-type]  # any resolver

    async def test_a_budget_ends_it(self) -> None:
        class Budgeted(Recorder):
            async def query(self, name: str, record_type: RecordType) -> Outcome:
                outcome = await super().query(name, record_type)
                return outcome if len(self.asked) <= 3 else Temporary(Trouble.BUDGET)

        result = await mail_from(Budgeted(texts(example_com="v=spf1 redirect=example.com")))
        assert (result.status, result.problem) == (SpfStatus.TEMPERROR, Problem.DNS_BUDGET)

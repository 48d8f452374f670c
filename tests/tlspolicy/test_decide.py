import pytest

from gateway.dns.resolver import Outcome, RecordType
from gateway.dns.stub import Validation
from gateway.dns.zone import ZoneResolver
from gateway.tlspolicy.dane import ValidationWatch
from gateway.tlspolicy.decide import MAX_TTL_S, MIN_TTL_S, Decider, DeciderOptions, override_for
from gateway.tlspolicy.model import (
    Decision,
    Demand,
    FailureType,
    HostPolicy,
    PolicyType,
    StsView,
    TlsLevel,
    TlsProblem,
)

DIGEST = "11" * 32

ZONE = f"""
$TTL 300
$SECURE on
all-dane.example. MX 10 mx1.signed.example.
all-dane.example. MX 20 mx2.signed.example.
some-dane.example. MX 10 mx1.signed.example.
some-dane.example. MX 20 mx.unsigned.example.
no-tlsa.example. MX 10 plain.signed.example.
one-fails.example. MX 10 fails.signed.example.
one-fails.example. MX 20 plain.signed.example.
fails-and-dane.example. MX 10 fails.signed.example.
fails-and-dane.example. MX 20 mx1.signed.example.
all-fail.example. MX 10 fails.signed.example.
unusable.example. MX 10 unusable.signed.example.
gone.example. MX 10 gone.signed.example.
gone.example. MX 20 mx1.signed.example.
all-gone.example. MX 10 gone.signed.example.
alias.example. CNAME all-dane.example.
mx1.signed.example. A 192.0.2.1
_25._tcp.mx1.signed.example. 30 TLSA 2 1 1 {DIGEST}
mx2.signed.example. A 192.0.2.2
_25._tcp.mx2.signed.example. TLSA 3 1 1 {DIGEST}
plain.signed.example. A 192.0.2.3
fails.signed.example. A 192.0.2.4
$TROUBLE _25._tcp.fails.signed.example. TLSA servfail
unusable.signed.example. A 192.0.2.5
_25._tcp.unusable.signed.example. TLSA 1 1 1 {DIGEST}
$SECURE off
plain.example. MX 10 mx.unsigned.example.
mixed.example. MX 10 mx.unsigned.example.
mixed.example. MX 20 other.example.net.
unsigned-mx.example. MX 10 mx1.signed.example.
mx.unsigned.example. A 192.0.2.6
null.example. MX 0 .
$TROUBLE slow.example. MX timeout
"""

ENFORCE = StsView(mode="enforce", identifier="1", mx=("mx.unsigned.example", "*.signed.example"))
TESTING = StsView(mode="testing", identifier="1", mx=("mx.unsigned.example", "*.signed.example"))
NOT_ITS_OWN = StsView(mode="enforce", identifier="1", mx=("elsewhere.example",))
TAKEN_BACK = StsView(mode="none", identifier="1")
NO_POLICY = StsView()
UNKNOWN = StsView(problem=TlsProblem.STS_DNS)
NOT_YET_KNOWN = StsView(problem=TlsProblem.STS_DNS, is_unknown=True)


class Sts:
    def __init__(self, view: StsView) -> None:
        self.view = view
        self.asked: list[str] = []

    async def look_up(self, domain: str) -> StsView:
        self.asked.append(domain)
        return self.view


async def validates() -> Validation:
    return Validation.YES


def decider(
    sts: StsView = NO_POLICY, overrides: dict[str, str] | None = None, *, dane: bool = True
) -> Decider:
    return Decider(
        ZoneResolver.from_text(ZONE),
        sts=Sts(sts),
        dane=ValidationWatch(validates) if dane else None,
        options=DeciderOptions(overrides=overrides or {}),
    )


def short(policy: HostPolicy) -> str:
    """`demand`, `?` where it is only reported, and the problem."""
    return (
        f"{policy.demand}{'' if policy.is_enforced else '?'}{' ' + policy.problem if policy.problem else ''}"
    )


@pytest.mark.parametrize(
    ("domain", "sts", "level", "hosts"),
    [
        # neither: as ever
        ("plain.example", NO_POLICY, TlsLevel.MAY, ["none"]),
        ("no-tlsa.example", NO_POLICY, TlsLevel.MAY, ["none"]),
        ("[192.0.2.1]", ENFORCE, TlsLevel.MAY, ["none"]),
        # DANE alone
        ("all-dane.example", NO_POLICY, TlsLevel.DANE_ONLY, ["dane", "dane"]),
        ("some-dane.example", NO_POLICY, TlsLevel.DANE, ["dane", "none"]),
        ("alias.example", NO_POLICY, TlsLevel.DANE_ONLY, ["dane", "dane"]),
        ("unsigned-mx.example", NO_POLICY, TlsLevel.MAY, ["none"]),  # RFC 7672 §2.2.1
        ("unusable.example", NO_POLICY, TlsLevel.DANE, ["encrypt"]),  # RFC 7672 §2.2
        # trouble with TLSA touches its host only
        ("one-fails.example", NO_POLICY, TlsLevel.DANE, ["dane dane.tlsa-dns", "none"]),
        ("fails-and-dane.example", NO_POLICY, TlsLevel.DANE_ONLY, ["dane dane.tlsa-dns", "dane"]),
        ("all-fail.example", NO_POLICY, TlsLevel.REFUSE, ["dane dane.tlsa-dns"]),
        ("gone.example", NO_POLICY, TlsLevel.DANE_ONLY, ["none route.host-without-address", "dane"]),
        ("all-gone.example", NO_POLICY, TlsLevel.DANE, ["none route.host-without-address"]),
        ("all-gone.example", ENFORCE, TlsLevel.SECURE, ["none route.host-without-address"]),
        # whether there is MTA-STS is not known yet: what DANE protects may go
        ("plain.example", NOT_YET_KNOWN, TlsLevel.REFUSE, ["none mta-sts.dns"]),
        ("all-dane.example", NOT_YET_KNOWN, TlsLevel.DANE_ONLY, ["dane", "dane"]),
        ("some-dane.example", NOT_YET_KNOWN, TlsLevel.DANE_ONLY, ["dane", "none mta-sts.dns"]),
        ("unusable.example", NOT_YET_KNOWN, TlsLevel.REFUSE, ["none mta-sts.dns"]),
        ("all-gone.example", NOT_YET_KNOWN, TlsLevel.REFUSE, ["none route.host-without-address"]),
        # MTA-STS alone
        ("plain.example", ENFORCE, TlsLevel.SECURE, ["pkix"]),
        ("plain.example", TESTING, TlsLevel.MAY, ["pkix?"]),
        ("plain.example", TAKEN_BACK, TlsLevel.MAY, ["none"]),
        ("plain.example", UNKNOWN, TlsLevel.MAY, ["none"]),  # a broken record is no policy
        ("mixed.example", ENFORCE, TlsLevel.SECURE, ["pkix", "pkix mta-sts.mx-not-listed"]),
        ("mixed.example", TESTING, TlsLevel.MAY, ["pkix?", "pkix? mta-sts.mx-not-listed"]),
        ("plain.example", NOT_ITS_OWN, TlsLevel.REFUSE, ["pkix mta-sts.mx-not-listed"]),
        # both: DANE first, and MTA-STS for the rest
        ("all-dane.example", ENFORCE, TlsLevel.DANE_ONLY, ["dane", "dane"]),
        ("all-dane.example", NOT_ITS_OWN, TlsLevel.DANE_ONLY, ["dane", "dane"]),
        ("some-dane.example", ENFORCE, TlsLevel.DANE_ONLY, ["dane", "pkix"]),
        ("some-dane.example", TESTING, TlsLevel.DANE, ["dane", "pkix?"]),
        ("unsigned-mx.example", ENFORCE, TlsLevel.SECURE, ["pkix"]),
        ("unusable.example", ENFORCE, TlsLevel.SECURE, ["pkix"]),
        ("unusable.example", TESTING, TlsLevel.DANE, ["encrypt"]),
        # RFC 8461 §2: no certificate makes up for a DANE that fails
        ("all-fail.example", ENFORCE, TlsLevel.REFUSE, ["dane dane.tlsa-dns"]),
        ("one-fails.example", ENFORCE, TlsLevel.DANE_ONLY, ["dane dane.tlsa-dns", "pkix"]),
        # no route
        ("null.example", NO_POLICY, TlsLevel.MAY, []),
        ("absent.example", NO_POLICY, TlsLevel.MAY, []),
        ("slow.example", NO_POLICY, TlsLevel.REFUSE, []),
        ("slow.example", ENFORCE, TlsLevel.SECURE, []),
    ],
)
async def test_the_decision(domain: str, sts: StsView, level: TlsLevel, hosts: list[str]) -> None:
    decision = await decider(sts).decide(domain)
    assert (decision.level, [short(host) for host in decision.hosts]) == (level, hosts)


@pytest.mark.parametrize(
    ("domain", "override", "level", "hosts"),
    [
        ("all-dane.example", "may", TlsLevel.MAY, ["none", "none"]),
        ("plain.example", "encrypt", TlsLevel.ENCRYPT, ["encrypt"]),
        ("plain.example", "secure", TlsLevel.SECURE, ["pkix"]),
        ("plain.example", "refuse", TlsLevel.REFUSE, ["none tls.override-refuse"]),
        ("null.example", "refuse", TlsLevel.REFUSE, []),
        ("slow.example", "may", TlsLevel.MAY, []),
        ("all-dane.example", "dane-only", TlsLevel.DANE_ONLY, ["dane", "dane"]),
        ("some-dane.example", "dane-only", TlsLevel.DANE_ONLY, ["dane", "dane dane.required"]),
        ("unusable.example", "dane-only", TlsLevel.REFUSE, ["dane dane.required"]),
        ("plain.example", "dane-only", TlsLevel.REFUSE, ["dane dane.required"]),
    ],
)
async def test_the_operators_word_stands_before_the_domains(
    domain: str, override: str, level: TlsLevel, hosts: list[str]
) -> None:
    decision = await decider(NOT_ITS_OWN, {domain: override}).decide(domain)
    assert (decision.level, [short(host) for host in decision.hosts]) == (level, hosts)
    assert (decision.override, decision.sts) == (override, NO_POLICY)


@pytest.mark.parametrize(
    ("domain", "level"),
    [
        ("example.com", TlsLevel.MAY),
        ("a.example.com", TlsLevel.SECURE),
        ("b.a.example.com", TlsLevel.SECURE),
        ("x.deep.example.com", TlsLevel.REFUSE),  # the nearest
        ("own.deep.example.com", TlsLevel.ENCRYPT),  # the name itself first
        ("notexample.com", None),
        ("com", None),
        ("[192.0.2.1]", None),
    ],
)
def test_whose_override(domain: str, level: TlsLevel | None) -> None:
    overrides = {
        "example.com": "may",
        ".example.com": "secure",
        ".deep.example.com": "refuse",
        "own.deep.example.com": "encrypt",
    }
    assert override_for(domain, overrides) is level


async def host_of(domain: str, sts: StsView = NO_POLICY) -> HostPolicy:
    return (await decider(sts).decide(domain)).hosts[0]


async def test_what_a_dane_session_needs() -> None:
    host = await host_of("alias.example")
    assert host.names == ("mx1.signed.example", "alias.example", "all-dane.example")  # RFC 7672 §3.2.2
    assert host.server_name == "mx1.signed.example"
    assert (host.policy_type, len(host.tlsa)) == (PolicyType.TLSA, 1)


async def test_what_an_mta_sts_session_needs() -> None:
    host = await host_of("plain.example", ENFORCE)
    assert (host.names, host.server_name) == (("mx.unsigned.example",), "mx.unsigned.example")
    assert host.policy_type is PolicyType.STS


async def test_unusable_records_are_noted() -> None:
    host = await host_of("unusable.example")
    assert (host.note, host.policy_type) == (TlsProblem.DANE_UNUSABLE, PolicyType.TLSA)
    assert (await host_of("unusable.example", ENFORCE)).note is TlsProblem.DANE_UNUSABLE


@pytest.mark.parametrize(
    ("domain", "sts", "failure"),
    [
        ("all-fail.example", NO_POLICY, FailureType.DNSSEC_INVALID),
        ("plain.example", NOT_ITS_OWN, FailureType.VALIDATION_FAILURE),
        ("gone.example", NO_POLICY, None),  # no TLS was tried
    ],
)
async def test_what_a_problem_is_reported_as(domain: str, sts: StsView, failure: FailureType | None) -> None:
    assert (await host_of(domain, sts)).failure is failure


async def test_a_resolver_that_does_not_validate_turns_dane_off_and_says_so() -> None:
    async def does_not() -> Validation:
        return Validation.NO

    zone = ZoneResolver.from_text(ZONE)
    decision = await Decider(zone, dane=ValidationWatch(does_not)).decide("all-dane.example")
    assert decision.dane_problem is TlsProblem.DANE_NOT_VALIDATING
    assert (decision.level, decision.hosts[0].demand) == (TlsLevel.MAY, Demand.NONE)


async def test_without_dane_only_mta_sts_counts() -> None:
    decision = await decider(ENFORCE, dane=False).decide("all-dane.example")
    assert (decision.level, decision.dane_problem) == (TlsLevel.SECURE, None)


class Clocked:
    """A resolver that counts, and a clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asked = 0
        self._zone = ZoneResolver.from_text(ZONE)

    async def query(self, name: str, record_type: RecordType) -> Outcome:
        self.asked += 1
        return await self._zone.query(name, record_type)


@pytest.mark.parametrize(
    ("domain", "seconds"),
    [
        ("plain.example", MAX_TTL_S),
        ("all-dane.example", 30),  # its shortest TTL
        ("slow.example", MIN_TTL_S),
        ("all-fail.example", MIN_TTL_S),  # what failed may be mended
        ("absent.example", MAX_TTL_S),
    ],
)
async def test_how_long_a_decision_is_kept(domain: str, seconds: int) -> None:
    world = Clocked()
    told: list[bool] = []

    def tell(_decision: Decision, *, was_kept: bool) -> None:
        told.append(was_kept)

    decider = Decider(world, dane=ValidationWatch(validates), observe=tell, now=lambda: world.now)
    first = await decider.decide(domain)
    asked = world.asked
    assert first.ttl == seconds
    world.now += seconds - 0.01
    assert await decider.decide(domain) is first
    assert world.asked == asked
    assert told == [False, True]
    world.now += 0.01
    assert await decider.decide(domain) == first
    assert world.asked > asked


async def test_strangers_domains_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.tlspolicy.decide.MAX_KEPT", 3)
    subject = decider()
    kept: Decision = await subject.decide("plain.example")
    for number in range(10):
        await subject.decide(f"n{number}.example")
        assert await subject.decide("plain.example") is kept
    assert len(subject._kept) == 3


async def test_new_overrides_hold_at_once_for_domains_already_decided() -> None:
    subject = decider()
    seen = subject.overrides
    assert (await subject.decide("plain.example")).level is TlsLevel.MAY
    subject.take_overrides({"plain.example": "refuse"})
    assert subject.kept("plain.example") is None
    assert (await subject.decide("plain.example")).level is TlsLevel.REFUSE
    assert seen == {"plain.example": "refuse"}  # whoever was given the old ones sees the new
    subject.take_overrides({})
    assert (await subject.decide("plain.example")).level is TlsLevel.MAY


async def test_large_decisions_of_strangers_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.tlspolicy.decide.MAX_KEPT_BYTES", 25_000)
    lines = ["$SECURE on"]
    for number in range(10):
        lines += [f"d{number}.example. MX 1 mx{number}.example.", f"mx{number}.example. A 192.0.2.1"]
        lines += [f"_25._tcp.mx{number}.example. TLSA 3 1 1 {n:02x}{'11' * 31}" for n in range(50)]
    zone = ZoneResolver.from_text("\n".join(lines))
    subject = Decider(zone, dane=ValidationWatch(validates))
    for number in range(10):
        await subject.decide(f"d{number}.example")
    assert [subject.kept(f"d{number}.example") is not None for number in range(10)] == [False] * 8 + [
        True
    ] * 2
    for number in range(8, 10):
        subject._forget(f"d{number}.example")
    assert subject._kept_bytes == 0

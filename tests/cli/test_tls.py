import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gateway.cli.app import app
from gateway.cli.explain_tls import explain_decision
from gateway.explain import Tone
from gateway.explain.problems import TLS_WORDS
from gateway.ops.config import OutboundTlsSettings
from gateway.tlspolicy.decide import Facts, derive
from gateway.tlspolicy.model import MxHost, NoRoute, Route, StsView, TlsProblem

DIGEST = "11" * 32
ZONE = f"""
$TTL 300
$SECURE on
signed.example. MX 10 mx1.signed.example.
signed.example. MX 20 mx2.signed.example.
mx1.signed.example. A 192.0.2.1
_25._tcp.mx1.signed.example. TLSA 3 1 1 {DIGEST}
_2525._tcp.mx1.signed.example. TLSA 2 0 1 {DIGEST}
_2525._tcp.mx1.signed.example. TLSA 3 1 1 {DIGEST}
mx2.signed.example. A 192.0.2.2
fails.example. MX 10 mx.fails.example.
mx.fails.example. A 192.0.2.3
$TROUBLE _25._tcp.mx.fails.example. TLSA servfail
unusable.example. MX 10 mx.unusable.example.
mx.unusable.example. A 192.0.2.4
_25._tcp.mx.unusable.example. TLSA 0 1 1 {DIGEST}
$SECURE off
plain.example. MX 10 mx.plain.example.
implicit.example. A 192.0.2.5
alias.example. CNAME plain.example.
null.example. MX 0 .
$TROUBLE slow.example. MX timeout
_mta-sts.twice.example. TXT "v=STSv1; id=1"
_mta-sts.twice.example. TXT "v=STSv1; id=2"
twice.example. MX 10 mx.plain.example.
"""

CONFIG = """
authserv_id = "mx.example.net"
[outbound]
listen = ["127.0.0.1:10026"]
clients = ["127.0.0.1"]
remote_port = 2525
[outbound_tls]
mta_sts = false
overrides = { "plain.example" = "refuse", ".example" = "encrypt", "signed.example" = "dane-only" }
"""


@dataclass(frozen=True)
class Ran:
    status: int
    output: str


@pytest.fixture
def zone(tmp_path: Path) -> Path:
    path = tmp_path / "zone.txt"
    path.write_text(ZONE)
    return path


def run(zone: Path, domain: str, *options: str) -> Ran:
    result = CliRunner().invoke(app, ["tls", domain, "--zone", str(zone), *options])
    return Ran(result.exit_code, result.output)


@pytest.mark.parametrize(
    ("domain", "status", "said"),
    [
        ("signed.example", 0, "signed.example: DANE\n"),
        ("signed.example", 0, "A certificate for which 1 TLSA record (3 1 1) can vouch. (RFC 7672 §2.2)"),
        ("signed.example", 0, "1 of 2"),
        ("plain.example", 0, "DNSSEC does not vouch for the answer"),
        ("plain.example", 0, "TLSA records would prove nothing; none were asked for. (RFC 7672 §2.2.1)"),
        ("plain.example", 0, "The domain has no policy."),
        ("alias.example", 0, "1 mail server (by way of plain.example)"),
        ("implicit.example", 0, "The domain itself, for it has no MX"),
        ("Joe.User@PLAIN.example", 0, "plain.example: MAY"),
        ("[192.0.2.1]", 0, "nothing is looked up"),
        ("unusable.example", 10, "TLS, whatever the certificate (the host's TLSA records cannot be used for mail)."),
        ("twice.example", 10, "No policy: there are several _mta-sts records. (RFC 8461 §3.1, mta-sts.several-records)"),
        ("fails.example", 11, "No mail goes there now: the host's TLSA records could not be looked up."),
        ("fails.example", 11, "waits"),
        ("slow.example", 11, "route.dns-timeout"),
        ("null.example", 12, "null.example: NO ROUTE"),
        ("absent.example", 12, "cannot be delivered, now or later"),
    ],
)  # fmt: skip
def test_what_the_operator_is_told(zone: Path, domain: str, status: int, said: str) -> None:
    ran = run(zone, domain)
    assert said in ran.output
    assert ran.status == status


@pytest.mark.parametrize(
    ("domain", "status", "said"),
    [
        ("plain.example", 12, "Mail to this domain is refused, because your config says so."),
        ("implicit.example", 0, "Your config says encrypt for this domain, whatever its DNS says."),
        ("signed.example", 10, "you demand DANE, and the host has none"),
        ("signed.example", 10, "2 TLSA records (2 0 1, 3 1 1)"),  # at the config's port
    ],
)
def test_the_config_counts(zone: Path, tmp_path: Path, domain: str, status: int, said: str) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text(CONFIG)
    ran = run(zone, domain, "--config", str(config))
    assert said in ran.output
    assert ran.status == status


@pytest.mark.parametrize("domain", ["", "a b", "[192.0.2]", "-", "a@"])
def test_what_is_no_domain_is_named(zone: Path, domain: str) -> None:
    result = CliRunner().invoke(app, ["tls", "--zone", str(zone), "--", domain])
    assert result.exit_code == 2
    assert "is no domain" in result.output


def test_a_program_gets_all_of_it(zone: Path) -> None:
    told = json.loads(run(zone, "signed.example", "--json").output)
    assert (told["level"], told["route"]["secure"]) == ("dane", True)
    first, second = told["hosts"]
    assert first["tlsa"] == [f"3 1 1 {DIGEST}"]
    assert first["names"] == ["mx1.signed.example", "signed.example"]
    assert (second["demand"], second["tlsa"]) == ("none", [])
    assert told["findings"][0]["check"] == "Route"


@pytest.mark.parametrize("mode", ["enforce", "testing", "none"])
@pytest.mark.parametrize("problem", [None, TlsProblem.STS_FETCH_CONNECT])
def test_a_policy_in_words(mode: str, problem: TlsProblem | None) -> None:
    sts = StsView(mode=mode, identifier="7", mx=("mx.example", "*.a", "b", "c", "d"), problem=problem)
    route = Route(domain="x.example", hosts=(MxHost(10, "mx.example"), MxHost(20, "other.example")))
    explanation = explain_decision(
        derive(Facts(domain="x.example", route=route, sts=sts)), OutboundTlsSettings()
    )
    (policy,) = [finding for finding in explanation.findings if finding.check == "MTA-STS"]
    assert "Version 7" in policy.says
    assert ("But the policy host cannot be reached." in policy.says) is (problem is not None)
    other = explanation.findings[-1]
    assert (other.tone is Tone.BAD) is (mode == "enforce")
    assert ("mail goes all the same" in other.says) is (mode == "testing")


@pytest.mark.parametrize("problem", list(TlsProblem))
def test_every_problem_has_words(problem: TlsProblem) -> None:
    words = TLS_WORDS[problem]
    assert words.says
    assert not words.says.endswith(".")
    assert words.section.startswith("RFC ")
    route = NoRoute(domain="x.example", problem=problem, temporary=True)
    told = explain_decision(derive(Facts(domain="x.example", route=route)), OutboundTlsSettings())
    assert told.findings[0].problem is problem

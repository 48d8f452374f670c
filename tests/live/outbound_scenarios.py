"""What becomes of mail for domains of every kind: the table that the relay, and Postfix with our socketmap, are both held against.

Each row is a domain of its own, with its DNS, its mail servers and its policy host; what it expects of the relay it expects of
Postfix, too, unless it says why not. docs/outbound-scenarios.md is this table in words:

    python -m tests.live.outbound_scenarios > docs/outbound-scenarios.md
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from gateway.tlspolicy.model import FailureType, TlsLevel
from tests.live.certificates import NAME_OF_ANOTHER, Certificate
from tests.live.internet import FETCH_TIMEOUT_S, Server
from tests.live.remote_servers import Page


class Outcome(StrEnum):
    """What became of a message."""

    VERIFIED = "delivered, verified"  # over TLS, and the certificate was demanded and right
    ENCRYPTED = "delivered, encrypted"  # over TLS
    CLEAR = "delivered in clear text"
    DEFERRED = "deferred"  # 4xx: it stays in the queue
    REFUSED = "refused"  # 5xx: it goes back to its sender


class Zone(StrEnum):
    """Where a row's domain is."""

    SIGNED = "dane.test"
    UNSIGNED = "sts.test"
    CHANGING = "moving.test"  # unsigned, with a TTL of one second
    BOGUS = "bogus.test"  # signed with a key that nobody vouches for


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One message to the domain.

    Attributes:
        outcome: what is to become of it.
        level: the decision, as Postfix hears it.
        failure: what the session is reported as (RFC 8460 §4.3); None: as a success, or not at all.
        before: what has changed since the step before, in words.
        records: the domain's DNS from now on; relative names are its own.
        page: what its policy host answers from now on.
        postfix: what becomes of it in Postfix, where that is something else.
        why: and the reason.
    """

    outcome: Outcome
    level: TlsLevel = TlsLevel.MAY
    failure: FailureType | None = None
    before: str = ""
    records: str = ""
    page: Page | None = None
    postfix: Outcome | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One domain, named after the row's title."""

    title: str
    zone: Zone
    steps: tuple[Step, ...]
    is_apex: bool = False

    @property
    def domain(self) -> str:
        return str(self.zone) if self.is_apex else f"{self.label}.{self.zone}"

    @property
    def label(self) -> str:
        words = "".join(letter if letter.isalnum() else " " for letter in self.title.lower())
        return "-".join(words.split())


def mx(server: Server, host: str = "mx", preference: int = 10) -> str:
    return f"@ MX {preference} {host}\n{host} A {{{server}}}\n"


def tlsa(server: Server, numbers: str, host: str = "mx") -> str:
    return f"_{{port}}._tcp.{host} TLSA {{{server}:{numbers}}}\n"


def sts(identifier: str = "1", server: Server = Server.POLICY_HOST) -> str:
    return f'_mta-sts TXT "v=STSv1; id={identifier};"\nmta-sts A {{{server}}}\n'


def policy(mode: str, *patterns: str) -> Page:
    """A policy page; `{domain}` in a pattern is the row's."""
    lines = [
        "version: STSv1",
        f"mode: {mode}",
        *(f"mx: {pattern}" for pattern in patterns or ("mx.{domain}",)),
    ]
    return Page(body="\r\n".join([*lines, "max_age: 86400", ""]))


def row(
    title: str,
    records: str,
    outcome: Outcome,
    *,
    zone: Zone = Zone.UNSIGNED,
    level: TlsLevel = TlsLevel.MAY,
    failure: FailureType | None = None,
    page: Page | None = None,
    postfix: Outcome | None = None,
    why: str = "",
) -> Scenario:
    """A row of one step."""
    step = Step(
        outcome=outcome,
        level=level,
        failure=failure,
        records=records,
        page=page,
        postfix=postfix,
        why=why,
    )
    return Scenario(title, zone, (step,))


GOOD_TLS: Final = {
    Server.GOOD: "good certificate",
    Server.WRONG_NAME: "certificate for another name",
    Server.EXPIRED: "expired certificate",
    Server.SELF_SIGNED: "self-signed certificate",
    Server.PLAIN: "no STARTTLS",
}
STS_FAILURES: Final = {
    Server.GOOD: None,
    Server.WRONG_NAME: FailureType.CERTIFICATE_HOST_MISMATCH,
    Server.EXPIRED: FailureType.CERTIFICATE_EXPIRED,
    Server.SELF_SIGNED: FailureType.CERTIFICATE_NOT_TRUSTED,
    Server.PLAIN: FailureType.STARTTLS_NOT_SUPPORTED,
}


def _no_policy() -> Iterator[Scenario]:
    for server, what in GOOD_TLS.items():
        if server is not Server.PLAIN:
            yield row(f"no policy, {what}", mx(server), Outcome.ENCRYPTED)
    yield row(
        "no policy, no STARTTLS",
        mx(Server.PLAIN),
        Outcome.CLEAR,
        failure=FailureType.STARTTLS_NOT_SUPPORTED,
    )


def _sts_modes() -> Iterator[Scenario]:
    for server, what in GOOD_TLS.items():
        without = Outcome.CLEAR if server is Server.PLAIN else Outcome.ENCRYPTED
        yield row(
            f"enforce, {what}",
            mx(server) + sts(),
            Outcome.VERIFIED if server is Server.GOOD else Outcome.DEFERRED,
            level=TlsLevel.SECURE,
            failure=STS_FAILURES[server],
            page=policy("enforce"),
        )
        yield row(
            f"testing, {what}",
            mx(server) + sts(),
            without,
            failure=STS_FAILURES[server],
            page=policy("testing"),
        )
        failure = FailureType.STARTTLS_NOT_SUPPORTED if server is Server.PLAIN else None
        yield row(f"none, {what}", mx(server) + sts(), without, failure=failure, page=policy("none"))


def _sts_hosts() -> Iterator[Scenario]:
    """Which hosts a policy allows."""
    yield row(
        "enforce by a wildcard pattern",
        mx(Server.GOOD) + sts(),
        Outcome.VERIFIED,
        level=TlsLevel.SECURE,
        page=policy("enforce", "*.{domain}"),
    )
    yield row(
        "MX not in the policy",
        mx(Server.GOOD) + sts(),
        Outcome.DEFERRED,
        level=TlsLevel.REFUSE,
        failure=FailureType.VALIDATION_FAILURE,
        page=policy("enforce", "mx.elsewhere.test"),
    )
    yield row(
        "first MX not in the policy, second is",
        mx(Server.WRONG_NAME, "rogue", 5) + mx(Server.GOOD) + sts(),
        Outcome.VERIFIED,
        level=TlsLevel.SECURE,
        failure=FailureType.VALIDATION_FAILURE,
        page=policy("enforce"),
    )
    yield row(
        "certificate for another host of the policy",
        mx(Server.WRONG_NAME) + sts(),
        Outcome.DEFERRED,
        level=TlsLevel.SECURE,
        failure=FailureType.CERTIFICATE_HOST_MISMATCH,
        page=policy("enforce", "mx.{domain}", NAME_OF_ANOTHER),
        postfix=Outcome.VERIFIED,
        why=(
            "Postfix has one list of names for all hosts of a domain, so that one host of the policy may show the certificate of"
            " another; the relay asks each host for its own name (RFC 8461 §4.1)."
        ),
    )
    yield row(
        "first MX fails the policy, second passes",
        mx(Server.WRONG_NAME, "mx2", 5) + mx(Server.GOOD) + sts(),
        Outcome.VERIFIED,
        level=TlsLevel.SECURE,
        failure=FailureType.CERTIFICATE_HOST_MISMATCH,
        page=policy("enforce", "mx.{domain}", "mx2.{domain}"),
    )


def _sts_first_contact() -> Iterator[Scenario]:
    """Nothing is known of the domain, and its policy cannot be had: as if there were none (RFC 8461 §3.3).

    Whether there is one must be known, though: where the record cannot be looked up, mail waits for a quarter of an hour.
    """
    fetch, webpki = FailureType.STS_POLICY_FETCH_ERROR, FailureType.STS_WEBPKI_INVALID
    good = policy("enforce")

    def page(**changes: object) -> Page:
        return replace(good, **changes)  # type: ignore[arg-type]

    pages = [
        ("not found", Page(status="404 Not Found"), fetch),
        ("redirect", page(status="301 Moved", headers=("Location: https://mta-sts.{domain}/other",)), fetch),
        ("oversize", page(body=good.body + "x: y\r\n" * 20_000), fetch),
        ("slow", page(delay_s=5 * FETCH_TIMEOUT_S), fetch),
        ("wrong content type", page(content_type="text/html"), fetch),
        ("certificate for another name", page(certificate=Certificate.WRONG_NAME), webpki),
        ("expired certificate", page(certificate=Certificate.EXPIRED), webpki),
        ("self-signed certificate", page(certificate=Certificate.SELF_SIGNED), webpki),
        ("not a policy", Page(body="<html>\r\n"), FailureType.STS_POLICY_INVALID),
        (
            "policy without mx",
            Page(body="version: STSv1\nmode: enforce\nmax_age: 86400\n"),
            FailureType.STS_POLICY_INVALID,
        ),
    ]
    for what, answer, failure in pages:
        yield row(
            f"policy host: {what}", mx(Server.GOOD) + sts(), Outcome.ENCRYPTED, failure=failure, page=answer
        )
    yield row(
        "policy host: down",
        mx(Server.GOOD) + sts(server=Server.NOBODY),
        Outcome.ENCRYPTED,
        failure=fetch,
    )
    yield row(
        "MTA-STS record: SERVFAIL",
        mx(Server.GOOD) + "_mta-sts NS ns.dead.test.\n",
        Outcome.DEFERRED,
        level=TlsLevel.REFUSE,
    )
    yield row(
        "two MTA-STS records",
        mx(Server.PLAIN) + sts("1") + '_mta-sts TXT "v=STSv1; id=2;"\n',
        Outcome.CLEAR,
        failure=FailureType.STARTTLS_NOT_SUPPORTED,
        page=good,
    )
    yield row(
        "malformed MTA-STS record",
        mx(Server.PLAIN) + '_mta-sts TXT "v=STSv1; id=not-a-number;"\nmta-sts A {policy_host}\n',
        Outcome.CLEAR,
        failure=FailureType.STARTTLS_NOT_SUPPORTED,
        page=good,
    )


def _sts_changes() -> Iterator[Scenario]:
    """A policy is known, and then something changes; with it, STARTTLS is stripped."""
    enforced = Step(
        outcome=Outcome.VERIFIED,
        level=TlsLevel.SECURE,
        records=mx(Server.GOOD) + sts(),
        page=policy("enforce"),
    )
    stripped = Step(
        outcome=Outcome.DEFERRED, level=TlsLevel.SECURE, failure=FailureType.STARTTLS_NOT_SUPPORTED
    )
    yield Scenario(
        "policy host goes down",
        Zone.CHANGING,
        (
            enforced,
            replace(
                stripped,
                before="the policy host is down, the record has a new id, STARTTLS is stripped",
                records=mx(Server.PLAIN) + sts("2", Server.NOBODY),
            ),
            replace(stripped, before="the gateway is restarted, all policy hosts are down"),
        ),
    )
    yield Scenario(
        "record removed",
        Zone.CHANGING,
        (
            enforced,
            replace(
                stripped,
                before="the TXT record is gone, STARTTLS is stripped: the policy stands until it expires",
                records=mx(Server.PLAIN),
            ),
        ),
    )
    yield Scenario(
        "policy withdrawn by mode none",
        Zone.CHANGING,
        (
            enforced,
            Step(
                outcome=Outcome.CLEAR,
                failure=FailureType.STARTTLS_NOT_SUPPORTED,
                before="a new id, the policy says `none`, there is no STARTTLS any more",
                records=mx(Server.PLAIN) + sts("2"),
                page=policy("none"),
            ),
        ),
    )
    yield Scenario(
        "testing becomes enforce by a new id",
        Zone.CHANGING,
        (
            Step(
                outcome=Outcome.ENCRYPTED,
                failure=FailureType.CERTIFICATE_HOST_MISMATCH,
                records=mx(Server.WRONG_NAME) + sts(),
                page=policy("testing"),
            ),
            Step(
                outcome=Outcome.DEFERRED,
                level=TlsLevel.SECURE,
                failure=FailureType.CERTIFICATE_HOST_MISMATCH,
                before="a new id, the policy says `enforce`",
                records=mx(Server.WRONG_NAME) + sts("2"),
                page=policy("enforce"),
            ),
        ),
    )
    yield Scenario(
        "the same id, another policy",
        Zone.CHANGING,
        (
            enforced,
            replace(
                stripped,
                before="the page says `none`, but the id is the same: nobody looks",
                records=mx(Server.PLAIN) + sts(),
                page=policy("none"),
            ),
        ),
    )


def dane(
    title: str,
    records: str,
    outcome: Outcome,
    failure: FailureType | None = None,
    *,
    level: TlsLevel = TlsLevel.DANE_ONLY,
    page: Page | None = None,
    postfix: Outcome | None = None,
    why: str = "",
) -> Scenario:
    """A row in the signed zone whose hosts have TLSA records."""
    return row(
        title,
        records,
        outcome,
        zone=Zone.SIGNED,
        level=level,
        failure=failure,
        page=page,
        postfix=postfix,
        why=why,
    )


def _dane_matches() -> Iterator[Scenario]:
    good = mx(Server.GOOD)
    for numbers in (
        "3 1 1",
        "3 0 1",
        "3 1 2",
        "3 0 2",
        "3 1 0",
        "3 0 0",
        "2 0 1",
        "2 1 1",
        "2 0 2",
        "2 1 2",
        "2 0 0",
        "2 1 0",
    ):
        yield dane(f"TLSA {numbers}", good + tlsa(Server.GOOD, numbers), Outcome.VERIFIED)
    # RFC 7672 §3.1.1: with usage 3 neither names nor dates count.
    for server in (Server.WRONG_NAME, Server.EXPIRED, Server.SELF_SIGNED):
        records = mx(server) + tlsa(server, "3 1 1")
        yield dane(f"TLSA 3 1 1, {GOOD_TLS[server]}", records, Outcome.VERIFIED)
    for server in (Server.WRONG_NAME, Server.EXPIRED):  # usage 2: both do
        records = mx(server) + tlsa(server, "2 0 1")
        yield dane(f"TLSA 2 0 1, {GOOD_TLS[server]}", records, Outcome.DEFERRED, STS_FAILURES[server])
    wrong = good + tlsa(Server.SELF_SIGNED, "3 1 1")
    yield dane("wrong TLSA", wrong, Outcome.DEFERRED, FailureType.TLSA_INVALID)
    yield dane("one TLSA wrong, one right (rollover)", wrong + tlsa(Server.GOOD, "3 1 1"), Outcome.VERIFIED)
    yield dane(
        "TLSA, no STARTTLS",
        mx(Server.PLAIN) + tlsa(Server.GOOD, "3 1 1"),
        Outcome.DEFERRED,
        FailureType.STARTTLS_NOT_SUPPORTED,
    )
    # RFC 7672 §3.1.3: usages 0 and 1 are unusable; TLS is a must all the same.
    yield dane(
        "unusable TLSA (usage 1)",
        good + tlsa(Server.SELF_SIGNED, "1 1 1"),
        Outcome.ENCRYPTED,
        level=TlsLevel.DANE,
    )
    yield dane(
        "unusable TLSA (usage 1), no STARTTLS",
        mx(Server.PLAIN) + tlsa(Server.GOOD, "1 1 1"),
        Outcome.DEFERRED,
        FailureType.STARTTLS_NOT_SUPPORTED,
        level=TlsLevel.DANE,
    )
    yield dane(
        "malformed TLSA (a digest too short)",
        good + "_{port}._tcp.mx TLSA 3 1 1 00\n",
        Outcome.ENCRYPTED,
        level=TlsLevel.DANE,
    )


def _dane_dns() -> Iterator[Scenario]:
    wrong = tlsa(Server.SELF_SIGNED, "3 1 1")
    yield row("signed zone without TLSA", mx(Server.GOOD), Outcome.ENCRYPTED, zone=Zone.SIGNED)
    yield row("TLSA in an unsigned zone counts for nothing", mx(Server.GOOD) + wrong, Outcome.ENCRYPTED)
    yield Scenario(
        "bogus zone",
        Zone.BOGUS,
        (
            Step(
                outcome=Outcome.DEFERRED,
                level=TlsLevel.REFUSE,
                records=mx(Server.GOOD) + tlsa(Server.GOOD, "3 1 1"),
            ),
        ),
        is_apex=True,
    )
    yield dane(
        "MX host in a bogus zone",
        "@ MX 10 mx.bogus.test.\n",
        Outcome.DEFERRED,
        FailureType.DNSSEC_INVALID,
        level=TlsLevel.REFUSE,
    )
    yield dane(
        "TLSA lookup is SERVFAIL",
        mx(Server.GOOD) + "_tcp.mx NS ns.dead.test.\n",
        Outcome.DEFERRED,
        FailureType.DNSSEC_INVALID,
        level=TlsLevel.REFUSE,
    )
    yield row(
        "alias into an unsigned zone, TLSA only there",
        "@ MX 10 mx\nmx CNAME mx.no-policy-good-certificate.sts.test.\n",
        Outcome.ENCRYPTED,
        zone=Zone.SIGNED,
    )
    yield dane(
        "alias into an unsigned zone, TLSA at the alias",
        "@ MX 10 mx\nmx CNAME mx.no-policy-self-signed-certificate.sts.test.\n"
        + tlsa(Server.SELF_SIGNED, "3 1 1"),
        Outcome.VERIFIED,
    )
    yield dane(
        "alias within signed zones, TLSA at its target",
        "@ MX 10 mx\nmx CNAME real\nreal A {self_signed}\n" + tlsa(Server.SELF_SIGNED, "3 1 1", "real"),
        Outcome.VERIFIED,
    )


def _dane_with_sts() -> Iterator[Scenario]:
    """DANE stands first (RFC 8461 §2)."""
    yield dane(
        "DANE fails, MTA-STS would pass",
        mx(Server.GOOD) + tlsa(Server.SELF_SIGNED, "3 1 1") + sts(),
        Outcome.DEFERRED,
        FailureType.TLSA_INVALID,
        page=policy("enforce"),
    )
    yield dane(
        "DANE passes, MTA-STS would fail",
        mx(Server.SELF_SIGNED) + tlsa(Server.SELF_SIGNED, "3 1 1") + sts(),
        Outcome.VERIFIED,
        page=policy("enforce"),
    )
    yield dane(
        "unusable TLSA, MTA-STS passes",
        mx(Server.GOOD) + tlsa(Server.GOOD, "1 1 1") + sts(),
        Outcome.VERIFIED,
        level=TlsLevel.SECURE,
        page=policy("enforce"),
    )
    yield dane(
        "unusable TLSA, MTA-STS fails",
        mx(Server.WRONG_NAME) + tlsa(Server.WRONG_NAME, "1 1 1") + sts(),
        Outcome.DEFERRED,
        FailureType.CERTIFICATE_HOST_MISMATCH,
        level=TlsLevel.SECURE,
        page=policy("enforce"),
    )
    yield dane(
        "first MX has a TLSA and is down, second has none, MTA-STS passes",
        mx(Server.NOBODY, "mx2", 5) + tlsa(Server.GOOD, "3 1 1", "mx2") + mx(Server.GOOD) + sts(),
        Outcome.VERIFIED,
        page=policy("enforce", "mx.{domain}", "mx2.{domain}"),
        postfix=Outcome.DEFERRED,
        why=(
            "Postfix has one level for all hosts of a domain; `dane-only` is the one that downgrades none of them. The relay asks"
            " each host for what holds for it."
        ),
    )


def _routes() -> Iterator[Scenario]:
    yield dane(
        "first MX has a wrong TLSA, second is good",
        mx(Server.SELF_SIGNED, "mx2", 5)
        + tlsa(Server.GOOD, "3 1 1", "mx2")
        + mx(Server.GOOD)
        + tlsa(Server.GOOD, "3 1 1"),
        Outcome.VERIFIED,
        FailureType.TLSA_INVALID,
    )
    yield dane(
        "first MX has a TLSA and is down, second has none",
        mx(Server.NOBODY, "mx2", 5) + tlsa(Server.GOOD, "3 1 1", "mx2") + mx(Server.GOOD),
        Outcome.ENCRYPTED,
        level=TlsLevel.DANE,
    )
    yield row("first MX down, second up", mx(Server.NOBODY, "mx2", 5) + mx(Server.GOOD), Outcome.ENCRYPTED)
    yield row(
        "an IPv6 address that refuses, an IPv4 one that answers",
        mx(Server.GOOD) + "mx AAAA ::1\n",
        Outcome.ENCRYPTED,
    )
    yield row("first MX 421, second up", mx(Server.BUSY, "mx2", 5) + mx(Server.GOOD), Outcome.ENCRYPTED)
    yield row("null MX", "@ MX 0 .\n", Outcome.REFUSED)
    yield row("no MX, an address (implicit MX)", "@ A {good}\n", Outcome.ENCRYPTED)
    yield dane("no MX, an address, TLSA", "@ A {good}\n_{port}._tcp TLSA {good:3 1 1}\n", Outcome.VERIFIED)
    yield row("no MX, no address", "@ TXT nothing\n", Outcome.REFUSED)
    yield row("no such domain", "", Outcome.REFUSED)
    yield row("MX host that does not exist", "@ MX 10 mx\n", Outcome.REFUSED)
    yield row("the best MX is the sender itself (loop)", mx(Server.SENDER), Outcome.REFUSED)
    yield row("MX down", mx(Server.NOBODY), Outcome.DEFERRED)
    yield row("421 greeting", mx(Server.BUSY), Outcome.DEFERRED)
    yield Scenario(
        "greylisting",
        Zone.UNSIGNED,
        (
            Step(outcome=Outcome.DEFERRED, records=mx(Server.GREYLISTING)),
            Step(outcome=Outcome.ENCRYPTED, before="tried again"),
        ),
    )
    purged = (
        "Postfix throws away what came in clear text behind the reply to STARTTLS and goes on; ours takes it for the"
        " attack that it is, and says so in the log."
    )
    yield row(
        "a reply injected behind STARTTLS",
        mx(Server.INJECTING),
        Outcome.DEFERRED,
        failure=FailureType.VALIDATION_FAILURE,
        postfix=Outcome.ENCRYPTED,
        why=purged,
    )
    yield row(
        "a reply injected behind STARTTLS, enforce",
        mx(Server.INJECTING) + sts(),
        Outcome.DEFERRED,
        level=TlsLevel.SECURE,
        failure=FailureType.VALIDATION_FAILURE,
        page=policy("enforce"),
        postfix=Outcome.VERIFIED,
        why=purged,
    )


SCENARIOS: Final[dict[str, tuple[Scenario, ...]]] = {
    "No policy: TLS where there is TLS": tuple(_no_policy()),
    "MTA-STS: the policy's mode": tuple(_sts_modes()),
    "MTA-STS: the policy's hosts": tuple(_sts_hosts()),
    "MTA-STS: no policy to be had at first contact": tuple(_sts_first_contact()),
    "MTA-STS: what changes later": tuple(_sts_changes()),
    "DANE: certificate and record": tuple(_dane_matches()),
    "DANE: what DNSSEC says": tuple(_dane_dns()),
    "DANE and MTA-STS together": tuple(_dane_with_sts()),
    "Routes and servers": tuple(_routes()),
}
ALL: Final = tuple(scenario for group in SCENARIOS.values() for scenario in group)

_PREFACE: Final = """\
# What becomes of mail that leaves

Generated from `tests/live/outbound_scenarios.py`, which runs every line against real servers: do not edit it here.

Each line is a domain of a fake internet: a DNS root signed by knot and validated by unbound, remote Postfix servers with these
certificates, an HTTPS policy host. *Relay* is what the gateway's `[outbound]` answers to the mail server that hands the message
in; *Postfix* is what a Postfix does that delivers by itself and asks the gateway's `[tls_policy]` (`smtp_tls_policy_maps`), with
`smtp_tls_security_level = may` and `smtp_dns_support_level = dnssec`. Both are the first attempt; what is deferred is tried again.

*verified*: over TLS, with the certificate that DANE or MTA-STS demanded. *encrypted*: over TLS, and nothing was demanded of the
certificate. *Asked for* is the decision in Postfix's words (`gateway tls DOMAIN` explains one); *reported* is the failure that the
relay records for the domain's TLS report (RFC 8460). Postfix reports its own sessions, from 3.10 on.
"""


def page_text() -> str:
    """docs/outbound-scenarios.md."""
    return _PREFACE + "".join(_group_text(title, rows) for title, rows in SCENARIOS.items())


def _group_text(title: str, rows: tuple[Scenario, ...]) -> str:
    lines = ["", f"## {title}", "", "| | asked for | relay | Postfix | reported |", "|---|---|---|---|---|"]
    reasons: list[str] = []
    for scenario in rows:
        for number, step in enumerate(scenario.steps):
            what = scenario.title if number == 0 else f"… then {step.before}"
            outcome = step.postfix or step.outcome
            if step.postfix is not None and step.why not in reasons:
                reasons.append(step.why)
            mark = f" ({reasons.index(step.why) + 1})" if step.postfix is not None else ""
            cells = (what, f"`{step.level}`", step.outcome, f"{outcome}{mark}", step.failure or "")
            lines.append(f"| {' | '.join(cells)} |")
    if reasons:
        lines += ["", *(f"({number}) {reason}" for number, reason in enumerate(reasons, 1))]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    print(page_text(), end="")  # noqa: T201

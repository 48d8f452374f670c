"""Mail for domains of every kind, through our relay and through a real Postfix that asks our socketmap: the same decision.

The table is `outbound_scenarios`; here it is run. All messages of a round leave at once, each way; where a row has another step,
the world changes, and there is another round.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from gateway.tlspolicy.model import FailureType
from tests.live.deliveries import (
    MAP,
    RELAYED,
    Seen,
    ask,
    deliver_by_postfix,
    deliver_by_relay,
    level_in,
    reported,
)
from tests.live.internet import RELAY_NAME, Gateway, Internet, World, gateway_in, internet_on, postfix_in
from tests.live.network import NetworkUnavailableError, host_network, private_network
from tests.live.outbound_scenarios import ALL, Outcome, Scenario, Zone, page_text
from tests.live.postfix import wait_until

pytestmark = pytest.mark.live

PAGE: Final = Path(__file__).parents[2] / "docs" / "outbound-scenarios.md"
RESTART: Final = 2
"""The step before which the gateway is restarted, with every policy host down."""

ROUNDS: Final = range(max(len(scenario.steps) for scenario in ALL))
DOMAINS: Final = [scenario.domain for scenario in ALL]


def records_of(scenario: Scenario, number: int) -> str:
    """The domain's DNS at this step: the newest that it or a step before it brought."""
    brought = [step.records for step in scenario.steps[: number + 1] if step.records]
    return brought[-1] if brought else ""


def zone_text(zone: Zone, number: int) -> str:
    texts = [
        f"$ORIGIN {scenario.domain}.\n{records_of(scenario, number)}"
        for scenario in ALL
        if scenario.zone is zone
    ]
    return "\n".join(["$TTL 1" if zone is Zone.CHANGING else "", *texts])


def hosts() -> Iterator[str]:
    """Every name with an address: certificates bear them all."""
    for scenario in ALL:
        for number in range(len(scenario.steps)):
            for line in records_of(scenario, number).splitlines():
                owner, kind, *_ = line.split()
                if kind == "A":
                    yield scenario.domain if owner == "@" else f"{owner}.{scenario.domain}"


def set_pages(world: Internet, number: int) -> None:
    for scenario in ALL:
        if number < len(scenario.steps) and (page := scenario.steps[number].page):
            world.policy_host.pages[scenario.domain] = replace(
                page,
                body=page.body.replace("{domain}", scenario.domain),
                headers=tuple(line.replace("{domain}", scenario.domain) for line in page.headers),
            )


@pytest.fixture(scope="module")
def world() -> Iterator[Internet]:
    with ExitStack() as stack:
        try:
            network = stack.enter_context(private_network())
        except NetworkUnavailableError:
            network = stack.enter_context(host_network())
        made_of = World(
            zones={zone: zone_text(zone, 0) for zone in Zone},
            signed=[Zone.SIGNED],
            domains=DOMAINS,
            names=sorted(set(hosts())),
        )
        yield stack.enter_context(internet_on(network, made_of))


def needs_private_network(world: Internet) -> None:
    if not world.network.is_private:
        pytest.skip("a Postfix that delivers needs ports 25 and 53, in a network namespace: run as root")


@pytest.fixture(scope="module")
def by_itself(world: Internet) -> Iterator[dict[str, Seen]]:
    """What a Postfix does that knows DANE, and nothing of us."""
    needs_private_network(world)
    with postfix_in(world, world.directory / "alone", {"smtp_tls_security_level": "dane"}) as sender:
        yield deliver_by_postfix(world, sender, [scenario.domain for scenario in ALL])


@pytest.mark.parametrize(
    "scenario",
    [s for s in ALL if "_mta-sts" not in s.steps[0].records],
    ids=lambda scenario: scenario.label,
)
def test_a_postfix_that_never_heard_of_us_agrees_about_dane_and_routes(
    by_itself: dict[str, Seen], scenario: Scenario
) -> None:
    (step, *_) = scenario.steps
    seen = by_itself[scenario.domain]
    assert seen.outcome is (step.postfix or step.outcome), seen.said


@dataclass(slots=True)
class Run:
    """What was seen: by domain and step."""

    relayed: dict[tuple[str, int], Seen] = field(default_factory=dict)
    posted: dict[tuple[str, int], Seen] = field(default_factory=dict)
    answers: dict[tuple[str, int], str] = field(default_factory=dict)
    reported: dict[str, set[FailureType]] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    config: Path = Path()

    def logged(self, domain: str, **fields: object) -> list[dict[str, Any]]:
        """The gateway's log lines about the domain that have these fields."""
        return [
            line for line in self.events if fields.items() <= line.items() and line.get("domain") == domain
        ]


def change_world(world: Internet, gateway: Gateway, number: int) -> None:
    """Make its DNS that of the next step, and wait until the gateway may know."""
    world.change_zone(Zone.CHANGING, zone_text(Zone.CHANGING, number))
    if number == RESTART:
        world.policy_host.stop()
        gateway.stop()
        gateway.start()
        return
    changed = {
        scenario.domain: scenario.steps[number].level
        for scenario in ALL
        if number < len(scenario.steps)
        and scenario.steps[number].level is not scenario.steps[number - 1].level
    }
    assert changed

    def is_known() -> bool:
        answers = ask(world, gateway, list(changed))
        return {domain: level_in(answer) for domain, answer in answers.items()} == changed

    wait_until(is_known, f"the gateway to see {changed}", timeout_s=20)


@pytest.fixture(scope="module")
def run(world: Internet) -> Run:
    run = Run()
    world.greylist.seen.clear()
    with ExitStack() as stack:
        gateway = stack.enter_context(gateway_in(world, world.directory / "gateway"))
        ways = [(run.relayed, partial(deliver_by_relay, world, gateway))]
        if world.network.is_private:
            asking = f"socketmap:inet:127.0.0.1:{gateway.tls_policy_port}:{MAP}"
            settings = {"smtp_tls_policy_maps": asking}
            sender = stack.enter_context(postfix_in(world, world.directory / "asking", settings))
            ways.append((run.posted, partial(deliver_by_postfix, world, sender)))
        for number in ROUNDS:
            set_pages(world, number)
            if number:
                change_world(world, gateway, number)
            domains = [scenario.domain for scenario in ALL if number < len(scenario.steps)]
            with ThreadPoolExecutor() as threads:
                for seen, results in [(seen, threads.submit(way, domains)) for seen, way in ways]:
                    seen |= {(domain, number): what for domain, what in results.result().items()}
            run.answers |= {
                (domain, number): answer for domain, answer in ask(world, gateway, domains).items()
            }
    run.reported, run.events = reported(gateway), gateway.events()
    run.config = gateway.directory / "gateway.toml"
    return run


STEPS: Final = [
    pytest.param(scenario, number, id=f"{scenario.label}-{number + 1}")
    for scenario in ALL
    for number in range(len(scenario.steps))
]


@pytest.mark.parametrize(("scenario", "number"), STEPS)
def test_through_the_relay(run: Run, scenario: Scenario, number: int) -> None:
    seen = run.relayed[scenario.domain, number]
    assert seen.outcome is scenario.steps[number].outcome, seen.said


@pytest.mark.parametrize(("scenario", "number"), STEPS)
def test_through_postfix_asking_the_socketmap(
    world: Internet, run: Run, scenario: Scenario, number: int
) -> None:
    needs_private_network(world)
    step, seen = scenario.steps[number], run.posted[scenario.domain, number]
    assert seen.outcome is (step.postfix or step.outcome), (
        f"{seen.said}\n{run.answers[scenario.domain, number]}"
    )


@pytest.mark.parametrize(("scenario", "number"), STEPS)
def test_what_postfix_is_told(run: Run, scenario: Scenario, number: int) -> None:
    answer = run.answers[scenario.domain, number]
    assert level_in(answer) is scenario.steps[number].level, answer


@pytest.mark.parametrize("scenario", ALL, ids=lambda scenario: scenario.label)
def test_what_is_reported(run: Run, scenario: Scenario) -> None:
    expected = {step.failure for step in scenario.steps if step.failure}
    assert run.reported.get(scenario.domain, set()) == expected


@pytest.mark.parametrize(
    ("domain", "step", "words"),
    [
        ("null-mx.sts.test", 0, r"556 5\.1\.10 "),  # RFC 7505 §4.2
        ("no-such-domain.sts.test", 0, r"550 5\.1\.2 "),
        ("no-mx-no-address.sts.test", 0, r"550 5\.4\.4 "),
        ("the-best-mx-is-the-sender-itself-loop.sts.test", 0, r"554 5\.4\.6 "),
        ("bogus.test", 0, r"451 4\.4\.3 "),
        ("greylisting.sts.test", 0, r"450 4\.7\.1 .*greylisted"),  # the remote server's own words
        ("421-greeting.sts.test", 0, r"4"),
        ("enforce-no-starttls.sts.test", 0, r"4\d\d 4\.7\.\d+ .*tls\.not-offered"),
        ("mx-not-in-the-policy.sts.test", 0, r"4\d\d 4\.7\.\d+ .*mta-sts\.mx-not-listed"),
        ("wrong-tlsa.dane.test", 0, r"4\d\d 4\.7\.\d+ .*tls\.certificate-tlsa"),
        ("a-reply-injected-behind-starttls.sts.test", 0, r"4\d\d 4\.7\.\d+ .*tls\.response-injection"),
    ],
)
def test_what_the_relay_says(run: Run, domain: str, step: int, words: str) -> None:
    assert re.match(words, run.relayed[domain, step].said), run.relayed[domain, step].said


@pytest.mark.parametrize(
    ("domain", "fields"),
    [
        (
            "policy-withdrawn-by-mode-none.moving.test",
            {"change": "weakened", "before": "enforce", "mode": "none"},
        ),
        ("record-removed.moving.test", {"change": "record-gone", "mode": "enforce"}),
        ("policy-host-goes-down.moving.test", {"change": "fetch-failed", "mode": "enforce"}),
    ],
)
def test_a_step_down_is_seen_in_the_log(run: Run, domain: str, fields: dict[str, str]) -> None:
    assert run.logged(domain, event="mta_sts.policy", level="warning", **fields)


@pytest.mark.parametrize(
    ("domain", "fields"),
    [
        (
            "a-reply-injected-behind-starttls.sts.test",
            {"demand": "none", "problem": "tls.response-injection"},
        ),
        ("enforce-no-starttls.sts.test", {"demand": "pkix", "problem": "tls.not-offered"}),
        (
            "testing-expired-certificate.sts.test",
            {"demand": "pkix (testing)", "problem": "tls.certificate-expired"},
        ),
        ("wrong-tlsa.dane.test", {"demand": "dane", "problem": "tls.certificate-tlsa"}),
    ],
)
def test_what_is_wrong_with_a_session_is_in_the_log(run: Run, domain: str, fields: dict[str, str]) -> None:
    assert run.logged(domain, event="relay.session", **fields)


def test_who_injects_hears_nothing_of_the_relay_under_tls(world: Internet, run: Run) -> None:
    assert not [
        command for command in world.injecting.commands if RELAYED in command or RELAY_NAME in command
    ]


def test_gateway_tls_foretells_what_the_relay_does(world: Internet, run: Run) -> None:
    """A program each, so only of some: how a domain fares in the end, and the exit status."""
    expected = {
        "first-mx-fails-the-policy-second-passes.sts.test": 10,
        "record-removed.moving.test": 11,  # only the store knows that there was a policy
        "tlsa-2-0-1.dane.test": 0,
        "dane-passes-mta-sts-would-fail.dane.test": 0,
        "null-mx.sts.test": 12,
    }

    def status(domain: str) -> int:
        command = [sys.executable, "-m", "gateway", "tls", domain, "--config", str(run.config), "--connect"]
        return world.network.within(
            lambda: subprocess.run(command, check=False, capture_output=True)
        ).returncode

    with ThreadPoolExecutor(4) as threads:
        assert dict(zip(expected, threads.map(status, expected), strict=True)) == expected


def test_the_page_is_the_table() -> None:
    remedy = "python -m tests.live.outbound_scenarios > docs/outbound-scenarios.md"
    assert PAGE.read_text() == page_text(), f"write it again: {remedy}"


def test_where_the_ways_differ_the_table_says_why() -> None:
    assert len({scenario.domain for scenario in ALL}) == len(ALL)
    for scenario in ALL:
        for step in scenario.steps:
            assert (step.postfix is not None) == bool(step.why), scenario.title
            assert step.postfix is not step.outcome, scenario.title
            assert step.outcome is not Outcome.CLEAR or step.level == "may", scenario.title

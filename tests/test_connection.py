"""What is remembered of clients and senders, for how long, and what must never be."""

from dataclasses import dataclass, field
from ipaddress import ip_address

import pytest

from gateway.auth.results import IprevStatus, SpfStatus
from gateway.connection import ConnectionChecks
from gateway.dns.budget import BudgetedResolver
from gateway.dns.resolver import Answer, Missing, NotFound, Outcome, RecordType, Temporary, Trouble
from gateway.mail.address import Mailbox, parse_path
from gateway.mail.envelope import Listener, Session

CLIENT = "192.0.2.1"


@dataclass
class World:
    """A resolver of one SPF record; what else is asked for does not exist."""

    spf: bytes = b"v=spf1 ip4:192.0.2.1 -all"
    ttl: int = 300
    trouble: Trouble | None = None
    asked: list[str] = field(default_factory=list)

    async def query(self, name: str, record_type: RecordType) -> Outcome:
        self.asked.append(name)
        if self.trouble is not None:
            return Temporary(self.trouble)
        if name == "sender.example" and record_type is RecordType.TXT:
            return Answer((self.spf,), self.ttl, secure=False, name=name)
        if name.endswith(".ask.example"):
            known = name.startswith("ann.")
            return (
                Answer((ip_address("127.0.0.2"),), self.ttl, secure=False, name=name) if known else self._no()
            )
        return self._no()

    def _no(self) -> NotFound:
        return NotFound(Missing.NXDOMAIN, ttl=self.ttl, secure=False)


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def session(client: str = CLIENT, helo: str = "mail.sender.example") -> Session:
    return Session(id="s", listener=Listener.INBOUND, client_ip=ip_address(client), helo=helo)


def mailbox(address: str) -> Mailbox:
    found = parse_path(f"<{address}>", smtputf8=False)
    assert found is not None
    return found


def budget(world: World, max_queries: int = 60, clock: Clock | None = None) -> BudgetedResolver:
    now = clock or Clock()
    return BudgetedResolver(world, max_queries=max_queries, deadline=now() + 60, now=now)


async def test_the_second_message_asks_nobody_and_pays_the_same() -> None:
    world, checks = World(), ConnectionChecks("mx.example.net", now=Clock())
    first = budget(world)
    found = await checks.check(session(), mailbox("ann@sender.example"), first)
    asked = len(world.asked)
    assert (found.spf.status, asked > 3) == (SpfStatus.PASS, True)
    second = budget(world)
    assert await checks.check(session(), mailbox("ann@sender.example"), second) == found
    assert len(world.asked) == asked
    assert second.spent == first.spent == asked


async def test_another_mailbox_of_the_domain_gets_its_own_name() -> None:
    world, checks = World(), ConnectionChecks("mx.example.net", now=Clock())
    await checks.check(session(), mailbox("ann@sender.example"), budget(world))
    asked = len(world.asked)
    found = await checks.check(session(), mailbox("bounce-17@sender.example"), budget(world))
    assert (found.spf.sender, found.spf.status) == ("bounce-17@sender.example", SpfStatus.PASS)
    assert len(world.asked) == asked


@pytest.mark.parametrize("macro", ["%{l}", "%{L}"])
async def test_a_record_that_asks_about_the_mailbox_is_asked_for_each(macro: str) -> None:
    world = World(spf=f"v=spf1 exists:{macro}.ask.example -all".encode())
    checks = ConnectionChecks("mx.example.net", now=Clock())
    found = [
        (await checks.check(session(), mailbox(f"{name}@sender.example"), budget(world))).spf.status
        for name in ("ann", "mallory", "ann")
    ]
    assert found == [SpfStatus.PASS, SpfStatus.FAIL, SpfStatus.PASS]


@pytest.mark.parametrize(
    "other",
    [session(client="192.0.2.2"), session(helo="elsewhere.example")],
    ids=["another client", "another HELO"],
)
async def test_another_client_is_another_question(other: Session) -> None:
    world, checks = World(), ConnectionChecks("mx.example.net", now=Clock())
    await checks.check(session(), mailbox("ann@sender.example"), budget(world))
    asked = len(world.asked)
    await checks.check(other, mailbox("ann@sender.example"), budget(world))
    assert len(world.asked) > asked


async def test_nothing_outlives_the_dns_answers_that_it_rests_on() -> None:
    clock, world = Clock(), World(ttl=300)
    checks = ConnectionChecks("mx.example.net", now=clock)
    await checks.check(session(), mailbox("ann@sender.example"), budget(world, clock=clock))
    world.spf = b"v=spf1 -all"
    clock.now += 299
    known = await checks.check(session(), mailbox("ann@sender.example"), budget(world, clock=clock))
    clock.now += 1
    fresh = await checks.check(session(), mailbox("ann@sender.example"), budget(world, clock=clock))
    assert (known.spf.status, fresh.spf.status) == (SpfStatus.PASS, SpfStatus.FAIL)


async def test_what_could_not_be_known_is_not_remembered() -> None:
    world, checks = World(trouble=Trouble.TIMEOUT), ConnectionChecks("mx.example.net", now=Clock())
    found = await checks.check(session(), mailbox("ann@sender.example"), budget(world))
    assert (found.spf.status, found.iprev.status) == (SpfStatus.TEMPERROR, IprevStatus.TEMPERROR)
    world.trouble = None
    found = await checks.check(session(), mailbox("ann@sender.example"), budget(world))
    assert found.spf.status is SpfStatus.PASS


async def test_a_budget_that_is_too_small_is_too_small_for_what_is_remembered() -> None:
    world, checks = World(), ConnectionChecks("mx.example.net", now=Clock())
    await checks.check(session(), mailbox("ann@sender.example"), budget(world))
    found = await checks.check(session(), mailbox("ann@sender.example"), budget(world, max_queries=1))
    assert found.spf.status is SpfStatus.TEMPERROR

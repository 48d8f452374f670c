from functools import partial

from gateway.dns.resolver import RecordType
from gateway.dns.stub import DnsObservation
from gateway.listeners.http import Readiness
from gateway.mail.envelope import Listener
from gateway.ops.health import DNS_FAILURES, FAILURE_COUNTS_S, Health, Unwatched
from gateway.verdict import Answered, Disposition
from tests.ops.evidence import REJECTED, envelope


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def ask(health: Health, outcome: str, *, cached: bool = False, times: int = 1) -> None:
    for _ in range(times):
        health.dns(DnsObservation(RecordType.TXT, outcome, cached=cached, seconds=1.0))


def test_downstream_is_down_after_a_failure_until_it_replies() -> None:
    health = Health(Clock())
    assert health.downstream_state()[0]
    health.downstream_failed("connect")
    assert health.downstream_state() == (False, "failed: connect")
    health.downstream_reply("ehlo", 250, 0.1)
    assert health.downstream_state()[0]


def test_a_failure_is_forgotten_because_without_mail_nothing_could_mend_it() -> None:
    clock = Clock()
    health = Health(clock)
    health.downstream_failed("connect")
    ask(health, "timeout", times=DNS_FAILURES)
    assert not health.downstream_state()[0]
    assert not health.dns_state()[0]
    clock.now += FAILURE_COUNTS_S + 1
    assert health.downstream_state()[0]
    assert health.dns_state()[0]


def test_one_dead_domain_is_not_a_dead_resolver() -> None:
    health = Health(Clock())
    ask(health, "timeout", times=DNS_FAILURES - 1)
    assert health.dns_state()[0]
    ask(health, "answer", cached=True)  # says nothing of the resolver
    ask(health, "timeout")
    assert not health.dns_state()[0]
    ask(health, "nxdomain")
    assert health.dns_state()[0]


def test_broken_zones_are_not_the_resolvers_fault() -> None:
    health = Health(Clock())
    ask(health, "servfail", times=100)
    assert health.dns_state()[0]


def downstream_of(worker: Health) -> Readiness:
    return Readiness("downstream", *worker.downstream_state())


def test_what_is_not_ready_in_one_process_is_not_ready_in_the_sum() -> None:
    total = Health(workers=0)
    for failures in (0, 1):
        worker = Health(lambda: 0.0)
        worker.readiness_from([partial(downstream_of, worker)])
        for _ in range(failures):
            worker.downstream_failed("connect")
        assert f'gateway_ready{{check="downstream"}} {1.0 - failures}' in worker.exposition("")[0].decode()
        total.absorb(worker.snapshot(), alive=True)
    assert 'gateway_ready{check="downstream"} 0.0' in total.exposition("")[0].decode()


def count_a_message(health: Health) -> set[str]:
    """The metrics that show it."""
    counted = [metric for metric in health.declared if not metric.name.startswith("process_")]
    before = {metric.name: metric.dump() for metric in counted}
    health.session_opened(Listener.INBOUND)
    health.session_closed(Listener.INBOUND, "quit")
    health.command(Listener.INBOUND, "MAIL", 250)
    health.downstream_reply("mail", 250, 0.1)
    ask(health, "answer")
    health.judged(REJECTED, envelope())
    answered = Answered(id="a", disposition=Disposition.ACCEPT, size=1, seconds=0.1, is_handed_on=True)
    health.message(Listener.INBOUND, answered)
    health.snapshot()
    return {metric.name for metric in counted if metric.dump() != before[metric.name]}


def test_where_nobody_can_ask_a_message_is_counted_by_nothing() -> None:
    assert len(count_a_message(Health())) > 10
    assert count_a_message(Unwatched()) == set()

"""Whose messages the engine seals, where the set stands, and what is told of it."""

import pytest

from gateway.auth.arc import check_arc
from gateway.auth.arc.seal import Sealer
from gateway.auth.arc.sets import ChainValidation
from gateway.auth.results import ArcStatus
from gateway.engine import QUARANTINE_FIELD, Engine, EngineOptions
from gateway.mail.edits import apply_edits
from gateway.mail.envelope import Envelope, Listener, Session
from gateway.mail.message import Message
from gateway.ops.log import judged_event
from gateway.ops.metrics import Metrics
from gateway.policy import parse_rules
from gateway.verdict import Disposition, Verdict
from tests.auth.arc.chains import Custodian, chain, world
from tests.auth.arc.test_oracles import foreign_status
from tests.auth.arc.test_seal import sealer
from tests.auth.dkim.signing import MESSAGE, NOW
from tests.corpus import AUTHSERV_ID, load_cases

SET = ["ARC-Seal", "ARC-Message-Signature", "ARC-Authentication-Results"]


def make_engine(
    action: str = "accept", *, mode: str = "enforce", seals: bool = True, **options: object
) -> Engine:
    rules = parse_rules(f'mode = "{mode}"\n[[rule]]\nid = "all"\nwhy = "w"\naction = "{action}"\n')
    engine = Engine(
        world(),
        rules,
        authserv_id=AUTHSERV_ID,
        options=EngineOptions(**options),  # type: ignore[arg-type]  # keyword options of any kind
        clock=lambda: NOW,
    )
    engine.sealer = sealer() if seals else None
    return engine


def envelope(*, login: str | None = None, trusted: bool = False) -> Envelope:
    stranger = load_cases()[0].envelope()
    session = Session(
        id="s",
        listener=Listener.INBOUND,
        client_ip=stranger.session.client_ip,
        helo="client.example",
        login=login,
        trusted=trusted,
    )
    return Envelope(id="m.1", session=session, mail_from=None, recipients=stranger.recipients)


def names(verdict: Verdict) -> list[str]:
    return [field.name for field in verdict.edits.prepend]


async def test_the_set_stands_below_the_stamp_that_it_repeats() -> None:
    raw = Custodian().seal(MESSAGE)

    verdict = await make_engine().judge(envelope(), Message(raw))

    assert names(verdict) == ["Authentication-Results", *SET]
    assert verdict.sealed is ChainValidation.PASS
    stamp, _, _, repeated = verdict.edits.prepend
    assert repeated.value == f"i=2; {stamp.value}"
    assert "arc=pass" in repeated.value
    sent = b"".join(apply_edits(Message(raw), verdict.edits))
    assert (await check_arc(Message(sent), world(), now=NOW)).status is ArcStatus.PASS
    assert foreign_status(sent) is ArcStatus.PASS


async def test_results_forged_in_our_name_are_gone_before_it_is_sealed() -> None:
    raw = f"Authentication-Results: {AUTHSERV_ID}; dmarc=pass\r\n".encode() + MESSAGE

    verdict = await make_engine().judge(envelope(), Message(raw))

    assert verdict.edits.remove == {0}
    sent = b"".join(apply_edits(Message(raw), verdict.edits))
    assert (await check_arc(Message(sent), world(), now=NOW)).status is ArcStatus.PASS


@pytest.mark.parametrize("ours", [{"login": "ann@example.net"}, {"trusted": True}])
async def test_our_own_users_mail_is_not_sealed(ours: dict[str, object]) -> None:
    verdict = await make_engine().judge(envelope(**ours), Message(MESSAGE))  # type: ignore[arg-type]

    assert names(verdict) == ["Authentication-Results"]
    assert verdict.sealed is None


@pytest.mark.parametrize("action", ["reject", "defer", "quarantine"])
async def test_what_is_not_accepted_is_not_sealed(action: str) -> None:
    verdict = await make_engine(action).judge(envelope(), Message(MESSAGE))

    marks = [QUARANTINE_FIELD] if action == "quarantine" else []
    assert names(verdict) == ["Authentication-Results", *marks]


async def test_a_monitor_hands_on_and_so_seals() -> None:
    verdict = await make_engine("reject", mode="monitor").judge(envelope(), Message(MESSAGE))

    assert (verdict.disposition, verdict.sealed) == (Disposition.ACCEPT, ChainValidation.NONE)


async def test_without_a_sealer_nothing_is() -> None:
    verdict = await make_engine(seals=False).judge(envelope(), Message(MESSAGE))

    assert names(verdict) == ["Authentication-Results"]


async def test_a_longer_chain_than_is_followed_is_not_closed() -> None:
    raw = chain(MESSAGE, *[Custodian()] * 3)

    verdict = await make_engine(max_arc_instances=2).judge(envelope(), Message(raw))

    assert verdict.evidence.arc is not None
    assert verdict.evidence.arc.status is ArcStatus.FAIL
    assert verdict.sealed is None


async def test_what_is_told_of_it() -> None:
    broken = Custodian().seal(MESSAGE).replace(b"Joe.", b"Eve.")
    verdict = await make_engine().judge(envelope(), Message(broken))

    assert judged_event(envelope(), Message(broken), None, verdict, 0.1)["sealed"] == "fail"
    metrics = Metrics()
    metrics.judged(verdict, envelope())
    text = metrics.exposition("")[0].decode()
    assert 'gateway_arc_seals_total{cv="fail"} 1.0' in text
    assert (
        'gateway_auth_results_total{method="arc",problem="arc.message-signature",status="fail"} 1.0' in text
    )


async def test_a_fault_of_the_sealer_is_a_451_not_a_message_without_seal() -> None:
    class Faulty(Sealer):
        def seal(self, *_args: object, **_options: object) -> None:
            raise ZeroDivisionError

    engine = make_engine()
    engine.sealer = Faulty(sealer().key)

    verdict = await engine.judge(envelope(), Message(MESSAGE))

    assert (verdict.disposition, verdict.rule) == (Disposition.DEFER, "gateway.internal")

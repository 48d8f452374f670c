import itertools

import pytest

from gateway.smtp.command import Verb
from gateway.smtp.errors import LocalProtocolError
from gateway.smtp.state import TABLE, Event, State, Turn, advance, is_possible, refusal

EVENTS: tuple[Event, ...] = (*Verb, *Turn)
TALKING = (State.GREETED, State.READY, State.MAIL, State.RCPT, State.BDAT)


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, EVENTS)))
def test_every_event_in_every_state_leads_somewhere_or_is_refused(state: State, event: Event) -> None:
    if is_possible(state, event):
        assert advance(state, event) is TABLE[state][event]
        return
    with pytest.raises(LocalProtocolError):
        advance(state, event)
    if isinstance(event, Verb) and state in TALKING:
        assert refusal(state, event).is_permanent


def test_every_state_can_be_reached_and_all_but_the_last_can_be_left() -> None:
    reached = {State.BALANCER, State.GREETED}
    while True:
        further = {after for state in reached for after in TABLE[state].values()}
        if further <= reached:
            break
        reached |= further
    assert reached == set(State)
    assert [state for state in State if not TABLE[state]] == [State.CLOSED]


def test_content_is_reached_only_through_a_recipient() -> None:
    ways = {
        (state, event) for state, row in TABLE.items() for event, after in row.items() if after is State.DATA
    }
    assert ways == {(State.RCPT, Verb.DATA)}
    ways = {
        (state, event)
        for state, row in TABLE.items()
        for event, after in row.items()
        if after is State.BDAT and state is not State.BDAT
    }
    assert ways == {(State.RCPT, Verb.BDAT)}


def test_a_message_is_left_only_by_its_answer_or_the_end() -> None:
    assert dict(TABLE[State.MESSAGE]) == {Turn.ANSWERED: State.READY, Turn.CLOSE: State.CLOSED}


def test_no_command_is_obeyed_where_everything_is_content() -> None:
    for state in (State.DATA, State.MESSAGE, State.BALANCER, State.CLOSED):
        assert not [event for event in TABLE[state] if isinstance(event, Verb)]


@pytest.mark.parametrize("state", TALKING)
def test_quit_is_always_possible(state: State) -> None:
    assert advance(state, Verb.QUIT) is State.CLOSED


@pytest.mark.parametrize("state", [State.MAIL, State.RCPT, State.BDAT])
def test_starttls_and_xclient_are_not_possible_within_a_transaction(state: State) -> None:
    assert not is_possible(state, Verb.STARTTLS)
    assert not is_possible(state, Verb.XCLIENT)

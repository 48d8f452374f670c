"""Who of several workers takes the next connection."""

import os

from gateway.listeners.turns import MAX_WORKERS, Turns


def test_who_has_more_than_another_waits() -> None:
    turns = Turns()
    assert turns.has_turn(5), "nobody else serves"
    turns.note(0, 3)
    turns.note(1, 2)
    assert [turns.has_turn(3), turns.has_turn(2)] == [False, True]


def test_nobody_waits_for_who_takes_no_more() -> None:
    turns = Turns()
    turns.note(1, 0)
    assert not turns.has_turn(1)
    turns.leave(1)
    assert turns.has_turn(1)


def test_what_a_child_writes_its_siblings_read() -> None:
    turns = Turns()
    pid = os.fork()
    if pid == 0:
        turns.note(1, 0)
        os._exit(0)
    os.waitpid(pid, 0)
    assert not turns.has_turn(1)


def test_workers_beyond_the_last_place_take_what_comes() -> None:
    turns = Turns()
    turns.note(MAX_WORKERS, 0)
    assert turns.has_turn(1)

"""Guesses by address and by login, on a clock of the test's own."""

from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from gateway.mail.envelope import IpAddress
from gateway.smtp import guesses as module
from gateway.smtp.guesses import Bar, Guess, Guesses

HOME = ip_address("192.0.2.1")
AWAY = ip_address("198.51.100.1")


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def make(max_failures: int = 3) -> tuple[Guesses, Clock]:
    clock = Clock()
    return Guesses(max_failures=max_failures, window_s=600, delay_s=1, clock=clock), clock


def begun(guesses: Guesses, address: IpAddress = AWAY, login: str = "ann") -> Guess:
    guess = guesses.begin(address, login)
    assert isinstance(guess, Guess), guess
    return guess


def fail(guesses: Guesses, address: IpAddress = AWAY, login: str = "ann") -> float:
    return guesses.failed(begun(guesses, address, login))


def address(number: int) -> IpAddress:
    return ip_address("10.0.0.0") + number


def test_each_failure_is_answered_later_and_then_none_is_asked() -> None:
    guesses, _ = make()
    assert [fail(guesses) for _ in range(3)] == [1, 2, 3]
    assert guesses.begin(AWAY, "ann") is Bar.BARRED
    assert guesses.bars(AWAY)


def test_an_address_is_barred_for_every_login() -> None:
    guesses, _ = make()
    for login in ("ann", "bob", "carol"):
        fail(guesses, AWAY, login)
    assert guesses.begin(AWAY, "dave") is Bar.BARRED
    assert not guesses.bars(HOME)
    begun(guesses, HOME, "dave")


def test_a_login_is_barred_for_every_address_in_any_case() -> None:
    guesses, _ = make()
    for number, login in enumerate(("ann", "ANN", " Ann")):
        fail(guesses, address(number), login)
    assert guesses.begin(address(9), "ann") is Bar.BARRED
    assert not guesses.bars(address(9)), "others may log in from there"
    begun(guesses, address(9), "bob")


def test_whoever_was_let_in_from_there_before_is_not_locked_out_by_others() -> None:
    guesses, _ = make()
    guesses.succeeded(begun(guesses, HOME, "ann"))
    for number in range(3):
        fail(guesses, address(number), "ann")
    assert guesses.begin(address(9), "ann") is Bar.BARRED
    begun(guesses, HOME, "ann")


def test_being_let_in_before_is_no_licence_to_guess() -> None:
    guesses, _ = make()
    guesses.succeeded(begun(guesses, HOME, "ann"))
    for _ in range(3):
        fail(guesses, HOME, "ann")
    assert guesses.begin(HOME, "ann") is Bar.BARRED


def test_success_forgives_the_users_own_mistakes_and_no_others() -> None:
    guesses, _ = make()
    fail(guesses, AWAY, "ann")
    fail(guesses, AWAY, "mallory")
    fail_at_home = fail(guesses, HOME, "ann")
    assert fail_at_home == 2
    guesses.succeeded(begun(guesses, AWAY, "mallory"))
    assert fail(guesses, AWAY, "bob") == 2, (
        "the guess at ann still counts against the address, mallory's own does not"
    )
    assert fail(guesses, HOME, "ann") == 3, "and against the login"


def test_guesses_all_at_once_wait_for_each_other() -> None:
    guesses, _ = make()
    open_guesses = [begun(guesses) for _ in range(3)]
    assert guesses.begin(AWAY, "ann") is Bar.LATER, (
        "the fourth is not asked before one of the three is answered"
    )
    guesses.succeeded(open_guesses[0])
    begun(guesses)


def test_running_away_before_the_answer_does_not_undo_a_guess() -> None:
    guesses, clock = make()
    for _ in range(3):
        begun(guesses)
    clock.now += module.ANSWER_S + 1
    assert guesses.begin(AWAY, "ann") is Bar.BARRED


def test_what_downstream_could_not_answer_was_no_guess() -> None:
    guesses, _ = make(1)
    guesses.withdraw(begun(guesses))
    begun(guesses)


def test_failures_are_forgotten_after_the_window() -> None:
    guesses, clock = make()
    for _ in range(3):
        fail(guesses)
    clock.now += 600
    assert guesses.bars(AWAY)
    clock.now += 1
    assert not guesses.bars(AWAY)
    assert fail(guesses) == 1


def test_a_network_of_ipv6_counts_as_one() -> None:
    guesses, _ = make()
    for last in (1, 2, 3):
        fail(guesses, ip_address(f"2001:db8::{last}"), f"user{last}")
    assert guesses.bars(ip_address("2001:db8::ffff:ffff"))
    assert not guesses.bars(ip_address("2001:db8:0:1::1"))


def test_the_delay_has_an_end() -> None:
    guesses, _ = make(100)
    assert max(fail(guesses) for _ in range(99)) == module.MAX_DELAY_S


def test_hostile_logins_and_addresses_do_not_fill_the_memory() -> None:
    guesses, _ = make()
    for number in range(module.MAX_KEYS + 100):
        fail(guesses, address(number), f"user{number}")
        guesses.succeeded(begun(guesses, address(number), f"user{number}x"))
    assert len(guesses._by_address) <= module.MAX_KEYS
    assert len(guesses._by_login) <= module.MAX_KEYS
    assert len(guesses._at_home) <= module.MAX_KEYS


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.sampled_from(["ann", "bob"]),
            st.sampled_from(["fail", "pass", "withdraw", "leave"]),
            st.floats(0, 200),
        ),
        max_size=40,
    )
)
def test_never_more_guesses_at_a_stranger_than_allowed(
    story: list[tuple[int, str, str, float]],
) -> None:
    """Whatever happens, in any window no address had more than three wrong answers."""
    guesses, clock = make()
    wrong: list[tuple[float, int]] = []
    for number, login, outcome, pause in story:
        clock.now += pause
        guess = guesses.begin(address(number), login)
        if not isinstance(guess, Guess):
            continue
        match outcome:
            case "fail":
                guesses.failed(guess)
                wrong.append((clock.now, number))
            case "pass":
                guesses.succeeded(guess)
                wrong = [each for each in wrong if each[1] != number]  # may be forgiven
            case "withdraw":
                guesses.withdraw(guess)
            case _:
                pass
        for where in range(3):
            assert sum(at > clock.now - 600 and which == where for at, which in wrong) <= 3

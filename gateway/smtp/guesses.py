"""Guessed passwords: slowed, then refused, by client address and by login (RFC 4954 §9 leaves the how to us).

A guess counts from the moment it is asked, not from its answer: a client that runs away before the answer, or asks on
fifty connections at once, has guessed all the same. Who owns one account cannot wash off guesses at others with it, and
who guesses at an account from afar cannot lock its owner out of where the owner has been before.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv6Address
from typing import Final, TypeVar

from gateway.mail.envelope import IpAddress

MAX_KEYS: Final = 20_000
"""Addresses, logins and places of success that are remembered at a time; the one unused longest goes first."""

MAX_DELAY_S: Final = 30.0
ANSWER_S: Final = 60.0
"""A guess whose answer nobody waited for is taken for a wrong one after this time."""

_NETWORK_BITS: Final = 64
"""Of an IPv6 client: whoever has one address has all of its /64 (RFC 6177)."""

_K = TypeVar("_K")
_V = TypeVar("_V")


class Bar(StrEnum):
    """Why a password is not asked about now."""

    BARRED = "barred"  # too many were wrong
    LATER = "later"  # too many are being asked about at this moment: it must wait for their answers


@dataclass(slots=True, eq=False)
class Guess:
    """One password that downstream is asked about.

    Attributes:
        is_answered: it was wrong; before that it counts, but may yet turn out right.
    """

    address: str
    login: str
    at: float
    is_answered: bool = False


class Guesses:
    """All of a process's; in memory, bounded.

    Args:
        max_failures: so many in `window_s`, by address or by login, and no more are asked.
        window_s: how long a wrong guess counts.
        delay_s: each wrong one is answered so much later than the one before.
        clock: seconds that only go forward.
    """

    def __init__(
        self,
        *,
        max_failures: int,
        window_s: float,
        delay_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_failures = max_failures
        self._window_s = window_s
        self._delay_s = delay_s
        self._clock = clock
        self._by_address: OrderedDict[str, list[Guess]] = OrderedDict()
        self._by_login: OrderedDict[str, list[Guess]] = OrderedDict()
        self._at_home: OrderedDict[tuple[str, str], None] = OrderedDict()

    def bars(self, address: IpAddress) -> bool:
        """Whether this client need not even try."""
        return self._bar(self._recent(self._by_address, _network(address))) is Bar.BARRED

    def begin(self, address: IpAddress, login: str) -> Guess | Bar:
        """Before downstream is asked: the guess, or why it is not to be asked."""
        guess = Guess(_network(address), _fold(login), self._clock())
        for guesses in self._counted(guess):
            if bar := self._bar(guesses):
                return bar
        _remember(self._by_address, guess.address, []).append(guess)
        _remember(self._by_login, guess.login, []).append(guess)
        return guess

    def failed(self, guess: Guess) -> float:
        """It was wrong: the seconds after which the client is to hear so."""
        guess.is_answered = True
        worst = max(sum(each.is_answered for each in guesses) for guesses in self._counted(guess))
        return min(worst * self._delay_s, MAX_DELAY_S)

    def succeeded(self, guess: Guess) -> None:
        """It was right: the same client's mistakes with this login are forgiven, and no other's."""
        _remember(self._at_home, (guess.address, guess.login), None)
        for table, key in ((self._by_address, guess.address), (self._by_login, guess.login)):
            self._keep(
                table,
                key,
                [
                    each
                    for each in table.get(key, ())
                    if (each.address, each.login) != (guess.address, guess.login)
                ],
            )

    def withdraw(self, guess: Guess) -> None:
        """Downstream could not say: it was no guess."""
        for table, key in ((self._by_address, guess.address), (self._by_login, guess.login)):
            self._keep(table, key, [each for each in table.get(key, ()) if each is not guess])

    def _counted(self, guess: Guess) -> tuple[list[Guess], ...]:
        """What counts against a guess; others' guesses at the login do not where its owner was let in before."""
        of_address = self._recent(self._by_address, guess.address)
        if (guess.address, guess.login) in self._at_home:
            return (of_address,)
        return of_address, self._recent(self._by_login, guess.login)

    def _bar(self, guesses: list[Guess]) -> Bar | None:
        if len(guesses) < self._max_failures:
            return None
        overdue = self._clock() - ANSWER_S
        wrong = sum(each.is_answered or each.at < overdue for each in guesses)
        return Bar.BARRED if wrong >= self._max_failures else Bar.LATER

    def _recent(self, table: OrderedDict[str, list[Guess]], key: str) -> list[Guess]:
        guesses = table.get(key)
        if not guesses:
            return []
        since = self._clock() - self._window_s
        if guesses[0].at < since:
            guesses = [each for each in guesses if each.at >= since]
            self._keep(table, key, guesses)
        return guesses

    def _keep(self, table: OrderedDict[str, list[Guess]], key: str, guesses: list[Guess]) -> None:
        if guesses:
            table[key] = guesses
        else:
            table.pop(key, None)


def _remember(table: OrderedDict[_K, _V], key: _K, default: _V) -> _V:
    value = table.setdefault(key, default)
    table.move_to_end(key)
    if len(table) > MAX_KEYS:
        table.popitem(last=False)
    return value


def _network(address: IpAddress) -> str:
    if isinstance(address, IPv6Address):
        return f"{int(address) >> (128 - _NETWORK_BITS):x}::"
    return str(address)


def _fold(login: str) -> str:
    """Spellings that downstream may take for one account count as one."""
    return login.strip().casefold()

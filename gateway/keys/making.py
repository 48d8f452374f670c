"""`gateway keys new`: the first key of a domain, or one of a further algorithm."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from gateway.auth.dkim.key import KeyType
from gateway.keys.directory import KeyDirectory
from gateway.keys.errors import KeyDirectoryError
from gateway.keys.model import KeyState, ManagedKey
from gateway.keys.rotation import next_selector


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is to be made.

    Attributes:
        selector: None: one that tells the day. Of two keys each gets its algorithm's name behind it.
        bits: for RSA.
    """

    domain: str
    algorithms: Sequence[KeyType]
    bits: int
    selector: str | None = None


def make_keys(directory: KeyDirectory, order: Order, *, now: datetime) -> tuple[ManagedKey, ...]:
    """Make them; the lock must be held.

    Raises:
        KeyDirectoryError: a key of this algorithm is on its way already, or a file cannot be written.
    """
    keys = directory.read()
    for key in keys:
        waits = key.domain == order.domain and key.state in {KeyState.MADE, KeyState.PUBLISHED}
        if waits and key.algorithm in order.algorithms:
            raise KeyDirectoryError(
                directory.path_of(key),
                f"is an {key.algorithm} key of {key.domain} that is only waiting for its turn",
                "`gateway keys rotate` takes it on; make no second one",
            )
    taken = directory.selectors(order.domain)
    made: list[ManagedKey] = []
    for algorithm in order.algorithms:
        key = directory.make_key(
            order.domain, _selector(order, algorithm, taken, now), algorithm, bits=order.bits, now=now
        )
        made.append(key)
        directory.write((*keys, *made))
    return tuple(made)


def _selector(order: Order, algorithm: KeyType, taken: Collection[str], now: datetime) -> str:
    if order.selector is None:
        return next_selector(now, algorithm, taken)
    return order.selector if len(order.algorithms) == 1 else f"{order.selector}-{algorithm}"

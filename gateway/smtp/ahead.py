"""Recipients that a client has sent ahead, asked of downstream before their turn (RFC 2920 §3.1).

A client that pipelines sends MAIL, its RCPTs and DATA in one go. Asked one by one, each of them costs a way there and back
and four system calls. So the RCPTs that already lie there are said to downstream together with MAIL; each is still obeyed
and answered in its turn, and finds its answer waiting.
"""

from collections import deque
from typing import Final, NamedTuple

from gateway.mail.envelope import Recipient
from gateway.mail.reply import Reply

MAX_AHEAD: Final = 50


class Early(NamedTuple):
    """One RCPT that was said before its turn: its line, to know it by, and what it was understood as."""

    line: bytes
    recipient: Recipient


class Ahead:
    """What of one transaction was asked ahead, and what came back."""

    __slots__ = ("_asked", "_replies", "_stray")

    def __init__(self) -> None:
        self._asked: deque[Early] = deque()
        self._replies: deque[Reply] = deque()
        self._stray = 0

    def ask(self, early: Early) -> None:
        """It was said to downstream."""
        self._asked.append(early)

    def take(self, line: bytes) -> Recipient | None:
        """Its turn has come; None where it was not said ahead."""
        if self._asked and self._asked[0].line == line:
            return self._asked.popleft().recipient
        return None

    def reply(self) -> Reply | None:
        """The next answer that has come before its turn."""
        return self._replies.popleft() if self._replies else None

    def answered(self, reply: Reply) -> None:
        """Downstream answered a RCPT whose turn has not come, or never will."""
        if self._stray:
            self._stray -= 1
        else:
            self._replies.append(reply)

    @property
    def is_owed_stray(self) -> bool:
        """Whether the next answer to a RCPT is nobody's."""
        return self._stray > 0

    def drop(self) -> None:
        """The transaction is over before their turn: the answers that are still to come are nobody's."""
        self._stray += len(self._asked) - len(self._replies)
        self._asked.clear()
        self._replies.clear()

    def forget(self) -> None:
        """The connection is gone: no answers will come."""
        self._asked.clear()
        self._replies.clear()
        self._stray = 0

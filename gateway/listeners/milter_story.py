"""What a milter learns of one transaction, until it is over and can be told: the mail server keeps its own answers to itself."""

from datetime import UTC, datetime
from typing import Final

from gateway.mail.envelope import Envelope, Recipient
from gateway.mail.reply import Reply
from gateway.trace.tell import Story, Tracer
from gateway.verdict import Stage, Verdict

MAX_ASKED: Final = 100


class MilterStory:
    """One transaction, from MAIL on.

    Args:
        tracer: hears of it at its end, where there is something to tell: a message, or a refusal.
        envelope: as it is at MAIL.
    """

    __slots__ = ("_asked", "_began", "_envelope", "_more", "_reply", "_size", "_stage", "_tracer", "_verdict")

    def __init__(self, tracer: Tracer, envelope: Envelope) -> None:
        self._tracer = tracer
        self._envelope = envelope
        self._began = datetime.now(UTC)
        self._asked: list[tuple[Recipient, Reply | None]] = []
        self._more = 0
        self._stage: Stage | None = None
        self._reply: Reply | None = None
        self._verdict: Verdict | None = None
        self._size: int | None = None

    def passed(self, recipient: Recipient) -> None:
        """We have nothing against this recipient."""
        self._add(recipient, None)

    def refused(self, stage: Stage, envelope: Envelope, reply: Reply, verdict: Verdict | None) -> None:
        """We had a command refused."""
        for recipient in envelope.recipients:
            self._add(recipient, reply)
        self._stage, self._reply, self._verdict = stage, reply, verdict

    def message(self, size: int) -> None:
        """It has come to its end; without a word of ours the mail server answers it."""
        self._stage, self._reply, self._verdict, self._size = Stage.MESSAGE, None, None, size

    def judged(self, envelope: Envelope, verdict: Verdict) -> None:
        """The message was judged."""
        self._envelope, self._verdict, self._reply = envelope, verdict, verdict.reply

    def answered(self, reply: Reply) -> None:
        """We had it refused, whatever the judge said."""
        self._reply = reply

    def end(self) -> None:
        """It is over."""
        if self._stage is None:
            return
        self._tracer.tell(
            Story(
                envelope=self._envelope,
                stage=self._stage,
                received=self._began,
                reply=self._reply,
                verdict=self._verdict,
                asked=self._asked,
                more_asked=self._more,
                size=self._size,
            )
        )

    def _add(self, recipient: Recipient, reply: Reply | None) -> None:
        if len(self._asked) < MAX_ASKED:
            self._asked.append((recipient, reply))
        else:
            self._more += 1

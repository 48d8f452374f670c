"""A session's hold on the mail server: borrow a connection, be introduced, ask, give it back.

Connections are reused, and one that has lain idle may be dead without our knowing. The first command on a reused
connection may therefore be asked again on a new one, once; nothing that downstream may have acted on ever is.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from gateway.mail.envelope import Session
from gateway.mail.reply import Reply
from gateway.smtp import replies
from gateway.smtp.client import Answer, SmtpClient, Step
from gateway.smtp.effects import Destination, Effect, Lease, Release, Seek, Tell
from gateway.smtp.ehlo import Capabilities

_OUR_MISTAKE: Final = frozenset({500, 502, 503})
CLOSING: Final = 421
START_CONTENT: Final = 354
_FIRST_CONTINUE: Final = 300
CONTINUE_LOGIN: Final = 334
LOGGED_IN: Final = 235
_GO_ON: Final = {Step.DATA: {START_CONTENT}, Step.AUTH: {CONTINUE_LOGIN, LOGGED_IN}}


class Backend:
    """The connection that one session holds, if any; what it wants done is put on the session's effects."""

    __slots__ = ("_client", "_effects", "_is_asked", "_untried")

    def __init__(self, effects: list[Effect]) -> None:
        self._effects = effects
        self._client: SmtpClient | None = None
        self._is_asked = False
        self._untried = False

    @property
    def capabilities(self) -> Capabilities | None:
        """What the connection that is held offers."""
        return self._client.capabilities if self._client else None

    def prepare(self, session: Session) -> bool:
        """Have a connection that speaks for this client: True if it can be used now, else it is under way."""
        client = self._client
        if client and client.is_private:
            return client.is_ready
        if client and client.is_ready and not (client.speaks_for(session) or client.can_speak_for_others):
            self.release(reusable=True)  # it was introduced as somebody else, and cannot be again
        if self._client:
            self._client.introduce(session)
            self._flush()
            return self._client.is_ready
        if not self._is_asked:
            self._lease(fresh=False)
        return False

    def seek(self, destination: Destination, *, again: bool) -> None:
        """Have a connection to a mail server of this destination in place of the one that is held."""
        self.release(reusable=True)
        self._is_asked = True
        self._effects.append(Seek(destination, again))

    def leased(self, client: SmtpClient, session: Session, *, reused: bool) -> bool:
        """Take the connection that was asked for; True if it can be used now."""
        self._is_asked = False
        self._client = client
        self._untried = reused
        client.introduce(session)
        self._flush()
        return client.is_ready

    def receive(self, data: bytes) -> Iterator[Answer]:
        """Bytes from downstream, as answers; none of a connection that was given up meanwhile.

        Raises:
            DownstreamError: the connection can no longer be used.
        """
        client = self._client
        if not client:
            return
        for answer in client.receive(data):
            self._untried = False
            yield answer
            if self._client is not client:
                return
        self._flush()

    @property
    def is_private(self) -> bool:
        """Whether a connection is held that a log-in was begun on."""
        return self._client is not None and self._client.is_private

    @property
    def is_ready(self) -> bool:
        """Whether the introduction is over."""
        return self._client is not None and self._client.is_ready

    def say(self, step: Step, line: bytes) -> None:
        """Send a command."""
        if self._client:
            self._client.say(step, line)
            self._flush()

    def say_all(self, commands: Sequence[tuple[Step, bytes]]) -> None:
        """Send several in one go."""
        if self._client:
            for step, line in commands:
                self._client.say(step, line)
            self._flush()

    def begin_content(self) -> None:
        """The content follows."""
        if self._client:
            self._client.begin_content()

    def reset(self) -> None:
        """End the transaction."""
        if self._client and self._client.is_ready:
            self._client.reset()
            self._flush()

    def try_another(self) -> bool:
        """After a failure: whether a fresh connection was asked for, because nothing that counts had been said."""
        untried = self._untried
        self.release(reusable=False)
        if untried:
            self._lease(fresh=True)
        return untried

    def release(self, *, reusable: bool) -> None:
        """Give the connection back, or call off the wish for one."""
        if self._client or self._is_asked:
            usable = reusable and self._client is not None and self._client.is_reusable
            self._effects.append(Release(usable))
        self._client = None
        self._is_asked = self._untried = False

    def _lease(self, *, fresh: bool) -> None:
        self._is_asked = True
        self._effects.append(Lease(fresh))

    def _flush(self) -> None:
        if self._client and (output := self._client.take_output()):
            self._effects.append(Tell(output))


def makes_sense(step: Step, reply: Reply) -> bool:
    """Whether this reply can follow this step; after another one it is unknown what downstream waits for."""
    if not reply.is_positive:
        return True
    codes = _GO_ON.get(step)
    return reply.code < _FIRST_CONTINUE if codes is None else reply.code in codes


def passed_on(reply: Reply) -> Reply:
    """Downstream's reply to a command, as our client hears it: class and text kept, an enhanced code added (RFC 2034).

    421 becomes 451, because it is not our connection that closes. A complaint about the form or the order of our own
    commands is a temporary failure and never the sender's fault.
    """
    if reply.code == CLOSING:
        return Reply(451, reply.enhanced or "4.3.2", reply.lines)
    if reply.code in _OUR_MISTAKE:
        return replies.DOWNSTREAM_FAILED
    if reply.enhanced is None:
        return Reply(reply.code, f"{reply.code // 100}.0.0", reply.lines)
    return reply

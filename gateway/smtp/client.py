"""Our side of the conversation with the mail server behind us (RFC 5321 §3, RFC 2920), and whom we speak for (XCLIENT).

One `SmtpClient` is one connection. It may outlive the session that opened it: `introduce` makes it speak for the next.
"""

import re
from collections import deque
from collections.abc import Iterator
from enum import StrEnum
from functools import lru_cache
from typing import Final, NamedTuple

from gateway.mail.envelope import Session
from gateway.mail.errors import ParseError
from gateway.mail.reply import Reply, parse_reply
from gateway.smtp import replies
from gateway.smtp.ehlo import Capabilities, parse_capabilities
from gateway.smtp.errors import LocalProtocolError, RemoteProtocolError
from gateway.smtp.xclient import write_xclient

MAX_REPLY_LINE_BYTES: Final = 4096  # RFC 5321 §4.5.3.1.5 says 512; long texts are cut when they are passed on
MAX_REPLY_LINES: Final = 128

_SHORT_BYTES: Final = 40
"""Longer ones differ each time."""

_CODE: Final = re.compile(rb"[2-5][0-9]{2}(?:[ -]|\Z)")
_HELO_NAME: Final = re.compile(r"[!-~]{1,255}")
_SERVICE_READY: Final = 220
_SERVICE_CLOSING: Final = 421
_OK: Final = 250
_CONTINUE: Final = 334  # RFC 4954 §4


class Step(StrEnum):
    """What downstream is asked; the word is the metric label."""

    GREETING = "greeting"
    EHLO = "ehlo"
    XCLIENT = "xclient"
    AUTH = "auth"  # and each response within it
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    MESSAGE = "message"  # the content and its final dot
    RSET = "rset"


class DownstreamFailure(StrEnum):
    """Why downstream could not be used: a temporary failure to our client, a thing to look at for the operator."""

    CONNECT = "connect"  # no connection: is it running, is the address right?
    TIMEOUT = "timeout"  # it did not answer in time
    LOST = "lost"  # it closed the connection in the midst of a conversation
    CLOSING = "closing"  # it said 421: it is shutting down, or has enough of us
    REFUSED = "refused"  # it refused our greeting or XCLIENT: look at its access rules
    PROTOCOL = "protocol"  # it does not speak SMTP
    TLS = "tls"  # its TLS is not what must be: see the problem beside it


class DownstreamError(RemoteProtocolError):
    """Downstream broke the protocol, or refuses to talk to us at all."""

    def __init__(self, failure: DownstreamFailure, detail: str) -> None:
        super().__init__(replies.DOWNSTREAM_FAILED)
        self.failure = failure
        self.detail = detail


class Answer(NamedTuple):
    """Downstream's reply to one step."""

    step: Step
    reply: Reply


@lru_cache(maxsize=256)
def _parse_short(line: bytes) -> Reply | None:
    """Most replies are the same few dozen bytes every time. None: more of it follows, or it is none."""
    return parse_reply([line.removesuffix(b"\r")]) if _CODE.match(line) and line[3:4] != b"-" else None


class ReplyReader:
    """Bytes to replies, wherever they are cut, within limits."""

    __slots__ = ("_lines", "_rest")

    def __init__(self) -> None:
        self._rest = b""
        self._lines: list[bytes] = []

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left of what was fed."""
        return not self._rest and not self._lines

    def feed(self, data: bytes) -> list[Reply]:
        """The replies that are complete now.

        Raises:
            ParseError: something else, or more than any reply has.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_REPLY_LINE_BYTES:
            raise ParseError("an endless reply line")
        return [reply for line in lines if (reply := self._add(line))]

    def _add(self, line: bytes) -> Reply | None:
        if not self._lines and len(line) <= _SHORT_BYTES and (reply := _parse_short(line)):
            return reply
        line = line.removesuffix(b"\r")
        if len(line) > MAX_REPLY_LINE_BYTES or not _CODE.match(line):
            raise ParseError(f"not an SMTP reply: {line[:80]!r}")
        self._lines.append(line)
        if line[3:4] == b"-":
            if len(self._lines) >= MAX_REPLY_LINES:
                raise ParseError("an endless reply")
            return None
        lines, self._lines = self._lines, []
        return parse_reply(lines)


class SmtpClient:
    """One connection to downstream, from its greeting to its end.

    Args:
        hostname: what we call ourselves.
        xclient: whether to tell downstream who our client is, where it offers XCLIENT.

    Attributes:
        capabilities: what downstream offered last; None before its first EHLO reply.
        is_ready: introduced, and able to take a MAIL.
        is_private: a log-in was begun on it: it is one client's for ever, and never introduced as another.
    """

    __slots__ = (
        "_attributes",
        "_awaited",
        "_hostname",
        "_identity",
        "_is_mid_login",
        "_output",
        "_reader",
        "_session",
        "_xclient",
        "capabilities",
        "is_private",
        "is_ready",
    )

    def __init__(self, hostname: str, *, xclient: bool) -> None:
        self.capabilities: Capabilities | None = None
        self.is_ready = False
        self.is_private = False
        self._is_mid_login = False
        self._hostname = hostname
        self._xclient = xclient
        self._identity = b""
        self._attributes: frozenset[str] = frozenset()
        self._session: Session | None = None
        self._reader = ReplyReader()
        self._awaited: deque[Step] = deque((Step.GREETING,))
        self._output: list[bytes] = []

    def adopt(self, capabilities: Capabilities) -> None:
        """Somebody else has seen to greeting and EHLO: it can be used now."""
        self.capabilities = capabilities
        self._awaited.clear()
        self.is_ready = True

    def take_output(self) -> bytes:
        """What is to be sent."""
        if not self._output:
            return b""
        output = self._output[0] if len(self._output) == 1 else b"".join(self._output)
        self._output.clear()
        return output

    @property
    def is_reusable(self) -> bool:
        """Whether it waits for a command, and no answer is under way that another session could take for its own."""
        return self.is_ready and not self._is_mid_login and all(step is Step.RSET for step in self._awaited)

    def speaks_for(self, session: Session) -> bool:
        """Whether it would need no introduction."""
        return self.is_ready and self._identity == self._identify(session)

    @property
    def can_speak_for_others(self) -> bool:
        """Whether it can be introduced again."""
        offered = self.capabilities.xclient if self.capabilities else frozenset()
        return self.is_ready and (not self._identity or "ADDR" in offered)

    def introduce(self, session: Session) -> None:
        """Speak for this client from now on; `is_ready` tells when."""
        if self.is_private:
            return
        self._session = session
        if self.capabilities is None:  # its greeting is awaited
            return
        identity = self._identify(session)
        self.is_ready = identity == self._identity
        if not self.is_ready:
            self._say_xclient(identity)

    def say(self, step: Step, line: bytes) -> None:
        """Send a command; its reply will be an `Answer`.

        Raises:
            LocalProtocolError: the introduction is not over, or content is awaited.
        """
        if not self.is_ready:
            raise LocalProtocolError(f"{step} before the introduction")
        if step is _AUTH:
            self.is_private = True
        self._output.append(line)
        self._awaited.append(step)

    def begin_content(self) -> None:
        """The content follows; its reply will be an `Answer`. What it is made of goes past this object."""
        self._awaited.append(Step.MESSAGE)

    def reset(self) -> None:
        """End the transaction; the reply is of interest only if it is not 250."""
        self.say(Step.RSET, b"RSET\r\n")

    def receive(self, data: bytes) -> Iterator[Answer]:
        """Read what downstream sent; answers to the introduction and to RSET are dealt with here.

        Raises:
            DownstreamError: it can no longer be used; what it answered before that still counts.
        """
        try:
            received = self._reader.feed(data)
        except ParseError as error:
            raise DownstreamError(DownstreamFailure.PROTOCOL, str(error)) from None
        for reply in received:
            if not self._awaited:
                closing = reply.code == _SERVICE_CLOSING
                raise DownstreamError(
                    DownstreamFailure.CLOSING if closing else DownstreamFailure.PROTOCOL, f"unasked: {reply}"
                )
            step = self._awaited.popleft()
            if step in _OWN:
                self._own_step(step, reply)
            else:
                self._is_mid_login = step is _AUTH and reply.code == _CONTINUE
                yield Answer(step, reply)

    def _own_step(self, step: Step, reply: Reply) -> None:
        expected = _SERVICE_READY if step in {Step.GREETING, Step.XCLIENT} else _OK
        # XCLIENT_README: 220; servers that only note it say 250.
        if reply.code != expected and not (step is Step.XCLIENT and reply.code == _OK):
            raise DownstreamError(_failure(step, reply), f"{step}: {reply}")
        match step:
            case Step.GREETING:
                self._say_ehlo()
            case Step.XCLIENT:
                self._say_ehlo()
            case Step.EHLO:
                self._greeted(reply)
            case _:  # RSET
                pass

    def _greeted(self, reply: Reply) -> None:
        self.capabilities = parse_capabilities(reply)
        if not self._identity:
            # Postfix offers XCLIENT only as long as the client that it speaks with is one that may use it: after an
            # introduction it is gone, and what was said in it stays.
            self._attributes = self.capabilities.xclient
        if self._session is None:
            return
        identity = self._identify(self._session)
        if identity == self._identity:
            self.is_ready = True
        else:
            self._say_xclient(identity)

    def _identify(self, session: Session) -> bytes:
        """The XCLIENT line for this client; empty where none can be said."""
        if not self._xclient or "ADDR" not in self._attributes:
            return b""
        return write_xclient(session, self._attributes)

    def _say_xclient(self, identity: bytes) -> None:
        if self.capabilities is None or "ADDR" not in self.capabilities.xclient:
            raise DownstreamError(DownstreamFailure.REFUSED, "XCLIENT is no longer offered")
        self._identity = identity
        self._output.append(identity)
        # Alone: Postfix notes, and may refuse, what comes before its answer.
        self._awaited.append(Step.XCLIENT)

    def _say_ehlo(self) -> None:
        """After XCLIENT in the client's own name, for servers that take the name from here and not from there."""
        name = self._hostname
        if self._identity and self._session is not None:
            helo = self._session.helo or ""
            name = helo if _HELO_NAME.fullmatch(helo) else name
        self._output.append(f"EHLO {name}\r\n".encode("ascii"))
        self._awaited.append(Step.EHLO)


_AUTH: Final = Step.AUTH
_OWN: Final = frozenset({Step.GREETING, Step.EHLO, Step.XCLIENT, Step.RSET})


def _failure(step: Step, reply: Reply) -> DownstreamFailure:
    if reply.code == _SERVICE_CLOSING:
        return DownstreamFailure.CLOSING
    return DownstreamFailure.PROTOCOL if step is Step.RSET or reply.is_positive else DownstreamFailure.REFUSED

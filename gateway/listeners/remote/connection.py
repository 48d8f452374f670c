"""One connection to a remote mail server: first asked line by line until it can take mail, then lent like any other."""

import asyncio
import ssl
from ipaddress import ip_address
from typing import Final, cast

from gateway.listeners.downstream import DownstreamConnection, Owner, set_no_delay
from gateway.mail.envelope import IpAddress
from gateway.mail.errors import ParseError
from gateway.mail.reply import Reply
from gateway.smtp.client import DownstreamFailure, ReplyReader, SmtpClient
from gateway.smtp.ehlo import Capabilities

HANDSHAKE_TIMEOUT_S: Final = 30.0
START_TLS: Final = 220


class ConversationError(Exception):
    """The remote server cannot be talked to: what happened, and its own words where there are any."""

    def __init__(self, failure: DownstreamFailure, detail: str, reply: Reply | None = None) -> None:
        super().__init__(detail)
        self.failure = failure
        self.detail = detail
        self.reply = reply


class RemoteConnection(DownstreamConnection):
    """One connection: asked with `ask` and its like until `finish`, lent to a borrower after that."""

    def __init__(self, owner: Owner, hostname: str) -> None:
        super().__init__(owner, SmtpClient(hostname, xclient=False), None)
        self._reader: ReplyReader | None = ReplyReader()
        self._replies: list[Reply] = []
        self._waiting: asyncio.Future[Reply] | None = None
        self._fault: ConversationError | None = None
        self._is_upgrading = False

    # ── asyncio.Protocol ────────────────────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It stands; whoever opened it knows."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one without saying so
        set_no_delay(transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        """An answer, or a part of one."""
        if self._reader is None:
            super().data_received(data)
            return
        if self._fault:
            return
        try:
            replies = self._reader.feed(data)
        except ParseError as error:
            self._fail(ConversationError(DownstreamFailure.PROTOCOL, str(error)))
            return
        self._replies += replies
        if self._is_upgrading and replies:
            # Whatever else is here, or comes now in clear text, must not be read as if it had come through TLS.
            self._read_no_more()
        self._answer()

    def connection_lost(self, exc: Exception | None) -> None:
        """The other side closed it, or the network did."""
        super().connection_lost(exc)
        self._fail(ConversationError(DownstreamFailure.LOST, str(exc or "closed by the remote server")))

    @property
    def has_unasked(self) -> bool:
        """Whether there is more than the answers that were asked for: between STARTTLS and the handshake that is an attack."""
        is_garbled = self._fault is not None and self._fault.failure is DownstreamFailure.PROTOCOL
        return is_garbled or bool(self._replies) or (self._reader is not None and not self._reader.is_empty)

    # ── until it can take mail ──────────────────────────────────────────────────────────────────────────────────────

    async def ask(self, line: bytes, timeout_s: float) -> Reply:
        """Send a line, or nothing, and await the answer.

        Raises:
            ConversationError: there is none.
        """
        if line and self._replies:
            raise ConversationError(DownstreamFailure.PROTOCOL, f"unasked: {self._replies[0]}")
        self._waiting = asyncio.get_running_loop().create_future()
        if line:
            self.send(line)
        self._answer()
        try:
            async with asyncio.timeout(timeout_s):
                return await self._waiting
        except TimeoutError:
            step = line.split(b" ")[0].decode("ascii").strip() or "greeting"
            raise ConversationError(DownstreamFailure.TIMEOUT, f"no answer in time: {step}") from None
        finally:
            self._waiting = None

    async def ask_starttls(self, timeout_s: float) -> Reply:
        """STARTTLS; nothing more is read in clear text after its answer. See `has_unasked`."""
        self._is_upgrading = True
        reply = await self.ask(b"STARTTLS\r\n", timeout_s)
        if reply.code != START_TLS:
            self._is_upgrading = False
            if self._transport and not self._transport.is_closing():
                self._transport.resume_reading()
        return reply

    async def start_tls(self, context: ssl.SSLContext, server_name: str | None) -> ssl.SSLObject:
        """The handshake; what was known of the server before it is forgotten (RFC 3207 §4.2).

        Raises:
            OSError, ValueError: it failed.
        """
        self._reader, self._replies, self._is_upgrading = ReplyReader(), [], False
        if self._transport is None:
            raise ConnectionResetError("closed by the remote server")
        secured = await asyncio.get_running_loop().start_tls(
            self._transport,
            self,
            context,
            server_hostname=server_name,
            ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S,
        )
        if secured is None:
            raise ConnectionResetError("closed within the handshake")
        self._transport = secured
        return cast("ssl.SSLObject", secured.get_extra_info("ssl_object"))

    def finish(self, capabilities: Capabilities) -> None:
        """It can take mail: from now on it is lent.

        Raises:
            ConversationError: it is lost already, or says what nobody asked.
        """
        if self._fault:
            raise self._fault
        if self.has_unasked:
            raise ConversationError(DownstreamFailure.PROTOCOL, "an answer that nobody asked for")
        self._reader = None
        self.client.adopt(capabilities)

    def addresses(self) -> tuple[IpAddress | None, IpAddress | None]:
        """Ours and theirs."""
        if self._transport is None:
            return None, None
        return _address(self._transport.get_extra_info("sockname")), _address(
            self._transport.get_extra_info("peername")
        )

    def _answer(self) -> None:
        if self._waiting is None or self._waiting.done():
            return
        if self._replies:
            self._waiting.set_result(self._replies.pop(0))
        elif self._fault:
            self._waiting.set_exception(self._fault)

    def _fail(self, fault: ConversationError) -> None:
        self._fault = self._fault or fault
        self._answer()

    def _read_no_more(self) -> None:
        if self._transport and not self._transport.is_closing():
            self._transport.pause_reading()


def _address(name: object) -> IpAddress | None:
    try:
        return ip_address(str(name[0]).partition("%")[0])  # type: ignore[index]  # a socket's name
    except (TypeError, ValueError, IndexError):
        return None

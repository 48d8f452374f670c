"""One client's session with the proxy, without sockets: bytes and events in, effects out (RFC 5321).

Every question is asked of the mail server behind us while the client waits, and its own answer is passed on. Only the
content stays here until it is judged.

    client ──bytes──▶ received()             ┌─▶ Send, StartTls, Close        to the client
    mail server ────▶ downstream_received()  ├─▶ Lease, Tell, Deliver, Release   to the mail server
    judge ──────────▶ screened(), judged()   └─▶ Screen, Ask                  to the judge

Each input returns the effects that the driver is to carry out, in order. While one question is open, what the client
has sent ahead waits: commands are answered one at a time, in their order (RFC 2920 §3.2).
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Final

from gateway.mail.envelope import IpAddress, Session, Tls
from gateway.mail.errors import ParseError
from gateway.mail.reply import Reply
from gateway.mail.value import replace
from gateway.smtp import replies
from gateway.smtp.client import DownstreamFailure, SmtpClient
from gateway.smtp.command import (
    MAX_COMMAND_BYTES,
    Chunk,
    Command,
    Verb,
    parse_chunk,
    parse_command,
    parse_helo_name,
)
from gateway.smtp.data import DataDecoder
from gateway.smtp.dialog import Awaiting, Dialog, Host
from gateway.smtp.effects import Effect, SessionEnd, StartTls
from gateway.smtp.ehlo import Capabilities, Offer, write_ehlo_reply
from gateway.smtp.errors import RemoteProtocolError
from gateway.smtp.proxy_protocol import parse_proxy_header
from gateway.smtp.sasl import MAX_RESPONSE_BYTES, relayed_mechanisms
from gateway.smtp.settings import ProxySettings, is_within
from gateway.smtp.state import State, Turn, is_possible, refusal
from gateway.smtp.transfer import Transfer
from gateway.smtp.xclient import parse_xclient
from gateway.verdict import Verdict

# What every line meets has a name: looking into an enum takes ten times as long in Python 3.11.
_CLOSED: Final = State.CLOSED
_BALANCER: Final = State.BALANCER
_LOGGING_IN: Final = State.AUTH
_TAKING_CONTENT: Final = frozenset({State.DATA, State.BDAT})
_CLIENT: Final = Awaiting.CLIENT
_HANDSHAKE: Final = Awaiting.TLS
_OTHER: Final = Verb.OTHER

_IDLE: Final = {Verb.NOOP: replies.OK, Verb.HELP: replies.HELP, Verb.VRFY: replies.CANNOT_VERIFY}


class ProxySession:
    """One session.

    Args:
        settings: what holds for all sessions.
        host: the driver's side of this session.
        peer: the address that connects to us.
        identifier: unique and printable.
        make_transfer: what becomes of the mail.
    """

    def __init__(
        self,
        settings: ProxySettings,
        host: Host,
        *,
        peer: IpAddress,
        identifier: str,
        make_transfer: Callable[[Dialog], Transfer] = Transfer,
    ) -> None:
        self._settings = settings
        self._host = host
        self._peer = peer
        trusted = is_within(peer, settings.trusted_networks)
        session = Session(id=identifier, listener=settings.role, client_ip=peer, trusted=trusted)
        self._dialog = Dialog(settings, host, session)
        self._dialog.sent_ahead = self._sent_ahead
        self._transfer = make_transfer(self._dialog)
        self._login = self._transfer.login
        # Input that is not used up yet: `_input` from `_at` on.
        self._input = b""
        self._at = 0
        self._is_overlong = False
        self._decoder: DataDecoder | None = None
        self._chunk: Chunk | None = None
        self._chunk_left = 0
        self._chunk_refusal: Reply | None = None

    # ── what the driver may know ────────────────────────────────────────────────────────────────────────────────────

    @property
    def state(self) -> State:
        """Where the session stands."""
        return self._dialog.state

    @property
    def awaiting(self) -> Awaiting:
        """Whose turn it is."""
        return self._dialog.awaiting

    @property
    def session(self) -> Session:
        """Who it is with."""
        return self._dialog.session

    @property
    def progress(self) -> int:
        """Changes whenever the client or downstream has done something that counts; timers look at it."""
        return self._dialog.progress

    @property
    def buffered(self) -> int:
        """Bytes of the client's that wait for an open question; the driver stops reading when they are many."""
        return len(self._input) - self._at

    @property
    def is_receiving(self) -> bool:
        """Whether content is awaited, not commands: then the time for all of it is limited, and `progress` stands."""
        return self._chunk is not None or self._dialog.state in _TAKING_CONTENT

    # ── the client ──────────────────────────────────────────────────────────────────────────────────────────────────

    def connected(self, tls: Tls | None = None) -> list[Effect]:
        """The client is there: greet it, or await what its load balancer says. With `tls`, all that is behind us."""
        if tls:
            self._dialog.session = replace(self._dialog.session, tls=tls)
            self._greet()
        elif is_within(self._peer, self._settings.proxy_protocol_from):
            self._dialog.state = State.BALANCER
        else:
            self._greet()
        return self._proceed()

    def received(self, data: bytes) -> list[Effect]:
        """Bytes from the client."""
        # Between STARTTLS and the handshake nothing in the clear is taken.
        if self._dialog.state is not _CLOSED and self._dialog.awaiting is not _HANDSHAKE:
            self._input = self._input[self._at :] + data if self._at < len(self._input) else data
            self._at = 0
        return self._proceed()

    def tls_started(self, tls: Tls) -> list[Effect]:
        """The handshake is done."""
        if self._dialog.awaiting is Awaiting.TLS:
            self._dialog.session = replace(self._dialog.session, tls=tls)
            self._dialog.resume()
        return self._proceed()

    def client_lost(self) -> list[Effect]:
        """The client is gone. A message that is on its way downstream is still seen through."""
        if self._dialog.awaiting is Awaiting.DELIVERY:
            self._dialog.state = State.CLOSED
        else:
            self._dialog.end(SessionEnd.CLIENT_CLOSED)
        return self._proceed()

    # ── the judge ───────────────────────────────────────────────────────────────────────────────────────────────────

    def screened(self, verdict: Verdict | None) -> list[Effect]:
        """The answer to `Screen`."""
        self._transfer.screened(verdict)
        return self._proceed()

    def judged(self, verdict: Verdict) -> list[Effect]:
        """The answer to `Ask`."""
        self._transfer.judged(verdict)
        return self._proceed()

    # ── downstream ──────────────────────────────────────────────────────────────────────────────────────────────────

    def leased(self, client: SmtpClient, *, reused: bool) -> list[Effect]:
        """The connection that `Lease` asked for."""
        if self._transfer.leased(client, reused=reused):
            self._downstream_ready()
        return self._proceed()

    def unroutable(self, reply: Reply) -> list[Effect]:
        """There is no connection of the kind that `Seek` asked for."""
        self._transfer.unroutable(reply)
        return self._proceed()

    def downstream_received(self, data: bytes) -> list[Effect]:
        """Bytes from downstream."""
        if self._transfer.downstream_received(data):
            self._downstream_ready()
        return self._proceed()

    def downstream_failed(self, failure: DownstreamFailure, detail: str) -> list[Effect]:
        """The connection to downstream could not be had, or is lost."""
        self._transfer.downstream_failed(failure, detail)
        return self._proceed()

    def delivered(self) -> None:
        """All blocks of `Deliver` were handed to the connection."""
        self._transfer.delivered()

    def rest(self) -> list[Effect]:
        """Give the connection downstream to others while the client is idle, unless it is this client's for ever."""
        dialog = self._dialog
        if (
            dialog.awaiting is Awaiting.CLIENT
            and dialog.transaction is None
            and not dialog.backend.is_private
        ):
            dialog.backend.release(reusable=True)
        return self._proceed()

    def pause_over(self) -> list[Effect]:
        """The time that `Pause` asked for has passed."""
        if self._login:
            self._login.pause_over()
        return self._proceed()

    # ── the process ─────────────────────────────────────────────────────────────────────────────────────────────────

    def timed_out(self) -> list[Effect]:
        """Whoever's turn it is has taken too long."""
        dialog = self._dialog
        match dialog.awaiting:
            case Awaiting.CLIENT | Awaiting.TLS:
                # A load balancer expects no words before its own; within a handshake they would be noise.
                silent = dialog.state is State.BALANCER or dialog.awaiting is Awaiting.TLS
                dialog.end(SessionEnd.TIMEOUT, None if silent else replies.TIMEOUT)
            case Awaiting.VERDICT | Awaiting.SCREEN_MAIL | Awaiting.SCREEN_RCPT:
                dialog.abandon()
            case Awaiting.TURN | Awaiting.PENALTY:  # the pause ends it
                pass
            case _:
                return self.downstream_failed(
                    DownstreamFailure.TIMEOUT, f"no answer in time: {dialog.awaiting}"
                )
        return self._proceed()

    def crashed(self) -> list[Effect]:
        """A bug of ours: the one place where all of them end."""
        self._dialog.abandon()
        return self._dialog.take_effects()

    def drain(self) -> list[Effect]:
        """Begin nothing new; end now if nothing is under way."""
        self._dialog.is_draining = True
        if self._dialog.awaiting is Awaiting.CLIENT and self._dialog.transaction is None:
            self._dialog.end(SessionEnd.DRAINED, replies.CLOSING)
        return self._proceed()

    def let_go(self) -> None:
        """Nothing will happen any more: part from what holds this session and is held by it."""
        self._dialog.let_go()

    def abort(self) -> list[Effect]:
        """End now, whatever is under way: its sender will try again."""
        self._dialog.end(SessionEnd.DRAINED, replies.CLOSING)
        return self._proceed()

    # ── reading ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _proceed(self) -> list[Effect]:
        """Use up what the client has sent ahead, as far as possible."""
        dialog = self._dialog
        while self._at < len(self._input) and dialog.awaiting is _CLIENT:
            if dialog.state is _CLOSED:
                self._drop_input()
            elif self._chunk:
                self._take_chunk(self._chunk)
            elif self._decoder:
                self._take_data(self._decoder)
            elif dialog.state is _BALANCER:
                if not self._take_header():
                    break
            elif not self._take_line():
                break
        return dialog.take_effects()

    def _take_header(self) -> bool:
        try:
            header = parse_proxy_header(self._input[self._at :])
        except ParseError:
            self._dialog.end(SessionEnd.BAD_PROXY_HEADER)
            return True
        if header is None:
            return False
        self._at += header.size
        self._dialog.move(Turn.HEADER_READ)
        if header.client:
            self._peer = header.client
            self._identify(header.client)
        self._greet()
        return True

    def _take_line(self) -> bool:
        """Read one line, a command or a response within a log-in, and obey it; False where there is none yet."""
        at = self._at
        is_login = self._dialog.state is _LOGGING_IN or (
            self._login is not None and self._input[at : at + 5].upper() == b"AUTH "
        )
        most = len("AUTH SCRAM-SHA-512 ") + MAX_RESPONSE_BYTES + 2 if is_login else MAX_COMMAND_BYTES
        end = self._input.find(b"\r\n", at, len(self._input) if self._is_overlong else at + most)
        if end < 0:
            if self._is_overlong:
                self._at = len(self._input) - 1  # the last byte may be the CR of the CRLF
                return False
            self._is_overlong = len(self._input) - at >= most
            return self._is_overlong
        line = self._input[at:end]
        self._at = end + 2
        if is_login:  # it may hold a password
            self._input, self._at = self._input[self._at :], 0
        if not self.is_receiving:
            self._dialog.progress += 1
        is_overlong, self._is_overlong = self._is_overlong, False
        if self._login and self._dialog.state is _LOGGING_IN:
            self._login.respond(None if is_overlong else line)
        elif is_overlong:
            self._dialog.refuse(Verb.OTHER, RemoteProtocolError(replies.LINE_TOO_LONG))
        else:
            self._take_command(line)
        return True

    def _sent_ahead(self) -> Iterator[bytes]:
        """The whole lines that wait for their turn."""
        at = self._at
        while (end := self._input.find(b"\r\n", at, at + MAX_COMMAND_BYTES)) >= 0:
            yield self._input[at:end]
            at = end + 2

    def _take_command(self, line: bytes) -> None:
        verb = _OTHER
        try:
            if self._transfer.was_asked_ahead(line):
                return
            command = parse_command(line)
            verb = command.verb
            self._obey(command)
        except RemoteProtocolError as error:
            self._dialog.refuse(verb, error)

    def _obey(self, command: Command) -> None:
        verb, argument = command
        if verb is Verb.BDAT:  # content follows, whether it is wanted or not
            self._begin_chunk(parse_chunk(argument))
            return
        if verb is Verb.AUTH and not self._login:
            raise RemoteProtocolError(replies.NOT_OFFERED)
        if not is_possible(self._dialog.state, verb):
            raise RemoteProtocolError(self._refusal(verb))
        match verb:
            case Verb.AUTH if self._login:
                self._login.auth(argument)
            case Verb.MAIL if self._login and not self._is_logged_in():
                pass
            case Verb.MAIL:
                self._transfer.mail(argument)
            case Verb.RCPT:
                self._transfer.rcpt(argument)
            case Verb.DATA:
                self._data(argument)
            case _:
                self._obey_session_command(verb, argument)

    def _is_logged_in(self) -> bool:
        """Whether the client may send; False, and the end, where its log-in was lost with the connection downstream."""
        if self._dialog.session.login is None:
            raise RemoteProtocolError(replies.AUTH_REQUIRED)
        if self._dialog.backend.is_private:
            return True
        self._dialog.end(SessionEnd.DOWNSTREAM_DOWN, replies.DOWNSTREAM_DOWN)
        return False

    def _obey_session_command(self, verb: Verb, argument: str) -> None:
        match verb:
            case Verb.EHLO | Verb.HELO:
                self._hello(verb, argument)
            case Verb.QUIT:
                _require_none(argument)
                self._dialog.reply(verb, replies.BYE)
                self._dialog.end(SessionEnd.QUIT)
            case Verb.RSET:
                _require_none(argument)
                self._dialog.drop_transaction()
                self._dialog.move(verb)
                self._idle(verb, replies.OK)
            case Verb.STARTTLS:
                self._starttls(argument)
            case Verb.XCLIENT:
                self._xclient(argument)
            case _:
                self._idle(verb, _IDLE[verb])

    def _refusal(self, verb: Verb) -> Reply:
        transaction = self._dialog.transaction
        if (
            verb in {Verb.DATA, Verb.BDAT}
            and self._dialog.state is State.MAIL
            and transaction
            and transaction.has_refused
        ):
            return replies.NO_RECIPIENTS
        return refusal(self._dialog.state, verb)

    # ── session commands ────────────────────────────────────────────────────────────────────────────────────────────

    def _greet(self) -> None:
        refused = self._host.admit(self._peer)
        if refused:
            self._dialog.end(SessionEnd.REFUSED, refused)
        else:
            self._dialog.say(_greeting(self._settings.hostname))

    def _identify(self, address: IpAddress, name: str | None = None) -> None:
        trusted = is_within(address, self._settings.trusted_networks)
        self._dialog.session = replace(
            self._dialog.session, client_ip=address, client_name=name, trusted=trusted
        )

    def _idle(self, verb: Verb, reply: Reply) -> None:
        """Answer a command that achieves nothing."""
        if self._dialog.count_idle():
            self._dialog.reply(verb, reply)

    def _hello(self, verb: Verb, argument: str) -> None:
        dialog = self._dialog
        name = parse_helo_name(argument)
        dialog.drop_transaction()
        dialog.move(verb)
        dialog.session = replace(dialog.session, helo=name, esmtp=verb is Verb.EHLO)
        dialog.offered = Capabilities()
        if not dialog.count_idle():
            return
        if verb is Verb.HELO:
            dialog.reply(verb, Reply.of(250, None, self._settings.hostname))
            return
        downstream = self._transfer.capabilities()
        if downstream is not None and not self._lacks_auth(downstream):
            self._answer_ehlo(downstream)
            return
        dialog.wait(Awaiting.CAPABILITIES)
        if dialog.backend.prepare(dialog.session):
            self._downstream_ready()

    def _downstream_ready(self) -> None:
        match self._dialog.awaiting:
            case Awaiting.CAPABILITIES:
                self._answer_with(self._dialog.backend.capabilities or Capabilities())
            case Awaiting.AUTH if self._login:
                self._login.downstream_ready()
            case Awaiting.MAIL | Awaiting.ROUTE:
                self._transfer.downstream_ready()
            case _:  # nothing waits for it
                pass

    def _answer_with(self, downstream: Capabilities) -> None:
        """The connection that EHLO waits for can be used."""
        if self._lacks_auth(downstream):
            # Said as what it is: a mail program that is offered no log-in tells its user to change the settings. Nor is
            # the connection kept: the next one may offer more.
            detail = "it offers no AUTH that can be relayed: is SASL on for us, without TLS?"
            self._host.downstream_failed(DownstreamFailure.REFUSED, detail)
            self._dialog.backend.release(reusable=False)
            self._dialog.end(SessionEnd.DOWNSTREAM_DOWN, replies.DOWNSTREAM_DOWN)
            return
        self._answer_ehlo(downstream)
        self._dialog.resume()

    def _lacks_auth(self, downstream: Capabilities) -> bool:
        return self._may_log_in() and not relayed_mechanisms(downstream.auth)

    def _may_log_in(self) -> bool:
        return self._login is not None and self._dialog.session.tls is not None  # RFC 4954 §4, RFC 8314 §3.3

    def _answer_ehlo(self, downstream: Capabilities) -> None:
        dialog = self._dialog
        if downstream.auth:
            offered = relayed_mechanisms(downstream.auth) if self._may_log_in() else ()
            downstream = replace(downstream, auth=offered)
        if dialog.session.tls is None and not dialog.session.client_ip.is_loopback:
            # RFC 8689 §2: only within TLS. Deviation: also to a client on this host, whose words touch no wire.
            downstream = replace(downstream, requiretls=False)
        dialog.offered = downstream
        offer = Offer(
            capabilities=downstream,
            max_bytes=self._transfer.max_bytes(),
            starttls=dialog.session.tls is None and self._host.starttls_ready(),
            xclient=self._may_xclient(),
        )
        dialog.reply(Verb.EHLO, write_ehlo_reply(self._settings.hostname, offer))

    def _starttls(self, argument: str) -> None:
        _require_none(argument)
        if self._dialog.session.tls:
            raise RemoteProtocolError(replies.TLS_ACTIVE)
        if not self._host.starttls_ready():
            raise RemoteProtocolError(replies.NOT_OFFERED)
        self._restart(Verb.STARTTLS)
        self._dialog.reply(Verb.STARTTLS, replies.START_TLS)
        self._dialog.wait(Awaiting.TLS)
        # What was sent ahead in the clear may be an attacker's: it must not be obeyed inside TLS (CVE-2011-0411).
        self._drop_input()
        self._dialog.effects.append(StartTls())

    def _xclient(self, argument: str) -> None:
        if not self._may_xclient():
            raise RemoteProtocolError(replies.XCLIENT_DENIED)
        try:
            client = parse_xclient(argument)
        except ParseError:
            raise RemoteProtocolError(replies.BAD_PARAMETER) from None
        self._restart(Verb.XCLIENT)
        self._identify(client.address, client.name)
        self._dialog.reply(Verb.XCLIENT, _greeting(self._settings.hostname))

    def _may_xclient(self) -> bool:
        return is_within(self._peer, self._settings.xclient_from)

    def _restart(self, verb: Verb) -> None:
        """Back to the greeting (RFC 3207 §4.2): what was said before does not count."""
        dialog = self._dialog
        dialog.drop_transaction()
        dialog.move(verb)
        dialog.session = replace(dialog.session, helo=None, esmtp=False)
        dialog.offered = Capabilities()

    # ── content ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _data(self, argument: str) -> None:
        _require_none(argument)
        self._decoder = DataDecoder(self._transfer.open_content(Verb.DATA))
        self._dialog.move(Verb.DATA)
        self._dialog.reply(Verb.DATA, replies.START_DATA)

    def _take_data(self, decoder: DataDecoder) -> None:
        data = self._input[self._at :] if self._at else self._input
        self._drop_input()
        decoder.feed(data)
        if decoder.rest is not None:
            self._input = decoder.rest
            self._decoder = None
            if self._dialog.transaction and self._dialog.transaction.content:
                self._dialog.transaction.content.sent_with_dots(found=decoder.has_dots)
            self._transfer.end_content(Turn.END_OF_DATA)

    def _begin_chunk(self, chunk: Chunk) -> None:
        self._chunk_refusal = None
        if not is_possible(self._dialog.state, Verb.BDAT):
            self._chunk_refusal = self._refusal(Verb.BDAT)
        else:
            self._open_chunks()
        self._chunk, self._chunk_left = chunk, chunk.size
        if not chunk.size:
            self._take_chunk(chunk)

    def _open_chunks(self) -> None:
        try:
            if self._dialog.state is not State.BDAT:
                self._transfer.open_content(Verb.BDAT)
            self._dialog.move(Verb.BDAT)
        except RemoteProtocolError as error:
            self._chunk_refusal = error.reply

    def _take_chunk(self, chunk: Chunk) -> None:
        block = self._input[self._at : self._at + self._chunk_left]
        self._at += len(block)
        self._chunk_left -= len(block)
        content = self._dialog.transaction.content if self._dialog.transaction else None
        if content and not self._chunk_refusal:
            content.push(block)
        if self._chunk_left:
            return
        self._chunk = None
        if self._chunk_refusal or not content:
            self._dialog.refuse(Verb.BDAT, RemoteProtocolError(self._chunk_refusal or replies.MAIL_FIRST))
        elif chunk.last:
            content.finish()
            self._transfer.end_content(Turn.LAST_CHUNK)
        elif content.refusal:
            self._transfer.end_message(content.refusal)
        else:
            self._dialog.reply(Verb.BDAT, Reply.of(250, "2.0.0", f"{chunk.size} octets received"))

    def _drop_input(self) -> None:
        self._input, self._at = b"", 0


@lru_cache(maxsize=4)
def _greeting(hostname: str) -> Reply:
    return Reply.of(220, None, f"{hostname} ESMTP")


def _require_none(argument: str) -> None:
    if argument:
        raise RemoteProtocolError(replies.NO_ARGUMENT)

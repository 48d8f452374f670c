"""What a mail server tells a milter, step by step, made into an Envelope and a Message.

The mail server has the client, we have its word: macros (`i`, `{auth_authen}`, `{tls_version}`, …) and the protocol's steps. The
message must come out byte for byte as the mail server will store it, or every DKIM signature on it breaks: header values
keep the blanks behind the colon (SMFIP_HDR_LEADSPC), and the LF within a folded value becomes the CRLF that it was.

Two things no milter can see. Postfix takes the blanks *before* a field's colon away, and delivers it so. And a message that
ends with its header section looks as if it had an empty line behind it; its body is empty either way.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address
from typing import Final

from gateway.mail.address import Mailbox, parse_forward_path, parse_path
from gateway.mail.envelope import Envelope, IpAddress, Listener, Recipient, Session, Tls, unmapped
from gateway.mail.errors import ParseError
from gateway.mail.message import Message
from gateway.mail.value import replace
from gateway.milter.spool import Spool
from gateway.milter.wire import MacroStage

MacroReader = Callable[[str], str | None]
"""Asks the mail server's macros by name: `i`, `{client_name}`; None where it did not send one."""

MACROS: Final = {
    MacroStage.CONNECT: "{client_addr}",  # a list may not be empty
    MacroStage.HELO: "{tls_version}",
    MacroStage.MAIL: "i {mail_addr} {auth_authen} {tls_version} {cipher}",
    MacroStage.RCPT: "{rcpt_addr}",
    MacroStage.END_OF_BODY: "i",
}
"""What the mail server is asked to send, and when: only what is used."""

NO_ADDRESS: Final = IPv4Address("0.0.0.0")  # noqa: S104 - it names nobody; nothing is bound to it
"""Stands for a client whose address the mail server does not know.

Never trusted, whatever `trusted_networks` says: with `XCLIENT ADDR=[UNAVAILABLE]` a stranger gets here (not through libmilter, which
does not take Postfix' form of it: the client gets a 4xx). SPF cannot pass for it. Mail from Postfix's own
`sendmail` command is another case: Postfix gives that the address 127.0.0.1.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectOptions:
    """What the operator sets about taking messages in.

    Attributes:
        max_message_bytes: larger messages are not kept.
        spool_threshold_bytes: larger messages go to an unlinked temporary file.
        trusted_networks: own hosts.
    """

    max_message_bytes: int = 52_428_800
    spool_threshold_bytes: int = 1_048_576
    trusted_networks: tuple[IPv4Network | IPv6Network, ...] = ()


class Conversation:
    """One connection of the mail server to us: one SMTP session of its client, any number of messages.

    Args:
        options: limits and networks.
        new_id: makes a fresh printable identifier, for the session and for each transaction.
    """

    def __init__(self, options: CollectOptions, new_id: Callable[[], str]) -> None:
        self._options = options
        self._new_id = new_id
        self._session_id = new_id()
        self._client_ip: IpAddress = NO_ADDRESS
        self._client_name: str | None = None
        self._helo: str | None = None
        self._envelope: Envelope | None = None
        self._recipients: list[Recipient] = []
        self._spool: Spool | None = None
        self._in_header = True

    def connect(self, name: str, address: str | None) -> None:
        """Take who the client is; Postfix says it again after XCLIENT.

        Args:
            name: its verified name; `unknown` (Postfix) or `[192.0.2.1]` (Sendmail) where there is none.
            address: None where the mail server knows none.
        """
        self._client_ip = _parse_ip(address)
        self._client_name = None if name.startswith("[") or name in {"", "unknown"} else name
        self._helo = None

    def helo(self, name: str | None) -> None:
        """Take the name that the client gives itself."""
        self._helo = name

    def mail(self, arguments: Sequence[bytes], macro: MacroReader) -> Envelope:
        """Begin a transaction; whatever was left of the last one is gone.

        Args:
            arguments: the path and then each ESMTP parameter, as `MAIL FROM` had them.
            macro: as of this moment.

        Raises:
            ParseError: the mail server accepted a reverse path that cannot be read in exactly one way.
        """
        self.abort()
        params = _parse_params(arguments[1:])
        smtputf8 = "SMTPUTF8" in params
        # Of its own bounces Postfix says an empty word where a client says `<>` (internal_mail_filter_classes).
        path = arguments[0] or b"<>"
        mail_from = _parse_or_canonical(parse_path, path, macro("{mail_addr}"), smtputf8=smtputf8)
        self._envelope = Envelope(
            id=self._new_id(),
            session=self._session(macro),
            mail_from=mail_from,
            queue_id=macro("i"),
            smtputf8=smtputf8,
            params=params,
        )
        return self._envelope

    def recipient(self, arguments: Sequence[bytes], macro: MacroReader) -> Envelope:
        """Read one recipient: the envelope with it alone, for the question at RCPT; `add` keeps it.

        Raises:
            ParseError: the mail server accepted a forward path that cannot be read in exactly one way.
        """
        envelope = self._begun()
        mailbox = _parse_or_canonical(
            parse_forward_path,
            arguments[0],
            macro("{rcpt_addr}"),
            smtputf8=envelope.smtputf8,
        )
        return replace(
            envelope, recipients=(Recipient(mailbox=mailbox, params=_parse_params(arguments[1:])),)
        )

    def add(self, envelope: Envelope) -> None:
        """Keep the recipient that `recipient` gave."""
        self._recipients.extend(envelope.recipients)

    def header(self, name: bytes, value: bytes) -> None:
        """Take one header field; `value` is all behind the colon, its blanks included, LF within a folded one."""
        self._content().write(b"%b:%b\r\n" % (name, value.replace(b"\n", b"\r\n")))

    def body(self, chunk: bytes) -> None:
        """Take a part of the body, as it came over the wire."""
        spool = self._content()
        if self._in_header:
            self._end_header(spool)
        spool.write(chunk)

    def end(self, macro: MacroReader) -> tuple[Envelope, Message] | None:
        """The whole transaction; None where the message was larger than it may be."""
        envelope, spool = self._begun(), self._content()
        if self._in_header:
            self._end_header(spool)
        recipients = tuple(self._recipients)
        self._envelope = self._spool = None
        if spool.overflowed:
            return None
        # Postfix makes its queue id only once a recipient is good: at MAIL there was none yet.
        queue_id = envelope.queue_id or macro("i")
        return replace(envelope, recipients=recipients, queue_id=queue_id), Message(spool.content())

    def abort(self) -> None:
        """Forget the transaction, not the client."""
        if self._spool is not None:
            self._spool.discard()
        self._envelope = self._spool = None
        self._recipients = []
        self._in_header = True

    @property
    def size(self) -> int:
        """Bytes of the message received so far."""
        return self._spool.size if self._spool else 0

    def _session(self, macro: MacroReader) -> Session:
        version = macro("{tls_version}")
        client_ip = self._client_ip
        return Session(
            id=self._session_id,
            listener=Listener.MILTER,
            client_ip=client_ip,
            client_name=self._client_name,
            helo=self._helo,
            tls=Tls(version=version, cipher=macro("{cipher}") or "") if version else None,
            login=macro("{auth_authen}") or None,
            trusted=client_ip != NO_ADDRESS
            and any(client_ip in net for net in self._options.trusted_networks),
        )

    def _content(self) -> Spool:
        if self._spool is None:
            options = self._options
            self._spool = Spool(
                max_bytes=options.max_message_bytes, threshold_bytes=options.spool_threshold_bytes
            )
            self._in_header = True
        return self._spool

    def _end_header(self, spool: Spool) -> None:
        self._in_header = False
        spool.write(b"\r\n")

    def _begun(self) -> Envelope:
        if self._envelope is None:
            raise ParseError("the mail server spoke of a message before it gave a sender")
        return self._envelope


def _parse_ip(address: str | None) -> IpAddress:
    try:
        return unmapped(ip_address(address or ""))
    except ValueError:
        return NO_ADDRESS


def _parse_params(arguments: Sequence[bytes]) -> Mapping[str, str | None]:
    params: dict[str, str | None] = {}
    for argument in arguments:
        keyword, equals, value = argument.decode("utf-8", "replace").partition("=")
        params[keyword.upper()] = value if equals else None
    return params


def _parse_or_canonical(
    parse: "Callable[..., Mailbox | None]",
    path: bytes,
    canonical: str | None,
    *,
    smtputf8: bool,
) -> Mailbox | None:
    """Read the path; where that fails, what the mail server made of it (`<root>` is `root@its.own.domain` there)."""
    try:
        return parse(path, smtputf8=smtputf8)
    except ParseError:
        if not canonical:
            raise
        return parse(f"<{canonical}>", smtputf8=smtputf8)

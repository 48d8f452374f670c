"""What a session asks of the driver that holds its sockets; named tuples, because a message takes a dozen."""

from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple

from gateway.mail.envelope import Envelope
from gateway.mail.message import Message
from gateway.verdict import Stage


class SessionEnd(StrEnum):
    """Why a session ended; the word is the log field and the metric label."""

    QUIT = "quit"
    CLIENT_CLOSED = "client-closed"  # without QUIT
    TIMEOUT = "timeout"  # the client was silent, or too slow, for too long
    REFUSED = "refused"  # too many sessions
    TOO_MANY_ERRORS = "too-many-errors"
    TOO_MANY_GUESSES = "too-many-guesses"  # of its address, or at its login
    NOT_SMTP = "not-smtp"  # HTTP, or a content length that cannot be read
    BAD_PROXY_HEADER = "bad-proxy-header"  # is the load balancer set to send the PROXY protocol?
    TLS_FAILED = "tls-failed"
    DOWNSTREAM_DOWN = "downstream-down"
    DRAINED = "drained"  # we are stopping
    INTERNAL = "internal"  # a bug; its traceback is in the log


class Send(NamedTuple):
    """To the client."""

    data: bytes


class Lease(NamedTuple):
    """Give me a connection to downstream (`ProxySession.leased` or `downstream_failed`)."""

    fresh: bool
    """A new one: one that was used before has just failed."""


class Destination(NamedTuple):
    """Where the relay takes one message: the mail servers of one domain."""

    message: str
    """The transaction's id, for the log."""
    domain: str
    """A-labels in lower case, or an address literal with its brackets."""
    requiretls: bool
    """Only over TLS, to a server that proves who it is and hands the demand on (RFC 8689)."""


class Seek(NamedTuple):
    """Give me a connection to a mail server of this domain (`ProxySession.leased`, or `unroutable`)."""

    destination: Destination
    again: bool
    """The next one: the last could not be used, or did not take the message now."""


class Tell(NamedTuple):
    """To downstream."""

    data: bytes


class Deliver(NamedTuple):
    """The message to downstream, block by block as it takes them; then `ProxySession.delivered`."""

    blocks: Iterator[bytes]


class Release(NamedTuple):
    """The connection to downstream is no longer needed."""

    reusable: bool


class Screen(NamedTuple):
    """Ask the judge before DATA; then `ProxySession.screened`."""

    stage: Stage
    envelope: Envelope


class Ask(NamedTuple):
    """Ask the judge about a whole message; then `ProxySession.judged`."""

    envelope: Envelope
    message: Message


class StartTls(NamedTuple):
    """Begin the TLS handshake behind what was sent; then `ProxySession.tls_started`."""


class Pause(NamedTuple):
    """Let so many seconds pass; then `ProxySession.pause_over`."""

    seconds: float


class Close(NamedTuple):
    """Close the client's connection once everything is sent."""

    end: SessionEnd


Effect = Send | Lease | Seek | Tell | Deliver | Release | Screen | Ask | StartTls | Pause | Close

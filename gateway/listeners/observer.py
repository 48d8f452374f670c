"""Whom a listener tells what happens, for metrics: counts and durations, never a peer's words."""

from typing import Protocol

from gateway.mail.envelope import Listener, Tls
from gateway.smtp.client import DownstreamFailure, Step
from gateway.smtp.command import Verb
from gateway.smtp.dialog import LoginOutcome
from gateway.smtp.effects import SessionEnd
from gateway.verdict import Answered


class SmtpObserver(Protocol):
    """What happens on an SMTP listener. None of these may block or raise."""

    def session_opened(self, listener: Listener) -> None:
        """A client connected."""
        ...

    def session_closed(self, listener: Listener, end: SessionEnd) -> None:
        """Its session is over."""
        ...

    def tls_started(self, listener: Listener, tls: Tls) -> None:
        """Its TLS handshake is done."""
        ...

    def command(self, listener: Listener, verb: Verb, code: int) -> None:
        """A client's command was answered with this code."""
        ...

    def login(self, listener: Listener, mechanism: str, outcome: LoginOutcome) -> None:
        """A log-in was answered; the mechanism is one of those that are relayed, or `other`."""
        ...

    def downstream_reply(self, command: Step, code: int, seconds: float) -> None:
        """Downstream answered with this code, after so long."""
        ...

    def downstream_failed(self, failure: DownstreamFailure) -> None:
        """Downstream could not be used."""
        ...

    def message(self, listener: Listener, answered: Answered) -> None:
        """A message was answered."""
        ...


class NoObserver:
    """For those who do not count."""

    def session_opened(self, listener: Listener) -> None:
        """Not counted."""

    def session_closed(self, listener: Listener, end: SessionEnd) -> None:
        """Not counted."""

    def tls_started(self, listener: Listener, tls: Tls) -> None:
        """Not counted."""

    def command(self, listener: Listener, verb: Verb, code: int) -> None:
        """Not counted."""

    def login(self, listener: Listener, mechanism: str, outcome: LoginOutcome) -> None:
        """Not counted."""

    def downstream_reply(self, command: Step, code: int, seconds: float) -> None:
        """Not counted."""

    def downstream_failed(self, failure: DownstreamFailure) -> None:
        """Not counted."""

    def message(self, listener: Listener, answered: Answered) -> None:
        """Not counted."""

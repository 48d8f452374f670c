"""Submission (RFC 6409): the door of our own users' mail programs, with STARTTLS or with TLS at once (RFC 8314)."""

import socket
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from gateway.listeners.downstream import DownstreamPool
from gateway.listeners.observer import SmtpObserver
from gateway.listeners.smtp import Address, SmtpConfig, SmtpServer
from gateway.listeners.tls_port import TlsPort
from gateway.mail.envelope import IpAddress, Listener
from gateway.smtp.client import SmtpClient
from gateway.smtp.dialog import Dialog, Host
from gateway.smtp.guesses import Guesses
from gateway.smtp.proxy import ProxySession
from gateway.smtp.relay import LocalDomains
from gateway.smtp.settings import Networks, ProxySettings
from gateway.smtp.transfer import Transfer
from gateway.verdict import Judge, Stage


class SubmissionConfig(SmtpConfig, Protocol):
    """The `[submission]` section, as far as it is used here; `gateway.ops.config` says what each value means."""

    @property
    def listen_tls(self) -> Sequence[tuple[str, int]]: ...  # noqa: D102 - the config documents it; likewise below
    @property
    def downstream(self) -> tuple[str, int]: ...  # noqa: D102
    @property
    def xclient(self) -> bool: ...  # noqa: D102
    @property
    def downstream_idle_connections(self) -> int: ...  # noqa: D102
    @property
    def proxy_protocol_from(self) -> Networks: ...  # noqa: D102
    @property
    def hide_client(self) -> bool: ...  # noqa: D102
    @property
    def max_auth_failures(self) -> int: ...  # noqa: D102
    @property
    def auth_window_s(self) -> float: ...  # noqa: D102
    @property
    def auth_delay_s(self) -> float: ...  # noqa: D102


class SubmissionListener(SmtpServer):
    """The submission door in front of one mail server, which knows the passwords.

    Args:
        settings: the config's `[submission]`.
        hostname: our name in the greeting and in Received.
        judge, observer, asks: see `SmtpServer`.
    """

    role = Listener.SUBMISSION

    def __init__(
        self,
        settings: SubmissionConfig,
        *,
        hostname: str,
        judge: Judge,
        observer: SmtpObserver,
        asks: Callable[[Stage], bool] = lambda _stage: True,
    ) -> None:
        super().__init__(
            settings,
            proxy=ProxySettings(
                role=self.role,
                hostname=hostname,
                local_domains=LocalDomains(()),
                max_message_bytes=settings.max_message_bytes,
                max_recipients=settings.max_recipients,
                max_errors=settings.max_errors,
                normalize=settings.bare_line_end == "normalize",
                proxy_protocol_from=settings.proxy_protocol_from,
                hide_client=settings.hide_client,
            ),
            pool=DownstreamPool(
                *settings.downstream,
                # What XCLIENT tells Postfix, Postfix writes into its own Received field.
                make_client=lambda: SmtpClient(
                    hostname, xclient=settings.xclient and not settings.hide_client
                ),
                max_idle=settings.downstream_idle_connections,
            ),
            judge=judge,
            observer=observer,
            asks=asks,
        )
        self._listen_tls: Final = settings.listen_tls
        self._guesses: Final = Guesses(
            max_failures=settings.max_auth_failures,
            window_s=settings.auth_window_s,
            delay_s=settings.auth_delay_s,
        )
        self._tls_ports: list[TlsPort] = []

    def make_core(self, host: Host, *, peer: IpAddress, identifier: str) -> ProxySession:
        """The protocol of one session."""
        return ProxySession(
            self.proxy, host, peer=peer, identifier=identifier, make_transfer=self._make_transfer
        )

    def _make_transfer(self, dialog: Dialog) -> Transfer:
        return Transfer(dialog, self._guesses)

    async def start(self, *, reuse_port: bool = False) -> None:
        """Bind the ports and serve; see `SmtpServer.start`.

        Raises:
            OSError: a port cannot be bound, or the certificate cannot be read.
        """
        await super().start(reuse_port=reuse_port)
        for host, port in self._listen_tls:
            self._tls_ports += await TlsPort.open(host, port, self._accepted, reuse_port=reuse_port)

    def _accepted(self, connection: socket.socket) -> None:
        self.make_driver().secure(connection)

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where it is bound: first those with STARTTLS."""
        return (*super().addresses, *(Address(*port.address) for port in self._tls_ports))

    def _stop_listening(self) -> None:
        super()._stop_listening()
        for port in self._tls_ports:
            port.close()

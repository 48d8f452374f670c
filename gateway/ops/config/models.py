"""The config file's shape: every section and key, its default, and one line for the operator.

The descriptions are not comments: `gateway config example` prints them, so the example can never fall behind.
"""

from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from gateway.ops.config.values import (
    Bytes,
    Connect,
    Count,
    DnsServers,
    FilePath,
    Flag,
    HostName,
    HostPort,
    Listen,
    Listens,
    LocalDomains,
    Networks,
    Rules,
    Seconds,
    SocketMode,
    UnixSocket,
    Workers,
    wrong,
)

MIB: Final = 1_048_576


class Section(BaseModel):
    """A table of the file. Values of this kind are never changed: a reload makes new ones."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, hide_input_in_errors=True)


class DnsSettings(Section):
    """Where names are looked up, and how much of that one message may cause."""

    servers: DnsServers = Field(
        default=(),
        description="Resolvers, asked in this order; empty: those of /etc/resolv.conf. Best: a validating one on this host.",
        examples=[["127.0.0.1:53"]],
    )
    timeout_s: Seconds = Field(
        default=5.0, description="How long one look-up may take, all servers and retries together."
    )
    zone_file: FilePath | None = Field(
        default=None,
        description="Answer from this zone file (master file format) and never ask the network: for tests and demos.",
        examples=["zone.txt"],
    )
    max_queries_per_message: Count = Field(
        default=60,
        description="A message that needs more look-ups is temperror: it bounds what hostile records can cost.",
    )
    message_timeout_s: Seconds = Field(
        default=20.0, description="The same bound in time, for all of one message's look-ups."
    )
    cache_entries: Count = Field(default=50_000, description="Answers kept in memory; each takes about 1 KB.")


class InboundSettings(Section):
    """The SMTP proxy in front of the mail server."""

    listen: Listens = Field(
        description="Where the world connects.",
        examples=[["0.0.0.0:25", "[::]:25"]],
    )
    downstream: Connect = Field(
        description="The mail server that takes what passes.",
        examples=["127.0.0.1:10025"],
    )
    xclient: Flag = Field(
        default=True,
        description="Tell downstream the real client by XCLIENT, where it offers that (Postfix: smtpd_authorized_xclient_hosts).",
    )
    tls_certificate: FilePath | None = Field(
        default=None,
        description="Certificate chain (PEM) for STARTTLS; without it STARTTLS is not offered. Read again on SIGHUP.",
        examples=["/etc/gateway/tls/fullchain.pem"],
    )
    tls_key: FilePath | None = Field(
        default=None,
        description="Its private key (PEM); readable by the gateway only.",
        examples=["/etc/gateway/tls/privkey.pem"],
    )
    max_message_bytes: Bytes = Field(
        default=50 * MIB, description="Larger messages are refused; announced as SIZE."
    )
    max_recipients: Count = Field(
        default=100, description="Recipients of one message; RFC 5321 asks for at least 100."
    )
    max_errors: Count = Field(
        default=20, description="Faulty commands after which a session is ended with 421."
    )
    max_sessions: Count = Field(
        default=1_000, description="Open sessions; further clients get 421. Each may need a downstream one."
    )
    max_sessions_per_client: Count = Field(default=50, description="Open sessions of one client address.")
    max_bytes_in_flight: Bytes = Field(
        default=256 * MIB,
        description="Message bytes held at once over all sessions; beyond it clients get 452 and try again.",
    )
    spool_threshold_bytes: Bytes = Field(
        default=MIB,
        description="Larger messages are kept in an unlinked temporary file instead of memory until judged.",
    )
    command_timeout_s: Seconds = Field(
        default=300.0, description="How long a client may be silent between commands (RFC 5321: 300)."
    )
    data_timeout_s: Seconds = Field(
        default=600.0, description="How long a client may take from DATA to the final dot."
    )
    downstream_timeout_s: Seconds = Field(
        default=60.0, description="How long downstream may take to connect or to answer a command."
    )
    downstream_data_timeout_s: Seconds = Field(
        default=600.0, description="How long downstream may take to answer the final dot."
    )
    downstream_idle_connections: int = Field(
        default=10,
        strict=True,
        ge=0,
        le=1_000,
        description="Connections to downstream kept open for the next client; 0: none.",
    )
    proxy_protocol_from: Networks = Field(
        default=(),
        description="Load balancers that send PROXY protocol (v1 or v2). From these it is required, from others never taken.",
        examples=[["192.0.2.10"]],
    )
    xclient_from: Networks = Field(
        default=(),
        description="Mail servers that may tell us the real client by XCLIENT.",
        examples=[["192.0.2.11"]],
    )
    trusted_networks: Networks = Field(
        default=(),
        description="Own hosts: not judged by SPF and DMARC, and may relay. Loopback is not trusted by itself.",
        examples=[["192.0.2.0/28"]],
    )
    bare_line_end: Literal["reject", "normalize"] = Field(
        default="reject",
        description='A lone CR or LF in a message (SMTP smuggling): "reject" it, or "normalize" to CRLF (breaks signatures).',
    )

    @field_validator("tls_key")
    @classmethod
    def _both_or_none(cls, key: Path | None, info: ValidationInfo) -> Path | None:
        if "tls_certificate" in info.data and (info.data["tls_certificate"] is None) != (key is None):
            raise wrong("tls_certificate and tls_key go together", "give both, or neither for no STARTTLS")
        return key

    @field_validator("downstream")
    @classmethod
    def _no_loop(cls, downstream: HostPort, info: ValidationInfo) -> HostPort:
        if downstream in info.data.get("listen", ()):
            raise wrong("is the gateway itself: every message would loop", "give the mail server's own port")
        return downstream

    @field_validator("max_bytes_in_flight")
    @classmethod
    def _holds_one_message(cls, budget: int, info: ValidationInfo) -> int:
        largest = info.data.get("max_message_bytes", 0)
        if budget < largest:
            raise wrong(
                f"is less than one message may have (max_message_bytes = {largest})", "make it larger"
            )
        return budget


class MilterSettings(Section):
    """The same checks for a mail server that asks over the milter protocol."""

    listen: UnixSocket = Field(
        description="The UNIX socket that the mail server connects to (Postfix: smtpd_milters).",
        examples=["unix:/run/gateway/milter.sock"],
    )
    socket_mode: SocketMode = Field(
        default=0o660, description="Who may connect, as file permissions: 0o660 lets the socket's group in."
    )
    max_message_bytes: Bytes = Field(default=50 * MIB, description="Larger messages are refused.")
    spool_threshold_bytes: Bytes = Field(
        default=MIB, description="Larger messages are kept in an unlinked temporary file until judged."
    )
    timeout_s: Seconds = Field(
        default=7210.0, description="How long the mail server may be silent; must be over its own timeouts."
    )
    judge_timeout_s: Seconds = Field(
        default=60.0, description="How long one judgement may take before the mail server hears 4xx."
    )
    max_sessions: Count = Field(
        default=1_000, description="Open sessions; one per smtpd process of the mail server."
    )
    trusted_networks: Networks = Field(
        default=(),
        description="Own hosts: not judged by SPF and DMARC. Loopback is not trusted by itself.",
        examples=[["192.0.2.0/28"]],
    )
    quarantine: Literal["hold", "mark"] = Field(
        default="hold",
        description='"hold" puts it in the hold queue (postsuper -H frees it); "mark" only adds the header field.',
    )

    @property
    def socket_path(self) -> Path:
        """Where the socket stands in the file system."""
        return Path(self.listen.removeprefix("unix:"))


class HttpSettings(Section):
    """Metrics and health, for machines of yours: bind it where strangers cannot reach it."""

    listen: Listen = Field(
        default=HostPort("127.0.0.1", 9108),
        description="/metrics, /healthz and /readyz; no log-in, no TLS: keep it on loopback or an inner network.",
    )


class PolicySettings(Section):
    """The rules that turn evidence into a verdict."""

    rules: Rules = Field(
        default="default",
        description='"default", "monitor" (refuses nothing), "strict", or the path of your own rule file.',
    )
    on_error: Literal["defer", "accept"] = Field(
        default="defer",
        description='After a fault of our own: "defer" (451, the sender tries again) or "accept" with temperror stamped.',
    )


class DkimSettings(Section):
    """DKIM verification."""

    max_signatures: int = Field(
        default=8,
        strict=True,
        ge=1,
        le=50,
        description="Signatures verified per message; more are not looked at.",
    )


class LogSettings(Section):
    """What is written to standard error, one event per line."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description='"debug", "info" (one line per message), "warning" or "error".'
    )
    format: Literal["json", "console", "auto"] = Field(
        default="auto",
        description='"json" for machines, "console" for people, "auto": console on a terminal, else json.',
    )


class Settings(Section):
    """The whole file. `load.load_settings` reads it; a test may also build it directly."""

    authserv_id: HostName = Field(
        description="Our name in Authentication-Results. Fields of others that claim it are removed. Never change it lightly.",
        examples=["mx.example.net"],
    )
    hostname: HostName = Field(
        default="",
        validate_default=False,
        description="Our name in the SMTP greeting and in Received; default: authserv_id.",
        examples=["mx.example.net"],
    )
    workers: Workers = Field(default=1, description="Processes; this release runs in one.")
    dns: DnsSettings = DnsSettings()
    inbound: InboundSettings | None = None
    milter: MilterSettings | None = None
    http: HttpSettings | None = None
    policy: PolicySettings = PolicySettings()
    dkim: DkimSettings = DkimSettings()
    log: LogSettings = LogSettings()
    local_domains: LocalDomains = Field(
        default=(),
        description='Domains that we receive for; ".example.net" means all its subdomains. Others are "relay denied".',
        examples=[["example.net", ".example.net"]],
    )

    @model_validator(mode="before")
    @classmethod
    def _hostname_from_authserv_id(cls, given: object) -> object:
        if isinstance(given, dict) and "hostname" not in given and "authserv_id" in given:
            return {**given, "hostname": given["authserv_id"]}
        return given

    @field_validator("milter")
    @classmethod
    def _some_door(cls, milter: MilterSettings | None, info: ValidationInfo) -> MilterSettings | None:
        # A section with faults of its own is missing in `data`; then there is a door, though not a good one.
        if milter is None and "inbound" in info.data and info.data["inbound"] is None:
            raise wrong(
                "no mail can come in: neither [inbound] nor [milter] is there", "add one of the two sections"
            )
        return milter

    @field_validator("local_domains")
    @classmethod
    def _domains_for_inbound(cls, domains: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if not domains and info.data.get("inbound", True) is not None:
            raise wrong(
                "[inbound] needs it: without it every recipient is refused",
                'write local_domains = ["example.net"]',
            )
        return domains

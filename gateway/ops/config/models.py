"""The config file's shape: every section and key, its default, and one line for the operator.

The descriptions are not comments: `gateway config example` prints them, so the example can never fall behind.
"""

from ipaddress import ip_network
from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from gateway.ops.config.values import (
    Address4,
    Address6,
    Bytes,
    Connect,
    Count,
    Delimiter,
    DnsServer,
    DnsServers,
    Domain,
    Domains,
    FilePath,
    Flag,
    GroupName,
    HostName,
    HostNames,
    HostPort,
    Listen,
    ListenAnywhere,
    Listens,
    LocalDomains,
    LoginMap,
    MxPatterns,
    Networks,
    Port,
    Rules,
    Seconds,
    Selector,
    SocketMode,
    SomeListens,
    StoreUrl,
    TlsOverrides,
    Token,
    UnixSocket,
    Workers,
    wrong,
)
from gateway.tlspolicy.mta_sts.policy import Mode, Policy

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


class SmtpSettings(Section):
    """What every SMTP door has: limits, clocks and a certificate."""

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
        default=60.0, description="How long the next server may take to connect or to answer a command."
    )
    downstream_data_timeout_s: Seconds = Field(
        default=600.0, description="How long the next server may take to answer the final dot."
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

    @field_validator("max_bytes_in_flight")
    @classmethod
    def _holds_one_message(cls, budget: int, info: ValidationInfo) -> int:
        largest = info.data.get("max_message_bytes", 0)
        if budget < largest:
            raise wrong(
                f"is less than one message may have (max_message_bytes = {largest})", "make it larger"
            )
        return budget


class DownstreamSmtpSettings(SmtpSettings):
    """An SMTP door with one mail server behind it."""

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

    @field_validator("downstream")
    @classmethod
    def _no_loop(cls, downstream: HostPort, info: ValidationInfo) -> HostPort:
        if downstream in info.data.get("listen", ()):
            raise wrong("is the gateway itself: every message would loop", "give the mail server's own port")
        return downstream


class InboundSettings(DownstreamSmtpSettings):
    """The SMTP proxy in front of the mail server."""

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


class SubmissionSettings(DownstreamSmtpSettings):
    """Our own users' mail programs: log-in under TLS, checked by the mail server's own SASL."""

    listen: SomeListens = Field(
        default=(),
        description="Where they connect and say STARTTLS.",
        examples=[["0.0.0.0:587", "[::]:587"]],
    )
    listen_tls: SomeListens = Field(
        default=(),
        description="Where TLS begins at once (RFC 8314), better than STARTTLS.",
        examples=[["0.0.0.0:465", "[::]:465"]],
    )
    downstream: Connect = Field(
        description="The mail server's submission port: it offers AUTH to us and decides about every log-in.",
        examples=["127.0.0.1:10587"],
    )
    from_check: Literal["login", "downstream", "off"] = Field(
        default="login",
        description=(
            'Whose From a login may write: "login" its own address (and what `senders` adds); "downstream" also what the mail'
            " server let it say in MAIL FROM (Postfix: reject_sender_login_mismatch must be set there);"
            ' "off" anything.'
        ),
    )
    senders: LoginMap = Field(
        default={},
        description='Further addresses by login: a whole address, "@example.net" for a domain; login "*" is everybody.',
        examples=[{"ann": ["ann@example.net", "@lists.example.net"]}],
    )
    login_domain: Domain | None = Field(
        default=None,
        description='The domain of logins that are no address: with "example.net", ann is ann@example.net.',
        examples=["example.net"],
    )
    recipient_delimiter: Delimiter = Field(
        default="",
        description='As in Postfix: with "+", ann+shop@example.net belongs to whom ann@example.net belongs.',
        examples=["+"],
    )
    hide_client: Flag = Field(
        default=False,
        description="Do not tell the world from where a user sends: no client in Received, and no XCLIENT to downstream.",
    )
    max_auth_failures: int = Field(
        default=5,
        strict=True,
        ge=1,
        le=1_000,
        description="Failed log-ins in `auth_window_s` of one address (IPv6: its /64) or one login; after them 421 without asking.",
    )
    auth_window_s: Seconds = Field(default=600.0, description="How long a failed log-in counts.")
    auth_delay_s: Seconds = Field(
        default=1.0, description="Each failed log-in is answered this much later than the one before it."
    )

    @field_validator("tls_certificate")
    @classmethod
    def _needed(cls, certificate: Path | None) -> Path | None:
        if certificate is None:
            raise wrong(
                "is needed here: passwords are taken only under TLS", "give tls_certificate and tls_key"
            )
        return certificate

    @field_validator("listen_tls")
    @classmethod
    def _somewhere(cls, listen_tls: tuple[HostPort, ...], info: ValidationInfo) -> tuple[HostPort, ...]:
        if not listen_tls and not info.data.get("listen", True):
            raise wrong(
                "nobody can connect: there is neither listen nor listen_tls",
                'write listen_tls = ["0.0.0.0:465"], listen = ["0.0.0.0:587"], or both',
            )
        if info.data.get("downstream") in listen_tls:
            raise wrong(
                "is downstream, too: every message would loop", "give the mail server's own port there"
            )
        return listen_tls


class OutboundSettings(SmtpSettings):
    """The relay: Postfix's relayhost. Each delivery is made safe, or deferred; Postfix keeps the queue."""

    listen: Listens = Field(
        description="Where the mail server hands in what is to leave.", examples=[["127.0.0.1:10026"]]
    )
    clients: Networks = Field(
        description="Who may relay: your own mail servers and nobody else.", examples=[["127.0.0.1"]]
    )
    max_sessions_per_client: Count = Field(
        default=500,
        description="Open sessions of one mail server: more than it has delivery processes (Postfix: default_process_limit, 100).",
    )
    ehlo_name: HostName | None = Field(
        default=None,
        description="Our name towards the world; must resolve to the address that we send from. Default: hostname.",
        examples=["out.example.net"],
    )
    source_ipv4: Address4 | None = Field(
        default=None, description="Send from this IPv4 address.", examples=["192.0.2.25"]
    )
    source_ipv6: Address6 | None = Field(
        default=None, description="Send from this IPv6 address.", examples=["2001:db8::25"]
    )
    remote_port: Port = Field(
        default=25, description="The port of remote mail servers; other than 25 only for tests."
    )
    max_connections: Count = Field(default=100, description="Connections to the world at a time.")
    max_connections_per_destination: Count = Field(
        default=10, description="Connections to one recipient domain at a time; more wait for their turn."
    )
    idle_connection_s: Seconds = Field(
        default=15.0, description="How long a connection is kept for the next message to the same domain."
    )
    own_names: HostNames = Field(
        default=(),
        description="Further names of ours in MX records: mail for a domain whose best mail server we are would loop.",
        examples=[["mx.example.net", "mx2.example.net"]],
    )
    own_addresses: Networks = Field(
        default=(ip_network("127.0.0.0/8"), ip_network("::1/128")),
        description="Ours, too: a mail server found at one of them is ourselves. Add your mail servers' public addresses.",
        examples=[["127.0.0.0/8", "::1", "192.0.2.25"]],
    )
    dsn: Flag = Field(
        default=False,
        description=(
            "Offer DSN to the mail server. Without it Postfix itself reports what was relayed; with it a report of success that"
            " the remote server cannot give is refused (554 5.3.3), for we have no queue to write one from."
        ),
    )
    max_hosts: Count = Field(
        default=5, description="Mail servers of one domain that are tried for one message."
    )
    connect_timeout_s: Seconds = Field(
        default=20.0, description="How long one address may take to connect; the next one is begun earlier."
    )


class OutboundTlsSettings(Section):
    """What holds for every outbound delivery, by the relay and by Postfix's policy look-ups: MTA-STS and DANE."""

    mta_sts: Flag = Field(default=True, description="Honour MTA-STS policies (RFC 8461).")
    dane: Flag = Field(
        default=True,
        description="Honour TLSA records (RFC 7672); needs a validating resolver, else it is off and says so.",
    )
    ca_file: FilePath | None = Field(
        default=None,
        description="Trusted certificate authorities (PEM); default: the system's.",
        examples=["/etc/ssl/certs/ca-certificates.crt"],
    )
    fetch_timeout_s: Seconds = Field(
        default=10.0,
        description="How long fetching an MTA-STS policy may take; the first mail to a domain waits for it (RFC 8461: a minute at most).",
    )
    policy_port: Port = Field(
        default=443, description="The port of MTA-STS policy hosts; other than 443 only for tests."
    )
    overrides: TlsOverrides = Field(
        default={},
        description=(
            'By recipient domain (".example.com": all below it), whatever its DNS says: "may" (no demands), "encrypt" (TLS,'
            ' any certificate), "secure" (a certificate for the MX name), "dane-only", or "refuse" (no delivery). Read again'
            " on SIGHUP."
        ),
        examples=[{"broken.example.com": "may", "bank.example.org": "secure"}],
    )


class TlsPolicySettings(Section):
    """TLS policies for Postfix to ask for (smtp_tls_policy_maps = socketmap:…), where Postfix itself delivers."""

    listen: ListenAnywhere = Field(
        default=HostPort("127.0.0.1", 8461),
        description='Where Postfix asks: "127.0.0.1:8461", or "unix:/run/gateway/tls-policy.sock".',
    )
    tlsrpt: Flag = Field(
        default=False,
        description="Add TLSRPT attributes to answers: only for Postfix 3.10 and newer; older ones refuse them.",
    )
    tlsrpt_socket: UnixSocket | None = Field(
        default=None,
        description="Postfix 3.10 and newer report each TLS session there (smtp_tlsrpt_socket_name).",
        examples=["unix:/var/spool/postfix/run/tlsrpt/tlsrpt.sock"],
    )
    socket_mode: SocketMode = Field(
        default=0o660,
        description="Who may use these UNIX sockets, as file permissions: 0o660 lets the sockets' group in.",
    )
    socket_group: GroupName | None = Field(
        default=None,
        description="The group that these UNIX sockets are given to; the gateway's user must be in it.",
        examples=["postfix"],
    )
    max_connections: Count = Field(default=1_000, description="Connections of Postfix's processes at a time.")
    answer_timeout_s: Seconds = Field(
        default=20.0, description="How long an answer may take; then Postfix hears TEMP and tries again."
    )


class StoreSettings(Section):
    """What outlives a restart: MTA-STS policies, results of TLS sessions."""

    url: StoreUrl = Field(
        default="sqlite:////var/lib/gateway/gateway.db",
        description="SQLite (a file), or PostgreSQL where there are several nodes: postgresql+psycopg://user@host/name.",
    )
    keep_results_days: Count = Field(default=8, description="How long results of TLS sessions are kept.")


class TraceSettings(Section):
    """One record for each message, for `gateway trace` and the page; kept in [store], off where there is none."""

    keep: int = Field(
        default=100_000,
        strict=True,
        ge=0,
        le=100_000_000,
        description="Messages kept; each takes about 4 KB. The oldest go first. 0: none.",
    )
    keep_days: Count = Field(default=14, description="No trace is kept longer, however few there are.")
    addresses: Literal["plain", "hashed"] = Field(
        default="plain",
        description='"hashed": local parts and logins are kept as keyed hashes; searching by address works all the same.',
    )
    hash_key_file: FilePath | None = Field(
        default=None,
        description="The key for it: any file of 16 bytes or more (openssl rand -hex 32 > file), readable by the gateway only.",
        examples=["/etc/gateway/trace.key"],
    )

    @field_validator("hash_key_file")
    @classmethod
    def _key_to_hash_with(cls, key: Path | None, info: ValidationInfo) -> Path | None:
        if key is None and info.data.get("addresses") == "hashed":
            raise wrong(
                'addresses = "hashed" needs hash_key_file: without a key anybody could try addresses out',
                "make one: openssl rand -hex 32 > /etc/gateway/trace.key",
            )
        return key


class SigningSettings(Section):
    """One DKIM key; several for one domain sign side by side (RSA and Ed25519)."""

    domain: Domain = Field(description="d=: the domain that vouches.", examples=["example.net"])
    selector: Selector = Field(description="s=: where its key is published.", examples=["2026a"])
    key: FilePath = Field(
        description="The private key (PEM): RSA of 2048 bits or more, or Ed25519.",
        examples=["/etc/gateway/keys/2026a.pem"],
    )
    subdomains: Flag = Field(
        default=True, description="Sign for authors in subdomains, too, that have no key of their own."
    )
    expires_after_s: int | None = Field(
        default=None,
        strict=True,
        ge=3_600,
        le=31_557_600,
        description="x=: signatures are good for so long; without it, for ever.",
        examples=[1_209_600],
    )


class KeysSettings(Section):
    """Keys that `gateway keys` makes and rotates; they sign besides those of [[signing]]."""

    directory: FilePath = Field(
        default=Path("/var/lib/gateway/keys"),
        description="Where keys and their state are kept; private to the gateway.",
    )
    publish_ahead_s: int = Field(
        default=86_400,
        strict=True,
        ge=0,
        le=31_557_600,
        description="How long a new key is published before it signs: longer than the TTL of an absent record.",
    )
    keep_old_s: int = Field(
        default=604_800,
        strict=True,
        ge=0,
        le=31_557_600,
        description="How long an old key stays published after its last signature: longer than mail waits in queues.",
    )
    rotate_every_s: int = Field(
        default=15_552_000,
        strict=True,
        ge=0,
        le=315_576_000,
        description="How long a key signs until `gateway keys rotate` changes it; 0: only when told to (--now).",
    )

    @field_validator("rotate_every_s")
    @classmethod
    def _longer_than_its_beginning(cls, every: int, info: ValidationInfo) -> int:
        ahead = info.data.get("publish_ahead_s", 0)
        if 0 < every <= ahead:
            raise wrong(f"is not longer than publish_ahead_s = {ahead}", "make it weeks at least")
        return every


class DnsUpdateSettings(Section):
    """Where `gateway dns --publish` writes our records (RFC 2136 with TSIG)."""

    server: DnsServer = Field(
        description="The primary server of our zones, by its address.", examples=["192.0.2.53:53"]
    )
    tsig_name: Domain = Field(description="The name of the TSIG key.", examples=["gateway"])
    tsig_algorithm: Literal["hmac-sha256", "hmac-sha384", "hmac-sha512"] = Field(
        default="hmac-sha256", description="Its algorithm."
    )
    tsig_secret_file: FilePath = Field(
        description="A file with its secret in base64.", examples=["/etc/gateway/tsig.secret"]
    )
    ttl_s: Count = Field(default=3_600, description="The TTL of what is written.")


class MtaStsSettings(Section):
    """Our own MTA-STS policy (RFC 8461): what other mail servers must do when they deliver to local_domains."""

    mode: Literal["enforce", "testing", "none"] = Field(
        default="testing",
        description='"testing" reports, "enforce" demands, "none" takes an old policy back.',
    )
    mx: MxPatterns = Field(
        default=(),
        description='The names of our mail servers, as in MX; "*.example.net" is any one label.',
        examples=[["mx.example.net"]],
    )
    max_age_s: int = Field(
        default=604_800,
        strict=True,
        ge=86_400,
        le=31_557_600,
        description="How long others may keep it; RFC 8461 asks for weeks once it is sure.",
    )
    listen: Listens | None = Field(
        default=None,
        description="Serve it over HTTPS ourselves; without it a web server in front passes requests to [http].",
        examples=[["0.0.0.0:443", "[::]:443"]],
    )
    tls_certificate: FilePath | None = Field(
        default=None,
        description="Certificate chain for every mta-sts.<local domain>; needed with listen.",
        examples=["/etc/gateway/tls/mta-sts.pem"],
    )
    tls_key: FilePath | None = Field(
        default=None, description="Its private key.", examples=["/etc/gateway/tls/mta-sts.key"]
    )

    @field_validator("mx")
    @classmethod
    def _some_unless_none(cls, mx: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if not mx and info.data.get("mode") in {"testing", "enforce"}:
            raise wrong(
                "is empty: nobody could deliver to us", 'name our mail servers: mx = ["mx.example.net"]'
            )
        return mx

    @field_validator("tls_key")
    @classmethod
    def _for_listen(cls, key: Path | None, info: ValidationInfo) -> Path | None:
        if info.data.get("listen") and (key is None or info.data.get("tls_certificate") is None):
            raise wrong(
                "listen needs tls_certificate and tls_key", "give both: the policy counts only over HTTPS"
            )
        return key

    @property
    def policy(self) -> Policy:
        """The policy itself."""
        return Policy(mode=Mode(self.mode), mx=self.mx, max_age_s=self.max_age_s)


class ArcSettings(Section):
    """ARC (RFC 8617): what forwarders found before us; a named reason in a rule, never a pass by itself."""

    max_instances: int = Field(
        default=10,
        strict=True,
        ge=1,
        le=50,
        description="Longer chains are not followed (RFC 8617 allows 50).",
    )
    trusted_sealers: Domains = Field(
        default=(),
        description="Whose word about authentication before them a rule may take (`arc_trusted`).",
        examples=[["lists.example.org", "google.com"]],
    )
    seal_domain: Domain | None = Field(
        default=None, description="Seal what we take in, as this domain.", examples=["example.net"]
    )
    seal_selector: Selector | None = Field(
        default=None, description="The seal key's selector.", examples=["2026a"]
    )
    seal_key: FilePath | None = Field(
        default=None,
        description="The seal's private key (PEM, RSA).",
        examples=["/etc/gateway/keys/2026a.pem"],
    )

    @field_validator("seal_key")
    @classmethod
    def _all_or_none(cls, key: Path | None, info: ValidationInfo) -> Path | None:
        given = [info.data.get("seal_domain"), info.data.get("seal_selector"), key]
        if any(given) and not all(given):
            raise wrong("seal_domain, seal_selector and seal_key go together", "give all three, or none")
        return key


class MilterSettings(Section):
    """The same checks for a mail server that asks over the milter protocol."""

    listen: UnixSocket = Field(
        description="The UNIX socket that the mail server connects to (Postfix: smtpd_milters).",
        examples=["unix:/run/gateway/milter.sock"],
    )
    socket_mode: SocketMode = Field(
        default=0o660, description="Who may connect, as file permissions: 0o660 lets the socket's group in."
    )
    implementation: Literal["own", "pymilter"] = Field(
        default="own",
        description='Who speaks the protocol: we ourselves, or libmilter by way of pymilter (needs the extra "milter"; slower).',
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
    """Metrics and health for machines of yours, and the pages for you: bind it where strangers cannot reach it."""

    listen: Listen = Field(
        default=HostPort("127.0.0.1", 9108),
        description="/metrics, /healthz, /readyz (no log-in), the pages; no TLS: keep it on loopback or an inner net.",
    )
    pages: Flag = Field(
        default=True,
        description="Pages for a browser: is mail flowing, why was this message refused. Without a token on loopback only.",
    )
    token: Token | None = Field(
        default=None,
        repr=False,
        description="Who knows it sees the pages: by log-in, or as Authorization: Bearer. Better in a file: token_file.",
        examples=["what openssl rand -hex 24 prints"],
    )
    token_file: FilePath | None = Field(
        default=None,
        description="A file with the token alone, readable by the gateway only: openssl rand -hex 24 > file.",
        examples=["/etc/gateway/pages.token"],
    )

    @field_validator("token_file")
    @classmethod
    def _one_token(cls, file: Path | None, info: ValidationInfo) -> Path | None:
        if file is not None and info.data.get("token") is not None:
            raise wrong("there is a token, too", "keep one of token and token_file")
        return file


class PolicySettings(Section):
    """The rules that turn evidence into a verdict."""

    rules: Rules = Field(
        default="default",
        description='"default", "monitor" (refuses nothing), "strict", or the path of your own rule file.',
    )
    shadow: Rules | None = Field(
        default=None,
        examples=["strict"],
        description="Rules that are tried beside these and never act: where they would do something else it is counted and logged.",
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
    workers: Workers = Field(
        default=1,
        description="Processes that share the work; one for each CPU that mail may use. 1: no supervisor beside it.",
    )
    dns: DnsSettings = DnsSettings()
    inbound: InboundSettings | None = None
    milter: MilterSettings | None = None
    http: HttpSettings | None = None
    policy: PolicySettings = PolicySettings()
    dkim: DkimSettings = DkimSettings()
    arc: ArcSettings = ArcSettings()
    submission: SubmissionSettings | None = None
    outbound: OutboundSettings | None = None
    tls_policy: TlsPolicySettings | None = None
    outbound_tls: OutboundTlsSettings = OutboundTlsSettings()
    signing: tuple[SigningSettings, ...] = Field(default=(), max_length=10_000)
    keys: KeysSettings | None = None
    dns_update: DnsUpdateSettings | None = None
    mta_sts: MtaStsSettings | None = None
    store: StoreSettings | None = None
    trace: TraceSettings = TraceSettings()
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

    @field_validator("tls_policy")
    @classmethod
    def _some_door(
        cls, tls_policy: TlsPolicySettings | None, info: ValidationInfo
    ) -> TlsPolicySettings | None:
        # A section with faults of its own is missing in `data`; then there is a door, though not a good one.
        doors = ("inbound", "milter", "submission", "outbound")
        if tls_policy is None and all(door in info.data and info.data[door] is None for door in doors):
            raise wrong(
                "nothing can come in: there is no [inbound], [milter], [submission], [outbound] or [tls_policy]",
                "add the section of the door that you want",
            )
        return tls_policy

    @field_validator("store")
    @classmethod
    def _store_for_policies(cls, store: StoreSettings | None, info: ValidationInfo) -> StoreSettings | None:
        asks = info.data.get("outbound") is not None or info.data.get("tls_policy") is not None
        tls = info.data.get("outbound_tls")
        if store is None and asks and tls is not None and tls.mta_sts:
            raise wrong(
                "MTA-STS needs [store]: policies that a restart forgets can be taken away by an attacker",
                "add [store], or write mta_sts = false in [outbound_tls]",
            )
        policy: TlsPolicySettings | None = info.data.get("tls_policy")
        if store is None and policy is not None and policy.tlsrpt_socket is not None:
            raise wrong("tlsrpt_socket needs [store]: what Postfix reports is kept there", "add [store]")
        return store

    @field_validator("local_domains")
    @classmethod
    def _domains_for_inbound(cls, domains: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if not domains and info.data.get("inbound", True) is not None:
            raise wrong(
                "[inbound] needs it: without it every recipient is refused",
                'write local_domains = ["example.net"]',
            )
        submission = info.data.get("submission")
        if not domains and submission is not None and submission.from_check != "off":
            raise wrong(
                "[submission] needs it: a login may write the addresses that we receive for, and no others",
                'write local_domains = ["example.net"]',
            )
        if not domains and info.data.get("mta_sts") is not None:
            raise wrong(
                "[mta_sts] needs it: a policy is served for each", 'write local_domains = ["example.net"]'
            )
        return domains

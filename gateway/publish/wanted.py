"""From the config to the records that a domain should publish, each with the reason why.

Everything here is a proposal for the operator's eye, except what only the gateway can know: its keys, its policy's id, the
hash of its certificate's key.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from gateway.dns.resolver import Mx, Record, RecordType, Tlsa
from gateway.ops.config import Settings
from gateway.publish.records import Purpose, Wanted
from gateway.tlspolicy.mta_sts.own import POLICY_HOST_LABEL, WELL_KNOWN_PATH, policy_record

MX_PREFERENCE: Final = 10
_DANE_EE: Final = 3  # RFC 7672 §3.1.1: the usage to publish for mail
_SPKI: Final = 1  # RFC 7671 §5.1: survives a renewed certificate with the same key
_SHA256: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicKey:
    """A DKIM key to publish.

    Attributes:
        record: its TXT record.
        about: where it comes from and what it does now, for the comment.
    """

    selector: str
    record: bytes
    about: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerKey:
    """The key of an inbound certificate.

    Attributes:
        names: the host names of the certificate; empty for a key alone.
        digest: SHA-256 of its SubjectPublicKeyInfo.
        source: the file.
    """

    names: tuple[str, ...]
    digest: bytes
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All that is known of one domain.

    Attributes:
        keys: its DKIM keys.
        server_key: of `[inbound]`; None where there is no certificate.
        next_keys: of certificates that are to come.
        report_to: who reads the reports of others.
    """

    domain: str
    settings: Settings
    keys: Sequence[PublicKey] = ()
    server_key: ServerKey | None = None
    next_keys: Sequence[ServerKey] = ()
    report_to: str

    @property
    def is_local(self) -> bool:
        """Whether we receive for it."""
        return any(
            self.domain.endswith(local) if local.startswith(".") else self.domain == local
            for local in self.settings.local_domains
        )

    @property
    def mail_hosts(self) -> tuple[str, ...]:
        """Its mail servers, as far as the config names them."""
        mta_sts = self.settings.mta_sts
        named = tuple(name for name in mta_sts.mx if not name.startswith("*.")) if mta_sts else ()
        return named or (self.settings.hostname,)

    @property
    def source_addresses(self) -> tuple[str, ...]:
        """What the relay sends from, as SPF mechanisms."""
        outbound = self.settings.outbound
        if outbound is None:
            return ()
        four, six = outbound.source_ipv4, outbound.source_ipv6
        return (*((f"ip4:{four}",) if four else ()), *((f"ip6:{six}",) if six else ()))


def wanted_records(facts: Facts) -> tuple[Wanted, ...]:
    """What the domain should publish, in the order in which one sets up a domain."""
    return tuple(_wanted(facts))


def _wanted(facts: Facts) -> Iterator[Wanted]:
    if facts.is_local:
        yield _mx(facts)
    yield _spf(facts)
    for key in facts.keys:
        yield _txt(
            Purpose.DKIM, f"{key.selector}._domainkey.{facts.domain}", key.record, f"DKIM key: {key.about}."
        )
    yield _txt(
        Purpose.DMARC,
        f"_dmarc.{facts.domain}",
        f"v=DMARC1; p=none; rua=mailto:{facts.report_to}".encode(),
        "DMARC, to begin with: p=none only asks for reports. When they show that all your mail passes, go on to p=quarantine "
        f"and p=reject. {_report_reader(facts)}",
    )
    if facts.is_local:
        yield from _transport_security(facts)


def _mx(facts: Facts) -> Wanted:
    return Wanted(
        purpose=Purpose.MX,
        name=facts.domain,
        record_type=RecordType.MX,
        records=tuple(Mx(MX_PREFERENCE, host) for host in facts.mail_hosts),
        why="Where mail for the domain goes: the names in [mta_sts] mx, or else our hostname.",
    )


def _spf(facts: Facts) -> Wanted:
    hosts = "mx" if facts.is_local else f"a:{facts.settings.hostname}"
    terms = [hosts, *facts.source_addresses]
    where = "its own mail servers" if facts.is_local else "this host"
    more = " and the addresses that [outbound] sends from" if facts.source_addresses else ""
    return _txt(
        Purpose.SPF,
        facts.domain,
        f"v=spf1 {' '.join(terms)} ~all".encode(),
        f"SPF: who may send for the domain: {where}{more}. Add every other sender (newsletters, shops). ~all and not -all: a "
        "receiver that refuses on -all never gets to see the DKIM signature of a forwarded message.",
    )


def _report_reader(facts: Facts) -> str:
    """Who gets the reports, and what a reader in another domain must publish to get them (RFC 9990 §4)."""
    reader = facts.report_to.rpartition("@")[2]
    if f".{facts.domain}".endswith(f".{reader}") or f".{reader}".endswith(f".{facts.domain}"):
        return f"{facts.report_to} must be able to read them."
    return f'{reader} must agree to get them: {facts.domain}._report._dmarc.{reader} TXT "v=DMARC1;" says so there.'


def _transport_security(facts: Facts) -> Iterator[Wanted]:
    mta_sts = facts.settings.mta_sts
    if mta_sts is not None:
        policy = mta_sts.policy
        host = f"{POLICY_HOST_LABEL}.{facts.domain}"
        yield _txt(
            Purpose.MTA_STS,
            f"_mta-sts.{facts.domain}",
            policy_record(policy),
            f"MTA-STS (mode {policy.mode}): tells senders to fetch https://{host}{WELL_KNOWN_PATH}. The id is made of the policy's "
            "text and changes with it: serve the new policy first, publish the new id after.",
        )
        yield Wanted(
            purpose=Purpose.MTA_STS_HOST,
            name=host,
            record_type=RecordType.A,
            records=(),
            why="The policy host: give it an A, AAAA or CNAME record of the web server, or of [mta_sts] listen; its certificate must "
            "be good for this name.",
        )
    yield _txt(
        Purpose.TLSRPT,
        f"_smtp._tls.{facts.domain}",
        f"v=TLSRPTv1; rua=mailto:{facts.report_to}".encode(),
        "TLSRPT: others report here when they could not deliver to you over TLS.",
    )
    if facts.server_key is not None:
        yield from _tlsa(facts, facts.server_key)


def _tlsa(facts: Facts, server_key: ServerKey) -> Iterator[Wanted]:
    records: list[Record] = [
        Tlsa(_DANE_EE, _SPKI, _SHA256, key.digest) for key in (server_key, *facts.next_keys)
    ]
    for host in tlsa_hosts(facts, server_key):
        coming = ", and those to come" if facts.next_keys else ""
        yield Wanted(
            purpose=Purpose.TLSA,
            name=f"_25._tcp.{host}",
            record_type=RecordType.TLSA,
            records=tuple(dict.fromkeys(records)),
            why=f"DANE: the key of {server_key.source}{coming}. It counts only in a signed zone (DNSSEC). Renew the certificate with the "
            "same key, or publish the next key's record (--next-key) two TTLs before: a wrong record stops mail.",
        )


def tlsa_hosts(facts: Facts, server_key: ServerKey) -> tuple[str, ...]:
    """Those of the domain's mail servers that use this certificate: it names them, or they are this host."""
    named = tuple(host for host in facts.mail_hosts if _names(server_key, host))
    return named or tuple(host for host in facts.mail_hosts if host == facts.settings.hostname)


def _names(server_key: ServerKey, host: str) -> bool:
    return host in server_key.names or f"*.{host.partition('.')[2]}" in server_key.names


def _txt(purpose: Purpose, name: str, text: bytes, why: str) -> Wanted:
    return Wanted(purpose=purpose, name=name, record_type=RecordType.TXT, records=(text,), why=why)

"""`gateway tls --connect` against servers on loopback."""

import asyncio
import gc
import hashlib
import json
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from gateway.cli.tls_probe import (
    Ourselves,
    Probe,
    explain_probe,
    probe_all,
    probe_object,
    probe_options,
    probes_status,
)
from gateway.dns.resolver import Tlsa
from gateway.dns.zone import ZoneResolver
from gateway.explain import Tone
from gateway.listeners.remote.connection import RemoteConnection
from gateway.ops.config import OutboundTlsSettings
from gateway.tlspolicy.dane import HostTlsa
from gateway.tlspolicy.decide import Facts, derive
from gateway.tlspolicy.model import Decision, MxHost, Route, StsView, TlsProblem
from tests.listeners.remote import RemoteServer
from tests.smtp.downstream import FakeDownstream

NAME = "mx.example.com"
ZONE = ZoneResolver.from_text(f"{NAME}. A 127.0.0.1\nabsent.example.com. TXT x\n")
NOW = datetime.now(UTC)
DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return path


def context_of(leaf: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf.configure_cert(context)
    return context


def digest(leaf: trustme.LeafCert) -> Tlsa:
    certificate = x509.load_pem_x509_certificate(leaf.cert_chain_pems[0].bytes())
    return Tlsa(3, 0, 1, hashlib.sha256(certificate.public_bytes(Encoding.DER)).digest())


@asynccontextmanager
async def serving(server: RemoteServer) -> AsyncIterator[int]:
    listener = await asyncio.get_running_loop().create_server(server.accept, "127.0.0.1", 0)
    async with listener:
        yield listener.sockets[0].getsockname()[1]
        for protocol in server.protocols:
            protocol.close()


def decision(*tlsa: Tlsa, sts: StsView | None = None, host: str = NAME) -> Decision:
    route = Route(domain="example.com", hosts=(MxHost(10, host),), secure=bool(tlsa))
    found = (HostTlsa(base_domain=host, records=tlsa, names=(host,)),) if tlsa else ()
    return derive(Facts(domain="example.com", route=route, tlsa=found, sts=sts or StsView()))


async def probe(decided: Decision, port: int, ca_file: Path) -> list[Probe]:
    options = probe_options(OutboundTlsSettings(ca_file=ca_file), None, port)
    return await probe_all(decided, ZONE, options)


ENFORCE = StsView(mode="enforce", identifier="1", mx=(NAME,))
TESTING = StsView(mode="testing", identifier="1", mx=(NAME,))


@pytest.mark.parametrize(
    ("kind", "sts", "with_tlsa", "pkix", "tlsa", "would_do"),
    [
        ("good", ENFORCE, False, None, None, True),
        ("good", ENFORCE, True, None, None, True),
        ("other name", ENFORCE, False, TlsProblem.CERTIFICATE_NAME, None, False),
        ("other name", TESTING, False, TlsProblem.CERTIFICATE_NAME, None, True),
        ("other name", None, False, TlsProblem.CERTIFICATE_NAME, None, True),
        ("expired", ENFORCE, False, TlsProblem.CERTIFICATE_EXPIRED, None, False),
        ("stranger", ENFORCE, False, TlsProblem.CERTIFICATE_UNTRUSTED, None, False),
        # DANE goes its own way
        ("stranger", ENFORCE, True, TlsProblem.CERTIFICATE_UNTRUSTED, None, True),
        ("expired", None, True, TlsProblem.CERTIFICATE_EXPIRED, None, True),
        ("wrong tlsa", ENFORCE, True, None, TlsProblem.CERTIFICATE_TLSA, False),
    ],
)
async def test_what_a_server_shows_and_whether_it_would_do(
    authority: trustme.CA,
    ca_file: Path,
    kind: str,
    sts: StsView | None,
    pkix: TlsProblem | None,
    tlsa: TlsProblem | None,
    *,
    with_tlsa: bool,
    would_do: bool,
) -> None:
    leaf = {
        "good": authority.issue_cert(NAME),
        "wrong tlsa": authority.issue_cert(NAME),
        "other name": authority.issue_cert("other.example.com"),
        "expired": authority.issue_cert(NAME, not_before=NOW - 9 * DAY, not_after=NOW - DAY),
        "stranger": trustme.CA().issue_cert(NAME),
    }[kind]
    records = [digest(authority.issue_cert(NAME) if kind == "wrong tlsa" else leaf)] if with_tlsa else []
    server = RemoteServer(context=context_of(leaf))
    async with serving(server) as port:
        (probed,) = await probe(decision(*records, sts=sts), port, ca_file)
    assert (probed.pkix, probed.tlsa, probed.would_do) == (pkix, tlsa, would_do)
    assert probed.certificate is not None
    assert probed.certificate.names == (("other.example.com",) if kind == "other name" else (NAME,))
    finding = explain_probe(probed)
    assert finding.check == "  at 127.0.0.1"
    assert finding.status == "TLSv1.3"
    assert ("mail would go." in finding.says) is would_do
    assert (finding.tone is Tone.BAD) is not would_do
    assert probes_status([probed]) == (0 if would_do else 11)
    told = json.loads(json.dumps(probe_object(probed)))
    assert (told["host"], told["would_do"], told["pkix"]) == (NAME, would_do, pkix)
    assert server.names  # SNI was sent
    assert "MAIL" not in " ".join(server.mail.log)


@pytest.mark.parametrize(("sts", "would_do"), [(ENFORCE, False), (TESTING, True), (None, True)])
async def test_a_server_without_starttls(ca_file: Path, sts: StsView | None, *, would_do: bool) -> None:
    async with serving(RemoteServer()) as port:
        (probed,) = await probe(decision(sts=sts), port, ca_file)
    finding = explain_probe(probed)
    assert probed.would_do is would_do
    assert (finding.status, finding.problem) == ("clear text", TlsProblem.TLS_NOT_OFFERED)
    assert finding.says.startswith("the server does not offer STARTTLS")


async def test_a_server_that_is_busy_is_quoted(ca_file: Path) -> None:
    mail = FakeDownstream(at={("GREETING", 0): b"421 4.3.2 too busy\r\n"})
    async with serving(RemoteServer(mail=mail)) as port:
        (probed,) = await probe(decision(), port, ca_file)
    finding = explain_probe(probed)
    assert (finding.status, finding.tone) == ("failed", Tone.BAD)
    assert "too busy" in finding.says
    assert probes_status([probed]) == 11


async def test_a_closed_port_and_a_host_without_an_address(ca_file: Path) -> None:
    async with serving(RemoteServer()) as port:
        pass
    (probed,) = await probe(decision(), port, ca_file)
    assert (explain_probe(probed).status, probed.would_do) == ("failed", False)
    (absent,) = await probe(decision(host="absent.example.com"), port, ca_file)
    assert (explain_probe(absent).problem, absent.would_do) == (TlsProblem.NO_ADDRESS, False)
    assert probes_status([probed]) == 11
    assert probes_status([absent]) == 12  # the relay refuses it: nobody will ever take it
    assert probes_status([absent, probed]) == 11


@pytest.mark.parametrize(
    "own",
    [
        Ourselves(names=frozenset({NAME})),
        Ourselves(networks=(ip_network("127.0.0.0/8"),)),
    ],
)
async def test_we_ourselves_are_no_way_out(ca_file: Path, own: Ourselves) -> None:
    options = probe_options(OutboundTlsSettings(ca_file=ca_file), None, 1)
    (probed,) = await probe_all(decision(), ZONE, options, own)
    assert explain_probe(probed).problem is TlsProblem.ROUTE_LOOP
    assert probes_status([probed]) == 12


async def test_nothing_is_left_half_closed(authority: trustme.CA, ca_file: Path) -> None:
    server = RemoteServer(context=context_of(authority.issue_cert(NAME)))
    async with serving(server) as port:
        await probe(decision(), port, ca_file)
        connections = [each for each in gc.get_objects() if isinstance(each, RemoteConnection)]
        assert not [each for each in connections if each._transport is not None]


async def test_the_command_tries_and_tells(authority: trustme.CA, ca_file: Path, tmp_path: Path) -> None:
    leaf = authority.issue_cert(NAME)
    zone = tmp_path / "zone.txt"
    async with serving(RemoteServer(context=context_of(leaf))) as port:
        zone.write_text(
            f"$SECURE on\nexample.com. MX 10 {NAME}.\n{NAME}. A 127.0.0.1\n"
            f"_{port}._tcp.{NAME}. TLSA 3 0 1 {digest(leaf).data.hex()}\n"
        )
        config = tmp_path / "gateway.toml"
        config.write_text(
            'authserv_id = "mx.example.net"\n[outbound]\nlisten = ["127.0.0.1:10026"]\nclients = ["127.0.0.1"]\n'
            f'remote_port = {port}\nown_addresses = []\n[outbound_tls]\nmta_sts = false\nca_file = "{ca_file}"\n'
        )
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gateway", "tls", "example.com", "--connect",
            "--zone", str(zone), "--config", str(config),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        output, _ = await asyncio.wait_for(process.communicate(), 30)
    said = output.decode()
    assert process.returncode == 0, said
    assert "example.com: DANE-ONLY" in said
    assert "a TLSA record vouches for it; mail would go." in said

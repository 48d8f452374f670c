"""TLSA records against certificate chains; OpenSSL's own DANE is the oracle."""

import asyncio
import hashlib
import shutil
import ssl
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.dns.resolver import Tlsa
from gateway.tlspolicy.dane_match import MAX_CERTIFICATES, match_chain, subject_public_key_info
from gateway.tlspolicy.model import TlsProblem

NAME: Final = "mx.example.com"
NAMES: Final = (NAME, "example.com")
NOW: Final = datetime.now(UTC)
DAY: Final = timedelta(days=1)

ROOT: Final = trustme.CA()
MIDDLE: Final = ROOT.create_child_ca()
STRANGER: Final = trustme.CA()
_MATCHING: Final[dict[int, Callable[[bytes], bytes]]] = {
    0: lambda data: data,
    1: lambda data: hashlib.sha256(data).digest(),
    2: lambda data: hashlib.sha512(data).digest(),
}


def der(pem: trustme.Blob) -> bytes:
    return x509.load_pem_x509_certificate(pem.bytes()).public_bytes(Encoding.DER)


def chain_of(leaf: trustme.LeafCert, *more: bytes) -> list[bytes]:
    return [*map(der, leaf.cert_chain_pems), *more]


def record(usage: int, selector: int, matching: int, certificate: bytes) -> Tlsa:
    """The TLSA record that vouches for this certificate."""
    loaded = x509.load_der_x509_certificate(certificate)
    key = loaded.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return Tlsa(usage, selector, matching, _MATCHING[matching](certificate if selector == 0 else key))


GOOD: Final = chain_of(MIDDLE.issue_cert(NAME), der(ROOT.cert_pem))  # leaf, middle, root
OTHER_NAME: Final = chain_of(MIDDLE.issue_cert("mx.example.org"))
WILD: Final = chain_of(MIDDLE.issue_cert("*.example.com"))
EXPIRED: Final = chain_of(MIDDLE.issue_cert(NAME, not_before=NOW - 9 * DAY, not_after=NOW - DAY))
NOT_YET: Final = chain_of(MIDDLE.issue_cert(NAME, not_before=NOW + DAY, not_after=NOW + 9 * DAY))
FOREIGN: Final = chain_of(STRANGER.issue_cert(NAME), der(STRANGER.cert_pem))
CN_ONLY: Final = chain_of(MIDDLE.issue_cert("192.0.2.1", common_name=NAME))
LEAF, MID, TOP = GOOD
ANY_TA: Final = record(2, 1, 1, MID)


@pytest.mark.parametrize("usage", [2, 3])
@pytest.mark.parametrize("selector", [0, 1])
@pytest.mark.parametrize("matching", [0, 1, 2])
def test_each_kind_of_record(usage: int, selector: int, matching: int) -> None:
    target = MID if usage == 2 else LEAF
    assert match_chain([record(usage, selector, matching, target)], GOOD, NAMES, NOW) is None
    wrong = record(usage, selector, matching, FOREIGN[1] if usage == 2 else FOREIGN[0])
    assert match_chain([wrong], GOOD, NAMES, NOW) is TlsProblem.CERTIFICATE_TLSA


EE: Final = TlsProblem.CERTIFICATE_TLSA


@pytest.mark.parametrize(
    ("records", "chain", "problem"),
    [
        # usage 3: RFC 7671 §5.1, neither name nor date
        ([record(3, 1, 1, OTHER_NAME[0])], OTHER_NAME, None),
        ([record(3, 1, 1, EXPIRED[0])], EXPIRED, None),
        ([record(3, 1, 1, FOREIGN[0])], FOREIGN[:1], None),
        ([record(3, 1, 1, MID)], GOOD, EE),  # only the server's own
        ([record(3, 1, 1, LEAF)], [MID, LEAF], EE),  # and that comes first
        ([record(3, 1, 1, EXPIRED[0]), record(3, 1, 1, LEAF)], GOOD, None),  # one is enough: a rollover
        # usage 2: the root or one in between
        ([record(2, 0, 1, TOP)], GOOD, None),
        ([record(2, 1, 2, TOP)], GOOD, None),
        ([ANY_TA], [LEAF, MID], None),  # the root need not be there
        ([ANY_TA], [LEAF, TOP, MID], None),  # nor in order
        ([ANY_TA], [LEAF, FOREIGN[1], MID, MID, MID], None),
        ([record(2, 0, 1, TOP)], [LEAF, MID], EE),  # RFC 7671 §5.2.2: an authority by its digest must be sent
        ([record(2, 0, 0, TOP)], [LEAF, MID], None),  # but not where DNS has all of it
        ([record(2, 0, 0, MID)], [LEAF], None),
        ([record(2, 0, 0, TOP)], [LEAF], EE),  # what is in between must be
        ([record(2, 1, 1, LEAF)], GOOD, EE),  # the server's own is no authority
        ([ANY_TA], FOREIGN, EE),
        ([ANY_TA], [FOREIGN[0], MID], EE),  # the authority beside a leaf that it has not signed
        ([ANY_TA], OTHER_NAME, TlsProblem.CERTIFICATE_NAME),
        ([ANY_TA], CN_ONLY, TlsProblem.CERTIFICATE_NAME),
        ([ANY_TA], WILD, None),
        ([ANY_TA], EXPIRED, TlsProblem.CERTIFICATE_EXPIRED),
        ([ANY_TA], NOT_YET, TlsProblem.CERTIFICATE_EXPIRED),
        ([ANY_TA, record(3, 1, 1, EXPIRED[0])], EXPIRED, None),
        # nothing to go by
        ([], GOOD, EE),
        ([ANY_TA], [], EE),
        ([ANY_TA], [b""], EE),
        ([ANY_TA], [b"\x30\x82\xff\xff", MID], EE),
        ([ANY_TA], [LEAF, b"junk", MID], None),
        ([record(3, 1, 1, LEAF)], [LEAF + b"\0"], None),  # the key stands where it stands
        ([record(3, 0, 1, LEAF)], [LEAF + b"\0"], EE),
    ],
)
def test_which_chains_match(
    records: Sequence[Tlsa], chain: Sequence[bytes], problem: TlsProblem | None
) -> None:
    assert match_chain(records, chain, NAMES, NOW) is problem


@pytest.mark.parametrize(
    "name", ["example.com", "a.mx.example.com", "mx.example.com.evil.test", "192.0.2.1", ""]
)
def test_the_names_are_those_that_are_given(name: str) -> None:
    assert match_chain([ANY_TA], GOOD, [name], NOW) is TlsProblem.CERTIFICATE_NAME
    assert match_chain([ANY_TA], GOOD, [name, NAME], NOW) is None


def forge(
    subject: str,
    issuer: str,
    signed_by: ec.EllipticCurvePrivateKey,
    *extensions: tuple[x509.ExtensionType, bool],
    key: ec.EllipticCurvePrivateKey | None = None,
) -> bytes:
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)]))
        .public_key((key or signed_by).public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + DAY)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(signed_by, hashes.SHA256()).public_bytes(Encoding.DER)


CA_KEY, LEAF_KEY = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
IS_CA: Final = (x509.BasicConstraints(ca=True, path_length=None), True)
SAN: Final = (x509.SubjectAlternativeName([x509.DNSName(NAME)]), False)
PLAIN_CA: Final = forge("ca", "ca", CA_KEY, IS_CA)


def usage(*, key_cert_sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def names_within(domain: str) -> tuple[x509.ExtensionType, bool]:
    return x509.NameConstraints([x509.DNSName(domain)], None), True


@pytest.mark.parametrize(
    ("authority", "leaf", "is_good"),
    [
        ([IS_CA], [SAN], True),  # as little as private authorities write
        ([IS_CA, (usage(key_cert_sign=True), True)], [SAN], True),
        ([IS_CA, names_within("example.com")], [SAN], True),
        ([IS_CA], [SAN, (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)], True),
        ([], [SAN], False),  # no authority: any leaf could sign another
        ([(x509.BasicConstraints(ca=False, path_length=None), True)], [SAN], False),
        ([IS_CA, (usage(key_cert_sign=False), True)], [SAN], False),
        ([IS_CA, names_within("example.org")], [SAN], False),
        ([IS_CA], [SAN, (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), False)], False),
        ([IS_CA], [SAN, (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\5\0"), True)], False),
    ],
)  # fmt: skip
def test_what_an_authority_must_be(
    authority: list[tuple[x509.ExtensionType, bool]],
    leaf: list[tuple[x509.ExtensionType, bool]],
    *,
    is_good: bool,
) -> None:
    issuer = forge("ca", "ca", CA_KEY, *authority)
    chain = [forge("leaf", "ca", CA_KEY, *leaf, key=LEAF_KEY), issuer]
    found = match_chain([record(2, 0, 1, issuer)], chain, NAMES, NOW)
    assert found is (None if is_good else TlsProblem.CERTIFICATE_UNTRUSTED)


def test_a_name_is_not_a_signature() -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    chain = [forge("leaf", "ca", other, SAN, key=LEAF_KEY), PLAIN_CA]
    assert match_chain([record(2, 0, 1, PLAIN_CA)], chain, NAMES, NOW) is TlsProblem.CERTIFICATE_TLSA


def test_certificates_that_all_issue_each_other_come_to_an_end() -> None:
    chain = [forge("x", "x", CA_KEY, SAN)]
    chain += [forge("x", "x", CA_KEY, IS_CA) for _ in range(100)]
    authority = record(2, 0, 1, FOREIGN[1])
    assert match_chain([authority], chain, NAMES, NOW) is TlsProblem.CERTIFICATE_TLSA
    at_the_end = [*chain[:MAX_CERTIFICATES], PLAIN_CA]
    assert match_chain([record(2, 0, 1, PLAIN_CA)], at_the_end, NAMES, NOW) is TlsProblem.CERTIFICATE_TLSA


@pytest.mark.parametrize("certificate", [*GOOD, *FOREIGN, PLAIN_CA])
def test_the_key_is_cut_out_byte_for_byte(certificate: bytes) -> None:
    key = x509.load_der_x509_certificate(certificate).public_key()
    assert subject_public_key_info(certificate) == key.public_bytes(
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    )


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@example(LEAF.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x26"), ANY_TA)  # version 39
@given(
    st.one_of(
        st.binary(max_size=60),
        st.integers(0, len(LEAF)).map(lambda end: LEAF[:end]),
        st.tuples(st.integers(0, len(LEAF) - 1), st.integers(0, 255)).map(
            lambda change: LEAF[: change[0]] + bytes([change[1]]) + LEAF[change[0] + 1 :]
        ),
    ),
    st.sampled_from([record(3, 1, 1, LEAF), ANY_TA, record(2, 0, 0, TOP)]),
)
def test_any_bytes_match_or_not(certificate: bytes, tlsa: Tlsa) -> None:
    subject_public_key_info(certificate)
    match_chain([tlsa], [certificate, MID], NAMES, NOW)
    match_chain([tlsa], [LEAF, certificate], NAMES, NOW)


# OpenSSL as the oracle


class TlsServer:
    """Shows the chain that it is told to show."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def verdict(self, chain: Sequence[bytes], key: bytes, tlsa: Tlsa) -> bool:
        """Whether `openssl s_client` with this record is content."""
        file = self._directory / "chain.pem"
        certificates = [x509.load_der_x509_certificate(one).public_bytes(Encoding.PEM) for one in chain]
        file.write_bytes(key + b"".join(certificates))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)

        async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1)
            writer.close()

        server = await asyncio.start_server(hang_up, "127.0.0.1", 0, ssl=context)
        async with server:
            port = server.sockets[0].getsockname()[1]
            data = f"{tlsa.usage} {tlsa.selector} {tlsa.matching_type} {tlsa.data.hex()}"
            client = await asyncio.create_subprocess_exec(
                "openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-brief", "-verify_return_error",
                "-dane_tlsa_domain", NAME, "-dane_tlsa_rrdata", data, "-dane_ee_no_namechecks",
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            )  # fmt: skip
            output, _ = await asyncio.wait_for(client.communicate(b"Q\n"), 20)
        return b"Verification: OK" in output


@pytest.fixture
def tls_server(tmp_path: Path) -> TlsServer:
    if shutil.which("openssl") is None:
        pytest.skip("not installed: openssl")
    return TlsServer(tmp_path)


def key_of(leaf: trustme.LeafCert) -> bytes:
    return leaf.private_key_pem.bytes()


_ISSUED: Final = {
    "good": MIDDLE.issue_cert(NAME),
    "other": MIDDLE.issue_cert("mx.example.org"),
    "wild": MIDDLE.issue_cert("*.example.com"),
    "expired": MIDDLE.issue_cert(NAME, not_before=NOW - 9 * DAY, not_after=NOW - DAY),
    "foreign": STRANGER.issue_cert(NAME),
}
_LEAF_KEY_PEM: Final = LEAF_KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        (kind, target)
        for kind in _ISSUED
        for target in ("leaf", "key of the leaf", "middle", "root", "root, whole", "stranger")
    ],
)
async def test_openssl_decides_alike(tls_server: TlsServer, kind: str, target: str) -> None:
    leaf = _ISSUED[kind]
    chain = chain_of(leaf)
    tlsa = {
        "leaf": record(3, 0, 1, chain[0]),
        "key of the leaf": record(3, 1, 2, chain[0]),
        "middle": record(2, 1, 1, MID),
        "root": record(2, 0, 1, TOP),
        "root, whole": record(2, 0, 0, TOP),
        "stranger": record(2, 0, 1, der(STRANGER.cert_pem)),
    }[target]
    expected = await tls_server.verdict(chain, key_of(leaf), tlsa)
    assert (match_chain([tlsa], chain, NAMES, NOW) is None) is expected


@pytest.mark.parametrize("target", ["leaf", "authority"])
async def test_openssl_decides_alike_about_a_chain_with_its_root(tls_server: TlsServer, target: str) -> None:
    chain = [forge("leaf", "ca", CA_KEY, SAN, key=LEAF_KEY), PLAIN_CA]
    tlsa = record(3, 1, 1, chain[0]) if target == "leaf" else record(2, 1, 1, PLAIN_CA)
    assert await tls_server.verdict(chain, _LEAF_KEY_PEM, tlsa)
    assert match_chain([tlsa], chain, NAMES, NOW) is None

"""Which keys sign for whom, and what is said of files that hold none."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from gateway.auth.dkim.key_table import (
    MAX_KEY_FILE_BYTES,
    KeyTableError,
    SigningEntry,
    SigningKey,
    load_key_table,
)
from gateway.auth.dkim.signature import Algorithm
from tests.auth.dkim.signing import ed25519_key, rsa_key, rsa_pem, short_rsa


def entry(path: Path, name: str = "example.org/a", *, subdomains: bool = True) -> SigningEntry:
    domain, _, selector = name.partition("/")
    return SigningEntry(domain=domain, selector=selector, key_path=path, subdomains=subdomains)


def write(folder: Path, content: bytes, name: str = "key.pem", mode: int = 0o600) -> Path:
    path = folder / name
    path.write_bytes(content)
    path.chmod(mode)
    return path


def faults(*entries: SigningEntry) -> list[tuple[str, str]]:
    with pytest.raises(KeyTableError) as caught:
        load_key_table(entries)
    for fault in caught.value.faults:
        assert str(fault).startswith(f"{fault.entry.key_path}: the key {fault.entry.domain}/")
        assert fault.remedy
    return [(fault.what, fault.remedy) for fault in caught.value.faults]


def pem(key: rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey, form: PrivateFormat) -> bytes:
    return key.private_bytes(Encoding.PEM, form, NoEncryption())


GOOD: list[tuple[Callable[[], bytes], Algorithm]] = [
    (lambda: pem(rsa_key(2048), PrivateFormat.TraditionalOpenSSL), Algorithm.RSA_SHA256),  # opendkim-genkey
    (lambda: pem(rsa_key(2048), PrivateFormat.PKCS8), Algorithm.RSA_SHA256),  # openssl genrsa, rspamadm
    (lambda: pem(ed25519_key(), PrivateFormat.PKCS8), Algorithm.ED25519_SHA256),
    (
        lambda: b"a word before it\n" + pem(ed25519_key(), PrivateFormat.PKCS8) + b"\n\n",
        Algorithm.ED25519_SHA256,
    ),
]


@pytest.mark.parametrize(("content", "algorithm"), GOOD)
def test_good_keys(tmp_path: Path, content: Callable[[], bytes], algorithm: Algorithm) -> None:
    table = load_key_table([entry(write(tmp_path, content()))])
    assert [key.algorithm for key in table.keys] == [algorithm]
    assert table.warnings == ()


def short_pem() -> bytes:
    modulus, private = short_rsa()
    p, q = rsa.rsa_recover_prime_factors(modulus, 65537, private)
    numbers = rsa.RSAPrivateNumbers(
        p=p,
        q=q,
        d=private,
        dmp1=rsa.rsa_crt_dmp1(private, p),
        dmq1=rsa.rsa_crt_dmq1(private, q),
        iqmp=rsa.rsa_crt_iqmp(p, q),
        public_numbers=rsa.RSAPublicNumbers(65537, modulus),
    )
    return pem(numbers.private_key(), PrivateFormat.PKCS8)


def rsa_numbers(key: rsa.RSAPrivateKey, exponent: int) -> bytes:
    """A key with another's private exponent, as a PEM file can have it."""
    numbers = key.private_numbers()
    p, q = numbers.p, numbers.q
    mixed = rsa.RSAPrivateNumbers(
        p=p,
        q=q,
        d=exponent,
        dmp1=rsa.rsa_crt_dmp1(exponent, p),
        dmq1=rsa.rsa_crt_dmq1(exponent, q),
        iqmp=numbers.iqmp,
        public_numbers=numbers.public_numbers,
    )
    return pem(mixed.private_key(unsafe_skip_rsa_key_validation=True), PrivateFormat.TraditionalOpenSSL)


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "encrypted": (
        lambda: rsa_key(2048).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
        ),
        "is encrypted",
    ),
    "encrypted, the old way": (
        lambda: rsa_key(2048).private_bytes(
            Encoding.PEM, PrivateFormat.TraditionalOpenSSL, BestAvailableEncryption(b"secret")
        ),
        "is encrypted",
    ),
    "empty": (lambda: b"", "is no readable private key in PEM form"),
    "the seed alone, as dkimpy wants it": (lambda: b"YWJj" * 11, "is no readable private key in PEM form"),
    "DER": (
        lambda: rsa_key(2048).private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
        "is no readable private key in PEM form",
    ),
    "cut off": (lambda: rsa_pem()[:700], "is no readable private key in PEM form"),
    "the public half": (
        lambda: rsa_key(2048).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        "holds a public key",
    ),
    "OpenSSH": (lambda: pem(ed25519_key(), PrivateFormat.OpenSSH), "holds a key of OpenSSH's own form"),
    "elliptic curve": (
        lambda: ec.generate_private_key(ec.SECP256R1()).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        ),
        "is of a kind that DKIM does not know (EC)",
    ),
    "Ed448": (
        lambda: ed448.Ed448PrivateKey.generate().private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        ),
        "is of a kind that DKIM does not know (Ed448)",
    ),
    "768 bits": (short_pem, "has 768 bits, and no verifier takes less than 1024"),
    "two keys mixed up": (
        lambda: rsa_numbers(rsa_key(2048), rsa_key(1024).private_numbers().d),
        "is damaged: what it signs, its own public half does not verify",
    ),
    "endless": (lambda: b"#" * (MAX_KEY_FILE_BYTES + 1), f"is over {MAX_KEY_FILE_BYTES} bytes"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_keys(tmp_path: Path, case: str) -> None:
    content, said = BAD[case]
    ((what, _),) = faults(entry(write(tmp_path, content())))
    assert what == said


def test_too_long_a_key_is_refused_for_what_it_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.auth.dkim.key_table.MAX_RSA_BITS", 1024)  # 8192 bits take a minute to make
    ((what, _),) = faults(entry(write(tmp_path, rsa_pem())))
    assert what == "has 2048 bits, and verifiers need not take more than 1024"


def test_files_that_are_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    missing = faults(entry(tmp_path / "none.pem"))
    assert missing == [
        (
            "is missing: there is no such file",
            "look at the path; a relative one starts at the config file",
        )
    ]
    assert faults(entry(tmp_path))[0][0] == "is not a regular file"
    assert faults(entry(tmp_path / "fifo"))[0][0] == "is not a regular file"  # and nobody waits for a writer


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_key_of_somebody_else(tmp_path: Path) -> None:
    ((what, remedy),) = faults(entry(write(tmp_path, rsa_pem(), mode=0)))
    assert what == "may not be read by the gateway's user"
    assert "nobody else" in remedy


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    good = write(tmp_path, rsa_pem())
    told = faults(
        entry(tmp_path / "none.pem", "a.example/1"),
        entry(good, "a.example/2"),
        entry(good, "a.example/2"),
        entry(write(tmp_path, b"junk", "junk.pem"), "b.example/1"),
    )
    assert [what.split(":")[0] for what, _ in told] == [
        "is missing",
        "is under a name that another key has already (a.example/2)",
        "is no readable private key in PEM form",
    ]


def test_what_is_used_all_the_same_but_warned_of(tmp_path: Path) -> None:
    table = load_key_table(
        [
            entry(write(tmp_path, rsa_pem(1024), "short.pem"), "a.example/1"),
            entry(write(tmp_path, rsa_pem(), "open.pem", mode=0o644), "a.example/2"),
            entry(write(tmp_path, rsa_pem(), "group.pem", mode=0o640), "a.example/3"),
        ]
    )
    assert table.names == ("a.example/1", "a.example/2", "a.example/3")  # two RSA keys of one domain: allowed
    assert [(fault.entry.selector, fault.what) for fault in table.warnings] == [
        ("1", "has 1024 bits, where RFC 8301 asks for 2048"),
        ("2", "can be read by every user of this host"),
    ]


@pytest.mark.parametrize(
    ("author_domain", "names"),
    [
        ("example.net", ["example.net/rsa", "example.net/ed"]),  # side by side, in the config's order
        ("host.example.net", ["example.net/rsa"]),  # cron of a host: the parent's, where it signs for those
        ("a.b.c.example.net", ["example.net/rsa"]),
        ("sub.example.net", ["sub.example.net/x"]),  # its own, and no others
        ("deep.sub.example.net", ["example.net/rsa"]),  # `subdomains = false`: the next parent that does
        ("news.example.org", ["news.example.org/n"]),
        ("x.news.example.org", ["news.example.org/n"]),  # the nearest
        ("www.example.org", ["example.org/o"]),
        ("badexample.net", []),
        ("net", []),
        ("example.net.evil.example", []),
        ("strict.example", ["strict.example/s"]),
        ("x.strict.example", []),
    ],
)
def test_whose_keys_sign(author_domain: str, names: list[str], tmp_path: Path) -> None:
    path = write(tmp_path, rsa_pem())
    table = load_key_table(
        [
            entry(path, "example.net/rsa"),
            entry(path, "example.net/ed", subdomains=False),
            entry(path, "sub.example.net/x", subdomains=False),
            entry(path, "example.org/o"),
            entry(path, "news.example.org/n"),
            entry(path, "strict.example/s", subdomains=False),
        ]
    )
    assert [key.name for key in table.keys_for(author_domain)] == names


def test_a_key_checks_what_it_signs() -> None:
    for private_key in (rsa_key(2048), ed25519_key()):
        key = SigningKey(
            domain="a.example", selector="s", subdomains=True, expires_after_s=None, private_key=private_key
        )
        assert key.record.verifies(key.sign(b"d" * 32), b"d" * 32)
        assert not key.record.verifies(key.sign(b"d" * 32), b"e" * 32)

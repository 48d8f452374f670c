import os
import re
import tomllib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Network
from pathlib import Path

import pytest
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from gateway.ops.config import HostPort, Settings
from gateway.ops.config.example import example_config
from gateway.ops.config.faults import ConfigError, section_model, shown
from gateway.ops.config.load import MAX_FILE_BYTES, NOT_YET, load_config, load_settings
from gateway.ops.config.values import parse_host_port

BAD = Path(__file__).parent.parent / "bad_config"
SHIPPED = Path(__file__).parent.parent.parent / "deploy" / "gateway.toml"

MILTER = 'authserv_id = "mx.example.net"\n[milter]\nlisten = "unix:/run/gateway/milter.sock"\n'
INBOUND = """
authserv_id = "mx.example.net"
local_domains = ["example.net"]
[inbound]
listen = ["127.0.0.1:25"]
downstream = "127.0.0.1:10025"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "gateway.toml"
    path.write_text(text, encoding="utf-8")
    return path


def faults(folder: Path, text: str, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(write(folder, text), environ)
    return [str(fault).replace(f"{folder}/", "") for fault in caught.value.faults]


# What the operator is told


@pytest.mark.parametrize(
    "case", sorted(path.name for path in BAD.iterdir() if (path / "gateway.toml").is_file())
)
def test_the_operator_is_told(case: str) -> None:
    folder = BAD / case
    with pytest.raises(ConfigError) as caught:
        load_config(folder / "gateway.toml", {})
    said = f"{caught.value}\n".replace(f"{folder}/", "")
    assert said == (folder / "expected-error").read_text(encoding="utf-8")
    assert "hunter2" not in said


def test_a_missing_file_is_named_with_a_way_on(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file; `gateway config example`"):
        load_settings(tmp_path / "none.toml", {})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"authserv_id = '\xff'", "is not in UTF-8"),
        (b"a = " + b"[" * 20_000, "is not TOML"),
        (b"#" * (MAX_FILE_BYTES + 1), "is over"),
        (b"a = 1\na = 2\n\n", ":2: is not TOML: Cannot overwrite a value"),
    ],
)
def test_a_file_that_is_no_config(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "gateway.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape(said)):
        load_settings(path, {})


def test_a_folder_is_no_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_settings(tmp_path, {})


# What is read


def test_defaults_and_what_follows_from_others(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, INBOUND), {})
    assert settings.hostname == settings.authserv_id == "mx.example.net"
    assert settings.milter is None
    assert settings.http is None
    assert settings.inbound is not None
    assert settings.inbound.listen == (HostPort("127.0.0.1", 25),)
    assert settings.inbound.trusted_networks == ()  # loopback is not trusted by itself


def test_relative_paths_start_at_the_config_file(tmp_path: Path) -> None:
    (tmp_path / "zone.txt").write_text("example.net. 300 IN A 192.0.2.1\n")
    settings = load_settings(write(tmp_path, MILTER + '[dns]\nzone_file = "zone.txt"\n'), {})
    assert settings.dns.zone_file == tmp_path / "zone.txt"


@pytest.mark.parametrize(
    ("url", "read"),
    [
        ("sqlite:///gateway.db", "sqlite:///{folder}/gateway.db"),
        ("sqlite:////var/lib/gateway/gateway.db", "sqlite:////var/lib/gateway/gateway.db"),
        ("sqlite:///gateway.db?timeout=9", "sqlite:///{folder}/gateway.db?timeout=9"),
        ("postgresql+psycopg://gateway@db/gateway", "postgresql+psycopg://gateway@db/gateway"),
    ],
)
def test_so_does_the_store(tmp_path: Path, url: str, read: str) -> None:
    settings = load_settings(write(tmp_path, f'{MILTER}[store]\nurl = "{url}"\n'), {})
    assert settings.store is not None
    assert settings.store.url == read.format(folder=tmp_path)


def test_domains_are_compared_in_lower_case(tmp_path: Path) -> None:
    settings = load_settings(
        write(tmp_path, INBOUND.replace('"example.net"', '"Example.NET", ".Example.org"')), {}
    )
    assert settings.local_domains == ("example.net", ".example.org")


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:25", "127.0.0.1", 25),
        ("[::1]:25", "::1", 25),
        ("mail.example.net:10025", "mail.example.net", 10025),
        ("localhost:0", "localhost", 0),  # any free port
    ],
)
def test_host_and_port_are_read_and_written_alike(text: str, host: str, port: int) -> None:
    assert parse_host_port(text) == HostPort(host, port)
    assert str(HostPort(host, port)) == text


# Environment


def test_the_environment_wins_and_is_read_as_toml_or_text(tmp_path: Path) -> None:
    environ = {
        "GATEWAY_AUTHSERV_ID": "other.example.net",
        "GATEWAY_DNS__SERVERS": "127.0.0.1:5353, ::1",
        "GATEWAY_DNS__TIMEOUT_S": "2.5",
        "GATEWAY_MILTER__TRUSTED_NETWORKS": '["192.0.2.0/24"]',
        "GATEWAY_HTTP__LISTEN": "127.0.0.1:9999",
    }
    settings = load_settings(write(tmp_path, MILTER), environ)
    assert settings.authserv_id == "other.example.net"
    assert settings.dns.servers == (HostPort("127.0.0.1", 5353), HostPort("::1", 53))
    assert settings.dns.timeout_s == 2.5
    assert settings.milter is not None
    assert settings.milter.trusted_networks == (IPv4Network("192.0.2.0/24"),)
    assert settings.http is not None
    assert settings.http.listen.port == 9999


def test_the_environment_alone_is_enough() -> None:
    environ = {"GATEWAY_AUTHSERV_ID": "mx.example.net", "GATEWAY_MILTER__LISTEN": "unix:/run/m.sock"}
    assert load_settings(None, environ).milter is not None


def test_names_that_kubernetes_makes_for_a_service_are_not_ours(tmp_path: Path) -> None:
    environ = {
        "GATEWAY_PORT": "tcp://10.0.0.1:25",
        "GATEWAY_SERVICE_HOST": "10.0.0.1",
        "GATEWAY_DNS": "x",
        "PATH": "/bin",
    }
    assert load_settings(write(tmp_path, MILTER), environ) == load_settings(tmp_path / "gateway.toml", {})


def test_faults_of_the_environment_name_the_variable(tmp_path: Path) -> None:
    said = faults(
        tmp_path,
        MILTER,
        GATEWAY_DNS__TIMEOUT_S="soon",
        GATEWAY_DNS__SERVRS="::1",
        GATEWAY_MILTER__LISTEN="inet:1",
    )
    assert [fault.partition(":")[0] for fault in said] == [
        "environment variable GATEWAY_DNS__TIMEOUT_S",
        "environment variable GATEWAY_DNS__SERVRS",
        "environment variable GATEWAY_MILTER__LISTEN",
    ]
    assert "did you mean servers?" in said[1]


def test_text_that_only_looks_like_several_toml_lines_stays_text(tmp_path: Path) -> None:
    said = faults(tmp_path, MILTER, GATEWAY_AUTHSERV_ID='"mx.example.net"\nworkers = 3')
    assert len(said) == 1
    assert "authserv_id" in said[0]


def test_a_remedy_repeats_nothing_that_could_move_the_cursor(tmp_path: Path) -> None:
    (said,) = faults(tmp_path, MILTER, GATEWAY_HTTP__LISTEN='"x\\u001b[2J"')
    assert said.isprintable()


# TLS files


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def tls_config(folder: Path, certificate: trustme.LeafCert, key: trustme.LeafCert) -> Path:
    (folder / "cert.pem").write_bytes(b"".join(pem.bytes() for pem in certificate.cert_chain_pems))
    (folder / "key.pem").write_bytes(key.private_key_pem.bytes())
    (folder / "key.pem").chmod(0o600)
    return write(folder, INBOUND + 'tls_certificate = "cert.pem"\ntls_key = "key.pem"\n')


def test_a_good_pair_is_taken_in_silence(tmp_path: Path, authority: trustme.CA) -> None:
    pair = authority.issue_cert("mx.example.net")
    assert load_config(tls_config(tmp_path, pair, pair), {}).warnings == ()


def test_a_key_of_another_certificate_is_a_fault(tmp_path: Path, authority: trustme.CA) -> None:
    path = tls_config(tmp_path, authority.issue_cert("a.example.net"), authority.issue_cert("b.example.net"))
    with pytest.raises(ConfigError, match="is not the key of the first certificate"):
        load_config(path, {})


def test_an_encrypted_key_is_a_fault_and_nobody_is_asked_for_a_passphrase(
    tmp_path: Path, authority: trustme.CA
) -> None:
    from cryptography.hazmat.primitives.serialization import (  # noqa: PLC0415 - only here
        BestAvailableEncryption,
        Encoding,
        PrivateFormat,
        load_pem_private_key,
    )

    pair = authority.issue_cert("mx.example.net")
    path = tls_config(tmp_path, pair, pair)
    key = load_pem_private_key(pair.private_key_pem.bytes(), None)
    encrypted = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    (tmp_path / "key.pem").write_bytes(encrypted)
    with pytest.raises(ConfigError, match="is encrypted"):
        load_config(path, {})


def test_dates_and_open_keys_are_warnings(tmp_path: Path, authority: trustme.CA) -> None:
    pair = authority.issue_cert("mx.example.net", not_after=datetime.now(UTC) + timedelta(days=30))
    path = tls_config(tmp_path, pair, pair)
    (tmp_path / "key.pem").chmod(0o644)
    later = load_config(path, {}, now=datetime.now(UTC) + timedelta(days=31))
    assert ["expired" in later.warnings[0].what, later.warnings[1].remedy] == [
        True,
        f"chmod o-r {tmp_path}/key.pem",
    ]
    earlier = load_config(path, {}, now=datetime(1999, 1, 1, tzinfo=UTC))
    assert "clock" in earlier.warnings[0].remedy


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_key_that_may_not_be_read_is_a_fault(tmp_path: Path, authority: trustme.CA) -> None:
    pair = authority.issue_cert("mx.example.net")
    path = tls_config(tmp_path, pair, pair)
    (tmp_path / "key.pem").chmod(0)
    with pytest.raises(ConfigError, match="may not be read"):
        load_config(path, {})


def test_files_are_not_looked_at_where_nobody_needs_them(tmp_path: Path) -> None:
    path = write(tmp_path, INBOUND + 'tls_certificate = "cert.pem"\ntls_key = "key.pem"\n')
    assert load_config(path, {}, look_at_files=False).settings.inbound is not None


# The example


def uncommented(text: str) -> str:
    return re.sub(r"(?m)^# (?=\[{0,2}[a-z0-9_.]+\]{0,2}(?: = .*)?$)", "", text)


def sections() -> Iterator[tuple[str, type[BaseModel]]]:
    yield "", Settings
    for name, field in Settings.model_fields.items():
        if model := section_model(field.annotation):
            yield name, model


def test_the_example_loads_as_it_stands(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, example_config()), {})
    assert settings.inbound is not None
    assert settings.milter is None


def test_every_default_in_the_example_is_the_default(tmp_path: Path) -> None:
    files = "zone_file|seal_[a-z]+|ca_file|token"
    text = re.sub(rf"(?m)^({files}) = .*$", "", uncommented(example_config()))
    path = write(tmp_path, text)
    table = tomllib.loads(text)
    loaded = load_config(path, {}, look_at_files=False).settings
    for name, model in sections():
        section = getattr(loaded, name) if name else loaded
        given = table[name] if name else table
        if isinstance(given, list):
            (section,), (given,) = section, given
        for key, field in model.model_fields.items():
            if (
                key in given
                and not field.is_required()
                and not field.examples
                and section_model(field.annotation) is None
            ):
                assert getattr(section, key) == field.get_default(), f"{name}.{key}"


@pytest.mark.parametrize(("name", "model"), list(sections()))
def test_every_key_is_in_the_example(name: str, model: type[BaseModel]) -> None:
    table = tomllib.loads(uncommented(example_config()))
    section = table[name] if name else table
    if isinstance(section, list):
        (section,) = section
    assert set(section) == set(model.model_fields)


def test_the_shipped_file_is_the_example() -> None:
    assert SHIPPED.read_text(encoding="utf-8") == example_config()


@pytest.mark.parametrize("name", NOT_YET)
def test_what_this_release_does_not_have_is_never_ignored(tmp_path: Path, name: str) -> None:
    section, _, key = name.partition(".")
    said = faults(tmp_path, f"{MILTER}[{section}]\n{key or 'any'} = 1\n")
    assert len(said) == 1
    assert f"{name}: is not in this release" in said[0]


# Fuzz: `Settings` or `ConfigError`, never anything else

VALUES = st.one_of(
    st.text(max_size=30).map(lambda text: '"' + "".join(f"\\U{ord(c):08x}" for c in text) + '"'),
    st.integers(min_value=-(2**63), max_value=2**63 - 1).map(str),
    st.sampled_from(
        [
            "true",
            "nan",
            "-inf",
            "1e400",
            "[]",
            "[[]]",
            "{}",
            "{a=1}",
            "[1, 'x']",
            "1979-05-27",
            "00:00:00",
            "'\\\\'",
            "",
            "=",
        ]
    ),
    st.sampled_from(
        [
            "'[::1]:25'",
            "'::'",
            "':'",
            "'[]:1'",
            "'unix:'",
            "'unix:/\\u0000'",
            "'0/0'",
            "'x/..'",
            "'.'",
            "'..'",
        ]
    ),
)
KEYS = [
    f"GATEWAY_{name.upper()}__{key.upper()}"
    for name, model in sections()
    if name
    for key in model.model_fields
] + [f"GATEWAY_{name.upper()}" for name in ("authserv_id", "hostname", "local_domains", "workers")]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=6))
def test_any_values_are_settings_or_faults(tmp_path: Path, values: dict[str, str]) -> None:
    path = write(tmp_path, INBOUND)
    try:
        outcome: Settings | ConfigError = load_settings(path, values)
    except ConfigError as error:
        outcome = error
    said = [str(fault) for fault in outcome.faults] if isinstance(outcome, ConfigError) else []
    assert all(fault.isprintable() for fault in said)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.one_of(
        st.binary(max_size=200), st.text(alphabet='[]="\n{}.#abd_1', max_size=60).map(str.encode)
    )
)
def test_any_file_is_settings_or_faults(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "gateway.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError):
        load_settings(path, {})


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=300))
def test_a_shown_value_is_short_and_printable(text: str) -> None:
    assert shown("key", text).isprintable()
    assert len(shown("key", text)) <= 80


# Our own MTA-STS policy

MTA_STS = INBOUND + '[mta_sts]\nmode = "{mode}"\nmx = {mx}\n'


@pytest.mark.parametrize(
    ("mode", "mx", "warned"),
    [
        ("enforce", '["mx.example.net"]', False),
        ("enforce", '["*.example.net"]', False),
        ("enforce", '["other.example.net"]', True),  # senders would not deliver to this host
        ("testing", '["*.mx.example.net"]', True),
        ("none", "[]", False),
    ],
)
def test_a_policy_that_leaves_this_host_out_is_a_warning(
    tmp_path: Path, mode: str, mx: str, *, warned: bool
) -> None:
    found = load_config(write(tmp_path, MTA_STS.format(mode=mode, mx=mx)), {}).warnings
    assert ["does not name mx.example.net" in fault.what for fault in found] == [True] * warned


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (("mta-sts.example.net", "mta-sts.example.org"), []),
        (("*.example.net", "*.example.org"), []),
        (("mta-sts.example.net",), ["mta-sts.example.org"]),
        (("example.net", "*.mta-sts.example.net"), ["mta-sts.example.net", "mta-sts.example.org"]),
    ],
)
def test_a_certificate_that_is_not_good_for_a_policy_host_is_a_warning(
    tmp_path: Path, authority: trustme.CA, names: tuple[str, ...], missing: list[str]
) -> None:
    pair = authority.issue_cert(*names)
    tls_config(tmp_path, pair, pair)
    text = MTA_STS.format(mode="testing", mx='["mx.example.net"]').replace(
        '["example.net"]', '["example.net", "example.org", ".example.com"]'
    )
    more = 'listen = ["127.0.0.1:443"]\ntls_certificate = "cert.pem"\ntls_key = "key.pem"\n'
    found = load_config(write(tmp_path, text + more), {}).warnings
    assert [fault.what for fault in found] == [f"is not good for {host}" for host in missing]

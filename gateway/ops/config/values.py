"""The single values of the config file: text as an operator writes it to a value of ours, or a fault that helps.

Each `parse_` function takes what TOML or the environment gave and returns the value, or raises `wrong(what, remedy)`.
"""

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import idna
from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, ValidationInfo
from pydantic_core import PydanticCustomError

from gateway.policy import SHIPPED

IpNetwork = IPv4Network | IPv6Network

MAX_PORT: Final = 65_535
MAX_SOCKET_PATH_BYTES: Final = 107  # sun_path is 108 bytes with its NUL on Linux
MAX_DOMAIN_BYTES: Final = 253  # RFC 1035 §2.3.4 as text, without the final dot
DNS_PORT: Final = 53

_SOCKET_MODES: Final = range(0o600, 0o777 + 1)
_LABEL: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?")
_BRACKETED: Final = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::([0-9]{1,6}))?")


def wrong(what: str, remedy: str) -> PydanticCustomError:
    """A fault of one value: what is wrong with it, and what the operator is to write instead."""
    return PydanticCustomError("gateway", "{what}", {"what": what, "remedy": remedy})


def did_you_mean(word: str, known: Sequence[str]) -> str | None:
    """The known word that was probably meant."""
    close = get_close_matches(word[:100], known, n=1, cutoff=0.6)
    return close[0] if close else None


class HostPort(NamedTuple):
    """Where to listen or to connect: `host` is a name or an address, IPv6 without its brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        """As the config writes it: `[::1]:25`."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_host_port(given: object, *, default_port: int | None = None) -> HostPort:
    """Read `host:port` or `[ipv6]:port`; the port may be left out where there is a default."""
    match given:
        case HostPort():
            return given
        case str():
            host, port = _split_host_port(given.strip(), default_port)
        case _:
            raise wrong("is not text", 'write it as "host:port" in quotes, for example "127.0.0.1:25"')
    if port > MAX_PORT:
        raise wrong(f"port {port} does not exist", f"give a port between 1 and {MAX_PORT}")
    if ":" not in host and not (_is_ipv4(host) or is_domain(host)):
        raise wrong(
            "has no valid host name or address before the port",
            'write "192.0.2.1:25" or "mail.example.net:25"',
        )
    return HostPort(host, port)


def _split_host_port(text: str, default_port: int | None) -> tuple[str, int]:
    bracketed = _BRACKETED.fullmatch(text)
    if bracketed:
        host, digits = bracketed.groups()
        if not _is_ipv6(host):
            raise wrong("has no valid IPv6 address in its brackets", 'write it like "[2001:db8::1]:25"')
    elif text.count(":") > 1:
        if not _is_ipv6(text):
            raise wrong("is not host:port", 'write "host:port", and an IPv6 address in brackets: "[::1]:25"')
        if default_port is None:
            raise wrong(
                "is an IPv6 address without brackets and port", f'write "[{text}]:25" with the right port'
            )
        return text, default_port
    else:
        host, _, digits = text.partition(":")
    if not digits:
        if default_port is None and host.isdecimal():
            raise wrong(
                "has no address before the port", f'write "127.0.0.1:{host}" to serve this host alone'
            )
        if default_port is None or text.endswith(":"):
            raise wrong("has no port", f'write "{text.rstrip(":")}:25" with the right port')
        return host, default_port
    if not (digits.isascii() and digits.isdigit() and len(digits) <= len(str(MAX_PORT)) + 1):
        raise wrong("has a port that is not a number", 'write "host:port", for example "127.0.0.1:25"')
    return host, int(digits)


def _is_ipv4(text: str) -> bool:
    try:
        return ip_address(text).version == 4  # noqa: PLR2004 - the protocol's own number
    except ValueError:
        return False


def _is_ipv6(text: str) -> bool:
    try:
        return ip_address(text).version == 6  # noqa: PLR2004 - the protocol's own number
    except ValueError:
        return False


def _parse_listen(given: object) -> HostPort:
    return parse_host_port(given)


def _parse_connect(given: object) -> HostPort:
    target = parse_host_port(given)
    if target.port == 0:
        raise wrong("port 0 cannot be connected to", "give the port that the server listens on")
    return target


def _parse_dns_server(given: object) -> HostPort:
    server = parse_host_port(given, default_port=DNS_PORT)
    if not (_is_ipv4(server.host) or _is_ipv6(server.host)):
        raise wrong("a DNS server is given by its address", 'write "127.0.0.1" or "[::1]:53"')
    if server.port == 0:
        raise wrong("port 0 cannot be connected to", "leave the port out for 53")
    return server


def parse_network(given: object) -> IpNetwork:
    """Read `192.0.2.0/24`, `2001:db8::/32` or one address."""
    match given:
        case IPv4Network() | IPv6Network():
            return given
        case str():
            text = given.strip()
        case _:
            raise wrong("is not text", 'write it in quotes, for example "192.0.2.0/24"')
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        raise wrong(
            "is not an address or a network", 'write "192.0.2.7", "192.0.2.0/24" or "2001:db8::/32"'
        ) from None
    if network.prefixlen == 0:
        raise wrong(
            "is the whole internet: anybody could claim anything", "name only hosts that you run yourself"
        )
    if "/" in text and str(network.network_address) != str(ip_address(text.partition("/")[0])):
        raise wrong(
            "has bits set beyond its prefix",
            f'did you mean "{network}", or the one host "{text.partition("/")[0]}"?',
        )
    return network


def is_domain(text: str) -> bool:
    """Whether this is a host or domain name in ASCII: letters, digits, hyphens (and underscores), no final dot."""
    return len(text) <= MAX_DOMAIN_BYTES and all(_LABEL.fullmatch(label) for label in text.split("."))


def _domain(text: str) -> str:
    if not text.isascii():
        raise wrong("is not in ASCII", f"write the A-label form{_ascii_form(text)}")
    if not is_domain(text):
        raise wrong("is not a domain name", 'write it like "example.net": no blank, no final dot, no "@"')
    return text.lower()


def _ascii_form(text: str) -> str:
    try:
        return f': "{idna.encode(text, uts46=True).decode("ascii")}"'
    except (idna.IDNAError, UnicodeError):
        return ' ("xn--…")'


def _parse_local_domain(text: str) -> str:
    if text.startswith("*."):
        raise wrong("a star does not stand for subdomains here", f'write "{text[1:]}" for all subdomains')
    if text.startswith("."):
        return "." + _domain(text[1:])
    return _domain(text)


def _parse_host_name(text: str) -> str:
    name = _domain(text)
    if "." not in name:
        raise wrong("is not a full host name", 'write it with its domain: "mx.example.net"')
    if _is_ipv4(name):
        raise wrong("is an address", 'write a host name: "mx.example.net"')
    return name


def _parse_socket(given: str) -> str:
    scheme, colon, path = given.partition(":")
    if scheme in {"inet", "inet6"} and colon:
        raise wrong(
            "a milter over TCP is refused: the protocol has no log-in, and whoever reached the port could say who the client is",
            'write "unix:/run/gateway/milter.sock"',
        )
    if scheme not in {"unix", "local"} or not path.startswith("/"):
        raise wrong("is not a UNIX socket", 'write "unix:" and a full path: "unix:/run/gateway/milter.sock"')
    if len(path.encode()) > MAX_SOCKET_PATH_BYTES or "\0" in path:
        raise wrong(
            f"the path is over {MAX_SOCKET_PATH_BYTES} bytes, the most that a socket may have", "shorten it"
        )
    return f"unix:{path}"


def resolve_path(path: Path, info: ValidationInfo) -> Path:
    """Relative paths are relative to the config file, wherever the gateway was started."""
    if "\0" in str(path):
        raise wrong("a path cannot contain NUL", "write the file's path")
    base = (info.context or {}).get("directory")
    return path if base is None else Path(base) / path


def _parse_rules(given: object, info: ValidationInfo) -> str | Path:
    match given:
        case Path():
            return resolve_path(given, info)
        case str() if given in SHIPPED:
            return given
        case str() if "/" in given or given.endswith(".toml"):
            return resolve_path(Path(given), info)
        case str():
            meant = did_you_mean(given, SHIPPED)
            shipped = ", ".join(f'"{name}"' for name in SHIPPED)
            raise wrong(
                "no rules of this name are shipped",
                f'did you mean "{meant}"?'
                if meant
                else f"write one of {shipped}, or the path of a .toml file",
            )
        case _:
            raise wrong(
                "is not text",
                'write a shipped name or a path in quotes: "default", "/etc/gateway/rules.toml"',
            )


def _parse_mode(given: object) -> int:
    if not isinstance(given, int) or isinstance(given, bool) or given not in _SOCKET_MODES:
        raise wrong("is no file mode that lets the mail server in", "write it in octal: 0o660")
    return given


def _parse_group(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}", text):
        raise wrong("is no group's name", 'write one of /etc/group, such as "postfix"')
    return text


def parse_socket_or_address(given: object) -> "HostPort | str":
    """Read `unix:/path` or `host:port`."""
    if isinstance(given, str) and given.startswith(("unix:", "local:")):
        return _parse_socket(given)
    return parse_host_port(given)


def _parse_selector(text: str) -> str:
    if not text.isascii() or not is_domain(text):
        raise wrong("is not a selector", 'write letters, digits and hyphens: "2026a"')
    return text.lower()


def _parse_mx_pattern(text: str) -> str:
    if text.startswith("*."):
        return "*." + _parse_host_name(text[2:])
    return _parse_host_name(text)


def _parse_store_url(text: str, info: ValidationInfo) -> str:
    """A URL; the relative path of a SQLite file is relative to the config file, as all others are."""
    if not text.startswith((_SQLITE, "postgresql+psycopg://")):
        raise wrong(
            "is not a store that we know",
            'write "sqlite:////var/lib/gateway/gateway.db" or "postgresql+psycopg://user:password@host/name"',
        )
    if not text.startswith(_SQLITE):
        return text
    path, mark, options = text.removeprefix(_SQLITE).partition("?")
    if not path:
        raise wrong(
            "names no file", 'write "sqlite:////var/lib/gateway/gateway.db": four slashes, then the path'
        )
    return f"{_SQLITE}{resolve_path(Path(path), info)}{mark}{options}"


def _parse_login_map(given: object) -> dict[str, tuple[str, ...]]:
    if not isinstance(given, Mapping):
        raise wrong("is not a table", 'write it like { "ann" = ["ann@example.net", "@lists.example.net"] }')
    return {
        str(login): tuple(map(_parse_sender, _some_list(addresses))) for login, addresses in given.items()
    }


def _some_list(given: object) -> Sequence[object]:
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise wrong("has a value that is not a list", 'write addresses in brackets: ["ann@example.net"]')
    return given


def _parse_sender(given: object) -> str:
    if not isinstance(given, str):
        raise wrong("has an address that is not text", 'write it in quotes: "ann@example.net"')
    local_part, at, domain = given.rpartition("@")
    if not at or any(blank in local_part for blank in ' \t\r\n<>"'):
        raise wrong(
            "has something that is not an address", 'write "ann@example.net", or "@example.net" for a domain'
        )
    return f"{local_part}@{_domain(domain)}"


def _parse_delimiter(text: str) -> str:
    if len(text) > 1 or text in {"@", " "}:
        raise wrong("is not one character", 'write "+", or leave it out')
    return text


def _parse_tls_overrides(given: object) -> dict[str, str]:
    if not isinstance(given, Mapping):
        raise wrong("is not a table", 'write it like { "example.com" = "may" }')
    for domain, level in given.items():
        if level not in TLS_OVERRIDES:
            meant = did_you_mean(str(level), TLS_OVERRIDES)
            raise wrong(
                f"has an unknown level for {str(domain)[:80]}",
                f'did you mean "{meant}"?' if meant else f"write one of {', '.join(TLS_OVERRIDES)}",
            )
    return {_parse_local_domain(str(domain)): str(level) for domain, level in given.items()}


def _parse_address(given: object, version: int) -> IPv4Address | IPv6Address:
    try:
        address = ip_address(
            given if isinstance(given, IPv4Address | IPv6Address) else str(given).strip("[]")
        )
    except ValueError:
        address = None
    if address is None or address.version != version:
        raise wrong(f"is not an IPv{version} address", "write one address of this host in quotes")
    return address


def _parse_address4(given: object) -> IPv4Address | IPv6Address:
    return _parse_address(given, 4)


def _parse_address6(given: object) -> IPv4Address | IPv6Address:
    return _parse_address(given, 6)


def _whole_list(given: object) -> object:
    if isinstance(given, str):
        raise wrong("is one value where a list belongs", f'put it in brackets: ["{given[:60]}"]')
    return given


MIN_TOKEN_CHARACTERS: Final = 16


def is_token(text: str) -> bool:
    """Whether it can be a token: long enough that guessing is hopeless, and fit for a header field."""
    return len(text) >= MIN_TOKEN_CHARACTERS and text.isascii() and text.isprintable() and " " not in text


def _parse_token(given: object) -> str:
    if not isinstance(given, str) or not is_token(given):
        raise wrong(
            f"is no token: {MIN_TOKEN_CHARACTERS} or more ASCII characters without spaces",
            "make one: openssl rand -hex 24",
        )
    return given


_SQLITE: Final = "sqlite:///"

TLS_OVERRIDES: Final = ("may", "encrypt", "secure", "dane-only", "refuse")
"""What an operator may demand for a recipient domain; the first four are Postfix's own words."""

Seconds = Annotated[float, Field(strict=True, gt=0, le=86_400, allow_inf_nan=False)]
Count = Annotated[int, Field(strict=True, ge=1, le=10_000_000)]
Bytes = Annotated[int, Field(strict=True, ge=1, le=2**40)]
Flag = Annotated[bool, Field(strict=True)]
GroupName = Annotated[str, AfterValidator(_parse_group)]
SocketMode = Annotated[int, PlainValidator(_parse_mode)]
Token = Annotated[str, PlainValidator(_parse_token)]
Listen = Annotated[HostPort, PlainValidator(_parse_listen)]
Connect = Annotated[HostPort, PlainValidator(_parse_connect)]
Listens = Annotated[tuple[Listen, ...], BeforeValidator(_whole_list), Field(min_length=1, max_length=100)]
DnsServer = Annotated[HostPort, PlainValidator(_parse_dns_server)]
SomeListens = Annotated[tuple[Listen, ...], BeforeValidator(_whole_list), Field(max_length=100)]
DnsServers = Annotated[
    tuple[DnsServer, ...],
    BeforeValidator(_whole_list),
    Field(max_length=8),
]
Networks = Annotated[
    tuple[Annotated[IpNetwork, PlainValidator(parse_network)], ...],
    BeforeValidator(_whole_list),
    Field(max_length=10_000),
]
HostName = Annotated[str, AfterValidator(_parse_host_name)]
HostNames = Annotated[tuple[HostName, ...], BeforeValidator(_whole_list), Field(max_length=100)]
LocalDomains = Annotated[
    tuple[Annotated[str, AfterValidator(_parse_local_domain)], ...],
    BeforeValidator(_whole_list),
    Field(max_length=100_000),
]
Domain = Annotated[str, AfterValidator(_domain)]
Domains = Annotated[tuple[Domain, ...], BeforeValidator(_whole_list), Field(max_length=10_000)]
Selector = Annotated[str, AfterValidator(_parse_selector)]
MxPatterns = Annotated[
    tuple[Annotated[str, AfterValidator(_parse_mx_pattern)], ...],
    BeforeValidator(_whole_list),
    Field(max_length=100),
]
StoreUrl = Annotated[str, AfterValidator(_parse_store_url)]
Delimiter = Annotated[str, AfterValidator(_parse_delimiter)]
LoginMap = Annotated[Mapping[str, tuple[str, ...]], PlainValidator(_parse_login_map)]
TlsOverrides = Annotated[Mapping[str, str], PlainValidator(_parse_tls_overrides)]
Address4 = Annotated[IPv4Address, PlainValidator(_parse_address4)]
Address6 = Annotated[IPv6Address, PlainValidator(_parse_address6)]
Port = Annotated[int, Field(strict=True, ge=1, le=MAX_PORT)]
ListenAnywhere = Annotated[HostPort | str, PlainValidator(parse_socket_or_address)]
Workers = Annotated[int, Field(strict=True, ge=1, le=1_000)]
UnixSocket = Annotated[str, AfterValidator(_parse_socket)]
FilePath = Annotated[Path, AfterValidator(resolve_path)]
Rules = Annotated[str | Path, PlainValidator(_parse_rules)]

"""Fetching the policy file from `https://mta-sts.<domain>/.well-known/mta-sts.txt` (RFC 8461 §3.3).

The certificate is what the policy rests on: a full check, for that very name, and no redirect to where another one would hold. All
else is a stranger's server: bounded in time, in size, and nothing that it says is kept.
"""

import asyncio
import errno
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Final, Protocol

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from gateway import __version__
from gateway.dns.resolver import Answer, RecordType, Resolver, outcome_word
from gateway.tlspolicy.model import TlsProblem
from gateway.tlspolicy.mta_sts.policy import MAX_POLICY_BYTES, Policy, PolicyError, parse_policy

MAX_FETCHES: Final = 200
MAX_FETCHES_PER_NETWORK: Final = 10
"""At a time, in all and to policy hosts of one network: slow hosts of one stranger leave room for those of all others."""

PLACE_WAIT_S: Final = 3.0
"""So long a fetch waits for others to end; with DNS (5 s) and the fetch itself (10 s) it keeps within Postfix's question."""

LATE_S: Final = 0.5
"""Where the end of the time is noticed so late, it was we who had no time, and nothing is said of the host."""

_NETWORK_BITS: Final = {4: 24, 6: 48}  # what one customer of a provider has, about

MAX_ADDRESSES: Final = 8
_READ_BYTES: Final = 8_192
_HTTPS_PORT: Final = 443
_HEADERS: Final = {
    "Accept": "text/plain",
    "Accept-Encoding": "identity",  # 64 KiB of gzip can be 64 MiB of policy
    "User-Agent": f"mailflow-gateway/{__version__} (MTA-STS)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """A valid policy, and its text as it came."""

    policy: Policy
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchFailure:
    """There is none to be had; `detail` is for the operator, and may hold a stranger's text."""

    problem: TlsProblem
    detail: str


class Fetcher(Protocol):
    """Where policy files come from."""

    async def fetch(self, domain: str) -> Fetched | FetchFailure:
        """The policy of `domain`. Bounded in time; never raises for anything that the network does."""
        ...

    async def aclose(self) -> None:
        """Stop."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchOptions:
    """How to fetch.

    Attributes:
        timeout_s: for a fetch as a whole, look-ups included.
        port: 443 but in tests.
        ca_file: who is trusted (PEM); None: the system's authorities.
    """

    timeout_s: float = 10.0
    port: int = _HTTPS_PORT
    ca_file: Path | None = None


class HttpsFetcher:
    """Fetches by HTTPS; names are looked up by our own resolver.

    Raises:
        OSError: `ca_file` cannot be read, or holds no certificate.
    """

    def __init__(self, resolver: Resolver, options: FetchOptions = FetchOptions()) -> None:
        self._options = options
        self._tls = _tls_context(options.ca_file)
        self._names = _Names(resolver)
        self._places = _Places()
        self._session: aiohttp.ClientSession | None = None

    async def fetch(self, domain: str) -> Fetched | FetchFailure:
        """See `Fetcher.fetch`."""
        loop = asyncio.get_running_loop()
        clock = asyncio.timeout(self._options.timeout_s)
        try:
            async with clock:
                addresses = await self._names.resolve(f"mta-sts.{domain}")
                left_s = (clock.when() or 0.0) - loop.time()
                clock.reschedule(None)  # that others are slow is not this host's fault
                async with self._places.one(_network(addresses[0]["host"])):
                    clock.reschedule(loop.time() + left_s)
                    return await self._fetch(domain)
        except _BusyError:
            return FetchFailure(
                problem=TlsProblem.STS_FETCH_BUSY, detail="too many policies are being fetched already"
            )
        except TimeoutError:
            if loop.time() - (clock.when() or 0.0) > LATE_S:
                return FetchFailure(
                    problem=TlsProblem.STS_FETCH_BUSY, detail="this process was held up meanwhile"
                )
            return FetchFailure(
                problem=TlsProblem.STS_FETCH_TIMEOUT, detail=f"not done after {self._options.timeout_s:g} s"
            )
        except aiohttp.ClientConnectorCertificateError as error:
            return FetchFailure(problem=TlsProblem.STS_FETCH_CERTIFICATE, detail=str(error.certificate_error))
        except aiohttp.ClientConnectorError as error:
            detail = error.os_error.strerror or str(error.os_error)
            return FetchFailure(problem=TlsProblem.STS_FETCH_CONNECT, detail=detail)
        except _NoAddressError as error:
            return FetchFailure(problem=TlsProblem.STS_FETCH_CONNECT, detail=error.strerror)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return FetchFailure(
                problem=TlsProblem.STS_FETCH_CONNECT, detail=f"{type(error).__name__}: {error}"
            )

    async def aclose(self) -> None:
        """Close what is open."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _fetch(self, domain: str) -> Fetched | FetchFailure:
        port = "" if self._options.port == _HTTPS_PORT else f":{self._options.port}"
        url = f"https://mta-sts.{domain}{port}/.well-known/mta-sts.txt"
        async with self._open().get(url, allow_redirects=False) as response:
            refused = _refuse_head(response)
            if refused is not None:
                return refused
            body = bytearray()
            async for piece in response.content.iter_chunked(_READ_BYTES):
                body += piece
                if len(body) > MAX_POLICY_BYTES:
                    return FetchFailure(
                        problem=TlsProblem.STS_FETCH_TOO_LARGE, detail=f"over {MAX_POLICY_BYTES} bytes"
                    )
        try:
            return Fetched(policy=parse_policy(bytes(body)), text=body.decode())
        except PolicyError as error:
            return FetchFailure(problem=TlsProblem.STS_POLICY_INVALID, detail=str(error))

    def _open(self) -> aiohttp.ClientSession:
        """The session, made on the loop that uses it. Nothing outlives a fetch in it: no connection, no cookie, no name."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    resolver=self._names,
                    ssl=self._tls,
                    limit=0,  # `_Places` has them
                    force_close=True,
                    use_dns_cache=False,
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=_HEADERS,
                timeout=aiohttp.ClientTimeout(total=None),
                auto_decompress=False,
                trust_env=False,
            )
        return self._session


def _refuse_head(response: aiohttp.ClientResponse) -> FetchFailure | None:
    """RFC 8461 §3.3: 200 and nothing else, no redirect, and media type text/plain (§3.2), with its end marked."""
    if 300 <= response.status < 400:  # noqa: PLR2004  # RFC 9110 §15.4
        location = response.headers.get("Location", "nowhere")
        return FetchFailure(
            problem=TlsProblem.STS_FETCH_REDIRECT, detail=f"{response.status} to {location[:200]}"
        )
    if response.status != 200:  # noqa: PLR2004  # RFC 9110 §15.3.1
        return FetchFailure(problem=TlsProblem.STS_FETCH_STATUS, detail=f"status {response.status}")
    encoding = response.headers.get("Content-Encoding", "identity")
    if response.content_type != "text/plain" or encoding.lower() != "identity":
        detail = f"{response.content_type[:100]}, content encoding {encoding[:40]}"
        return FetchFailure(problem=TlsProblem.STS_FETCH_TYPE, detail=detail)
    if (
        "Content-Length" not in response.headers
        and response.headers.get("Transfer-Encoding", "").lower() != "chunked"
    ):
        # RFC 9112 §9.8: whoever is on the way can cut it short, to a `max_age` of seconds, and asyncio does not tell us.
        return FetchFailure(
            problem=TlsProblem.STS_FETCH_CONNECT,
            detail="neither Content-Length nor chunks: a policy that was cut off could not be told from a whole one",
        )
    return None


def _tls_context(ca_file: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # RFC 8461 §3.3, RFC 8996
    context.hostname_checks_common_name = False  # RFC 8461 §3.3: a DNS-ID; the CN does not count
    return context


class _BusyError(Exception):
    """No place came free in time."""


@dataclass(slots=True)
class _Share:
    places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_FETCHES_PER_NETWORK))
    users: int = 0


class _Places:
    """The fetches that may go on at a time; whoever waits for one of his own network holds no place of others."""

    def __init__(self) -> None:
        self._all = asyncio.Semaphore(MAX_FETCHES)
        self._shares: dict[IPv4Network | IPv6Network, _Share] = {}

    @asynccontextmanager
    async def one(self, network: IPv4Network | IPv6Network) -> AsyncIterator[None]:
        """A place, until it is left; _BusyError where there is none in time."""
        share = self._shares.setdefault(network, _Share())
        share.users += 1
        try:
            async with AsyncExitStack() as places:
                try:
                    async with asyncio.timeout(PLACE_WAIT_S):
                        await places.enter_async_context(share.places)
                        await places.enter_async_context(self._all)
                except TimeoutError:
                    raise _BusyError from None
                yield
        finally:
            share.users -= 1
            if not share.users:
                del self._shares[network]


def _network(address: str) -> IPv4Network | IPv6Network:
    bits = _NETWORK_BITS[ip_address(address).version]
    return ip_network(f"{address}/{bits}", strict=False)


class _NoAddressError(OSError):
    """The policy host has none, or none can be found."""

    strerror: str


class _Names(AbstractResolver):
    """Gives aiohttp the addresses that our resolver knows, not those of the system's."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """All addresses, IPv6 first (RFC 8305 §4); _NoAddressError where there is none."""
        del family
        outcomes = await asyncio.gather(
            self._resolver.query(host, RecordType.AAAA), self._resolver.query(host, RecordType.A)
        )
        found = [
            _result(host, port, address)
            for outcome in outcomes
            if isinstance(outcome, Answer)
            for address in _addresses(outcome)
        ]
        if not found:
            words = f"AAAA: {outcome_word(outcomes[0])}, A: {outcome_word(outcomes[1])}"
            raise _NoAddressError(errno.EHOSTUNREACH, f"no address of {host} ({words})")
        return found[:MAX_ADDRESSES]

    async def close(self) -> None:
        """Nothing is open."""


def _addresses(answer: Answer) -> Iterator[IPv4Address | IPv6Address]:
    return (record for record in answer.records if isinstance(record, IPv4Address | IPv6Address))


def _result(host: str, port: int, address: IPv4Address | IPv6Address) -> ResolveResult:
    return ResolveResult(
        hostname=host,
        host=str(address),
        port=port,
        family=socket.AF_INET if address.version == 4 else socket.AF_INET6,  # noqa: PLR2004
        proto=socket.IPPROTO_TCP,
        flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
    )

"""Open a conversation with one mail server of the world under the demands that hold for it, and say what happened.

Connect (RFC 8305: both address families, staggered), greeting, EHLO, STARTTLS, handshake, EHLO again. Where nothing is demanded, TLS is
used if it can be had and done without if not (RFC 7435); where something is, mail does not leave until it is there.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from itertools import zip_longest
from typing import Final

from gateway.listeners.downstream import Owner
from gateway.listeners.remote.connection import START_TLS, ConversationError, RemoteConnection
from gateway.listeners.remote.tls import (
    ClientContexts,
    handshake_problem,
    peer_chain,
    wrong_with,
)
from gateway.mail.envelope import IpAddress, Tls
from gateway.mail.reply import Reply
from gateway.smtp.client import DownstreamFailure
from gateway.smtp.ehlo import Capabilities, parse_capabilities
from gateway.tlspolicy.model import Demand, HostPolicy, TlsProblem

GOODBYE_S: Final = 1.0
"""A server that was only looked at has so long to hear QUIT."""

STAGGER_S: Final = 0.25  # RFC 8305 §5
MAX_ADDRESSES: Final = 6
"""Of one host; more say that somebody wants us to knock at many doors."""

_READY: Final = 220
_OK: Final = 250
_CLOSING: Final = 421


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteOptions:
    """How we meet the world; the config's `[outbound]` says what each means."""

    ehlo_name: str
    contexts: ClientContexts
    port: int = 25
    source_ipv4: IPv4Address | None = None
    source_ipv6: IPv6Address | None = None
    connect_timeout_s: float = 20.0
    command_timeout_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionFacts:
    """What became of one session with one address of one host, up to where mail could be sent.

    Attributes:
        policy: what it was to be.
        address: the server's; None where it has none.
        source: ours.
        helo: what the server calls itself in its EHLO reply.
        tls: None where the session is in clear text.
        chain: the server's certificates in DER, its own first.
        problem: what its TLS lacks of what was asked for, or hoped for; the session may be usable all the same.
        failure: why no mail can be sent; None: it can.
        detail: for the operator: what happened.
        reply: the server's own words where it refused.
        seconds: how long it took.
    """

    policy: HostPolicy
    address: IpAddress | None = None
    source: IpAddress | None = None
    helo: str | None = None
    tls: Tls | None = None
    chain: tuple[bytes, ...] = ()
    problem: TlsProblem | None = None
    failure: DownstreamFailure | None = None
    detail: str = ""
    reply: Reply | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Protection:
    """What a session has of TLS, and what it lacks."""

    tls: Tls | None = None
    chain: tuple[bytes, ...] = ()
    lacks: TlsProblem | None = None
    detail: str = ""


class _TlsError(Exception):
    """TLS is not what it must be; the server may still be asked for less, on a new connection."""

    def __init__(self, problem: TlsProblem, detail: str, chain: tuple[bytes, ...] = ()) -> None:
        super().__init__(detail)
        self.problem = problem
        self.detail = detail
        self.chain = chain


async def open_host(
    policy: HostPolicy,
    addresses: Iterable[IpAddress],
    options: RemoteOptions,
    owner: Owner,
    tell: Callable[[SessionFacts], None],
) -> tuple[RemoteConnection, SessionFacts] | None:
    """A connection to the host that mail can be sent over, by the first of its addresses where there is one.

    Args:
        policy: what the connection must be.
        addresses: in any order; IPv6 and IPv4 take turns.
        options: how we meet the world.
        owner: whose the connection is.
        tell: hears of every session, the good one last.
    """
    remaining = interleaved(addresses)
    while remaining:
        started = time.monotonic()
        connection, failed = await _connect_first(remaining, options, owner)
        for address, detail in failed.items():
            remaining.remove(address)
            facts = SessionFacts(
                policy=policy, address=address, failure=DownstreamFailure.CONNECT, detail=detail
            )
            tell(replace(facts, seconds=time.monotonic() - started))
        if connection is None:
            return None
        address = remaining.pop(remaining.index(connection[1]))
        opened, facts = await _open(policy, connection[0], address, options, owner)
        facts = replace(facts, seconds=time.monotonic() - started)
        tell(facts)
        if opened:
            return opened, facts
    return None


async def probe_host(
    policy: HostPolicy, addresses: Iterable[IpAddress], options: RemoteOptions
) -> list[SessionFacts]:
    """Try each of the host's addresses as a delivery would, send no mail, and say what happened there."""
    found: list[SessionFacts] = []
    leaving = _Leaving()
    for address in interleaved(addresses):
        opened = await open_host(policy, [address], options, leaving, found.append)
        if opened:
            await leaving.see_off(opened[0])
    return found


def interleaved(addresses: Iterable[IpAddress]) -> list[IpAddress]:
    """IPv6 first, then by turns (RFC 8305 §4), and not too many."""
    given = list(dict.fromkeys(addresses))
    six = [address for address in given if address.version == 6]  # noqa: PLR2004 - the family
    four = [address for address in given if address.version == 4]  # noqa: PLR2004
    turns = (address for pair in zip_longest(six, four) for address in pair if address is not None)
    return list(turns)[:MAX_ADDRESSES]


# Connecting


async def _connect_first(
    addresses: Sequence[IpAddress], options: RemoteOptions, owner: Owner
) -> tuple[tuple[RemoteConnection, IpAddress] | None, dict[IpAddress, str]]:
    """The first address that answers, each begun a moment after the one before it; and those that do not."""
    waiting = list(addresses)
    tasks: dict[asyncio.Task[RemoteConnection], IpAddress] = {}
    failed: dict[IpAddress, str] = {}
    try:
        while waiting or tasks:
            if waiting:
                address = waiting.pop(0)
                tasks[asyncio.ensure_future(_connect(address, options, owner))] = address
            done, _ = await asyncio.wait(
                tasks, timeout=STAGGER_S if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                error = task.exception()
                if error is None:
                    return (task.result(), tasks.pop(task)), failed
                if not isinstance(error, ConversationError):
                    raise error
                failed[tasks.pop(task)] = error.detail
        return None, failed
    finally:
        for task in tasks:
            _abandon(task)


def _abandon(task: asyncio.Task[RemoteConnection]) -> None:
    def close(done: asyncio.Task[RemoteConnection]) -> None:
        if not done.cancelled() and done.exception() is None:
            done.result().close()

    task.cancel()
    task.add_done_callback(close)


async def _connect(address: IpAddress, options: RemoteOptions, owner: Owner) -> RemoteConnection:
    source = options.source_ipv4 if isinstance(address, IPv4Address) else options.source_ipv6
    connection = RemoteConnection(owner, options.ehlo_name)
    try:
        async with asyncio.timeout(options.connect_timeout_s):
            await asyncio.get_running_loop().create_connection(
                lambda: connection,
                str(address),
                options.port,
                local_addr=None if source is None else (str(source), 0),
            )
    except TimeoutError:
        connection.close()
        raise ConversationError(DownstreamFailure.CONNECT, "connection timed out") from None
    except OSError as error:
        connection.close()
        raise ConversationError(DownstreamFailure.CONNECT, error.strerror or str(error)) from error
    except asyncio.CancelledError:
        connection.close()
        raise
    return connection


# The conversation


def _trials(policy: HostPolicy) -> tuple[HostPolicy | None, ...]:
    """How the server may be asked for TLS, one connection after the other; None is clear text."""
    if policy.demand is Demand.NONE:
        return policy, None
    if policy.is_enforced:
        return (policy,)
    return policy, replace(policy, demand=Demand.ENCRYPT), None


async def _open(
    policy: HostPolicy,
    first: RemoteConnection,
    address: IpAddress,
    options: RemoteOptions,
    owner: Owner,
) -> tuple[RemoteConnection | None, SessionFacts]:
    connection: RemoteConnection | None = first
    facts = SessionFacts(policy=policy, address=address, source=first.addresses()[0])
    try:
        for trial in _trials(policy):
            connection = connection or await _connect(address, options, owner)
            try:
                opened, facts = connection, await _converse(connection, trial, options, facts)
            except _TlsError as error:
                connection.close()
                connection = None
                facts = replace(
                    facts,
                    problem=facts.problem or error.problem,
                    detail=facts.detail or error.detail,
                    chain=facts.chain or error.chain,
                )
                if error.problem is TlsProblem.TLS_INJECTION:  # somebody is in between: nothing less will do
                    break
            else:
                connection = None
                return opened, facts
    except ConversationError as error:
        return None, replace(facts, tls=None, failure=error.failure, detail=error.detail, reply=error.reply)
    finally:
        if connection:
            connection.close()
    return None, replace(facts, tls=None, failure=DownstreamFailure.TLS)


async def _converse(
    connection: RemoteConnection, trial: HostPolicy | None, options: RemoteOptions, facts: SessionFacts
) -> SessionFacts:
    greeting = await connection.ask(b"", options.command_timeout_s)
    if greeting.code != _READY:
        raise _refused("greeting", greeting)
    helo, capabilities = await _hello(connection, options)
    if trial is not None:
        has = await _secure(connection, capabilities, trial, options)
        facts = replace(
            facts,
            tls=has.tls,
            chain=facts.chain or has.chain,
            problem=facts.problem or has.lacks,
            detail=facts.detail or has.detail,
        )
        if has.tls:
            helo, capabilities = await _hello_again(connection, options)
    connection.finish(capabilities)
    return replace(facts, helo=helo)


async def _hello(connection: RemoteConnection, options: RemoteOptions) -> tuple[str, Capabilities]:
    reply = await connection.ask(f"EHLO {options.ehlo_name}\r\n".encode("ascii"), options.command_timeout_s)
    if reply.is_permanent:  # RFC 5321 §3.2: before EHLO there was HELO
        reply = await connection.ask(
            f"HELO {options.ehlo_name}\r\n".encode("ascii"), options.command_timeout_s
        )
        if reply.code == _OK:
            return _first_word(reply), Capabilities()
    if reply.code != _OK:
        raise _refused("ehlo", reply)
    return _first_word(reply), parse_capabilities(reply)


async def _hello_again(connection: RemoteConnection, options: RemoteOptions) -> tuple[str, Capabilities]:
    """Within TLS: a server that took the handshake amiss says so only now (TLS 1.3)."""
    try:
        return await _hello(connection, options)
    except ConversationError as error:
        if error.failure is not DownstreamFailure.LOST:
            raise
        raise _TlsError(TlsProblem.TLS_HANDSHAKE, f"after the handshake: {error.detail}") from error


async def _secure(
    connection: RemoteConnection, offered: Capabilities, trial: HostPolicy, options: RemoteOptions
) -> _Protection:
    """TLS, as the trial asks for it."""
    must = trial.is_enforced and trial.demand is not Demand.NONE
    lacks, words = TlsProblem.TLS_NOT_OFFERED, "STARTTLS is not offered"
    if offered.starttls:
        reply = await connection.ask_starttls(options.command_timeout_s)
        if reply.code == START_TLS:
            return await _shake_hands(connection, trial, options, must=must)
        lacks, words = TlsProblem.TLS_REFUSED, f"STARTTLS: {reply}"
    if must:
        raise _TlsError(lacks, words)
    return _Protection(lacks=lacks, detail=words)


async def _shake_hands(
    connection: RemoteConnection, trial: HostPolicy, options: RemoteOptions, *, must: bool
) -> _Protection:
    if connection.has_unasked:
        # CVE-2021-38371 and its kin: replies put in before the handshake would be taken for the server's own after it.
        raise _TlsError(TlsProblem.TLS_INJECTION, "more than the reply to STARTTLS came in clear text")
    context = options.contexts.for_demand(trial.demand)
    try:
        session = await connection.start_tls(context, trial.server_name)
    except (OSError, ValueError) as error:  # ValueError: a name that cannot be an SNI
        raise _TlsError(handshake_problem(error), str(error) or type(error).__name__) from error
    chain = peer_chain(session)
    wrong = wrong_with(session, trial)
    words = f"the certificate does not satisfy {trial.demand}: {wrong}" if wrong else ""
    if wrong and must:
        raise _TlsError(wrong, words, chain)
    cipher = session.cipher()
    tls = Tls(version=session.version() or "unknown", cipher=cipher[0] if cipher else "unknown")
    return _Protection(tls=tls, chain=chain, lacks=wrong, detail=words)


def _first_word(reply: Reply) -> str:
    return reply.lines[0].partition(" ")[0][:255]


def _refused(step: str, reply: Reply) -> ConversationError:
    failure = DownstreamFailure.CLOSING if reply.code == _CLOSING else DownstreamFailure.REFUSED
    if reply.is_positive:
        failure = DownstreamFailure.PROTOCOL
    return ConversationError(failure, f"{step}: {reply}", reply)


class _Leaving:
    """Owner of connections that are not kept: whoever ends the loop next must not leave them half closed."""

    def __init__(self) -> None:
        self._gone = asyncio.Event()

    def forget(self, connection: object) -> None:
        """It is closed."""
        del connection
        self._gone.set()

    async def see_off(self, connection: RemoteConnection) -> None:
        """End it politely, and see that it has ended."""
        self._gone.clear()
        connection.quit()
        for _ in range(2):  # the second time by force
            try:
                async with asyncio.timeout(GOODBYE_S):
                    await self._gone.wait()
            except TimeoutError:
                connection.close()
            else:
                return

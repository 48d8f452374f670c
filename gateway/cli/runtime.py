"""A gateway that runs: the engine and its doors, opened together, reloaded and closed together."""

import asyncio
import errno
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog
from pydantic import BaseModel

from gateway import __version__
from gateway.cli.errors import UsageFault
from gateway.cli.wiring import Judging, Observers, build_engine, build_resolver, resolver_addresses
from gateway.dns.stub import StubResolver, Validation
from gateway.engine import Judged
from gateway.listeners.http import HttpListener, Readiness
from gateway.listeners.milter import MilterListener, MilterUnavailableError
from gateway.listeners.smtp import SmtpListener
from gateway.mail.author import Author
from gateway.ops.config import HostPort, HttpSettings, InboundSettings, MilterSettings, Settings
from gateway.ops.config.faults import ConfigError
from gateway.ops.config.load import Loaded, load_config
from gateway.ops.health import Health
from gateway.ops.log import judged_event
from gateway.policy import RuleError, RuleSet, load_rules

DRAIN_S: Final = 30.0
"""What is in flight has so long to end; systemd's own limit is 90."""

_RELOADED: Final = frozenset({"policy.rules"})
_REMEDIES: Final = {
    errno.EADDRINUSE: "another program listens there; `ss -ltnp` names it",
    errno.EACCES: "the gateway's user may not: ports below 1024 need CAP_NET_BIND_SERVICE",
    errno.EADDRNOTAVAIL: "this host has no such address",
    errno.ENOENT: "the directory does not exist; create it",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a config comes from, at the start and at each reload."""

    config: Path
    environ: Mapping[str, str]

    def read(self) -> tuple[Loaded, RuleSet]:
        """Read the config, the rules and all other files that it names.

        Raises:
            ConfigError, RuleError: with every fault.
        """
        loaded = load_config(self.config, self.environ)
        return loaded, load_rules(loaded.settings.policy.rules)


class Runtime:
    """Everything that runs in the process: build it and use it on one event loop."""

    def __init__(self, settings: Settings, rules: RuleSet) -> None:
        self.settings: Final = settings
        self.health: Final = Health()
        self.resolver: Final = build_resolver(settings.dns, Observers(dns=self.health.dns))
        self.engine: Final = build_engine(
            Judging(
                resolver=self.resolver,
                rules=rules,
                authserv_id=settings.authserv_id,
                dns=settings.dns,
                policy=settings.policy,
                dkim=settings.dkim,
            ),
            Observers(judged=self._judged),
        )
        self.smtp: SmtpListener | None = None
        self.milter: MilterListener | None = None
        self.http: HttpListener | None = None
        self._draining = False
        self._log = structlog.get_logger().bind()

    # Opening

    async def start(self) -> None:
        """Open every door that the config has.

        Raises:
            UsageFault: one cannot be opened, and what to do; none is open then.
        """
        settings = self.settings
        try:
            if settings.inbound is not None:
                await self._start_smtp(settings.inbound)
            if settings.milter is not None:
                await self._start_milter(settings.milter)
            if settings.http is not None:
                await self._start_http(settings.http)
        except UsageFault:
            await self.close()
            raise
        rules = self.engine.rules
        self._log.info(
            "gateway.started",
            version=__version__,
            authserv_id=settings.authserv_id,
            rules=rules.name,
            mode=rules.mode,
        )
        for listener, address in self.doors():
            self._log.info("listener.ready", listener=listener, address=address)

    async def _start_smtp(self, inbound: InboundSettings) -> None:
        self.smtp = SmtpListener(
            inbound,
            hostname=self.settings.hostname,
            local_domains=self.settings.local_domains,
            judge=self.engine,
            observer=self.health,
            asks=lambda stage: self.engine.rules.asks(stage),  # noqa: PLW0108 - a reload replaces `rules`
        )
        smtp = self.smtp
        self.health.bytes_in_flight_from(lambda: smtp.budget.used)
        try:
            await smtp.start()
        except OSError as error:
            raise _cannot_open("[inbound] listen", ", ".join(map(str, inbound.listen)), error) from error

    async def _start_milter(self, milter: MilterSettings) -> None:
        try:
            listener = MilterListener(
                milter,
                judge=self.engine,
                observer=self.health,
                loop=asyncio.get_running_loop(),
                asks=lambda stage: self.engine.rules.asks(stage),  # noqa: PLW0108 - a reload replaces `rules`
            )
            listener.bind()
        except MilterUnavailableError as error:
            raise UsageFault(f"[milter]: {error}") from error
        except OSError as error:
            raise _cannot_open("[milter] listen", milter.listen, error) from error
        except Exception as error:  # libmilter's own error class has no base but this
            raise UsageFault(
                f"[milter] listen = {milter.listen}: libmilter cannot open it: {error}"
            ) from error
        await listener.start()
        self.milter = listener

    async def _start_http(self, http: HttpSettings) -> None:
        self.http = HttpListener(
            http, metrics=self.health, readiness=[self._doors_state, *self._dependencies()]
        )
        try:
            await self.http.start()
        except OSError as error:
            raise _cannot_open("[http] listen", str(http.listen), error) from error

    def doors(self) -> Iterator[tuple[str, str]]:
        """What listens where."""
        if self.smtp is not None:
            yield from (("inbound", _address(*where)) for where in self.smtp.addresses)
        if self.milter is not None and self.settings.milter is not None:
            yield "milter", self.settings.milter.listen
        if self.http is not None:
            yield from (("http", _address(*where)) for where in self.http.addresses)

    async def report_resolver(self) -> None:
        """Log which resolvers are asked, and whether they validate (DNSSEC)."""
        resolver = self.resolver
        if not isinstance(resolver, StubResolver):
            self._log.warning(
                "dns.zone-file", file=self.settings.dns.zone_file, note="the network is never asked"
            )
            return
        validating = await resolver.check_validating()
        notes = {
            Validation.YES: None,
            Validation.NO: "its answers are believed unproven; turn on DNSSEC validation there",
            Validation.UNKNOWN: "no answer; mail will be deferred until there is one",
        }
        log = self._log.info if validating is Validation.YES else self._log.warning
        log(
            "dns.resolver",
            servers=resolver_addresses(self.settings.dns),
            validating=validating,
            note=notes[validating],
        )

    # Running

    def _judged(self, judged: Judged) -> None:
        self.health.judged(judged.verdict, judged.envelope)
        if not self._log.is_enabled_for(logging.INFO):
            return
        author = judged.author.mailbox.text if isinstance(judged.author, Author) else None
        event = judged_event(judged.envelope, len(judged.message), author, judged.verdict, judged.seconds)
        self._log.info("message.judged", **event)

    def _doors_state(self) -> Readiness:
        if self._draining:
            return Readiness(name="listeners", ok=False, detail="shutting down")
        return Readiness(
            name="listeners", ok=True, detail=", ".join(f"{name} {where}" for name, where in self.doors())
        )

    def _dependencies(self) -> Iterator[Callable[[], Readiness]]:
        if self.settings.inbound is not None:
            yield lambda: Readiness("downstream", *self.health.downstream_state())
        if isinstance(self.resolver, StubResolver):
            yield lambda: Readiness("dns", *self.health.dns_state())

    async def reload(self, source: Source) -> None:
        """Read config, rules and certificates again; where anything in them is faulty, everything stays as it is."""
        try:
            loaded, rules = await asyncio.to_thread(source.read)
            if self.smtp is not None:
                self.smtp.reload_tls()
        except (ConfigError, RuleError) as error:
            self._refuse_reload([str(fault) for fault in error.faults])
        except OSError as error:
            self._refuse_reload([f"certificate or key: {error}"])
        else:
            self.engine.rules = rules
            self.health.reloaded(ok=True)
            for warning in loaded.warnings:
                self._log.warning("config.warning", fault=warning)
            self._log.info("config.reloaded", rules=rules.name, mode=rules.mode)
            if changed := changed_keys(self.settings, loaded.settings) - _RELOADED:
                self._log.warning("config.restart-needed", keys=sorted(changed))

    def _refuse_reload(self, faults: list[str]) -> None:
        self.health.reloaded(ok=False)
        for fault in faults:
            self._log.error("config.refused", fault=fault, note="what was in force before stays in force")

    # Closing

    async def drain(self, deadline_s: float = DRAIN_S) -> None:
        """Take nothing new and let what is in flight end, within the deadline."""
        self._draining = True
        self._log.info("gateway.draining", deadline_s=deadline_s)
        async with asyncio.TaskGroup() as tasks:
            if self.smtp is not None:
                tasks.create_task(self.smtp.drain(deadline_s))
            if self.milter is not None:
                tasks.create_task(self.milter.drain(deadline_s))

    async def close(self) -> None:
        """Close every door, and end what is still open."""
        if self.smtp is not None:
            self.smtp.close()
        if self.milter is not None:
            self.milter.close()
        if self.http is not None:
            await self.http.close()
        if isinstance(self.resolver, StubResolver):
            await self.resolver.aclose()


def changed_keys(before: Settings, after: Settings) -> set[str]:
    """The keys whose values differ, as `dns.servers`; a section that came or went is one key."""
    changed: set[str] = set()
    for name in Settings.model_fields:
        old, new = getattr(before, name), getattr(after, name)
        if isinstance(old, BaseModel) and isinstance(new, BaseModel):
            keys = type(old).model_fields
            changed |= {f"{name}.{key}" for key in keys if getattr(old, key) != getattr(new, key)}
        elif old != new:
            changed.add(name)
    return changed


def _cannot_open(key: str, value: str, error: OSError) -> UsageFault:
    remedy = _REMEDIES.get(error.errno or 0)
    reason = error.strerror or str(error)
    return UsageFault(f"{key} = {value}: {reason}" + (f"; {remedy}" if remedy else ""))


def _address(host: str, port: int) -> str:
    return str(HostPort(host, port))

"""A gateway that runs: the engine and its doors, opened together, reloaded and closed together."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog
from pydantic import BaseModel

from gateway import __version__
from gateway.auth.arc.seal import load_seal_key
from gateway.auth.dkim.key_table import KeyTable, KeyTableError, SigningKey, load_key_table
from gateway.auth.dmarc.suffix import SuffixList
from gateway.cli.doors import ONLY_WORKER, Door, Parts, Worker, build_doors
from gateway.cli.errors import UsageFault
from gateway.cli.outbound_tls import OutboundTls
from gateway.cli.wiring import (
    Judging,
    Observers,
    build_engine,
    build_hider,
    build_resolver,
    build_sealer,
    build_signer,
    build_submission,
    resolver_addresses,
    rotation_schedule,
)
from gateway.dns.stub import StubResolver, Validation
from gateway.engine import Judged
from gateway.keys.directory import KeyDirectory
from gateway.listeners.http import Readiness
from gateway.ops.config import Settings
from gateway.ops.config.faults import ConfigError, shown
from gateway.ops.config.files import all_signing_entries, seal_entry
from gateway.ops.config.load import Loaded, load_config
from gateway.ops.expiry import KeyWatch, certificate_end
from gateway.ops.health import Health, Unwatched
from gateway.ops.labels import OwnDomains
from gateway.ops.log import judged_event
from gateway.ops.process import LoopWatch
from gateway.ops.text import printable
from gateway.policy import RuleError, RuleSet, load_rules
from gateway.trace.tell import Tracer

if TYPE_CHECKING:
    from gateway.store import Store

DRAIN_S: Final = 30.0
"""What is in flight has so long to end; systemd's own limit is 90."""

STORE_FLUSH_S: Final = 5.0
"""What waits for the store has so long to be written at the end."""

RELOADED: Final = frozenset(
    {
        "policy.rules",
        "policy.shadow",
        "outbound_tls.overrides",
        "signing",
        "keys",
        "arc.seal_domain",
        "arc.seal_selector",
        "arc.seal_key",
        "submission.from_check",
        "submission.senders",
        "submission.login_domain",
        "submission.recipient_delimiter",
    }
)
"""Sections and keys that a running process takes over by itself; all others need a new one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """All that was read from files: what a run begins with, or goes on with after SIGHUP."""

    loaded: Loaded
    rules: RuleSet
    shadow: RuleSet | None
    keys: KeyTable
    seal_key: SigningKey | None

    @property
    def settings(self) -> Settings:
        """The config."""
        return self.loaded.settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a config comes from, at the start and at each reload."""

    config: Path
    environ: Mapping[str, str]

    def read(self) -> Inputs:
        """Read the config, the rules, the keys and all other files that it names.

        Raises:
            ConfigError, RuleError, KeyTableError: with every fault.
        """
        loaded = load_config(self.config, self.environ)
        settings = loaded.settings
        seal = seal_entry(settings.arc)
        return Inputs(
            loaded=loaded,
            rules=load_rules(settings.policy.rules),
            shadow=load_rules(settings.policy.shadow) if settings.policy.shadow is not None else None,
            keys=load_key_table(all_signing_entries(settings)),
            seal_key=load_seal_key(seal) if seal else None,
        )


class Runtime:
    """Everything that runs in the process: build it and use it on one event loop."""

    def __init__(self, inputs: Inputs, worker: Worker = ONLY_WORKER) -> None:
        settings = inputs.settings
        self.settings: Final = settings
        self._worker: Final = worker
        self.health: Final = (Health if settings.http else Unwatched)(worker=str(worker.index))
        self.health.workers_configured(settings.workers)
        self.health.own_domains = OwnDomains(settings.local_domains)
        self._loop_watch: Final = LoopWatch(self.health.loop_was_late)
        self._tasks: set[asyncio.Task[None]] = set()
        self.resolver: Final = build_resolver(settings.dns, Observers(dns=self.health.dns))
        self.engine: Final = build_engine(
            Judging(
                resolver=self.resolver,
                rules=inputs.rules,
                shadow=inputs.shadow,
                authserv_id=settings.authserv_id,
                dns=settings.dns,
                policy=settings.policy,
                dkim=settings.dkim,
                arc=settings.arc,
            ),
            Observers(judged=self._judged),
        )
        self.engine.observe_refusal = self.health.refused_early
        self.engine.signer = build_signer(inputs.keys)
        self.engine.sealer = build_sealer(inputs.seal_key)
        self.outbound_tls: OutboundTls | None = None
        self.engine.submission = build_submission(settings)
        self.store: Store | None = None
        self.tracer: Tracer | None = None
        self._draining = False
        self._reloading: Final = asyncio.Lock()
        self._doors: list[Door] = []
        self._log = structlog.get_logger().bind()

    # Opening

    async def start(self) -> None:
        """Open the store and every door that the config has.

        Raises:
            UsageFault: one cannot be opened, and what to do; none is open then.
        """
        try:
            await self._open_store()
            self._start_outbound_tls()
            parts = Parts(
                settings=self.settings,
                engine=self.engine,
                health=self.health,
                resolver=self.resolver,
                store=self.store,
                readiness=self.readiness(),
                worker=self._worker,
                decider=self.outbound_tls.decider if self.outbound_tls else None,
                tracer=self.tracer,
            )
            for door in build_doors(parts):
                self._doors.append(door)
                await door.open()
        except UsageFault:
            await self.close()
            raise
        self._watch_surroundings()
        rules = self.engine.rules
        self._log.info(
            "gateway.started",
            version=__version__,
            authserv_id=self.settings.authserv_id,
            rules=rules.name,
            mode=rules.mode,
            shadow=self.engine.shadow.name if self.engine.shadow else None,
            keys=self.engine.signer.keys.names if self.engine.signer else (),
        )
        for listener, address in self.doors():
            self._log.info("listener.ready", listener=listener, address=address)

    async def _open_store(self) -> None:
        self.store = await open_store(self.settings)
        if self.store is not None:
            self.store.writer.start()
            self.health.store_from(self.store.writer)
            self._log.info("store.ready", store=self.store.name)
            if self.settings.trace.keep:
                self.tracer = Tracer(self.store.keep, build_hider(self.settings.trace))
                self.engine.tells = True

    def _start_outbound_tls(self) -> None:
        if self.settings.outbound is not None or self.settings.tls_policy is not None:
            shelf = self.store.policies if self.store is not None else None
            self.outbound_tls = OutboundTls(self.settings, self.resolver, shelf, self.health)
            self.outbound_tls.start()

    def readiness(self) -> tuple[Callable[[], Readiness], ...]:
        """What must be in order before mail should come."""
        return (self._doors_state, *self._dependencies())

    def doors(self) -> Iterator[tuple[str, str]]:
        """What listens where."""
        return ((door.name, address) for door in self._doors for address in door.addresses())

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
            Validation.NO: "its answers are believed unproven, and DANE is off; turn on DNSSEC validation there",
            Validation.UNKNOWN: "no answer; mail will be deferred until there is one",
        }
        log = self._log.info if validating is Validation.YES else self._log.warning
        log(
            "dns.resolver",
            servers=resolver_addresses(self.settings.dns),
            validating=validating,
            note=notes[validating],
        )

    def _watch_surroundings(self) -> None:
        """What is looked at beside the mail, for the metrics."""
        self._loop_watch.start()
        self.health.readiness_from(self.readiness())
        self._tell_certificates()
        if self.settings.keys is not None:
            keys = KeyWatch(KeyDirectory(self.settings.keys.directory), rotation_schedule(self.settings.keys))
            self.health.keys_from(keys.look)
        task = asyncio.get_running_loop().create_task(self._load_suffix_list())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _load_suffix_list(self) -> None:
        """The mail does not wait for it: until it is there, DMARC's tree walk is compared with nothing."""
        suffix_list = SuffixList()
        await asyncio.to_thread(suffix_list.load)
        self.engine.suffix_list = suffix_list

    def _tell_certificates(self) -> None:
        for listener, path in certificates(self.settings):
            if (end := certificate_end(path)) is not None:
                self.health.certificate(listener, end)

    # Running

    def _judged(self, judged: Judged) -> None:
        self.health.judged(judged.verdict, judged.envelope)
        if not self._log.is_enabled_for(logging.INFO):
            return
        event = judged_event(judged.envelope, judged.message, judged.author, judged.verdict, judged.seconds)
        self._log.info("message.judged", **event)

    def _doors_state(self) -> Readiness:
        if self._draining:
            return Readiness(name="listeners", ok=False, detail="shutting down")
        return Readiness(
            name="listeners", ok=True, detail=", ".join(f"{name} {where}" for name, where in self.doors())
        )

    def _dependencies(self) -> Iterator[Callable[[], Readiness]]:
        if self.settings.inbound is not None or self.settings.submission is not None:
            yield lambda: Readiness("downstream", *self.health.downstream_state())
        if isinstance(self.resolver, StubResolver):
            yield lambda: Readiness("dns", *self.health.dns_state())
        if (store := self.store) is not None:
            # Told, but no reason to send mail elsewhere: a store that is down costs reports only.
            yield lambda: Readiness("store", ok=True, detail=store.writer.trouble or "no failure lately")

    async def reload(self, source: Source) -> None:
        """Read config, rules, keys and certificates again; where anything in them is faulty, everything stays as it is.

        One after the other: of two signals, the files as they were at the second hold in the end.
        """
        async with self._reloading:
            try:
                await self._reload(source)
            except Exception:  # noqa: BLE001 - a bug: nobody awaits a reload, and mail goes on with what there is
                self.health.reloaded(ok=False)
                self._log.exception("config.reload-failed", note="what was in force before stays in force")

    async def _reload(self, source: Source) -> None:
        """Read everything first; only when nothing more can fail is any of it put in force."""
        try:
            inputs = await asyncio.to_thread(source.read)
        except (ConfigError, RuleError, KeyTableError) as error:
            self._refuse_reload([str(fault) for fault in error.faults])
            return
        steps, faults = self._prepare_doors()
        if faults:
            self._refuse_reload(faults)
            return
        self._put_in_force(inputs, steps)
        self.health.reloaded(ok=True)
        self._tell_certificates()
        for warning in inputs.loaded.warnings:
            self._log.warning("config.warning", fault=warning)
        self._log.info(
            "config.reloaded",
            rules=inputs.rules.name,
            mode=inputs.rules.mode,
            shadow=inputs.shadow and inputs.shadow.name,
            keys=inputs.keys.names,
        )
        if changed := not_taken_over(self.settings, inputs.settings):
            self._log.warning("config.restart-needed", keys=sorted(changed))

    def _prepare_doors(self) -> tuple[list[Callable[[], None]], list[str]]:
        """What puts each door's certificates in force, and which of them cannot be used."""
        steps, faults = [], []
        for door in self._doors:
            try:
                steps.append(door.prepare())
            except OSError as error:  # it was in order a moment ago: somebody is writing it
                faults.append(f"[{door.name}] certificate or key: {error.strerror or error}")
        return steps, faults

    def _put_in_force(self, inputs: Inputs, steps: Iterable[Callable[[], None]]) -> None:
        signer, sealer = build_signer(inputs.keys), build_sealer(inputs.seal_key)
        submission = build_submission(inputs.settings)
        # From here on nothing is built, so that nothing can fail half way.
        self.engine.rules, self.engine.shadow = inputs.rules, inputs.shadow
        self.engine.signer, self.engine.sealer = signer, sealer
        self.engine.submission = submission
        if self.outbound_tls is not None:
            self.outbound_tls.decider.take_overrides(inputs.settings.outbound_tls.overrides)
        for put_in_force in steps:
            put_in_force()

    def _refuse_reload(self, faults: list[str]) -> None:
        self.health.reloaded(ok=False)
        for fault in faults:
            self._log.error("config.refused", fault=fault, note="what was in force before stays in force")

    # Closing

    async def retire(self, deadline_s: float) -> None:
        """Take no new clients; serve those who are there until they leave, or the deadline."""
        self._draining = True
        self._log.info("worker.retiring", deadline_s=deadline_s)
        async with asyncio.TaskGroup() as tasks:
            for door in self._doors:
                tasks.create_task(_retire(door, deadline_s))

    async def drain(self, deadline_s: float = DRAIN_S) -> None:
        """Take nothing new and let what is in flight end, within the deadline."""
        self._draining = True
        self._log.info("gateway.draining", deadline_s=deadline_s)
        async with asyncio.TaskGroup() as tasks:
            for door in self._doors:
                tasks.create_task(_finish(door, deadline_s))

    async def close(self) -> None:
        """Close every door, and end what is still open."""
        self._loop_watch.stop()
        for task in self._tasks:
            task.cancel()
        for door in self._doors:
            await door.close()
        if self.outbound_tls is not None:
            await self.outbound_tls.close()
        if self.store is not None:
            await self.store.close(STORE_FLUSH_S)
        if isinstance(self.resolver, StubResolver):
            await self.resolver.aclose()


def certificates(settings: Settings) -> Iterator[tuple[str, Path]]:
    """The certificate file of each listener that has one."""
    doors = {
        "inbound": settings.inbound,
        "submission": settings.submission,
        "outbound": settings.outbound,
        "policy-host": settings.mta_sts,
    }
    for name, door in doors.items():
        if door is not None and door.tls_certificate is not None:
            yield name, door.tls_certificate


async def open_store(settings: Settings) -> "Store | None":
    """The store of `[store]`; None where there is no such section.

    Raises:
        UsageFault: it cannot be used, and what to do.
    """
    if settings.store is None:
        return None
    from gateway.store import Store, StoreError
    from gateway.store.traces import Ring

    keep = timedelta(days=settings.store.keep_results_days)
    trace = settings.trace
    ring = Ring(keep=trace.keep, keep_for=timedelta(days=trace.keep_days))
    hider = build_hider(trace)
    try:
        return await asyncio.to_thread(
            Store.open, settings.store.url, keep_results=keep, ring=ring, hider=hider
        )
    except StoreError as error:
        raise UsageFault(printable(f"[store] url = {shown('url', settings.store.url)}: {error}")) from error


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


async def _retire(door: Door, deadline_s: float) -> None:
    await door.retire(deadline_s)


def not_taken_over(before: Settings, after: Settings) -> set[str]:
    """The changed keys that a running process does not take over."""
    changed = changed_keys(before, after)
    return {key for key in changed if key not in RELOADED and key.partition(".")[0] not in RELOADED}


async def _finish(door: Door, deadline_s: float) -> None:
    await door.drain(deadline_s)

"""`gateway serve`: one process, or a supervisor and its workers; their signals, and their end."""

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import structlog
import uvloop

from gateway.auth.dkim.key_table import KeyTableError
from gateway.cli.doors import Worker, cannot_open, open_milter_socket, policy_pages
from gateway.cli.errors import UsageFault
from gateway.cli.pages import Pages
from gateway.cli.runtime import DRAIN_S, Inputs, Runtime, Source, changed_keys, not_taken_over
from gateway.cli.wiring import build_resolver
from gateway.dns.stub import StubResolver
from gateway.listeners.http import HttpListener
from gateway.listeners.roll_call import CallSocket, Member, RollCall, open_roll_call
from gateway.ops.config import HostPort, Settings
from gateway.ops.config.faults import ConfigError
from gateway.ops.log import set_up_logging, watch_log
from gateway.ops.metrics import Metrics
from gateway.ops.workers import RELOAD, RETIRE, STOP, Job, Ledger, Supervisor, say_ready
from gateway.pages.site import Process
from gateway.policy import RuleError

RETIRE_S: Final = 600.0
"""So long the clients of a replaced worker may stay; then they hear 421."""

USAGE_STATUS: Final = 2

_STOP: Final = (signal.SIGTERM, signal.SIGINT)
_FIXED: Final = ("milter", "http", "mta_sts")
"""Sections that the supervisor, or a process of its own, holds: they change with a restart only."""

_P = TypeVar("_P")
_log: Final = structlog.get_logger()


def run_server(config: Path) -> int:
    """Run until a signal ends it; 0 where everything in flight came to its end.

    Raises:
        ConfigError, RuleError, KeyTableError: the config, the rules or the keys cannot be used.
        UsageFault: a listener cannot be opened.
    """
    source = Source(config=config, environ=dict(os.environ))
    # libuv's way to watch a new connection by io_uring costs more than the system call that it saves, and many containers forbid it.
    os.environ.setdefault("UV_USE_IO_URING", "0")
    inputs = source.read()
    set_up_logging(inputs.settings.log)
    for warning in inputs.loaded.warnings:
        structlog.get_logger().warning("config.warning", fault=warning)
    if inputs.settings.workers > 1:
        return _Site(source, inputs).run()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(source, inputs))


async def _serve(source: Source, inputs: Inputs) -> int:
    """Everything in one process."""
    loop = asyncio.get_running_loop()
    stop, again = asyncio.Event(), asyncio.Event()

    def ask_to_stop() -> None:
        (again if stop.is_set() else stop).set()

    runtime = Runtime(inputs)
    watch_log(runtime.health.logged)
    tasks: set[asyncio.Task[None]] = set()

    def reload() -> None:
        if not stop.is_set():
            task = loop.create_task(runtime.reload(source))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    # Before the doors open: whoever sees one open may send a signal, and an unhandled SIGHUP is the end.
    for number in _STOP:
        loop.add_signal_handler(number, ask_to_stop)
    loop.add_signal_handler(signal.SIGHUP, reload)
    await runtime.start()
    # What is here now stays: the collector need not look through it again for every few hundred new objects.
    gc.collect()
    gc.freeze()
    tasks.add(loop.create_task(runtime.report_resolver()))
    await stop.wait()
    drained = await _finish(runtime, again)
    for task in tasks:
        task.cancel()
    await runtime.close()
    structlog.get_logger().info("gateway.stopped", drained=drained)
    return 0 if drained else 1


async def _finish(runtime: Runtime, again: asyncio.Event) -> bool:
    """Drain; a second signal ends the waiting."""
    drain = asyncio.ensure_future(runtime.drain())
    impatient = asyncio.ensure_future(again.wait())
    await asyncio.wait({drain, impatient}, return_when=asyncio.FIRST_COMPLETED)
    impatient.cancel()
    if drain.done():
        drain.result()
        return True
    drain.cancel()
    with suppress(asyncio.CancelledError):
        await drain
    return False


class _Site:
    """Several workers: what the supervisor has read and opened, and the jobs that it makes of that.

    A job looks at the site when it begins, in the child: a worker that is started again has what was read last.
    """

    def __init__(self, source: Source, inputs: Inputs) -> None:
        self._source = source
        self._inputs = inputs
        self._ledger = Ledger()
        self._roll_call = open_roll_call()
        self._caller: bytes = self._roll_call.getsockname()
        milter = inputs.settings.milter
        self._milter = None if milter is None else open_milter_socket(milter)
        self._http = () if inputs.settings.http is None else (Job(name="http", run=self._watch),)

    def run(self) -> int:
        """Supervise until the end."""
        supervisor = Supervisor(
            jobs=self._jobs(),
            replace=self._replace,
            drain_s=DRAIN_S + 5.0,
            ledger=self._ledger,
            usage_status=USAGE_STATUS,
        )
        try:
            status = supervisor.run()
        finally:
            if self._milter is not None:
                self._milter.remove()
        if status != USAGE_STATUS:
            _log.info("gateway.stopped", drained=status == 0)
        return status

    def _jobs(self) -> tuple[Job, ...]:
        indices = range(self._inputs.settings.workers)
        return (*self._http, *(Job(name=f"worker-{n}", run=partial(self._work, n)) for n in indices))

    def _replace(self) -> tuple[Job, ...] | None:
        """What a SIGHUP asks for: None where the files are faulty, new workers where more than rules have changed."""
        try:
            inputs = self._source.read()
        except (ConfigError, RuleError, KeyTableError) as error:
            for fault in error.faults:
                _log.error("config.refused", fault=str(fault), note="what was in force before stays in force")
            return None
        for warning in inputs.loaded.warnings:
            _log.warning("config.warning", fault=warning)
        before = self._inputs.settings
        changed = changed_keys(before, inputs.settings)
        fixed = {key for key in changed if key.split(".")[0] in _FIXED}
        if fixed:
            _log.warning("config.restart-needed", keys=sorted(fixed))
        kept = inputs.settings.model_copy(update={name: getattr(before, name) for name in _FIXED})
        self._inputs = replace(inputs, loaded=replace(inputs.loaded, settings=kept))
        replacing = not_taken_over(before, inputs.settings) - fixed
        if not replacing:
            return ()
        _log.info("config.replacing-workers", keys=sorted(replacing))
        return self._jobs()

    def _work(self, index: int, lifeline: int) -> int:
        self._roll_call.close()
        worker = Worker(index=index, shares_ports=True, milter_socket=self._milter)
        return _run_child(partial(_work, self._source, self._inputs, worker), self._caller, lifeline)

    def _watch(self, lifeline: int) -> int:
        return _run_child(partial(_watch, self._inputs.settings, self._ledger), self._roll_call, lifeline)


def _run_child(work: Callable[[_P, int], Coroutine[object, object, int]], place: _P, lifeline: int) -> int:
    """A child's whole life; what the operator can mend is said without a traceback."""
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(work(place, lifeline))
    except UsageFault as fault:
        sys.stderr.write(f"{fault}\n")
        return USAGE_STATUS


async def _work(source: Source, inputs: Inputs, worker: Worker, caller: bytes, lifeline: int) -> int:
    """One of several workers."""
    loop = asyncio.get_running_loop()
    stop, retire = asyncio.Event(), asyncio.Event()
    runtime = Runtime(inputs, worker)
    watch_log(runtime.health.logged)
    tasks: set[asyncio.Task[None]] = set()

    def reload() -> None:
        task = loop.create_task(runtime.reload(source))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    loop.add_signal_handler(STOP, stop.set)
    loop.add_signal_handler(RETIRE, retire.set)
    loop.add_signal_handler(RELOAD, reload)
    loop.add_reader(lifeline, _parent_lost, loop, lifeline, stop)
    await runtime.start()
    member = Member(caller, worker=worker.index, metrics=runtime.health, readiness=runtime.readiness())
    with suppress(OSError):  # nobody asks: there is no [http]
        await member.start()
    gc.collect()
    gc.freeze()
    if worker.index == 0:
        tasks.add(loop.create_task(runtime.report_resolver()))
    say_ready()
    await _first_of(stop, retire)
    if not stop.is_set():
        await _until(runtime.retire(RETIRE_S), stop)
    await runtime.drain()
    for task in tasks:
        task.cancel()
    await runtime.close()
    await member.close()
    return 0


async def _watch(settings: Settings, ledger: Ledger, roll_call: CallSocket, lifeline: int) -> int:
    """The process that serves metrics, health and the pages for all workers."""
    http = settings.http
    if http is None:
        raise AssertionError("nothing to serve")
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (STOP, RETIRE):
        loop.add_signal_handler(number, stop.set)
    loop.add_reader(lifeline, _parent_lost, loop, lifeline, stop)
    own = Metrics(workers=0)
    own.count_process()
    own.supervised_by(ledger)
    watch_log(own.logged)
    caller = RollCall(roll_call, make_sum=lambda: Metrics(workers=0), own=own)
    resolver = build_resolver(settings.dns)
    shown = None
    if http.pages:
        shown = Pages(settings, http, resolver, processes=lambda: _processes(caller), refresh=caller.refresh)
    listener = HttpListener(
        http,
        metrics=caller,
        readiness=[caller.readiness],
        refresh=caller.refresh,
        pages=(*policy_pages(settings), *([shown.site] if shown else ())),
    )
    await caller.start()
    try:
        await listener.start()
    except OSError as error:
        raise cannot_open("[http] listen", str(http.listen), error) from error
    for host, port in listener.addresses:
        _log.info("listener.ready", listener="http", address=str(HostPort(host, port)))
    say_ready()
    await stop.wait()
    await listener.close()
    if shown is not None:
        await shown.close()
    if isinstance(resolver, StubResolver):
        await resolver.aclose()
    await caller.close()
    return 0


def _processes(caller: RollCall) -> list[Process]:
    return [Process(name=f"worker {one.worker}", pid=one.pid, checks=one.checks) for one in caller.workers()]


def _parent_lost(loop: asyncio.AbstractEventLoop, lifeline: int, stop: asyncio.Event) -> None:
    """The supervisor is gone: nobody would start or stop us any more."""
    loop.remove_reader(lifeline)
    _log.error("worker.supervisor-lost")
    stop.set()


async def _first_of(*events: asyncio.Event) -> None:
    waiting = [asyncio.ensure_future(event.wait()) for event in events]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for one in waiting:
        one.cancel()


async def _until(work: Coroutine[object, object, None], event: asyncio.Event) -> None:
    """Do this, and leave it when the event comes."""
    task, waiting = asyncio.ensure_future(work), asyncio.ensure_future(event.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    for one in (task, waiting):
        one.cancel()
        with suppress(asyncio.CancelledError):
            await one

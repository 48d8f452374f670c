"""`gateway serve`: one process, its signals, and its end."""

import asyncio
import gc
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog
import uvloop

from gateway.cli.runtime import Inputs, Runtime, Source
from gateway.ops.log import set_up_logging

_STOP: Final = (signal.SIGTERM, signal.SIGINT)


def run_server(config: Path) -> int:
    """Run until a signal ends it; 0 where everything in flight came to its end.

    Raises:
        ConfigError, RuleError, KeyTableError: the config, the rules or the keys cannot be used.
        UsageFault: a listener cannot be opened.
    """
    source = Source(config=config, environ=dict(os.environ))
    inputs = source.read()
    set_up_logging(inputs.settings.log)
    for warning in inputs.loaded.warnings:
        structlog.get_logger().warning("config.warning", fault=warning)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(source, inputs))


async def _serve(source: Source, inputs: Inputs) -> int:
    loop = asyncio.get_running_loop()
    stop, again = asyncio.Event(), asyncio.Event()

    def ask_to_stop() -> None:
        (again if stop.is_set() else stop).set()

    runtime = Runtime(inputs)
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

"""What a process says of itself, and of its loop."""

import asyncio
import os
import time

from gateway.ops.process import LoopWatch, read_process


def test_the_figures_are_this_process_own() -> None:
    began = time.process_time()
    while time.process_time() - began < 0.02:
        pass
    figures = read_process()
    assert figures is not None
    assert abs(figures.cpu_s - time.process_time()) < 0.5
    assert 10_000_000 < figures.resident_bytes < figures.virtual_bytes
    assert 0 < figures.open_fds <= figures.max_fds
    assert figures.started < time.time()
    assert abs(time.time() - figures.started) < 86_400


def test_descriptors_are_counted() -> None:
    before = read_process()
    opened = [os.open("/dev/null", os.O_RDONLY) for _ in range(7)]
    after = read_process()
    for descriptor in opened:
        os.close(descriptor)
    assert before is not None
    assert after is not None
    assert after.open_fds - before.open_fds == 7


async def test_a_loop_that_was_held_up_is_late() -> None:
    heard: asyncio.Queue[float] = asyncio.Queue()
    watch = LoopWatch(heard.put_nowait)
    watch.start()
    assert await asyncio.wait_for(heard.get(), 5) < 0.3
    time.sleep(0.9)  # noqa: ASYNC251 - what nobody may do on the loop
    assert await asyncio.wait_for(heard.get(), 5) > 0.3
    watch.stop()
    watch.stop()

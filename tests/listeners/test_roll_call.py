"""A roll call among processes that end at any moment, on the loop of `gateway serve`."""

import asyncio
from collections.abc import Callable

import pytest
import uvloop

from gateway.listeners.roll_call import Member, RollCall, open_roll_call
from gateway.ops.health import Health
from tests.listeners.proxy import settle


async def _call_over_a_closed_connection() -> None:
    caller = RollCall(open_roll_call(), make_sum=lambda: Health(workers=0))
    await caller.start()
    members = [
        Member(caller._socket.getsockname(), worker=n, metrics=Health(), readiness=()) for n in range(2)
    ]
    for member in members:
        await member.start()
    await settle(lambda: len(caller._links) == len(members))
    gone = next(iter(caller._links))
    gone.writer.transport.abort()
    await settle(lambda: gone not in caller._links)
    caller._links.add(gone)  # as in the moment between its end and the end's being noticed
    await caller.refresh()
    assert caller.readiness().detail.count("worker-") == len(members)
    for member in members:
        await member.close()
    caller._links.discard(gone)
    await caller.close()


@pytest.mark.parametrize("make_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_one_that_has_just_ended_does_not_end_the_roll_call(
    make_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(_call_over_a_closed_connection())

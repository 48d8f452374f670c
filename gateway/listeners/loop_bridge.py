"""How a thread that is not ours asks a question of the event loop and waits for the answer.

`asyncio.run_coroutine_threadsafe` does the same with three futures and a condition variable; this is one task and one lock,
because every message that comes by milter passes here.
"""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, Final, Generic, TypeVar

_T = TypeVar("_T")


class LoopBridge:
    """Runs coroutines on `loop` for other threads.

    Args:
        loop: where they run.
        timeout_s: how long one may take.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, timeout_s: float) -> None:
        self._loop: Final = loop
        self._timeout_s: Final = timeout_s

    def ask(self, question: Coroutine[Any, Any, _T]) -> _T:
        """Run `question` to its end and give its answer; it must not be called on the loop's own thread.

        Raises:
            TimeoutError: it took too long and was cancelled.
            RuntimeError: the loop is closed.
            BaseException: whatever the coroutine raised.
        """
        errand = _Errand(question)
        try:
            self._loop.call_soon_threadsafe(errand.start)
        except RuntimeError:
            question.close()
            raise
        if not errand.done.acquire(timeout=self._timeout_s):
            self._loop.call_soon_threadsafe(errand.cancel)
            raise TimeoutError(f"no answer within {self._timeout_s} s")
        return errand.answer()


class _Errand(Generic[_T]):
    """One question on its way; `done` is a lock held until the answer is there."""

    __slots__ = ("_question", "_task", "done")

    def __init__(self, question: Coroutine[Any, Any, _T]) -> None:
        self._question = question
        self._task: asyncio.Task[_T] | None = None
        self.done = threading.Lock()
        self.done.acquire()

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._question)
        self._task.add_done_callback(self._finish)

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def answer(self) -> _T:
        assert self._task is not None  # noqa: S101 - `done` is released by its end only
        return self._task.result()

    def _finish(self, task: asyncio.Task[_T]) -> None:
        if not task.cancelled():
            task.exception()  # taken, so that a late one is not reported as forgotten
        self.done.release()

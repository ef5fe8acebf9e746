"""Threads that run models, so that the event loop never waits for one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

Job = Callable[[], Any]
Done = Callable[[Any, BaseException | None], None]


class Workers:
    """At most ``count`` threads, started when they are first needed; results come back on the event loop."""

    def __init__(self, count: int, name: str, loop: asyncio.AbstractEventLoop) -> None:
        self.count, self._name, self._loop = count, name, loop
        self._jobs: SimpleQueue[tuple[Job, Done] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self.busy = 0

    @property
    def idle(self) -> int:
        """How many more jobs would start at once."""
        return self.count - self.busy

    def submit(self, job: Job, done: Done) -> None:
        """Run ``job`` in a thread, and then ``done(result, error)`` on the event loop. Call on the loop only."""
        self.busy += 1
        if self.busy > len(self._threads) and len(self._threads) < self.count:
            name = f"{self._name}-{len(self._threads)}"
            # A model that never returns must not keep the process from ending.
            thread = threading.Thread(target=self._work, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()
        self._jobs.put((job, done))

    async def run(self, job: Job) -> Any:
        """Run ``job`` in a thread and return what it returns."""
        future = self._loop.create_future()

        def done(result: Any, error: BaseException | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        self.submit(job, done)
        return await future

    def stop(self) -> None:
        """Let the threads end once their work is done."""
        for _ in self._threads:
            self._jobs.put(None)

    def _work(self) -> None:
        while (entry := self._jobs.get()) is not None:
            job, done = entry
            result, error = None, None
            try:
                result = job()
            except BaseException as raised:  # noqa: BLE001  (whatever it is, the request that asked gets it)
                error = raised
            try:
                self._loop.call_soon_threadsafe(self._finish, done, result, error)
            except RuntimeError:  # the loop is closed: the server has ended
                return
            del entry, job, done, result, error

    def _finish(self, done: Done, result: Any, error: BaseException | None) -> None:
        self.busy -= 1
        done(result, error)

"""An event loop that wakes when it should: asyncio's own rounds its waits up to whole milliseconds."""

from __future__ import annotations

import asyncio
import select
import selectors
from typing import Any


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return an event loop whose timers are exact to some microseconds."""
    if hasattr(selectors, "EpollSelector"):
        return asyncio.SelectorEventLoop(_ExactEpoll())
    return asyncio.SelectorEventLoop()  # kqueue takes nanoseconds as it is


class _ExactEpoll(selectors.EpollSelector):
    """epoll waits in milliseconds, select in microseconds, and an epoll descriptor can itself be selected."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is not None and timeout > 0:
            if ready := super().select(0):  # under load something always is
                return ready
            descriptor: Any = self.fileno()
            try:
                select.select([descriptor], [], [], timeout)
            except InterruptedError:
                return []
            timeout = 0
        return super().select(timeout)

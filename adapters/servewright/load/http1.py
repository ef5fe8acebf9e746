"""HTTP/1.1 as a load sends it: prepared bytes out, and of the answer only where it ends and what its status is."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
import ssl
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from time import monotonic

from servewright.backend import Payload
from servewright.load.workload import Endpoint

Done = Callable[[float, str], None]
"""Called with when a request was meant to leave and with its error's class, empty for a good answer."""

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[^\r]*chunked", re.IGNORECASE)
_CLOSES = re.compile(rb"\r\nconnection:[ \t]*close", re.IGNORECASE)
_STAYS = re.compile(rb"\r\nconnection:[ \t]*keep-alive", re.IGNORECASE)
_WITHOUT_BODY = frozenset({b"204", b"304"})
_NO_MORE_FILES = frozenset({errno.EMFILE, errno.ENFILE})
_SWEEP_S = 0.1


def why(error: OSError) -> str:
    """Return what the system says of an error; asyncio's own texts repeat the address."""
    if isinstance(error, socket.gaierror | ssl.SSLError):  # whose numbers are not the system's
        return (error.strerror or str(error)).lower()
    return os.strerror(error.errno).lower() if error.errno else str(error)


def request_bytes(payload: Payload, host: str, headers: Mapping[str, str]) -> bytes:
    """Return a whole request; ``headers`` come on top of the payload's own."""
    length = {"Content-Length": str(len(payload.body))}
    lines = {
        name.lower(): f"{name}: {value}\r\n"
        for each in ({"Host": host}, payload.headers, headers, length)
        for name, value in each.items()
    }
    head = f"POST {payload.target} HTTP/1.1\r\n" + "".join(lines.values())
    return head.encode("latin-1") + b"\r\n" + payload.body


class Sender:
    """Connections to one server, one request on each at a time; a request finds one that is idle, or a new one."""

    def __init__(
        self,
        endpoint: Endpoint,
        payloads: Sequence[Payload],
        done: Done,
        *,
        timeout_s: float,
        connections: int,
        headers: Mapping[str, str],
    ) -> None:
        self.endpoint, self.done = endpoint, done
        self._payloads, self._timeout_s, self._most = payloads, timeout_s, connections
        self._loop = asyncio.get_running_loop()
        self._tls = ssl.create_default_context() if endpoint.secure else None
        self.idle: list[_Connection] = []
        self.open: set[_Connection] = set()
        self.waiting: deque[float] = deque()
        self._opening: set[asyncio.Task[None]] = set()
        self.closed = False
        self.use(headers)
        self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep)

    def use(self, headers: Mapping[str, str]) -> None:
        """Send these headers from now on."""
        requests = [request_bytes(payload, self.endpoint.address, headers) for payload in self._payloads]
        self.next_request = cycle(requests).__next__

    async def connect(self, count: int) -> None:
        """Open connections before they are needed; what cannot be opened is an `OSError`."""
        await asyncio.gather(*(self._connect() for _ in range(min(count, self._most))))

    def send(self, started: float) -> None:
        """Send the next request; ``started`` is when it was meant to leave."""
        if self.idle:
            self.idle.pop().send(started)
            return
        self.waiting.append(started)
        self._open_more()

    def lost(self, connection: _Connection) -> None:
        """Do without a connection; requests that wait may need another."""
        self.open.discard(connection)
        if connection in self.idle:
            self.idle.remove(connection)
        self._open_more()

    def free(self, connection: _Connection) -> None:
        """Give a connection its next request, or let it idle."""
        if self.waiting:
            connection.send(self.waiting.popleft())
        else:
            self.idle.append(connection)

    def pending(self) -> list[float]:
        """Return when each request was meant to leave that has no answer yet."""
        return [connection.started for connection in self.open if connection.busy] + list(self.waiting)

    def close(self) -> None:
        """Close every connection; nothing is reported of requests under way."""
        self.closed = True
        self._sweeper.cancel()
        for task in self._opening:
            task.cancel()
        for connection in list(self.open):
            connection.transport.abort()

    async def _connect(self) -> None:
        address = self.endpoint.host, self.endpoint.port
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._loop.create_connection(lambda: _Connection(self), *address, ssl=self._tls)
        except TimeoutError as error:
            raise OSError(f"no connection within {self._timeout_s:g} s") from error

    def _open_more(self) -> None:
        """Open as many connections as requests wait for, as far as there may be more."""
        while (
            not self.closed
            and len(self._opening) < len(self.waiting)
            and len(self.open) + len(self._opening) < self._most
        ):
            task = self._loop.create_task(self._open_another())
            self._opening.add(task)
            task.add_done_callback(self._opened)

    def _opened(self, task: asyncio.Task[None]) -> None:
        self._opening.discard(task)
        self._open_more()  # one that was asked for meanwhile

    async def _open_another(self) -> None:
        try:
            await self._connect()
        except OSError as error:
            if error.errno in _NO_MORE_FILES and self.open:
                self._most = len(self.open)  # our own limit, no fault of the server: the request waits for its turn
            elif self.waiting:
                self.done(self.waiting.popleft(), f"connection: {why(error)}")

    def _sweep(self) -> None:
        late = monotonic() - self._timeout_s
        for connection in [found for found in self.open if found.busy and found.started < late]:
            connection.fail("timeout")
        while self.waiting and self.waiting[0] < late:
            self.done(self.waiting.popleft(), "timeout")
        self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep)


class _Connection(asyncio.Protocol):
    """One connection: ``needed`` is the length of the answer under way, 0 before its head is there."""

    __slots__ = ("_buffer", "_closes", "_sender", "busy", "needed", "started", "status", "transport")

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self.busy = False
        self.started = 0.0
        self._buffer = b""
        self.needed = 0
        self.status = b""
        self._closes = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._sender.open.add(self)
        self._sender.free(self)

    def send(self, started: float) -> None:
        """Send the next request."""
        self.started, self.busy = started, True
        self.transport.write(self._sender.next_request())

    def data_received(self, data: bytes) -> None:
        if not self.busy:  # an answer to nothing, such as the news that an idle connection will be closed
            self._sender.lost(self)
            self.transport.abort()
            return
        if self._buffer:
            data = self._buffer = self._buffer + data
        if not self.needed:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._buffer = data
                return
            head = data[: end + 2]
            length = _LENGTH.search(head)
            self._closes = _CLOSES.search(head) is not None or (
                data.startswith(b"HTTP/1.0") and _STAYS.search(head) is None
            )
            if length is None:
                if data[9:12] in _WITHOUT_BODY:
                    self._answered(data[9:12])
                elif _CHUNKED.search(head):
                    ends = _end_of_chunks(data, end + 4)
                    if ends is None:
                        self._buffer = data
                        return
                    self._answered(data[9:12])
                elif not self._closes:
                    self.fail("not HTTP")
                else:
                    self.status, self._buffer, self.needed = data[9:12], data, 1 << 62
                return
            self.status = data[9:12]
            self.needed = end + 4 + int(length[1])
        if len(data) < self.needed:
            self._buffer = data
            return
        self._answered(self.status)

    def _answered(self, status: bytes) -> None:
        self._buffer, self.needed, self.busy = b"", 0, False
        if self._closes:
            self._sender.lost(self)
            self.transport.close()
        self._sender.done(self.started, "" if status[:1] == b"2" else f"HTTP {status.decode('latin-1')}")
        if not self._closes:
            self._sender.free(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.needed == 1 << 62 and exc is None:  # an answer that ends with its connection
            self._answered(self.status)
            return
        self._sender.lost(self)
        if self.busy:
            self.busy = False
            if not self._sender.closed:
                self._sender.done(self.started, "connection lost")

    def fail(self, error: str) -> None:
        """Give the request under way up, and the connection with it."""
        self.busy, self.needed = False, 0
        self._sender.lost(self)
        self.transport.abort()
        self._sender.done(self.started, error)


def _end_of_chunks(data: bytes, start: int) -> int | None:
    """Return where a chunked body ends, or None where there is more to come."""
    while True:
        line = data.find(b"\r\n", start)
        if line < 0:
            return None
        try:
            size = int(data[start:line].partition(b";")[0], 16)
        except ValueError:
            return len(data)
        start = line + 2 + size + 2
        if size == 0:
            end = data.find(b"\r\n\r\n", line)
            return None if end < 0 else end + 4
        if start > len(data):
            return None

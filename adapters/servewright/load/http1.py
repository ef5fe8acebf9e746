"""HTTP/1.1 as a load sends it: prepared bytes out, and of the answer only where it ends and what its status is."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
import ssl
import struct
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from time import monotonic

from servewright.backend import Payload
from servewright.load.workload import Endpoint

Done = Callable[[float, str], object]
"""Called with when a request was meant to leave and with its error's class, empty for a good answer."""

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[^\r]*chunked", re.IGNORECASE)
_CLOSES = re.compile(rb"\r\nconnection:[ \t]*close", re.IGNORECASE)
_STAYS = re.compile(rb"\r\nconnection:[ \t]*keep-alive", re.IGNORECASE)
_WITHOUT_BODY = frozenset({b"204", b"304"})
_NO_MORE_FILES = frozenset({errno.EMFILE, errno.ENFILE})
_SWEEP_S = 0.1
_AT_ONCE = struct.pack("ii", 1, 0)
RECEIVED = 1 << 18  # bytes at once, at most


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
        # One for all connections: each time that there is something, it is read at once. asyncio alone would take so
        # much memory from the system, and give it back, for each answer, which costs more than all that is done here.
        self.buffer = memoryview(bytearray(RECEIVED))
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
        """Send the next request, after those that wait; ``started`` is when it was meant to leave."""
        if self.idle and not self.waiting:
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
        """Let a connection idle, or give it the next request."""
        self.idle.append(connection)
        self.go_on()

    def go_on(self) -> None:
        """Send what waits, as far as connections are idle."""
        while self.waiting and self.idle:
            self.idle.pop().send(self.waiting.popleft())

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


class _Connection(asyncio.BufferedProtocol):
    """One connection. Of a body only the length matters: of the answer under way so many bytes are ``_missing``."""

    __slots__ = (
        "_begun", "_bodiless", "_closes", "_error", "_head", "_length", "_missing", "_sender", "_to_its_end", "busy",
        "started", "transport",
    )  # fmt: skip

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self.busy = False
        self.started = 0.0
        self._begun = b""  # what there is of an answer whose length is not known yet
        self._missing = 0
        self._to_its_end = False  # the answer ends with the connection
        # What the head of the answer before said; most are like it.
        self._head, self._length, self._closes, self._bodiless, self._error = b"", -1, False, False, ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._sender.open.add(self)
        self._sender.free(self)

    def send(self, started: float) -> None:
        """Send the next request."""
        self.started, self.busy = started, True
        self.transport.write(self._sender.next_request())

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  (asyncio's signature)
        return self._sender.buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._to_its_end:
            return
        if self._missing:
            self._missing -= nbytes
            if self._missing <= 0:
                self._answered()
            return
        if not self.busy:  # an answer to nothing, such as the news that an idle connection will be closed
            self._sender.lost(self)
            self.transport.abort()
            return
        data = self._begun + self._sender.buffer[:nbytes]
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self._begun = data
            return
        head = data[: end + 2]
        if head != self._head:
            self._read(head)
        if self._length >= 0:
            self._missing = end + 4 + self._length - len(data)
            if self._missing <= 0:
                self._answered()
            return
        if self._bodiless:
            self._answered()
        elif _CHUNKED.search(head):
            self._begun = data
            if _end_of_chunks(data, end + 4) is not None:
                self._answered()
        elif self._closes:
            self._to_its_end = True
        else:
            self.fail("not HTTP")

    def _read(self, head: bytes) -> None:
        """Read what the head of an answer says."""
        length, status = _LENGTH.search(head), head[9:12]
        self._head, self._length, self._bodiless = head, int(length[1]) if length else -1, status in _WITHOUT_BODY
        self._error = "" if status[:1] == b"2" else f"HTTP {status.decode('latin-1')}"
        self._closes = _CLOSES.search(head) is not None or (
            head.startswith(b"HTTP/1.0") and _STAYS.search(head) is None
        )

    def _answered(self) -> None:
        self._begun, self._missing, self._to_its_end, self.busy = b"", 0, False, False
        sender = self._sender
        if self._closes:
            sender.lost(self)
            self.transport.close()
        else:
            sender.idle.append(self)  # so that who asks anew at once finds it
        sender.done(self.started, self._error)
        if sender.waiting:
            sender.go_on()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._to_its_end and exc is None:
            self._answered()
            return
        self._sender.lost(self)
        if self.busy:
            self.busy = False
            if not self._sender.closed:
                self._sender.done(self.started, "connection lost")

    def fail(self, error: str) -> None:
        """Give the request under way up, and the connection with it."""
        self.busy, self._missing, self._to_its_end = False, 0, False
        self._sender.lost(self)
        # With a reset: of a server that is overrun, thousands of ports would else be taken for a minute.
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
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

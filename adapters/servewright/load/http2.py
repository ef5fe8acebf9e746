"""gRPC over HTTP/2 as a load sends it: prepared bytes out, and of the answer only its status.

The whole protocol is not here: calls are unary, answers are counted and not read, and the server is told to keep no
header table (RFC 7541, 4.2), so that a status reads without any state.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import cycle
from struct import Struct, unpack_from
from time import monotonic

from servewright.backend import Payload
from servewright.load.http1 import RECEIVED, Done, why
from servewright.load.workload import Endpoint

CODES = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip

_DATA, _HEADERS, _RST, _SETTINGS, _PING, _GOAWAY, _WINDOW, _CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
_END_STREAM, _ACK, _END_HEADERS, _PADDED, _PRIORITY = 1, 1, 4, 8, 32
_HEADER_TABLE_SIZE, _ENABLE_PUSH, _MAX_STREAMS, _INITIAL_WINDOW, _MAX_FRAME = 1, 2, 3, 4, 5
_LARGEST_WINDOW = 2**31 - 1
_DEFAULT_WINDOW = 65_535
_CANCEL = 8
_SWEEP_S = 0.1
_NEAR = 64  # bytes of a frame in which an answer that is an error says so
_NO_SOONER_S = 1.0
_CHANNELS = 2  # one connection is one thread of the server's transport

# As Envoy and nghttp2 write it, in the code of RFC 7541, appendix B; of digits, what a status needs.
_GRPC_STATUS = frozenset({b"grpc-status", bytes.fromhex("9acac8b21234da8f")})
_DIGITS = {"0": "00000", "1": "00001", "2": "00010", **{str(each): f"{each + 22:06b}" for each in range(3, 10)}}

_HEAD = Struct(">HBBBI")  # length in 16 + 8 bits, type, flags, stream
_SETTING = Struct(">HI")


def frame(kind: int, flags: int, stream: int, body: bytes = b"") -> bytes:
    """Return a frame."""
    return _HEAD.pack(len(body) >> 8, len(body) & 255, kind, flags, stream) + body


_PREFACE = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    + frame(
        _SETTINGS, 0, 0,
        b"".join(
            _SETTING.pack(*each)
            for each in ((_HEADER_TABLE_SIZE, 0), (_ENABLE_PUSH, 0), (_INITIAL_WINDOW, _LARGEST_WINDOW),
                         (_MAX_FRAME, 2**24 - 1))
        ),
    )
    + frame(_WINDOW, 0, 0, (_LARGEST_WINDOW - _DEFAULT_WINDOW).to_bytes(4, "big"))
)  # fmt: skip


def header_block(path: str, authority: str, headers: Mapping[str, str], *, secure: bool) -> bytes:
    """Return the header block of a call: literals that no table keeps."""
    fixed = {"te": "trailers", "content-type": "application/grpc", "user-agent": "servewright-load"}
    block = b"\x83" + (b"\x87" if secure else b"\x86") + b"\x04" + _text(path) + b"\x01" + _text(authority)
    named = fixed | {name.lower(): value for name, value in headers.items()}
    return block + b"".join(b"\x00" + _text(name) + _text(value) for name, value in named.items())


def _text(text: str) -> bytes:
    data = text.encode()
    if len(data) < 127:
        return bytes([len(data)]) + data
    rest, length = len(data) - 127, bytearray([127])
    while rest >= 128:
        length.append(rest % 128 + 128)
        rest //= 128
    length.append(rest)
    return bytes(length) + data


def status_of(block: bytes) -> str:
    """Return the gRPC status of a block of trailers: empty for OK, else its code's name, or what is known of it."""
    at, http = 0, ""
    while at < len(block):
        first = block[at]
        if first & 0x80:
            index, at = _integer(block, at, 7)
            http = {9: "204", 10: "206", 11: "304", 12: "400", 13: "404", 14: "500"}.get(index, http)
            continue
        if first & 0xE0 == 0x20:
            _, at = _integer(block, at, 5)
            continue
        index, at = _integer(block, at, 6 if first & 0x40 else 4)
        name, at = _string(block, at) if index == 0 else (b"", at)
        coded = at < len(block) and block[at] >= 0x80
        value, at = _string(block, at)
        if name in _GRPC_STATUS:
            value = _CODED.get(value, value) if coded else value
            code = int(value) if value.isdigit() else -1
            return "" if code == 0 else CODES[code] if 0 < code < len(CODES) else f"code {value.decode('latin-1')}"
        if 8 <= index <= 14:
            http = value.decode("latin-1")
    return f"HTTP {http}" if http else "no status"


def _integer(data: bytes, at: int, bits: int) -> tuple[int, int]:
    most = (1 << bits) - 1
    value = data[at] & most
    at += 1
    if value < most:
        return value, at
    shift = 0
    while True:
        value += (data[at] & 127) << shift
        shift += 7
        at += 1
        if data[at - 1] < 128:
            return value, at


def _string(data: bytes, at: int) -> tuple[bytes, int]:
    """Return a string as it stands, in Huffman's code or not, and where it ends."""
    length, at = _integer(data, at, 7)
    return data[at : at + length], at + length


def _huffman(digits: str) -> bytes:
    bits = "".join(_DIGITS[digit] for digit in digits)
    padded = bits + "1" * (-len(bits) % 8)
    return int(padded, 2).to_bytes(len(padded) // 8, "big")


_CODED = {_huffman(str(code)): str(code).encode() for code in range(len(CODES))}


class Sender:
    """A few connections to one server, with any number of calls on each."""

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
        self._payloads, self._timeout_s, self._most = payloads, timeout_s, min(connections, _CHANNELS)
        self.refusal = next((payload.refusal for payload in payloads if payload.refusal), b"")
        self._loop = asyncio.get_running_loop()
        self._tls: ssl.SSLContext | None = None
        if endpoint.secure:
            self._tls = ssl.create_default_context()
            self._tls.set_alpn_protocols(["h2"])
        self.open: list[_Connection] = []  # those that take calls; a server that goes away still answers old ones
        self.alive: set[_Connection] = set()
        self.waiting: deque[float] = deque()
        self._opening: asyncio.Task[None] | None = None
        self._not_before = 0.0
        self.closed = False
        self.buffer = memoryview(bytearray(RECEIVED))  # for all connections: see `http1`
        self._turn = 0
        self.use(headers)
        self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep)

    def use(self, headers: Mapping[str, str]) -> None:
        """Send these headers from now on."""
        calls = [
            (
                header_block(
                    payload.target,
                    self.endpoint.address,
                    {**payload.headers, **headers},
                    secure=self.endpoint.secure,
                ),
                b"\0" + len(payload.body).to_bytes(4, "big") + payload.body,
            )
            for payload in self._payloads
        ]
        self.next_call = cycle(calls).__next__

    async def connect(self, count: int) -> None:
        """Open the connections, and wait for the server's settings; `OSError` where it does not say any."""
        for _ in range(min(count, self._most)):
            await self._connect()

    def send(self, started: float) -> None:
        """Send the next request; ``started`` is when it was meant to leave."""
        open_ = self.open
        for _ in range(len(open_)):
            self._turn = (self._turn + 1) % len(open_)
            if open_[self._turn].room():
                open_[self._turn].send(started)
                return
        self.waiting.append(started)
        self._reopen()

    def pending(self) -> list[float]:
        """Return when each request was meant to leave that has no answer yet."""
        return [started for connection in self.alive for started in connection.calls.values()] + list(self.waiting)

    def close(self) -> None:
        """Close every connection; nothing is reported of calls under way."""
        self.closed = True
        self._sweeper.cancel()
        if self._opening is not None:
            self._opening.cancel()
        for connection in list(self.alive):
            connection.transport.abort()

    def lost(self, connection: _Connection, error: str) -> None:
        """Report every call of a connection that is gone."""
        self.leave(connection)
        self.alive.discard(connection)
        started, connection.calls = list(connection.calls.values()), {}
        if not self.closed:
            for each in started:
                self.done(each, error)

    def leave(self, connection: _Connection) -> None:
        """Begin no more calls on a connection."""
        if connection in self.open:
            self.open.remove(connection)
            self._reopen()

    def _reopen(self) -> None:
        """Open a connection for one that went, unless none came the last time, a moment ago."""
        if self.closed or self._opening is not None or len(self.open) >= self._most:
            return
        if not self.open or monotonic() >= self._not_before:
            self._opening = self._loop.create_task(self._open_again())

    async def _connect(self) -> None:
        connection: _Connection | None = None
        address = self.endpoint.host, self.endpoint.port
        try:
            async with asyncio.timeout(self._timeout_s):
                _, connection = await self._loop.create_connection(lambda: _Connection(self), *address, ssl=self._tls)
                await connection.settled
        except TimeoutError as error:
            if connection is None:
                raise OSError(f"no connection within {self._timeout_s:g} s") from error
            connection.transport.abort()
            raise OSError("no HTTP/2 server answers") from error
        if connection.leaving or connection.transport.is_closing():  # it has gone away as soon as it was there
            raise OSError("the server closes its connections")
        self.open.append(connection)

    async def _open_again(self) -> None:
        try:
            await self._connect()
        except OSError as error:
            self._not_before = monotonic() + _NO_SOONER_S
            while self.waiting and not self.open:
                self.done(self.waiting.popleft(), f"connection: {why(error)}")
        finally:
            self._opening = None
        while self.waiting and self.open and self.open[-1].room():
            self.open[-1].send(self.waiting.popleft())

    def _sweep(self) -> None:
        late = monotonic() - self._timeout_s
        for connection in list(self.alive):
            connection.give_up(late)
        while self.waiting and self.waiting[0] < late:
            self.done(self.waiting.popleft(), "timeout")
        self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep)


class _Connection(asyncio.BufferedProtocol):
    """One connection: its calls by stream, and what its windows let it send."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self.calls: dict[int, float] = {}
        self._refused: set[int] = set()
        self.settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stream = 1
        self._buffer = b""
        self.leaving = False
        self._most_streams = 1 << 31
        self._frame_size = 16_384
        self._window = self._initial = _DEFAULT_WINDOW
        self._windows: dict[int, int] = {}  # of streams in `_blocked` alone
        self._blocked: dict[int, memoryview] = {}
        self._received = 0
        self._block: tuple[int, int, bytes] | None = None  # a header block that goes on: stream, flags, what there is

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._sender.alive.add(self)
        transport.write(_PREFACE)

    def room(self) -> bool:
        """Tell whether another call may begin."""
        return not self.leaving and len(self.calls) < self._most_streams

    def send(self, started: float) -> None:
        """Send the next call."""
        block, message = self._sender.next_call()
        stream = self._stream
        self._stream += 2
        self.calls[stream] = started
        head = frame(_HEADERS, _END_HEADERS, stream, block)
        size = len(message)
        if size <= self._frame_size and size <= self._window and size <= self._initial and not self._blocked:
            self._window -= size
            self.transport.write(head + frame(_DATA, _END_STREAM, stream, message))
            return
        self.transport.write(head)
        self._windows[stream], self._blocked[stream] = self._initial, memoryview(message)
        self._send_blocked()

    def give_up(self, late: float) -> None:
        """Cancel every call that was meant to leave before ``late``."""
        for stream in [stream for stream, started in self.calls.items() if started < late]:
            self.transport.write(frame(_RST, 0, stream, _CANCEL.to_bytes(4, "big")))
            self._end(stream, "timeout")

    def _send_blocked(self) -> None:
        """Send as much as the windows allow, the oldest call first."""
        for stream in list(self._blocked):
            rest = self._blocked[stream]
            while rest and (size := min(len(rest), self._frame_size, self._window, self._windows[stream])) > 0:
                last = size == len(rest)
                self.transport.write(frame(_DATA, _END_STREAM if last else 0, stream, bytes(rest[:size])))
                self._window -= size
                self._windows[stream] -= size
                rest = rest[size:]
            if rest:
                self._blocked[stream] = rest
            else:
                del self._blocked[stream], self._windows[stream]
            if self._window <= 0:
                return

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  (asyncio's signature)
        return self._sender.buffer

    def buffer_updated(self, nbytes: int) -> None:
        data = self._buffer + self._sender.buffer[:nbytes]
        at, size = 0, len(data)
        while size - at >= 9:
            high, low, kind, flags, stream = _HEAD.unpack_from(data, at)
            end = at + 9 + (high << 8 | low)
            if end > size:
                break
            self._take(kind, flags, stream & 0x7FFF_FFFF, data[at + 9 : end])
            at = end
        self._buffer = data[at:]

    def _take(self, kind: int, flags: int, stream: int, body: bytes) -> None:
        if kind == _DATA:
            self._received += len(body)
            if self._received > _LARGEST_WINDOW // 2:
                self.transport.write(frame(_WINDOW, 0, 0, self._received.to_bytes(4, "big")))
                self._received = 0
            if self._sender.refusal and self._sender.refusal in body[:_NEAR]:
                self._refused.add(stream)
            if flags & _END_STREAM:
                self._end(stream, "no status")
        elif kind == _HEADERS:
            if flags & _PADDED:
                body = body[1 : len(body) - body[0]]
            self._headers(stream, flags, body[5:] if flags & _PRIORITY else body)
        elif kind == _CONTINUATION and self._block is not None:
            begun, first, start = self._block
            self._headers(begun, first | flags & _END_HEADERS, start + body)
        elif kind == _SETTINGS:
            if not flags & _ACK:
                self._settings(body)
        elif kind == _WINDOW:
            self._widen(stream, int.from_bytes(body, "big") & 0x7FFF_FFFF)
        elif kind == _PING:
            if not flags & _ACK:
                self.transport.write(frame(_PING, _ACK, 0, body))
        elif kind == _RST:
            self._end(stream, f"stream reset ({int.from_bytes(body, 'big')})")
        elif kind == _GOAWAY:
            self.leaving = True
            self._sender.leave(self)
            (last,) = unpack_from(">I", body)
            for refused in [each for each in self.calls if each > last & 0x7FFF_FFFF]:
                self._end(refused, "connection is closing")
            if not self.calls:
                self.transport.close()

    def _headers(self, stream: int, flags: int, block: bytes) -> None:
        self._block = None if flags & _END_HEADERS else (stream, flags, block)
        if self._block is None and flags & _END_STREAM:
            self._end(stream, status_of(block))

    def _settings(self, body: bytes) -> None:
        for at in range(0, len(body) - 5, 6):
            name, value = _SETTING.unpack_from(body, at)
            if name == _INITIAL_WINDOW:
                for stream in self._windows:
                    self._windows[stream] += value - self._initial
                self._initial = value
            elif name == _MAX_FRAME:
                self._frame_size = value
            elif name == _MAX_STREAMS:
                self._most_streams = value
        self.transport.write(frame(_SETTINGS, _ACK, 0))
        if not self.settled.done():
            self.settled.set_result(None)
        self._send_blocked()

    def _widen(self, stream: int, by: int) -> None:
        if stream == 0:
            self._window += by
        elif stream in self._windows:
            self._windows[stream] += by
        if self._blocked:
            self._send_blocked()

    def _end(self, stream: int, error: str) -> None:
        started = self.calls.pop(stream, None)
        if started is None:
            return
        self._blocked.pop(stream, None)
        self._windows.pop(stream, None)
        if stream in self._refused:
            self._refused.remove(stream)
            error = error or "error in the answer"
        self._sender.done(started, error)
        if self._sender.waiting and self.room():
            self.send(self._sender.waiting.popleft())

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  (asyncio's signature)
        if not self.settled.done():
            self.settled.set_exception(OSError("the server closed the connection; does it speak gRPC?"))
        self._sender.lost(self, "connection lost")

"""HTTP/2 (RFC 9113) for a server: frames, streams and flow control on asyncio.

A request is handed on when it is complete; what is sent back is written once per turn of the event loop, whatever
number of answers it holds. A client may send as much as it likes at once: messages are taken whole. One that does not
read what it is sent is not read from either.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import Final

from servewright.backends.tfserving.embedded.hpack import Decoder, Header, HpackError

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PUSH_PROMISE, _PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = (
    0x0, 0x1, 0x3, 0x4, 0x5, 0x6, 0x7, 0x8, 0x9,
)  # fmt: skip
_END_STREAM, _ACK, _END_HEADERS, _PADDED, _PRIORITY_FLAG = 0x1, 0x1, 0x4, 0x8, 0x20
_NO_ERROR, _PROTOCOL_ERROR, _FLOW_CONTROL_ERROR, _STREAM_CLOSED, _FRAME_SIZE_ERROR = 0x0, 0x1, 0x3, 0x5, 0x6
_REFUSED_STREAM, CANCEL, _COMPRESSION_ERROR, _ENHANCE_YOUR_CALM = 0x7, 0x8, 0x9, 0xB
_HEADER_TABLE_SIZE, _MAX_CONCURRENT_STREAMS, _INITIAL_WINDOW_SIZE = 1, 3, 4
_MAX_FRAME_SIZE, _MAX_HEADER_LIST_SIZE = 5, 6

_FIRST_WINDOW: Final = 65_535
_LARGEST_WINDOW: Final = (1 << 31) - 1
_RENEWED_AT: Final = 1 << 29  # bytes received before the connection's window is opened again
_OUR_FRAME_SIZE: Final = 1 << 20
_LARGEST_BLOCK: Final = 1 << 16
_LARGEST_BODY: Final = (1 << 31) - 1
_MOST_UNREAD: Final = 8 << 20  # bytes that wait for a client to read them

_frame_head = struct.Struct(">HBBBI")


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return a frame."""
    size = len(payload)
    return _frame_head.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload


class ProtocolError(Exception):
    """What the client sent breaks the rules of the whole connection; ``code`` is HTTP/2's."""

    def __init__(self, code: int, reason: str) -> None:
        self.code = code
        super().__init__(reason)


class Stream:
    """One request and its answer."""

    __slots__ = ("body", "closed", "ended", "headers", "id", "leave", "pending", "size", "trailers", "window")

    def __init__(self, number: int, headers: list[Header], window: int) -> None:
        self.id, self.headers, self.window = number, headers, window
        self.body: list[bytes] = []
        self.size = 0
        self.ended = self.closed = False
        self.pending: list[memoryview] = []  # data for which the client has opened no window yet
        self.trailers: bytes | None = None
        self.leave: Callable[[], object] | None = None  # to be called when the client gives the request up


class Connection(asyncio.BufferedProtocol):
    """One client; ``on_request`` is called with every complete request.

    What is received lies in ``received`` first, which all connections of a loop share: see `http`.
    """

    def __init__(
        self,
        on_request: Callable[[Connection, Stream], None],
        connections: set[Connection],
        received: memoryview,
        most_streams: int = 0,
    ) -> None:
        self._on_request, self._connections, self._most_streams = on_request, connections, most_streams
        self._new = received
        self._decoder = Decoder()
        self._buffer = b""
        self._streams: dict[int, Stream] = {}
        self._last = 0
        self._block: tuple[Stream, bytearray] | None = None  # headers that go on in the next frame
        self._window, self._peer_stream_window, self._peer_frame_size = _FIRST_WINDOW, _FIRST_WINDOW, 1 << 14
        self._received = 0
        self._out: list[bytes] = []
        self._greeted = self._draining = self._shrunk = False
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say how much may be sent to us."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(_MOST_UNREAD)
        self._connections.add(self)
        settings = [(_INITIAL_WINDOW_SIZE, _LARGEST_WINDOW), (_MAX_FRAME_SIZE, _OUR_FRAME_SIZE),
                    (_MAX_HEADER_LIST_SIZE, _LARGEST_BLOCK)]  # fmt: skip
        if self._most_streams:
            settings.append((_MAX_CONCURRENT_STREAMS, self._most_streams))
        self._send(frame(_SETTINGS, 0, 0, b"".join([struct.pack(">HI", *setting) for setting in settings])))
        self._send(frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", _LARGEST_WINDOW - _FIRST_WINDOW)))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Stop the work for which nobody waits any more."""
        self._connections.discard(self)
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            _abandon(stream)

    def pause_writing(self) -> None:
        """Take nothing more from a client that does not read."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Go on."""
        if self._transport is not None:
            self._transport.resume_reading()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  (asyncio's signature)
        """Return where to put what comes."""
        return self._new

    def buffer_updated(self, nbytes: int) -> None:
        """Read every frame that is complete."""
        data = self._buffer + self._new[:nbytes]
        at, end = 0, len(data)
        try:
            if not self._greeted:
                if end < len(PREFACE) and PREFACE.startswith(data):
                    self._buffer = data
                    return
                if not data.startswith(PREFACE):
                    raise ProtocolError(_PROTOCOL_ERROR, "no HTTP/2")
                self._greeted, at = True, len(PREFACE)
            while end - at >= 9:
                high, low, kind, flags, number = _frame_head.unpack_from(data, at)
                size = high << 8 | low
                if size > _OUR_FRAME_SIZE:
                    raise ProtocolError(_FRAME_SIZE_ERROR, "a frame too large")
                if end - at < 9 + size:
                    break
                self._frame(kind, flags, number & 0x7FFF_FFFF, data[at + 9 : at + 9 + size])
                at += 9 + size
        except ProtocolError as error:
            self._end(error.code)
            return
        except HpackError:
            self._end(_COMPRESSION_ERROR)
            return
        except struct.error:
            self._end(_FRAME_SIZE_ERROR)
            return
        self._buffer = data[at:]

    def eof_received(self) -> None:
        """Let asyncio close the connection."""

    # Frames

    def _frame(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if self._block is not None and kind != _CONTINUATION:
            raise ProtocolError(_PROTOCOL_ERROR, "headers were not finished")
        if kind == _HEADERS:
            self._on_headers(flags, number, payload)
        elif kind == _DATA:
            self._on_data(flags, number, payload)
        elif kind == _WINDOW_UPDATE:
            self._on_window(number, payload)
        elif kind == _SETTINGS:
            self._on_settings(flags, number, payload)
        elif kind == _PING:
            if number or len(payload) != 8:
                raise ProtocolError(_FRAME_SIZE_ERROR, "a ping of a wrong size")
            if not flags & _ACK:
                self._send(frame(_PING, _ACK, 0, payload))
        elif kind == _RST_STREAM:
            if not number or number > self._last:
                raise ProtocolError(_PROTOCOL_ERROR, "no such stream to reset")
            if (stream := self._streams.pop(number, None)) is not None:
                _abandon(stream)
        elif kind == _CONTINUATION:
            self._on_continuation(flags, number, payload)
        elif kind == _PUSH_PROMISE:
            raise ProtocolError(_PROTOCOL_ERROR, "clients push nothing")
        # GOAWAY, PRIORITY and what is unknown change nothing.

    def _on_headers(self, flags: int, number: int, payload: bytes) -> None:
        if not number % 2:
            raise ProtocolError(_PROTOCOL_ERROR, "a stream that clients cannot open")
        payload = _unpadded(flags, payload)
        if flags & _PRIORITY_FLAG:
            if len(payload) < 5:
                raise ProtocolError(_FRAME_SIZE_ERROR, "a priority of a wrong size")
            payload = payload[5:]
        stream = self._streams.get(number)
        if stream is None:
            stream = Stream(number, [], self._peer_stream_window)
            if number <= self._last:  # trailers that crossed our answer: read for the table's sake
                stream.closed = True
            self._last = max(self._last, number)
        elif stream.ended or not flags & _END_STREAM:
            raise ProtocolError(_PROTOCOL_ERROR, "trailers out of place")
        stream.ended = bool(flags & _END_STREAM)
        if flags & _END_HEADERS:
            self._opened(stream, payload)
        else:
            self._block = stream, bytearray(payload)

    def _on_continuation(self, flags: int, number: int, payload: bytes) -> None:
        if self._block is None or self._block[0].id != number:
            raise ProtocolError(_PROTOCOL_ERROR, "headers that continue nothing")
        stream, block = self._block
        block += payload
        if len(block) > _LARGEST_BLOCK:
            raise ProtocolError(_ENHANCE_YOUR_CALM, "headers too large")
        if flags & _END_HEADERS:
            self._block = None
            self._opened(stream, bytes(block))

    def _opened(self, stream: Stream, block: bytes) -> None:
        headers = self._decoder.decode(block)
        if stream.closed:
            return
        if stream.id not in self._streams:
            if self._draining or (self._most_streams and len(self._streams) >= self._most_streams):
                self._send(frame(_RST_STREAM, 0, stream.id, struct.pack(">I", _REFUSED_STREAM)))
                return
            stream.headers = headers
            self._streams[stream.id] = stream
        if stream.ended:
            self._on_request(self, stream)

    def _on_data(self, flags: int, number: int, payload: bytes) -> None:
        self._received += len(payload)
        if self._received >= _RENEWED_AT:
            self._send(frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", self._received)))
            self._received = 0
        stream = self._streams.get(number)
        if stream is None:
            if not number or number > self._last:
                raise ProtocolError(_PROTOCOL_ERROR, "data without a stream")
            return  # the answer is out already
        if stream.ended:
            raise ProtocolError(_STREAM_CLOSED, "data after the end")
        payload = _unpadded(flags, payload)
        if payload:
            stream.body.append(payload)
            stream.size += len(payload)
        if stream.size > _LARGEST_BODY:
            self.reset(stream, _FLOW_CONTROL_ERROR)
        elif flags & _END_STREAM:
            stream.ended = True
            self._on_request(self, stream)

    def _on_settings(self, flags: int, number: int, payload: bytes) -> None:
        if number or len(payload) % 6 or (flags & _ACK and payload):
            raise ProtocolError(_FRAME_SIZE_ERROR, "settings of a wrong size")
        if flags & _ACK:
            return
        for key, value in struct.iter_unpack(">HI", payload):
            if key == _INITIAL_WINDOW_SIZE:
                if value > _LARGEST_WINDOW:
                    raise ProtocolError(_FLOW_CONTROL_ERROR, "a window too large")
                for stream in self._streams.values():
                    stream.window += value - self._peer_stream_window
                    if stream.window > _LARGEST_WINDOW:
                        raise ProtocolError(_FLOW_CONTROL_ERROR, "a window too large")
                self._peer_stream_window = value
            elif key == _MAX_FRAME_SIZE:
                if not 1 << 14 <= value < 1 << 24:
                    raise ProtocolError(_PROTOCOL_ERROR, "a frame size out of range")
                self._peer_frame_size = value
            elif key == _HEADER_TABLE_SIZE and value < 4096:
                self._shrunk = True  # has to be acknowledged in the next headers
        self._send(frame(_SETTINGS, _ACK, 0))
        self._send_pending()

    def _on_window(self, number: int, payload: bytes) -> None:
        (more,) = struct.unpack(">I", payload)
        more &= _LARGEST_WINDOW
        if not more:
            raise ProtocolError(_PROTOCOL_ERROR, "a window that does not grow")
        if not number:
            self._window += more
            if self._window > _LARGEST_WINDOW:
                raise ProtocolError(_FLOW_CONTROL_ERROR, "a window too large")
        elif (stream := self._streams.get(number)) is not None:
            stream.window += more
            if stream.window > _LARGEST_WINDOW:
                self.reset(stream, _FLOW_CONTROL_ERROR)
                return
        elif number > self._last:
            raise ProtocolError(_PROTOCOL_ERROR, "a window of no stream")
        self._send_pending()

    # Answers

    def send_headers(self, stream: Stream, block: bytes, *, end: bool = False) -> None:
        """Send a header block; with ``end`` behind all data, as trailers."""
        if stream.closed:
            return
        if end and stream.pending:
            stream.trailers = block
            return
        if self._shrunk:
            self._shrunk, block = False, b"\x20" + block
        self._send(frame(_HEADERS, _END_HEADERS | (_END_STREAM if end else 0), stream.id, block))
        if end:
            self._finished(stream)

    def send_data(self, stream: Stream, data: bytes) -> None:
        """Send data as far as the client's windows allow, and the rest when they open."""
        if stream.closed:
            return
        size = len(data)
        if not stream.pending and size <= self._window and size <= stream.window and size <= self._peer_frame_size:
            self._window -= size
            stream.window -= size
            self._send(frame(_DATA, 0, stream.id, data))
            return
        stream.pending.append(memoryview(data))
        self._send_stream(stream)

    def reset(self, stream: Stream, code: int = CANCEL) -> None:
        """Give a stream up."""
        self._streams.pop(stream.id, None)
        _abandon(stream)
        self._send(frame(_RST_STREAM, 0, stream.id, struct.pack(">I", code)))

    def _send_pending(self) -> None:
        for stream in list(self._streams.values()):
            if stream.pending:
                self._send_stream(stream)

    def _send_stream(self, stream: Stream) -> None:
        while stream.pending:
            part = stream.pending[0]
            room = min(self._window, stream.window, self._peer_frame_size)
            if room <= 0:
                return
            now, rest = part[:room], part[room:]
            self._window -= len(now)
            stream.window -= len(now)
            self._send(frame(_DATA, 0, stream.id, bytes(now)))
            if len(rest):
                stream.pending[0] = rest
            else:
                stream.pending.pop(0)
        if stream.trailers is not None:
            block, stream.trailers = stream.trailers, None
            self.send_headers(stream, block, end=True)

    def _finished(self, stream: Stream) -> None:
        stream.closed = True
        self._streams.pop(stream.id, None)
        if not stream.ended:  # the client still sends what nobody reads
            self._send(frame(_RST_STREAM, 0, stream.id, struct.pack(">I", _NO_ERROR)))
        if self._draining and not self._streams:
            self._loop.call_soon(self.close)

    def _send(self, data: bytes) -> None:
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(data)

    def _flush(self) -> None:
        out, self._out = self._out, []
        if out and self._transport is not None and not self._transport.is_closing():
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))

    # Endings

    def drain(self) -> None:
        """Take no new requests; close when the last answer is out."""
        self._draining = True
        self._send(frame(_GOAWAY, 0, 0, struct.pack(">II", self._last, _NO_ERROR)))
        if not self._streams:
            self._loop.call_soon(self.close)

    def _end(self, code: int) -> None:
        self._send(frame(_GOAWAY, 0, 0, struct.pack(">II", self._last, code)))
        self.close()

    def close(self) -> None:
        """Send what is to be sent, and close."""
        self._flush()
        if self._transport is not None:
            self._transport.close()


def _abandon(stream: Stream) -> None:
    stream.closed = True
    stream.pending.clear()
    if stream.leave is not None:
        stream.leave()


def _unpadded(flags: int, payload: bytes) -> bytes:
    if not flags & _PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise ProtocolError(_PROTOCOL_ERROR, "more padding than payload")
    return payload[1 : len(payload) - payload[0]]

"""gRPC over our own HTTP/2: messages, deadlines, statuses.

Python's grpcio takes 0.25 to 0.3 ms of CPU for a call, several times what everything else here takes together.
"""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Protocol

from servewright.backends.tfserving.embedded import RECEIVED
from servewright.backends.tfserving.embedded.hpack import encode
from servewright.backends.tfserving.embedded.http2 import Connection, Stream
from servewright.backends.tfserving.embedded.log import log
from servewright.backends.tfserving.embedded.status import Code, StatusError

_CONTENT_TYPE: Final = (b"content-type", b"application/grpc")
_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNITS_US: Final = {b"H": 3.6e9, b"M": 6e7, b"S": 1e6, b"m": 1e3, b"u": 1.0, b"n": 1e-3}
_HEAD: Final = encode([(b":status", b"200"), _CONTENT_TYPE])
_GOOD: Final = encode([(b"grpc-status", b"0")])
_NO_GRPC: Final = encode([(b":status", b"415")])
_LARGEST_INFLATED: Final = (1 << 31) - 1
_SOON_INFLATED: Final = 1 << 12  # bytes; more can take so long that the event loop must not wait


@dataclass(frozen=True, slots=True)
class Call:
    """One call: its path, its message, and the microseconds that its client waits."""

    method: str
    data: bytes
    timeout_us: int | None


class Answers(Protocol):
    """What a server of calls has to be."""

    def metadata(self, method: str) -> list[tuple[bytes, bytes]]:
        """Return what is sent ahead of a method's answer."""
        ...

    def streams(self, method: str) -> bool:
        """Tell whether a method answers with more than one message."""
        ...

    def waits(self, method: str) -> bool:
        """Tell whether a method only waits for something, so that it ends when its client leaves.

        All others run to their end, and hold what they use until then: a model that computes cannot be stopped.
        """
        ...

    async def answer(self, call: Call) -> bytes:
        """Return the answer to a call; raise `StatusError`."""
        ...

    def stream(self, call: Call) -> AsyncIterator[bytes]:
        """Yield the answers to a call."""
        ...


class GrpcServer:
    """The connections of a gRPC server, and the sockets on which it listens."""

    def __init__(self, answers: Answers, *, most_streams: int = 0) -> None:
        self._answers, self._most_streams = answers, most_streams
        self._connections: set[Connection] = set()
        self._received = memoryview(bytearray(RECEIVED))
        self._sockets: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()

    def connection(self) -> Connection:
        """Return the protocol of a new connection."""
        return Connection(self._on_request, self._connections, self._received, self._most_streams)

    async def listen(self, host: str, port: int, tls: object = None) -> None:
        """Listen on a port; raise `OSError` where that is taken."""
        server = await self._loop.create_server(self.connection, host, port, backlog=1024, ssl=tls)  # type: ignore[call-overload]
        self._sockets.append(server)

    async def listen_at(self, path: str, tls: object = None) -> None:
        """Listen on a socket file; raise `OSError` where that is not possible."""
        server = await self._loop.create_unix_server(self.connection, path, backlog=1024, ssl=tls)  # type: ignore[arg-type]
        self._sockets.append(server)

    async def stop(self, within_s: float) -> None:
        """Take no more calls, let those under way finish for ``within_s`` seconds, and close."""
        for server in self._sockets:
            server.close()
        for connection in list(self._connections):
            connection.drain()
        end = self._loop.time() + within_s
        while self._connections and self._loop.time() < end:
            await asyncio.sleep(0.01)
        for connection in list(self._connections):
            connection.close()

    def _on_request(self, connection: Connection, stream: Stream) -> None:
        if stream.size > _SOON_INFLATED and stream.body[0][:1] == b"\1":
            self._begin(self._unpacked(connection, stream))
        else:
            self._take(connection, stream, read_call(stream))

    async def _unpacked(self, connection: Connection, stream: Stream) -> None:
        self._take(connection, stream, await asyncio.to_thread(read_call, stream))

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _take(self, connection: Connection, stream: Stream, call: Call | StatusError | None) -> None:
        if stream.closed:
            return
        if call is None:
            connection.send_headers(stream, _NO_GRPC, end=True)
        elif isinstance(call, StatusError):
            _fail(connection, stream, call, started=False)
        else:
            stream.body = []
            streams = self._answers.streams(call.method)
            task = self._begin((self._stream if streams else self._unary)(connection, stream, call))
            if streams or self._answers.waits(call.method):
                stream.leave = task.cancel

    async def _unary(self, connection: Connection, stream: Stream, call: Call) -> None:
        try:
            data = await self._answers.answer(call)
        except StatusError as error:
            _fail(connection, stream, error, started=False, metadata=self._answers.metadata(call.method))
        except Exception as error:  # noqa: BLE001  (a mistake of ours is this call's error, and nobody else's)
            log("E", "servewright", f"{call.method} failed: {error!r}")
            _fail(connection, stream, StatusError(Code.INTERNAL, repr(error)), started=False)
        else:
            metadata = self._answers.metadata(call.method)
            connection.send_headers(stream, _HEAD + encode(metadata) if metadata else _HEAD)
            connection.send_data(stream, b"\0" + len(data).to_bytes(4, "big") + data)
            connection.send_headers(stream, _GOOD, end=True)

    async def _stream(self, connection: Connection, stream: Stream, call: Call) -> None:
        connection.send_headers(stream, _HEAD)
        try:
            async for data in self._answers.stream(call):
                connection.send_data(stream, b"\0" + len(data).to_bytes(4, "big") + data)
        except StatusError as error:
            _fail(connection, stream, error, started=True)
        except Exception as error:  # noqa: BLE001  (as above)
            log("E", "servewright", f"{call.method} failed: {error!r}")
            _fail(connection, stream, StatusError(Code.INTERNAL, repr(error)), started=True)
        else:
            connection.send_headers(stream, _GOOD, end=True)


def read_call(stream: Stream) -> Call | StatusError | None:
    """Return the call that a request is, what is wrong with it, or ``None`` where it is no gRPC at all."""
    headers = dict(reversed(stream.headers))
    if headers.get(b":method") != b"POST" or not headers.get(b"content-type", b"").startswith(b"application/grpc"):
        return None
    body = stream.body[0] if len(stream.body) == 1 else b"".join(stream.body)
    if len(body) < 5 or int.from_bytes(body[1:5], "big") != len(body) - 5 or body[0] > 1:
        return StatusError(Code.INTERNAL, "")
    data = body[5:]
    if body[0]:
        encoding = headers.get(b"grpc-encoding", b"identity")
        found = _inflated(data, encoding)
        if isinstance(found, StatusError):
            return found
        data = found
    method = headers.get(b":path", b"").decode("latin-1")
    return Call(method, data, timeout_us(headers.get(b"grpc-timeout")))


def timeout_us(text: bytes | None) -> int | None:
    """Return a ``grpc-timeout`` in microseconds; ``None`` where there is none that can be read."""
    found = _TIMEOUT.fullmatch(text) if text else None
    return int(int(found[1]) * _UNITS_US[found[2]]) if found else None


def _inflated(data: bytes, encoding: bytes) -> bytes | StatusError:
    bits = {b"gzip": 16 + zlib.MAX_WBITS, b"deflate": zlib.MAX_WBITS}.get(encoding)
    if bits is None:
        return StatusError(
            Code.UNIMPLEMENTED, f"Compression algorithm '{encoding.decode('latin-1')}' is not supported."
        )
    unpacker = zlib.decompressobj(bits)
    try:
        found = unpacker.decompress(data, _LARGEST_INFLATED)
    except zlib.error:
        return StatusError(Code.INTERNAL, "")
    return found if unpacker.eof else StatusError(Code.INTERNAL, "")


def _fail(
    connection: Connection, stream: Stream, error: StatusError, *, started: bool,
    metadata: list[tuple[bytes, bytes]] | None = None,
) -> None:  # fmt: skip
    trailers = _trailers(int(error.code), error.details)
    if metadata:  # in a block of its own: metadata beside the status would be trailing metadata
        connection.send_headers(stream, _HEAD + encode(metadata))
    elif not started:
        trailers = _HEAD + trailers
    connection.send_headers(stream, trailers, end=True)


@lru_cache(maxsize=256)
def _trailers(code: int, details: str) -> bytes:
    headers = [(b"grpc-status", b"%d" % code)]
    if details:
        headers.append((b"grpc-message", percent_encoded(details)))
    return encode(headers)


def percent_encoded(text: str) -> bytes:
    """Return a message as it stands in ``grpc-message``: printable ASCII as it is, all other bytes as %XX."""
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a surrogate pair, out of somebody's JSON
        data = text.encode("utf-8", "replace")
    return b"".join([bytes((byte,)) if 0x20 <= byte <= 0x7E and byte != 0x25 else b"%%%02X" % byte for byte in data])

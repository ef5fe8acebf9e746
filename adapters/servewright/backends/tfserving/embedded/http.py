"""HTTP/1.1 on asyncio, as libevent's server speaks it: its methods, its error pages, its ways with bodies."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Generator, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from typing import Final

from servewright.backends.tfserving.embedded import PRODUCT, RECEIVED

_METHODS: Final = frozenset({"GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"})
_LARGEST_HEAD: Final = 1 << 20
_LARGEST_BODY: Final = (1 << 31) - 1
_REQUEST_LINE = re.compile(rb"([^ ]+) ([^ ]+) HTTP/(\d{1,3})\.(\d{1,3})")
_HEADER_NAME = re.compile(rb"[!-9;-~]+")
_PATH = re.compile(r"(?:[A-Za-z0-9\-._~!$&'()*+,;=:@/]|%[0-9A-Fa-f]{2})*")
_QUERY = re.compile(r"(?:[A-Za-z0-9\-._~!$&'()*+,;=:@/?]|%[0-9A-Fa-f]{2})*")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:")
_CHUNK = re.compile(rb"[ \t]*([0-9a-fA-F]{1,8})[ \t]*(?:;.*)?")
_REASONS: Final = {499: "Client Closed Request"}
HTML: Final = "text/html; charset=ISO-8859-1"


@dataclass(frozen=True, slots=True)
class Request:
    """A whole request; header names are in lower case, ``path`` has its query and fragment."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def bare_path(self) -> str:
        """The path without query and fragment."""
        return re.split(r"[?#]", self.path, maxsplit=1)[0]


@dataclass(frozen=True, slots=True)
class Response:
    """What goes back; ``close`` ends the connection after it."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    close: bool = False


Handler = Callable[[Request], Awaitable[Response]]


def error_page(status: int) -> Response:
    """Return libevent's own page for an error that no handler has seen."""
    reason = reason_of(status)
    page = f"<HTML><HEAD>\n<TITLE>{status} {reason}</TITLE>\n</HEAD><BODY>\n<H1>{reason}</H1>\n</BODY></HTML>\n"
    return Response(status, page.encode(), {"Content-Type": "text/html"}, close=True)


def reason_of(status: int) -> str:
    """Return the words for a status."""
    try:
        return _REASONS.get(status) or HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


def path_of(target: str) -> str | None:
    """Return path, query and fragment of a request's target, or ``None`` where it is no valid URI."""
    rest = target
    if scheme := _SCHEME.match(rest):
        rest = rest[scheme.end() :]
    if rest.startswith("//"):  # an authority, and then the path
        found = re.search(r"[/?#]", rest[2:])
        rest = rest[2 + found.start() :] if found else ""
    path, _, fragment = rest.partition("#")
    path, _, query = path.partition("?")
    if not (_PATH.fullmatch(path) and _QUERY.fullmatch(query) and _QUERY.fullmatch(fragment)):
        return None
    return rest or "/"


class _BadRequestError(Exception):
    def __init__(self, status: int) -> None:
        self.status = status


class Connection(asyncio.BufferedProtocol):
    """One client: requests are read one after the other, and answered in their order.

    What is received lies in ``received`` first, which all connections of a loop share: asyncio's own way takes 256 KiB
    from the system for each read, and gives them back.
    """

    def __init__(self, handler: Handler, open_connections: set[Connection], received: memoryview) -> None:
        self._handler, self._open, self._received = handler, open_connections, received
        self._buffer = bytearray()
        self._parser = self._requests()
        self._wanted: bytes | int | None = next(self._parser)
        self._task: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport | None = None
        self._scanned = 0
        self._writable = asyncio.Event()
        self._writable.set()
        self.ending = False

    @property
    def busy(self) -> bool:
        """Whether a request is being answered."""
        return self._task is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to read."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Let the work go on: a model that computes cannot be stopped, and what it uses is held until then."""
        self._open.discard(self)
        self._writable.set()

    def pause_writing(self) -> None:
        """Wait with the next request: the client reads slowly."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Go on."""
        self._writable.set()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  (asyncio's signature)
        """Return where to put what comes."""
        return self._received

    def buffer_updated(self, nbytes: int) -> None:
        """Take what came, and answer what is complete."""
        self._buffer += self._received[:nbytes]
        self._advance()

    def eof_received(self) -> bool:
        """Keep the way back open while an answer is due."""
        if self._task is None:
            return False
        self.ending = True
        return True

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()

    def _advance(self) -> None:
        """Give the parser what it waits for, as long as it is there and no request is being answered."""
        while self._task is None and self._transport is not None and not self._transport.is_closing():
            piece = self._next_piece()
            if piece is None:
                return
            try:
                self._wanted = self._parser.send(piece)
            except _BadRequestError as error:
                self._write(error_page(error.status), head_only=False, keep=False)
                return
            except StopIteration:
                return

    def _next_piece(self) -> bytes | None:
        if isinstance(self._wanted, int):
            if len(self._buffer) < self._wanted:
                return None
            piece = bytes(memoryview(self._buffer)[: self._wanted])
            del self._buffer[: self._wanted]
            return piece
        mark = self._wanted or b""
        end = self._buffer.find(mark, max(0, self._scanned - len(mark)))
        if end < 0:
            self._scanned = len(self._buffer)
            if len(self._buffer) > _LARGEST_HEAD:
                self._write(error_page(400), head_only=False, keep=False)
            return None
        self._scanned = 0
        piece = bytes(memoryview(self._buffer)[:end])
        del self._buffer[: end + len(mark)]
        return piece

    def _requests(self) -> Generator[bytes | int, bytes, None]:
        """Parse requests: yields a number of bytes or an end mark that it waits for, and is sent what was found."""
        while True:
            line = yield b"\n"
            line = line.rstrip(b"\r")
            if not line:  # blank lines before a request are allowed
                continue
            found = _REQUEST_LINE.fullmatch(line)
            if not found:
                raise _BadRequestError(400)
            headers = yield from self._headers()
            method, version = found[1].decode("latin-1"), (int(found[3]), int(found[4]))
            if version[0] > 1:
                raise _BadRequestError(400)
            if method not in _METHODS:
                raise _BadRequestError(501)
            body = yield from self._body(headers)
            path = path_of(found[2].decode("latin-1"))
            if path is None:
                raise _BadRequestError(400)
            connection = headers.get("connection", "").lower()
            keep = "close" not in connection and (version >= (1, 1) or "keep-alive" in connection)
            self._task = asyncio.ensure_future(self._answer(Request(method, path, headers, body), keep=keep))

    def _headers(self) -> Generator[bytes | int, bytes, dict[str, str]]:
        headers: dict[str, str] = {}
        size, last = 0, ""
        while True:
            line = (yield b"\n").rstrip(b"\r")
            if not line:
                return headers
            size += len(line)
            if size > _LARGEST_HEAD:
                raise _BadRequestError(400)
            if line[:1] in b" \t":  # a header goes on
                if not last:
                    raise _BadRequestError(400)
                headers[last] += " " + line.strip().decode("latin-1")
                continue
            name, sign, value = line.partition(b":")
            if not sign or not _HEADER_NAME.fullmatch(name):
                raise _BadRequestError(400)
            last = name.decode("latin-1").lower()
            headers.setdefault(last, value.strip().decode("latin-1"))

    def _body(self, headers: dict[str, str]) -> Generator[bytes | int, bytes, bytes]:
        chunked = "chunked" in headers.get("transfer-encoding", "").lower()
        length_text = headers.get("content-length")
        if not chunked and length_text is None:
            return b""
        length = 0
        if not chunked:
            if not re.fullmatch(r"[0-9]+", length_text or ""):
                raise _BadRequestError(400)
            length = int((length_text or "0").lstrip("0")[:12] or "0")
            if length > _LARGEST_BODY:
                raise _BadRequestError(413)
        expected = headers.get("expect")
        if expected is not None and expected.lower() != "100-continue":
            raise _BadRequestError(417)
        if expected is not None and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if not chunked:
            return (yield length) if length else b""
        parts, total = [], 0
        while True:
            found = _CHUNK.fullmatch((yield b"\n").rstrip(b"\r"))
            if not found:
                raise _BadRequestError(400)
            size = int(found[1], 16)
            total += size
            if total > _LARGEST_BODY:
                raise _BadRequestError(413)
            if not size:
                break
            parts.append((yield size))
            if (yield b"\n").rstrip(b"\r"):
                raise _BadRequestError(400)
        yield from self._headers()
        return b"".join(parts)

    async def _answer(self, request: Request, *, keep: bool) -> None:
        try:
            response = await self._handler(request)
        except asyncio.CancelledError:
            raise
        except Exception:  # noqa: BLE001  (a mistake of ours is this client's 500, and nobody else's)
            response = error_page(500)
        self._write(response, head_only=request.method == "HEAD", keep=keep and not self.ending)
        await self._writable.wait()
        self._task = None
        if self._transport is not None and not self._transport.is_closing():
            self._advance()

    def _write(self, response: Response, *, head_only: bool, keep: bool) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        keep = keep and not response.close
        headers = {"Content-Type": HTML} | dict(response.headers) | {"Server": PRODUCT, "Date": formatdate(usegmt=True)}
        if not head_only:
            headers["Content-Length"] = str(len(response.body))
        if not keep:
            headers["Connection"] = "close"
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        head = f"HTTP/1.1 {response.status} {reason_of(response.status)}\r\n{lines}\r\n".encode("latin-1", "replace")
        self._transport.write(head if head_only else head + response.body)
        if not keep:
            self._transport.close()


class HttpServer:
    """The listening socket and its connections."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> None:
        """Listen; raise `OSError` where the port is taken."""
        loop, received = asyncio.get_running_loop(), memoryview(bytearray(RECEIVED))
        self._server = await loop.create_server(
            lambda: Connection(self._handler, self._connections, received), host, port, backlog=1024
        )

    async def stop(self, within_s: float) -> None:
        """Take no more connections, let answers under way go out for ``within_s`` seconds, and close."""
        if self._server is None:
            return
        self._server.close()
        end = asyncio.get_running_loop().time() + within_s
        for connection in list(self._connections):
            connection.ending = True
            if not connection.busy:
                connection.close()
        while self._connections and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.01)
        for connection in list(self._connections):
            connection.close()

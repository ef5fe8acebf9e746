"""The embedded server's HTTP behaves as libevent's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servewright.backends.tfserving.embedded.http import HttpServer, Request, Response, path_of


async def echo(request: Request) -> Response:
    """Answer with what was asked."""
    if request.path == "/fails":
        raise RuntimeError("a mistake")
    return Response(200, f"{request.method} {request.path} ".encode() + request.body, {"Content-Type": "text/plain"})


def exchange(*pieces: bytes, finish: bool = True) -> bytes:
    """Send pieces one after the other and return all that comes back."""

    async def run() -> bytes:
        server = HttpServer(echo)
        await server.start("127.0.0.1", 0)
        port = server._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
            if finish:
                writer.write_eof()
            return await asyncio.wait_for(reader.read(), 10)
        except ConnectionError:
            return b""
        finally:
            writer.close()
            await server.stop(0.1)

    return asyncio.run(run())


def post(body: bytes, extra: str = "") -> bytes:
    """Return a POST request that is the connection's last."""
    return f"POST /p HTTP/1.1\r\nContent-Length: {len(body)}\r\nConnection: close\r\n{extra}\r\n".encode() + body


class TestRequests:
    """What is a request, and where it ends."""

    def test_bodies_arrive_whole(self) -> None:
        """A body that comes in many pieces is one body."""
        data = post(b"x" * 1000)
        assert exchange(*[data[at : at + 7] for at in range(0, len(data), 7)]).endswith(b"POST /p " + b"x" * 1000)

    def test_requests_follow_each_other(self) -> None:
        """Requests on one connection are answered in their order."""
        answers = exchange(b"GET /1 HTTP/1.1\r\n\r\nGET /2 HTTP/1.1\r\nConnection: close\r\n\r\n")
        assert answers.index(b"GET /1 ") < answers.index(b"GET /2 ")

    def test_chunks_are_joined(self) -> None:
        """A chunked body is read to its last chunk."""
        head = b"POST /p HTTP/1.1\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        data = head + b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n"
        assert exchange(data).endswith(b"POST /p abcde")

    def test_a_client_that_waits_is_told_to_go_on(self) -> None:
        """100-continue is answered before the body is read."""
        answer = exchange(post(b"abc", "Expect: 100-continue\r\n"))
        assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK")

    def test_old_clients_are_closed(self) -> None:
        """HTTP/1.0 ends with the answer."""
        assert b"Connection: close" in exchange(b"GET / HTTP/1.0\r\n\r\n", finish=False)

    def test_heads_have_no_body(self) -> None:
        """HEAD is answered with headers alone."""
        assert exchange(b"HEAD / HTTP/1.1\r\nConnection: close\r\n\r\n").endswith(b"\r\n\r\n")

    @pytest.mark.parametrize(
        ("data", "status"),
        [
            (b"FOO / HTTP/1.1\r\n\r\n", b"501 Not Implemented"),
            (b"TRACE / HTTP/1.1\r\n\r\n", b"501 Not Implemented"),
            (b"GET /\r\n\r\n", b"400 Bad Request"),
            (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", b"400 Bad Request"),
            (b"GET /{x} HTTP/1.1\r\n\r\n", b"400 Bad Request"),
            (b"GET /%zz HTTP/1.1\r\n\r\n", b"400 Bad Request"),
            (b"GET / HTTP/9.1\r\n\r\n", b"400 Bad Request"),
            (b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n", b"400 Bad Request"),
            (b"POST / HTTP/1.1\r\nContent-Length: 99999999999999\r\n\r\n", b"413"),
            (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"400 Bad Request"),
        ],
    )
    def test_what_is_no_request_gets_a_page(self, data: bytes, status: bytes) -> None:
        """The page of libevent says why, and the connection ends."""
        answer = exchange(data, finish=False)
        assert answer.startswith(b"HTTP/1.1 " + status)
        assert b"<TITLE>" + status in answer

    def test_a_mistake_of_ours_is_a_500(self) -> None:
        """The client gets an answer, and the server lives on."""
        assert exchange(b"GET /fails HTTP/1.1\r\n\r\n", finish=False).startswith(b"HTTP/1.1 500 ")

    @settings(max_examples=60, deadline=None)
    @given(st.binary(max_size=300), st.integers(0, 80))
    def test_any_bytes_end_in_an_answer_or_a_closed_connection(self, junk: bytes, at: int) -> None:
        """Nothing that a client sends hangs or breaks the server."""
        valid = post(b"{}")
        answer = exchange(valid[:at] + junk + valid[at:])
        assert answer == b"" or answer.startswith(b"HTTP/1.1 ")


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/a?b=c#d", "/a?b=c#d"), ("http://host:1/a", "/a"), ("http://host", "/"), ("metrics", "metrics"), ("*", "*"),
        ("//host/a", "/a"), ("/a b", None), ("/ä", None), ("/%4", None), ("/a?<", None),
    ],
)  # fmt: skip
def test_targets(target: str, path: str | None) -> None:
    """The path of a URI with its query, or nothing where it is no URI."""
    assert path_of(target) == path


def test_connections_that_wait_are_closed_at_the_end() -> None:
    """Stopping does not wait for clients that say nothing."""

    async def run(answer: Callable[[Request], object]) -> float:
        server = HttpServer(answer)  # type: ignore[arg-type]
        await server.start("127.0.0.1", 0)
        port = server._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        loop = asyncio.get_running_loop()
        start = loop.time()
        await asyncio.gather(server.stop(5), reader.read())
        writer.close()
        return loop.time() - start

    assert asyncio.run(run(echo)) < 4

"""The embedded server's own HTTP/2 and gRPC: any client is understood, and none can break it."""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servewright.backends.tfserving.embedded.grpc_server import Call, GrpcServer, percent_encoded, timeout_us
from servewright.backends.tfserving.embedded.hpack import Decoder, HpackError, encode, huffman_decoded
from servewright.backends.tfserving.embedded.http2 import PREFACE, frame
from servewright.backends.tfserving.embedded.metrics import Metrics
from servewright.backends.tfserving.embedded.rpc import RpcOptions, Services
from servewright.backends.tfserving.embedded.status import Code, StatusError

DATA, HEADERS, RST, SETTINGS, PING, GOAWAY, WINDOW, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS = 1, 4


class Echo:
    """Answers with what was sent, or as the method's name says."""

    def __init__(self) -> None:
        self.cancelled = self.worked = 0
        self.go_on = asyncio.Event()
        self.deadlines: list[int | None] = []

    def metadata(self, method: str) -> list[tuple[bytes, bytes]]:
        return [(b"who", b"me")] if method == "/who" else []

    def streams(self, method: str) -> bool:
        return method == "/three"

    def waits(self, method: str) -> bool:
        return method == "/wait"

    async def answer(self, call: Call) -> bytes:
        self.deadlines.append(call.timeout_us)
        if call.method == "/error":
            raise StatusError(Code.NOT_FOUND, "no 100 % ä\n" + "x" * 2000)
        if call.method == "/bug":
            raise RuntimeError("a mistake")
        if call.method == "/wait":
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        if call.method == "/work":
            await self.go_on.wait()
            self.worked += 1
        if call.method == "/big":
            return bytes(int(call.data))
        return call.data

    async def stream(self, call: Call) -> AsyncIterator[bytes]:
        for number in range(3):
            yield call.data * number


def run(test: Callable[[str, Echo, GrpcServer], Awaitable[None]], **options: Any) -> None:
    """Run ``test`` beside a server; it gets the server's address, what answers, and the server."""

    async def both() -> None:
        echo = Echo()
        server = GrpcServer(echo, **options)
        await server.listen("127.0.0.1", 0)
        port = server._sockets[0].sockets[0].getsockname()[1]
        try:
            await asyncio.wait_for(test(f"127.0.0.1:{port}", echo, server), 60)
        finally:
            await server.stop(0.1)

    asyncio.run(both())


def channel(address: str, *options: tuple[str, Any]) -> Any:
    """Return a channel of gRPC's own client, without limits on messages."""
    free = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1), *options]
    return grpc.aio.insecure_channel(address, options=free)


class TestCalls:
    """gRPC's own client is served."""

    def test_messages_come_back(self) -> None:
        """Empty, small and large messages, one after the other and all at once, are answered each with its own."""

        async def test(address: str, echo: Echo, server: GrpcServer) -> None:
            async with channel(address) as client:
                call = client.unary_unary("/echo")
                bodies = [b"", b"a", b"b" * 16_384, b"c" * 70_000, b"d" * 5_000_000] + [
                    str(at).encode() for at in range(300)
                ]
                assert await asyncio.gather(*[call(body) for body in bodies]) == bodies

        run(test)

    def test_large_answers_wait_for_the_clients_windows(self) -> None:
        """An answer larger than every window arrives whole, beside small ones."""

        async def test(address: str, echo: Echo, server: GrpcServer) -> None:
            async with channel(address, ("grpc.http2.bdp_probe", 0)) as client:
                big, call = client.unary_unary("/big"), client.unary_unary("/echo")
                answers = await asyncio.gather(*[big(b"3000000") for _ in range(4)], *[call(b"x") for _ in range(20)])
                assert [len(answer) for answer in answers] == [3_000_000] * 4 + [1] * 20

        run(test)

    def test_compressed_messages_are_read(self) -> None:
        """Gzip and deflate are understood."""

        async def test(address: str, echo: Echo, server: GrpcServer) -> None:
            for kind in (grpc.Compression.Gzip, grpc.Compression.Deflate):
                async with channel(address) as client:
                    assert await client.unary_unary("/echo")(b"a" * 10_000, compression=kind) == b"a" * 10_000

        run(test)

    def test_errors_have_code_and_details(self) -> None:
        """Any text passes, cut after 1024 characters."""

        async def test(address: str, echo: Echo, server: GrpcServer) -> None:
            async with channel(address) as client:
                with pytest.raises(grpc.aio.AioRpcError) as error:
                    await client.unary_unary("/error")(b"")
                assert error.value.code() is grpc.StatusCode.NOT_FOUND
                details = error.value.details()
                assert details is not None
                assert details.startswith("no 100 % ä\nxx")
                assert details.endswith("x...TRUNCATED")
                with pytest.raises(grpc.aio.AioRpcError) as error:
                    await client.unary_unary("/bug")(b"")
                assert error.value.code() is grpc.StatusCode.INTERNAL

        run(test)

    def test_metadata_comes_first_and_streams_come_in_order(self) -> None:
        """Initial metadata is ahead of the answer; a stream has all its messages."""

        async def test(address: str, echo: Echo, server: GrpcServer) -> None:
            async with channel(address) as client:
                call = client.unary_unary("/who")(b"x")
                assert ("who", "me") in list(await call.initial_metadata())
                assert await call == b"x"
                assert [message async for message in client.unary_stream("/three")(b"ab")] == [b"", b"ab", b"abab"]

        run(test)

    def test_a_client_that_leaves_ends_a_wait(self) -> None:
        """A deadline that passes, and a connection that closes, cancel what only waits."""

        async def test(address: str, echo: Echo, server: GrpcServer) -> None:
            async with channel(address) as client:
                with pytest.raises(grpc.aio.AioRpcError) as error:
                    await client.unary_unary("/wait")(b"", timeout=0.048)  # sent rounded up, as 49 ms or 50
                assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
                assert 0 < (echo.deadlines[0] or 0) <= 50_000
                asyncio.ensure_future(client.unary_unary("/wait")(b"")).add_done_callback(lambda done: done.exception())
                while len(echo.deadlines) < 2:
                    await asyncio.sleep(0.01)
            while echo.cancelled < 2:
                await asyncio.sleep(0.01)

        run(test)

    def test_work_goes_on_when_its_client_leaves(self) -> None:
        """What computes is not cut short: its answer is dropped."""

        async def test(address: str, echo: Echo, server: GrpcServer) -> None:
            async with channel(address) as client:
                with pytest.raises(grpc.aio.AioRpcError):
                    await client.unary_unary("/work")(b"", timeout=0.05)
                echo.go_on.set()
                while not echo.worked:
                    await asyncio.sleep(0.01)
                assert await client.unary_unary("/echo")(b"x") == b"x"
            assert echo.cancelled == 0

        run(test)

    def test_stopping_lets_calls_finish(self) -> None:
        """A call under way is answered, a new one is not."""

        async def test(address: str, echo: Echo, server: GrpcServer) -> None:
            async with channel(address) as client:
                first = asyncio.ensure_future(client.unary_unary("/big")(b"10000000"))
                while not echo.deadlines:
                    await asyncio.sleep(0.001)
                await server.stop(5)
                assert len(await first) == 10_000_000
                with pytest.raises(grpc.aio.AioRpcError):
                    await client.unary_unary("/echo")(b"", timeout=2)

        run(test)

    def test_streams_can_be_limited(self) -> None:
        """With a limit the client itself waits; all calls are answered."""

        async def test(address: str, echo: Echo, server: GrpcServer) -> None:
            async with channel(address) as client:
                call = client.unary_unary("/echo")
                assert await asyncio.gather(*[call(b"x") for _ in range(20)]) == [b"x"] * 20

        run(test, most_streams=2)


REQUEST = [
    (b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/echo"), (b"content-type", b"application/grpc"),
]  # fmt: skip
MESSAGE = b"\0\0\0\0\x02hi"


def exchange(
    *frames: bytes, first: bytes = PREFACE + frame(SETTINGS, 0, 0), until: int = -1
) -> list[tuple[int, int, int, bytes]]:
    """Send frames; return those that come back until the server closes, or until one of the kind ``until``."""
    found: list[tuple[int, int, int, bytes]] = []

    async def test(address: str, echo: Echo, server: GrpcServer) -> None:
        host, port = address.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(first + b"".join(frames))
        try:
            while True:
                head = await asyncio.wait_for(reader.readexactly(9), 5)
                size, kind, flags, number = (
                    int.from_bytes(head[:3], "big"),
                    head[3],
                    head[4],
                    int.from_bytes(head[5:], "big"),
                )
                found.append((kind, flags, number, await reader.readexactly(size)))
                if kind == until:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    run(test)
    return found


def headers_of(frames: list[tuple[int, int, int, bytes]]) -> list[dict[bytes, bytes]]:
    """Return the headers of every HEADERS frame."""
    decoder = Decoder()
    return [dict(decoder.decode(payload)) for kind, _, _, payload in frames if kind == HEADERS]


def ended_with(frames: list[tuple[int, int, int, bytes]]) -> int:
    """Return the error with which the server ended the connection."""
    goaways = [payload for kind, _, _, payload in frames if kind == GOAWAY]
    assert goaways, frames
    return int(struct.unpack(">II", goaways[-1][:8])[1])


class TestFrames:
    """What the protocol allows is understood, what it forbids ends the connection."""

    def test_headers_and_data_may_come_in_pieces(self) -> None:
        """Continued headers, padding and split data are one request."""
        block = encode(REQUEST)
        answer = exchange(
            frame(HEADERS, 8, 1, b"\x03" + block[:5] + bytes(3)),
            frame(CONTINUATION, END_HEADERS, 1, block[5:]),
            frame(DATA, 0, 1, MESSAGE[:3]),
            frame(DATA, 8 | END_STREAM, 1, b"\x01" + MESSAGE[3:] + bytes(1)),
            frame(GOAWAY, 0, 0, bytes(8)),
            until=DATA,
        )
        assert answer[-1][3] == MESSAGE

    def test_small_windows_are_respected(self) -> None:
        """No more data comes than the client has asked for."""
        answer = exchange(
            frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 3)),
            frame(HEADERS, END_HEADERS, 1, encode(REQUEST)),
            frame(DATA, END_STREAM, 1, MESSAGE),
            frame(PING, 0, 0, b"12345678"),
            frame(WINDOW, 0, 1, struct.pack(">I", 2)),
            frame(WINDOW, 0, 1, struct.pack(">I", 100)),
            frame(HEADERS, END_HEADERS | END_STREAM, 2, b""),  # which ends it
        )
        data = [payload for kind, _, _, payload in answer if kind == DATA]
        assert b"".join(data) == MESSAGE[: len(b"".join(data))]
        assert all(len(payload) <= 102 for payload in data)

    @pytest.mark.parametrize(
        ("frames", "error"),
        [
            ([frame(HEADERS, END_HEADERS, 2, encode(REQUEST))], 1),
            ([frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff\xff")], 9),
            ([frame(HEADERS, END_HEADERS, 1, b"\x80")], 9),
            ([frame(HEADERS, 0, 1, encode(REQUEST)), frame(PING, 0, 0, bytes(8))], 1),
            ([frame(CONTINUATION, END_HEADERS, 1, b"")], 1),
            ([frame(DATA, 0, 7, b"x")], 1),
            ([frame(WINDOW, 0, 0, bytes(4))], 1),
            ([frame(WINDOW, 0, 0, b"\x7f\xff\xff\xff")], 3),
            ([frame(WINDOW, 0, 0, b"\x01")], 6),
            ([frame(SETTINGS, 0, 0, b"12345")], 6),
            ([frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 1 << 31))], 3),
            ([frame(SETTINGS, 0, 0, struct.pack(">HI", 5, 1))], 1),
            ([frame(PING, 0, 0, b"1")], 6),
            ([frame(RST, 0, 9, bytes(4))], 1),
            ([frame(5, 0, 1, bytes(4))], 1),
            ([struct.pack(">HBBBI", 0xFFFF, 0xFF, DATA, 0, 1)], 6),
            ([frame(HEADERS, END_HEADERS | 8, 1, b"\x09x")], 1),
        ],
    )
    def test_what_is_forbidden_ends_the_connection(self, frames: list[bytes], error: int) -> None:
        """With the code that HTTP/2 has for it."""
        assert ended_with(exchange(*frames)) == error

    def test_another_protocol_is_not_served(self) -> None:
        """HTTP/1 on the gRPC port gets no answer but the end."""
        assert ended_with(exchange(first=b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")) == 1

    def test_pings_and_settings_are_acknowledged(self) -> None:
        """A client knows that the server lives."""
        answer = exchange(frame(PING, 0, 0, b"12345678"), until=PING)
        assert (PING, 1, 0, b"12345678") in answer
        assert (SETTINGS, 1, 0, b"") in answer

    def test_a_smaller_table_is_acknowledged(self) -> None:
        """A client that wants no header table is told that there is none."""
        answer = exchange(
            frame(SETTINGS, 0, 0, struct.pack(">HI", 1, 0)),
            frame(HEADERS, END_HEADERS, 1, encode(REQUEST)),
            frame(DATA, END_STREAM, 1, MESSAGE),
            until=DATA,
        )
        assert next(payload for kind, _, _, payload in answer if kind == HEADERS)[0] == 0x20

    def test_what_is_no_grpc_is_refused(self) -> None:
        """Another method or content is a 415; a broken message an INTERNAL without words."""
        other = [*REQUEST[:3], (b"content-type", b"text/plain")]
        answer = exchange(frame(HEADERS, END_HEADERS | END_STREAM, 1, encode(other)), until=HEADERS)
        assert headers_of(answer)[0][b":status"] == b"415"
        for broken in (b"", b"\0\0\0\0\x09hi", b"\x02\0\0\0\0", b"\x01\0\0\0\x02hi"):
            answer = exchange(
                frame(HEADERS, END_HEADERS, 1, encode([*REQUEST, (b"grpc-encoding", b"gzip")])),
                frame(DATA, END_STREAM, 1, broken),
                until=HEADERS,
            )
            assert headers_of(answer)[0][b"grpc-status"] == b"13"

    def test_unknown_compression_is_refused(self) -> None:
        """With UNIMPLEMENTED."""
        headers = encode([*REQUEST, (b"grpc-encoding", b"snappy")])
        body = zlib.compress(b"x")
        message = b"\1" + len(body).to_bytes(4, "big") + body
        answer = exchange(frame(HEADERS, END_HEADERS, 1, headers), frame(DATA, END_STREAM, 1, message), until=HEADERS)
        assert headers_of(answer)[0][b"grpc-status"] == b"12"

    def test_trailers_behind_an_answer_are_read(self) -> None:
        """They belong to the header table of all that follows, and to nothing else."""
        kept = b"\x40\x03who\x02me"
        answer = exchange(
            frame(HEADERS, END_HEADERS, 1, encode([(b":method", b"GET")])),
            frame(DATA, END_STREAM, 1, b""),
            frame(HEADERS, END_HEADERS | END_STREAM, 1, kept),
            frame(HEADERS, END_HEADERS, 3, encode(REQUEST) + b"\xbe"),
            frame(DATA, END_STREAM, 3, MESSAGE),
            until=DATA,
        )
        assert answer[-1][2:] == (3, MESSAGE)

    def test_who_does_not_read_is_not_read_from(self) -> None:
        """So that answers do not pile up; when the client reads again, each of its pings is answered."""

        async def test(address: str, echo: Echo, server: GrpcServer) -> None:
            host, port = address.split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(PREFACE + frame(SETTINGS, 0, 0) + frame(SETTINGS, 1, 0))
            await reader.read(9)
            (connection,) = server._connections
            transport = connection._transport
            assert transport is not None
            transport.set_write_buffer_limits(1 << 16)
            pings, sent = frame(PING, 0, 0, b"12345678") * 4096, 0
            while transport.is_reading():
                writer.write(pings)
                sent += 4096
                await asyncio.sleep(0)
            assert transport.get_write_buffer_size() < 4 << 20
            answered = b""
            while answered.count(b"12345678") < sent:
                answered += await asyncio.wait_for(reader.read(1 << 20), 20)
            writer.close()

        run(test)

    @settings(max_examples=80, deadline=None)
    @given(st.binary(max_size=200), st.integers(0, 120), st.booleans())
    def test_any_bytes_leave_the_server_standing(self, junk: bytes, at: int, proper: bool) -> None:
        """Whatever one connection sends, the next one is served."""
        valid = frame(HEADERS, END_HEADERS, 1, encode(REQUEST)) + frame(DATA, END_STREAM, 1, MESSAGE)
        first = (PREFACE if proper else b"") + valid[:at] + junk + valid[at:]

        async def test(address: str, echo: Echo, server: GrpcServer) -> None:
            host, port = address.split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(first)
            writer.write_eof()
            await reader.read()
            writer.close()
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(PREFACE + frame(SETTINGS, 0, 0) + valid)
            seen = b""
            while MESSAGE not in seen:
                more = await asyncio.wait_for(reader.read(4096), 5)
                assert more
                seen += more
            writer.close()

        run(test)


class TestHpack:
    """Headers are read as RFC 7541 writes them."""

    @pytest.mark.parametrize(
        ("text", "coded"),
        [
            (b"www.example.com", "f1e3c2e5f23a6ba0ab90f4ff"), (b"no-cache", "a8eb10649cbf"),
            (b"custom-key", "25a849e95ba97d7f"), (b"custom-value", "25a849e95bb8e8b4bf"), (b"", ""),
        ],
    )  # fmt: skip
    def test_huffman_codes_are_the_standards(self, text: bytes, coded: str) -> None:
        """The standard's own examples come out."""
        assert huffman_decoded(bytes.fromhex(coded)) == text

    def test_a_table_grows_and_forgets(self) -> None:
        """The standard's examples of three requests on one connection, with Huffman codes."""
        decoder = Decoder()
        first = decoder.decode(bytes.fromhex("828684418cf1e3c2e5f23a6ba0ab90f4ff"))
        assert first == [
            (b":method", b"GET"),
            (b":scheme", b"http"),
            (b":path", b"/"),
            (b":authority", b"www.example.com"),
        ]
        second = decoder.decode(bytes.fromhex("828684be5886a8eb10649cbf"))
        assert second == [*first, (b"cache-control", b"no-cache")]
        third = decoder.decode(bytes.fromhex("828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf"))
        assert third[-2:] == [(b":authority", b"www.example.com"), (b"custom-key", b"custom-value")]
        decoder.decode(b"\x20")  # the table is made empty
        with pytest.raises(HpackError):
            decoder.decode(b"\xbe")

    @given(st.lists(st.tuples(st.binary(max_size=300), st.binary(max_size=300)), max_size=8))
    def test_what_is_written_reads_back(self, headers: list[tuple[bytes, bytes]]) -> None:
        """Our own blocks need no table and read back."""
        assert Decoder().decode(encode(headers)) == headers

    @given(st.binary(max_size=100))
    def test_any_block_is_read_or_refused(self, block: bytes) -> None:
        """Nothing else is raised."""
        try:
            Decoder().decode(block)
        except HpackError:
            return

    def test_headers_have_a_limit(self) -> None:
        """A small block that stands for very many headers is refused."""
        decoder = Decoder()
        decoder.decode(b"\x40\x01a\x7f\xa1\x1e" + b"x" * 4000)
        with pytest.raises(HpackError, match="too large"):
            decoder.decode(b"\xbe" * 1000)


class TestPlaces:
    """As many calls run at once as there are threads; the others wait for a moment."""

    def services(self, calls: int) -> tuple[Services, list[asyncio.Event], list[int]]:
        """Return services with a method ``/n`` that waits for the event ``n``, and the order in which they began."""
        models: Any = None  # no method here asks for one
        services = Services(models, Metrics(), RpcOptions(calls=calls))
        events, begun = [asyncio.Event() for _ in range(4)], list[int]()

        def method(number: int) -> Callable[[Any, int | None], Awaitable[bytes]]:
            async def wait(request: Any, deadline_us: int | None) -> bytes:
                begun.append(number)
                await events[number].wait()
                return b"%d" % number

            return wait

        services._methods.update({f"/{number}": (bytes, method(number)) for number in range(4)})
        return services, events, begun

    def test_who_waits_longest_is_next(self) -> None:
        """A call that comes when a place becomes free does not take it from one that waits for it."""

        async def test() -> None:
            services, events, begun = self.services(1)
            first, second = (asyncio.ensure_future(services.answer(Call(f"/{at}", b"", None))) for at in (0, 1))
            await asyncio.sleep(0)
            for event in events:
                event.set()
            third = asyncio.ensure_future(services.answer(Call("/2", b"", None)))
            assert await asyncio.gather(first, second, third) == [b"0", b"1", b"2"]
            assert begun == [0, 1, 2]
            assert await services.answer(Call("/3", b"", None)) == b"3"

        asyncio.run(test())

    def test_who_waits_too_long_is_refused(self) -> None:
        """And those who are refused, or who leave, take no place away."""

        async def test() -> None:
            services, events, _ = self.services(2)
            running = [asyncio.ensure_future(services.answer(Call(f"/{at}", b"", None))) for at in (0, 1)]
            await asyncio.sleep(0)
            left = asyncio.ensure_future(services.answer(Call("/3", b"", None)))
            refused = asyncio.ensure_future(services.answer(Call("/2", b"", None)))
            await asyncio.sleep(0)
            left.cancel()
            with pytest.raises(StatusError, match="RESOURCE_EXHAUSTED: Server Threadpool Exhausted"):
                await refused
            for event in events:
                event.set()
            assert await asyncio.gather(*running) == [b"0", b"1"]
            again = [services.answer(Call(f"/{at}", b"", None)) for at in (2, 3)]
            assert await asyncio.gather(*again) == [b"2", b"3"]
            assert services._running == 0

        asyncio.run(test())


@pytest.mark.parametrize(
    ("text", "microseconds"),
    [(b"1S", 10**6), (b"59999m", 59_999_000), (b"2H", 7_200_000_000), (b"5u", 5), (b"900n", 0),
     (b"1x", None), (b"", None), (None, None)],
)  # fmt: skip
def test_timeouts_have_units(text: bytes | None, microseconds: int | None) -> None:
    """The units of gRPC's own header; what cannot be read is no timeout."""
    assert timeout_us(text) == microseconds


@given(st.text())
def test_messages_are_percent_encoded(text: str) -> None:
    """The text comes back from printable ASCII."""
    from urllib.parse import unquote

    encoded = percent_encoded(text.encode("utf-8", "replace").decode())
    assert encoded.isascii()
    assert unquote(encoded.decode()) == text.encode("utf-8", "replace").decode()

"""Loads over gRPC, and what is read of HTTP/2."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from concurrent import futures

import pytest

from load_toys import Serve, workload
from servewright.backend import Payload
from servewright.errors import ProbeError
from servewright.load.arrivals import Arrivals
from servewright.load.http2 import header_block, status_of
from servewright.load.running import measure
from servewright.load.workload import Closed


class TestGrpc:
    """A load over gRPC."""

    @pytest.fixture
    def address(self) -> Iterator[str]:
        """Run a real gRPC server whose method echoes, and whose other method refuses."""
        grpc = pytest.importorskip("grpc")

        class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
            def service(self, details: object) -> object:
                def answer(request: bytes, context: object) -> bytes:
                    if method.endswith("/Refuse"):
                        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")  # type: ignore[attr-defined]
                    assert ("x-token", "secret") in [tuple(each) for each in context.invocation_metadata()]  # type: ignore[attr-defined]
                    return request

                method: str = details.method  # type: ignore[attr-defined]
                return grpc.unary_unary_rpc_method_handler(answer)

        server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.max_receive_message_length", -1)])
        server.add_generic_rpc_handlers((Handler(),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(None).wait()

    @pytest.mark.parametrize("size", [0, 10, 20_000, 1_000_000])
    def test_calls_of_any_size_are_answered(self, address: str, size: int) -> None:
        """Requests within and beyond HTTP/2's frames and windows arrive whole, with their metadata."""
        payload = Payload(target="/toy.Echo/Echo", body=bytes(size), headers={"x-token": "secret"})
        found = measure(workload(address, Closed(concurrency=3), transport="grpc", payload=payload))
        assert found.errors == {}
        assert len(found.latency) > 3

    def test_refusals_are_counted_by_their_code(self, address: str) -> None:
        """The status of a call is what the server said."""
        payload = Payload(target="/toy.Echo/Refuse", body=b"x")
        found = measure(workload(address, Arrivals(rate=50), transport="grpc", payload=payload, duration_s=1.0))
        assert found.errors == {"RESOURCE_EXHAUSTED": 50}

    def test_an_error_within_an_answer_is_counted(self, address: str) -> None:
        """TorchServe calls every answer over gRPC a good one; what failed says so in its first bytes."""
        magic = b"SERVEWRIGHT-ERROR\n"
        body = b"\x0a\x40" + magic + b"{}"
        payload = Payload(target="/toy.Echo/Echo", body=body, headers={"x-token": "secret"}, refusal=magic)
        found = measure(workload(address, Arrivals(rate=50), transport="grpc", payload=payload, duration_s=1.0))
        assert found.errors == {"error in the answer": 50}
        good = dataclasses.replace(payload, body=b"\x0a\x00")
        found = measure(workload(address, Arrivals(rate=50), transport="grpc", payload=good, duration_s=1.0))
        assert (found.errors, len(found.latency)) == ({}, 50)

    def test_a_server_that_speaks_something_else_is_told(self, serve: Serve) -> None:
        """An HTTP/1.1 server at a gRPC address is an error before anything is measured."""
        with pytest.raises(ProbeError, match=r"gRPC|HTTP/2"):
            measure(workload(serve().address, Arrivals(rate=10), transport="grpc", timeout_s=1.0))

    def test_reads_a_status_however_it_is_written(self) -> None:
        """Literals with and without an index, after a change of the table's size and an indexed field."""
        name, ok = b"\x0bgrpc-status", b"\x010"
        assert status_of(b"\x00" + name + ok) == ""
        assert status_of(b"\x20\x88\x40" + name + b"\x0214") == "UNAVAILABLE"
        assert status_of(b"\x8d") == "HTTP 404"
        assert status_of(b"") == "no status"

    def test_reads_a_status_in_huffmans_code(self) -> None:
        """Proxies write names, and sometimes values, so: RFC 7541, appendix B."""
        name = b"\x88" + bytes.fromhex("9acac8b21234da8f")
        assert status_of(b"\x40" + name + b"\x010") == ""
        assert status_of(b"\x40" + name + b"\x81\x07") == ""
        assert status_of(b"\x40" + name + b"\x82\x0b\x5f") == "UNAVAILABLE"

    def test_writes_long_values(self) -> None:
        """A value of more than 126 bytes has a length of several bytes."""
        block = header_block("/a/b", "host", {"Authorization": "x" * 300}, secure=False)
        assert b"\x0dauthorization\x7f\xad\x01" + b"x" * 300 in block

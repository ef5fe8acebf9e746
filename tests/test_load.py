"""The load generator against small servers with faults, each in a process of its own."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from servewright import pipeline, registry, state
from servewright.backend import Payload, Transport
from servewright.cli import run
from servewright.errors import InputError, LoadError, ProbeError, ServerAnswerError
from servewright.load import requests
from servewright.load.arrivals import Arrivals
from servewright.load.histogram import Histogram
from servewright.load.http1 import request_bytes
from servewright.load.http2 import header_block, status_of
from servewright.load.measurement import Measurement, Window, stable
from servewright.load.running import StartMethod, measure
from servewright.load.saturation import Slo, find_max, parse_slo
from servewright.load.watching import client_bound
from servewright.load.workload import Closed, Endpoint, Pace, Workload

Serve = Callable[..., "Toy"]
SPEC = """servewright: 1
name: NAME
model: {path: NAME, format: saved_model, deployed: true}
signature:
  inputs: [{name: x, dtype: float32, shape: [null]}]
  outputs: [{name: y, dtype: float32, shape: [null]}]
"""
PAYLOAD = Payload(target="/predict", body=b'{"x": 1}', headers={"Content-Type": "application/json"})


class Toy:
    """A toy server that runs; see ``toy_server.py``."""

    def __init__(self, *, stall_s: float = 0.0, every_s: float = 1.0, status: str = "200 OK") -> None:
        script = str(Path(__file__).parent / "toy_server.py")
        command = [sys.executable, script, str(stall_s), str(every_s), status]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.address = f"127.0.0.1:{int(self.process.stdout.readline())}"

    def stop(self) -> list[tuple[float, float]]:
        """End it, and return its stalls."""
        self.process.kill()
        assert self.process.stdout is not None
        lines = self.process.stdout.read().splitlines()
        self.process.wait()
        self.process.stdout.close()
        return [(float(begin), float(end)) for begin, end in map(str.split, lines)]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start toy servers that end with the test."""
    running: list[Toy] = []

    def start(**faults: object) -> Toy:
        running.append(Toy(**faults))  # type: ignore[arg-type]
        return running[-1]

    yield start
    for toy in running:
        with suppress(ValueError):
            toy.stop()


def workload(
    address: str, pace: Pace, *, transport: Transport = "http", payload: Payload = PAYLOAD, **more: object
) -> Workload:
    values: dict[str, object] = {"duration_s": 0.6, "warm_up_s": 0.1, "timeout_s": 5.0, "settle": False, **more}
    return Workload(
        endpoint=Endpoint(transport=transport, address=address), payloads=(payload,), pace=pace, **values  # type: ignore[arg-type]
    )  # fmt: skip


class TestHttp:
    """A load over HTTP/1.1."""

    @pytest.mark.parametrize("start_method", ["spawn", "forkserver"])
    def test_sends_every_request_of_an_open_loop(self, serve: Serve, start_method: StartMethod) -> None:
        """Two processes send what a rate asks for, and each request of the measured time is counted once."""
        load = workload(serve().address, Arrivals(rate=100), processes=2, duration_s=1.0)
        found = measure(load, start_method=start_method)
        assert (len(found.latency), found.errors, found.ended) == (100, {}, "duration")
        assert found.asked == 100
        assert found.rate == pytest.approx(100, rel=0.15)

    def test_says_why_one_of_its_processes_failed(self, serve: Serve) -> None:
        """What goes wrong there is our own defect, and no lack of memory."""
        payload = dataclasses.replace(PAYLOAD, headers={"X-Name": "\u0151"})
        with pytest.raises(LoadError, match=r"failed \(UnicodeEncodeError: .*report it"):
            measure(workload(serve().address, Closed(concurrency=1), payload=payload))

    @pytest.mark.parametrize("status", ["503 Service Unavailable", "404 Not Found"])
    def test_counts_refusals_by_status_and_not_as_fast_answers(self, serve: Serve, status: str) -> None:
        """An answer that is an error has no place among the latencies."""
        found = measure(workload(serve(status=status).address, Arrivals(rate=50), duration_s=1.0))
        assert found.errors == {f"HTTP {status[:3]}": 50}
        assert len(found.latency) == 0
        assert found.error_share == 1.0
        assert json.loads(json.dumps(found.as_json()))["latency_ms"]["p99"] is None

    def test_reads_chunked_answers(self, serve: Serve) -> None:
        """A server that does not tell the length beforehand is read to the end of each answer."""
        found = measure(workload(serve(status="chunked").address, Closed(concurrency=2)))
        assert found.errors == {}
        assert len(found.latency) > 10

    def test_waits_for_all_of_an_answer_that_comes_in_pieces(self, serve: Serve) -> None:
        """A head in two parts and a megabyte of body: the answer is there when its last byte is, 20 ms later."""
        found = measure(workload(serve(status="pieces").address, Closed(concurrency=2)))
        assert found.errors == {}
        assert len(found.latency) > 10
        assert found.latency.least_ns > 15e6

    def test_gives_up_an_answer_without_an_end(self, serve: Serve) -> None:
        """Neither a length nor the connection's end comes: each request is given up once, and is no answer beside."""
        found = measure(workload(serve(status="endless").address, Arrivals(rate=50), timeout_s=0.2))
        assert set(found.errors) <= {"timeout", "unanswered"}
        assert found.errors["timeout"] > 15
        assert sum(found.errors.values()) == len(found.latency) == 30
        assert found.rate == 0.0

    @pytest.mark.parametrize("status", ["201 Created", "204 No Content", "old", "old, without a length"])
    def test_reads_whatever_a_server_calls_good(self, serve: Serve, status: str) -> None:
        """Answers of class 2xx are good, those without a body too, and HTTP/1.0 ends each with its connection."""
        found = measure(workload(serve(status=status).address, Closed(concurrency=2)))
        assert found.errors == {}
        assert len(found.latency) > 10

    def test_callers_that_wait_in_vain_since_the_warm_up_count(self, serve: Serve) -> None:
        """A closed loop on a server that hangs has errors, and not nothing at all."""
        toy = serve(stall_s=60.0, every_s=60.01)
        found = measure(workload(toy.address, Closed(concurrency=3), timeout_s=0.4))
        assert found.error_share == 1.0
        assert found.errors["timeout"] + found.errors.get("unanswered", 0) >= 3

    def test_more_connections_than_files_may_be_open_is_no_fault_of_the_server(self, serve: Serve) -> None:
        """Requests wait for a connection then, and what they wait is counted."""
        script = (
            "import resource, sys\n"
            "resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))\n"
            "sys.path.insert(0, sys.argv[2])\n"
            "import test_load\n"
            "from servewright.load.arrivals import Arrivals\n"
            "from servewright.load.running import measure\n"
            "if __name__ == '__main__':\n"
            "    found = measure(test_load.workload(sys.argv[1], Arrivals(rate=400), duration_s=1.5))\n"
            "    print(found.error_share, len(found.latency), found.percentile_ms(0.99))\n"
        )
        toy = serve(stall_s=0.8, every_s=1.0)
        command = [sys.executable, "-c", script, toy.address, str(Path(__file__).parent)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        errors, answers, tail = map(float, done.stdout.split())
        assert (errors, answers) == (0.0, 600.0)
        assert tail > 400

    def test_a_request_without_an_answer_counts_with_the_time_it_waited(self, serve: Serve) -> None:
        """A server that hangs gives timeouts, and a percentile that says how long was waited at least."""
        found = measure(workload(serve(stall_s=30.0, every_s=30.3).address, Arrivals(rate=50), timeout_s=0.5))
        assert found.errors["timeout"] > 10
        assert found.percentile_ms(0.99) >= 500

    @pytest.mark.parametrize(
        ("address", "why"),
        [("127.0.0.1:1", r"127\.0\.0\.1:1: .*refused"), ("no.such.invalid:80", "not known|resolution")],
    )
    def test_nobody_there_is_an_error_of_ours(self, address: str, why: str) -> None:
        """An address where nobody listens, or that nobody has, is said before anything is measured."""
        with pytest.raises(ProbeError, match=why):
            measure(workload(address, Arrivals(rate=10)))

    def test_a_header_is_sent_once(self) -> None:
        """However it is written: what comes later stands, and the length is the body's."""
        headers = {"content-type": "text/plain", "HOST": "other", "content-length": "999"}
        head = request_bytes(PAYLOAD, "host:1", headers).partition(b"\r\n\r\n")[0].decode()
        names = [line.partition(":")[0].lower() for line in head.split("\r\n")[1:]]
        assert sorted(names) == ["content-length", "content-type", "host"]
        assert "content-type: text/plain" in head
        assert "HOST: other" in head
        assert f"Content-Length: {len(PAYLOAD.body)}" in head


class TestKeys:
    """Servers that let nobody in without a key, and change it."""

    @pytest.fixture
    def guarded(self) -> Iterator[Guarded]:
        """Serve to whoever has the key of the moment."""
        server = Guarded(("127.0.0.1", 0), _Door)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
        server.server_close()

    def test_a_key_that_somebody_renewed_costs_no_request(self, guarded: Guarded) -> None:
        """The old key ends at once, for requests under way too: they are sent again, with the new one."""
        guarded.renew_after = 40
        load = workload(guarded.address, Arrivals(rate=100), duration_s=1.0)
        found = measure(load, headers=lambda: {"Authorization": guarded.key})
        assert guarded.refused > 0
        assert (found.errors, len(found.latency)) == ({}, 100)

    @pytest.mark.parametrize("pace", [Arrivals(rate=100), Closed(concurrency=2)])
    def test_where_there_is_no_other_key_refusals_are_errors(self, guarded: Guarded, pace: Pace) -> None:
        """Nothing is held back for a key that never comes."""
        found = measure(workload(guarded.address, pace), headers=lambda: {"Authorization": "forged"})
        assert set(found.errors) == {"HTTP 400"}
        assert (found.error_share, len(found.latency)) == (1.0, 0)


class Guarded(ThreadingHTTPServer):
    """A server with a key that changes after so many answers."""

    daemon_threads = True
    key, renew_after, answered, refused = "first", 1 << 30, 0, 0

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.server_address[1]}"


class _Door(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Guarded

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        known = self.headers["Authorization"] == self.server.key
        if known:
            self.server.answered += 1
            if self.server.answered == self.server.renew_after:
                self.server.key = "second"
        else:
            self.server.refused += 1
        self.send_response(200 if known else 400)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class TestOpenAndClosedLoop:
    """What stalls look like."""

    def test_the_open_loop_tells_what_waiting_users_see(self, serve: Serve) -> None:
        """Where a server stalls for a tenth of the time, p99 is no less than the truth; a closed loop hides it.

        How near it comes is for ``benchmarks/load_client.py``: a busy machine adds waits of its own.
        """
        toy = serve(stall_s=0.6, every_s=6.0)
        found = measure(workload(toy.address, Arrivals(rate=200), duration_s=6.0))
        hidden = measure(workload(toy.address, Closed(concurrency=1), duration_s=6.0))
        stalls = toy.stop()
        assert len(stalls) >= 1
        length = stalls[0][1] - stalls[0][0]
        waited = np.maximum(length - np.arange(1200) / 200, 0)
        truth = np.sort(waited)[int(np.ceil(0.99 * 1200)) - 1] * 1000
        assert found.percentile_ms(0.99) > truth * 0.95
        assert hidden.percentile_ms(0.99) < truth / 2


class TestStability:
    """When a load has seen enough."""

    @staticmethod
    def window(rate: int, latency_ms: float) -> Window:
        found = Window(seconds=1.0, answered=rate)
        found.latency.add(np.full(rate, latency_ms * 1e6))
        return found

    def test_three_windows_that_agree_are_enough(self) -> None:
        """The last three windows decide, and two are too few."""
        calm = [self.window(100, 5.0), self.window(104, 5.2), self.window(97, 5.1)]
        assert stable([self.window(10, 50), *calm])
        assert not stable(calm[:2])

    @pytest.mark.parametrize(("rate", "latency_ms"), [(140, 5.0), (100, 9.0)])
    def test_another_rate_or_latency_is_not_stable(self, rate: int, latency_ms: float) -> None:
        """More than 10 % off on either is not yet stable."""
        assert not stable([self.window(100, 5.0), self.window(100, 5.0), self.window(rate, latency_ms)])

    def test_a_stable_load_ends_early_and_says_so(self, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
        """A load that settles ends before its duration."""
        monkeypatch.setattr("servewright.load.measurement.AGREEMENT", 100.0)
        monkeypatch.setattr("servewright.load.running.stable", lambda windows: len(windows) == 3)
        found = measure(workload(serve().address, Arrivals(rate=50), settle=True, duration_s=3.0))
        assert found.ended == "stable"
        assert found.seconds < 2.9


class TestSelfWatch:
    """Whether the client was the bottleneck."""

    @staticmethod
    def spread(milliseconds: float) -> Histogram:
        found = Histogram()
        found.add([round(milliseconds * 1e6)] * 100)
        return found

    def test_late_sending_is_told(self) -> None:
        """Requests that leave late by more than 5 % of the latency make the numbers the client's own."""
        assert "late" in client_bound(self.spread(10), self.spread(0.6), 0.1, saturated=False)
        unsent = client_bound(self.spread(10), self.spread(0.4), 0.1, saturated=False, due=2 * len(self.spread(0.4)))
        assert "requests left that were due" in unsent
        assert not client_bound(self.spread(10), self.spread(0.4), 0.1, saturated=False)

    def test_the_stump_at_the_end_of_a_load_says_nothing(self, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
        """What a process does in the milliseconds before it stops is not what it did all the time."""
        monkeypatch.setattr("servewright.load.running.stable", lambda windows: len(windows) == 3)
        found = measure(workload(serve().address, Arrivals(rate=50), settle=True, duration_s=3.0))
        whole = [each["busy"] or 0.0 for each in found.timeline if (each["seconds"] or 0.0) > 0.25]
        assert len(whole) == 3
        assert found.busiest == pytest.approx(max(whole), abs=1e-3)

    def test_a_busy_process_is_told_unless_the_server_is_saturated(self) -> None:
        """A process with no time left may be what held the load back."""
        assert "busy" in client_bound(self.spread(10), Histogram(), 0.95, saturated=False)
        assert not client_bound(self.spread(10), Histogram(), 0.95, saturated=True)


class TestInterruption:
    """A load that is ended early."""

    def test_ctrl_c_gives_what_was_measured(self, serve: Serve) -> None:
        """A load that is interrupted returns what it has, and leaves no process behind."""
        pressed: list[int] = []

        def press(_: Window) -> None:
            if not pressed:
                pressed.append(1)
                os.kill(os.getpid(), signal.SIGINT)

        found = measure(
            workload(serve().address, Arrivals(rate=50), duration_s=6.0),
            on_window=press,
        )
        assert found.ended == "interrupted"
        assert 40 <= len(found.latency) < 250
        assert not multiprocessing.active_children()


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


class _Refusing:
    """A client whose server takes nothing."""

    def predict(self, *_: object, **__: object) -> dict[str, object]:
        raise ServerAnswerError(500, "index out of range")


class TestWhatIsSent:
    """Rows of a user's own, or rows that are made up."""

    def test_requests_of_many_rows_have_the_users_rows(self, tmp_path: Path) -> None:
        """What is made up may be none that the model takes: an embedding of four ids bears no fifth."""
        (tmp_path / "one.yaml").write_text(SPEC.replace("NAME", "one").replace("float32", "int64"))
        document = pipeline.load(tmp_path / "one.yaml").models[0]
        np.savez(tmp_path / "ids.npz", x=np.array([1, 3], np.int64))
        assert {1, 3} <= set(requests.stacked(document, 64, file=tmp_path / "ids.npz")["x"].tolist()) <= {1, 2, 3}
        assert requests.stacked(document, 5)["x"].shape == (5,)

    def test_a_refusal_of_made_up_rows_says_that_they_were(self, tmp_path: Path) -> None:
        """The remedy is data of the user's own; where that was refused, the server's words are enough."""
        (tmp_path / "one.yaml").write_text(SPEC.replace("NAME", "one"))
        document = pipeline.load(tmp_path / "one.yaml").models[0]
        backend = dataclasses.replace(registry.get("tfserving"), asking=lambda _client, _name: _Refusing())
        made_up = requests.samples(document)
        with pytest.raises(ServerAnswerError, match=r"index out of range; the inputs were made up .* give --data"):
            requests.prepared(document, backend, None, "http", made_up)
        with pytest.raises(ServerAnswerError, match=r"index out of range$"):
            requests.prepared(document, backend, None, "http", made_up, file=tmp_path / "x.npz")


class TestPromises:
    """Promises as users write them."""

    def test_reads_them(self) -> None:
        """Latencies by percentile, and a share of errors."""
        assert parse_slo("p99=50ms, errors=0.1%") == Slo(latency_ms=(("p99", 50.0),), errors=0.001)

    @pytest.mark.parametrize("text", ["", "p99", "p99=50", "p98=1ms", "errors=200%", "errors=many"])
    def test_refuses_what_is_none(self, text: str) -> None:
        """What is no promise is said, with an example of one."""
        with pytest.raises(InputError, match="p99=50ms"):
            parse_slo(text)


class Knee:
    """What a server would show that holds a rate up to its capacity."""

    def __init__(self, rate: float, capacity: float) -> None:
        self.rate = min(rate, capacity)
        self.error_share = 0.0
        self._p99 = 1000.0 if rate > capacity else 10.0 / (1 - rate / (capacity * 1.2))

    def percentile_ms(self, share: float) -> float:
        return self._p99


class Slow(Knee):
    """A server whose queue is deep: it answers everything in time, but not all of a rate."""

    def percentile_ms(self, share: float) -> float:
        return 10.0


class TestFindingTheHighestRate:
    """The search for a server's knee."""

    @pytest.mark.parametrize("capacity", [3.0, 40.0, 100.0, 730.0, 12_345.0])
    def test_comes_within_its_precision(self, capacity: float) -> None:
        """The rate found holds, and one 5 % above it does not."""
        best, trials = find_max(lambda rate: Knee(rate, capacity), Slo(latency_ms=(("p99", 500.0),)))
        assert best is not None
        assert capacity / 1.05 <= best.asked <= capacity
        assert len(trials) < 20

    def test_no_rate_may_be_the_answer(self) -> None:
        """Where even the least rate breaks a promise, none is returned."""
        best, trials = find_max(lambda rate: Knee(rate, 100.0), Slo(latency_ms=(("p99", 1.0),)))
        assert best is None
        assert trials[-1].asked == 1.0
        assert trials[-1].broken.startswith("p99")

    def test_a_rate_that_is_not_reached_is_not_the_answer(self) -> None:
        """Where only errors are promised against, even arrivals show a backlog; random ones are given their luck."""
        best, _ = find_max(lambda rate: Slow(rate, 7.2), Slo())
        assert best is not None
        assert best.asked < 7.2 * 1.1
        assert Slo().broken_by(Slow(10.0, 7.2), asked=10.0, poisson=False)
        assert not Slo().broken_by(Slow(10.0, 7.5), asked=10.0)

    def test_what_was_tried_is_told_as_it_goes(self) -> None:
        """A search that is ended early has its trials."""
        told: list[float] = []

        def measured(rate: float) -> Knee:
            if len(told) == 3:
                raise KeyboardInterrupt
            return Knee(rate, 1000.0)

        with pytest.raises(KeyboardInterrupt):
            find_max(measured, Slo(latency_ms=(("p99", 500.0),)), on_trial=lambda trial: told.append(trial.asked))
        assert told == [100.0, 200.0, 400.0]


class TestCommand:
    """The command line."""

    def test_loads_a_url_and_prints_json(
        self, serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Any HTTP server can be loaded with a file as the body."""
        (tmp_path / "x.json").write_text("{}")
        words = ["--data", str(tmp_path / "x.json"), "--rate", "50/s", "--duration", "600ms", "--warm-up", "0s"]
        code = run(["load", f"http://{serve().address}/x", *words, "--json", "--allow-client-bound"])
        document = json.loads(capsys.readouterr().out)
        assert (code, document["errors"]) == (0, {})
        # Three windows that agree end a load early.
        assert (document["requests"] >= 15) if document["ended"] == "stable" else (document["requests"] == 30)

    def test_fails_where_no_answer_was_good(
        self, serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The errors are printed, and the exit code is that of a server that fails."""
        (tmp_path / "x.json").write_text("{}")
        url = f"http://{serve(status='404 Not Found').address}/x"
        words = ["--data", str(tmp_path / "x.json"), "--rate", "50/s", "--duration", "600ms", "--allow-client-bound"]
        assert run(["load", url, *words]) == 4
        said = capsys.readouterr()
        assert "HTTP 404: 30 (100.00% of requests)" in said.out
        assert "latency   -" in said.out
        assert "no request got a good answer" in said.err
        assert run(["load", url, *words, "--json"]) == 4
        assert json.loads(capsys.readouterr().out)["ok"] is False

    def test_names_a_server_that_is_dead(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nobody waits for an answer that cannot come; and of several models, one is to be loaded."""
        monkeypatch.setenv("SERVEWRIGHT_STATE", str(tmp_path / "state"))
        for name in ("one", "two"):
            (tmp_path / f"{name}.yaml").write_text(SPEC.replace("NAME", name))
        (tmp_path / "fleet.yaml").write_text("servewright: 1\nfleet: both\nmodels: [one.yaml, two.yaml]\n")
        with state.claimed("one") as folder:
            gone = state.Record(
                name="one", backend="tfserving", runtime="embedded", endpoints={"http": "127.0.0.1:1"}, spec="",
                run=str(folder), log=str(folder / "log"), stand_in=True, site={}, models=("one",), pid=2**22 + 1,
            )  # fmt: skip
            state.write(folder, gone)
        assert run(["load", str(tmp_path / "one.yaml"), "--rate", "5/s"]) == 4
        assert "one is dead; see: servewright logs one" in capsys.readouterr().err
        assert run(["probe", str(tmp_path / "one.yaml"), "--name", "one"]) == 4
        assert "one is dead; see: servewright logs one" in capsys.readouterr().err
        monkeypatch.setattr(state, "word_for", lambda _: "running")
        assert run(["load", str(tmp_path / "one.yaml"), "--rate", "5/s", "-b", "torchserve"]) == 2
        assert "one is a tfserving server; leave out -b" in capsys.readouterr().err
        assert run(["load", str(tmp_path / "one.yaml"), "--rate", "5/s", "--key-file", str(tmp_path / "none")]) == 2
        assert "--key-file goes with --http or --grpc" in capsys.readouterr().err
        assert run(["load", str(tmp_path / "fleet.yaml"), "--rate", "5/s"]) == 2
        assert "has 2 models; load the spec of one" in capsys.readouterr().err

    @pytest.mark.parametrize(
        "words",
        [[], ["--rate", "5/s", "--concurrency", "2"], ["--rate", "fast"], ["--rate", "5/s", "--duration", "3"],
         ["--rate", "5/s", "--slo", "p99=1ms"], ["--rate", "0/s"], ["--rate", "5/s", "--header", "x"],
         ["--rate", "5/s", "--header", ":x"], ["--rate", "5/s", "--header", "X: \u0151"],
         ["--rate", "5/s", "--transport", "grpc"], ["--rate", "\u00b2"], ["--concurrency", "2", "--poisson"],
         ["--rate", "5/s", "--backend", "tfserving"], ["--rate", "5/s", "--name", "x"],
         ["--rate", "5/s", "--grpc", "127.0.0.1:1"]],
    )  # fmt: skip
    def test_refuses_what_makes_no_sense(self, words: list[str], tmp_path: Path) -> None:
        """Options that contradict each other, or say nothing, are bad input."""
        (tmp_path / "x.json").write_text("{}")
        assert run(["load", "http://127.0.0.1:1/x", "--data", str(tmp_path / "x.json"), *words]) == 2

    @pytest.mark.parametrize(
        "url",
        ["http://[::1/x", "http://a..b/x", "http://127.0.0.1:1/\u65e5", "http://127.0.0.1:1/a b", "http://:80/",
         "http://me:secret@127.0.0.1:1/", "ftp://me:secret@127.0.0.1/", "http://me:secret@[::1/",
         "http://127.0.0.1:99999/", "ftp://127.0.0.1/x"],
    )  # fmt: skip
    def test_refuses_a_url_that_cannot_be_sent_to(
        self, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """It is bad input, and no secret in it is told."""
        (tmp_path / "x.json").write_text("{}")
        assert run(["load", url, "--data", str(tmp_path / "x.json"), "--rate", "5/s"]) == 2
        assert "secret" not in capsys.readouterr().err

    def test_a_search_that_is_ended_early_tells_what_it_tried(
        self, serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Ctrl-C in the second trial leaves the first."""
        (tmp_path / "x.json").write_text("{}")
        measured: list[Workload] = []

        def once(load: Workload, **options: object) -> Measurement:
            measured.append(load)
            if len(measured) == 2:
                os.kill(os.getpid(), signal.SIGINT)
            return measure(load, **options)  # type: ignore[arg-type]

        monkeypatch.setattr("servewright.load.running.measure", once)
        words = ["--data", str(tmp_path / "x.json"), "--find-max", "--duration", "600ms", "--warm-up", "0s"]
        address = serve().address
        code = run(["load", f"http://{address}/x", *words, "--json", "--allow-client-bound", "--slo", "errors=1%"])
        document = json.loads(capsys.readouterr().out)
        assert (code, document["ok"], document["complete"]) == (130, False, False)
        assert [trial["asked"] for trial in document["trials"]] == [100.0]


def test_a_measurement_knows_its_share_of_errors() -> None:
    """Timeouts are among the latencies and the errors, and count once as requests."""
    latency = Histogram()
    latency.add([10**6] * 90 + [10**9] * 5)
    found = Measurement(
        asked=100.0, concurrency=None, rate=90.0, seconds=1.0, latency=latency, lag=Histogram(),
        errors={"timeout": 5, "HTTP 503": 5}, ended="duration", client_bound="", busiest=0.0,
    )  # fmt: skip
    assert found.error_share == 0.1
    assert found.as_json()["requests"] == 100

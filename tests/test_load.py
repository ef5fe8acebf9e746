"""The load generator against small servers with faults, each in a process of its own."""

from __future__ import annotations

import dataclasses
import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from load_toys import PAYLOAD, Serve, workload
from servewright import processes
from servewright.errors import InputError, LoadError, ProbeError
from servewright.load.arrivals import Arrivals
from servewright.load.histogram import Histogram
from servewright.load.http1 import request_bytes
from servewright.load.measurement import Measurement, Window, stable
from servewright.load.running import StartMethod, measure
from servewright.load.watching import client_bound, server_of
from servewright.load.workload import Closed, Pace


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

    @given(st.floats(0, 1e7), st.sampled_from([0.1, 0.2, 0.3, 0.7, 2.0]), st.integers(1, 60), st.sampled_from([10, 50]))
    def test_is_due_as_often_as_was_asked(self, begin: float, warm_up_s: float, tenths: int, rate: int) -> None:
        """Whenever a load begins: what is due as it ends is not of it."""
        load = workload("127.0.0.1:1", Arrivals(rate=rate), warm_up_s=warm_up_s, duration_s=tenths / 10)
        moments = itertools.takewhile(lambda each: each < load.ends_s + 1, Arrivals(rate=rate).share(0, 1))
        due = [each for each in moments if begin + warm_up_s <= begin + each < begin + load.ends_s]
        assert len(due) == rate * tenths // 10

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

    @pytest.mark.parametrize("rate", [0.0, 1e-12, 2e6, 1e15, float("nan"), float("inf")])
    def test_refuses_a_rate_that_nobody_sends(self, rate: float) -> None:
        """A schedule of it would have no end, or no first request."""
        with pytest.raises(InputError, match="give"):
            workload("127.0.0.1:1", Arrivals(rate=rate))

    def test_refuses_more_processes_than_the_machine_bears(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Eight for each processor, and no more: they would only wait for each other."""
        monkeypatch.setattr("servewright.processors.usable", lambda: 2)
        assert workload("127.0.0.1:1", Arrivals(rate=1), processes=16).processes == 16
        for count in (0, 17, 100_000):
            with pytest.raises(InputError, match="give 1 to 16, 8 for each processor"):
                workload("127.0.0.1:1", Arrivals(rate=1), processes=count)

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
        """Where a server stalls for a sixth of the time, p99 is the truth; a closed loop hides it.

        A busy machine adds waits of its own, so that above the truth there is room up to 5 % more than the whole stall,
        the longest that anybody waits for it; ``benchmarks/load_client.py`` wants 5 % on either side.
        """
        toy = serve(stall_s=1.0, every_s=6.0)
        found = measure(workload(toy.address, Arrivals(rate=200), duration_s=6.0))
        hidden = measure(workload(toy.address, Closed(concurrency=1), duration_s=6.0))
        lengths = [end - begin for begin, end in toy.stop()]
        waited = np.maximum(min(lengths) - np.arange(1200) / 200, 0)
        truth = np.sort(waited)[int(np.ceil(0.99 * 1200)) - 1] * 1000
        assert truth * 0.95 < found.percentile_ms(0.99) < max(lengths) * 1000 * 1.05
        assert hidden.percentile_ms(0.99) < truth / 2


class TestStability:
    """When a load has seen enough."""

    @staticmethod
    def window(rate: int = 100, p50: float = 5.0, p90: float = 10.0, p99: float = 20.0) -> Window:
        """Return a window of a second with such latencies, in milliseconds, of 100 requests."""
        found = Window(seconds=1.0, answered=rate)
        found.latency.add(np.repeat([p50, p90, p99], [80, 15, 5]) * 1e6)
        return found

    def test_three_windows_that_agree_are_enough(self) -> None:
        """The last three windows decide, and two are too few."""
        calm = [self.window(100, 5.0), self.window(104, 5.2), self.window(97, 5.1)]
        assert stable([self.window(10, 50), *calm])
        assert not stable(calm[:2])

    @pytest.mark.parametrize("key", ["rate", "p50", "p90", "p99"])
    def test_how_far_the_last_window_may_be_off(self, key: str) -> None:
        """Rate, p50 and p90 may be 10 % off the mean of three; p99, above which there are few requests, 50 %."""
        usual: dict[str, int | float] = {"rate": 100, "p50": 5.0, "p90": 10.0, "p99": 20.0}
        # One of three that is 15.8 % above the others is 10 % above their mean; one of twice as much, 50 %.
        near, far = (1.95, 2.05) if key == "p99" else (1.14, 1.17)

        def last(times: float) -> Window:
            return self.window(**{key: type(usual[key])(usual[key] * times)})  # type: ignore[arg-type]

        assert stable([self.window(), self.window(), last(near)])
        assert not stable([self.window(), self.window(), last(far)])

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

    @pytest.mark.parametrize(("cores", "saturated"), [(1, True), (3, False)])
    def test_a_server_is_saturated_that_uses_what_the_client_leaves_to_it(
        self, cores: int, saturated: bool, busy_child: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its children count; of three processors one thread cannot use the two that are its own."""
        monkeypatch.setattr("servewright.processors.usable", lambda: cores)
        over = server_of(busy_child.pid)()
        before = used_by(busy_child.pid)
        processes.wait_until(lambda: used_by(busy_child.pid) > before + 0.2, within_s=60, what="the child computes")
        assert over() is saturated

    def test_a_server_that_idles_has_ended_or_is_elsewhere_is_not_saturated(
        self, busy_child: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Then the client is what was busy, however few processors there are."""
        monkeypatch.setattr("servewright.processors.usable", lambda: 1)
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as idle:
            processes.wait_until(lambda: psutil.Process(idle.pid).status() == "sleeping", within_s=60, what="it waits")
            rested = server_of(idle.pid)()
            assert not rested()
            ended = server_of(busy_child.pid)()
            end(busy_child)
            assert not ended()
            assert not server_of(busy_child.pid)()()
            assert not server_of(None)()()


def used_by(pid: int) -> float:
    """Return the seconds that the children of a process have computed."""
    return sum(sum(child.cpu_times()[:2]) for child in psutil.Process(pid).children())


def end(parent: subprocess.Popen[str]) -> None:
    """End a process and its children."""
    for child in psutil.Process(parent.pid).children():
        child.kill()
    parent.kill()
    parent.communicate()


@pytest.fixture
def busy_child() -> Iterator[subprocess.Popen[str]]:
    """Run a process that waits for its child, which computes for as long as the test lasts."""
    endless = "print(0, flush=True); any(iter(int, 1))"
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    with subprocess.Popen([sys.executable, "-c", script, endless], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        yield parent
        if parent.poll() is None:
            end(parent)


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

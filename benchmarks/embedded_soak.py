"""The embedded TF Serving for ten minutes at half of what it can do: flat memory and no error.

``python benchmarks/embedded_soak.py [--minutes 10]``. The most requests per second are measured first, in a closed
loop; then gRPC and REST requests of both models are sent at half that rate, each at its own time. Memory is looked at
every few seconds: it may not have grown from the first fifth to the last by more than 16 MiB. At the end SIGTERM comes
while requests are under way: the server has to end within 2 seconds. Exits 1 otherwise.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import http.client
import json
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import grpc
import psutil
from embedded_fuzz import Server
from embedded_throughput import request

from servewright.backends.tfserving import protos

MOST_GROWTH = 16 << 20
ENDS_WITHIN_S = 2.0
THREADS = 32
REST_BODY = json.dumps({"instances": [1.0, 2.0, 5.0]})


class Client:
    """Sends one kind of request after the other and counts what comes back."""

    def __init__(self, server: Server, work: Path) -> None:
        self.call = server.channel.unary_unary(protos.PREDICT)
        self.bodies = [request(model, work / f"{model}.bin").read_bytes() for model in ("half_plus_two", "mlp")]
        self.rest_port, self.local = server.rest_port, threading.local()
        self.seen: Counter[str] = Counter()

    def one(self, number: int) -> None:
        kind = number % 4
        try:
            if kind < 3:
                self.call(self.bodies[kind % 2], timeout=30)
                self.seen["OK"] += 1
                return
            connection = getattr(self.local, "connection", None)
            if connection is None:
                connection = self.local.connection = http.client.HTTPConnection("127.0.0.1", self.rest_port, timeout=30)
            connection.request("POST", "/v1/models/half_plus_two:predict", REST_BODY)
            answer = connection.getresponse()
            body = answer.read()
            right = answer.status == 200 and json.loads(body)["predictions"] == [2.5, 3.0, 4.5]
            self.seen["OK" if right else f"HTTP {answer.status} {body[:80]!r}"] += 1
        except grpc.RpcError as error:
            self.seen[f"{error.code().name}: {error.details()}"] += 1
        except (OSError, http.client.HTTPException) as error:
            self.local.connection = None
            self.seen[repr(error)] += 1


def closed_loop(client: Client, seconds: float) -> float:
    """Return the requests per second of as many callers as there are threads."""
    end, done = time.perf_counter() + seconds, []

    def work(first: int) -> None:
        number = first
        while time.perf_counter() < end:
            client.one(number)
            number += 1
        done.append(number - first)

    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(THREADS)))
    return sum(done) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="soak-"))
    server = Server(work)
    process = psutil.Process(server.process.pid)
    try:
        client = Client(server, work)
        closed_loop(client, 3)
        most = closed_loop(client, 10)
        client.seen.clear()
        rate, memory = most / 2, []
        began = last = time.perf_counter()
        end = began + arguments.minutes * 60
        with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
            number = 0
            while (now := time.perf_counter()) < end:
                due = began + number / rate
                if due > now:
                    time.sleep(due - now)
                pool.submit(client.one, number)
                number += 1
                if now - last > arguments.minutes * 60 / 100:
                    last = now
                    memory.append(process.memory_info().rss)
        fifth = len(memory) // 5
        first, final = statistics.median(memory[:fifth]), statistics.median(memory[-fifth:])
        files, threads = process.num_fds(), process.num_threads()
        seen = Counter(client.seen)
        with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
            for extra in range(20 * THREADS):
                pool.submit(client.one, extra)
            told = time.perf_counter()
            process.terminate()
            code = server.process.wait(30)
            ended = time.perf_counter() - told
    finally:
        server.process.kill()
    print(f"most {most:.0f}/s, sent {number} at {rate:.0f}/s for {arguments.minutes:g} min: {dict(seen)}")
    print(f"memory {first / 2**20:.1f} -> {final / 2**20:.1f} MiB, {files} files, {threads} threads")
    print(f"ended {ended:.2f} s after SIGTERM under load, with {code}")
    wrong = set(seen) != {"OK"} or final - first > MOST_GROWTH or code != 0 or ended > ENDS_WITHIN_S
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()

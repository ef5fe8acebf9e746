"""The load generator beside what people use: requests for each second of a core that the client takes.

    python benchmarks/load_tools.py [--rounds 3] [--locust PATH]

Every client keeps 16 requests of 784 floats in flight at one small server, in turn, for some rounds. HTTP: our own,
a hand-written loop, httpx2, and, where they are installed, wrk, hey and locust; it says of each that is missing how it
is installed. gRPC: our own and raw grpcio with ready-made bytes. The server runs in a process of its own, so what is
compared is the client's share of the machine, whatever the server can do.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from load_client import BODY, CALLERS, SERVER, by_hand

from servewright.backend import Payload
from servewright.load.running import measure
from servewright.load.workload import Closed, Endpoint, Workload

SECONDS = 4.0
INSTALL = {
    "wrk": "apt-get install wrk",
    "hey": "apt-get install hey",
    "locust": "pip install locust, in an environment of its own, and --locust PATH of the program",
}
METHOD = "/toy.Echo/Call"
ECHO = """
import sys
from concurrent.futures import ThreadPoolExecutor
import grpc

class Echo(grpc.GenericRpcHandler):
    def service(self, _):
        return grpc.unary_unary_rpc_method_handler(lambda request, _: b"done")

server = grpc.server(ThreadPoolExecutor(4), handlers=[Echo()])
print(server.add_insecure_port("127.0.0.1:0"), flush=True)
server.start()
server.wait_for_termination()
"""
LOCUSTFILE = """
from locust import FastHttpUser, constant, task

class Caller(FastHttpUser):
    wait_time = constant(0)

    @task
    def call(self):
        self.client.post("/x", data=b"x" * 3136)
"""


def ours(port: int, *, grpc: bool = False) -> float:
    """Return the rate per core of our own load."""
    found = measure(
        Workload(
            endpoint=Endpoint(transport="grpc" if grpc else "http", address=f"127.0.0.1:{port}"),
            payloads=(Payload(target=METHOD if grpc else "/x", body=BODY),),
            pace=Closed(concurrency=CALLERS),
            duration_s=SECONDS,
            warm_up_s=0.5,
            settle=False,
        )
    )
    return found.rate / statistics.fmean(point["busy"] for point in found.timeline)


def grpcio(port: int) -> float:
    """Return the rate per core of raw grpcio: 16 callers as threads, bytes in and out."""
    import grpc

    answered = [0] * CALLERS
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(METHOD)
        call(BODY, wait_for_ready=True)
        begin, end = time.process_time(), time.monotonic() + SECONDS

        def caller(number: int) -> None:
            while time.monotonic() < end:
                call(BODY)
                answered[number] += 1

        with ThreadPoolExecutor(CALLERS) as threads:
            list(threads.map(caller, range(CALLERS)))
    return sum(answered) / (time.process_time() - begin)


def grpcio_asyncio(port: int) -> float:
    """Return the rate per core of raw grpcio on asyncio."""
    import grpc

    async def run() -> float:
        answered = 0
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary(METHOD)
            await call(BODY, wait_for_ready=True)
            begin, end = time.process_time(), time.monotonic() + SECONDS

            async def caller() -> None:
                nonlocal answered
                while time.monotonic() < end:
                    await call(BODY)
                    answered += 1

            await asyncio.gather(*(caller() for _ in range(CALLERS)))
            return answered / (time.process_time() - begin)

    return asyncio.run(run())


def httpx2(port: int) -> float:
    """Return the rate per core of httpx2 on asyncio."""
    import httpx2

    async def run() -> float:
        answered = 0
        limits = httpx2.Limits(max_connections=CALLERS, max_keepalive_connections=CALLERS)
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", limits=limits) as client:
            begin, end = time.process_time(), time.monotonic() + SECONDS

            async def caller() -> None:
                nonlocal answered
                while time.monotonic() < end:
                    await client.post("/x", content=BODY)
                    answered += 1

            await asyncio.gather(*(caller() for _ in range(CALLERS)))
            return answered / (time.process_time() - begin)

    return asyncio.run(run())


def tool(command: list[str], count: Callable[[str], float]) -> float:
    """Return the rate per core of a program that prints its requests; its start is counted too."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[0]} failed:\n{printed}")
    return count(printed) / (used.ru_utime + used.ru_stime)


def tools(folder: Path, locust: str | None) -> dict[str, Callable[[int], float]]:
    """Return the programs that are installed, and say which are not."""
    found: dict[str, Callable[[int], float]] = {}
    body, script, users = folder / "body", folder / "post.lua", folder / "locustfile.py"
    body.write_bytes(BODY)
    script.write_text(f'wrk.method = "POST"\nwrk.body = string.rep("x", {len(BODY)})\n')
    users.write_text(LOCUSTFILE)
    duration = f"{SECONDS:.0f}s"

    def number(pattern: str) -> Callable[[str], float]:
        return lambda printed: float(re.findall(pattern, printed)[0])

    if wrk := shutil.which("wrk"):
        command = [wrk, "-t1", f"-c{CALLERS}", f"-d{duration}", "-s", str(script)]
        found["wrk"] = lambda port: tool([*command, f"http://127.0.0.1:{port}/x"], number(r"(\d+) requests in"))
    if hey := shutil.which("hey"):
        options = ["-z", duration, "-c", str(CALLERS), "-m", "POST", "-D", str(body)]
        found["hey"] = lambda port: tool([hey, *options, f"http://127.0.0.1:{port}/x"], number(r"\[200\]\s+(\d+)"))
    if locust := locust or shutil.which("locust"):
        flags = ["--headless", "--only-summary", "-u", str(CALLERS), "-r", str(CALLERS), "-t", duration]
        found["locust"] = lambda port: tool(
            [locust, "-f", str(users), *flags, "--host", f"http://127.0.0.1:{port}"], number(r"Aggregated +(\d+)")
        )
    for name in [each for each in INSTALL if each not in found]:
        print(f"not compared: {name} is not installed; {INSTALL[name]}")
    return found


def table(title: str, clients: dict[str, Callable[[int], float]], server: list[str], rounds: int) -> None:
    """Print every client's rate per core, and ours as a ratio to it."""
    with subprocess.Popen(server, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            port = int(process.stdout.readline())
            seen = [{name: client(port) for name, client in clients.items()} for _ in range(rounds)]
        finally:
            process.kill()
    print(f"{title}, {CALLERS} callers, median of {rounds} alternating rounds")
    for name in clients:
        rate = statistics.median(each[name] for each in seen)
        ratio = statistics.median(each["servewright"] / each[name] for each in seen)
        print(f"  {name:<24}{rate:9,.0f} requests per second and core    servewright / this: {ratio:6.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--locust", help="the program, where it is not on PATH")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        http = {"servewright": ours, "by hand (asyncio)": by_hand, "httpx2": httpx2}
        http |= tools(Path(folder), arguments.locust)
        table("HTTP", http, [sys.executable, str(SERVER), "0", "1", "200 OK"], arguments.rounds)
    rpc = {"servewright": lambda port: ours(port, grpc=True), "grpcio": grpcio, "grpcio (asyncio)": grpcio_asyncio}
    table("gRPC", rpc, [sys.executable, "-c", ECHO], arguments.rounds)


if __name__ == "__main__":
    main()

"""What the load generator's client costs, beside a hand-written asyncio loop; and what it sees of a server that stalls.

    python benchmarks/load_client.py [--stall]

Requests per second and core, five alternating rounds of each at one server with 16 callers; with ``--stall``, a server
that stands still for 1 s in every 10 s, at 200 requests per second: it fails where the open loop's p99 is more than 5 %
from the truth, or the closed loop sees as much as half of it.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import time
from pathlib import Path

from servewright.backend import Payload
from servewright.load.arrivals import Arrivals
from servewright.load.running import measure
from servewright.load.workload import Closed, Endpoint, Pace, Workload

CALLERS = 16
SECONDS = 2.0
NEAR = 0.05  # of the truth
SERVER = Path(__file__).parent.parent / "tests" / "toy_server.py"
BODY = b"x" * 3136  # 784 floats


class ByHand(asyncio.Protocol):
    """The least that a load could be: prepared bytes out, the answer's length known beforehand."""

    REQUEST = b"POST /x HTTP/1.1\r\nHost: toy\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
    answered = 0
    length = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport, self.seen = transport, 0
        transport.write(self.REQUEST)

    def data_received(self, data: bytes) -> None:
        self.seen += len(data)
        ByHand.length = ByHand.length or len(data)
        if self.seen >= ByHand.length:
            self.seen -= ByHand.length
            ByHand.answered += 1
            self.transport.write(self.REQUEST)


def by_hand(port: int) -> float:
    """Return requests per second of the processor's time."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        for _ in range(CALLERS):
            await loop.create_connection(ByHand, "127.0.0.1", port)
        await asyncio.sleep(SECONDS)

    ByHand.answered, begin = 0, time.process_time()
    asyncio.run(run())
    return ByHand.answered / (time.process_time() - begin)


def workload(port: int, pace: Pace, seconds: float) -> Workload:
    return Workload(
        endpoint=Endpoint(transport="http", address=f"127.0.0.1:{port}"), payloads=(Payload(target="/x", body=BODY),),
        pace=pace, duration_s=seconds, warm_up_s=0.5, settle=False,
    )  # fmt: skip


def ours(port: int) -> float:
    """Return requests per second of the processor's time."""
    found = measure(workload(port, Closed(concurrency=CALLERS), SECONDS))
    busy = statistics.fmean(point["busy"] for point in found.timeline)
    return found.rate / busy


def speed(port: int) -> None:
    rounds = [(ours(port), by_hand(port)) for _ in range(5)]
    mine, theirs = (statistics.median(each) for each in zip(*rounds, strict=True))
    ratio = statistics.median(one / other for one, other in rounds)
    print(f"requests per second and core: {mine:.0f}, by hand {theirs:.0f}; ratio {ratio:.2f} (median of 5 rounds)")


def stall(port: int) -> tuple[float, float]:
    """Return the p99 in milliseconds that the open loop reads, and the closed one's."""
    read = []
    for name, pace in (("open loop, 200/s", Arrivals(rate=200)), ("closed loop, 1 caller", Closed(concurrency=1))):
        found = measure(workload(port, pace, 10.0))
        print(f"{name:<24}p50 {found.percentile_ms(0.5):8.2f} ms, p99 {found.percentile_ms(0.99):8.2f} ms")
        read.append(found.percentile_ms(0.99))
    return read[0], read[1]


def truth_ms(length_s: float) -> float:
    """Return the p99 of requests that come evenly at 200/s for 10 s, of which one stretch finds the server standing."""
    waited = sorted(max(length_s - each / 200, 0.0) for each in range(2000))
    return waited[round(0.99 * 2000) - 1] * 1000


def judged(read: tuple[float, float], stalls: list[float]) -> int:
    """Print the truth of every stall, in seconds, and return the exit code: the open loop has read the first one's."""
    if not stalls:
        print("the server tells of no stall: nothing to hold the reading against")
        return 1
    for length_s in stalls:
        print(f"the server stood for {length_s:.3f} s: a p99 of {truth_ms(length_s):.1f} ms is the truth")
    truth, (opened, closed) = truth_ms(stalls[0]), read
    print(f"the open loop is {opened / truth - 1:+.1%} off, of at most {NEAR:.0%}")
    return int(abs(opened / truth - 1) > NEAR or closed > truth / 2)


def main() -> int:
    """Return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stall", action="store_true")
    stalls = parser.parse_args().stall
    command = [sys.executable, str(SERVER), *(("1", "10") if stalls else ("0", "1")), "200 OK"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            port = int(server.stdout.readline())
            if not stalls:
                speed(port)
                return 0
            read = stall(port)
        finally:
            server.kill()
        spans = [map(float, line.split()) for line in server.stdout]
    return judged(read, [end - begin for begin, end in spans])


if __name__ == "__main__":
    sys.exit(main())

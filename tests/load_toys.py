"""Toy servers to load, each in a process of its own, and loads for them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from servewright.backend import Payload, Transport
from servewright.load.workload import Endpoint, Pace, Workload

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
        lines, _ = self.process.communicate()
        return [(float(begin), float(end)) for begin, end in map(str.split, lines.splitlines())]

    def end(self) -> None:
        """End it; one that has ended stays so."""
        if self.process.returncode is None:
            self.stop()


def workload(
    address: str, pace: Pace, *, transport: Transport = "http", payload: Payload = PAYLOAD, **more: object
) -> Workload:
    values: dict[str, object] = {"duration_s": 0.6, "warm_up_s": 0.1, "timeout_s": 5.0, "settle": False, **more}
    return Workload(
        endpoint=Endpoint(transport=transport, address=address), payloads=(payload,), pace=pace, **values  # type: ignore[arg-type]
    )  # fmt: skip

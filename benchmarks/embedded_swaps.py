"""Requests while the served version is replaced again and again: none of them may fail.

``python benchmarks/embedded_swaps.py [--swaps 50] [--rate 200]``. Requests are sent at a steady rate, each at its own
time, to a server with the default number of threads for the small model. Meanwhile one version after the other appears
in the model's folder; the next one comes as soon as the last one answers. For each model, unbatched and batched: how
many failed, and how long the slowest took. Exits 1 where one failed.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import grpc
from embedded_throughput import BATCHING, MAKE_MODELS, free_port, request, running

from servewright.backends.tfserving import protos

AVAILABLE, END = 30, 50
WITHIN_S = 30.0


async def swapping(folder: Path, spare: Path, versions: range, channel: grpc.aio.Channel) -> None:
    """Put one version after the other in its place, each when the one before answers alone."""
    status = channel.unary_unary(protos.GET_MODEL_STATUS)
    asked = protos.GetModelStatusRequest(model_spec={"name": folder.name}).SerializeToString()
    for version in versions:
        shutil.copytree(folder / "1", spare / str(version))
        (spare / str(version)).rename(folder / str(version))
        end = time.monotonic() + WITHIN_S
        while True:
            try:
                found = protos.GetModelStatusResponse.FromString(await status(asked))
            except grpc.aio.AioRpcError:  # the same shortage fails predictions, and is counted there
                found = protos.GetModelStatusResponse()
            states = {entry.version: entry.state for entry in found.model_version_status}
            if states.pop(version, 0) == AVAILABLE and set(states.values()) == {END}:
                break
            if time.monotonic() > end:
                raise SystemExit(f"version {version} of {folder.name} did not come: {states}")
            await asyncio.sleep(0.05)


async def measure(
    port: int, folder: Path, spare: Path, body: bytes, *, swaps: int, rate: float
) -> tuple[Counter[str], list[float]]:
    """Return what the requests were answered, and their latencies in ms, sorted."""
    seen: Counter[str] = Counter()
    latencies: list[float] = []
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(protos.PREDICT)
        await call(body, wait_for_ready=True)

        async def one(due: float) -> None:
            try:
                await call(body, timeout=WITHIN_S)
                seen["OK"] += 1
            except grpc.aio.AioRpcError as error:
                seen[f"{error.code().name}: {error.details()}"] += 1
            latencies.append((time.perf_counter() - due) * 1000)

        swaps_done = asyncio.create_task(swapping(folder, spare, range(2, swaps + 2), channel))
        began, under_way = time.perf_counter(), set[asyncio.Task[None]]()
        number = 0
        while not swaps_done.done():
            due = began + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            task = asyncio.create_task(one(due))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
            number += 1
        await asyncio.gather(swaps_done, *under_way)
    return seen, sorted(latencies)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--swaps", type=int, default=50)
    parser.add_argument("--rate", type=float, default=200)
    parser.add_argument("--only", default="", help="model/kind")
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="swaps-"))
    subprocess.run([sys.executable, "-P", "-c", MAKE_MODELS, str(work)], check=True, stderr=subprocess.DEVNULL)
    batching = work / "batching.config"
    batching.write_text(BATCHING)
    failed = 0
    for model in ("half_plus_two", "mlp"):
        body = request(model, work / f"{model}.bin").read_bytes()
        for kind in ("unbatched", "batched"):
            if arguments.only not in ("", f"{model}/{kind}"):
                continue
            folder, spare = work / kind / model, work / kind / f"{model}-spare"
            shutil.copytree(work / model, folder)
            spare.mkdir()
            port = free_port()
            flags = [f"--port={port}", f"--model_name={model}", f"--model_base_path={folder}"]
            flags += ["--file_system_poll_wait_seconds=1"]
            if model == "mlp":  # 200 a second of these can hold all of 7 threads on 2 CPUs without any swap
                flags += ["--grpc_max_threads=512"]
            if kind == "batched":
                flags += ["--enable_batching=true", f"--batching_parameters_file={batching}"]
            with running([sys.executable, "-m", "servewright.backends.tfserving.embedded", *flags], port):
                seen, latencies = asyncio.run(
                    measure(port, folder, spare, body, swaps=arguments.swaps, rate=arguments.rate)
                )
            wrong = {text: count for text, count in seen.items() if text != "OK"}
            failed += sum(wrong.values())
            print(
                f"{model:<14} {kind:<10} {arguments.swaps} swaps, {len(latencies)} requests at {arguments.rate:g}/s: "
                f"{sum(wrong.values())} failed {wrong or ''}; p50 {latencies[len(latencies) // 2]:.1f} ms, "
                f"p99 {latencies[int(len(latencies) * 0.99)]:.1f} ms, slowest {latencies[-1]:.0f} ms",
                flush=True,
            )
    shutil.rmtree(work)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()

"""Measure our Predict over gRPC beside a raw grpcio call with ready-made request bytes.

Both send the same float32 images of 224x224x3 to the same server in another process, which answers a small
PredictResponse. Ours builds the request from a numpy array each time and reads the answer into one. A third candidate,
``copied``, copies the array into new bytes and sends those raw: grpcio takes nothing but bytes, so no client that is
given an array can do less. Prints how many times longer each takes: the median over alternating rounds of the ratio
of the rounds' medians.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import grpc
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "adapters"))

from servewright.backends.tfserving import predictions, protos
from servewright.backends.tfserving.client import Client
from servewright.backends.tfserving.targets import Target

UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


def serve(pipe: Connection) -> None:
    """Answer every call with the scores of ten classes until the pipe closes; tell the port through the pipe."""
    answer = predictions.encode_answer({"scores": np.zeros((1, 10), np.float32)})

    class Handler(grpc.GenericRpcHandler):
        def service(self, _details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            return grpc.unary_unary_rpc_method_handler(lambda _request, _context: answer, None, None)

    server = grpc.server(ThreadPoolExecutor(2), handlers=(Handler(),), options=UNLIMITED)
    pipe.send(server.add_insecure_port("127.0.0.1:0"))
    server.start()
    try:
        pipe.recv()
    except EOFError:
        server.stop(None)


def median_of(call: Callable[[], object], calls: int) -> float:
    """Return the median time of one call, in seconds."""
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=8, help="images in a request")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=50, help="calls in a round")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()

    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    server = context.Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    theirs.close()
    address = f"127.0.0.1:{pipe.recv()}"

    rng = np.random.default_rng(0)
    images = rng.random((arguments.images, 224, 224, 3), dtype=np.float32)
    ready_made = predictions.encode_request(Target("m").encoded(), {"image": images})
    with Client(grpc=address) as client, grpc.insecure_channel(address, options=UNLIMITED) as channel:
        raw_call = channel.unary_unary(protos.PREDICT)

        def raw() -> None:
            raw_call(ready_made, timeout=30)

        def copied() -> None:
            raw_call(images.tobytes(), timeout=30)

        def ours() -> None:
            client.predict("m", {"image": images}, transport="grpc")

        for call in (ours, copied, raw):
            median_of(call, 20)
        rounds = [[median_of(call, arguments.calls) for call in (raw, copied, ours)] for _ in range(arguments.rounds)]
    pipe.close()
    server.join(5)

    result = {
        "request_mib": len(ready_made) / 2**20,
        "raw_ms": statistics.median(raw_s for raw_s, _, _ in rounds) * 1e3,
        "ours_ms": statistics.median(ours_s for _, _, ours_s in rounds) * 1e3,
        "ratio": statistics.median(ours_s / raw_s for raw_s, _, ours_s in rounds),
        "ratio_of_a_copy": statistics.median(copied_s / raw_s for raw_s, copied_s, _ in rounds),
    }
    if arguments.json:
        print(json.dumps(result))
        return
    print(f"request of {result['request_mib']:.1f} MiB: raw {result['raw_ms']:.2f} ms, ours {result['ours_ms']:.2f} ms")
    print(f"ours takes {result['ratio']:.3f} times as long; a copy alone {result['ratio_of_a_copy']:.3f}")


if __name__ == "__main__":
    main()

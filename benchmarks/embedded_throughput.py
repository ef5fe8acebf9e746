"""Requests per second of the embedded TF Serving beside a plain grpcio + TensorFlow server, in one run.

``python benchmarks/embedded_throughput.py [--rounds 5] [--seconds 2] [--quick]``. Closed loops, one row a request, as
``tensor_content``; clients are other processes. The servers take turns within every round; each cell is the median
of the rounds' ratios. No number of one run can be compared with another's.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

HERE = Path(__file__).resolve().parent
BATCHING = """max_batch_size { value: 32 }
batch_timeout_micros { value: 2000 }
max_enqueued_batches { value: 1000 }
num_batch_threads { value: 2 }
"""
CLIENTS = (1, 8, 32)
NEEDED = {("mlp", "batched", 32): 2.0, ("mlp", "unbatched", 1): 0.95} | {
    ("half_plus_two", "unbatched", clients): 0.95 for clients in CLIENTS
}

MAKE_MODELS = """
import sys, numpy as np, tensorflow as tf
class Mlp(tf.Module):
    def __init__(self):
        rng = np.random.default_rng(0)
        sizes = [784, 2048, 2048, 10]
        self.w = [tf.Variable(rng.normal(0, a ** -0.5, (a, b)).astype("f4")) for a, b in zip(sizes, sizes[1:])]
    @tf.function(input_signature=[tf.TensorSpec([None, 784], tf.float32, name="x")])
    def __call__(self, x):
        for w in self.w[:-1]:
            x = tf.nn.relu(x @ w)
        return {"y": x @ self.w[-1]}
class Half(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def __call__(self, x):
        return {"y": x * 0.5 + 2.0}
for name, module in (("mlp", Mlp()), ("half_plus_two", Half())):
    tf.saved_model.save(module, f"{sys.argv[1]}/{name}/1", signatures=module.__call__)
"""

CLIENT = """
import sys, threading, time
import grpc
port, threads, seconds, path = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
body = open(path, "rb").read()
channel = grpc.insecure_channel(f"127.0.0.1:{port}")
call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
call(body, timeout=60, wait_for_ready=True)
latencies, stop, errors = [], 0.0, 0
def work():
    global errors
    while (start := time.perf_counter()) < stop:
        try:
            call(body, timeout=60)
        except grpc.RpcError:
            errors += 1
        latencies.append(time.perf_counter() - start)
print("ready", flush=True)
sys.stdin.readline()
begin = time.perf_counter()
stop = begin + seconds
workers = [threading.Thread(target=work) for _ in range(threads)]
[worker.start() for worker in workers]
[worker.join() for worker in workers]
print(len(latencies) / (time.perf_counter() - begin), errors, *sorted(latencies)[:: max(1, len(latencies) // 1000)])
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(argv: list[str], port: int) -> Iterator[psutil.Process]:
    """Run a server until the block ends."""
    process = subprocess.Popen(
        argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    )
    try:
        end = time.monotonic() + 120
        while time.monotonic() < end:
            if process.poll() is not None:
                raise SystemExit(f"{argv} ended with {process.returncode}")
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()


def load(port: int, clients: int, seconds: float, body: Path) -> tuple[float, float, int]:
    """Return requests per second, the 99th percentile in ms and the errors of a closed loop of ``clients``."""
    count = 1 if clients == 1 else 2
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CLIENT, str(port), str(clients // count), str(seconds), str(body)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(count)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout
        process.stdout.readline()
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    rate, latencies, errors = 0.0, [], 0
    for process in processes:
        out, _ = process.communicate(timeout=120)
        own, failed, *spent = out.split()
        rate += float(own)
        errors += int(failed)
        latencies += map(float, spent)
    latencies.sort()
    return rate, latencies[int(len(latencies) * 0.99)] * 1000, errors


def request(model: str, path: Path) -> Path:
    import numpy as np

    from servewright.backends.tfserving import protos

    values = np.linspace(0, 1, 784, dtype=np.float32) if model == "mlp" else np.array([2], np.float32)
    shape = [1, 784] if model == "mlp" else [1]
    tensor = {
        "dtype": 1,
        "tensor_shape": {"dim": [{"size": size} for size in shape]},
        "tensor_content": values.tobytes(),
    }
    path.write_bytes(protos.PredictRequest(model_spec={"name": model}, inputs={"x": tensor}).SerializeToString())
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--only", default="", help="model, model/kind or model/kind/clients")
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="throughput-"))
    subprocess.run([sys.executable, "-P", "-c", MAKE_MODELS, str(work)], check=True, stderr=subprocess.DEVNULL)
    batching = work / "batching.config"
    batching.write_text(BATCHING)
    embedded = [sys.executable, "-m", "servewright.backends.tfserving.embedded"]
    failed = False
    print(f"{'model':<14} {'kind':<10} {'clients':>7} {'plain/s':>9} {'embedded/s':>11} {'ratio':>6} {'needed':>7}"
          f" {'p99 plain':>10} {'p99 emb.':>9} {'RSS plain':>10} {'RSS emb.':>9}")  # fmt: skip
    for model in ("mlp", "half_plus_two"):
        body = request(model, work / f"{model}.bin")
        for kind in ("unbatched", "batched") if model == "mlp" else ("unbatched",):
            if not f"{model}/{kind}/".startswith(arguments.only.rsplit("/", 1)[0]) and arguments.only:
                continue
            plain_port, port = free_port(), free_port()
            flags = [
                f"--port={port}",
                f"--model_name={model}",
                f"--model_base_path={work / model}",
                "--grpc_max_threads=128",
            ]
            if kind == "batched":
                flags += ["--enable_batching=true", f"--batching_parameters_file={batching}"]
            with ExitStack() as stack:
                plain_argv = [
                    sys.executable,
                    "-P",
                    str(HERE / "plain_tf_server.py"),
                    str(work / model / "1"),
                    str(plain_port),
                ]
                plain = stack.enter_context(running(plain_argv, plain_port))
                own = stack.enter_context(running(embedded + flags, port))
                for clients in CLIENTS:
                    if arguments.only.count("/") == 2 and not arguments.only.endswith(f"/{clients}"):
                        continue
                    rows = []
                    for at in range(arguments.rounds + 1):
                        order = [(plain_port, 0), (port, 1)] if at % 2 else [(port, 1), (plain_port, 0)]
                        found = {which: load(at_port, clients, arguments.seconds, body) for at_port, which in order}
                        if at:  # the first round warms both up
                            rows.append((found[0], found[1]))
                    ratio = statistics.median(b[0] / a[0] for a, b in rows)
                    needed = NEEDED.get((model, kind, clients))
                    errors = sum(a[2] + b[2] for a, b in rows)
                    failed |= bool(errors) or (needed is not None and ratio < needed)
                    print(
                        f"{model:<14} {kind:<10} {clients:>7} {statistics.median(a[0] for a, _ in rows):>9.0f}"
                        f" {statistics.median(b[0] for _, b in rows):>11.0f} {ratio:>6.2f} {needed or '-':>7}"
                        f" {statistics.median(a[1] for a, _ in rows):>7.1f} ms"
                        f" {statistics.median(b[1] for _, b in rows):>6.1f} ms"
                        f" {plain.memory_info().rss >> 20:>6} MiB {own.memory_info().rss >> 20:>5} MiB"
                        + (f"  {errors} errors" if errors else ""),
                        flush=True,
                    )
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()

"""Malformed requests by the hundred thousand: every answer has to be a valid one or a listed error.

``python benchmarks/embedded_fuzz.py [--requests 100000] [--seed 1]``. Valid requests are mutated: bytes of protobuf
messages, fields of messages, JSON texts, HTTP request lines and headers, HTTP/2 frames and header blocks. The server
must not end, hang or grow; the seed makes a run repeatable. Exits 1, with the request that did it, where one of these
fails.
"""

from __future__ import annotations

import argparse
import base64
import concurrent.futures
import http.client
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import grpc
import psutil
from embedded_throughput import MAKE_MODELS, free_port

from servewright.backends.tfserving import protos
from servewright.backends.tfserving.embedded.hpack import encode
from servewright.backends.tfserving.embedded.http2 import PREFACE, frame

CODES = {
    "OK",
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "FAILED_PRECONDITION",
    "INTERNAL",
    "UNIMPLEMENTED",
    "RESOURCE_EXHAUSTED",
}
STATUSES = {200, 400, 404, 413, 501}
MOST_GROWTH = 200 << 20
METHODS = (
    protos.PREDICT,
    protos.CLASSIFY,
    protos.REGRESS,
    protos.MULTI_INFERENCE,
    protos.GET_MODEL_METADATA,
    protos.GET_MODEL_STATUS,
)
JSON_SEEDS = (
    '{"instances": [[0.5, 1e3, -2]]}',
    '{"instances": [1.0, 2.0]}',
    '{"inputs": {"x": [[1, 2], [3, 4]]}}',
    '{"signature_name": "serving_default", "instances": [{"x": 1.0}, {"x": NaN}]}',
    '{"inputs": [1, "\\u00e9\\n"]}',
    '{"examples": [{"x": [1.0, 2.0], "y": {"b64": "aGk="}}], "context": {"z": true}}',
    '{"inputs": {"b64": "AA=="}}',
)
WORDS = (
    "null",
    "true",
    "{}",
    "[]",
    "[[",
    "]]",
    '{"b64":"',
    "1e999",
    "-",
    "\\ud800",
    "NaN",
    "18446744073709551616",
    "\x00",
    "\xff",
    "é",
    '"',
    ",",
    ":",
    "1" * 400,
    "[" * 300,
    "x" * 5000,
)


def mutate(data: bytes, random_: random.Random) -> bytes:
    """Return ``data`` with a few bytes changed, taken away, doubled or put in."""
    out = bytearray(data)
    for _ in range(random_.choice((1, 1, 2, 4, 16))):
        at = random_.randrange(len(out) + 1)
        match random_.randrange(5):
            case 0 if at < len(out):
                out[at] = random_.randrange(256)
            case 1:
                del out[at : at + random_.choice((1, 2, 8))]
            case 2:
                out[at:at] = random_.randbytes(random_.choice((1, 2, 8)))
            case 3:
                out[at:at] = out[at : at + random_.choice((2, 8, 32))]
            case _ if at < len(out):
                out[at] ^= 1 << random_.randrange(8)
    return bytes(out)


def tensor(random_: random.Random) -> dict[str, object]:
    """Return a TensorProto as a dictionary, often one that contradicts itself."""
    dims = [
        {"size": random_.choice((0, 1, 2, 3, 784, -1, 1 << 31, 1 << 40, 1 << 62))}
        for _ in range(random_.choice((0, 1, 1, 2, 5, 300)))
    ]
    values: dict[str, object] = {
        "dtype": random_.choice((0, 1, 1, 1, 2, 3, 7, 8, 9, 10, 14, 19, 20, 21, 23, 101, 9999)),
        "tensor_shape": {"dim": dims, "unknown_rank": random_.random() < 0.1},
    }
    for field, some in (
        ("float_val", [1.0, 2.0]),
        ("int_val", [300, -5]),
        ("int64_val", [1]),
        ("half_val", [70000]),
        ("string_val", [b"a" * 30, b""]),
        ("bool_val", [True]),
        ("tensor_content", random_.randbytes(8)),
        ("scomplex_val", [1.0]),
        ("double_val", [0.5]),
    ):
        if random_.random() < 0.25:
            values[field] = some
    return values


def message(random_: random.Random) -> bytes:
    """Return a request with a strange tensor, and sometimes with broken bytes."""
    names = ("half_plus_two", "mlp", "", "nope", "\u00e9")
    request = protos.PredictRequest(
        model_spec={"name": random_.choice(names), "signature_name": random_.choice(("", "serving_default", "zz"))},
        inputs={random_.choice(("x", "x", "y")): tensor(random_) for _ in range(random_.choice((0, 1, 1, 2)))},
        output_filter=random_.choice(((), ("y",), ("y", "y"), ("zz",))),
    )
    data: bytes = request.SerializeToString()
    return mutate(data, random_) if random_.random() < 0.5 else data


def http_request(random_: random.Random) -> bytes:
    """Return an HTTP request with something wrong in its body, its path or its head."""
    body = random_.choice(JSON_SEEDS)
    for _ in range(random_.choice((0, 1, 2))):
        at = random_.randrange(len(body) + 1)
        body = body[:at] + random_.choice(WORDS) + body[at + random_.choice((0, 0, 1, 3)) :]
    data = body.encode("utf-8", "surrogatepass")
    if random_.random() < 0.5:
        data = mutate(data, random_)
    verb = random_.choice(
        (":predict", ":predict", ":predict", ":classify", ":regress", "", "/metadata", ":nope", "/versions/1:predict")
    )
    path = f"/v1/models/{random_.choice(('half_plus_two', 'mlp', 'nope'))}{verb}"
    method = random_.choice(("POST", "POST", "POST", "GET", "PUT", "FOO", "HEAD", "OPTIONS"))
    extra = random_.choice(("", "", "Content-Encoding: gzip\r\n", "Origin: http://a\r\n", "X-A: b\r\n c\r\n"))
    lines = f"{method} {path} HTTP/1.1\r\nHost: x\r\n{extra}Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    head = lines.encode()
    if random_.random() < 0.15:
        head = mutate(head, random_)
    return head + data


def http2_request(random_: random.Random) -> bytes:
    """Return what a client could say on a connection of its own, with frames wrong, or out of place."""
    body = message(random_)
    calls = encode(
        [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", protos.PREDICT.encode()),
            (b"content-type", b"application/grpc"),
            (b"grpc-encoding", random_.choice((b"gzip", b"identity", b"zz"))),
            (b"grpc-timeout", random_.choice((b"1S", b"0n", b"99999999H", b"x"))),
        ]
    )
    data = bytes((random_.choice((0, 0, 0, 1, 2)),)) + len(body).to_bytes(4, "big") + body
    frames = [frame(4, 0, 0, b""), frame(1, 4, 1, calls), frame(0, 1, 1, data)]
    for _ in range(random_.choice((0, 1, 3))):
        number = random_.choice((0, 1, 1, 3, 3, 2, 7, (1 << 31) - 1))
        payload = random_.choice(
            (
                b"",
                bytes(4),
                b"\xff" * 4,
                bytes(8),
                random_.randbytes(6),
                random_.randbytes(40),
                calls,
                mutate(calls, random_),
            )
        )
        extra = frame(random_.randrange(11), random_.choice((0, 1, 4, 5, 8, 0x20, 255)), number, payload)
        frames.insert(random_.randrange(len(frames) + 1), extra)
    sent = PREFACE + b"".join(frames)
    return mutate(sent, random_) if random_.random() < 0.5 else sent


class Server:
    """The embedded server with two small models."""

    def __init__(self, work: Path) -> None:
        subprocess.run([sys.executable, "-P", "-c", MAKE_MODELS, str(work)], check=True, stderr=subprocess.DEVNULL)
        config = work / "models.config"
        entries = "".join(
            f'config {{ name: "{name}" base_path: "{work / name}" model_platform: "tensorflow" }}\n'
            for name in ("mlp", "half_plus_two")
        )
        config.write_text(f"model_config_list {{ {entries} }}")
        batching = work / "batching.config"
        batching.write_text(
            "max_batch_size { value: 8 }\nnum_batch_threads { value: 2 }\nmax_enqueued_batches { value: 100 }\n"
        )
        self.grpc_port, self.rest_port = free_port(), free_port()
        self.log = work / "server.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "servewright.backends.tfserving.embedded",
                    f"--port={self.grpc_port}",
                    f"--rest_api_port={self.rest_port}",
                    f"--model_config_file={config}",
                    "--enable_batching=true",
                    f"--batching_parameters_file={batching}",
                    "--grpc_max_threads=64",
                    "--rest_api_num_threads=32",
                ],
                stdout=log,
                stderr=log,
                env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
            )
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.rest_port)) == 0:
                    break
            if self.process.poll() is not None:
                raise SystemExit(self.log.read_text())
            time.sleep(0.1)
        self.channel = grpc.insecure_channel(f"127.0.0.1:{self.grpc_port}")

    def rpc(self, method: str, data: bytes) -> str:
        """Return the code of a call."""
        try:
            self.channel.unary_unary(method)(data, timeout=30)
        except grpc.RpcError as error:
            return str(error.code().name)
        return "OK"

    def web(self, data: bytes) -> int:
        """Return the status of an HTTP exchange; 0 where the server closed without an answer to half a request."""
        with socket.create_connection(("127.0.0.1", self.rest_port), timeout=30) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
        if not answer:
            return 0
        response = http.client.HTTPResponse(_Bytes(answer))  # type: ignore[arg-type]
        response.begin()
        if (
            response.status == 200
            and response.getheader("Content-Type") == "application/json"
            and b":predict" in data[:80]
        ):
            body = answer.partition(b"\r\n\r\n")[2]
            if body:
                json.loads(body.decode("utf-8", "replace"), strict=False)
        return response.status

    def frames(self, data: bytes) -> str:
        """Return how the server ends a connection: the error of its last word, or ``closed``."""
        with socket.create_connection(("127.0.0.1", self.grpc_port), timeout=30) as connection:
            answer = b""
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                while chunk := connection.recv(65536):
                    answer += chunk
            except (ConnectionResetError, BrokenPipeError):  # it had closed before all was sent
                pass
        at, end = 0, "closed"
        while at + 9 <= len(answer):
            size, kind = int.from_bytes(answer[at : at + 3], "big"), answer[at + 3]
            if kind == 7:
                end = f"goaway {int.from_bytes(answer[at + 13 : at + 17], 'big')}"
            at += 9 + size
        return end

    def healthy(self) -> bool:
        """Tell whether a plain request is still answered rightly."""
        good = b'{"instances": [1.0]}'
        line = "POST /v1/models/half_plus_two:predict HTTP/1.1"
        head = f"{line}\r\nContent-Length: {len(good)}\r\nConnection: close\r\n\r\n"
        if self.process.poll() is not None or self.web(head.encode() + good) != 200:
            return False
        tensor = {"dtype": 1, "tensor_shape": {"dim": [{"size": 1}]}, "float_val": [1.0]}
        plain = protos.PredictRequest(model_spec={"name": "half_plus_two"}, inputs={"x": tensor})
        return self.rpc(protos.PREDICT, plain.SerializeToString()) == "OK"


class _Bytes:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, *_: object) -> object:
        import io

        return io.BytesIO(self._data)


def one(server: Server, seed: int) -> tuple[str, str]:
    """Send one request; return its kind with the answer, and a complaint or nothing."""
    random_ = random.Random(seed)
    way = random_.random()
    if way < 0.2:
        data = http2_request(random_)
        try:
            return f"http2 {server.frames(data)}", ""
        except OSError as error:
            return "http2 failed", f"{data!r}: {error!r}"
    if way < 0.6:
        method = protos.PREDICT if random_.random() < 0.8 else random_.choice(METHODS)
        data = message(random_)
        code = server.rpc(method, data)
        wrong = "" if code in CODES else f"{method} {base64.b64encode(data).decode()}: {code}"
        return f"grpc {code}", wrong
    data = http_request(random_)
    try:
        status = server.web(data)
    except (OSError, ValueError, http.client.HTTPException) as error:
        return "http failed", f"{data!r}: {error!r}"
    return f"http {status or 'closed'}", "" if status in STATUSES or status == 0 else f"{data!r}: {status}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=8)
    arguments = parser.parse_args()
    server = Server(Path(tempfile.mkdtemp(prefix="fuzz-")))
    memory = psutil.Process(server.process.pid).memory_info
    seen: Counter[str] = Counter()
    wrong: list[str] = []
    settled, began, step = 0, time.monotonic(), 2000
    try:
        with concurrent.futures.ThreadPoolExecutor(arguments.threads) as pool:
            for start in range(0, arguments.requests, step):
                seeds = range(
                    arguments.seed * 10**9 + start, arguments.seed * 10**9 + min(start + step, arguments.requests)
                )
                for kind, complaint in pool.map(lambda seed: one(server, seed), seeds):
                    seen[kind] += 1
                    if complaint:
                        wrong.append(complaint)
                if not server.healthy():
                    wrong.append(f"not healthy after request {start + step}: {server.process.poll()}")
                    break
                if start == step * (arguments.requests // step // 5):
                    settled = memory().rss  # a fifth in: caches and pools are filled
        grown = memory().rss - settled if settled and server.process.poll() is None else 0
        if grown > MOST_GROWTH:
            wrong.append(f"memory grew by {grown >> 20} MiB")
        unexpected = [line for line in server.log.read_text(errors="replace").splitlines() if "Traceback" in line]
        wrong += unexpected[:5]
    finally:
        server.process.kill()
    for kind, count in sorted(seen.items()):
        print(f"{kind:<28} {count:>8}")
    print(
        f"{sum(seen.values())} requests in {time.monotonic() - began:.0f} s, memory grew by {grown >> 20} MiB, "
        f"{len(wrong)} wrong"
    )
    for complaint in wrong[:20]:
        print(complaint[:1500])
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()

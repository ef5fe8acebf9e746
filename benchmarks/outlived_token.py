"""Talk to TorchServe for longer than its tokens live: a load over HTTP, one over gRPC, and a client of its own.

    python benchmarks/outlived_token.py --minutes 70

A token lives for 60 minutes. The two loads take turns of five minutes; the second half of the run is one long load over
each, so that the last of them outlives the key that it began with. Meanwhile a client asks for predictions, and for the
models through the management API. It fails where a request was refused, or where no key was ever renewed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from surfaces import models

from servewright import registry
from servewright.backends.torchserve.process import KEY_FILE
from servewright.backends.torchserve.tokens import Tokens
from servewright.errors import ServewrightError
from servewright.load.arrivals import Arrivals
from servewright.load.requests import endpoint
from servewright.load.running import measure
from servewright.load.workload import Workload
from servewright.serving import Served, serve
from servewright.specfile import load as load_spec

PROPERTY = "torchserve: {{properties: {{token_expiration_min: {}}}}}\n"
RATE, CLIENT_EVERY_S = 2.0, 10.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=70.0)
    parser.add_argument("--token-minutes", type=float, help="how long a token lives (default: the server's 60 minutes)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        spec = models.write("mlp", "torchserve", Path(folder) / "mlp")
        if options.token_minutes:
            spec.write_text(spec.read_text() + PROPERTY.format(options.token_minutes))
        with serve(spec, backend="torchserve", runtime="process") as served:
            failed = talk(served, spec, options.minutes * 60, options.token_minutes or 60.0)
    return 1 if failed else 0


def talk(served: Served, spec: Path, seconds: float, token_minutes: float) -> bool:
    """Return whether anything was refused, or no key was renewed."""
    begin = time.monotonic()
    keys: dict[str, set[str]] = {"inference": set(), "management": set()}
    problems: list[str] = []
    asked = [0]
    over = threading.Event()
    assert served.server.handle is not None
    key_file = served.server.handle.file(KEY_FILE)

    def client() -> None:
        row = {"x": np.zeros((1, 784), np.float32)}
        while not over.wait(CLIENT_EVERY_S):
            for transport in ("http", "grpc"):
                try:
                    served.predict(row, transport=transport)  # type: ignore[arg-type]
                    asked[0] += 1
                except ServewrightError as error:
                    problems.append(f"{time.monotonic() - begin:.0f} s, {transport}: {error}")
            try:
                served.client.models()
                asked[0] += 1
            except ServewrightError as error:
                problems.append(f"{time.monotonic() - begin:.0f} s, management: {error}")
            tokens = Tokens.read(key_file)
            for kind, token in (("inference", tokens.inference), ("management", tokens.management)):
                keys[kind].add(hashlib.sha256(token.key.encode()).hexdigest()[:8])

    thread = threading.Thread(target=client)
    thread.start()
    errors, sent = 0, 0
    try:
        while (left := seconds - (time.monotonic() - begin)) > 1:
            # The last half is one load: its own headers must outlive the key that it began with.
            half = left <= seconds / 2 + 1
            for transport in ("http", "grpc"):
                seen = one_load(served, spec, transport, left / 2 if half else min(300.0, left / 4))
                errors, sent = errors + sum(seen.errors.values()), sent + len(seen.latency)
                print(
                    f"{(time.monotonic() - begin) / 60:5.1f} min, {transport}: {json.dumps(dict(seen.errors))} errors",
                    flush=True,
                )
    finally:
        over.set()
        thread.join()
    print(f"{sent} requests of loads, {errors} failed; {asked[0]} of the client, {len(problems)} failed")
    print(f"keys seen: {len(keys['inference'])} for inference, {len(keys['management'])} for management")
    for line in problems[:10]:
        print(f"  {line}")
    return bool(errors or problems or (seconds > token_minutes * 60 and min(map(len, keys.values())) < 2))


def one_load(served: Served, spec: Path, transport: str, seconds: float):
    backend = registry.get("torchserve")
    document = load_spec(spec, backends=registry.names())
    row = {"x": np.zeros((1, 784), np.float32)}
    payloads = tuple(backend.payloads(document.spec, [row], transport))
    workload = Workload(
        endpoint=endpoint(served.server, transport), payloads=payloads, pace=Arrivals(rate=RATE),
        duration_s=seconds, warm_up_s=0.0, timeout_s=60.0, settle=False,
    )  # fmt: skip
    return measure(workload, headers=lambda: served.headers)


if __name__ == "__main__":
    sys.exit(main())

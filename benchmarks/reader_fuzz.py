"""Hostile files by the hundred thousand: every reader gives a valid result or an error of ours, in bounded time.

``python benchmarks/reader_fuzz.py [--inputs 100000] [--seed 1] [--corpus FOLDER]``. The readers of protobuf texts,
properties, YAML, commands, manifests, pickles, archives and torch files get mutations of real and made-up files; where
another reader of the format is at hand (protobuf's own, libyaml, zipfile), both must agree. The work is done in child
processes that write down which input they are at, so a crash or a hang is told with the number that brings it back.
Exits 1 where there is any.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import hostile_inputs

BOUND_S = 2.0  # of a CPU, for one input
HANG_S = 120.0  # by the clock, on however busy a machine
MOST_MEMORY = 1 << 30


def child(corpus: Path | None, seed: int, first: int, last: int, step: int, state: Path) -> None:
    """Read the inputs of some numbers, and print what came of it as JSON."""
    readers = hostile_inputs.readers(corpus)
    taken, seconds, worst, count = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    failures = []

    def hang(_: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"no end after {HANG_S} s, at {traceback.format_stack(frame, 1)[0].strip()}")

    signal.signal(signal.SIGALRM, hang)
    with tempfile.TemporaryDirectory() as folder, state.open("r+b") as file, mmap.mmap(file.fileno(), 8) as place:
        for number in range(first, last, step):
            place[:] = struct.pack("<q", number)
            reader, content = hostile_inputs.made(readers, seed, number)
            signal.setitimer(signal.ITIMER_REAL, HANG_S)
            start = time.process_time()
            try:
                taken[reader.name] += reader.read(content, Path(folder))
            except Exception as error:  # noqa: BLE001  (any at all is what is looked for)
                at = traceback.extract_tb(error.__traceback__)[-1]
                failures.append(
                    [number, reader.name, f"{type(error).__name__}: {error} ({at.filename}:{at.lineno})"[:500]]
                )
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            spent = time.process_time() - start
            count[reader.name] += 1
            seconds[reader.name] += spent  # type: ignore[assignment]
            worst[reader.name] = max(worst[reader.name], spent)  # type: ignore[assignment]
            if spent > BOUND_S:
                failures.append([number, reader.name, f"took {spent:.2f} s"])
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    told = {"count": count, "taken": taken, "seconds": seconds, "worst": worst, "failures": failures, "memory": memory}
    print(json.dumps(told))


def main() -> int:
    """Run the whole, print a table, and return 1 where an input did what none may."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--corpus", type=Path, default=os.environ.get("SERVEWRIGHT_CORPUS"))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--part", type=int, nargs=3, metavar=("FIRST", "LAST", "STEP"), help=argparse.SUPPRESS)
    parser.add_argument("--state", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.part:
        child(given.corpus, given.seed, *given.part, given.state)
        return 0
    started, failures, memory = time.monotonic(), [], 0
    count, taken, seconds, worst = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        running = []
        for part in range(given.processes):
            state = Path(folder) / f"{part}"
            state.write_bytes(bytes(8))
            words = [sys.executable, __file__, "--seed", str(given.seed), "--state", str(state)]
            words += ["--part", str(part), str(given.inputs), str(given.processes)]
            words += ["--corpus", str(given.corpus)] if given.corpus else []
            running.append(
                (state, subprocess.Popen(words, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True))
            )
        for state, process in running:
            output, _ = process.communicate()
            if process.returncode:
                (number,) = struct.unpack("<q", state.read_bytes())
                failures.append([number, "?", f"the process ended with {process.returncode} at this input"])
                continue
            told = json.loads(output)
            failures += told["failures"]
            memory = max(memory, told["memory"])
            for name, value in told["count"].items():
                count[name] += value
                taken[name] += told["taken"].get(name, 0)
                seconds[name] += told["seconds"][name]
                worst[name] = max(worst[name], told["worst"][name])
    print(f"{sum(count.values())} inputs, seed {given.seed}, {time.monotonic() - started:.0f} s by the clock, "
          f"{sum(seconds.values()):.0f} s of CPU, at most {memory >> 20} MiB")  # fmt: skip
    print("| reader | inputs | taken | refused | ms a file | slowest, ms |\n|---|---|---|---|---|---|")
    for name, value in count.items():
        print(f"| {name} | {value} | {taken[name]} | {value - taken[name]} | {1000 * seconds[name] / value:.2f} "
              f"| {1000 * worst[name]:.0f} |")  # fmt: skip
    for number, name, what in failures:
        print(f"FAILED input {number} ({name}): {what}")
    if memory > MOST_MEMORY:
        print(f"FAILED: {memory} bytes of memory")
    return 1 if failures or memory > MOST_MEMORY or sum(count.values()) < given.inputs else 0


if __name__ == "__main__":
    sys.exit(main())

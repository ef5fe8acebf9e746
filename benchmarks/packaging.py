"""Measure our archive of random weights beside Python's own stored zip and torch-model-archiver's default.

Each packs the same weights to the same disk, in turn, round by round; ours includes its digest and the flush to the
disk, the others have neither. Prints how many times as long the others take: the medians over the rounds' ratios.
With ``--register``, a real TorchServe then registers directory forms of growing size, beside archives of the same.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "adapters"))

from servewright.archive import write_zip
from servewright.backends.torchserve.archive import mar_members
from servewright.tree import assemble_tree
from servewright.units import parse_size_bytes

HANDLER = "def handle(data, context):\n    return data and [b'' for _ in data]\n"


def members_of(home: Path, name: str, size: int) -> dict[str, Path | bytes]:
    """Return the members of an archive with ``size`` random bytes of weights, made in ``home``."""
    weights, handler = home / f"{name}.bin", home / "handler_of_benchmark.py"
    with weights.open("wb") as file:
        for _ in range(size >> 20):
            file.write(os.urandom(1 << 20))
    handler.write_text(HANDLER)
    model = {"modelName": name, "modelVersion": "1.0", "handler": f"{handler.name}:handle"}
    return mar_members(
        manifest_json=json.dumps({"runtime": "python", "model": model}),
        model_config_yaml="minWorkers: 1\nmaxWorkers: 1\n",
        model_file=weights,
        extra={},
        handler=handler,
        requirements=None,
        code=None,
    )


def with_zipfile(target: Path, members: dict[str, Path | bytes]) -> None:
    """Pack with the standard library, stored."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            if isinstance(content, Path):
                archive.write(content, name)
            else:
                archive.writestr(name, content)


def with_archiver(target: Path, members: dict[str, Path | bytes]) -> None:
    """Pack with torch-model-archiver's default format, deflated."""
    weights = next(content for name, content in members.items() if name.endswith(".bin") and isinstance(content, Path))
    handler = weights.with_name("handler_of_benchmark.py")
    # It stages in $TMPDIR/<model name>, and removes whatever lies there first.
    with tempfile.TemporaryDirectory(dir=target.parent) as private:
        subprocess.run(
            [
                Path(sys.executable).with_name("torch-model-archiver"),
                *("--model-name", target.stem, "--version", "1.0", "--force"),
                *("--serialized-file", weights, "--handler", handler, "--export-path", target.parent),
            ],
            env=os.environ | {"TMPDIR": private},
            check=True,
            capture_output=True,
        )


def timed(
    pack: Callable[[Path, dict[str, Path | bytes]], object], members: dict[str, Path | bytes], home: Path
) -> float:
    """Return the seconds that ``pack`` takes; what it wrote is removed."""
    target = home / "packed.mar"
    start = time.perf_counter()
    pack(target, members)
    taken = time.perf_counter() - start
    target.unlink()
    # What one leaves to the system to write and free is not to be charged to the next.
    os.sync()
    return taken


def pack_rounds(home: Path, size: int, rounds: int, archiver_rounds: int) -> dict[str, object]:
    """Return the seconds of each way to pack, round by round, and the ratios."""
    members = members_of(home, "weights", size)
    ways = {"ours": write_zip, "zipfile": with_zipfile, "archiver": with_archiver}
    for way in ("ours", "zipfile"):  # once, unmeasured: the weights are in memory from now on, and imports done
        timed(ways[way], members, home)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds):
        for way in ("ours", "zipfile") if number % 2 == 0 else ("zipfile", "ours"):
            seconds[way].append(timed(ways[way], members, home))
        if number < archiver_rounds:
            seconds["archiver"].append(timed(with_archiver, members, home))
    ratios = {
        way: statistics.median(theirs / ours for theirs, ours in zip(seconds[way], seconds["ours"], strict=False))
        for way in ("zipfile", "archiver")
        if seconds[way]
    }
    return {"bytes": size, "seconds": seconds, "times_as_long_as_ours": ratios}


def register_rounds(home: Path, sizes: list[int], rounds: int) -> dict[str, dict[str, float]]:
    """Return the median seconds that TorchServe takes to register each size, as a directory and as an archive."""
    from integration.test_torchserve_process import torchserve

    store = home / "store"
    stored: dict[str, dict[str, str]] = {}
    for size in sizes:
        members = members_of(home, f"w{size}", size)
        assemble_tree(store / f"d{size}", members)
        write_zip(store / f"a{size}.mar", members)
        stored[f"{size >> 20} MiB"] = {"directory": f"d{size}", "archive": f"a{size}.mar"}
    write_zip(store / "first.mar", members_of(home, "first", 0))
    found: dict[str, dict[str, float]] = {}
    with torchserve(store, "first", model_api=True) as served:
        served.wait_ready("first")
        for label, forms in stored.items():
            found[label] = {}
            for form, file in forms.items():
                seconds = []
                for _ in range(rounds):
                    start = time.perf_counter()
                    # Without a worker: how long its Python takes to start is not the question.
                    served.client.register(file, name="benchmark", workers=0)
                    seconds.append(time.perf_counter() - start)
                    served.client.unregister("benchmark")
                found[label][form] = statistics.median(seconds)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=parse_size_bytes, default="1GiB", help="of the weights")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--archiver-rounds", type=int, default=1, help="of torch-model-archiver, which takes a minute")
    parser.add_argument("--register", action="store_true", help="also register with a real TorchServe")
    parser.add_argument("--dir", type=Path, help="where to write; the system's temporary directory if left out")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory(dir=arguments.dir, prefix="packaging-") as directory:
        home = Path(directory)
        report = pack_rounds(home, arguments.size, arguments.rounds, arguments.archiver_rounds)
        if arguments.register:
            sizes = [arguments.size >> 10, arguments.size >> 5, arguments.size]
            report["register_seconds"] = register_rounds(home, sizes, arguments.rounds)
    if arguments.json:
        print(json.dumps(report, indent=2))
        return
    print(f"{arguments.size >> 20} MiB of random weights")
    for way, seconds in report["seconds"].items():  # type: ignore[attr-defined]
        if seconds:
            print(f"  {way:9} {statistics.median(seconds):8.2f} s  ({', '.join(f'{each:.2f}' for each in seconds)})")
    for way, ratio in report["times_as_long_as_ours"].items():  # type: ignore[attr-defined]
        print(f"  {way} takes {ratio:.2f} times as long as ours")
    for label, forms in report.get("register_seconds", {}).items():  # type: ignore[attr-defined]
        print(f"  registering {label:>9}: " + ", ".join(f"{form} {each:.3f} s" for form, each in forms.items()))


if __name__ == "__main__":
    main()

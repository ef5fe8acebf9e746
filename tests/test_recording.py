"""Recordings of surfaces that are stopped, at whatever moment, and go on: nothing is lost, nothing measured again."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from servewright import registry
from servewright.errors import InputError

# Behind all others: the folder has a packaging.py, which must not stand in for a library that others import.
sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))
from surfaces import recording
from surfaces.surface import read

if TYPE_CHECKING:
    from conftest import Workshop

STOPS = 20
TOGETHER = 4  # cells between two looks at the reference: so many settings are served side by side
NAME = "tfserving-toy"
Record = Callable[[int, int], int]


@pytest.fixture
def record(tmp_path: Path, workshop: Workshop) -> Iterator[Record]:
    """Return what records until so many measurements were answered, sends itself a signal then, and says its end."""
    spec = workshop.write(workshop.values(registry.get("tfserving")))
    command = [sys.executable, str(Path(__file__).with_name("recording_toys.py")), str(spec), str(tmp_path)]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:

        def ended(answers: int, number: int) -> int:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(f"{answers} {number}\n")
            process.stdin.flush()
            return int(process.stdout.readline())

        yield ended
        process.kill()


def cells(path: Path) -> list[tuple[str, int]]:
    """Return the cells that are recorded, in the words of what was asked for, with their pass."""
    found = []
    for line in path.read_bytes().splitlines():
        fact = json.loads(line)
        if fact["kind"] == "cell":
            settings, load = fact["settings"], fact["load"]
            asked = load.get("concurrency") or f"{load['rate']:g}/s"
            found.append((f"{settings['max_batch_size']} {settings['num_batch_threads']} {asked}", fact["again"]))
    return found


def facts(path: Path, kind: str) -> list[dict[str, Any]]:
    return [fact for fact in map(json.loads, path.read_bytes().splitlines()) if fact["kind"] == kind]


def test_no_stop_loses_a_cell_or_measures_one_twice(tmp_path: Path, record: Record) -> None:
    """Killed or interrupted at random moments, also while a line is written, each cell is there once at the end."""
    chance, path, asked = random.Random(3), tmp_path / f"{NAME}.jsonl", tmp_path / "asked"
    path.write_bytes(b'{"kind": "stu')  # killed before the first line was whole
    runs: list[tuple[list[tuple[str, int]], Counter[str]]] = []
    stops, before = 0, b""
    while True:
        known = cells(path) if before else []
        had_loads = bool(before) and bool(facts(path, "loads"))
        sent = chance.choice([signal.SIGKILL, signal.SIGINT])
        asked.write_text("")
        torn = chance.choice([b"", b'{"kind": "cell", "settings": {"max_ba']) if before else b""
        path.write_bytes((before or path.read_bytes()) + torn)
        code = record(chance.randint(0, 16) if stops < STOPS else 10**6, sent)
        content = path.read_bytes()
        assert content.startswith(before)  # what was known is known still
        before = content[: content.rfind(b"\n") + 1]
        assert code in (0, -sent if sent == signal.SIGKILL else 130), (tmp_path / "said").read_text()
        # What comes before the loads are known is no cell.
        told = Counter(asked.read_text().splitlines() if had_loads else [])
        runs.append((known, told))
        if code == 0:
            break
        stops += 1
    assert stops == STOPS
    found = cells(path)
    assert Counter(found).most_common(1)[0][1] == 1
    assert {each for each in found if each[1] < 2} == {
        (cell, again) for cell in {name for name, _ in found} for again in (0, 1)
    }
    assert len({name for name, _ in found}) == 6 * 4  # settings, loads
    rounds = facts(path, "deciding")
    assert rounds
    for each in rounds:
        measured = {name for name, again in found if again in each["passes"]}
        assert all((name, again) in found for name in measured for again in each["passes"])
        assert len(measured) == len(each["cells"]) + len(each["beside"])
    wanted = Counter(name for name, _ in found)
    for known, told in runs:
        left = wanted - Counter(name for name, _ in known)
        assert not {name: count for name, count in told.items() if name in wanted and count > left[name]}
    measured_in_all = sum(told[name] for _, told in runs for name in wanted)
    assert measured_in_all <= len(found) + stops * TOGETHER
    assert len(facts(path, "service_times")) == len(facts(path, "loads")) == 1
    assert [fact["again"] for fact in facts(path, "pass")] == [1]
    assert read(path).points


@pytest.fixture
def about() -> dict[str, Any]:
    """Say what the first line of a surface does, of some machine."""
    machine = {"cpu": "A", "cores": 2, "memory": 10, "system": "Linux 6", "python": "3.12"}
    return {"surface": NAME, "machine": machine, "versions": {"servewright": "1", "torch": "2"}}


@pytest.mark.parametrize(
    ("change", "said"),
    [({"machine": {"cpu": "B", "cores": 2}}, "cpu was A, is B"),
     ({"machine": {"cpu": "A", "cores": 4}}, "cores was 2, is 4"),
     ({"versions": {"servewright": "1", "torch": "3"}}, "torch was 2, is 3"),
     ({"versions": {"servewright": "1"}}, "torch was 2, is absent")],
)  # fmt: skip
def test_another_machine_does_not_go_on(
    tmp_path: Path, about: dict[str, Any], change: dict[str, Any], said: str
) -> None:
    """What it measures would count as the first machine's: it is told to record into another folder."""
    path = tmp_path / f"{NAME}.jsonl"
    recording.begun(path, about)
    content = path.read_bytes()
    with pytest.raises(InputError, match=rf"{said}\); .*another --folder"):
        recording.begun(path, about | change)
    assert path.read_bytes() == content


def test_the_same_machine_goes_on_another_day(tmp_path: Path, about: dict[str, Any]) -> None:
    """A rented one has another kernel then, and a few pages more; a torn line is cut off."""
    path = tmp_path / f"{NAME}.jsonl"
    recording.begun(path, about)
    content = path.read_bytes()
    path.write_bytes(content + b'{"kind": "ce')
    machine = about["machine"] | {"memory": 11, "system": "Linux 7"}
    assert recording.begun(path, about | {"machine": machine}).head["machine"] == about["machine"]
    assert path.read_bytes() == content


def test_what_is_recorded_can_go_on() -> None:
    """The first line of every surface that is here says what is compared."""
    for path in recording.HERE.glob("*.jsonl"):
        head = json.loads(path.read_bytes().partition(b"\n")[0])
        assert {"cpu", "cores", "torch", "tensorflow"} <= set(recording._traits(head)), path

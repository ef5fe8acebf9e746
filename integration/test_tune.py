"""Tuning real servers within a small budget, and studies that are killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from integration.conftest import Models
from servewright import yamltext
from servewright.cli import run
from servewright.tuning import study

SMALL = ("--each", "1s", "--rounds", "2", "--concurrency", "8", "--time", "5m")
KILLS = 20
TOYS = Path(__file__).parent.parent / "tests"
# Studies on a simulated server, in the folders that it is told; it says which process each is, and how that ended.
PROGRAM = """
import json, os, sys, time
from pathlib import Path
sys.path.append(sys.argv[1])
from servewright.tuning.journal import NAME, Journal
from servewright.tuning.recalling import Recalling
from servewright.tuning.search import search
from tuning_toys import GRID, SCHEDULER, Simulated, goal

class Bench(Simulated):
    def measure(self, question):
        time.sleep(0.02)
        return super().measure(question)

def run(folder):
    path = Path(folder) / NAME
    journal = Journal.resume(path) if path.exists() and b"\\n" in path.read_bytes() else Journal.create(path, {})
    asked = goal(p99_ms=100.0, budget=11)
    found = search(GRID, asked, SCHEDULER, Recalling(Bench(asked), journal), rounds=1)
    (Path(folder) / "found.json").write_text(json.dumps([found.best.settings, len(found.measurements)]))

# Imports take longer than a study: each is a child that has them already.
for line in sys.stdin:
    child = os.fork()
    if not child:
        run(line.strip())
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Studies:
    """Runs studies, one after the other, in children of one process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def run(self, folder: Path, kill_after_s: float | None) -> int:
        """Run a study to its end, or kill it so long after it began; return its exit code."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{folder}\n")
        self.process.stdin.flush()
        child = int(self.process.stdout.readline())
        timer = threading.Timer(kill_after_s or 0.0, os.kill, (child, signal.SIGKILL))
        if kill_after_s is not None:
            timer.start()
        code = int(self.process.stdout.readline())
        timer.cancel()
        return code


@pytest.fixture
def studies() -> Iterator[Studies]:
    command = [sys.executable, "-c", PROGRAM, str(TOYS)]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        limit = threading.Timer(600.0, process.kill)
        limit.start()
        yield Studies(process)
        process.kill()
        limit.cancel()


@pytest.mark.timeout(600)
def test_no_kill_loses_a_measurement(tmp_path: Path, studies: Studies) -> None:
    """Killed at twenty random moments, studies find what one finds that is left alone, and lose nothing on the way."""
    (tmp_path / "whole").mkdir()
    begin = time.monotonic()
    assert studies.run(tmp_path / "whole", None) == 0
    lasted = time.monotonic() - begin
    whole = json.loads((tmp_path / "whole" / "found.json").read_text())
    chance = random.Random(5)
    kills = number = 0
    while kills < KILLS:
        number += 1
        folder = tmp_path / str(number)
        folder.mkdir()
        journal, before, code = folder / "journal.jsonl", b"", -1
        while code != 0:
            code = studies.run(folder, chance.uniform(0.0, lasted) if kills < KILLS else None)
            content = journal.read_bytes() if journal.exists() else b""
            assert content.startswith(before)  # what was known is known still
            before = content[: content.rfind(b"\n") + 1]
            assert code in (0, -signal.SIGKILL)
            kills += code != 0
        assert json.loads((folder / "found.json").read_text()) == whole
        kinds = [json.loads(line)["kind"] for line in before.splitlines()]
        assert kinds.count("measured") == whole[1]  # none was made twice
        assert kinds.count("service_times") == 1


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("backend", "model_format"), [("tfserving", "saved_model"), ("torchserve", "torchscript")])
def test_a_small_budget_is_enough(
    backend: str, model_format: str, models: Models, tmp_path: Path, left_behind: Callable[[], list[str]]
) -> None:
    """A study of each server ends with a comparison; what it writes is a spec that means the winner."""
    batching = "batching: {max_size: 8, max_delay: 5ms, allowed_sizes: [4, 8]}  # for now\n"
    spec = models.spec(tmp_path / "digits.yaml", model_format, extra=batching)
    text = spec.read_text()
    folder = tmp_path / "study"
    code = run(["tune", str(spec), "-b", backend, "--budget", "7", "-o", str(folder), *SMALL])
    found = study.load(folder)
    assert code == 0, found.conclusion
    assert found.server.backend == backend
    assert found.server.stand_in is ("embedded" in found.server.name)
    assert len(found.measurements) + len(found.service_times) <= 7
    assert found.comparison is not None
    assert len(found.comparison.rounds) == 2
    assert spec.read_text() == text
    tuned = tmp_path / "digits.tuned.yaml"
    assert tuned.exists() is (found.winner is not None)
    if found.winner is not None:
        written = tuned.read_text()
        assert "# for now" in written
        assert ("stand-in" in written) is found.server.stand_in
        values = yamltext.parse(written.encode(), file="tuned").value
        assert values["batching"]["max_size"] == found.winner.keys["batching.max_size"]
        assert any((folder / "config").iterdir())
        assert run(["render", str(tuned), "-b", backend]) == 0
        assert run(["plan", str(folder), "--rate", "5k/s"]) == 0
    assert left_behind() == []


@pytest.mark.timeout(600)
def test_ctrl_c_keeps_what_there_is(models: Models, tmp_path: Path, left_behind: Callable[[], list[str]]) -> None:
    """An interrupted study is written, leaves no server, and goes on where it was."""
    spec = models.spec(tmp_path / "digits.yaml", "saved_model")
    folder = tmp_path / "study"
    words = ["tune", str(spec), "-b", "tfserving", "-r", "embedded", "--budget", "7", "-o", str(folder), *SMALL]
    command = [sys.executable, "-m", "servewright", *words]
    assert interrupted(command, "calibrate:") == 130
    first = study.load(folder)
    assert first.state == "interrupted"
    assert "interrupted" in (folder / "report.html").read_text()
    assert len(first.measurements) >= 1
    assert run([*words, "--resume"]) == 0
    second = study.load(folder)
    assert second.measurements[: len(first.measurements)] == first.measurements
    assert second.state in ("complete", "spent")
    assert run(words) == 2  # a study is not written over
    # Given more, and stopped before it measures anything: what was known is written still.
    assert second.comparison is not None
    assert interrupted([*command, "--resume", "--rounds", "3", "--budget", "8"], "look for") == 130
    third = study.load(folder)
    assert (third.state, third.measurements, third.goal.budget) == ("interrupted", second.measurements, 8)
    assert third.comparison == second.comparison
    assert "not compared" not in third.conclusion
    assert left_behind() == []


def interrupted(command: list[str], at: str) -> int:
    """Run a command, press Ctrl-C when it says ``at``, and return its exit code."""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        limit = threading.Timer(180.0, process.kill)
        limit.start()
        for line in process.stderr:
            if at in line:
                process.send_signal(signal.SIGINT)
                break
        process.stderr.read()
        limit.cancel()
    return process.wait()

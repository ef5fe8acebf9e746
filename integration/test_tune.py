"""Tuning real servers within a small budget, and studies that are killed."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from integration.conftest import Models, Need
from servewright import yamltext
from servewright.cli import run
from servewright.load.measurement import Measurement
from servewright.load.workload import Pace
from servewright.processes import wait_until
from servewright.tuning import study, tuner
from servewright.tuning.live import LiveBench, Serving
from servewright.tuning.search import Question

SMALL = ("--each", "1s", "--rounds", "2", "--concurrency", "8", "--time", "5m")
# How often searches, and the command, are killed: a few times, unless somebody asks for more, as `make bench` does.
KILLS, COMMAND_KILLS = (int(os.environ.get("SERVEWRIGHT_KILLS", "") or few) for few in (6, 3))
BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
SURFACE = "torchserve-transformer"
# Studies of a recorded surface, in the folders that it is told; it says which process each is, and how that ended.
PROGRAM = """
import json, os, sys, time
from pathlib import Path
# Behind all others: the folder has a packaging.py, which must not stand in for a library that others import.
sys.path.append(sys.argv[1])
from surfaces.surface import surfaces
from tuner_replay import Recording, goal_of
from servewright.tuning.journal import NAME, Journal
from servewright.tuning.recalling import Recalling
from servewright.tuning.search import search

(surface,) = surfaces([sys.argv[2]])
grid = surface.tried[::3]  # a study of all of them takes three times as long, of which it simulates most
asked = goal_of(surface, surface.promises_ms[1], 14, 0)

class Bench(Recording):
    def measure(self, question):
        time.sleep(0.1)  # a measurement lasts
        return super().measure(question)

def run(folder):
    path = Path(folder) / NAME
    journal = Journal.resume(path) if path.exists() and b"\\n" in path.read_bytes() else Journal.create(path, {})
    bench = Recalling(Bench(surface, asked), journal)
    found = search(grid, asked, surface.scheduler, bench, rounds=1)
    best = found.best.model_dump(mode="json")
    (Path(folder) / "found.json").write_text(json.dumps([best, len(found.measurements)]))

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
    command = [sys.executable, "-c", PROGRAM, str(BENCHMARKS), SURFACE]
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
    """Killed at random moments, studies of a recorded surface find what one finds that is left alone."""
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


@pytest.mark.timeout(900)
def test_no_kill_of_the_command_loses_a_measurement(
    models: Models, tmp_path: Path, need: Need, left_behind: Callable[[], list[str]]
) -> None:
    """Killed at random moments and resumed, a study of a real server ends, and nothing of it was measured twice."""
    need("tfserving", "embedded")
    chance, kills, studies = random.Random(7), 0, 0
    while kills < COMMAND_KILLS:
        studies += 1
        (tmp_path / str(studies)).mkdir()
        spec = models.spec(tmp_path / str(studies) / "digits.yaml", "saved_model")
        folder = spec.with_name("study")
        words = ["tune", str(spec), "-b", "tfserving", "-r", "embedded", "--budget", "7", "-o", str(folder), *SMALL]
        journal, before, code = folder / "journal.jsonl", b"", -1
        while code != 0:
            command = [sys.executable, "-m", "servewright", *words, *(["--resume"] if before else [])]
            moment = (len(before.splitlines()) + chance.randint(0, 3), chance.uniform(0.0, 3.0))
            code = killed(command, journal, moment if kills < COMMAND_KILLS else None)
            kills += code != 0
            content = journal.read_bytes() if journal.exists() else b""
            assert content.startswith(before)  # what was known is known still
            before = content[: content.rfind(b"\n") + 1]
            if code:
                known = [json.loads(line)["kind"] for line in before.splitlines()]
                print(f"killed {moment[1]:.1f} s after {moment[0]} facts; the last is {known[-1]}", flush=True)
        found = study.load(folder)
        assert found.state in ("complete", "spent")
        facts = [json.loads(line) for line in before.splitlines()]
        measured = [fact["measured"] for fact in facts if fact["kind"] == "measured"]
        assert measured == [each.model_dump(mode="json") for each in found.measurements]
        assert [each["index"] for each in measured] == list(range(len(measured)))  # each once
        timed = [fact["found"] for fact in facts if fact["kind"] == "service_time"]
        assert timed == [each.model_dump(mode="json") for each in found.service_times]
        assert found.comparison is not None
        assert [fact["round"]["index"] for fact in facts if fact["kind"] == "round"] == [0, 1]
        assert not any(each.unsafe for each in found.measurements)
        assert left_behind() == []
        print(f"study {studies} ended after {kills} kills in all: {len(measured)} measurements", flush=True)


def killed(command: list[str], journal: Path, moment: tuple[int, float] | None) -> int:
    """Run a command, kill it at a moment, and return its exit code once all of it has ended.

    The moment is so many seconds after the journal has so many facts; without one it runs to its end. What it started
    notices by itself, and its ports are free then.
    """
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        limit = threading.Timer(300.0, process.kill)
        limit.start()
        said = process.stderr.readline()  # it has begun
        if moment is not None:
            facts, rest_s = moment
            wait_until(
                lambda: process.poll() is not None or journal.read_bytes().count(b"\n") >= facts,
                within_s=300.0, every_s=0.02, what="the moment comes",
            )  # fmt: skip
            with suppress(subprocess.TimeoutExpired):
                process.wait(rest_s)
            process.kill()
        code = process.wait()
        limit.cancel()
        orphans = started()
        ports = [port for each in orphans for port in listening(each)]
        wait_until(lambda: not started(), within_s=30.0, every_s=0.1, what="all that was started ends")
        said += process.stderr.read()
    assert code in (0, -signal.SIGKILL), said
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
    return code


def started() -> list[psutil.Process]:
    """Return the processes that a command of this test started, whoever is their parent by now."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get("TMPDIR") == tempfile.gettempdir():
                found.append(process)
    return found


def listening(process: psutil.Process) -> list[int]:
    with suppress(psutil.Error):
        sockets = process.net_connections(kind="tcp")
        return [each.laddr.port for each in sockets if each.status == psutil.CONN_LISTEN]
    return []


class Deadly(LiveBench):
    """A real server that is killed while it answers the load of one measurement."""

    index, killed = 1, 0

    def measure(self, question: Question) -> study.Measured:
        self.doomed = question.index == self.index
        return super().measure(question)

    def loaded(self, serving: Serving, pace: Pace, **about: Any) -> Measurement:
        if not about and self.doomed:  # a measurement, and not the load before it
            threading.Thread(target=self._kill, args=(serving.server.handle.pid,)).start()
        return super().loaded(serving, pace, **about)

    def _kill(self, pid: int) -> None:
        server = psutil.Process(pid)
        before = sum(server.cpu_times()[:2])
        wait_until(lambda: sum(server.cpu_times()[:2]) > before + 0.2, within_s=30.0, every_s=0.02, what="it is loaded")
        server.kill()
        type(self).killed += 1


@pytest.mark.timeout(600)
def test_a_server_that_dies_under_a_setting_is_a_result(
    models: Models, tmp_path: Path, need: Need, left_behind: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The setting is unsafe, and how its server ended is said; the study goes on with others, and has a best."""
    need("tfserving", "embedded")
    monkeypatch.setattr(tuner, "LiveBench", Deadly)  # the moment is chosen; the server and its death are real
    monkeypatch.setattr(Deadly, "killed", 0)
    spec = models.spec(tmp_path / "digits.yaml", "saved_model")
    folder = tmp_path / "study"
    words = ["tune", str(spec), "-b", "tfserving", "-r", "embedded", "--budget", "8", "-o", str(folder), *SMALL]
    assert run(words) == 0
    found = study.load(folder)
    assert Deadly.killed == 1
    assert found.state in ("complete", "spent")
    dead = found.measurements[Deadly.index]
    assert dead.unsafe == "the server ended under load: it was killed by signal 9"
    assert (dead.rate, dead.error_share, dead.p99_ms) == (0.0, 1.0, None)
    others = [each for each in found.measurements if each.index != Deadly.index]
    assert len(others) >= 3
    assert not any(each.unsafe or each.settings == dead.settings for each in others)
    assert f"the server failed under 1 setting: {dead.unsafe}" in found.warnings
    assert found.comparison is not None
    assert found.measurements[found.comparison.measurement].settings != dead.settings
    assert "it was killed by signal 9" in (folder / "report.html").read_text()
    assert left_behind() == []


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
def test_the_greatest_rate_is_looked_for_among_those_that_can_be_reached(
    models: Models, tmp_path: Path, need: Need, left_behind: Callable[[], list[str]]
) -> None:
    """What callers in a closed loop get says which rates are worth asking; one of them that keeps the promise wins."""
    need("tfserving", "embedded")
    few = "tfserving: {flags: {rest_api_num_threads: 20}}\n"  # no more requests than this make a batch, nor settings
    spec = models.spec(tmp_path / "digits.yaml", "saved_model", extra=few)
    folder = tmp_path / "study"
    words = ["tune", str(spec), "-b", "tfserving", "-r", "embedded", "-o", str(folder), "--max-throughput"]
    assert run([*words, "--slo", "p99=500ms", "--budget", "7", "--each", "1s", "--rounds", "2", "--time", "5m"]) == 0
    found = study.load(folder)
    journal = (folder / "journal.jsonl").read_bytes()
    (top,) = (fact["top"] for fact in map(json.loads, journal.splitlines()) if fact["kind"] == "ladder")
    rates = [load.rate for load in found.goal.loads]
    assert rates == pytest.approx([0.3 * top * 1.13**step for step in range(12)], rel=0.01)
    assert {str(each.load) for each in found.measurements if each.load not in found.goal.loads} == {"64 callers"}
    assert {each.settings["server_threads"] for each in found.measurements} == {19}
    assert found.best is not None
    assert found.best.load.rate is not None
    assert found.best.rate > 0.9 * found.best.load.rate
    assert found.best.p99_ms is not None
    assert found.best.p99_ms < 500
    kept = [each.load.rate or 0.0 for each in found.measurements if found.answers(each)]
    assert found.comparison is not None
    assert found.comparison.load.rate in kept
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

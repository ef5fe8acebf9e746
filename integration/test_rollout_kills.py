"""`kill -9` of a rollout at random points: `--resume` or `rollback` then ends in a state with a name, under load."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Timer

import pytest

from integration.test_rollout import (
    RATE,
    TfServer,
    TsServer,
    needs_tensorflow,
    tf_server,
    tf_spec,
    torch_server,
    ts_spec,
)
from integration.traffic import Traffic
from servewright.processes import wait_until
from servewright.rollout import journal

# How many rollouts are killed on each server: a few of the slower one, unless somebody asks for more.
_ASKED = os.environ.get("SERVEWRIGHT_KILLS", "")
TF_KILLS, TS_KILLS = (int(_ASKED), int(_ASKED)) if _ASKED else (10, 3)
DEADLINE_S = 60.0


@dataclass
class Commands:
    """Runs commands in processes that can be killed, one at a time, without waiting for imports."""

    process: subprocess.Popen[str]
    output: Path

    def __call__(
        self, *words: object, until: Callable[[], bool] | None = None, sent: signal.Signals = signal.SIGKILL
    ) -> int:
        """Run a command and return its exit code; ``sent`` goes to it once ``until`` says so: killed, it gives -9."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([str(self.output), *map(str, words)]) + "\n")
        self.process.stdin.flush()
        pid = int(self.process.stdout.readline())
        late = Timer(DEADLINE_S, lambda: _kill(pid))  # nothing may hang
        late.start()
        try:
            if until is not None:
                wait_until(lambda: until() or _ended(pid), within_s=DEADLINE_S, every_s=0.005, what="the moment comes")
                _kill(pid, sent)
            return int(self.process.stdout.readline())
        finally:
            late.cancel()

    @property
    def said(self) -> str:
        """What the last command printed."""
        return self.output.read_text()


def _kill(pid: int, sent: signal.Signals = signal.SIGKILL) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, sent)


def _ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Commands]:
    """Start what runs the commands; journals and temporary files are the test's own."""
    for variable, folder in (("SERVEWRIGHT_ROLLOUTS", "rollouts"), ("SERVEWRIGHT_STATE", "state"), ("TMPDIR", "tmp")):
        (tmp_path / folder).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / folder))
    program = [sys.executable, str(Path(__file__).with_name("warm_commands.py"))]
    process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        yield Commands(process, tmp_path / "output.txt")
        assert process.stdin is not None
        process.stdin.close()
        process.wait(20)


@dataclass
class Rounds:
    """Rollouts that are killed, each from the version that the last one left to the next."""

    command: Commands
    live: str
    spec: Callable[[int], Path]
    check: Callable[[int], None]
    random: random.Random

    def play(self, kills: int) -> list[str]:
        """Kill as many rollouts, resume one and take the next one back; return where each was met and how it ended.

        One that has ended before its moment comes is no kill: there is another one for it.
        """
        served, landed = 1, 0
        ended: list[str] = []
        while landed < kills:
            number, new = len(ended), len(ended) + 2
            assert number < 3 * kills, ended
            known = set(journal.root().glob("*.jsonl"))
            # Each step writes two lines after the plan; the moment lies anywhere between one and the next.
            lines, rest_s = self.random.randint(1, 14), self.random.uniform(0.0, 0.3)

            def reached(known: set[Path] = known, lines: int = lines, rest_s: float = rest_s) -> bool:
                written = sum(path.read_bytes().count(b"\n") for path in set(journal.root().glob("*.jsonl")) - known)
                if written >= lines:
                    time.sleep(rest_s)
                return written >= lines

            killed = self.command("rollout", self.spec(new), "--live", self.live, "--drain", "1s", until=reached)
            assert killed in (0, -signal.SIGKILL), self.command.said
            where = str(next(journal.journals()).servers[0])
            served, how = self.end(number, served, new)
            self.check(served)
            assert not any(found.is_open for found in journal.journals())
            landed += killed != 0
            ended.append(f"{'killed' if killed else 'not killed'}: {where}; {how}")
        return [f"{landed} of {len(ended)} rollouts were killed while they ran", *ended]

    def end(self, number: int, old: int, new: int) -> tuple[int, str]:
        """Resume or take back what was killed; return the version that is served then, and what was said."""
        newest = next(journal.journals())
        finished = newest.state == "promoted"
        if number % 2:
            how = "rollback"
            if number % 4 == 3:  # the way back is killed too, and then resumed: it goes on to go back
                begun = newest.path.read_bytes().count(b"\n")
                self.command("rollback", until=lambda: newest.path.read_bytes().count(b"\n") > begun)
                how += f", killed {journal.load(newest.path).servers[0]}, and --resume"
            again = journal.load(newest.path)
            if again.state.startswith("going back"):
                assert self.command("rollout", "--resume") == 1, self.command.said
                assert "is as it was before" in self.command.said
            else:
                code = self.command("rollback")
                assert code == (2 if again.state in ("untouched", "as before") else 0), self.command.said
            found = journal.load(newest.path)
            assert found.state in ("as before", "untouched")
            return old, f"{how}: {found.state}"
        code = self.command("rollout", "--resume")
        assert code == (2 if finished else 0), self.command.said
        assert journal.load(newest.path).state == "promoted"
        return new, "resume: promoted"


@needs_tensorflow
def test_tf_serving_survives_the_death_of_its_rollout(tmp_path: Path, command: Commands) -> None:
    """Ten kills: always one version, with its label, and never a request without an answer."""
    with tf_server(tmp_path, options=",config={config}") as server:

        def check(version: int) -> None:
            assert_tf(server, version)

        seed = random.SystemRandom().randrange(1 << 30)
        rounds = Rounds(command, server.live.said, lambda version: tf_spec(server, version), check, random.Random(seed))
        with Traffic(server.asks(**{"": {}, "label_stable": {"label": "stable"}}), RATE) as traffic:
            ended = rounds.play(TF_KILLS)
    print(f"seed {seed}", *ended, sep="\n")
    assert traffic.failures == []
    assert [path.name for path in (tmp_path / "rollouts").iterdir() if path.suffix != ".jsonl"] == ["locks"]
    assert list((server.models / "times").glob(".*")) == []


@needs_tensorflow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_takes_back(tmp_path: Path, command: Commands, sent: signal.Signals, code: int) -> None:
    """Ctrl-C and SIGTERM end the command when the server is as it was, and it says so."""
    with tf_server(tmp_path, options=",config={config}") as server:

        def promoting() -> bool:
            return any('"step": 5' in path.read_text() for path in journal.root().glob("*.jsonl") if path.is_file())

        words = ("rollout", tf_spec(server, 2), "--live", server.live.said)
        assert command(*words, until=promoting, sent=sent) == code, command.said
        assert ": as before" in command.said
        assert_tf(server, 1)
        assert [path.name for path in (server.models / "times").iterdir()] == ["1"]


def assert_tf(server: TfServer, version: int) -> None:
    """Assert that one version is served, with the label, and that nothing else is there."""
    assert server.serves() == [version]
    assert server.serves("times-canary") == []
    assert server.serves("other") == [7]
    assert server.client.version_of_label("times", "stable") == version


def test_torchserve_survives_the_death_of_its_rollout(tmp_path: Path, command: Commands) -> None:
    """A version that was being registered when its rollout died is registered, or gone."""
    with torch_server(tmp_path) as server:

        def check(version: int) -> None:
            assert_ts(server, version)

        seed = random.SystemRandom().randrange(1 << 30)
        rounds = Rounds(command, server.live.said, lambda version: ts_spec(server, version), check, random.Random(seed))
        with Traffic(server.asks(None), RATE) as traffic:
            ended = rounds.play(TS_KILLS)
    print(f"seed {seed}", *ended, sep="\n")
    assert traffic.failures == []


def assert_ts(server: TsServer, version: int) -> None:
    """Assert that one version is registered, and is the default."""
    server.assert_serves(str(version))

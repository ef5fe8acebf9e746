"""Faults, made real: the right exit code, a message that names the cause, and nothing left."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from integration.conftest import MakeImage, Models, Need
from integration.sandbox import Sandbox, wait_for
from servewright import engine, launching, pipeline, processes, registry, runs
from servewright.local import LocalLauncher

KILLS = int(os.environ.get("SERVEWRIGHT_KILLS", "10"))
# The engine that `engine.sh run` started for these tests alone, which may be stopped and started again.
ENGINE_PID = os.environ.get("SERVEWRIGHT_ENGINE_PID_FILE")


def test_a_container_killed_while_it_is_probed(models: Models, tmp_path: Path, box: Sandbox, need: Need) -> None:
    """A server that is killed amid the checks is exit 4 with what killed it, not a list of failed checks."""
    need("tfserving", "docker")
    assert box.engine is not None
    spec = models.spec(tmp_path / "digits.yaml", "saved_model")
    command = box.start("verify", str(spec), "--runtime", "docker")
    said = wait_for(command, "outputs over http")
    box.engine.api.kill(box.containers()[0]["Id"])
    rest, _ = command.communicate(timeout=60)
    assert command.returncode == 4, said + rest
    assert "ended while it was probed" in rest
    assert "killed by signal 9" in rest
    assert box.left() == []


@pytest.mark.parametrize(("model_format", "memory"), [("saved_model", "64MiB"), ("torchscript", "192MiB")])
def test_out_of_memory_at_load(
    model_format: str, memory: str, models: Models, tmp_path: Path, box: Sandbox, need: Need
) -> None:
    """A server, or a worker of it, that needs more memory than it may have is exit 4; the text names the limit."""
    need("tfserving" if model_format == "saved_model" else "torchserve", "docker")
    spec = models.spec(tmp_path / "digits.yaml", model_format, extra=f"limits: {{memory: {memory}}}\n")
    done = box.run("verify", str(spec), "--runtime", "docker")
    assert done.returncode == 4, done.stderr
    assert "out of memory" in done.stderr
    assert memory in done.stderr
    assert "limits.memory" in done.stderr
    assert box.left() == []


@pytest.mark.parametrize("runtime", ["process", "docker"])
def test_a_model_that_takes_too_long(runtime: str, models: Models, tmp_path: Path, box: Sandbox, need: Need) -> None:
    """A model that is not loaded by its deadline is exit 4, and the text says what to raise."""
    need("torchserve", runtime)
    spec = models.spec(
        tmp_path / "digits.yaml",
        "torchscript",
        extra="handler: {use: slow.py}\nlimits: {startup_timeout: 2s}\n",
    )
    (tmp_path / "slow.py").write_text(
        "import time\n\n\nclass Slow:\n"
        "    def initialize(self, context):\n        time.sleep(600)\n"
        "    def handle(self, data, context):\n        return data\n"
    )
    done = box.run("verify", str(spec), "--runtime", runtime)
    assert done.returncode == 4, done.stderr
    assert "startup_timeout" in done.stderr or "again and again" in done.stderr
    assert box.left() == []


@pytest.mark.parametrize("runtime", ["process", "docker"])
def test_a_crash_loop(runtime: str, models: Models, tmp_path: Path, box: Sandbox, need: Need) -> None:
    """A handler that kills its worker at every load is exit 4 at once, not after the server's five minutes."""
    need("torchserve", runtime)
    spec = models.spec(tmp_path / "digits.yaml", "torchscript", extra="handler: {use: fatal.py}\n")
    (tmp_path / "fatal.py").write_text(
        "import os\n\n\nclass Fatal:\n"
        "    def initialize(self, context):\n        os._exit(11)\n"
        "    def handle(self, data, context):\n        return data\n"
    )
    start = time.monotonic()
    done = box.run("verify", str(spec), "--runtime", runtime)
    assert done.returncode == 4, done.stderr
    assert "again and again" in done.stderr
    assert time.monotonic() - start < 60
    assert box.left() == []


def test_a_port_taken_between_choice_and_bind(
    models: Models, tmp_path: Path, box: Sandbox, need: Need, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A port that another program takes before the server binds it costs one more start, with other ports."""
    need("torchserve", "process")
    monkeypatch.setenv("TMPDIR", str(box.folder / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    fleet = pipeline.load(models.spec(tmp_path / "digits.yaml", "torchscript"))
    backend = registry.get("torchserve")
    choose_site = LocalLauncher.site
    sites: list[Any] = []
    with ExitStack() as held:

        def site_and_thief(self: LocalLauncher, *given: Any, **named: Any) -> Any:
            site = choose_site(self, *given, **named)
            if not sites:
                thief = held.enter_context(socket.socket())
                thief.bind(("127.0.0.1", site.ports["grpc"]))
                thief.listen()
            sites.append(site)
            return site

        monkeypatch.setattr(LocalLauncher, "site", site_and_thief)
        with runs.running() as run:
            artifact = pipeline.package(fleet, backend, run.folder / "artifact")
            server, client = launching.start(fleet, backend, artifact, launching.choose(backend, "process"))
            client.close()
            server.stop()
    assert len(sites) == 2
    assert sites[0].ports["grpc"] != sites[1].ports["grpc"]
    assert box.left() == []


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """Mount a small file system of its own at ``folder``; skip where that is not allowed."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"mounting takes root: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("model_format", ["torchscript", "saved_model"])
def test_a_full_disk_while_packaging(model_format: str, models: Models, tmp_path: Path, box: Sandbox) -> None:
    """A disk that fills up is an error that says so, and no half artifact stays."""
    spec = models.spec(tmp_path / "digits.yaml", model_format)
    with mounted(tmp_path / "small", "size=48k") as small:
        done = box.run("package", str(spec), "-o", str(small / "artifact"))
        assert done.returncode in (2, 4), done.stderr
        assert "no room" in done.stderr
        assert list(small.iterdir()) == []


@pytest.mark.parametrize("model_format", ["torchscript", "saved_model"])
def test_a_read_only_disk_while_packaging(model_format: str, models: Models, tmp_path: Path, box: Sandbox) -> None:
    """A disk that cannot be written is an error that says so."""
    spec = models.spec(tmp_path / "digits.yaml", model_format)
    with mounted(tmp_path / "fixed", "size=1m,ro") as fixed:
        done = box.run("package", str(spec), "-o", str(fixed / "artifact"))
    assert done.returncode in (2, 4), done.stderr
    assert "read-only" in done.stderr


def test_the_engine_stopped_during_a_run(models: Models, tmp_path: Path, box: Sandbox, need: Need) -> None:
    """An engine that goes away is exit 4 in words; when it is back, the next command clears what it kept."""
    need("tfserving", "docker")
    if not ENGINE_PID:
        pytest.skip("this engine is not ours to stop: SERVEWRIGHT_ENGINE_PID_FILE names none")
    spec = models.spec(tmp_path / "digits.yaml", "saved_model")
    pid = int(Path(ENGINE_PID).read_text())
    words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    command = box.start("verify", str(spec), "--runtime", "docker")
    said = wait_for(command, "outputs over http")
    os.kill(pid, signal.SIGTERM)
    rest, _ = command.communicate(timeout=120)
    processes.wait_until(lambda: not Path(f"/proc/{pid}").exists(), within_s=60, what="the engine ends")
    with Path(os.devnull).open("rb+") as nowhere:
        subprocess.run(["setsid", "--fork", *words], stdin=nowhere, stdout=nowhere, stderr=nowhere, check=True)
    processes.wait_until(_answers, within_s=60, what="the engine answers again")
    assert box.engine is not None
    box.engine.api.close()
    box.engine = engine.connect()
    assert command.returncode == 4, said + rest
    assert "Docker Engine" in rest or "ended while it was probed" in rest
    assert "Traceback" not in rest
    assert box.run("ps").returncode == 0
    assert box.left() == []


def _answers() -> bool:
    try:
        engine.connect().api.close()
    except engine.UnavailableError:
        return False
    return True


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run(
    number: signal.Signals, code: int, models: Models, tmp_path: Path, box: Sandbox, need: Need
) -> None:
    """Ctrl-C and SIGTERM end the container and remove the folders before the command returns."""
    need("tfserving", "docker")
    spec = models.spec(tmp_path / "digits.yaml", "saved_model")
    command = box.start("verify", str(spec), "--runtime", "docker")
    wait_for(command, "- launch")
    processes.wait_until(lambda: bool(box.running()), within_s=30, what="the container runs")
    command.send_signal(number)
    output, _ = command.communicate(timeout=60)
    assert command.returncode == code, output
    assert box.left() == []


# Twice over: what one kill may take, all of its waits included.
@pytest.mark.timeout(120 + 90 * KILLS)
def test_killed_at_random_moments(models: Models, tmp_path: Path, box: Sandbox, make_image: MakeImage) -> None:
    """Whenever a run is killed, no container outlives its deadline, and the next command clears the rest."""
    image = make_image("tfserving", "VOLUME /data")
    spec = models.spec(tmp_path / "digits.yaml", "saved_model", extra="")
    common = (str(spec), "--runtime", "docker", "--image", image)
    commands = (("verify", *common, "--no-parity"), ("up", *common))
    box.deadline = "20s"
    whole_s = []
    for words in commands:
        start = time.monotonic()
        assert box.run(*words).returncode == 0
        whole_s.append(time.monotonic() - start)
        box.run("down", "--all")
    moments = random.Random(20240229)
    killed, ended_s = 0, []
    for turn in range(KILLS):
        words, longest_s = commands[turn % 2], whole_s[turn % 2]
        moment_s = moments.uniform(0, longest_s)
        what = f"{words[0]} killed at {moment_s:.2f} s"
        process = box.start(*words)
        try:
            process.wait(timeout=moment_s)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
        process.communicate(timeout=30)
        start = time.monotonic()
        # A server that `up` had noted already stays until its deadline.
        processes.wait_until(lambda: not box.running(), within_s=30, what=f"{what}: nothing runs")
        ended_s.append(time.monotonic() - start)
        assert box.run("ps").returncode == 0
        noted = [f"{record['name']}: {record['state']}" for record in box.json("ps", "--json")]
        assert words[0] == "up" or (box.left(), noted) == ([], []), what
        if noted:
            box.run("down", "--all")
        assert box.left() == [], what
    assert killed
    assert box.volumes, "no container was seen with a volume"
    print(f"{killed} of {KILLS} runs killed; {len(box.volumes)} volumes; nothing ran {max(ended_s):.1f} s later")

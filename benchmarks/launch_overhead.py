"""How much longer a container takes to serve when servewright launches it, beside a bare ``docker run``.

Same image, arguments, environment, mounts, tmpfs and ports; the bare one has none of the limits, no watch and no log
stream. Both are ready when the same questions get the same answers, which the bare one is asked every 20 ms. The two
take turns within a round, and the next round begins with the other. Time starts before an engine is looked for, and
before ``docker`` is started. Stopping is not counted. `SERVEWRIGHT_TORCHSERVE_IMAGE` and `SERVEWRIGHT_TFSERVING_IMAGE`
name the images; ``integration/engine.sh run`` makes both.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "adapters"))

from servewright import docker_runtime, launching, pipeline, runs
from servewright.backend import Artifact, Backend
from servewright.containers import Container
from servewright.docker_runtime import DockerLauncher
from servewright.errors import UnavailableError
from servewright.fleet import Fleet
from servewright.processes import wait_until
from servewright.server import RunningServer

PROJECT = Path(__file__).parents[1] / "examples" / "pytest-project"
ALLOWED_S = 0.3
EVERY_S = 0.02
WITHIN_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How long a launch took, in seconds: until the engine had started the container, and until it served."""

    started_s: float
    ready_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Every round's launches; ``added`` is the median of the rounds' differences, in seconds.

    ``fastest`` is the difference of both ways' fastest rounds: what else a machine does can only slow a round down.
    """

    backend: str
    image: str
    bare: tuple[Launch, ...]
    servewright: tuple[Launch, ...]
    added_s: float
    fastest_s: float
    added_before_start_s: float

    def line(self) -> str:
        """Return it as text."""
        bare, ours = (
            f"{statistics.median(launch.ready_s for launch in launches):6.2f} s"
            for launches in (self.bare, self.servewright)
        )
        return (
            f"{self.backend:<12} docker run {bare}   servewright {ours}   added {self.added_s:+.2f} s "
            f"(before the container starts {self.added_before_start_s:+.2f} s; "
            f"by the fastest of {len(self.bare)} rounds {self.fastest_s:+.2f} s)"
        )


def main() -> int:
    """Print the medians; return 1 where more than the allowed time is added, 3 where there is no engine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--backend", action="append", choices=["tfserving", "torchserve"])
    parser.add_argument("--json", action="store_true")
    wanted = parser.parse_args()
    # Told to stop, it takes the containers and folders along that it has made.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    results = []
    with tempfile.TemporaryDirectory(prefix="servewright-overhead-") as folder:
        project = Path(folder) / "project"
        shutil.copytree(PROJECT, project)
        subprocess.run([sys.executable, "train.py"], cwd=project, check=True, capture_output=True, timeout=600)
        fleet = pipeline.load(project / "digits.yaml")
        for name in wanted.backend or ["tfserving", "torchserve"]:
            backend = pipeline.backend_for(fleet, name)
            artifact = pipeline.package(fleet, backend, Path(folder) / name, packed=False)
            try:
                results.append(compared(fleet, backend, artifact, wanted.rounds))
            except UnavailableError as error:
                print(error, file=sys.stderr)
                return error.exit_code
    if wanted.json:
        print(json.dumps([asdict(result) for result in results], indent=2))
    else:
        for found in results:
            print(found.line())
    return int(any(result.added_s > ALLOWED_S for result in results))


def compared(fleet: Fleet, backend: Backend, artifact: Artifact, rounds: int) -> Result:
    """Return the times of both ways; the first round warms up and is not counted."""
    bare: list[Launch] = []
    ours: list[Launch] = []
    for number in range(rounds + 1):
        ways = [(bare, by_hand), (ours, by_servewright)]
        for launches, way in ways if number % 2 else reversed(ways):
            launch = way(fleet, backend, artifact)
            if number:
                launches.append(launch)
    rounds_of_both = list(zip(ours, bare, strict=True))
    return Result(
        backend=backend.name, image=launching.image_for(backend, fleet), bare=tuple(bare), servewright=tuple(ours),
        added_s=statistics.median(mine.ready_s - other.ready_s for mine, other in rounds_of_both),
        fastest_s=min(launch.ready_s for launch in ours) - min(launch.ready_s for launch in bare),
        added_before_start_s=statistics.median(mine.started_s - other.started_s for mine, other in rounds_of_both),
    )  # fmt: skip


def launched(container: Container, start: float) -> Launch:
    """Return a launch that began at ``start``, in seconds since 1970, and is ready now."""
    ready_s = time.time() - start
    # The engine writes nanoseconds and a Z: "2026-11-22T10:00:00.123456789Z".
    started = datetime.fromisoformat(container.state()["StartedAt"][:26].rstrip("Z") + "+00:00")
    return Launch(started_s=started.timestamp() - start, ready_s=ready_s)


def by_servewright(fleet: Fleet, backend: Backend, artifact: Artifact) -> Launch:
    """Launch as servewright does, from the search for an engine to a server that is ready, and stop it."""
    start = time.time()
    choice = pipeline.choice_for(fleet, backend, launching.DOCKER, None)
    server, client = launching.start(fleet, backend, artifact, choice)
    assert isinstance(server.handle, Container)
    found = launched(server.handle, start)
    client.close()
    server.stop()
    return found


def by_hand(fleet: Fleet, backend: Backend, artifact: Artifact) -> Launch:
    """Launch by ``docker run``, until the server is ready, and stop it."""
    launcher = pipeline.choice_for(fleet, backend, launching.DOCKER, None).launcher
    assert isinstance(launcher, DockerLauncher)
    with runs.running() as run:
        command, ports = docker_run(fleet, backend, artifact, launcher, run.folder)
        start = time.time()
        identity = subprocess.run(command, check=True, capture_output=True, text=True, timeout=WITHIN_S).stdout.strip()
        container = Container(launcher.engine, identity, run.folder / "none.log")
        try:
            endpoints = wait_until(
                lambda: published(container, ports), within_s=WITHIN_S, every_s=EVERY_S, what="the ports are published"
            )
            server = RunningServer(backend=backend.name, runtime="docker", endpoints=endpoints, handle=container)
            client = backend.connect(server)
            try:
                wait_until(
                    lambda: container.alive() and backend.ready(server, client, fleet),
                    within_s=WITHIN_S, every_s=EVERY_S, what="docker run is ready",
                )  # fmt: skip
                return launched(container, start)
            finally:
                client.close()
        finally:
            container.stop(0.0)


def published(container: Container, ports: dict[str, int]) -> dict[str, str] | None:
    """Return the addresses by name, once there are all."""
    bound = container.inspect()["NetworkSettings"]["Ports"] or {}
    if not all(bound.get(f"{port}/tcp") for port in ports.values()):
        return None
    return {name: f"127.0.0.1:{bound[f'{port}/tcp'][0]['HostPort']}" for name, port in ports.items()}


def docker_run(
    fleet: Fleet, backend: Backend, artifact: Artifact, launcher: DockerLauncher, folder: Path
) -> tuple[list[str], dict[str, int]]:
    """Return the command that does by hand what servewright does, without what servewright adds, and the ports."""
    site = replace(backend.home, packed=artifact.packed)
    for path, text in pipeline.render(fleet, backend, site).items():
        target = folder / "config" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    for path in (folder / "config", *(folder / "config").rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    plan = backend.plan(fleet, site)
    asked = docker_runtime.body(
        plan, launcher.image, launcher._limits(plan),
        mounts={site.models: artifact.models.absolute(), site.config: folder / "config"}, fixed={},
        labels=docker_runtime.labels(folder, 3600.0),
    )  # fmt: skip
    words = ["docker", "run", "--detach", "--workdir", site.run, "--entrypoint", plan.argv[0]]
    for name, value in asked["Labels"].items():
        words += ["--label", f"{name}={value}"]
    for mount in asked["HostConfig"]["Mounts"]:
        words += ["--mount", f"type=bind,src={mount['Source']},dst={mount['Target']},readonly"]
    for target, options in asked["HostConfig"]["Tmpfs"].items():
        words += ["--tmpfs", f"{target}:{options}"]
    for variable in asked["Env"]:
        words += ["--env", variable]
    for port in site.ports.values():
        words += ["--publish", f"127.0.0.1::{port}"]
    return [*words, launcher.image.id, *plan.argv[1:]], dict(site.ports)


if __name__ == "__main__":
    sys.exit(main())

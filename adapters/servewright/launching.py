"""Launching: a plan becomes a running server, and what started stops.

A runtime is a value too: how it is found on this machine, and what then starts plans. Nothing here knows a backend.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from servewright import local, processes, runs
from servewright.archive_check import refuse_unsafe
from servewright.backend import Artifact, Backend, LaunchPlan, Site
from servewright.errors import InputError, LaunchError, ProbeError, ProbeTimeoutError, UnavailableError
from servewright.fleet import Fleet
from servewright.rendering import render
from servewright.server import RunningServer

AUTO = "auto"
DOCKER = "docker"
# How often a start is tried with other ports, or with milder limits.
_TRIES = 8


class Launcher(Protocol):
    """Starts plans by one runtime."""

    @property
    def note(self) -> str:
        """What a report says of it."""
        ...

    def site(self, home: Site, artifact: Artifact, run: Path, *, fixed: dict[str, int]) -> Site:
        """Return where the server will live; `PortTakenError` where a fixed port is not free."""
        ...

    def start(
        self, plan: LaunchPlan, artifact: Artifact, run: Path, *, fixed: dict[str, int], detached: bool
    ) -> RunningServer:
        """Start ``plan``; its configuration lies in ``run/config``. ``detached``: it can be released later."""
        ...

    def again(self, plan: LaunchPlan, error: LaunchError) -> Launcher | None:
        """Return what to try after ``error``, or ``None`` where it would come again."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The runtime that will be used, what starts it, and why it was chosen."""

    runtime: str
    launcher: Launcher
    reason: str


def image_for(backend: Backend, fleet: Fleet | None = None) -> str:
    """Return the image that runtime docker takes: as the environment says, or the usual one."""
    usual = backend.plan(fleet, backend.home).image if fleet else backend.image
    return os.environ.get(f"SERVEWRIGHT_{backend.name.upper()}_IMAGE") or usual


def choose(
    backend: Backend,
    wanted: str,
    *,
    image: str | None = None,
    progress: Callable[[float, str], None] = lambda _share, _what: None,
) -> Choice:
    """Return how ``backend`` can be run here; for ``auto`` the first runtime that works.

    Only an ``image`` for runtime docker that was asked for is pulled: ``auto`` takes what is here.
    """
    if wanted != AUTO and wanted not in backend.runtimes:
        raise InputError(
            f"{backend.name} has no runtime {wanted!r}; choose from {', '.join((AUTO, *backend.runtimes))}"
        )
    refused: list[str] = []
    for runtime in backend.runtimes if wanted == AUTO else (wanted,):
        try:
            launcher = find(backend, runtime, image or image_for(backend), pull=wanted != AUTO, progress=progress)
        except UnavailableError as error:
            if wanted != AUTO:
                raise
            refused.append(f"{runtime}: {error}")
            continue
        reason = "asked for" if wanted != AUTO else "; ".join(["the first that works here", *refused])
        return Choice(runtime=runtime, launcher=launcher, reason=reason)
    raise UnavailableError(f"nothing here can run {backend.title}:\n  " + "\n  ".join(refused))


def find(backend: Backend, runtime: str, image: str, *, pull: bool, progress: Callable[[float, str], None]) -> Launcher:
    """Return what starts ``backend`` by ``runtime``; `UnavailableError` says why nothing does."""
    if runtime != DOCKER:
        return local.find(backend, runtime)
    from servewright import docker_runtime

    return docker_runtime.find(image, pull=pull, progress=progress)


def start(
    fleet: Fleet,
    backend: Backend,
    artifact: Artifact,
    choice: Choice,
    *,
    kept_by: Path | None = None,
) -> tuple[RunningServer, Any]:
    """Start a server and wait until it serves all of ``fleet``; a failed start leaves nothing behind.

    Archives are checked first, before anything unpacks them: `InputError` where one is not safe. The server ends with
    this process, unless it is released; its folder then stays for as long as there is a file at ``kept_by``.
    """
    refuse_unsafe(artifact.models)
    launcher = choice.launcher
    for left in reversed(range(_TRIES)):
        try:
            return _started(fleet, backend, artifact, launcher, kept_by)
        except LaunchError as error:
            other = launcher.again(backend.plan(fleet, backend.home), error) if left else None
            if other is None:
                raise
            launcher = other
    raise AssertionError("the last try returns or raises")


def _started(
    fleet: Fleet, backend: Backend, artifact: Artifact, launcher: Launcher, kept_by: Path | None
) -> tuple[RunningServer, Any]:
    run = runs.begin()
    fixed = {name: port for name, port in fleet.server.ports.model_dump().items() if port is not None}
    try:
        if kept_by is not None:
            run.keep_for(kept_by)
        site = launcher.site(backend.home, artifact, run.folder, fixed=fixed)
        _write_config(fleet, backend, site, run.folder)
        plan = backend.plan(fleet, site)
        server = replace(launcher.start(plan, artifact, run.folder, fixed=fixed, detached=kept_by is not None), run=run)
        try:
            return server, wait_ready(server, fleet, backend, within_s=plan.ready_within_s)
        except BaseException:
            server.stop(2.0)
            raise
    except BaseException:
        run.close()
        raise


def _write_config(fleet: Fleet, backend: Backend, site: Site, run: Path) -> None:
    for path, text in render(fleet, backend, site).items():
        target = run / "config" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")


def wait_ready(server: RunningServer, fleet: Fleet, backend: Backend, *, within_s: float) -> Any:
    """Return a client once every model of ``fleet`` is served; fail at once where the server died."""
    held: list[Any] = []

    def ready() -> Any:
        if not held:
            held.append(backend.connect(server))
        if server.alive():
            return held[0] if backend.ready(server, held[0], fleet) else None
        # The backend reads its own log best: it may know the port that is taken, or the model that cannot be loaded.
        with suppress(ProbeError):
            backend.ready(server, held[0], fleet)
        why = server.why_ended()
        raise LaunchError(
            f"{backend.title} ended before it was ready" + (f": {why}" if why else ""), log_tail=server.log_tail()
        )

    try:
        return processes.wait_until(ready, within_s=within_s, every_s=0.1, what=f"{backend.title} is ready")
    except BaseException as error:
        for client in held:
            client.close()
        if isinstance(error, ProbeTimeoutError):
            raise LaunchError(
                f"{error}; raise limits.startup_timeout if it needs longer", log_tail=server.log_tail()
            ) from error
        why = server.why_ended() if isinstance(error, LaunchError) else ""
        if why and why not in str(error):
            error.add_note(f"the server: {why}")
        raise

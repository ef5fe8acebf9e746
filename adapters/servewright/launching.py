"""Launching: a plan becomes a running server, and what started stops.

A runtime is a value too: how it lays a site out, and how it starts a plan. Nothing here knows a backend.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servewright import local, processes
from servewright.backend import Artifact, Backend, Program
from servewright.errors import InputError, LaunchError, ProbeError, ProbeTimeoutError, UnavailableError
from servewright.fleet import Fleet
from servewright.rendering import render
from servewright.server import RunningServer

AUTO = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The runtime that will be used, how it starts the program, and why it was chosen."""

    runtime: str
    program: Program
    reason: str


def choose(backend: Backend, wanted: str) -> Choice:
    """Return how ``backend`` can be run here; for ``auto`` the first runtime that works."""
    if wanted != AUTO and wanted not in backend.runtimes:
        raise InputError(
            f"{backend.name} has no runtime {wanted!r}; choose from {', '.join((AUTO, *backend.runtimes))}"
        )
    refused: list[str] = []
    for runtime in backend.runtimes if wanted == AUTO else (wanted,):
        try:
            program = backend.program(runtime)
        except UnavailableError as error:
            if wanted != AUTO:
                raise
            refused.append(f"{runtime}: {error}")
            continue
        reason = "asked for" if wanted != AUTO else "; ".join(["the first that works here", *refused])
        return Choice(runtime=runtime, program=program, reason=reason)
    raise UnavailableError(f"nothing here can run {backend.title}:\n  " + "\n  ".join(refused))


def start(
    fleet: Fleet,
    backend: Backend,
    artifact: Artifact,
    choice: Choice,
    *,
    detached: bool = False,
) -> tuple[RunningServer, Any]:
    """Start a server and wait until it serves all of ``fleet``; a failed start leaves nothing behind."""
    # A short path: worker sockets lie below it, and AF_UNIX ends at about 107 characters.
    run = Path(tempfile.mkdtemp(prefix="servewright-", dir=_short_temporary_folder()))
    server: RunningServer | None = None
    try:
        site = local.site(backend.home, artifact, run, fixed=_fixed_ports(fleet))
        for path, text in render(fleet, backend, site).items():
            target = Path(site.config) / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
        plan = backend.plan(fleet, site)
        server = local.start(plan, choice.program, choice.runtime, run, detached=detached)
        client = wait_ready(server, fleet, backend, within_s=plan.ready_within_s)
    except BaseException:
        if server is not None:
            server.stop(grace_s=2.0)
        shutil.rmtree(run, ignore_errors=True)
        raise
    return server, client


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
        raise LaunchError(f"{backend.title} ended before it was ready", log_tail=server.log_tail())

    try:
        return processes.wait_until(ready, within_s=within_s, every_s=0.1, what=f"{backend.title} is ready")
    except ProbeTimeoutError as error:
        raise LaunchError(
            f"{error}; raise limits.startup_timeout if it needs longer", log_tail=server.log_tail()
        ) from error
    except BaseException:
        for client in held:
            client.close()
        raise


def _fixed_ports(fleet: Fleet) -> dict[str, int]:
    return {name: port for name, port in fleet.server.ports.model_dump().items() if port is not None}


def _short_temporary_folder() -> str:
    folder = tempfile.gettempdir()
    return folder if len(folder) <= 40 else "/tmp"  # noqa: S108  (mkdtemp makes a private folder below it)

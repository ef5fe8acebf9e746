"""The runtimes of this machine: a plan carried out as a process on loopback."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from servewright import processes
from servewright.backend import Artifact, LaunchPlan, Program, Site
from servewright.errors import PortTakenError
from servewright.server import RunningServer

LOG = "server.log"


def site(home: Site, artifact: Artifact, run: Path, *, fixed: Mapping[str, int]) -> Site:
    """Return where the server will live: its models in the artifact, its config in ``run``, ports that are free now."""
    taken = [port for port in fixed.values() if not processes.port_is_free(port)]
    if taken:
        raise PortTakenError(f"port {taken[0]} is taken; stop what listens there, or leave the port out of the spec")
    free = iter(processes.free_ports(len(home.ports)))
    ports = {name: fixed.get(name) or next(free) for name in home.ports}
    return replace(
        home,
        packed=artifact.packed,
        models=str(artifact.models.absolute()),
        config=str(run / "config"),
        run=str(run),
        host="127.0.0.1",
        ports=ports,
    )


def start(plan: LaunchPlan, program: Program, runtime: str, run: Path, *, detached: bool) -> RunningServer:
    """Start ``plan`` as a process; its output goes to ``run/server.log``."""
    for folder in plan.folders:
        (run / folder).mkdir(parents=True, exist_ok=True, mode=0o700)
    handle = processes.start(
        processes.ProcessPlan(
            argv=(*program.argv, *plan.argv[1:]),
            environment={**program.environment, **plan.environment},
            workdir=run,
            log=run / LOG,
        ),
        detached=detached,
        scratch=(run,),
    )
    return RunningServer(
        backend=plan.backend,
        runtime=runtime,
        endpoints={name: f"127.0.0.1:{port}" for name, port in plan.site.ports.items()},
        plan=plan,
        folder=run,
        handle=handle,
        notes=(program.note,) if program.note else (),
    )

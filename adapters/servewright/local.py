"""The runtimes of this machine: a plan carried out as a process on loopback."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from servewright import processes
from servewright.backend import Artifact, Backend, LaunchPlan, Program, Site
from servewright.errors import LaunchError, PortTakenError
from servewright.server import RunningServer

LOG = "server.log"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalLauncher:
    """Starts plans as processes, by the program of one runtime."""

    runtime: str
    program: Program

    @property
    def note(self) -> str:
        """What a report says of it."""
        return self.program.note

    def site(self, home: Site, artifact: Artifact, run: Path, *, fixed: Mapping[str, int]) -> Site:
        """Return where the server will live: models in the artifact, config in ``run``, ports that are free now."""
        taken = [port for port in fixed.values() if not processes.port_is_free(port)]
        if taken:
            raise PortTakenError(
                f"port {taken[0]} is taken; stop what listens there, or leave the port out of the spec"
            )
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

    def start(
        self, plan: LaunchPlan, artifact: Artifact, run: Path, *, fixed: Mapping[str, int], detached: bool
    ) -> RunningServer:
        """Start ``plan`` as a process; its output goes to ``run/server.log``."""
        del artifact, fixed, detached  # the plan's site knows the first two, and every process can be released
        for folder in plan.folders:
            (run / folder).mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = processes.start(
            processes.ProcessPlan(
                argv=(*self.program.argv, *plan.argv[1:]),
                environment={**self.program.environment, **plan.environment},
                workdir=run,
                log=run / LOG,
            ),
            scratch=(run,),
        )
        return RunningServer(
            backend=plan.backend,
            runtime=self.runtime,
            endpoints={name: f"127.0.0.1:{port}" for name, port in plan.site.ports.items()},
            site=plan.site,
            folder=run,
            handle=handle,
            notes=(self.note,) if self.note else (),
        )

    def again(self, plan: LaunchPlan, error: LaunchError) -> LocalLauncher | None:
        """Return itself where a port was taken between its choice and the server's bind: others will be free."""
        del plan
        return self if isinstance(error, PortTakenError) else None


def find(backend: Backend, runtime: str) -> LocalLauncher:
    """Return what starts ``backend`` by ``runtime``; `UnavailableError` says what to install."""
    return LocalLauncher(runtime=runtime, program=backend.program(runtime))

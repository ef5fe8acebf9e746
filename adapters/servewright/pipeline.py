"""The stages, joined: the only module that knows them all."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from servewright import fleet as fleets
from servewright import registry
from servewright.backend import Artifact, Backend, Site
from servewright.errors import InputError, ProbeError
from servewright.fleet import Fleet

if TYPE_CHECKING:
    from servewright.launching import Choice
    from servewright.modelfiles.inspection import Inspection
    from servewright.reporting import Check, Report
    from servewright.server import RunningServer
    from servewright.specfile import Document
    from servewright.state import Record

Listener = Callable[[str], None]
CheckListener = Callable[["Check"], None]


def load(path: Path) -> Fleet:
    """Read a spec or a fleet file; every problem at once."""
    return fleets.load(path, backends=registry.names())


def backend_for(fleet: Fleet, name: str | None) -> Backend:
    """Return the backend called ``name``, or the only one that the fleet has models for."""
    if name is not None:
        return registry.get(name)
    fitting = [backend for backend in map(registry.get, registry.names()) if _has_models(fleet, backend)]
    if len(fitting) == 1:
        return fitting[0]
    names = ", ".join(backend.name for backend in fitting) or ", ".join(registry.names())
    raise InputError(f"{fleet.name} could go to {names}; choose one with --backend")


def _has_models(fleet: Fleet, backend: Backend) -> bool:
    sources = [document.spec.source(backend.name) for document in fleet.models]
    return all(source is not None and source.format in backend.formats for source in sources)


def render(fleet: Fleet, backend: Backend, site: Site | None = None) -> dict[str, str]:
    """Return every rendered text by its path."""
    from servewright.rendering import render as rendered

    return rendered(fleet, backend, site)


def package(fleet: Fleet, backend: Backend, target: Path, *, packed: bool = True, trust: bool = False) -> Artifact:
    """Write the artifact of ``fleet`` to ``target``."""
    from servewright.packaging import package as packaged

    return packaged(fleet, backend, target, packed=packed, trust=trust)


@dataclass(slots=True)
class Stopwatch:
    """How long each stage took, in seconds."""

    times_s: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timing(self, stage: str) -> Iterator[None]:
        """Note how long the block takes, also where it fails."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.times_s[stage] = time.monotonic() - start


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """How `verify` and `probe` go about it.

    ``output`` keeps the artifact; ``parity`` runs the original model too; ``trust`` lets a stranger's code run.
    """

    runtime: str = "auto"
    output: Path | None = None
    packed: bool = True
    parity: bool = True
    trust: bool = False
    strict: bool = False
    require_real: bool = False


def verify(
    fleet: Fleet,
    backend: Backend,
    wishes: Wishes,
    *,
    on_stage: Listener = lambda _: None,
    on_check: CheckListener = lambda _: None,
) -> Report:
    """Render, package, launch, probe and stop; return what was found."""
    from servewright import launching
    from servewright.reporting import Report

    watch = Stopwatch()
    # Before anything is made: refusals and what is missing on this machine.
    render(fleet, backend)
    choice = launching.choose(backend, wishes.runtime)
    with _artifact_folder(wishes.output) as folder:
        on_stage("package")
        with watch.timing("package"):
            artifact = package(fleet, backend, folder, packed=wishes.packed, trust=wishes.trust)
        on_stage(f"launch ({choice.runtime}: {choice.reason})")
        with watch.timing("launch"):
            server, client = launching.start(fleet, backend, artifact, choice)
        try:
            on_stage("probe")
            with watch.timing("probe"):
                checks = _probed(fleet, backend, server, client, wishes, on_check)
            identity = backend.identity(client)
        except ProbeError as error:
            for line in server.log_tail():
                error.add_note(f"  | {line}")
            raise
        finally:
            on_stage("stop")
            client.close()
            with watch.timing("stop"):
                server.stop()
        kept = {"folder": str(folder), "digest": artifact.digest} if wishes.output else {"digest": artifact.digest}
    return Report(
        backend=backend.name, runtime=choice.runtime, server=identity, checks=checks, timings_s=watch.times_s,
        artifacts=kept, notes=(*server.notes, f"runtime {choice.runtime}: {choice.reason}"), strict=wishes.strict,
    )  # fmt: skip


def probe(
    fleet: Fleet,
    backend: Backend,
    server: RunningServer,
    wishes: Wishes,
    *,
    on_check: CheckListener = lambda _: None,
) -> Report:
    """Check a server that runs already against the spec; it is left running."""
    from servewright.reporting import Report

    watch = Stopwatch()
    client = backend.connect(server)
    try:
        with watch.timing("probe"):
            checks = _probed(fleet, backend, server, client, wishes, on_check)
        identity = backend.identity(client)
    finally:
        client.close()
    return Report(
        backend=backend.name, runtime=server.runtime, server=identity, checks=checks, timings_s=watch.times_s,
        notes=server.notes, strict=wishes.strict,
    )  # fmt: skip


def _probed(
    fleet: Fleet,
    backend: Backend,
    server: RunningServer,
    client: object,
    wishes: Wishes,
    on_check: CheckListener,
) -> tuple[Check, ...]:
    from servewright import probing

    reference_of = _reference_of(backend, trust=wishes.trust) if wishes.parity else None
    checks = []
    for check in probing.probe(
        fleet, backend, server, client, reference_of=reference_of, require_real=wishes.require_real
    ):
        on_check(check)
        checks.append(check)
    return tuple(checks)


def _reference_of(backend: Backend, *, trust: bool) -> Callable[[Document], object]:
    def reference(document: Document) -> object:
        from servewright.reference import ReferenceModel

        source = document.spec.source(backend.name)
        assert source is not None  # rendering refuses the spec otherwise
        code = str(document.resolve(source.code)) if source.code else None
        return ReferenceModel(
            document.resolve(source.path),
            format=source.format,
            code=code,
            signature=document.spec.signature,
            trust=trust,
        )

    return reference


def initial(
    models: Sequence[Path],
    *,
    name: str | None,
    folder: Path,
    example: Path | None,
    code: str | None,
    format: str | None,  # noqa: A002  (what users call it)
    trust: bool,
) -> tuple[str, list[str]]:
    """Return the text of a first spec for ``models``, and notes; each goes to the backend that serves its format."""
    from servewright import modelfiles
    from servewright.initial import initial_spec, model_name

    found: dict[str, Inspection] = {}
    for path in models:
        inspection = modelfiles.inspect(path, format=format, example=example, code=code, trust=trust)
        fitting = [name for name in registry.names() if inspection.format in registry.get(name).formats]
        if not fitting:
            raise InputError(f"no backend serves {inspection.format}: {path}; export the model in another format")
        if fitting[0] in found:
            raise InputError(f"{found[fitting[0]].path} and {path} are both for {fitting[0]}; name one of them")
        found[fitting[0]] = inspection
    text = initial_spec(found, name=name or model_name(models[0]), relative_to=folder)
    return text, [note for inspection in found.values() for note in inspection.notes]


@contextmanager
def _artifact_folder(output: Path | None) -> Iterator[Path]:
    if output is not None:
        yield output
        return
    folder = Path(tempfile.mkdtemp(prefix="servewright-artifact-"))
    try:
        yield folder / "artifact"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def up(
    fleet: Fleet,
    backend: Backend,
    spec: Path,
    *,
    name: str | None,
    runtime: str,
    trust: bool = False,
    on_stage: Listener = lambda _: None,
) -> Record:
    """Start a server that outlives this process, ready to serve; `down` ends it."""
    from servewright import launching, state

    render(fleet, backend)
    choice: Choice = launching.choose(backend, runtime)
    with state.claimed(name or fleet.name) as folder:
        on_stage("package")
        artifact = package(fleet, backend, folder / "artifact", packed=False, trust=trust)
        on_stage(f"launch ({choice.runtime}: {choice.reason})")
        server, client = launching.start(fleet, backend, artifact, choice, detached=True)
        try:
            record = state.Record(
                name=folder.name, backend=backend.name, runtime=choice.runtime, endpoints=dict(server.endpoints),
                spec=str(spec.absolute()), stand_in=backend.identity(client).stand_in,
                models=tuple(document.spec.name for document in fleet.models), **_process(server),
            )  # fmt: skip
            state.write(folder, record)
        except BaseException:
            server.stop()
            raise
        finally:
            client.close()
    return record


def _process(server: RunningServer) -> dict[str, object]:
    handle = server.handle
    return {
        "pid": getattr(handle, "pid", 0),
        "created": getattr(handle, "created", 0.0),
        "run": str(server.folder),
        "log": str(getattr(handle, "log", "")),
    }


def down(name: str) -> None:
    """End the server called ``name`` and remove what is kept of it."""
    from servewright import state

    record = state.find(name)
    record.handle().stop()
    state.forget(name)

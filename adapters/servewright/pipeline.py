"""The stages, joined: the only module that knows them all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from servewright import fleetfile, registry, runs
from servewright.backend import Artifact, Backend, Site
from servewright.errors import InputError, LaunchError, ProbeError, ProbeTimeoutError, ServewrightError
from servewright.fleet import Fleet

if TYPE_CHECKING:
    from servewright.backend import Client
    from servewright.drift import Drift
    from servewright.importing import Draft, Imported, Importer, Piece
    from servewright.launching import Choice
    from servewright.modelfiles.inspection import Inspection
    from servewright.reporting import Check, Report
    from servewright.rollout.live import Live
    from servewright.server import RunningServer
    from servewright.specfile import Document
    from servewright.state import Record

Listener = Callable[[str], None]
CheckListener = Callable[["Check"], None]
PullListener = Callable[[float, str], None]


def load(path: Path, *, environment: str | None = None) -> Fleet:
    """Read a spec or a fleet file, as it is in ``environment``; every problem at once."""
    return fleetfile.load(path, backends=registry.names(), environment=environment)


def choose(path: Path, backend: str | None, *, environment: str | None, shard: str | None) -> tuple[Fleet, Backend]:
    """Return what one server serves, of a spec or a fleet file, and the backend that was asked for."""
    from servewright import placing

    fleet = load(path, environment=environment)
    chosen = backend_for(fleet, backend)
    return placing.shard_of(fleet, chosen.name, shard), chosen


def render_all(fleet: Fleet, backend: Backend, site: Site | None = None) -> dict[str, str]:
    """Return every rendered text by its path; of several servers, each below a folder of the server's name."""
    from servewright import placing

    texts: dict[str, str] = {}
    for name, own in placing.placed(fleet, backend.name).items():
        prefix = f"{name}/" if name else ""
        texts |= {prefix + path: text for path, text in render(own, backend, site).items()}
    return texts


def backend_for(fleet: Fleet, name: str | None) -> Backend:
    """Return the backend called ``name``, or the only one that the fleet has models for."""
    if name is not None:
        return registry.get(name)
    fitting = [backend for backend in map(registry.get, registry.names()) if _has_models(fleet, backend)]
    if len(fitting) == 1:
        return fitting[0]
    names = ", ".join(backend.name for backend in fitting) or ", ".join(registry.names())
    raise InputError(f"{fleet.name} could go to {names}; choose one with --backend, in Python with backend=")


def _has_models(fleet: Fleet, backend: Backend) -> bool:
    sources = [document.spec.source(backend.name) for document in fleet.models]
    return all(source is not None and (source.deployed or source.format in backend.formats) for source in sources)


def render(fleet: Fleet, backend: Backend, site: Site | None = None) -> dict[str, str]:
    """Return every rendered text by its path."""
    from servewright.rendering import render as rendered

    return rendered(fleet, backend, site)


def check(fleet: Fleet, backend: Backend, *, trust: bool = False) -> None:
    """Raise all that is wrong in the specs, and then in the files that they name, before anything is made."""
    from servewright import materials

    render(fleet, backend)
    materials.check(fleet, backend, trust=trust)


def package(fleet: Fleet, backend: Backend, target: Path, *, packed: bool = True, trust: bool = False) -> Artifact:
    """Write the artifact of ``fleet`` to ``target``."""
    check(fleet, backend, trust=trust)
    return _packaged(fleet, backend, target, packed=packed, trust=trust)


def _packaged(fleet: Fleet, backend: Backend, target: Path, *, packed: bool, trust: bool) -> Artifact:
    from servewright import packaging

    return packaging.package(fleet, backend, target, packed=packed, trust=trust)


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

    ``image`` is for runtime docker; ``output`` keeps the artifact; ``parity`` runs the original model too; ``trust``
    lets a stranger's code run.
    """

    runtime: str = "auto"
    image: str | None = None
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
    on_pull: PullListener = lambda _share, _what: None,
) -> Report:
    """Render, package, launch, probe and stop; return what was found."""
    from servewright import launching
    from servewright.reporting import Report

    watch = Stopwatch()
    # Before anything is made: what is wrong with the input, and what is missing on this machine.
    check(fleet, backend, trust=wishes.trust)
    runs.sweep()
    choice = choice_for(fleet, backend, wishes.runtime, wishes.image, on_pull)
    with _artifact_folder(wishes.output) as folder:
        on_stage("package")
        with watch.timing("package"):
            artifact = _packaged(fleet, backend, folder, packed=wishes.packed, trust=wishes.trust)
        on_stage(f"launch ({choice.runtime}: {choice.reason})")
        with watch.timing("launch"):
            server, client = launching.start(fleet, backend, artifact, choice)
        with _served(server, client, watch, on_stage):
            on_stage("probe")
            with watch.timing("probe"):
                checks = _probed(fleet, backend, server, client, wishes, on_check)
            identity = backend.identity(client)
        kept = {"folder": str(folder), "digest": artifact.digest} if wishes.output else {"digest": artifact.digest}
    return Report(
        backend=backend.name, runtime=choice.runtime, server=identity, checks=checks, timings_s=watch.times_s,
        artifacts=kept | dict(server.image), notes=(*server.notes, f"runtime {choice.runtime}: {choice.reason}"),
        strict=wishes.strict,
    )  # fmt: skip


def choice_for(
    fleet: Fleet,
    backend: Backend,
    runtime: str,
    image: str | None,
    on_pull: PullListener = lambda _share, _what: None,
) -> Choice:
    """Return how ``fleet`` can be run here; `UnavailableError` says what is missing."""
    from servewright import launching

    # Whoever names an image wants it run.
    wanted = launching.DOCKER if image and runtime == launching.AUTO else runtime
    return launching.choose(backend, wanted, image=image or launching.image_for(backend, fleet), progress=on_pull)


@contextmanager
def _served(server: RunningServer, client: Client, watch: Stopwatch, on_stage: Listener) -> Iterator[None]:
    """Stop ``server`` after the block; where that fails too, the block's error comes first."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, ProbeError):
            for line in server.log_tail():
                error.add_note(f"  | {line}")
        client.close()
        try:
            server.stop()
        except ServewrightError as second:
            error.add_note(str(second))
        raise
    on_stage("stop")
    client.close()
    with watch.timing("stop"):
        server.stop()


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

    check(fleet, backend, trust=wishes.trust)
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
        artifacts=dict(server.image), notes=server.notes, strict=wishes.strict,
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
    from servewright.reporting import Status

    reference_of = _reference_of(backend, trust=wishes.trust) if wishes.parity else None
    checks = []
    for check in probing.probe(
        fleet, backend, server, client, reference_of=reference_of, require_real=wishes.require_real
    ):
        on_check(check)
        checks.append(check)
    if any(check.status is Status.FAIL for check in checks):
        _check_alive(backend, server)
    return tuple(checks)


def _check_alive(backend: Backend, server: RunningServer) -> None:
    """Raise `LaunchError` where ``server`` has died: then no check failed, but everything."""
    from servewright import processes

    with suppress(ProbeTimeoutError):
        # The end of a process shows a moment after the end of its connections.
        processes.wait_until(lambda: not server.alive(), within_s=0.5, every_s=0.1, what="it ends")
        why = server.why_ended()
        raise LaunchError(
            f"{backend.title} ended while it was probed" + (f": {why}" if why else ""), log_tail=server.log_tail()
        )


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


def import_configs(
    paths: Sequence[Path], *, name: str, live: Live | None = None, backend: str | None = None
) -> tuple[Imported, ...]:
    """Return the fleet of each backend that ``paths`` hold configs of, and what a running server tells.

    Nothing is written. Where a server has no call for its config, as TensorFlow Serving, it tells its versions alone,
    and ``paths`` must hold the config.
    """
    from servewright import importing
    from servewright.linting import walking

    importers = {each: offer() for each in registry.names() if (offer := registry.get(each).importing) is not None}
    pieces: dict[str, list[Piece]] = {}
    left_out = []
    for path in paths:
        for file, kind in walking.recognised(path):
            takers = [each for each, importer in importers.items() if kind in importer.kinds]
            for each in takers if backend is None else {backend} & set(takers):
                pieces.setdefault(each, []).extend(importers[each].pieces(file, kind))
            if not takers:
                left_out.append(f"{file} is left out: a spec has no place for {walking.kinds()[kind]}")
    if live is not None:
        chosen = registry.get(backend or next(iter(pieces), "") or _only_live(live))
        if chosen.name not in importers:
            raise InputError(f"{chosen.title} cannot be imported yet")
        draft = _live_draft(chosen, importers[chosen.name], live, pieces.get(chosen.name, []))
        sources = [live.said, *(piece.shown for piece in pieces.get(chosen.name, []))]
        return (importing.imported(draft, chosen, name=name, sources=sources, notes=left_out),)
    if not pieces:
        raise InputError(f"no config of a model server in {', '.join(map(str, paths))}; see: servewright lint --kinds")
    return tuple(
        importing.imported(
            importers[each].draft(own), registry.get(each), name=name, sources=[piece.shown for piece in own],
            notes=left_out,
        )
        for each, own in sorted(pieces.items())
    )  # fmt: skip


def _only_live(live: Live) -> str:
    raise InputError(f"say what {live.said} is: add --backend, one of {', '.join(registry.names())}")


def _live_draft(backend: Backend, importer: Importer, live: Live, pieces: Sequence[Piece]) -> Draft:
    client = backend.connect(live.server(backend.name))
    try:
        return importer.live(client, pieces)
    finally:
        client.close()


def drift(fleet: Fleet, backend: Backend, live: Live) -> Drift:
    """Return how a live server differs from ``fleet``; nothing is changed, and no file of a model is needed."""
    from servewright import drift as drifts
    from servewright import rendering

    rendering.check(fleet, backend)
    return drifts.compare(fleet, backend, live.server(backend.name))


@contextmanager
def _artifact_folder(output: Path | None) -> Iterator[Path]:
    if output is not None:
        yield output
        return
    with runs.running() as run:
        yield run.folder / "artifact"


def up(
    fleet: Fleet,
    backend: Backend,
    spec: Path,
    *,
    name: str | None,
    runtime: str,
    image: str | None = None,
    trust: bool = False,
    on_stage: Listener = lambda _: None,
    on_pull: PullListener = lambda _share, _what: None,
) -> Record:
    """Start a server that outlives this process, ready to serve; `down` ends it."""
    from servewright import launching, state

    check(fleet, backend, trust=trust)
    runs.sweep()
    choice = choice_for(fleet, backend, runtime, image, on_pull)
    with state.claimed(name or fleet.name) as folder:
        on_stage("package")
        artifact = _packaged(fleet, backend, folder / "artifact", packed=False, trust=trust)
        on_stage(f"launch ({choice.runtime}: {choice.reason})")
        server, client = launching.start(fleet, backend, artifact, choice, kept_by=folder / state.FILE)
        try:
            assert server.handle is not None
            assert server.site is not None
            record = state.Record(
                name=folder.name, backend=backend.name, runtime=choice.runtime, endpoints=dict(server.endpoints),
                spec=str(spec.absolute()), stand_in=backend.identity(client).stand_in, image=dict(server.image),
                site=asdict(server.site), models=tuple(document.spec.name for document in fleet.models),
                notes=server.notes,
                signatures={document.spec.name: document.spec.signature.name for document in fleet.models},
                called={document.spec.name: backend.called(document.spec) for document in fleet.models},
                run=str(server.folder), log=str(server.handle.log), **server.handle.record(),
            )  # fmt: skip
            state.write(folder, record)
            # Until here it would have ended with us; now there is a note of it.
            server.release()
        except BaseException:
            (folder / state.FILE).unlink(missing_ok=True)
            server.stop()
            raise
        finally:
            client.close()
    return record


def down(name: str) -> None:
    """End the server called ``name`` and remove what is kept of it."""
    from servewright import state

    state.end(state.find(name))


def sweep() -> None:
    """Remove what killed commands left: folders, half-made servers, containers."""
    from servewright import docker_runtime, state
    from servewright.errors import UnavailableError

    runs.sweep()
    state.sweep()
    with suppress(UnavailableError):
        docker_runtime.sweep_here()


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageWishes:
    """How `image` goes about it; ``mounted`` leaves the models out, for those who mount them."""

    base: str | None = None
    wheelhouse: Path | None = None
    mounted: bool = False
    trust: bool = False


def image(
    fleet: Fleet | None,
    backend: Backend,
    wishes: ImageWishes,
    *,
    tag: str | None = None,
    folder: Path | None = None,
    on_stage: Listener = lambda _: None,
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Build an image called ``tag``, or write its context to ``folder``; return what was made, and notes."""
    from servewright import engine, images

    where = engine.connect() if tag else None
    notes: tuple[str, ...] = ()
    if fleet is not None and fleet.without_ports() != fleet:
        fleet = fleet.without_ports()
        inside = ", ".join(f"{name} {port}" for name, port in backend.home.ports.items())
        notes = (f"server.ports are for who runs the image: it listens on {inside}; publish them with -p",)
    with runs.running() as run:
        artifact = None
        if fleet is not None and not wishes.mounted:
            on_stage("package")
            artifact = package(fleet, backend, run.folder / "artifact", trust=wishes.trust)
        found = images.context(
            backend, fleet=fleet, artifact=artifact, base=wishes.base or images.DEFAULT_BASE,
            wheelhouse=wishes.wheelhouse,
        )  # fmt: skip
        if where is None:
            assert folder is not None
            images.write(found, folder)
            return {"folder": str(folder)}, (*notes, *found.notes)
        on_stage(f"build {tag}")
        assert tag is not None
        built = images.build(where, found, tag, on_line=on_stage)
    return built.facts() | {"sbom": images.SBOM}, (*notes, *found.notes)

"""What a backend is: a value made of data and pure functions, and the values that pass between stages.

Nothing here starts, writes or talks: a backend says what to write, how its server is started, how to read a running
server's settings back, and the stages do it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from pydantic import BaseModel

    from servewright.fleet import Fleet
    from servewright.importing import Importer
    from servewright.linting.linter import Linter
    from servewright.rollout.plan import Rolling
    from servewright.server import RunningServer
    from servewright.spec import ModelSpec, ServerSettings, Signature
    from servewright.specfile import Document
    from servewright.tuning.knobs import Tuning

    Tensors: TypeAlias = Mapping[str, NDArray[np.generic]]

Transport: TypeAlias = Literal["http", "grpc"]
TRANSPORTS: tuple[Transport, ...] = ("http", "grpc")


class Fate(StrEnum):
    """What becomes of a key of the spec on a server."""

    APPLIED = "applied"
    EMULATED = "emulated"
    NOT_APPLICABLE = "not applicable"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What becomes of one key: ``setting`` names what the server calls it, ``remedy`` what to do when refused."""

    key: str
    value: str
    fate: Fate
    setting: str = ""
    note: str = ""
    remedy: str = ""


def outcome(
    spec: ModelSpec,
    key: str,
    fate: Fate,
    setting: str = "",
    *,
    note: str = "",
    remedy: str = "",
    value: str | None = None,
) -> Outcome:
    """Return what becomes of the dotted ``key`` of ``spec``, its value printed as the spec has it."""
    shown = value_at(spec, key) if value is None else value
    return Outcome(key=key, value=shown, fate=fate, setting=setting, note=note, remedy=remedy)


def value_at(spec: ModelSpec, key: str) -> str:
    """Return the value at a dotted ``key`` as short text; defaults inside it are left out."""
    from pydantic import BaseModel

    holder: BaseModel = spec
    path = key.split(".")
    # From the innermost part: to print all of a spec for one of its values takes many times as long.
    while len(path) > 1 and isinstance(inner := getattr(holder, path[0], None), BaseModel):
        holder, path = inner, path[1:]
    node: object = getattr(holder, path[0], None) if len(path) == 1 else None
    if not isinstance(node, str):
        node = _dumped(holder, path, without_defaults=True)
        node = _dumped(holder, path, without_defaults=False) if node is None else node
    text = str(node)
    return text if len(text) <= 40 else text[:37] + "..."


def _dumped(holder: BaseModel, path: Sequence[str], *, without_defaults: bool) -> object:
    node: object = holder.model_dump(mode="json", include={path[0]}, exclude_defaults=without_defaults)
    for part in path:
        node = node.get(part) if isinstance(node, dict) else None
    return node


class Support(StrEnum):
    """An honest answer to "can it?": the server cannot, or we have not written it yet, or yes."""

    FULL = "full"
    NOT_YET = "not yet"
    UNSUPPORTED = "unsupported"


@dataclass(frozen=True, slots=True)
class Capability:
    """What a backend can do, and why not where it cannot."""

    support: Support
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where a server lives, as the server itself sees it: absolute folders, the address to bind, ports by name.

    ``run`` is a folder of the run's own, for logs, keys and temporary files. ``packed``: models lie there as archives,
    where the server has any, and not as folders.
    """

    models: str
    config: str
    run: str
    host: str
    ports: Mapping[str, int]
    packed: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What a template shows, and what the rendered text must mean when it is parsed back."""

    template: str
    values: Mapping[str, object]
    meaning: object


@dataclass(frozen=True, slots=True)
class Archive:
    """A file of an artifact that is itself an archive of ``members``."""

    members: Mapping[str, Path | bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """How an artifact is made: in which folder what is not there yet is made first, and in what form.

    ``packed``: models as archives, where the server has any. ``trust``: code that a model's file holds may run.
    """

    folder: Path
    packed: bool = True
    trust: bool = False


Content: TypeAlias = Path | bytes | Archive


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """What packaging wrote: a folder with ``models/``, ``config/`` and ``manifest.json``.

    ``packed``: its models are archives, where the server has any.
    """

    root: Path
    digest: str
    packed: bool = True

    @property
    def models(self) -> Path:
        """The folder that the server takes its models from."""
        return self.root / "models"

    @property
    def config(self) -> Path:
        """The folder of the server's configuration files."""
        return self.root / "config"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A folder of this machine that the server sees as ``target``."""

    source: Path
    target: str
    read_only: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchPlan:
    """How to start a server: everything a runtime needs, and nothing that only one of them understands.

    ``argv`` starts with the program's plain name; a runtime finds it. ``folders`` are made below ``run`` first.
    ``memory`` is in bytes; ``ready_within_s`` in seconds.
    """

    backend: str
    image: str
    argv: tuple[str, ...]
    site: Site
    environment: Mapping[str, str] = field(default_factory=dict)
    mounts: tuple[Mount, ...] = ()
    folders: tuple[str, ...] = ()
    memory: int | None = None
    cpus: float | None = None
    gpu: bool = False
    ready_within_s: float = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """How a runtime starts a plan's program on this machine: words before the arguments, and environment."""

    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What an image of a server is made of, beside its models and their configuration.

    ``requirements`` are pip's lines, installed below ``/opt/server`` and finished by the commands in ``steps``.
    ``files`` go to ``/opt/servewright``, a program of the server's to ``bin`` there and ``healthcheck.py`` among them;
    so does this package, where the server is part of it (``own_code``). ``uncompiled`` names packages that it does not
    import.
    """

    title: str
    requirements: tuple[str, ...]
    argv: tuple[str, ...]
    files: Mapping[str, bytes]
    environment: Mapping[str, str]
    folders: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
    uncompiled: tuple[str, ...] = ()
    own_code: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a running server says that it is."""

    name: str
    version: str
    stand_in: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One setting as it was wanted and as the running server has it.

    ``found`` is ``None`` where it cannot be read; ``source`` says where it was read, or why it cannot be.
    """

    setting: str
    wanted: object
    found: object | None
    source: str

    @property
    def readable(self) -> bool:
        """Whether there is anything to compare."""
        return self.found is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """One request in its final bytes.

    ``target`` is the path over HTTP and the method over gRPC; ``headers`` over gRPC are its metadata. An answer over
    gRPC that has ``refusal`` near its start is an error, whatever its status says.
    """

    target: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    refusal: bytes = b""


class Client(Protocol):
    """A light client of one running server: numpy in, numpy out, over either transport."""

    def predict(
        self, model: str, inputs: Tensors, *, transport: Transport = "http", timeout_s: float = 30.0
    ) -> dict[str, NDArray[np.generic]]:
        """Return the outputs by name; every input carries the batch axis first."""
        ...

    def close(self) -> None:
        """Close every connection."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """One kind of model server.

    Attributes:
        formats: model formats that it takes.
        targets: server versions that are known, oldest first.
        options: the schema of its own settings (the spec's escape hatch).
        home: where models, configs and runs lie in its usual container, and its usual ports.
        explain: what becomes of each key of a spec.
        filters: how values are escaped in its templates, by the formats' own rules.
        views: what to render: a path below ``config/`` and what its template shows.
        parse: the true grammar of a rendered file; must give the view's ``meaning``.
        members: what to package: a path below the artifact and its content.
        plan: how the server is started.
        program: how a runtime starts it here; `UnavailableError` says what to install.
        connect: a client of a running server.
        ready: whether the server serves all of the fleet; `LaunchError` where it never will.
        identity: what the server says that it is.
        signature: the signature that the server tells, or ``None`` with the reason.
        read_back: every setting as wanted and as found.
        concurrent: how many requests may be sent at once without being turned away.
        most_rows: how many rows one request may have; ``None`` for any number.
        called: the name by which its server knows a model; the spec's, unless its own settings say otherwise.
        unable: why a model's tensors cannot go over a transport; empty where they can.
        asking: a client that asks for the signature of that name.
        payloads: requests in their final bytes, for a load; `None` where it cannot be loaded yet.
        credentials: the headers that let a request in at this moment, asked for again before they expire.
        lint: the rules and readers of its files for the linter; `None` where it has none.
        tuning: its knobs and its scheduler, for the tuner; `None` where it cannot be tuned yet.
        importing: how its configs, and what a live server tells, become specs; `None` where they cannot.
        survey: what a live server has beside what `read_back` asks for, such as models that the fleet does not name.
        rolling: how live servers go from one version to the next; `None` where they cannot yet.
    """

    name: str
    title: str
    templates: Path
    formats: tuple[str, ...]
    targets: tuple[str, ...]
    runtimes: tuple[str, ...]
    options: Callable[[], type[BaseModel]]
    home: Site
    image: str
    capabilities: Mapping[str, Capability]
    explain: Callable[[Document, ServerSettings], Iterable[Outcome]]
    filters: Mapping[str, Callable[..., str]]
    views: Callable[[Fleet, Site], Mapping[str, View]]
    parse: Callable[[str, str], object]
    members: Callable[[Fleet, Mapping[str, str], Build], Mapping[str, Content]]
    plan: Callable[[Fleet, Site], LaunchPlan]
    program: Callable[[str], Program]
    connect: Callable[[RunningServer], Any]
    ready: Callable[[RunningServer, Any, Fleet], bool]
    identity: Callable[[Any], Identity]
    signature: Callable[[Any, ModelSpec], Signature | str]
    read_back: Callable[[RunningServer, Any, Fleet], Iterable[Reading]]
    concurrent: Callable[[ModelSpec], int]
    most_rows: Callable[[ModelSpec], int | None] = lambda _: None
    called: Callable[[ModelSpec], str] = lambda spec: spec.name
    unable: Callable[[ModelSpec, Transport], str] = lambda _spec, _transport: ""
    asking: Callable[[Any, str], Any] = lambda client, _: client
    payloads: Callable[[ModelSpec, Sequence[Tensors], Transport], Sequence[Payload]] | None = None
    credentials: Callable[[Any], Mapping[str, str]] = lambda _: {}
    recipe: Callable[[Fleet | None, Site], Recipe] | None = None
    lint: Callable[[], Linter] | None = None
    tuning: Callable[[], Tuning] | None = None
    rolling: Callable[[], Rolling] | None = None
    importing: Callable[[], Importer] | None = None
    survey: Callable[[Any, Fleet], Iterable[Reading]] = lambda _client, _fleet: ()

"""A server for as long as a block lasts: what the pytest plugin, notebooks and scripts use.

```python
with serve("digits.yaml", backend="torchserve") as server:
    scores = server.predict({"image": images})["scores"]
```
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from servewright.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from servewright.backend import Backend, Client, Tensors, Transport
    from servewright.fleet import Fleet
    from servewright.server import RunningServer


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Served:
    """A server that serves a spec: predictions by name, its addresses, and its log."""

    name: str
    models: tuple[str, ...]
    server: RunningServer = field(repr=False)
    client: Client = field(repr=False)
    asking: Mapping[str, Any] = field(default_factory=dict, repr=False)  # by model: the client that its spec wants
    called: Mapping[str, str] = field(default_factory=dict, repr=False)  # by model: what its server calls it

    @property
    def backend(self) -> str:
        """Which kind of server it is."""
        return self.server.backend

    @property
    def runtime(self) -> str:
        """What runs it: docker, process or embedded."""
        return self.server.runtime

    @property
    def endpoints(self) -> dict[str, str]:
        """The addresses as ``host:port`` by name: http, grpc, and what else the server has."""
        return dict(self.server.endpoints)

    @property
    def url(self) -> str:
        """Where it answers HTTP, for requests of one's own: ``http://host:port``."""
        return f"http://{self.server.endpoints['http']}"

    @property
    def headers(self) -> dict[str, str]:
        """The headers that let a request of one's own in: a token that is valid now, where the server wants one."""
        from servewright import registry

        return dict(registry.get(self.backend).credentials(self.client))

    def predict(
        self, inputs: Tensors, *, model: str | None = None, transport: Transport = "http", timeout_s: float = 30.0
    ) -> dict[str, NDArray[np.generic]]:
        """Return the outputs by name; every array has the batch axis first.

        ``model`` may be left out where there is one. Raises `ServerAnswerError` where the server refuses.
        """
        wanted, *others = self.models if model is None else (model,)
        if others:
            raise InputError(f"{self.name} serves {', '.join(self.models)}; say which: predict(..., model=...)")
        client: Client = self.asking.get(wanted, self.client)
        return client.predict(self.called.get(wanted, wanted), inputs, transport=transport, timeout_s=timeout_s)

    def alive(self) -> bool:
        """Tell whether the server runs."""
        return self.server.alive()

    def log_tail(self, lines: int = 50) -> tuple[str, ...]:
        """Return the last lines that the server printed."""
        return self.server.log_tail(lines)


@contextmanager
def serve(
    spec: Path | str,
    *,
    backend: str | None = None,
    runtime: str = "auto",
    image: str | None = None,
    trust: bool = False,
) -> Iterator[Served]:
    """Package ``spec``, start its server, yield it when it serves, and stop it after the block.

    The system chooses its ports, also where the spec names some: any number of servers run side by side.
    ``image`` is for runtime docker, ``trust`` lets code run that the model's file holds. Raises `InputError` for what
    is wrong in the spec, `UnavailableError` where nothing here can run it, and `LaunchError` where it does not start.
    """
    from servewright import launching, packaging, pipeline, runs

    fleet, chosen = _asked_for(spec, backend)
    pipeline.check(fleet, chosen, trust=trust)
    runs.sweep()
    choice = pipeline.choice_for(fleet, chosen, runtime, image)
    with ExitStack() as ending:
        run = ending.enter_context(runs.running())
        artifact = packaging.package(fleet, chosen, run.folder / "artifact", packed=False, trust=trust)
        server, client = launching.start(fleet, chosen, artifact, choice)
        ending.callback(server.stop)
        ending.callback(client.close)
        specs = [document.spec for document in fleet.models]
        asking = {spec.name: chosen.asking(client, spec.signature.name) for spec in specs}
        called = {spec.name: chosen.called(spec) for spec in specs}
        yield Served(name=fleet.name, models=tuple(asking), server=server, client=client, asking=asking, called=called)


@contextmanager
def kept(
    spec: Path | str,
    name: str,
    *,
    backend: str | None = None,
    runtime: str = "auto",
    image: str | None = None,
    trust: bool = False,
) -> Iterator[Served]:
    """Do as `serve`, but leave the server running, called ``name``: ``servewright down NAME`` ends it."""
    from servewright import pipeline

    fleet, chosen = _asked_for(spec, backend)
    pipeline.up(fleet, chosen, Path(spec), name=name, runtime=runtime, image=image, trust=trust)
    with attached(name) as found:
        yield found


@contextmanager
def attached(name: str) -> Iterator[Served]:
    """Yield the server called ``name`` that `up` started; it is left running. `LaunchError` where it has died."""
    from servewright import registry, state

    record = state.running(name)
    server = record.server()
    backend = registry.get(record.backend)
    client = backend.connect(server)
    asking = {model: backend.asking(client, signature) for model, signature in record.signatures.items()}
    try:
        yield Served(
            name=record.name, models=record.models, server=server, client=client, asking=asking, called=record.called
        )  # fmt: skip
    finally:
        client.close()


def _asked_for(spec: Path | str, backend: str | None) -> tuple[Fleet, Backend]:
    """Return what ``spec`` says but for its ports, of which two servers could not both have one."""
    from servewright import pipeline

    fleet = pipeline.load(Path(spec))
    return fleet.without_ports(), pipeline.backend_for(fleet, backend)

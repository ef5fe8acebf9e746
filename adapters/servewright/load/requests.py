"""What a load sends to a server of ours: golden samples, rows made up to fit the signature, or a user's file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from servewright.backend import Backend, Payload, Transport
from servewright.errors import InputError, UnavailableError
from servewright.load.workload import Endpoint
from servewright.samples import Arrays, batchable, different, fitting, load_npz
from servewright.server import RunningServer
from servewright.specfile import Document

SEED = 20_240_229
DIFFERENT = 32


def samples(document: Document, *, file: Path | None = None, count: int = DIFFERENT) -> list[Arrays]:
    """Return ``count`` single-row inputs: rows of ``file``, else of the first golden, else made up, always the same."""
    spec = document.spec
    source = file or (document.resolve(spec.golden[0].inputs) if spec.golden else None)
    known = fitting(load_npz(source), spec.signature.inputs, what=str(source)) if source else None
    if known is not None and not batchable(spec.signature):
        return [known]
    return different(spec.signature, known, count, seed=SEED)


def endpoint(server: RunningServer, transport: Transport) -> Endpoint:
    """Return where a server takes requests over ``transport``."""
    if transport not in server.endpoints:
        known = ", ".join(sorted(server.endpoints))
        raise InputError(f"the server has no {transport} endpoint (it has {known}); choose another --transport")
    return Endpoint(transport=transport, address=server.endpoints[transport])


def prepared(
    document: Document, backend: Backend, client: Any, transport: Transport, inputs: list[Arrays]
) -> tuple[tuple[Payload, ...], Callable[[], Mapping[str, str]]]:
    """Return requests in their final bytes, and what gives the headers that let them in.

    One request is answered first: a load of refusals would measure nothing.
    """
    if backend.payloads is None:
        raise UnavailableError(f"{backend.title} cannot be loaded by its spec yet; give a URL and --data instead")
    backend.asking(client, document.spec.signature.name).predict(document.spec.name, inputs[0], transport=transport)
    return tuple(backend.payloads(document.spec, inputs, transport)), partial(backend.credentials, client)

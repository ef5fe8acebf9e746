"""What a load sends to a server of ours: golden samples, rows made up to fit the signature, or a user's file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from servewright.backend import Backend, Payload, Transport
from servewright.errors import InputError, ServerAnswerError, UnavailableError
from servewright.load.workload import Endpoint
from servewright.samples import Arrays, batchable, different, fitting, load_npz
from servewright.server import RunningServer
from servewright.specfile import Document

SEED = 20_240_229
DIFFERENT = 32
_MOST_ROWS, _MOST_BYTES = 1024, 64 << 20  # of a file: every process of a load holds what it sends


def samples(document: Document, *, file: Path | None = None) -> list[Arrays]:
    """Return single-row inputs: the rows of ``file``, else of the first golden, else made up, always the same.

    Of very many rows, as many as are sent with ease, spread over all of them.
    """
    spec = document.spec
    source = file or (document.resolve(spec.golden[0].inputs) if spec.golden else None)
    if source is None:
        return different(spec.signature, None, DIFFERENT, seed=SEED)
    known = fitting(load_npz(source), spec.signature.inputs, what=str(source))
    if not batchable(spec.signature):
        return [known]
    rows = min(len(array) for array in known.values())
    if rows == 0:
        raise InputError(f"{source} has no rows; write one at least")
    each = max(1, sum(array.nbytes for array in known.values()) // rows)
    count = max(1, min(rows, _MOST_ROWS, _MOST_BYTES // each))
    chosen = np.linspace(0, rows, count, endpoint=False).astype(int).tolist()
    return [{name: array[row : row + 1] for name, array in known.items()} for row in chosen]


def stacked(document: Document, rows: int, *, file: Path | None = None) -> Arrays:
    """Return one input of ``rows`` rows: those of `samples`, over and over. A model without batches has one."""
    singles = samples(document, file=file)
    if not batchable(document.spec.signature):
        return singles[0]
    return {name: np.concatenate([each[name] for each in islice(cycle(singles), rows)]) for name in singles[0]}


def endpoint(server: RunningServer, transport: Transport) -> Endpoint:
    """Return where a server takes requests over ``transport``."""
    if transport not in server.endpoints:
        known = ", ".join(sorted(server.endpoints))
        raise InputError(f"the server has no {transport} endpoint (it has {known}); choose another --transport")
    return Endpoint(transport=transport, address=server.endpoints[transport])


def prepared(
    document: Document,
    backend: Backend,
    client: Any,
    transport: Transport,
    inputs: list[Arrays],
    *,
    file: Path | None = None,
) -> tuple[tuple[Payload, ...], Callable[[], Mapping[str, str]]]:
    """Return requests in their final bytes, and what gives the headers that let them in.

    One request is answered first: a load of refusals would measure nothing. ``file`` is what ``inputs`` came from.
    """
    if backend.payloads is None:
        raise UnavailableError(f"{backend.title} cannot be loaded by its spec yet; give a URL and --data instead")
    spec = document.spec
    try:
        backend.asking(client, spec.signature.name).predict(backend.called(spec), inputs[0], transport=transport)
    except ServerAnswerError as error:
        if file is not None or spec.golden:
            raise
        hint = "; the inputs were made up to fit the signature: give --data, or golden samples in the spec"
        raise ServerAnswerError(error.status, error.message + hint) from error
    return tuple(backend.payloads(spec, inputs, transport)), partial(backend.credentials, client)

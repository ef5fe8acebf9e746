"""Probing: whether a running server does what the spec says, and its answers are right."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from servewright.backend import TRANSPORTS, Backend, Identity, Transport
from servewright.comparing import Tolerance, difference, misfit, stranger
from servewright.errors import MissingExtraError, ModelFileError, ProbeError, ServewrightError, UntrustedPickleError
from servewright.fleet import Fleet
from servewright.reporting import Check, Status
from servewright.samples import Arrays, batchable, different, fitting, load_npz, made_up
from servewright.samples import shown as shape_shown
from servewright.server import RunningServer
from servewright.spec import ModelSpec, TensorSpec
from servewright.specfile import Document

SEED = 20_240_229
MOST_CONCURRENT = 64


class Reference(Protocol):
    """The original model, run without any server."""

    def predict(self, inputs: Arrays) -> Arrays:
        """Return the outputs by name."""
        ...


_Ask = Callable[[Arrays, Transport], Arrays]
# Gives the original model of a spec; an error of ours where it cannot be run here.
ReferenceOf = Callable[[Document], Any]
_LOOSER = {"float16": Tolerance(rtol=1e-2, atol=1e-3), "bfloat16": Tolerance(rtol=5e-2, atol=1e-2)}


def probe(
    fleet: Fleet,
    backend: Backend,
    server: RunningServer,
    client: Any,
    *,
    reference_of: ReferenceOf | None,
    require_real: bool = False,
) -> Iterator[Check]:
    """Yield every check of ``fleet`` against a running server, as it is made."""
    yield identity_check(backend.identity(client), require_real=require_real)
    many = len(fleet.models) > 1
    for reading in backend.read_back(server, client, fleet):
        name = f"setting {reading.setting}"
        if not reading.readable:
            yield Check(name, Status.UNVERIFIABLE, f"wanted {_shown(reading.wanted)}; {reading.source}")
        elif reading.found != reading.wanted:
            detail = (
                f"the server has {_shown(reading.found)}, the spec says {_shown(reading.wanted)} ({reading.source})"
            )
            yield Check(name, Status.FAIL, detail)
        else:
            yield Check(name, Status.PASS, f"{_shown(reading.found)} ({reading.source})")
    transports: list[Transport] = [each for each in TRANSPORTS if each in server.endpoints]
    for transport in TRANSPORTS:
        if transport not in transports:
            yield Check(f"answers over {transport}", Status.UNVERIFIABLE, f"no address was given: --{transport}")
    for document in fleet.models:
        prefix = f"{document.spec.name}: " if many else ""
        for check in model_checks(document, backend, client, reference_of, transports=transports):
            yield Check(prefix + check.name, check.status, check.detail)


def identity_check(identity: Identity, *, require_real: bool) -> Check:
    """Say what answers, as it says itself; a stand-in fails where a real server is required."""
    name = f"{identity.name} {identity.version}"
    if not identity.stand_in:
        return Check("server", Status.PASS, f"{name}, a real server")
    return Check("server", Status.FAIL if require_real else Status.PASS, f"{name}, a stand-in: it proves only itself")


def _shown(value: object) -> str:
    return repr(value) if isinstance(value, str) and not value else str(value)


def model_checks(
    document: Document,
    backend: Backend,
    client: Any,
    reference_of: ReferenceOf | None,
    *,
    transports: Sequence[Transport] = TRANSPORTS,
    most_at_once: int = MOST_CONCURRENT,
) -> Iterator[Check]:
    """Yield every check of one model, as it is made, over those ``transports`` that its server has.

    ``most_at_once``: how many requests may be sent together to a server that has other work too.
    """
    spec, ask = document.spec, _asker(document.spec, backend, client)
    yield _metadata(spec, backend, client)
    why_not: dict[Transport, str] = {transport: backend.unable(spec, transport) for transport in transports}
    transports = [transport for transport, why in why_not.items() if not why]
    for transport, why in why_not.items():
        if why:
            yield Check(f"answers over {transport}", Status.UNVERIFIABLE, why)
    if not transports:
        return
    goldens = list(_goldens(document))
    for index, (golden, wanted, within) in enumerate(goldens):
        for transport in transports:
            yield _checked(
                f"golden[{index}] over {transport}",
                lambda transport=transport, golden=golden, wanted=wanted, within=within: difference(  # type: ignore[misc]
                    ask(golden, transport), wanted, within
                ),
                f"{_rows(golden)} rows as recorded",
            )
    known = goldens[0][0] if goldens else None
    sample = known or made_up(spec.signature, 3 if batchable(spec.signature) else 1, seed=SEED)
    yield from _signature_kept(spec, ask, sample, transports)
    yield from _parity(document, ask, sample, transports, reference_of)
    yield _repeatable(ask, sample, transports[0])
    for transport in transports:
        yield batching_by_value(spec, backend, client, known, transport, most=most_at_once)


def _asker(spec: ModelSpec, backend: Backend, client: Any) -> _Ask:
    """Return what asks a model as its spec says; more rows than the server takes at once go in several requests."""
    asking, name = backend.asking(client, spec.signature.name), backend.called(spec)
    most = backend.most_rows(spec) if batchable(spec.signature) else None

    def ask(inputs: Arrays, transport: Transport) -> Arrays:
        counts = {len(array) if array.ndim else 0 for array in inputs.values()}
        rows = counts.pop() if len(counts) == 1 else 0
        if most is None or rows <= most:
            found: Arrays = asking.predict(name, inputs, transport=transport)
            return found
        parts = [
            asking.predict(name, {each: array[at : at + most] for each, array in inputs.items()}, transport=transport)
            for at in range(0, rows, most)
        ]
        import numpy as np  # rendering, which is not to wait for it, imports this module too

        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    return ask


def tolerance(spec: ModelSpec) -> Tolerance:
    """Return how far floats may be off: as the first golden says, and wider for a handler that computes in less."""
    if spec.golden:
        return Tolerance(rtol=spec.golden[0].rtol, atol=spec.golden[0].atol)
    return _LOOSER.get(spec.handler.dtype, Tolerance())


def _goldens(document: Document) -> Iterator[tuple[Arrays, Arrays, Tolerance]]:
    for golden in document.spec.golden:
        inputs = fitting(
            load_npz(document.resolve(golden.inputs)), document.spec.signature.inputs, what=f"golden {golden.inputs}"
        )
        outputs = fitting(
            load_npz(document.resolve(golden.outputs)), document.spec.signature.outputs, what=f"golden {golden.outputs}"
        )
        yield inputs, outputs, Tolerance(rtol=golden.rtol, atol=golden.atol)


def _rows(arrays: Arrays) -> int:
    return max((array.shape[0] if array.ndim else 1) for array in arrays.values())


def _checked(name: str, complaint: Callable[[], str], success: str) -> Check:
    """Make one check: it fails with what ``complaint`` returns, and with any error of the server's."""
    try:
        found = complaint()
    except MissingExtraError as error:
        return Check(name, Status.UNVERIFIABLE, str(error))
    except ProbeError as error:
        return Check(name, Status.FAIL, str(error))
    return Check(name, Status.FAIL, found) if found else Check(name, Status.PASS, success)


def _metadata(spec: ModelSpec, backend: Backend, client: Any) -> Check:
    told = backend.signature(client, spec)
    if isinstance(told, str):
        return Check("metadata", Status.UNVERIFIABLE, told)
    for kind, found, wanted in (
        ("inputs", told.inputs, spec.signature.inputs),
        ("outputs", told.outputs, spec.signature.outputs),
    ):
        if set(found) != set(wanted):
            return Check("metadata", Status.FAIL, f"{kind} are {_listed(found)}, the spec says {_listed(wanted)}")
    return Check("metadata", Status.PASS, f"signature {spec.signature.name!r} as in the spec")


def _listed(tensors: Iterable[TensorSpec]) -> str:
    texts = (f"{tensor.name}: {tensor.dtype} {shape_shown(tensor.shape)}" for tensor in tensors)
    return ", ".join(sorted(texts))


def _signature_kept(spec: ModelSpec, ask: _Ask, sample: Arrays, transports: Sequence[Transport]) -> Iterator[Check]:
    for transport in transports:
        yield _checked(
            f"outputs over {transport}",
            lambda transport=transport: misfit(  # type: ignore[misc]
                ask(sample, transport), spec.signature
            ),
            "names, dtypes and shapes as in the signature",
        )


def _parity(
    document: Document, ask: _Ask, sample: Arrays, transports: Sequence[Transport], reference_of: ReferenceOf | None
) -> Iterator[Check]:
    if reference_of is None:
        return
    try:
        with reference_of(document) as reference:
            wanted = reference.predict(sample)
    except ModelFileError as error:
        untrusted = isinstance(error, UntrustedPickleError)
        yield Check("parity", Status.UNVERIFIABLE if untrusted else Status.FAIL, f"the original model: {error}")
        return
    except ServewrightError as error:
        yield Check("parity", Status.UNVERIFIABLE, f"the original model cannot be run here: {error}")
        return
    within = tolerance(document.spec)
    for transport in transports:
        yield _checked(
            f"parity over {transport}",
            lambda transport=transport: difference(  # type: ignore[misc]
                ask(sample, transport), wanted, within
            ),
            f"{_rows(sample)} rows equal to the original model's",
        )


def _repeatable(ask: _Ask, sample: Arrays, transport: Transport) -> Check:
    def complaint() -> str:
        first, second = ask(sample, transport), ask(sample, transport)
        found = difference(second, first, Tolerance(rtol=1e-6, atol=1e-7))
        return (
            f"the same request gave two answers: {found}; is dropout or another training-only layer on?"
            if found
            else ""
        )

    return _checked("repeatable", complaint, "the same request twice gives the same answer")


def batching_by_value(
    spec: ModelSpec,
    backend: Backend,
    client: Any,
    known: Arrays | None,
    transport: Transport,
    *,
    most: int = MOST_CONCURRENT,
) -> Check:
    """Send different requests at once: each must get its own answer, not a neighbour's."""
    name = f"batching by value over {transport}"
    if not batchable(spec.signature):
        return Check(name, Status.UNVERIFIABLE, "the signature has no batch axis")
    count = max(2, min(most, backend.concurrent(spec)))
    requests, ask = different(spec.signature, known, count, seed=SEED), _asker(spec, backend, client)
    count = len(requests)
    if count == 1:
        return Check(name, Status.UNVERIFIABLE, "no two inputs of this signature differ")

    def complaint() -> str:
        # The warm-up of a connection may not decide what meets in a batch.
        serial = [ask(request, transport) for request in requests]
        with ThreadPoolExecutor(count) as pool:
            together = list(pool.map(lambda request: ask(request, transport), requests))
        for index, (alone, batched) in enumerate(zip(serial, together, strict=True)):
            if found := difference(batched, alone, tolerance(spec)):
                return f"request {index} of {count} at once differs from itself alone: {found}"
            other = stranger(batched, index, serial)
            if other is not None and difference(serial[other], alone, Tolerance(rtol=1e-5, atol=1e-6)):
                return f"request {index} of {count} got an answer nearer to request {other}'s"
        return ""

    return _checked(name, complaint, f"{count} different requests at once, each its own answer")

"""One loaded version of a model: its signatures, and how to run them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from servewright.backends.tfserving.embedded.batching import BatchedSession, now_us
from servewright.backends.tfserving.embedded.predict_wire import spec_field
from servewright.backends.tfserving.embedded.session import Names, Session
from servewright.backends.tfserving.embedded.status import invalid_argument
from servewright.backends.tfserving.embedded.tensor import Tensor
from servewright.backends.tfserving.embedded.workers import Workers

DEFAULT_SIGNATURE = "serving_default"
PREDICT_METHOD = "tensorflow/serving/predict"
CLASSIFY_METHOD = "tensorflow/serving/classify"
REGRESS_METHOD = "tensorflow/serving/regress"


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature, with its tensors' names in the graph by the names that requests use."""

    name: str
    message: Any  # SignatureDef
    inputs: Mapping[str, str]
    input_types: Mapping[str, int]
    outputs: Mapping[str, str]
    spec: bytes  # field 2 of a PredictResponse


def read_signatures(model: str, version: int, meta_graph: Any) -> dict[str, Signature]:
    """Return the signatures of a MetaGraphDef by name."""
    return {
        name: Signature(
            name=name,
            message=message,
            inputs={alias: info.name for alias, info in sorted(message.inputs.items())},
            input_types={alias: info.dtype for alias, info in sorted(message.inputs.items())},
            outputs={alias: info.name for alias, info in sorted(message.outputs.items())},
            spec=spec_field(model, version, name),
        )
        for name, message in meta_graph.signature_def.items()
    }


@dataclass(slots=True, eq=False)
class Servable:
    """A version that can be asked; it stays in memory until the last request that uses it has ended."""

    name: str
    version: int
    path: str
    session: Session
    signatures: Mapping[str, Signature]
    workers: Workers
    batched: BatchedSession | None = None
    leases: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    @contextmanager
    def leased(self) -> Iterator[Servable]:
        """Keep this version loaded while the ``with`` block lasts."""
        self.leases += 1
        try:
            yield self
        finally:
            self.leases -= 1
            if not self.leases:
                self.idle.set()

    async def run(
        self, inputs: Sequence[tuple[str, Tensor]], fetches: Names, deadline_us: int | None = None
    ) -> list[Tensor]:
        """Run the graph from the tensors ``inputs`` to ``fetches``; raise `StatusError`."""
        if self.batched is not None:
            return await self.batched.run(inputs, fetches, deadline_us)
        runner = self.session.runner(tuple([name for name, _ in inputs]), fetches)
        tensors = [tensor for _, tensor in inputs]

        def job() -> list[Tensor]:
            return runner(tensors, remaining_ms(deadline_us))

        result: list[Tensor] = await self.workers.run(job)
        return result

    async def unload(self) -> None:
        """Wait for the last request to end, and free the memory."""
        while self.leases:
            self.idle.clear()
            await self.idle.wait()
        if self.batched is not None:
            self.batched.close()
        await self.workers.run(self.session.close)


def remaining_ms(deadline_us: int | None) -> int:
    """Return the milliseconds until a deadline, at least 1; 0 for none."""
    return 0 if deadline_us is None else max(1, (deadline_us - now_us()) // 1000)


def feeds(signature: Signature, inputs: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the alias and the tensor name of every input, sent or with a default; or refuse what was sent."""
    defaults = signature.message.defaults
    if len(inputs) > len(signature.inputs) or (len(inputs) < len(signature.inputs) and not defaults):
        sent, known = set(inputs), set(signature.inputs)
        raise invalid_argument(
            f"input size does not match signature: {len(sent)}!={len(known)} len({_braced(sent)}) != "
            f"len({_braced(known)}). Sent extra: {_braced(sent - known)}. Missing but required: "
            f"{_braced(known - sent)}."
        )
    for alias, tensor in signature.inputs.items():
        if alias not in inputs and alias not in defaults:
            raise invalid_argument(
                f"Signature input alias: {alias}(feed name: {tensor}) not found in request and no default value "
                f"provided. Inputs expected to be in the request {_braced(inputs)}, or default input alias set: "
                f"{','.join(sorted(defaults))}"
            )
    return list(signature.inputs.items())


def chosen_outputs(signature: Signature, output_filter: Sequence[str]) -> dict[str, str]:
    """Return the tensor names of the outputs that a request wants, by alias; all of them if it names none."""
    if not output_filter:
        return dict(signature.outputs)
    chosen: dict[str, str] = {}
    for alias in output_filter:
        if alias not in signature.outputs:
            raise invalid_argument(
                f"output tensor alias not found in signature: {alias} Outputs expected to be in the set "
                f"{_braced(signature.outputs)}."
            )
        if alias in chosen:
            raise invalid_argument(f"duplicate output tensor alias: {alias}")
        chosen[alias] = signature.outputs[alias]
    return chosen


def _braced(names: Any) -> str:
    return "{" + ",".join(sorted(names)) + "}"

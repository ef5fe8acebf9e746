"""TorchScript archives: safe to read, silent about shapes.

``torch.jit.load`` reads with an unpickler of its own, in C++, which knows tensors, containers and the classes that the
archive itself defines in TorchScript, and can import nothing of Python's. So no scan stands before it.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from servewright.modelfiles import inspection
from servewright.modelfiles.examples import inspect_by_example
from servewright.modelfiles.inspection import Inspection, Source

if TYPE_CHECKING:
    from servewright.modelfiles.worker import Loaded
    from servewright.spec import Signature


def inspect(source: Source) -> Inspection:
    """Return what the archive tells, which takes an example of its inputs."""
    if source.example is None:
        return Inspection(
            path=source.path,
            format=source.format,
            size_bytes=inspection.size_of(source.path),
            needs=("example",),
        )
    return inspect_by_example(source)


def load(source: Source, signature: Signature | None) -> Loaded:
    """Return what runs the archive's ``forward``; runs in a child."""
    from servewright.modelfiles import torch_runtime

    torch = torch_runtime.torch()
    with warnings.catch_warnings():
        # torch 2.13 deprecates TorchScript; the archives of existing fleets hold nothing else.
        warnings.simplefilter("ignore", DeprecationWarning)
        network = torch.jit.load(str(source.path), map_location="cpu").eval()
    parameters = [argument.name for argument in network.forward.schema.arguments[1:]]
    return torch_runtime.predictor(network, signature, parameters=parameters, keywords=parameters)


OPERATIONS: dict[str, object] = {}

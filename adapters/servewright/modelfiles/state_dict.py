"""What ``torch.save`` wrote: weights for a network whose code the user names; a stranger's pickle is not run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from servewright.errors import InputError, ModelFileError
from servewright.modelfiles import inspection, pickles
from servewright.modelfiles.examples import inspect_by_example
from servewright.modelfiles.inspection import Inspection, Source

if TYPE_CHECKING:
    from servewright.modelfiles.worker import Loaded
    from servewright.spec import Signature

# Where training loops put the weights beside their own state.
_NESTS = ("state_dict", "model_state_dict", "model")
_REMEDY = "save the weights alone with torch.save(model.state_dict(), 'model.pt')"


def inspect(source: Source) -> Inspection:
    """Return what the file tells, which takes the network's code and an example of its inputs."""
    screen(source)
    needs = [name for name in ("code", "example") if getattr(source, name) is None]
    if needs:
        return Inspection(
            path=source.path,
            format=source.format,
            size_bytes=inspection.size_of(source.path),
            needs=tuple(needs),
            code=source.code,
        )
    return inspect_by_example(source)


def screen(source: Source) -> None:
    """Raise `UntrustedPickleError` where reading the file would run code, unless its user trusts it."""
    found = pickles.torch_imports(source.path)
    if not source.trust:
        pickles.refuse_strangers(source.path, found, remedy=_REMEDY)


def load(source: Source, signature: Signature | None) -> Loaded:
    """Return what runs the network with these weights; runs in a child."""
    from servewright.modelfiles import torch_runtime

    torch = torch_runtime.torch()
    screen(source)
    kind = None if source.code is None else torch_runtime.attribute(source.code)
    content = torch.load(str(source.path), map_location="cpu", weights_only=not source.trust)
    network = content if isinstance(content, torch.nn.Module) else _filled(source, kind, content, torch)
    network.eval()
    parameters, keywords = torch_runtime.parameters_of(network.forward)
    return torch_runtime.predictor(network, signature, parameters=parameters, keywords=keywords)


def _filled(source: Source, kind: Any, content: Any, torch: Any) -> Any:
    if kind is None:
        raise InputError(f"{source.path} holds weights only; name the network's class: --code net.py:Net")
    try:
        network = kind()
    except TypeError as error:
        raise InputError(f"{source.code} wants arguments ({error}); name a function that makes the network") from error
    if not isinstance(network, torch.nn.Module):
        raise InputError(f"{source.code} gives {type(network).__name__}, not a torch.nn.Module; name the right class")
    weights = content
    for nest in _NESTS:
        if isinstance(weights, Mapping) and isinstance(weights.get(nest), Mapping):
            weights = weights[nest]
            break
    if not isinstance(weights, Mapping):
        raise ModelFileError(f"{source.path} holds {type(weights).__name__}, not a state_dict; {_REMEDY}")
    try:
        network.load_state_dict(weights)
    except (RuntimeError, AttributeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ModelFileError(
            f"{source.path} does not fit {source.code}: {lines[-1][:400]}; name the class that the weights come from"
        ) from error
    return network


OPERATIONS: dict[str, object] = {}

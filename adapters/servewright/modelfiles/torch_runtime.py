"""What every format of torch has in common in the child: importing it, and calling a network with arrays by name."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from servewright.errors import InputError, MissingExtraError, ModelFileError
from servewright.modelfiles.binding import bound, refuse_half_named
from servewright.modelfiles.frames import Array

if TYPE_CHECKING:
    from servewright.modelfiles.worker import Arrays, Loaded
    from servewright.spec import Signature


def torch() -> Any:
    """Import torch with sane threads, without gradients."""
    from servewright.modelfiles.worker import THREADS

    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("torch", "torchserve", "running a PyTorch model") from error
    torch.set_num_threads(THREADS)
    # use_deterministic_algorithms does the same, and imports the whole compiler for it.
    torch.set_deterministic_debug_mode("warn")
    return torch


def predictor(
    network: Callable[..., Any],
    signature: Signature | None,
    *,
    parameters: Sequence[str] | None,
    keywords: Sequence[str] = (),
) -> Loaded:
    """Return how to call ``network`` with arrays by name, and names for what it returns.

    ``parameters`` are the network's own names of what it takes, in order: inputs that have such names are handed over
    to these, others in order to those that are left. ``keywords`` are those of them that can be given by name, and are.
    """
    from servewright.modelfiles.worker import Loaded

    torch_ = torch()
    order = [] if signature is None else [item.name for item in signature.inputs]
    dtypes = {} if signature is None else {item.name: item.dtype for item in signature.inputs}
    names = [] if signature is None else [item.name for item in signature.outputs]

    def predict(inputs: Arrays) -> Arrays:
        tensors = {name: tensor_of(inputs[name], dtypes.get(name)) for name in order or inputs}
        pairs = bound(list(tensors), parameters or ())
        named = {parameter: tensors[name] for parameter, name in pairs if parameter in keywords}
        placed = [tensors[name] for parameter, name in pairs if parameter not in keywords]
        with torch_.inference_mode():
            result = network(*(placed if pairs else tensors.values()), **named)
        found = flattened(result)
        if not names:
            return {name: array_of(value) for name, value in found.items()}
        if set(found) >= set(names):  # a network that names its outputs
            return {name: array_of(found[name]) for name in names}
        if len(found) != len(names):
            raise ModelFileError(
                f"the model returns {len(found)} outputs ({', '.join(found)}), and its signature has {len(names)} "
                f"({', '.join(names)}); correct the signature"
            )
        if isinstance(result, Mapping) or hasattr(result, "_fields"):
            refuse_half_named(names, list(found))
        return {name: array_of(value) for name, value in zip(names, found.values(), strict=True)}

    return Loaded(predict, tuple(parameters or ()))


def parameters_of(forward: Callable[..., Any]) -> tuple[list[str], list[str]]:
    """Return the names of what a network's ``forward`` takes, in order, and those of them that can be given by name."""
    kinds = {name: each.kind for name, each in inspect.signature(forward).parameters.items()}
    names = [name for name, kind in kinds.items() if kind not in (kind.VAR_POSITIONAL, kind.VAR_KEYWORD)]
    return names, [name for name in names if kinds[name] != kinds[name].POSITIONAL_ONLY]


def flattened(result: Any) -> dict[str, Any]:
    """Return the tensors of what a network returned, by name: ``output``, ``output_0``… or the keys of a mapping."""
    import torch as torch_

    if isinstance(result, torch_.Tensor):
        return {"output": result}
    if isinstance(result, Mapping):  # the structured outputs of language models are mappings too
        return {
            str(key) if isinstance(value, torch_.Tensor) else f"{key}_{inner}": item
            for key, value in result.items()
            if value is not None
            for inner, item in flattened(value).items()
        }
    if isinstance(result, tuple) and (names := getattr(result, "_fields", None)):
        return flattened(dict(zip(names, result, strict=True)))
    if isinstance(result, Sequence) and not isinstance(result, str):
        leaves = [leaf for value in result if value is not None for leaf in flattened(value).values()]
        return {f"output_{index}": leaf for index, leaf in enumerate(leaves)}
    raise ModelFileError(f"the model returns {type(result).__name__}, and only tensors can be served; return tensors")


def tensor_of(array: Array, dtype: str | None) -> Any:
    """Return ``array`` as a tensor; bfloat16 comes as float32."""
    import torch as torch_

    if array.dtype == object:
        raise InputError("a PyTorch model takes numbers, not text; turn text into numbers in the handler")
    tensor = torch_.from_numpy(np.array(array))  # a copy: what came through the pipe may not be written to
    return tensor.to(torch_.bfloat16) if dtype == "bfloat16" else tensor


def array_of(tensor: Any) -> Array:
    """Return a tensor as an array; bfloat16 as float32."""
    import torch as torch_

    dense = tensor.detach().cpu()
    if dense.is_sparse or dense.is_quantized:
        dense = dense.dequantize() if dense.is_quantized else dense.to_dense()
    if dense.dtype == torch_.bfloat16:
        dense = dense.to(torch_.float32)
    result: Array = dense.resolve_conj().resolve_neg().numpy()
    return result


def attribute(code: str, folder: Path | None = None) -> Any:
    """Return what ``code`` names, as ``net.py:Net``; its folder can be imported from, as when the file is run."""
    file, _, name = code.rpartition(":")
    path = Path(file) if folder is None else folder / file
    if not path.is_file():
        raise InputError(f"{path} does not exist; name the network's file and class: net.py:Net")
    sys.path.insert(0, str(path.resolve().parent))
    specification = importlib.util.spec_from_file_location(path.stem, path)
    if specification is None or specification.loader is None:
        raise InputError(f"{path} is not a Python file; name the network's file and class: net.py:Net")
    module = importlib.util.module_from_spec(specification)
    sys.modules[path.stem] = module
    try:
        specification.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    if not hasattr(module, name):
        classes = sorted(key for key, value in vars(module).items() if getattr(value, "__module__", "") == path.stem)
        raise InputError(f"{path} has no {name!r}; it has {', '.join(classes) or 'no classes'}")
    return getattr(module, name)

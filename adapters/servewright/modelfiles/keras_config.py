"""What the JSON of a Keras network tells of its inputs and outputs, without Keras.

The inputs stand there; the outputs' shapes do only where a network ends in layers whose effect on a shape is known
here. Everywhere else the answer is ``None``, and Keras must be asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

Tensor = tuple[str, str, list[int | None]]
_SHAPE_KEEPERS = frozenset(
    {"Activation", "Softmax", "ReLU", "LeakyReLU", "Dropout", "BatchNormalization", "LayerNormalization"}
)


def signature_parts(config: Any) -> dict[str, list[Tensor]] | None:
    """Return ``inputs`` and ``outputs`` as (name, dtype, shape), or ``None`` where the JSON alone does not tell."""
    try:
        kind, inner = config["class_name"], config["config"]
        if kind == "Sequential":
            return _sequential(inner["layers"])
        if kind in ("Functional", "Model"):
            return _functional(inner)
    except (KeyError, TypeError, ValueError, IndexError):  # of another form: Keras knows
        pass
    return None


def unique_names(names: list[str]) -> list[str]:
    """Return names that a TensorFlow signature takes: letters, digits and ``_``, no two alike."""
    result: list[str] = []
    for name in names:
        plain = re.sub(r"\W", "_", name, flags=re.ASCII).lstrip("_") or "tensor"
        taken = plain
        count = 0
        while taken in result:
            count += 1
            taken = f"{plain}_{count}"
        result.append(taken)
    return result


def _sequential(layers: list[dict[str, Any]]) -> dict[str, list[Tensor]]:
    first, last = layers[0], layers[-1]
    name, dtype, shape = _input(first)
    output = _grown(last, last["build_config"]["input_shape"])
    names = unique_names([name]), unique_names([last["config"]["name"]])
    return {"inputs": [(names[0][0], dtype, shape)], "outputs": [(names[1][0], *output)]}


def _functional(network: Mapping[str, Any]) -> dict[str, list[Tensor]]:
    layers = {layer["name"]: layer for layer in network["layers"]}
    takes = list(_ends(network["input_layers"]))
    gives = list(_ends(network["output_layers"]))
    inputs = [_input(layers[layer])[1:] for _, layer, _ in takes]
    outputs = []
    for _, layer, node in gives:
        given = layers[layer]["inbound_nodes"][node]["args"]
        (tensor,) = (item for item in given if isinstance(item, dict) and item.get("class_name") == "__keras_tensor__")
        outputs.append(_grown(layers[layer], tensor["config"]["shape"]))
    return {
        "inputs": [
            (name, *rest) for name, rest in zip(unique_names([name for name, *_ in takes]), inputs, strict=True)
        ],
        "outputs": [
            (name, *rest) for name, rest in zip(unique_names([name for name, *_ in gives]), outputs, strict=True)
        ],
    }


def _ends(given: Any) -> Iterator[tuple[str, str, int]]:
    """Yield (name, layer, node) from one of the three forms: ``[layer, node, tensor]``, a list of these, a mapping."""
    if isinstance(given, dict):
        for name, (layer, node, _) in given.items():
            yield name, layer, node
    elif isinstance(given[0], str):
        yield given[0], given[0], given[1]
    else:
        for layer, node, _ in given:
            yield layer, layer, node


def _input(layer: Mapping[str, Any]) -> Tensor:
    config = layer["config"]
    if layer["class_name"] != "InputLayer" or config.get("sparse") or config.get("ragged") or config.get("optional"):
        raise ValueError("not a dense input")
    return config["name"], config["dtype"], config["batch_shape"]


def _grown(layer: Mapping[str, Any], shape: list[int | None]) -> tuple[str, list[int | None]]:
    """Return the dtype and shape of what ``layer`` gives for an input of ``shape``."""
    config = layer["config"]
    if config["dtype"]["config"]["name"] != "float32":
        raise ValueError("a mixed or other precision")
    if layer["class_name"] == "Dense":
        return "float32", [*shape[:-1], config["units"]]
    if layer["class_name"] in _SHAPE_KEEPERS:
        return "float32", shape
    raise ValueError("a layer that changes shapes")

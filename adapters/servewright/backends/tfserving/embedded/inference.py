"""Classify, Regress and MultiInference: examples in, classes or numbers out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf import text_format

from servewright.backends.tfserving import protos
from servewright.backends.tfserving.embedded.metrics import Metrics
from servewright.backends.tfserving.embedded.predict import RUNTIME
from servewright.backends.tfserving.embedded.servable import (
    CLASSIFY_METHOD,
    DEFAULT_SIGNATURE,
    REGRESS_METHOD,
    Servable,
    Signature,
)
from servewright.backends.tfserving.embedded.status import Code, StatusError, invalid_argument
from servewright.backends.tfserving.embedded.tensor import FLOAT, STRING, Tensor, to_array
from servewright.backends.tfserving.fields import BYTES, scan

_INPUTS = "inputs"
_CLASSES, _SCORES, _VALUES = "classes", "scores", "outputs"
_KIND = {CLASSIFY_METHOD: "classification", REGRESS_METHOD: "regression"}


async def classify(
    servable: Servable, request: Any, metrics: Metrics, *, check_method: bool = False, deadline_us: int | None = None
) -> Any:
    """Return the ClassificationResponse to a ClassificationRequest; raise `StatusError`."""
    spec = request.model_spec
    signature = _signature(servable, spec.signature_name, CLASSIFY_METHOD, check_method=check_method)
    names = _tensors(signature, CLASSIFY_METHOD, check_method=check_method)
    results = await _run(servable, request.input, signature, names, metrics, spec.name, "Classify", deadline_us)
    return protos.ClassificationResponse(
        result=_classes(dict(zip(names, results, strict=True)), _count(request.input)),
        model_spec=_spec(servable, spec),
    )


async def regress(
    servable: Servable, request: Any, metrics: Metrics, *, check_method: bool = False, deadline_us: int | None = None
) -> Any:
    """Return the RegressionResponse to a RegressionRequest; raise `StatusError`."""
    spec = request.model_spec
    signature = _signature(servable, spec.signature_name, REGRESS_METHOD, check_method=check_method)
    names = _tensors(signature, REGRESS_METHOD, check_method=check_method)
    (values,) = await _run(servable, request.input, signature, names, metrics, spec.name, "Regress", deadline_us)
    return protos.RegressionResponse(
        result=_regressions(values, _count(request.input)), model_spec=_spec(servable, spec)
    )


async def multi_inference(
    servable: Servable, request: Any, metrics: Metrics, *, check_method: bool = False, deadline_us: int | None = None
) -> Any:
    """Return the MultiInferenceResponse to a MultiInferenceRequest: several signatures of one model in one run."""
    model, chosen = "", []
    seen: set[str] = set()
    for task in request.tasks:
        if not task.model_spec.name:
            raise invalid_argument("Found ModelSpec with an empty model name.")
        model = model or task.model_spec.name
        if task.model_spec.name != model:
            raise invalid_argument("All ModelSpecs in a MultiInferenceRequest must access the same model name.")
        name = task.model_spec.signature_name or DEFAULT_SIGNATURE
        if name in seen:
            raise invalid_argument(f"Duplicate evaluation of signature: {name}")
        seen.add(name)
        if name not in servable.signatures:
            raise invalid_argument(f"Requested signature not found in model graph: {name}")
        if task.method_name not in _KIND:
            raise StatusError(Code.UNIMPLEMENTED, f"Unsupported signature method_name: {task.method_name}")
        signature = servable.signatures[name]
        chosen.append((task, signature, _tensors(signature, task.method_name, check_method=check_method)))
    examples = serialized_examples(request.input)
    inputs = sorted({signature.inputs[_INPUTS] for _, signature, _ in chosen})
    outputs = sorted({tensor for _, _, names in chosen for tensor in names.values()})
    results = await servable.run([(name, examples) for name in inputs], tuple(outputs), deadline_us)
    found = dict(zip(outputs, results, strict=True))
    metrics.example_counts.add(examples.shape[0], model)
    metrics.example_count.add(model, by=examples.shape[0])
    response = protos.MultiInferenceResponse()
    for task, _, names in chosen:
        result = response.results.add(model_spec=_spec(servable, task.model_spec))
        tensors = {alias: found[name] for alias, name in names.items()}
        if task.method_name == CLASSIFY_METHOD:
            result.classification_result.CopyFrom(_classes(tensors, examples.shape[0]))
        else:
            result.regression_result.CopyFrom(_regressions(tensors[_VALUES], examples.shape[0]))
    return response


# Signatures


def _signature(servable: Servable, name: str, method: str, *, check_method: bool) -> Signature:
    name = name or DEFAULT_SIGNATURE
    signature = servable.signatures.get(name)
    if signature is None:
        raise invalid_argument(f"No signature was found with the name: {name}")
    if check_method:
        _check_method(signature, method)
    return signature


def _check_method(signature: Signature, method: str) -> None:
    if signature.message.method_name != method:
        raise invalid_argument(
            f"Expected {_KIND[method]} signature method_name to be {method}. Was: {signature.message.method_name}"
        )


def _tensors(signature: Signature, method: str, *, check_method: bool) -> dict[str, str]:
    """Return the outputs to fetch by alias, or refuse a signature that is not of the method's form."""
    if check_method:
        _check_method(signature, method)
    if len(signature.inputs) != 1:
        raise invalid_argument("Expected one input Tensor.")
    if method == CLASSIFY_METHOD and len(signature.outputs) not in (1, 2):
        raise invalid_argument(f"Expected one or two output Tensors, found {len(signature.outputs)}")
    if method == REGRESS_METHOD and len(signature.outputs) != 1:
        raise invalid_argument("Expected one output Tensor.")
    if _INPUTS not in signature.inputs:
        raise invalid_argument(f"No {_KIND[method]} inputs found in SignatureDef: {debug_string(signature.message)}")
    wanted = (_CLASSES, _SCORES) if method == CLASSIFY_METHOD else (_VALUES,)
    found = {alias: signature.outputs[alias] for alias in wanted if alias in signature.outputs}
    if not found and method == CLASSIFY_METHOD:
        raise invalid_argument(
            'Expected classification signature outputs to contain at least one of "classes" or "scores". Signature '
            f"was: {debug_string(signature.message)}"
        )
    if not found:
        raise invalid_argument(f"No regression outputs found in SignatureDef: {debug_string(signature.message)}")
    return found


def debug_string(message: Any) -> str:
    """Return a message as C++ prints it."""
    text: str = text_format.MessageToString(message)
    return text


def _spec(servable: Servable, asked: Any) -> Any:
    name = asked.signature_name or DEFAULT_SIGNATURE
    return protos.ModelSpec(name=asked.name, version={"value": servable.version}, signature_name=name)


# Examples


def serialized_examples(request_input: Any) -> Tensor:
    """Return the examples of a request as a vector of strings, each with the context before it; raise `StatusError`."""
    kind = request_input.WhichOneof("kind")
    listed = getattr(request_input, kind) if kind else None
    if listed is None or not listed.examples:
        raise invalid_argument("Input is empty.")
    context = b""
    if kind == "example_list_with_context":
        context = listed.context.SerializeToString()
    data = memoryview(listed.SerializeToString())
    values = [
        context + bytes(data[start:end]) for number, wire, start, end in scan(data) if (number, wire) == (1, BYTES)
    ]
    return Tensor(STRING, (len(values),), values)


def _count(request_input: Any) -> int:
    return len(getattr(request_input, request_input.WhichOneof("kind")).examples)


async def _run(
    servable: Servable,
    request_input: Any,
    signature: Signature,
    names: Mapping[str, str],
    metrics: Metrics,
    model: str,
    api: str,
    deadline_us: int | None,
) -> list[Tensor]:
    examples = serialized_examples(request_input)
    started = time.monotonic_ns()
    results = await servable.run([(signature.inputs[_INPUTS], examples)], tuple(names.values()), deadline_us)
    metrics.runtime_latency.add((time.monotonic_ns() - started) // 1000, model, api, RUNTIME)
    return results


# Results


def _classes(tensors: Mapping[str, Tensor], examples: int) -> Any:
    for name, dtype, shown in ((_CLASSES, STRING, "DT_STRING"), (_SCORES, FLOAT, "DT_FLOAT")):
        tensor = tensors.get(name)
        if tensor is None:
            continue
        if len(tensor.shape) != 2:
            raise invalid_argument(f"Expected Tensor shape: [batch_size num_classes] but got {_listed(tensor.shape)}")
        if tensor.dtype != dtype:
            raise invalid_argument(f"Expected {name} Tensor of {shown}. Got: {protos.DataType.Name(tensor.dtype)}")
        if tensor.shape[0] != examples:
            raise invalid_argument(f"Expected {name} output batch size of {examples}. Got: {tensor.shape[0]}")
    classes, scores = tensors.get(_CLASSES), tensors.get(_SCORES)
    if classes is not None and scores is not None and classes.shape[1] != scores.shape[1]:
        raise invalid_argument(
            f"Tensors class and score should match in dim_size(1). Got {classes.shape[1]} vs. {scores.shape[1]}"
        )
    width = next(iter(tensors.values())).shape[1]
    labels = [value.decode("utf-8", "replace") for value in classes.data] if classes is not None else []
    numbers: Sequence[float] = to_array(scores).reshape(-1).tolist() if scores is not None else []
    result = protos.ClassificationResult()
    for row in range(examples):
        entry = result.classifications.add()
        for at in range(row * width, (row + 1) * width):
            one = entry.classes.add()
            if labels:
                one.label = labels[at]
            if numbers:
                one.score = numbers[at]
    return result


def _regressions(tensor: Tensor, examples: int) -> Any:
    shape = tensor.shape
    if not (len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)):
        raise invalid_argument(
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got " + _listed(shape)
        )
    if shape[0] != examples:
        raise invalid_argument(f"Input batch size did not match output batch size: {examples} vs. {shape[0]}")
    if tensor.dtype != FLOAT:
        raise invalid_argument(f"Expected output Tensor of DT_FLOAT.  Got: {protos.DataType.Name(tensor.dtype)}")
    values = to_array(tensor).reshape(-1).tolist()
    return protos.RegressionResult(regressions=[{"value": value} for value in values])


def _listed(shape: tuple[int, ...]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"

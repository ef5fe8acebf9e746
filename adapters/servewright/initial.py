"""The first spec of a model, written from what its files say of themselves."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from servewright.errors import InputError
from servewright.modelfiles.inspection import Inspection
from servewright.spec import Signature, TensorSpec

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
# Words that YAML readers of one version or another take for something else than text.
_WORDS = frozenset({"null", "true", "false", "yes", "no", "on", "off", "y", "n"})
_NOT_PRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
_GENERIC = re.compile(r"output(_\d+)?")
# Formats whose inputs have an order; the others know them by name alone, and list them in the order of the alphabet.
_ORDERED = frozenset({"torchscript", "state_dict", "exported_program", "onnx"})
_NEEDS = {
    "example": "an example of its inputs: --example in.npz, written with numpy.savez('in.npz', NAME=array)",
    "code": "the class of its network: --code net.py:Net",
}


def initial_spec(models: Mapping[str, Inspection], *, name: str, relative_to: Path) -> str:
    """Return the text of a spec for ``models``, by the backend that shall serve each.

    One model under the key ``""`` is for whatever backend is asked for. Paths are written relative to the folder
    ``relative_to`` where they lie in it. Raises `InputError` where a model leaves its signature open, or where
    several models differ in theirs.
    """
    if not models:
        raise InputError("no model given; name at least one model file")
    for inspection in models.values():
        if inspection.needs:
            wanted = " and ".join(_NEEDS[need] for need in inspection.needs)
            raise InputError(
                f"{inspection.path} is a {inspection.format} model, which leaves its signature open; give {wanted}"
            )
    signature = _common(list(models.values()))
    return "\n".join([*_head(name), *_models(models, relative_to), *_signature(signature), *_rest(signature)]) + "\n"


def model_name(path: Path) -> str:
    """Return a name that every server accepts, made from the name of a model's file or folder."""
    generic = {"model", "saved_model", "export", "weights", "savedmodel"}
    parts = [path.absolute().name if path.is_dir() else path.stem, *(parent.name for parent in path.absolute().parents)]
    named = next((part for part in parts if part and part.lower() not in generic and not part.isdigit()), "model")
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", named).strip("-_.")[:128] or "model"


def _head(name: str) -> Iterator[str]:
    yield "# What to serve, and how. `servewright schema` prints every key; a key that is absent has its default."
    yield "servewright: 1"
    yield f"name: {_text(name)}"
    yield "version: 1"


def _models(models: Mapping[str, Inspection], folder: Path) -> Iterator[str]:
    yield ""
    if "" in models and len(models) == 1:
        yield f"model: {_source(models[''], folder)}"
    else:
        yield "model:  # the same network for each backend, in the format that it serves"
        for backend, inspection in models.items():
            yield f"  {backend}: {_source(inspection, folder)}"
    for inspection in models.values():
        for note in inspection.notes:
            yield f"# note on {_comment(inspection.path.name)}: {_comment(note)}"
    others = [item.name for inspection in models.values() for item in inspection.signatures[1:]]
    if others:
        yield f"# other signatures in the model: {_comment(', '.join(dict.fromkeys(others)))}"


def _source(inspection: Inspection, folder: Path) -> str:
    parts = [f"path: {_text(_path(inspection.path, folder))}", f"format: {inspection.format}"]
    if inspection.code and inspection.format == "state_dict":
        file, _, name = inspection.code.rpartition(":")
        parts.append(f"code: {_text(f'{_path(Path(file), folder)}:{name}')}")
    return "{" + ", ".join(parts) + "}"


def _path(path: Path, folder: Path) -> str:
    """Return ``path`` from ``folder`` where it lies in it, else from the root: a spec does not climb."""
    absolute = Path(os.path.normpath(path.absolute()))
    base = Path(os.path.normpath(folder.absolute()))
    text = (absolute.relative_to(base) if absolute.is_relative_to(base) else absolute).as_posix()
    if _NOT_PRINTABLE.search(text):
        raise InputError(f"{text!r} has a control character in it; rename the file")
    return text


def _signature(signature: Signature) -> Iterator[str]:
    yield ""
    yield "signature:  # null: any size; the first axis is the batch"
    yield f"  name: {_text(signature.name)}"
    for which, tensors in (("inputs", signature.inputs), ("outputs", signature.outputs)):
        yield f"  {which}:"
        yield from (f"    - {_tensor(item)}" for item in tensors)


def _tensor(item: TensorSpec) -> str:
    shape = "null" if item.shape is None else json.dumps(list(item.shape))
    return f"{{name: {_text(item.name)}, dtype: {item.dtype}, shape: {shape}}}"


def _rest(signature: Signature) -> Iterator[str]:
    yield ""
    batched = all(item.shape is None or (item.shape and item.shape[0] is None) for item in signature.inputs)
    yield "# What you may want to add:"
    if batched:
        yield "# batching: {max_size: 32, max_delay: 5ms}  # group requests; a request waits no longer than max_delay"
    yield "# workers: 2                                  # copies of the model, on servers that have workers"
    yield "# golden: [{inputs: in.npz, outputs: out.npz, rtol: 1e-4, atol: 1e-5}]  # answers that must not change"
    yield "# slo: {p99: 50ms, rate: 200/s}"


def _common(models: Sequence[Inspection]) -> Signature:
    """Return the signature that all models have, in the order of the first that has an order."""
    ordered = sorted(models, key=lambda model: model.format not in _ORDERED)
    first, chosen = ordered[0], ordered[0].signatures[0]
    named = next((model for model in models if model.format not in _ORDERED), None)
    if named is not None and named is not first:
        chosen = _with_names_of(chosen, named.signatures[0])
    for model in ordered[1:]:
        other = next((item for item in model.signatures if item.name == chosen.name), model.signatures[0])
        if model.format in _ORDERED:
            other = _with_names_of(other, chosen)
        if difference := _difference(chosen, other):
            raise InputError(
                f"{first.path.name} and {model.path.name} differ: {difference[0]}; "
                f"{difference[1]}, or write a spec for each"
            )
    return chosen


def _with_names_of(ours: Signature, theirs: Signature) -> Signature:
    """Return ``ours`` under the other's name; an output that its network leaves nameless takes the other's too."""
    outputs = ours.outputs
    if len(outputs) == len(theirs.outputs) == 1 and _GENERIC.fullmatch(outputs[0].name):
        outputs = (outputs[0].model_copy(update={"name": theirs.outputs[0].name}),)
    return ours.model_copy(update={"name": theirs.name, "outputs": outputs})


def _difference(one: Signature, two: Signature) -> tuple[str, str] | None:
    """Return the first difference that matters, and what to do about it; the order of tensors does not."""
    for which, ours, theirs in (("input", one.inputs, two.inputs), ("output", one.outputs, two.outputs)):
        mine, yours = {item.name: item for item in ours}, {item.name: item for item in theirs}
        if mine.keys() != yours.keys():
            remedy = (
                "name the arrays of --example as the other model names its inputs"
                if which == "input"
                else "return a mapping with the other model's names"
            )
            return f"{which}s {', '.join(mine)} and {', '.join(yours)}", remedy
        for name, item in mine.items():
            other = yours[name]
            if item.dtype != other.dtype:
                return f"{which} {name!r} is {item.dtype} and {other.dtype}", "cast it in one of the models"
            if item.shape != other.shape:
                return (
                    f"{which} {name!r} has shape {_shape(item)} and {_shape(other)}",
                    "reshape it in one of the models",
                )
    return None


def _shape(item: TensorSpec) -> str:
    return "unknown" if item.shape is None else json.dumps(list(item.shape))


def _text(text: str) -> str:
    """Return ``text`` as a YAML scalar that every reader takes for this text."""
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        return text
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{text!r} is not UTF-8, and a spec is; rename the file") from error
    return _NOT_PRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(text, ensure_ascii=False))


def _comment(text: str) -> str:
    return " ".join(_NOT_PRINTABLE.sub(" ", text.encode(errors="replace").decode()).split())

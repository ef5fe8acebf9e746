"""What a spec names beside settings: model files, their code and golden data. Looked into before anything is made.

Nothing here imports a framework or runs what a file holds.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Final

from servewright.backend import Backend
from servewright.errors import InputError, Problem, SpecError, UnavailableError
from servewright.fleet import Fleet
from servewright.spec import Golden, ModelSource, Signature, TensorSpec
from servewright.specfile import Document
from servewright.yamltext import Path_

if TYPE_CHECKING:
    from servewright.samples import Arrays

# Formats whose files can hold code that runs when they are read; Keras files are screened when they are exported.
_SCREENED: Final = frozenset({"state_dict", "exported_program"})


def check(fleet: Fleet, backend: Backend, *, trust: bool = False) -> None:
    """Raise one error for all that is wrong in the files that ``fleet`` needs on ``backend``.

    ``trust`` lets model files pass whose reading would run code. An `UntrustedPickleError` comes alone, and first.
    """
    problems: list[Problem] = []
    for document in fleet.models:
        source = document.spec.source(backend.name)
        if source is not None and source.deployed:
            reason, remedy = "the model lies with its server, and none of it here", "name its files; render needs none"
            problems.append(document.problem("model", reason, remedy))
            continue
        problems += _model_problems(document, backend, trust=trust)
        problems += _golden_problems(document)
    if problems:
        raise SpecError(problems)


def _model_problems(document: Document, backend: Backend, *, trust: bool) -> Iterator[Problem]:
    from servewright import modelfiles
    from servewright.errors import ModelFileError, UntrustedPickleError

    source = document.spec.source(backend.name)
    assert source is not None  # rendering refuses the spec otherwise
    path: Path_ = ("model", backend.name) if isinstance(document.spec.model, dict) else ("model",)
    try:
        found = modelfiles.source_of(document.resolve(source.path), format=source.format, code=source.code, trust=trust)
        if source.format in _SCREENED:
            import_module(f"servewright.modelfiles.{source.format}").screen(found)
        if source.format == "saved_model":
            signatures = modelfiles.inspect(document.resolve(source.path), format=source.format).signatures
            yield from _signature_problems(document, signatures)
    except UntrustedPickleError:
        raise
    except ModelFileError as error:
        yield document.problem((*path, "path"), str(error))
    if source.code:
        yield from _code_problems(document, source, path)
    if document.spec.handler.use.endswith(".py"):
        yield from _syntax_problems(document, document.spec.handler.use, ("handler", "use"))


def _signature_problems(document: Document, signatures: Iterable[Signature]) -> Iterator[Problem]:
    """Yield how the spec's signature differs from the model's, where the server takes tensors by the model's names."""
    wanted = document.spec.signature
    known = {signature.name: signature for signature in signatures}
    if wanted.name not in known:
        names = ", ".join(known) or "none"
        reason, remedy = f"the model has no signature {wanted.name!r}", f"its signatures: {names}"
        yield document.problem(("signature", "name"), reason, remedy)
        return
    found = known[wanted.name]
    for key, ours, theirs in (("inputs", wanted.inputs, found.inputs), ("outputs", wanted.outputs, found.outputs)):
        yield from _tensor_problems(document, key, ours, {tensor.name: tensor for tensor in theirs})


def _tensor_problems(
    document: Document, key: str, ours: Iterable[TensorSpec], theirs: dict[str, TensorSpec]
) -> Iterator[Problem]:
    known = dict(theirs)
    for index, tensor in enumerate(ours):
        its = known.pop(tensor.name, None)
        path: Path_ = ("signature", key, index)
        if its is None:
            reason, remedy = f"the model has no {key[:-1]} {tensor.name!r}", f"its {key}: {', '.join(theirs)}"
            yield document.problem((*path, "name"), reason, remedy)
        elif its.dtype != tensor.dtype:
            reason, remedy = f"{tensor.name!r} is {its.dtype} in the model, not {tensor.dtype}", f"write {its.dtype}"
            yield document.problem((*path, "dtype"), reason, remedy)
    for name, its in known.items():
        reason = f"the model's {key[:-1]} {name!r} is missing"
        yield document.problem(("signature", key), reason, f"add it: {{name: {name}, dtype: {its.dtype}, ...}}")


def _code_problems(document: Document, source: ModelSource, path: Path_) -> Iterator[Problem]:
    """Yield what is wrong with the network's code, as far as can be seen without running it."""
    file, _, name = (source.code or "").partition(":")
    broken = list(_syntax_problems(document, file, (*path, "code")))
    yield from broken
    if not broken and name not in _names(ast.parse(document.resolve(file).read_bytes())):
        yield document.problem((*path, "code"), f"{file} defines no {name!r}", "name a class or function in it")


def _names(tree: ast.Module) -> set[str]:
    """Return every name that a module may define, wherever: code can define names in many ways."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.alias):
            found.add((node.asname or node.name).partition(".")[0])
    return found


def _syntax_problems(document: Document, file: str, path: Path_) -> Iterator[Problem]:
    try:
        ast.parse(document.resolve(file).read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        place = f":{error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        yield document.problem(path, f"{file}{place} is not Python: {reason}", "correct it")


def _golden_problems(document: Document) -> Iterator[Problem]:
    for index, golden in enumerate(document.spec.golden):
        try:
            inputs = _golden(document, golden, "inputs")
            outputs = _golden(document, golden, "outputs")
        except UnavailableError:
            raise
        except InputError as error:
            yield document.problem(("golden", index), str(error))
            continue
        if reason := _rows_differ(document.spec.signature, inputs, outputs):
            yield document.problem(("golden", index), reason, "write the outputs of exactly these inputs")


def _golden(document: Document, golden: Golden, which: str) -> Arrays:
    from servewright.samples import fitting, load_npz

    file, tensors = getattr(golden, which), getattr(document.spec.signature, which)
    return fitting(load_npz(document.resolve(file)), tensors, what=f"golden {file}")


def _rows_differ(signature: Signature, inputs: Arrays, outputs: Arrays) -> str:
    """Return what is wrong with the numbers of rows, or an empty text."""
    from servewright.samples import batchable

    if not batchable(signature):
        return ""
    rows = {name: array.shape[0] if array.ndim else 0 for name, array in (inputs | outputs).items()}
    if min(rows.values()) == 0:
        return f"{min(rows, key=rows.__getitem__)!r} has no rows"
    if len(set(rows.values())) > 1:
        return "the rows differ: " + ", ".join(f"{name!r} has {count}" for name, count in rows.items())
    return ""

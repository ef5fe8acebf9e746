"""What ``torch.export.save`` wrote: its graph tells its inputs and outputs, and can run a stranger's code in five ways.

``torch.export.load`` (torch 2.13) reads its pickles weights-only at first, and where that fails again without the
restriction; opaque constants it reads with pickle itself. Sizes written as expressions go through ``sympy.sympify``,
which evaluates Python; guards are compiled as Python; a node may name any attribute of torch as what it calls; and
the names of inputs and weights are pasted into generated Python. So all five are checked before anything is loaded.
"""

from __future__ import annotations

import ast
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from servewright.errors import ModelFileError, UntrustedPickleError
from servewright.modelfiles import inspection, pickles, zips
from servewright.modelfiles.inspection import Inspection, Source
from servewright.spec import TensorSpec

if TYPE_CHECKING:
    from servewright.modelfiles.worker import Loaded
    from servewright.spec import Signature

DEFAULT = "serving_default"
_MAX_JSON_BYTES = 1 << 30
_REMEDY = "export the model yourself with torch.export.save"
# ScalarType in torch/_export/serde/schema.py
_DTYPES = {
    1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32", 8: "float64",
    9: "complex32", 10: "complex64", 11: "complex128", 12: "bool", 13: "bfloat16", 28: "uint16", 34: "uint32",
    35: "uint64",
}  # fmt: skip
# Operators of torch, the arithmetic of sizes, and nothing that takes a name or a callable.
_CALLS = re.compile(
    r"torch\.ops(\.(?!__)[A-Za-z_]\w*){2,3}|torch\.sym_[a-z]+|torch\._sym_[a-z]+|math\.[a-z]\w*"
    r"|_operator\.(add|sub|mul|truediv|floordiv|mod|pow|neg|pos|abs|and_|or_|xor|not_|inv|invert|lshift|rshift"
    r"|eq|ne|lt|le|gt|ge|getitem|truth|index|is_|is_not)"
)
_RESOLVED = ("torch", "_operator", "math")
_SYMBOL = re.compile(r"[a-z]+\d+")
_FUNCTIONS = frozenset(
    {
        "Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Abs", "Max", "Min", "Mod", "Piecewise", "And",
        "Or", "Not", "Equality", "Unequality", "StrictLessThan", "StrictGreaterThan", "LessThan", "GreaterThan", "Eq",
        "Ne", "Lt", "Le", "Gt", "Ge", "ceiling", "floor", "FloorDiv", "ModularIndexing", "Where", "PythonMod",
        "CleanDiv", "CeilToInt", "FloorToInt", "CeilDiv", "LShift", "RShift", "PowByNatural", "FloatPow",
        "FloatTrueDiv", "IntTrueDiv", "IsNonOverlappingAndDenseIndicator", "TruncToFloat", "TruncToInt", "RoundToInt",
        "RoundDecimal", "ToFloat", "Identity", "OpaqueUnaryFn_sqrt", "int_oo", "oo", "zoo", "true", "false", "L",
        "math", "torch", "len", "max", "min", "abs", "int", "float", "bool",
    }
)  # fmt: skip
_ATTRIBUTES = frozenset(
    {"size", "shape", "dim", "ndim", "stride", "storage_offset", "dtype", "numel", "isnan", "floor", "ceil", "trunc"}
)
# Nothing that could leave a name, a text or a comment in generated code: no quotes, brackets, equals signs or spaces.
_NAME = re.compile(r"[\w.+:-]*")
_TREE = re.compile(r'[\w\s\[\]{}:,."\\+-]*')  # JSON in JSON
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\x85\u2028\u2029]")  # what some reader takes for the end of a line
_HARMLESS = (
    ast.Expression, ast.Call, ast.keyword, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Constant,
    ast.Subscript, ast.Tuple, ast.List, ast.expr_context, ast.operator, ast.unaryop, ast.boolop, ast.cmpop,
)  # fmt: skip


def inspect(source: Source) -> Inspection:
    """Return the signature that the exported graph tells; sizes that it leaves open are ``None``."""
    program = screen(source)
    try:
        takes, gives = _inputs(source, program), _outputs(source, program)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, StopIteration) as error:
        raise ModelFileError(
            f"{source.path} has a graph of a form that is not known ({type(error).__name__}: {error}); "
            f"{_REMEDY} of torch 2.8 or later"
        ) from error
    signature = inspection.signature(source.path, DEFAULT, takes, gives)
    return Inspection(
        path=source.path,
        format=source.format,
        signatures=(signature,),
        notes=tuple(inspection.batch_notes(signature)),
        size_bytes=inspection.size_of(source.path),
    )


def screen(source: Source) -> dict[str, Any]:
    """Return the program as JSON; raise `UntrustedPickleError` where loading it would run code from the file."""
    try:
        with zips.opened(source.path) as archive:
            root = zips.root(archive)
            documents = {
                entry.filename.removeprefix(root): _document(archive, entry)
                for entry in archive.infolist()
                if entry.filename.endswith(".json")
            }
            if not source.trust:
                pickles.refuse_strangers(source.path, tuple(_imports(archive, root, documents)), remedy=_REMEDY)
    except (zipfile.BadZipFile, ValueError, EOFError, RecursionError) as error:
        raise ModelFileError(f"{source.path} is broken: {error}; write or download it again") from error
    programs = {name: value for name, value in documents.items() if name.startswith("models/")}
    if not source.trust:
        for name, program in programs.items():
            for danger in _dangers(program):
                raise UntrustedPickleError(
                    f"{source.path}: loading it would run Python that {name} holds: {danger[:200]}; "
                    f"{_REMEDY}, or give --trust to run it, if you know who wrote it"
                )
    if len(programs) > 1:
        raise ModelFileError(f"{source.path} holds {len(programs)} models; save one in each file")
    result = next(iter(programs.values()))
    if not isinstance(result, dict):
        raise ModelFileError(f"{source.path} holds no graph; {_REMEDY}")
    return result


def _document(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Any:
    if entry.file_size > _MAX_JSON_BYTES:
        raise ValueError(f"{entry.filename} has {entry.file_size} bytes")
    return json.loads(archive.read(entry))


def _imports(archive: zipfile.ZipFile, root: str, documents: Mapping[str, Any]) -> Iterator[pickles.Import]:
    """Yield what the pickles of the archive import: every member that is not known to be text or a raw tensor."""
    raw = {
        f"data/{folder}/{meta['path_name']}"
        for folder in ("weights", "constants")
        for name, config in documents.items()
        if name.startswith(f"data/{folder}/")
        for meta in config["config"].values()
        if meta["use_pickle"] is False and not str(meta["path_name"]).startswith(("opaque_obj", "custom_obj"))
    }
    texts = {"archive_format", "archive_version", "byteorder", "version"}
    for entry in archive.infolist():
        name = entry.filename.removeprefix(root)
        if name in raw or name in texts or name.endswith(".json") or name.startswith(".data/") or entry.is_dir():
            continue
        if entry.file_size > pickles.MAX_BYTES:
            raise ValueError(f"{name} has {entry.file_size} bytes, more than {pickles.MAX_BYTES} of a pickle")
        yield from pickles.torch_file_imports(archive.read(entry))


def _dangers(value: Any, key: str = "") -> Iterator[str]:
    """Yield each text of a program that loading or running it would evaluate as more than a size or an operator."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _dangers(name)
            yield from _dangers(item, "metadata" if key == "metadata" else name)
    elif isinstance(value, list):
        for item in value:
            yield from _dangers(item, key)
    elif isinstance(value, str) and key not in ("as_string", "as_strings"):  # these are quoted wherever they go
        if key == "metadata":  # becomes comments
            if _CONTROL.search(value):
                yield f"the note {value!r}"
        elif key in ("expr_str", "guards_code"):
            if not _is_arithmetic(value):
                yield f"{'the size' if key == 'expr_str' else 'the guard'} {value!r}"
        elif key in ("in_spec", "out_spec"):
            if "__enum__" in value or not _TREE.fullmatch(value):
                yield f"the structure {value!r}"
        elif not _NAME.fullmatch(value):
            yield f"the name {value!r}"
        elif key in ("target", "as_operator") and value.startswith(_RESOLVED) and not _CALLS.fullmatch(value):
            yield f"a call of {value!r}"


def _is_arithmetic(text: str) -> bool:
    """Tell whether ``text`` only computes with sizes: no name, attribute or call beyond those that torch writes."""
    if len(text) > 10_000 or "#" in text or "\\" in text or _CONTROL.search(text):
        return False
    try:
        nodes = list(ast.walk(ast.parse(text.strip(), mode="eval")))
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    return all(_is_harmless(node) for node in nodes)


def _is_harmless(node: ast.AST) -> bool:
    if isinstance(node, ast.Name):
        return node.id in _FUNCTIONS or _SYMBOL.fullmatch(node.id) is not None
    if isinstance(node, ast.Attribute):
        return node.attr in _ATTRIBUTES or re.fullmatch(r"sym_[a-z]+", node.attr) is not None
    if isinstance(node, ast.Constant):  # a text is the name of an input or of a symbol, never more
        return not isinstance(node.value, str) or re.fullmatch(r"[\w.+-]{1,200}", node.value) is not None
    return isinstance(node, _HARMLESS)


def _inputs(source: Source, program: Mapping[str, Any]) -> list[TensorSpec]:
    module = program["graph_module"]
    given = [spec["user_input"]["arg"] for spec in module["signature"]["input_specs"] if "user_input" in spec]
    names = [_tensor_name(source, argument, "input") for argument in given]
    # The names of forward's parameters, where each is one tensor; else the graph's own, such as "xs_0".
    own = _call(module).get("forward_arg_names") or []
    shown = own if len(own) == len(names) else names
    return [_tensor(source, module, name, text) for name, text in zip(names, shown, strict=True)]


def _outputs(source: Source, program: Mapping[str, Any]) -> list[TensorSpec]:
    module = program["graph_module"]
    given = [spec["user_output"]["arg"] for spec in module["signature"]["output_specs"] if "user_output" in spec]
    names = [_tensor_name(source, argument, "output") for argument in given if "as_none" not in argument]
    _, tree = json.loads(_call(module)["out_spec"])
    if tree["type"] == "builtins.dict" and len(children := json.loads(tree["context"])) == len(names):
        shown = [str(child) for child in children]
    elif tree["type"] is None:
        shown = ["output"]
    else:
        shown = [f"output_{index}" for index in range(len(names))]
    return [_tensor(source, module, name, text) for name, text in zip(names, shown, strict=True)]


def _call(module: Mapping[str, Any]) -> Mapping[str, Any]:
    signature: Mapping[str, Any] = next(entry for entry in module["module_call_graph"] if entry["fqn"] == "")[
        "signature"
    ]
    return signature


def _tensor_name(source: Source, argument: Mapping[str, Any], what: str) -> str:
    if "as_tensor" not in argument:
        kind = next(iter(argument), "nothing").removeprefix("as_")
        raise ModelFileError(f"{source.path}: an {what} is a {kind}, and only tensors can be served; make it a tensor")
    return str(argument["as_tensor"]["name"])


def _tensor(source: Source, module: Mapping[str, Any], name: str, shown: str) -> TensorSpec:
    meta = module["graph"]["tensor_values"][name]
    sizes = [size.get("as_int") for size in meta["sizes"]]
    return inspection.tensor(source.path, shown, _DTYPES.get(meta["dtype"], f"number {meta['dtype']}"), sizes)


def load(source: Source, signature: Signature | None) -> Loaded:
    """Return what runs the exported program; runs in a child."""
    from servewright.modelfiles import torch_runtime

    torch = torch_runtime.torch()
    own = inspect(source).signatures[0]
    program = torch.export.load(str(source.path))
    tree = program.module_call_graph[0].signature.in_spec
    # Trees of torch 2.8 and before have a list.
    keywords = tuple((tree.child(1) if hasattr(tree, "child") else tree.children_specs[1]).context or ())
    names = [item.name for item in own.inputs]
    return torch_runtime.predictor(program.module(), signature or own, parameters=names, keywords=keywords)


OPERATIONS: dict[str, object] = {}

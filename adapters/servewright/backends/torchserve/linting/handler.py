"""Checks of a handler by its syntax tree; it is never imported."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Collection, Iterator
from typing import Any, Final

from servewright.backends.torchserve.linting import archive_rules as rules
from servewright.linting.finding import Finding
from servewright.linting.linter import Context, FileKind, Found
from servewright.linting.sources import Source

_IMPORTED: Final = frozenset(
    {"torch", "numpy", "ts", "yaml", "PIL", "psutil", "torchvision", "transformers", "onnxruntime"}
)
_DANGEROUS: Final = frozenset({"pickle.load", "pickle.loads", "dill.load", "dill.loads", "joblib.load", "eval", "exec",
                               "os.system", "yaml.unsafe_load", "marshal.loads", "cloudpickle.load"})  # fmt: skip


def recognise(source: Source) -> bool:
    """Tell whether a Python file is a handler: by its entry point, or by a class of TorchServe's that it derives from."""
    if source.suffix != ".py" or source.filename.startswith("test_"):
        return False
    if re.search(r"(?m)^(    )?def handle\((self, )?data, (context|ctx)\b", source.text):
        return True
    if not re.search(r"(?m)^\s*(from ts\b|import ts\b)", source.text):
        return False
    return bool(re.search(r"(?m)^\s*class \w+\([^)]*Handler\b[^)]*\)\s*:|^def handle\(", source.text))


def check(source: Source, context: Context) -> Found:
    """Check a handler by itself."""
    yield from checked(source, None)


def checked(source: Source, members: Collection[str] | None, *, function: str = "") -> Iterator[Finding]:
    """Check a handler, and against the archive's ``members`` where these are known."""
    try:
        tree = ast.parse(source.text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line, column = getattr(error, "lineno", 1) or 1, getattr(error, "offset", 1) or 1
        yield rules.HANDLER_SYNTAX.on(source.name, line, column, str(getattr(error, "msg", error)))
        return
    stem = source.filename.removesuffix(".py")
    if stem in sys.stdlib_module_names or stem in _IMPORTED:
        yield rules.SHADOWED_MODULE.on(source.name, 1, 1, repr(stem))
    entry = function or "handle"
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == entry]
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    aliases = {target.id for node in tree.body if isinstance(node, ast.Assign) for target in node.targets
               if isinstance(target, ast.Name)}  # fmt: skip
    imported = {
        name.asname or name.name for node in tree.body if isinstance(node, ast.ImportFrom) for name in node.names
    }
    if functions:
        yield from _arguments(source, functions[0], method=False)
    elif entry in aliases | imported:
        pass
    elif len(classes) != 1:
        count = "none" if not classes else f"{len(classes)} classes"
        place = classes[1] if len(classes) > 1 else None
        line, column = (place.lineno, place.col_offset + 1) if place else (1, 1)
        yield rules.HANDLER_CLASSES.on(source.name, line, column, f"no {entry}, and {count}")
    else:
        yield from _class(source, classes[0])
    yield from _calls(source, tree, members)


def _class(source: Source, node: ast.ClassDef) -> Iterator[Finding]:
    methods = {item.name: item for item in node.body if isinstance(item, ast.FunctionDef)}
    bases = [base for base in node.bases if not (isinstance(base, ast.Name) and base.id in ("object", "ABC"))]
    if not bases:
        for name in ("initialize", "handle"):
            if name not in methods:
                yield rules.HANDLER_METHODS.on(
                    source.name, node.lineno, node.col_offset + 1, f"{node.name} has no {name}"
                )
    if "handle" in methods:
        yield from _arguments(source, methods["handle"], method=True)


def _arguments(source: Source, node: ast.FunctionDef, *, method: bool) -> Iterator[Finding]:
    names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
    static = any(isinstance(item, ast.Name) and item.id == "staticmethod" for item in node.decorator_list)
    wanted = 2 + (1 if method and not static else 0)
    required = len(names) - len(node.args.defaults)
    if node.args.vararg is None and (len(names) < wanted or required > wanted):
        yield rules.HANDLER_ARGUMENTS.on(source.name, node.lineno, node.col_offset + 1, f"({', '.join(names)})")
        return
    for item in _own(node):
        if isinstance(item, ast.Return) and isinstance(item.value, ast.Dict | ast.Tuple | ast.JoinedStr):
            yield rules.NO_LIST.on(source.name, item.lineno, item.col_offset + 1)
        elif isinstance(item, ast.Return) and isinstance(item.value, ast.Constant) and item.value.value is not None:
            yield rules.NO_LIST.on(source.name, item.lineno, item.col_offset + 1, repr(item.value.value))
    data = names[wanted - 2] if len(names) >= wanted else "data"
    yield from _first_only(source, node, data)


def _own(node: ast.FunctionDef) -> Iterator[ast.AST]:
    """Yield what is in a function, and not in functions inside it."""
    waiting: list[ast.AST] = list(node.body)
    while waiting:
        item = waiting.pop()
        yield item
        if not isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            waiting += ast.iter_child_nodes(item)


def _first_only(source: Source, node: ast.FunctionDef, data: str) -> Iterator[Finding]:
    uses = [
        item
        for item in ast.walk(node)
        if isinstance(item, ast.Name) and item.id == data and isinstance(item.ctx, ast.Load)
    ]
    firsts = [
        item
        for item in ast.walk(node)
        if isinstance(item, ast.Subscript)
        and isinstance(item.value, ast.Name)
        and item.value.id == data
        and isinstance(item.slice, ast.Constant)
        and item.slice.value == 0
    ]
    tests = sum(isinstance(item, ast.Compare | ast.UnaryOp) and any(use in ast.walk(item) for use in uses)
                for item in ast.walk(node))  # fmt: skip
    if firsts and len(uses) - tests <= len(firsts):
        yield rules.ONE_ITEM.on(source.name, firsts[0].lineno, firsts[0].col_offset + 1)


def _dotted(node: ast.expr) -> str:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def _calls(source: Source, tree: ast.Module, members: Collection[str] | None) -> Iterator[Finding]:
    names = None if members is None else {member.rpartition("/")[2] for member in members} | set(members)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = _dotted(node.func)
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        unsafe = keywords.get("weights_only")
        if name in _DANGEROUS or (name == "torch.load" and isinstance(unsafe, ast.Constant) and unsafe.value is False):
            yield rules.DANGEROUS_CALL.on(source.name, node.lineno, node.col_offset + 1, name)
        if names is not None and (opened := _opened(name, node)) and opened not in names:
            yield rules.OPENED_FILE.on(source.name, node.lineno, node.col_offset + 1, repr(opened))


def _opened(name: str, node: ast.Call) -> str:
    """Return the name of a file of the archive that a call opens; empty where it is not written out."""
    mode: Any = node.args[1] if len(node.args) > 1 else next((k.value for k in node.keywords if k.arg == "mode"), None)
    if name == "open" and node.args:
        if isinstance(mode, ast.Constant) and isinstance(mode.value, str) and set(mode.value) & set("wax+"):
            return ""
        path = node.args[0]
        if isinstance(path, ast.Constant) and isinstance(path.value, str) and not path.value.startswith("/"):
            return path.value
    if name == "os.path.join" and len(node.args) == 2 and isinstance(node.args[1], ast.Constant):
        folder, leaf = (
            _dotted(node.args[0]) if isinstance(node.args[0], ast.Name | ast.Attribute) else "",
            node.args[1].value,
        )
        if folder.rpartition(".")[2] == "model_dir" and isinstance(leaf, str) and "." in leaf:
            return leaf
    return ""


KIND: Final = FileKind(name="ts_handler", title="a handler of TorchServe", recognise=recognise, check=check)

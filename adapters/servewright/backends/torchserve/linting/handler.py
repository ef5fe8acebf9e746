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

_OPENERS: Final = frozenset(
    {"open", "io.open", "codecs.open", "torch.load", "torch.jit.load", "numpy.load", "np.load", "Path", "pathlib.Path",
     "onnxruntime.InferenceSession", "ort.InferenceSession", "pd.read_csv", "pandas.read_csv", "Image.open"}
)  # fmt: skip
# Who asks whether a file is there, or makes it, does not need it in the archive.
_TESTS: Final = ("exists", "isfile", "is_file", "isdir", "is_dir", "lexists")
_WRITES: Final = ("write_text", "write_bytes", "mkdir", "makedirs", "touch", "save")


def recognise(source: Source) -> bool:
    """Tell whether a Python file is a handler: by its entry point, or by a class of TorchServe's that it derives from."""
    if source.suffix != ".py" or source.filename.startswith("test_"):
        return False
    if re.search(r"(?m)^(    )?def handle\((self, )?data, (context|ctx)\b", source.text):
        return True
    if not re.search(r"(?m)^\s*(from ts\b|import ts\b)", source.text):
        return False
    return bool(re.search(r"(?m)^\s*class \w+\([^)]*Handler\b[^)]*\)\s*:|^def handle\(", source.text))


def hides(module: str) -> bool:
    """Tell whether workers, or the handlers of others, import another module of that name."""
    return module in sys.stdlib_module_names or module in _IMPORTED


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
    if hides(stem):
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
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = _dotted(node.func)
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        unsafe = keywords.get("weights_only")
        if name in _DANGEROUS or (name == "torch.load" and isinstance(unsafe, ast.Constant) and unsafe.value is False):
            yield rules.DANGEROUS_CALL.on(source.name, node.lineno, node.col_offset + 1, name)
    if members is None:
        return
    names = {member.rpartition("/")[2] for member in members} | set(members)
    folders = {member[:end] for member in members for end in range(len(member)) if member[end] == "/"}
    for place, opened in _opened(tree):
        if opened not in names | folders:
            yield rules.OPENED_FILE.on(source.name, place.lineno, place.col_offset + 1, repr(opened))


def _opened(tree: ast.Module) -> Iterator[tuple[ast.expr, str]]:
    """Yield the files of the archive that a handler opens, as far as their names are written out.

    A name below the model's folder counts wherever it is put together; a relative one where it is opened, for workers
    run in that folder. What is written, or looked for before it is opened, need not be there.
    """
    nodes = list(ast.walk(tree))
    folders = {_target(node) for node in nodes if isinstance(node, ast.Assign) and _is_folder(node.value, frozenset())}
    tested: set[ast.AST] = set()
    tested_names: set[str] = set()
    opened: list[tuple[ast.expr, str]] = []
    for node in nodes:
        if not isinstance(node, ast.Call):
            continue
        name = _dotted(node.func)
        path = node.args[0] if node.args else None
        if isinstance(node.func, ast.Attribute) and node.func.attr in (*_TESTS, *_WRITES):
            for looked in (node.func.value, *node.args):
                tested |= set(ast.walk(looked))
                tested_names.add(_dotted(looked))
        elif name in _OPENERS and path is not None:
            if name == "open" and _writes(node):
                tested |= set(ast.walk(path))
            elif isinstance(path, ast.Constant) and isinstance(path.value, str) and not path.value.startswith("/"):
                opened.append((node, path.value))
    for node in nodes:
        if isinstance(node, ast.Assign) and _target(node) in tested_names:
            tested |= set(ast.walk(node.value))
    inner: set[ast.AST] = set()
    for node in nodes:
        if isinstance(node, ast.expr) and node not in inner and (leaf := _below(node, folders)):
            inner |= set(ast.walk(node))
            if node not in tested and "." in leaf.rpartition("/")[2]:
                opened.append((node, leaf))
    yield from sorted(opened, key=lambda item: (item[0].lineno, item[0].col_offset))


def _target(node: ast.Assign) -> str:
    return _dotted(node.targets[0]) if len(node.targets) == 1 else ""


def _writes(node: ast.Call) -> bool:
    mode: Any = node.args[1] if len(node.args) > 1 else next((k.value for k in node.keywords if k.arg == "mode"), None)
    return isinstance(mode, ast.Constant) and isinstance(mode.value, str) and bool(set(mode.value) & set("wax+"))


def _is_folder(node: ast.expr, folders: Collection[str]) -> bool:
    """Tell whether an expression is the model's folder: ``properties.get("model_dir")``, however it is wrapped."""
    if isinstance(node, ast.Call):
        if _dotted(node.func).rpartition(".")[2] in ("Path", "str", "abspath", "realpath", "get", "fspath"):
            return any(_is_folder(argument, folders) for argument in node.args[:1])
        return False
    if isinstance(node, ast.Subscript):
        return _is_folder(node.slice, folders)
    if isinstance(node, ast.Constant):
        return node.value == "model_dir"
    name = _dotted(node)
    return name.rpartition(".")[2] == "model_dir" or name in folders


def _below(node: ast.expr, folders: Collection[str]) -> str:
    """Return the path below the model's folder that an expression puts together; empty where it is no such."""
    first: ast.expr
    parts: list[ast.expr]
    if isinstance(node, ast.Call) and _dotted(node.func) in ("os.path.join", "path.join", "join") and node.args:
        first, parts = node.args[0], node.args[1:]
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div | ast.Add):
        first, parts = node.left, [node.right]
    elif isinstance(node, ast.JoinedStr) and len(node.values) > 1 and isinstance(node.values[0], ast.FormattedValue):
        first, parts = node.values[0].value, node.values[1:]
    else:
        return ""
    texts = [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    start = "" if _is_folder(first, folders) else _below(first, folders)
    if len(texts) < len(parts) or (not start and not _is_folder(first, folders)):
        return ""
    return "/".join(text.strip("/") for text in (start, *texts) if text.strip("/"))


KIND: Final = FileKind(name="ts_handler", title="a handler of TorchServe", recognise=recognise, check=check)

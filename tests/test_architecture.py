"""The shape of the package: which way imports point, where foreign libraries live, and what everything is called.

The rules are read off the source, so that a new module is held to them before anybody has looked at it.
"""

from __future__ import annotations

import ast
import builtins
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import servewright
from servewright import errors, registry

PACKAGE = Path(servewright.__file__).parent
ROOT = Path(__file__).parents[1]
MODULES = {
    ".".join(("servewright", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if not {"handlers", "templates"} & set(path.relative_to(PACKAGE).parts)
}
PLUGIN = re.compile(r"servewright\.backends\.(\w+)")

# The floors of the house: a module imports from its own floor or from below. What is not named here is a stage.
FLOORS = (
    ("errors", "units", "assets"),
    ("yamltext", "complaints", "quantities", "fields", "spec", "specfile"),
    ("fleet",),
    ("backend", "runs", "server"),
    ("stages",),
    ("registry",),
    ("pipeline", "doctor", "demo", "linting"),
    ("serving",),
    ("cli", "pytest_plugin"),
    ("__main__",),
)
# Where a foreign library may be imported, and nowhere else; a backend's own servers and stubs are its own affair.
HOMES = {
    "urllib3": {"servewright.http"},
    "grpc": {"servewright.channels"},
    "jinja2": {"servewright.rendering"},
    "docker": {"servewright.engine", "servewright.docker_runtime", "servewright.containers"},
    "click": {"servewright.cli"},
    "rich": {"servewright.cli"},
    "yaml": {"servewright.yamltext"},
    "pytest": {"servewright.pytest_plugin"},
}
VAGUE = re.compile(r"(manager|helper|util|utils|base|common|misc|core|stuff)s?")


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


def imports(name: str, *, typing: bool = False) -> Iterator[str]:
    """Yield the modules that a module imports, wherever in it; ``typing`` adds those for annotations alone."""
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not typing:
            skipped |= {inner for child in node.body for inner in ast.walk(child)}
        elif node not in skipped and isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif node not in skipped and isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: a relative import"
            module = node.module or ""
            yield from (
                f"{module}.{alias.name}" if f"{module}.{alias.name}" in MODULES else module for alias in node.names
            )


def floor(name: str) -> int:
    """Return how high in the house a module lives."""
    part = name.split(".")[1] if "." in name else ""
    if PLUGIN.match(name):
        return _height("backend")
    return next((height for height, names in enumerate(FLOORS) if part in names), _height("stages"))


def _height(name: str) -> int:
    return next(height for height, names in enumerate(FLOORS) if name in names)


def home(name: str) -> str:
    """Return the module or the folder of modules that ``name`` belongs to."""
    return ".".join(name.split(".")[:2])


CORE = [name for name in MODULES if not PLUGIN.match(name)]


class TestImports:
    """Which way they point."""

    @pytest.mark.parametrize("name", CORE)
    def test_point_down(self, name: str) -> None:
        """The command line knows the pipeline, this the stages, and these a backend's type and the spec."""
        upward = [
            other
            for other in imports(name)
            if other in MODULES and not PLUGIN.match(other) and floor(other) > floor(name) and home(other) != home(name)
        ]
        assert upward == []

    @pytest.mark.parametrize("name", CORE)
    def test_of_the_core_reach_into_no_backend(self, name: str) -> None:
        """Whoever needs a backend asks the registry for it by name."""
        assert [other for other in imports(name, typing=True) if PLUGIN.match(other)] == []

    @pytest.mark.parametrize("name", [name for name in MODULES if PLUGIN.match(name)])
    def test_of_a_backend_reach_into_no_other(self, name: str) -> None:
        """A third backend touches one new folder only, and so does the removal of one."""
        own = PLUGIN.match(name)
        assert own
        others = [
            other for other in imports(name, typing=True) if (found := PLUGIN.match(other)) and found[1] != own[1]
        ]
        assert others == []

    @pytest.mark.parametrize("name", [name for name in MODULES if PLUGIN.match(name)])
    def test_of_a_backend_stay_below_the_pipeline(self, name: str) -> None:
        """A backend is made of the core's parts; it does not call what calls it."""
        above = {"servewright.pipeline", "servewright.registry", "servewright.cli", "servewright.doctor"}
        assert [other for other in imports(name) if home(other) in above] == []

    def test_go_in_no_circle(self) -> None:
        """Modules can be read, and loaded, in an order."""
        at_load = {name: {other for other in _at_load(name) if other in MODULES and other != name} for name in MODULES}
        done: set[str] = set()
        while ready := {name for name in MODULES if name not in done and at_load[name] <= done}:
            done |= ready
        assert sorted(set(MODULES) - done) == []


def _at_load(name: str) -> Iterator[str]:
    """Yield what a module imports when it is loaded: not inside functions, not for annotations."""
    for node in tree(name).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module or ""


class TestHomes:
    """Where foreign libraries live."""

    @pytest.mark.parametrize("library", HOMES)
    def test_are_where_they_are_said_to_be(self, library: str) -> None:
        """One place translates a library's errors, because one place imports it."""
        users = {home(name) for name in CORE for other in imports(name) if other.partition(".")[0] == library}
        assert users - _also(library) <= HOMES[library]

    def test_create_channels_in_one_place(self) -> None:
        """Deadlines, sizes and proxies are settled where channels are made."""
        makers = {
            name
            for name in MODULES
            for node in ast.walk(tree(name))
            if isinstance(node, ast.Attribute) and node.attr in ("insecure_channel", "secure_channel")
        }
        assert {name for name in makers if ".embedded" not in name} == {"servewright.channels"}

    @pytest.mark.parametrize("name", MODULES)
    def test_of_heavy_libraries_are_inside_functions(self, name: str) -> None:
        """No module but a worker's own imports a framework when it is loaded."""
        heavy = {"tensorflow", "torch", "keras", "docker", "ts", "onnx", "onnxruntime", "sklearn"}
        found = {other.partition(".")[0] for other in _at_load(name)} & heavy
        assert not found or name.startswith(("servewright.demo.", "servewright.backends.tfserving.embedded"))


def _also(library: str) -> set[str]:
    """Return further modules that read YAML: files of others, of which the reader of specs would refuse much."""
    return {"servewright.linting"} if library == "yaml" else set()


class TestNames:
    """What things are called."""

    def test_of_backends_are_absent_from_the_core(self) -> None:
        """Where the core says a backend's name, a third one would have to be said too; help texts may give examples."""
        known = re.compile("|".join(registry.names()))
        found = [
            f"{name}: {text!r}"
            for name in CORE
            if not name.startswith(("servewright.cli", "servewright.demo"))
            for text in _texts(tree(name))
            if known.fullmatch(text) and text not in SAID.get(name, ())
        ]
        assert found == []

    @pytest.mark.parametrize("name", MODULES)
    def test_say_what_a_module_is(self, name: str) -> None:
        """A module is called after a thing of the domain; vague names gather everything."""
        assert not VAGUE.fullmatch(name.rpartition(".")[2])

    @pytest.mark.parametrize("name", MODULES)
    def test_of_classes_are_true(self, name: str) -> None:
        """Nor is a class called after its helpfulness."""
        classes = [node.name for node in ast.walk(tree(name)) if isinstance(node, ast.ClassDef)]
        assert [each for each in classes if re.search(r"(Manager|Helper|Utils?|Base)$", each)] == []


# The linter asks of a file that cannot be read whether it is about a model server at all.
SAID = {"servewright.linting.walking": ("torchserve",)}


def _texts(node: ast.AST) -> Iterator[str]:
    """Yield every text in the source but the names of extras, some of which are called like a server."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif not (isinstance(node, ast.Call) and ast.unparse(node.func).endswith("MissingExtraError")):
        for child in ast.iter_child_nodes(node):
            yield from _texts(child)


class TestDocstrings:
    """What everything says of itself."""

    @pytest.mark.parametrize("name", MODULES)
    def test_stand_at_every_public_thing(self, name: str) -> None:
        """Each module, public class and public function says in a sentence what it is or does."""
        assert ast.get_docstring(tree(name)), name
        missing = [
            node.name
            for node in _public(tree(name).body)
            if not ast.get_docstring(node) and not _is_property_setter(node)
        ]
        assert missing == []

    @pytest.mark.parametrize("name", MODULES)
    def test_name_no_issue_session_or_machine(self, name: str) -> None:
        """A reader of the source sees the project alone."""
        text = MODULES[name].read_text(encoding="utf-8")
        assert not re.search(r"/work/|\.\./shared|\bthis session\b|\bTODO\b|\bFIXME\b|\bXXX\b", text)


def _public(body: list[ast.stmt]) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield node
            yield from _public(node.body)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield node


def _is_property_setter(node: ast.AST) -> bool:
    return any(
        isinstance(each, ast.Attribute) and each.attr == "setter" for each in getattr(node, "decorator_list", ())
    )


class TestErrors:
    """What is raised."""

    def test_are_drawn_as_a_tree(self) -> None:
        """The drawing at the top of the module names every error, at its depth."""
        drawn = {
            match[2]: len(match[1]) // 4
            for line in (errors.__doc__ or "").splitlines()
            if (match := re.match(r"([ │├└─]*)([A-Z]\w+Error)\b", line))
        }
        kinds = {
            name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)
        }
        assert drawn == {name: len(kind.__mro__) - len(errors.ServewrightError.__mro__) for name, kind in kinds.items()}

    def test_have_exit_codes(self) -> None:
        """Each error ends a command with the code that its drawing says."""
        codes = {name: getattr(errors, name).exit_code for name in vars(errors) if name.endswith("Error")}
        assert codes["SpecError"] == codes["UntrustedPickleError"] == 2
        assert codes["CheckFailedError"] == 1
        assert codes["MissingExtraError"] == 3
        assert codes["LaunchError"] == codes["ProbeTimeoutError"] == codes["PackagingError"] == 4

    @pytest.mark.parametrize("name", [name for name in MODULES if ".cli" in name or name.count(".") == 1])
    def test_of_the_core_are_ours(self, name: str) -> None:
        """A stage or a command raises what a caller can catch as ours; parts that say so raise ValueError."""
        allowed = ALLOWED | LOCAL.get(name, set())
        raised = [
            ast.unparse(node.exc).partition("(")[0]
            for node in ast.walk(tree(name))
            if isinstance(node, ast.Raise) and node.exc is not None
        ]
        foreign = [each for each in raised if each in BUILT_IN and each not in allowed]
        assert foreign == []

    def test_of_missing_packages_name_extras_that_exist(self) -> None:
        """The line that an error tells people to run works."""
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        calls = [node for name in MODULES for node in ast.walk(tree(name)) if isinstance(node, ast.Call)]
        missing = [call.args for call in calls if ast.unparse(call.func).endswith("MissingExtraError")]
        named = {args[1].value for args in missing if len(args) > 1 and isinstance(args[1], ast.Constant)}
        texts = {found for path in MODULES.values() for found in re.findall(r"servewright\[(\w+)\]", path.read_text())}
        assert named
        assert named | texts <= set(extras)


BUILT_IN = {name for name in dir(builtins) if name.endswith("Error")}
# What a protocol of Python's own, or an invariant that a type checker cannot see, asks for.
ALLOWED = {"AssertionError", "AttributeError", "KeyError", "NotImplementedError", "StopIteration"}
LOCAL: dict[str, set[str]] = {
    # Turned into errors of ours in the same module.
    "servewright.manifest": {"ValueError", "TypeError"},
    "servewright.staging": {"OSError"},
    # Said in its docstring: a container's file is read like any other.
    "servewright.containers": {"FileNotFoundError"},
}


class TestTemplates:
    """Templates lay out; they decide nothing."""

    @pytest.mark.parametrize("name", registry.names())
    def test_are_short(self, name: str) -> None:
        """A template that needs scrolling decides something."""
        for path in registry.get(name).templates.glob("*.j2"):
            assert len(path.read_text().splitlines()) <= 80, path.name

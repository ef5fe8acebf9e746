"""What `make bench` runs, and what it says has to be run by itself."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"
PARTS = {"run.py", "plain_tf_server.py"}  # of the whole, and of embedded_throughput.py


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import what runs all of them, which is a program."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(BENCHMARKS)])
    return import_module("run")


def test_none_is_forgotten(runner: Any) -> None:
    """A new benchmark is run with all others, or named among those that are run by themselves."""
    run = {script.split()[0] for script in runner.SCRIPTS}
    there = {path.name for path in BENCHMARKS.glob("*.py")} - PARTS
    assert run <= there
    assert [name for name in sorted(there - run) if f"``{name}``" not in runner.__doc__] == []


def test_what_they_import_is_declared() -> None:
    """`make bench` installs it: without it a row would be left out, and nothing but a line of the output would tell."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    every = [*project["dependencies"], *(each for name in ("grpc", "torch", "bench") for each in extras[name])]
    every += extras["tensorflow"]
    declared = {re.split("[^a-z0-9_]", each.lower())[0] for each in every} | {"grpc", "tensorflow_serving", "locust"}
    own = {path.stem for folder in (BENCHMARKS, ROOT / "tests") for path in folder.rglob("*.py")}
    own |= {"servewright", "integration", "surfaces"}
    trees = [ast.parse(path.read_text()) for path in BENCHMARKS.rglob("*.py")]
    imported = {name for tree in trees for name in modules(tree)}
    assert imported - declared - own - sys.stdlib_module_names == set()
    assert "optuna" in imported


def modules(tree: ast.AST) -> Iterator[str]:
    """Yield the first names of all that is imported, at whatever place."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (each.name.partition(".")[0] for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]

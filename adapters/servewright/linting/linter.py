"""What a backend gives to the linter: its rules, the files that it knows, and a judge of commands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from servewright.linting.commands import Invocation
from servewright.linting.finding import Finding
from servewright.linting.rule import Rule
from servewright.linting.sources import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Follow:
    """A file or a folder that a linted file names; ``kind`` says what it must be."""

    path: Path
    kind: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What a check may know besides its text: the servers' releases, and how to read other files."""

    targets: Mapping[str, str] = field(default_factory=dict)
    read: Callable[[Path], Source | None] = lambda _: None


Found: TypeAlias = "Iterator[Finding | Follow]"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileKind:
    """One kind of text file: how it is recognised by its content, and how it is checked."""

    name: str
    title: str
    recognise: Callable[[Source], bool]
    check: Callable[[Source, Context], Found]


@dataclass(frozen=True, slots=True, kw_only=True)
class BinaryKind:
    """One kind of binary file, such as an archive; ``recognise`` gets the path and the first bytes."""

    name: str
    title: str
    recognise: Callable[[Path, bytes], bool]
    check: Callable[[Path, str, Context], Found]


@dataclass(frozen=True, slots=True, kw_only=True)
class Linter:
    """A backend's part of the linter; ``releases`` of its server are those whose flags and keys it knows."""

    rules: tuple[Rule, ...]
    kinds: tuple[FileKind, ...] = ()
    binaries: tuple[BinaryKind, ...] = ()
    command: Callable[[Invocation, Context], Found] | None = None
    releases: tuple[str, ...] = ()

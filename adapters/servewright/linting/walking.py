"""From paths to findings: files recognised by their content, folders read, named files followed."""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from servewright import registry
from servewright.errors import InputError
from servewright.linting import commands, fixes, suppressions
from servewright.linting.finding import Finding, Severity
from servewright.linting.linter import BinaryKind, Context, FileKind, Follow, Linter
from servewright.linting.rule import Rule, by_id
from servewright.linting.sources import MAX_BYTES, Source
from servewright.linting.yamlplaces import PlacedYamlError
from servewright.staging import staged_file

_SKIPPED_FOLDERS: Final = frozenset(
    {".git", ".hg", ".svn", ".venv", "venv", "node_modules", "__pycache__", ".tox", ".mypy_cache", ".ruff_cache"}
)
# In a folder, only what may be a config is opened: everything else is somebody's data or code.
_CONFIG_SUFFIXES: Final = frozenset(
    {"", ".pbtxt", ".textproto", ".prototxt", ".config", ".conf", ".cfg", ".txt", ".properties", ".yaml", ".yml", ".json",
     ".mar", ".py", ".sh", ".bash", ".dockerfile", ".template"}
)  # fmt: skip
_MOST_FILES: Final = 200_000

UNREADABLE = Rule(
    id="GEN001",
    severity=Severity.ERROR,
    title="A file cannot be read",
    happens="no server can read it either",
    do="give it read permission, or save it as text in UTF-8",
    reference="every server",
)
BROKEN_MANIFEST = Rule(
    id="RUN001",
    severity=Severity.ERROR,
    title="A Compose or Kubernetes file is not YAML",
    happens="nothing in it is started",
    do="correct the YAML at this place",
    reference="yaml.org/spec/1.1",
)
_OWN_RULES: Final = (UNREADABLE, suppressions.UNKNOWN, BROKEN_MANIFEST)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the user asked for: server releases by backend, rules to leave out, and a kind that is forced."""

    targets: Mapping[str, str] = field(default_factory=dict)
    ignore: frozenset[str] = frozenset()
    kind: str = ""
    fix: bool = False


@dataclass(slots=True)
class Result:
    """What was found: findings in their order, the texts they are in, the kind of each file, and what was fixed."""

    findings: list[Finding] = field(default_factory=list)
    sources: dict[str, Source] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    fixed: dict[str, int] = field(default_factory=dict)

    def worst(self) -> Severity | None:
        """Return the worst severity found."""
        return max((finding.severity for finding in self.findings), key=lambda each: each.weight, default=None)


@functools.cache
def linters() -> Mapping[str, Linter]:
    """Return what each installed backend gives to the linter."""
    found = {}
    for name in registry.names():
        lint = registry.get(name).lint
        if lint is not None:
            found[name] = lint()
    return found


@functools.cache
def rules() -> Mapping[str, Rule]:
    """Return every rule by its id."""
    return by_id([*_OWN_RULES, *(rule for linter in linters().values() for rule in linter.rules)])


def kinds() -> Mapping[str, str]:
    """Return every kind of file and its title."""
    found = {kind.name: kind.title for linter in linters().values() for kind in linter.kinds}
    found |= {kind.name: kind.title for linter in linters().values() for kind in linter.binaries}
    return {**found, "commands": "shell scripts, Dockerfiles, Compose and Kubernetes files"}


def lint(paths: Sequence[Path], wishes: Wishes | None = None) -> Result:
    """Lint files and folders and what they name; raise InputError for a path that is not there."""
    wishes = wishes or Wishes()
    if wishes.kind and wishes.kind not in kinds():
        raise InputError(f"no kind {wishes.kind!r}; choose from {', '.join(sorted(kinds()))}")
    walk = _Walk(wishes)
    for path in paths:
        if not path.exists():
            raise InputError(f"{path} does not exist")
        for file, named in _files(path):
            walk.visit(file, wishes.kind if named else "", named=named)
    walk.result.findings.sort(key=lambda finding: finding.order)
    return walk.result


def recognised(path: Path) -> Iterator[tuple[Path, str]]:
    """Yield each config in a file or below a folder with its kind; raise InputError for a path that is not there."""
    if not path.exists():
        raise InputError(f"{path} does not exist")
    every = linters().values()
    for file, named in _files(path):
        try:
            head = _head(file)
            kind = next((each for linter in every for each in linter.binaries if each.recognise(file, head)), None)
            if kind is not None:
                yield file, kind.name
                continue
            source = _read(file)
        except (OSError, ValueError) as error:
            if named:
                raise InputError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from error
            continue
        text_kind = next((each for linter in every for each in linter.kinds if each.recognise(source)), None)
        if text_kind is not None:
            yield file, text_kind.name


def _files(path: Path) -> Iterator[tuple[Path, bool]]:
    """Yield every file below ``path`` that may be a config; the second value tells whether the user named it."""
    if not path.is_dir():
        yield path, True
        return
    count = 0
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED_FOLDERS)
        for name in sorted(names):
            count += 1
            if count > _MOST_FILES:
                raise InputError(f"{path} holds more than {_MOST_FILES} files; name the folders of the configs")
            if Path(name).suffix.lower() in _CONFIG_SUFFIXES or name.lower().startswith(
                ("dockerfile", "containerfile")
            ):
                yield Path(folder) / name, False


class _Walk:
    """Visits each file once and gathers what is found."""

    def __init__(self, wishes: Wishes) -> None:
        self.result = Result()
        self._wishes = wishes
        self._linters = linters()
        self._known = frozenset(rules())
        self._seen: set[tuple[str, str]] = set()
        self._told: set[tuple[str, str, int, int, str]] = set()
        self._context = Context(targets=wishes.targets, read=_source)

    def visit(self, path: Path, kind: str = "", *, named: bool = True) -> None:
        """Lint one file, and then what it names."""
        waiting = [(path, kind, named)]
        while waiting:
            path, kind, named = waiting.pop()
            key = os.path.realpath(path)
            if (key, kind) in self._seen or ((key, "") in self._seen and not kind):
                continue
            self._seen |= {(key, kind), (key, "")}
            for follow in self._one(path, kind, named=named):
                if not follow.path.exists():
                    continue
                if follow.path.is_dir():
                    waiting += [(file, "", False) for file, _ in _files(follow.path)]
                else:
                    waiting.append((follow.path, follow.kind, True))

    def _one(self, path: Path, kind: str, *, named: bool) -> list[Follow]:
        name = str(path)
        try:
            head = _head(path)
        except OSError as error:
            if named:
                self._add(None, [UNREADABLE.on(name, 1, 1, error.strerror or str(error))])
            return []
        if binary := self._binary(path, head, kind):
            self.result.kinds[name] = binary.name
            return self._gather(None, binary.check(path, name, self._context))
        try:
            source = _read(path)
        except (OSError, ValueError) as error:
            if named and kind:
                self._add(None, [UNREADABLE.on(name, 1, 1, str(error))])
            elif named:
                self.result.skipped.append(name)
            return []
        follows = self._checked(source, kind)
        if follows is None:
            if named:
                self.result.skipped.append(name)
            return []
        if self._wishes.fix and (count := self._fix(source)):
            self.result.fixed[name] = count
            self.result.findings = [finding for finding in self.result.findings if finding.file != name]
            self._told = {key for key in self._told if key[1] != name}
            follows = self._checked(_read(path), kind) or []
        return follows

    def _binary(self, path: Path, head: bytes, kind: str) -> BinaryKind | None:
        found = [each for linter in self._linters.values() for each in linter.binaries]
        if kind:
            return next((each for each in found if each.name == kind), None)
        return next((each for each in found if each.recognise(path, head)), None)

    def _kind(self, source: Source, kind: str) -> FileKind | None:
        found = [each for linter in self._linters.values() for each in linter.kinds]
        if kind:
            return next((each for each in found if each.name == kind), None)
        return next((each for each in found if each.recognise(source)), None)

    def _checked(self, source: Source, kind: str) -> list[Follow] | None:
        """Check a text as what it is, or return ``None`` where it is nothing of ours."""
        if found := self._kind(source, kind):
            self.result.kinds[source.name] = found.name
            return self._gather(source, found.check(source, self._context))
        return self._commands(source) if kind in ("", "commands") else None

    def _fix(self, source: Source) -> int:
        """Write the text with its safe changes, and return how many there were."""
        text, count = fixes.fixed(source.text, [each for each in self.result.findings if each.file == source.name])
        if count:
            encoded = text.encode("utf-8" if _is_utf8(source.path) else "latin-1")
            with staged_file(source.path) as descriptor:
                os.fchmod(descriptor, stat.S_IMODE(source.path.stat().st_mode))
                os.write(descriptor, encoded)
        return count

    def _commands(self, source: Source) -> list[Follow] | None:
        follows: list[Follow] = []
        known = False
        try:
            found = list(commands.invocations(source))
        except PlacedYamlError as error:
            if not any(word in source.text for word in ("torchserve", "tensorflow")):
                return None
            self.result.kinds[source.name] = "commands"
            self._add(source, [BROKEN_MANIFEST.on(source.name, error.line, error.column, error.reason)])
            return []
        for invocation in found:
            for linter in self._linters.values():
                if linter.command is None:
                    continue
                items = list(linter.command(invocation, self._context))
                known = known or bool(items)
                follows += self._gather(source, items)
        if known:
            self.result.kinds[source.name] = "commands"
        return follows if known else None

    def _gather(self, source: Source | None, items: Iterable[Finding | Follow]) -> list[Follow]:
        findings, follows = [], []
        for item in items:
            if isinstance(item, Follow):
                follows.append(item)
            else:
                findings.append(item)
        self._add(source, findings)
        return follows

    def _add(self, source: Source | None, findings: Sequence[Finding]) -> None:
        if source is not None:
            self.result.sources[source.name] = source
            findings = list(suppressions.apply(source, findings, self._known))
        for finding in findings:
            key = (finding.rule, finding.file, finding.line, finding.column, finding.what)
            if finding.rule not in self._wishes.ignore and key not in self._told:
                self._told.add(key)
                self.result.findings.append(finding)


def _head(path: Path) -> bytes:
    if not stat.S_ISREG(path.stat().st_mode):  # opening a named pipe would wait for ever
        raise OSError(0, "is not a regular file")
    with path.open("rb") as file:
        return file.read(64)


def _read(path: Path) -> Source:
    """Return the text of a file; raise `ValueError` for what is too large or no text."""
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes")
    if b"\0" in content:
        raise ValueError("it is no text")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("latin-1")  # as Java reads properties
    return Source(str(path), path, text)


def _is_utf8(path: Path) -> bool:
    try:
        path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _source(path: Path) -> Source | None:
    try:
        return _read(path) if path.is_file() else None
    except (OSError, ValueError):
        return None

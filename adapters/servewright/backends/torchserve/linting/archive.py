"""Checks of a ``.mar``: proved safe first, then read member by member, never unpacked."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from servewright.archive_check import check_archive
from servewright.backends.torchserve.archive import MANIFEST
from servewright.backends.torchserve.linting import archive_rules as rules
from servewright.backends.torchserve.linting import handler, manifest, model_config
from servewright.errors import InputError
from servewright.linting import suppressions
from servewright.linting.finding import Finding
from servewright.linting.linter import BinaryKind, Context, Follow, Found
from servewright.linting.rule import Rule
from servewright.linting.sources import Source

_WEIGHTS: Final = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".joblib", ".ckpt")
_LARGEST_TEXT: Final = 4 << 20
_LARGEST_WEIGHTS: Final = 512 << 20


def recognise(path: Path, head: bytes) -> bool:
    """Tell whether a file is a model archive: its name says so."""
    return path.suffix.lower() == ".mar"


def check(path: Path, name: str, context: Context) -> Found:
    """Check an archive's form, and where that is sound its manifest, settings, handler and weights."""
    try:
        found = check_archive(path)
    except InputError as error:
        yield rules.NO_ZIP.on(name, 1, 1, str(error))
        return
    for finding in found:
        yield rules.OF_CHECK.get(finding.rule, rules.HIDDEN).on(name, 1, 1, str(finding))
    if found:
        return
    with zipfile.ZipFile(path) as archive:
        yield from _members(archive, path, name, context)


def _members(archive: zipfile.ZipFile, path: Path, name: str, context: Context) -> Found:
    sizes = {entry.filename: entry.file_size for entry in archive.infolist() if not entry.is_dir()}

    def text(member: str) -> Source | None:
        if sizes.get(member, _LARGEST_TEXT + 1) > _LARGEST_TEXT:
            return None
        return Source(f"{name}!/{member}", path, archive.read(member).decode("utf-8", "replace"))

    described = text(MANIFEST)
    model: dict[str, str] = {}
    if described is None:
        yield rules.MISSING_MANIFEST.on(name, 1, 1)
    else:
        yield from manifest.checked(described, sizes)
        model = _model(described)
    config = model.get("configFile", "")
    if config and (source := text(config)):
        yield from _kept(source, model_config.check(source, context))
    entry, _, function = model.get("handler", "").partition(":")
    file = entry if entry in sizes else f"{entry}.py"
    if entry and (source := text(file)) and file.endswith(".py"):
        yield from _kept(source, handler.checked(source, sizes, function=function))
    yield from _pickles(archive, name, sizes)


def _kept(source: Source, found: Iterator[Finding | Follow]) -> Iterator[Finding]:
    known = {rule.id for rule in _all_rules()}
    yield from suppressions.apply(source, [item for item in found if isinstance(item, Finding)], known)


def _all_rules() -> list[Rule]:
    from servewright.backends.torchserve.linting import rules as text_rules

    return [*rules.RULES, *text_rules.RULES]


def _model(source: Source) -> dict[str, str]:
    import json

    try:
        model = json.loads(source.text).get("model")
    except (ValueError, AttributeError, RecursionError):
        return {}
    return {key: value for key, value in model.items() if isinstance(value, str)} if isinstance(model, dict) else {}


def _pickles(archive: zipfile.ZipFile, name: str, sizes: dict[str, int]) -> Iterator[Finding]:
    """Walk the opcodes of every file of weights; none is read as a pickle."""
    import pickletools  # noqa: F401  (what the scanner stands on; fails here if it is not there)

    from servewright.modelfiles.pickles import torch_file_imports

    for member, size in sizes.items():
        if not member.lower().endswith(_WEIGHTS) or size > _LARGEST_WEIGHTS:
            continue
        content = archive.read(member)
        if b"/code/" in content[:65_536] or b"/constants.pkl" in content:
            continue  # TorchScript: read by C++, in which a pickle builds its own classes alone
        try:
            strange = [item for item in torch_file_imports(content) if not item.plain]
        except Exception as error:  # noqa: BLE001  (any broken pickle: that it cannot be walked is the finding)
            yield rules.PICKLE.on(f"{name}!/{member}", 1, 1, f"it cannot be walked ({error})")
            continue
        if strange:
            first = strange[0]
            more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
            yield rules.PICKLE.on(f"{name}!/{member}", 1, 1, f"it imports {first.name}{more}, which {first.danger}")


KIND: Final = BinaryKind(name="mar", title="a model archive (.mar)", recognise=recognise, check=check)

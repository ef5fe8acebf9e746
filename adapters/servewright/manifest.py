"""The list of what an artifact holds: ``manifest.json`` at its root, the same bytes for the same content."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from servewright.digest import Digest, combined, digest_of_bytes, digest_of_members, read_digest
from servewright.errors import InputError
from servewright.members import Members, name_problems

FILE: Final = "manifest.json"
_VERSION: Final = 1
_LARGEST: Final = 64 << 20  # bytes; a manifest of a hundred thousand files has a sixth of that


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What an artifact was made from, and the digest of every file in it but the manifest itself.

    It names no date and no machine: the same input gives the same manifest. ``model_digest`` covers the files below
    ``models/`` alone, so that two artifacts can be told to serve the same models however their servers are configured.
    """

    backend: str
    tool_version: str
    spec_digest: str
    model_digest: str
    files: Mapping[str, Digest] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def digest(self) -> str:
        """The SHA-256 of the manifest as it is written: it stands for the whole artifact."""
        return digest_of_bytes(self.to_json().encode()).sha256

    def to_json(self) -> str:
        """Return the text of ``manifest.json``."""
        document = {
            "servewright_manifest": _VERSION,
            "tool_version": self.tool_version,
            "backend": self.backend,
            "spec_digest": self.spec_digest,
            "model_digest": self.model_digest,
            "files": {name: {"sha256": file.sha256, "size": file.size} for name, file in sorted(self.files.items())},
        }
        return json.dumps(document, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, *, where: str = FILE) -> Manifest:
        """Read what `to_json` wrote; raise InputError for anything else, naming ``where`` it was."""
        try:
            return _parsed(json.loads(text, object_pairs_hook=_once))
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else error
            raise InputError(f"{where} is no manifest of an artifact: {reason}; package it again") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One way in which a directory is not what its manifest says: ``missing``, ``changed``, ``added`` or ``odd``."""

    file: str
    kind: str
    detail: str

    def __str__(self) -> str:
        return f"{self.file}: {self.detail}"


def manifest_of(members: Members, *, backend: str, spec_digest: str, tool_version: str) -> Manifest:
    """Return the manifest of an artifact made of ``members``."""
    files = digest_of_members(members)
    models = {name: digest for name, digest in files.items() if name.startswith("models/")}
    return Manifest(
        backend=backend,
        tool_version=tool_version,
        spec_digest=spec_digest,
        model_digest=combined(models).sha256,
        files=MappingProxyType(files),
    )


def load_manifest(root: Path) -> Manifest:
    """Read the manifest of the artifact in the directory ``root``."""
    path = root / FILE
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST:
            raise InputError(f"{path} is no manifest of an artifact: not a file, or too large; package it again")
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no manifest of an artifact: it is not UTF-8; package it again") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; is {root} an artifact?") from error
    return Manifest.from_json(text, where=str(path))


def verify(root: Path) -> tuple[Difference, ...]:
    """Read every file of the artifact in ``root``, and return how it differs from its manifest: nothing if not at all.

    Links, devices and sockets in the artifact count as differences, and are not followed or opened.
    """
    wanted = load_manifest(root).files
    found = _files_below(root)
    differences = [
        Difference(file=name, kind="missing", detail="is listed in the manifest, and not there")
        for name in wanted
        if name not in found
    ]
    for name, kind in found.items():
        if name == FILE:
            continue
        if name not in wanted:
            differences.append(Difference(file=name, kind="added", detail="is not listed in the manifest"))
        elif not stat.S_ISREG(kind):
            differences.append(Difference(file=name, kind="odd", detail="is not a regular file"))
        elif change := _change(root / name, wanted[name]):
            differences.append(Difference(file=name, kind="changed", detail=change))
    return tuple(sorted(differences, key=lambda difference: difference.file))


def _change(path: Path, wanted: Digest) -> str:
    if (size := path.stat().st_size) != wanted.size:
        return f"has {size} bytes, where the manifest says {wanted.size}"
    try:
        found = read_digest(path)
    except InputError as error:
        return str(error)
    return "" if found == wanted else f"its content changed (sha256 {found.sha256}, not {wanted.sha256})"


def _files_below(root: Path) -> dict[str, int]:
    """Return the file type of everything below ``root`` but its directories, links not followed."""
    found: dict[str, int] = {}
    waiting = [root]
    while waiting:
        directory = waiting.pop()
        try:
            for entry in os.scandir(directory):
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))
                else:
                    found[Path(entry.path).relative_to(root).as_posix()] = entry.stat(follow_symlinks=False).st_mode
        except OSError as error:
            raise InputError(f"{directory} cannot be read: {error.strerror}") from error
    return found


def _parsed(document: Any) -> Manifest:
    if (version := document["servewright_manifest"]) != _VERSION:
        raise ValueError(f"its version {version!r} is not {_VERSION}")
    files = {name: Digest(_sha256(entry["sha256"]), _size(entry["size"])) for name, entry in document["files"].items()}
    if problems := name_problems(files):
        raise ValueError(f"file name {problems[0].name!r} {problems[0].reason}")
    return Manifest(
        backend=_text(document["backend"]),
        tool_version=_text(document["tool_version"]),
        spec_digest=_text(document["spec_digest"]),
        model_digest=_text(document["model_digest"]),
        files=MappingProxyType(files),
    )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return value


def _sha256(value: object) -> str:
    if not re.fullmatch("[0-9a-f]{64}", digest := _text(value)):
        raise ValueError(f"{value!r} is not a digest")
    return digest


def _size(value: object) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is not a size")
    return value

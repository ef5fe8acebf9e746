"""Packaging: rendered texts and model files become an artifact on disk, whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from servewright import __version__
from servewright.archive import write_zip
from servewright.backend import Archive, Artifact, Backend, Build, Content
from servewright.errors import InputError
from servewright.fleet import Fleet
from servewright.manifest import FILE as MANIFEST
from servewright.manifest import manifest_of
from servewright.rendering import render
from servewright.tree import assemble_tree


def package(fleet: Fleet, backend: Backend, target: Path, *, packed: bool = True, trust: bool = False) -> Artifact:
    """Write the artifact of ``fleet`` to the folder ``target``, replacing an older one in one step.

    ``packed``: models as archives where the server has any, ready to be shipped; else as folders of hard links, in
    constant time. ``trust`` lets code run that a model's file holds, where one has to be exported. The same fleet gives
    the same bytes. Source files are only read.
    """
    if target.exists() and not (target / MANIFEST).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} is there and is no artifact; choose another folder, or remove it")
    texts = render(fleet, backend, replace(backend.home, packed=packed))
    with _build_folder(target) as build:
        content = backend.members(fleet, texts, Build(folder=build, packed=packed, trust=trust))
        members = _written(content, build) | {f"config/{path}": text.encode() for path, text in texts.items()}
        manifest = manifest_of(members, backend=backend.name, spec_digest=fleet.digest, tool_version=__version__)
        assemble_tree(target, members | {MANIFEST: manifest.to_json().encode()})
    return Artifact(root=target, digest=manifest.digest, packed=packed)


def _written(content: Mapping[str, Content], build: Path) -> dict[str, Path | bytes]:
    """Return ``content`` with every archive written to a file in ``build``."""
    found: dict[str, Path | bytes] = {}
    for number, (path, member) in enumerate(sorted(content.items())):
        if isinstance(member, Archive):
            archive = build / f"archive-{number}"
            write_zip(archive, member.members)
            member = archive
        found[path] = member
    return found


class _build_folder:  # noqa: N801  (used as a with-statement, like a function)
    """A folder beside the target, so that what is built can be linked and not copied."""

    def __init__(self, target: Path) -> None:
        self._parent = target.absolute().parent

    def __enter__(self) -> Path:
        try:
            self._parent.mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(prefix=".servewright-build-", dir=self._parent))
        except OSError as error:
            raise InputError(
                f"cannot write below {self._parent}: {error.strerror or error}; choose another folder"
            ) from error
        return self._folder

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

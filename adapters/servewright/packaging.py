"""Packaging: rendered texts and model files become an artifact on disk, whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from servewright import __version__
from servewright.archive import write_zip
from servewright.backend import Archive, Artifact, Backend, Build, Content
from servewright.errors import InputError
from servewright.fleet import Fleet
from servewright.manifest import FILE as MANIFEST
from servewright.manifest import load_manifest, manifest_of
from servewright.rendering import render, site_of
from servewright.staging import scratch_directory
from servewright.tree import assemble_tree


def package(fleet: Fleet, backend: Backend, target: Path, *, packed: bool = True, trust: bool = False) -> Artifact:
    """Write the artifact of ``fleet`` to the folder ``target``, replacing an older one in one step.

    ``packed``: models as archives where the server has any, ready to be shipped; else as folders of hard links, in
    constant time. ``trust`` lets code run that a model's file holds, where one has to be exported. The same fleet gives
    the same bytes. Source files are only read.
    """
    _check_replaceable(target)
    texts = render(fleet, backend, replace(site_of(fleet, backend), packed=packed))
    # Beside the target, so that what is made on the way can be linked and not copied.
    with scratch_directory(target) as build:
        content = backend.members(fleet, texts, Build(folder=build, packed=packed, trust=trust))
        members = _written(content, build) | {f"config/{path}": text.encode() for path, text in texts.items()}
        manifest = manifest_of(members, backend=backend.name, spec_digest=fleet.digest, tool_version=__version__)
        assemble_tree(target, members | {MANIFEST: manifest.to_json().encode()})
    return Artifact(root=target, digest=manifest.digest, packed=packed)


def _check_replaceable(target: Path) -> None:
    """Refuse to replace what is not an artifact of ours, or holds files that were put into it since."""
    try:
        if not target.exists() or (target.is_dir() and not any(target.iterdir())):
            return
        if not (target / MANIFEST).is_file():
            raise InputError(f"{target} is there and is no artifact; choose another folder, or remove it")
        ours = {MANIFEST, *load_manifest(target).files}
        files = (path.relative_to(target).as_posix() for path in target.rglob("*") if not path.is_dir())
        strange = next((file for file in sorted(files) if file not in ours), None)
    except OSError as error:
        raise InputError(f"{target} cannot be read: {error.strerror or error}; choose another folder") from error
    if strange is not None:
        raise InputError(
            f"{target} holds {strange}, which is not of the artifact; move it away, or choose another folder"
        )


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

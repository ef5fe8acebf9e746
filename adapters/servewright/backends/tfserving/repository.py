"""What lies where in a model repository of TensorFlow Serving: ``models/<name>/<version>/``."""

from __future__ import annotations

from pathlib import Path

from servewright.errors import InputError, ModelFileError

WARMUP = "assets.extra/tf_serving_warmup_requests"
BATCHING = "batching_params.pbtxt"
_MODEL_FILES = ("saved_model.pb", "saved_model.pbtxt")


def version_members(
    name: str, version: int, saved_model: Path, *, warmup: bytes | None = None, batching: str | None = None
) -> dict[str, Path | bytes]:
    """Return the members of one version of a model: the SavedModel's own files, and what is added to them.

    ``warmup`` holds the recorded requests to warm the model up with, ``batching`` the parameters that the server reads
    per model. Raises ModelFileError where there is no SavedModel, InputError where it has such a file already. Only
    names and links are read here; the source is never written to.
    """
    root = f"models/{name}/{version}"
    members: dict[str, Path | bytes] = {f"{root}/{path}": file for path, file in _files_of(saved_model).items()}
    added = {WARMUP: warmup, BATCHING: batching.encode() if batching is not None else None}
    for path, content in added.items():
        if content is None:
            continue
        if f"{root}/{path}" in members:
            raise InputError(f"{saved_model} has its own {path}; remove it there, or do without the spec's")
        members[f"{root}/{path}"] = content
    return members


def _files_of(saved_model: Path) -> dict[str, Path]:
    if not saved_model.is_dir():
        what = "is a file" if saved_model.exists() else "does not exist"
        raise ModelFileError(f"{saved_model} {what}; a SavedModel is a folder that holds {_MODEL_FILES[0]}")
    if not any((saved_model / file).is_file() for file in _MODEL_FILES):
        raise ModelFileError(f"{saved_model} holds no {_MODEL_FILES[0]}; name the folder that does")
    try:
        return {file.relative_to(saved_model).as_posix(): file for file in _below(saved_model, frozenset())}
    except OSError as error:
        raise ModelFileError(f"{saved_model} cannot be read: {error}") from error


def _below(directory: Path, above: frozenset[Path]) -> list[Path]:
    """Return every file below ``directory``; links are followed, but not in rings."""
    if (place := directory.resolve()) in above:
        raise ModelFileError(f"{directory} links to a directory that it lies in; remove the link")
    found: list[Path] = []
    for entry in sorted(directory.iterdir()):
        found += _below(entry, above | {place}) if entry.is_dir() else [entry]
    return found

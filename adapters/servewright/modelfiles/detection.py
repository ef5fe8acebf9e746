"""Which format a model file has, told from its content: names lie, and downloads fail in known ways."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

from servewright.errors import ModelFileError
from servewright.modelfiles import protowire, zips

SAVED_MODEL_FILES = ("saved_model.pb", "saved_model.pbtxt", "saved_model.cpb")
HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
# The first pickle of the format before torch 1.6: the long number 0x1950a86a20f9469cfc6c.
_TORCH_LEGACY_NUMBER = b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
_ACCEPTED = (
    "give a SavedModel folder, a .keras or Keras .h5 file, a TorchScript or state_dict file, "
    "a torch.export .pt2 file, or an ONNX file"
)
# (where, bytes, what it is, what to do)
_KNOWN_STRANGERS: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"version https://git-lfs", "a Git LFS pointer, not the model", "fetch the model with: git lfs pull"),
    (0, b"\x1f\x8b", "a gzip archive", "unpack it first: tar -xzf"),
    (0, b"BZh", "a bzip2 archive", "unpack it first: tar -xjf"),
    (0, b"\xfd7zXZ\x00", "an xz archive", "unpack it first: tar -xJf"),
    (257, b"ustar", "a tar archive", "unpack it first: tar -xf"),
    (4, b"TFL3", "a TensorFlow Lite model", "export the original model as a SavedModel"),
    (0, b"GGUF", "a GGUF model", _ACCEPTED),
    (0, b"\x93NUMPY", "a numpy array", _ACCEPTED),
)


def detect(path: Path) -> str:
    """Return the format of the model at ``path``: one of `servewright.spec.FORMATS`.

    Raises `ModelFileError`, saying what was found and what to do, for whatever is not a model.
    """
    if "\0" in str(path):
        raise ModelFileError(f"{str(path)!r} is not a path; name a file")
    try:
        if path.is_dir():
            return _folder(path)
        if not path.exists():
            raise ModelFileError(f"{path} does not exist; correct the path")
        if not path.is_file():
            raise ModelFileError(f"{path} is neither a file nor a folder; {_ACCEPTED}")
        with path.open("rb") as file:
            head = file.read(4096)
            if not head:
                raise ModelFileError(f"{path} is empty: zero bytes; write or download the model again")
            return _file(path, head)
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}; check its permissions") from error


def is_hdf5(path: Path) -> bool:
    """Tell whether the file at ``path`` is an HDF5 file."""
    with path.open("rb") as file:
        return file.read(len(HDF5_MAGIC)) == HDF5_MAGIC


def _folder(path: Path) -> str:
    if _is_saved_model(path):
        return "saved_model"
    versions = sorted(
        (item for item in path.iterdir() if item.name.isdigit() and _is_saved_model(item)),
        key=lambda item: int(item.name),
    )
    if versions:
        raise ModelFileError(f"{path} holds versions of a SavedModel; name one of them: {versions[-1]}")
    if (path / "config.json").is_file() and (path / "metadata.json").is_file():
        raise ModelFileError(f"{path} is an unpacked .keras file; give the .keras file itself")
    raise ModelFileError(f"{path} is a folder without saved_model.pb; {_ACCEPTED}")


def _is_saved_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in SAVED_MODEL_FILES)


def _file(path: Path, head: bytes) -> str:
    for offset, magic, what, remedy in _KNOWN_STRANGERS:
        if head[offset : offset + len(magic)] == magic:
            raise ModelFileError(f"{path} is {what}; {remedy}")
    if head.startswith(HDF5_MAGIC):
        return "keras"
    if head.startswith(b"PK"):
        return _zip(path)
    if head[:1] == b"\x80" and len(head) > 1 and head[1] <= 5:
        return _pickle(path, head)
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:64].lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ModelFileError(f"{path} is a web page, not a model: the download failed; download it again")
    if _is_safetensors(head):
        raise ModelFileError(
            f"{path} is a safetensors file; write it as a state_dict: "
            "torch.save(safetensors.torch.load_file(...), 'model.pt')"
        )
    return _protobuf(path, head)


def _zip(path: Path) -> str:
    try:
        with zips.opened(path) as archive:
            names, root = set(archive.namelist()), zips.root(archive)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError) as error:
        raise ModelFileError(
            f"{path} is a broken zip archive: {error}; it was cut off or changed: write or download it again"
        ) from error
    inner = {name.removeprefix(root) for name in names}
    if "config.json" in inner and ("metadata.json" in inner or "model.weights.h5" in inner):
        return "keras"
    if "constants.pkl" in inner and any(name.startswith("code/") for name in inner):
        return "torchscript"
    if any(name.startswith("data/aotinductor/") for name in inner):
        raise ModelFileError(
            f"{path} is compiled for one machine (AOTInductor); give what torch.export.save wrote before that"
        )
    if any(name.startswith("models/") and name.endswith(".json") for name in inner):
        return "exported_program"
    if "serialized_exported_program.json" in names:
        raise ModelFileError(f"{path} was exported by torch before 2.8; write it again with torch.export.save")
    if "data.pkl" in inner:
        return "state_dict"
    if "MAR-INF/MANIFEST.json" in names:
        raise ModelFileError(f"{path} is a model archive that is already packed; give the model file inside it")
    if any(name.endswith(".npy") for name in names):
        raise ModelFileError(f"{path} is a numpy .npz file; {_ACCEPTED}")
    if any(name.endswith(SAVED_MODEL_FILES) for name in names):
        raise ModelFileError(f"{path} is a zip of a SavedModel; unpack it and name the folder")
    raise ModelFileError(f"{path} is a zip archive without a model in it; {_ACCEPTED}")


def _pickle(path: Path, head: bytes) -> str:
    if _TORCH_LEGACY_NUMBER in head[:16]:
        return "state_dict"
    raise ModelFileError(
        f"{path} is a Python pickle that torch.save did not write; reading it would run code, and no server takes it: "
        "save the network's state_dict, or export it to ONNX"
    )


def _is_safetensors(head: bytes) -> bool:
    return len(head) > 9 and head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= 100_000_000


def _protobuf(path: Path, head: bytes) -> str:
    try:
        kinds = {number: isinstance(value, int) for number, value in protowire.fields(protowire.mapped(path))}
    except protowire.WireError as error:
        if head[:1] == b"\x08":
            raise ModelFileError(
                f"{path} looks like ONNX, but breaks off: {error}; it was cut off: write or download it again"
            ) from error
        raise ModelFileError(f"{path} is {_described(head)}; {_ACCEPTED}") from error
    if kinds.get(1) is True and kinds.get(7) is False:
        return "onnx"
    if path.name in SAVED_MODEL_FILES:
        raise ModelFileError(f"{path} is a part of a SavedModel; name its folder: {path.parent}")
    if kinds.get(1) is False and path.suffix == ".pb":
        raise ModelFileError(f"{path} is a TensorFlow graph without signatures; export it as a SavedModel")
    raise ModelFileError(f"{path} is {_described(head)}; {_ACCEPTED}")


def _described(head: bytes) -> str:
    try:
        json.load(io.BytesIO(head))
    except ValueError:
        pass
    else:
        return "a JSON file, not a model"
    try:
        text = head.decode()
    except UnicodeDecodeError:
        return f"of an unknown format (it starts with {head[:8].hex(' ')})"
    first = text.strip().splitlines()[0][:60] if text.strip() else ""
    return f"a text file, not a model (it starts with {first!r})"

"""Which versions of a model lie on disk, and which of them its policy asks for."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from servewright.backends.tfserving.embedded.log import log
from servewright.backends.tfserving.embedded.status import Code, StatusError, invalid_argument

_SOURCE = "file_system_storage_path_source.cc"
_NUMBER = re.compile(r"[ \t\n\r\v\f]*(-?[0-9]+)[ \t\n\r\v\f]*", re.ASCII)
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9.]*)://")
_INT64 = range(-(1 << 63), 1 << 63)

_ERRNO_CODES = {
    errno.ENOENT: Code.NOT_FOUND,
    errno.EACCES: Code.PERMISSION_DENIED,
    errno.EPERM: Code.PERMISSION_DENIED,
    errno.EINVAL: Code.INVALID_ARGUMENT,
    errno.ENAMETOOLONG: Code.INVALID_ARGUMENT,
    errno.ENOTDIR: Code.FAILED_PRECONDITION,
    errno.EISDIR: Code.FAILED_PRECONDITION,
    errno.ENODEV: Code.FAILED_PRECONDITION,
    errno.ENOSPC: Code.RESOURCE_EXHAUSTED,
    errno.EMFILE: Code.RESOURCE_EXHAUSTED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """A model on disk: the folder above its versions, and which of them are wanted."""

    name: str
    base_path: str
    policy: Any  # FileSystemStoragePathSourceConfig.ServableVersionPolicy


def os_status(error: OSError, path: str) -> StatusError:
    """Return a failed system call in TensorFlow's words: ``PATH; No such file or directory``."""
    number = error.errno or 0
    return StatusError(_ERRNO_CODES.get(number, Code.UNKNOWN), f"{path}; {os.strerror(number)}")


def version_number(folder: str) -> int | None:
    """Return the version that a folder's name states, or ``None``; leading zeros and blanks are allowed, ``+`` not."""
    found = _NUMBER.fullmatch(folder)
    if not found or int(found[1]) not in _INT64:
        return None
    return int(found[1])


def wanted_versions(model: Watched) -> dict[int, str]:
    """Return the folders of the versions that ``model`` should serve; raise `StatusError` where it cannot be looked up.

    Having none is no error; the log says so.
    """
    _check_base_path(model)
    policy = model.policy.WhichOneof("policy_choice")
    if policy == "specific":
        versions = list(model.policy.specific.versions)
        if not versions:
            log("W", _SOURCE, f"No specific versions requested for servable {model.name}.")
            return {}
        folders = {version: os.path.join(model.base_path, str(version)) for version in versions}  # noqa: PTH118
        if all(os.path.exists(folder) for folder in folders.values()):  # noqa: PTH110
            return folders
    found = _versions_on_disk(model)
    if policy == "all":
        chosen = dict(found)
    elif policy == "specific":
        chosen = {version: found[version] for version in model.policy.specific.versions if version in found}
        for version in set(model.policy.specific.versions) - set(chosen):
            log(
                "W",
                _SOURCE,
                f"Version {version} of servable {model.name}, which was requested to be served as a 'specific' "
                "version in the servable's version policy, was not found in the file system",
            )
    else:
        newest = sorted(found, reverse=True)[: max(model.policy.latest.num_versions, 1)]
        chosen = {version: found[version] for version in newest}
    if not chosen:
        log(
            "W",
            _SOURCE,
            f"No versions of servable {model.name} found under base path {model.base_path}. Did you forget to name "
            "your leaf directory as a number (eg. '/1/')?",
        )
    return chosen


def _check_base_path(model: Watched) -> None:
    scheme = _SCHEME.match(model.base_path)
    if scheme and scheme[1] != "file":
        reason = f"UNIMPLEMENTED: File system scheme '{scheme[1]}' not implemented (file: '{model.base_path}')"
    elif not os.path.exists(model.base_path):  # noqa: PTH110
        reason = f"NOT_FOUND: {model.base_path} not found"
    else:
        return
    raise invalid_argument(f"Could not find base path {model.base_path} for servable {model.name} with error {reason}")


def _versions_on_disk(model: Watched) -> Mapping[int, str]:
    try:
        children = sorted(os.listdir(model.base_path))  # noqa: PTH208
    except OSError as error:
        raise os_status(error, model.base_path) from error
    found: dict[int, str] = {}
    names: dict[int, str] = {}
    for child in children:
        version = version_number(child)
        if version is None:
            continue
        if version in names:
            log(
                "W",
                _SOURCE,
                f"Duplicate version directories detected. Version {version} will be loaded from {child}, "
                f"{names[version]} will be ignored.",
            )
        names[version] = child
        found[version] = os.path.join(model.base_path, child)  # noqa: PTH118
    return found

"""The text files that the server is given: read, and refused in the real server's words."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from servewright.backends.tfserving import protos
from servewright.backends.tfserving.embedded.disk import os_status
from servewright.backends.tfserving.embedded.status import (
    Code,
    StatusError,
    failed_precondition,
    invalid_argument,
)
from servewright.errors import SpecError

_PACKAGES = {"ConfigProto": "tensorflow"}
_PLATFORM = "tensorflow"
_PATH = re.compile(r"/|[a-zA-Z][a-zA-Z0-9.]*://")


def read_text_message(message: str, path: str) -> Any:
    """Return the message ``message`` from the text file ``path``; raise `StatusError`."""
    try:
        data = Path(path).read_bytes()
    except IsADirectoryError as error:
        raise failed_precondition(f"{path}; Is a directory") from error
    except OSError as error:
        raise os_status(error, path) from error
    if not data:  # the real server maps the file into memory, and nothing cannot be mapped
        raise invalid_argument(f"{path}; Invalid argument")
    try:
        return protos.SCHEMA.parse_text(message, data.decode())
    except SpecError as error:
        problem = error.problems[0]
        full = f"{_PACKAGES.get(message, 'tensorflow.serving')}.{message}"
        sys.stderr.write(f"Error parsing text-format {full}: {problem.line}:{problem.column}: {problem.reason}\n")
        raise invalid_argument(f"Invalid protobuf file: '{path}'") from error
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        sys.stderr.write(f"Error parsing text-format of {path}: {error}\n")
        raise invalid_argument(f"Invalid protobuf file: '{path}'") from error


def single_model(name: str, base_path: str) -> Any:
    """Return the config that ``--model_name`` and ``--model_base_path`` stand for."""
    entry = {"name": name, "base_path": base_path, "model_platform": _PLATFORM}
    return protos.ModelServerConfig(model_config_list={"config": [entry]})


def check_model_list(config: Any) -> None:
    """Refuse two models of one name and paths that are not absolute."""
    seen = set()
    for model in config.model_config_list.config:
        if model.name in seen:
            raise invalid_argument(f"Illegal to list model {model.name} multiple times in config list")
        seen.add(model.name)
    for model in config.model_config_list.config:
        if not _PATH.match(model.base_path):
            raise invalid_argument(
                f"Expected model {model.name} to have an absolute path or URI; got base_path()={model.base_path}"
            )


def platform_of(model: Any) -> str:
    """Return the platform that a model names; raise `StatusError` where it names none or two."""
    kind = int(model.model_type)
    if kind and model.model_platform:
        raise invalid_argument(
            "Illegal setting both ModelServerConfig::model_type (deprecated) and ModelServerConfig::model_platform, "
            f"model name is {model.name}"
        )
    if not kind and not model.model_platform:
        raise invalid_argument(
            "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
            f"ModelServerConfig::model_platform, model name is {model.name}"
        )
    if kind == 1:
        return _PLATFORM
    if kind:
        raise invalid_argument(f"ModelServerConfig::model_type choice {kind} not supported.")
    return str(model.model_platform)


def check_platforms(config: Any, supported: frozenset[str]) -> None:
    """Refuse models of a platform that the server does not have."""
    for model in config.model_config_list.config:
        platform = platform_of(model)
        if platform not in supported:
            raise invalid_argument(f"Model {model.name} requests unsupported platform {platform}")


def check_transition(old: Any, new: Any) -> None:
    """Refuse to go from one kind of config to another, or to change a model's platform."""
    before, after = old.WhichOneof("config"), new.WhichOneof("config")
    if before is None or old == new:
        return
    if not before == after == "model_config_list":
        raise failed_precondition(
            "Cannot transition to requested config. It is only legal to transition from one ModelConfigList to another."
        )
    platforms = {model.name: platform_of(model) for model in old.model_config_list.config}
    for model in new.model_config_list.config:
        had = platforms.get(model.name)
        if had is not None and had != platform_of(model):
            raise invalid_argument(
                f"Illegal to change a model's platform. For model {model.name} platform was {had} and new platform "
                f"requested is {platform_of(model)}"
            )


def custom_config_error() -> StatusError:
    """Return what a custom model config leads to; the real server aborts."""
    return StatusError(Code.UNIMPLEMENTED, "ModelServer does not yet support custom model config.")

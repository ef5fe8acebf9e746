"""The state of a model's versions, as the server tells it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from servewright.backends.tfserving import protos
from servewright.backends.tfserving.fields import BYTES, VARINT, read_varint, scan


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """One version of a model; ``state`` and ``error_code`` are names such as AVAILABLE and OK."""

    version: int
    state: str
    error_code: str = "OK"
    error_message: str = ""


def from_json(answer: Any) -> tuple[ModelVersion, ...]:
    """Return the versions of a status answer over REST; raise `KeyError`, `TypeError` or `ValueError` if it is none."""
    return tuple(
        ModelVersion(
            version=int(entry["version"]),
            state=str(entry["state"]),
            error_code=str(entry["status"]["error_code"]),
            error_message=str(entry["status"]["error_message"]),
        )
        for entry in answer.get("model_version_status", ())
    )


def from_bytes(data: bytes) -> tuple[ModelVersion, ...]:
    """Return the versions of a GetModelStatusResponse; raise `BrokenMessageError`.

    Read field by field: after a bad warm-up record the server's message quotes it, and text that is not UTF-8 makes
    protobuf's own parser refuse the whole answer.
    """
    view = memoryview(data)
    return tuple(_version(view[start:end]) for number, kind, start, end in scan(view) if (number, kind) == (1, BYTES))


def _version(data: memoryview) -> ModelVersion:
    version = state = code = 0
    message = ""
    for number, kind, start, end in scan(data):
        if (number, kind) == (1, VARINT):
            version, _ = read_varint(data, start)
        elif (number, kind) == (2, VARINT):
            state, _ = read_varint(data, start)
        elif (number, kind) == (3, BYTES):
            code, message = _status(data[start:end])
    return ModelVersion(
        version=version - (1 << 64) if version >> 63 else version,
        state=_enum_name("ModelVersionStatus.State", state),
        error_code=_enum_name("Code", code),
        error_message=message,
    )


def _status(data: memoryview) -> tuple[int, str]:
    code, message = 0, ""
    for number, kind, start, end in scan(data):
        if (number, kind) == (1, VARINT):
            code, _ = read_varint(data, start)
        elif (number, kind) == (2, BYTES):
            message = str(data[start:end], "utf-8", "replace")
    return code, message


def _enum_name(enum: str, number: int) -> str:
    try:
        return str(protos.SCHEMA[enum].Name(number))
    except ValueError:  # of a newer server
        return str(number)

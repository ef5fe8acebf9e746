"""The program that runs in the child: ``python -m servewright.modelfiles.worker FORMAT``, messages on its pipes."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

from servewright import processors
from servewright.errors import InputError, MissingExtraError, ModelFileError, ServewrightError, UntrustedPickleError
from servewright.modelfiles import frames
from servewright.modelfiles.frames import Array
from servewright.modelfiles.inspection import Source
from servewright.spec import FORMATS, Signature

Arrays = dict[str, Array]
Predict = Callable[[Arrays], Arrays]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that can be run, and its own names of its inputs in the order in which it takes them, if it has any."""

    predict: Predict
    order: tuple[str, ...] = ()


# Enough to be quick, and few enough that the server under test keeps its cores.
THREADS = max(1, min(4, processors.usable() // 2))


def main(arguments: list[str] | None = None) -> NoReturn:
    """Answer messages until the input ends."""
    name = (sys.argv[1:] if arguments is None else arguments)[0]
    if name not in FORMATS:
        raise InputError(f"no format {name!r}")
    _settle()
    # What frameworks print must not end up between our messages.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    requests = os.fdopen(os.dup(0), "rb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    _serve(importlib.import_module(f"servewright.modelfiles.{name}"), requests, answers)
    os._exit(0)  # all is said; a framework takes a second to take itself apart


def _settle() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the reference is float32 on the CPU
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")


def _serve(module: Any, requests: IO[bytes], answers: IO[bytes]) -> None:
    loaded: Loaded | None = None
    subject = "the model"
    while True:
        try:
            values, arrays = frames.read(requests)
        except EOFError:
            return
        operation = values.pop("operation")
        subject = str(values.get("source", {}).get("path") or values.get("path") or subject)
        try:
            result: dict[str, Any] = {}
            found: Arrays = {}
            if operation == "load":
                loaded = module.load(_source(values["source"]), _signature(values.get("signature")))
                assert loaded is not None
                result = {"order": loaded.order}
            elif operation == "predict":
                assert loaded is not None
                found = loaded.predict(arrays)
            elif operation in module.OPERATIONS:
                result, found = module.OPERATIONS[operation](values)
            else:
                raise InputError(f"no operation {operation!r}")
        except ServewrightError as error:
            frames.write(answers, {"error": _described(error)})
        except Exception as error:  # noqa: BLE001  (a model may raise anything; it becomes an error of ours)
            frames.write(answers, {"error": {"kind": "model", "message": f"{subject} {_short(error, operation)}"}})
        else:
            frames.write(answers, result, found)


def _source(values: Mapping[str, Any]) -> Source:
    example = values.get("example")
    return Source(
        path=Path(values["path"]),
        format=values["format"],
        example=None if example is None else Path(example),
        code=values.get("code"),
        trust=bool(values.get("trust")),
    )


def _signature(values: Mapping[str, Any] | None) -> Signature | None:
    return None if values is None else Signature.model_validate(values)


def _described(error: ServewrightError) -> dict[str, str]:
    if isinstance(error, MissingExtraError):
        purpose = str(error).partition(" needs ")[0]
        return {"kind": "missing", "package": error.package, "extra": error.extra, "purpose": purpose}
    kinds = ((UntrustedPickleError, "untrusted"), (ModelFileError, "model"), (InputError, "input"))
    return {"kind": next((kind for cls, kind in kinds if isinstance(error, cls)), "model"), "message": str(error)}


def _short(error: Exception, operation: str) -> str:
    """Return the line that says something, for frameworks put a page around it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = next((line for line in lines if not line.endswith(":")), lines[0] if lines else "")
    # An interpreter inside the framework ends its trace with the error proper, as Python does.
    text = lines[-1] if lines and re.match(r"\w+(Error|Exception): ", lines[-1]) else f"{type(error).__name__}: {first}"
    did = {"load": "cannot be loaded", "predict": "refused these inputs"}.get(operation, "cannot be read")
    return f"{did}: {text[:500]}"


if __name__ == "__main__":
    main()

"""TensorFlow Serving over HTTP and JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from servewright.backends.tfserving import json_tensors, metadata, versions
from servewright.backends.tfserving.dtypes import TensorError, dtype_name
from servewright.backends.tfserving.json_tensors import Array
from servewright.backends.tfserving.targets import Target
from servewright.errors import ProbeError, ServerAnswerError
from servewright.http import HttpConnection, Response


class Rest:
    """The REST API of one server; safe to share between threads.

    JSON does not tell dtypes, so the first answer of a signature is read with what the server's metadata says, and
    that is kept; `forget` drops it.
    """

    def __init__(self, url: str) -> None:
        self._http = HttpConnection(url)
        self._outputs: dict[Target, dict[str, Any]] = {}

    def predict(self, target: Target, inputs: Mapping[str, ArrayLike], *, timeout_s: float) -> dict[str, Array]:
        """Return the outputs by name, with the dtypes that gRPC would give them."""
        body = json_tensors.encode_predict(inputs, target.signature)
        answer = self._send("POST", f"{target.path()}:predict", body, timeout_s=timeout_s)
        try:
            if target in self._outputs:
                try:
                    return self._read(answer, target, timeout_s)
                except TensorError:
                    self.forget()  # another version may be served by now
            return self._read(answer, target, timeout_s)
        except TensorError as error:
            raise ProbeError(f"{self._http.url}{target.path()}: {error}") from error

    def definitions(self, target: Target, *, timeout_s: float) -> tuple[int, Mapping[str, Any]]:
        """Return the version that ``target`` means, and its SignatureDef messages."""
        return metadata.from_json(self._json("GET", f"{target.path()}/metadata", timeout_s=timeout_s))

    def status(self, target: Target, *, timeout_s: float) -> tuple[versions.ModelVersion, ...]:
        """Return every version of the model that the server knows, as it tells them."""
        answer = self._json("GET", target.path(), timeout_s=timeout_s)
        try:
            return versions.from_json(answer)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ProbeError(f"{self._http.url}{target.path()}: no status: {str(answer)[:200]}") from error

    def text(self, path: str, *, timeout_s: float) -> str:
        """Return the body at ``path``, such as that of the metrics."""
        return self._send("GET", path, timeout_s=timeout_s).text

    def product(self, *, timeout_s: float) -> str:
        """Return the ``Server`` header of an answer; the real server sends none."""
        return self._http.get("/v1/models", timeout_s=timeout_s).headers.get("server", "")

    def forget(self) -> None:
        """Drop what is known about signatures, so that it is asked again."""
        self._outputs.clear()

    def close(self) -> None:
        """Close every connection."""
        self._http.close()

    def _read(self, answer: Response, target: Target, timeout_s: float) -> dict[str, Array]:
        if (outputs := self._outputs.get(target)) is None:
            _, definitions = self.definitions(target, timeout_s=timeout_s)
            name = target.signature or metadata.DEFAULT_SIGNATURE
            outputs = self._outputs[target] = dict(definitions[name].outputs) if name in definitions else {}
        dtypes = {name: dtype_name(info.dtype) for name, info in outputs.items()}
        arrays = json_tensors.decode_predict(self._parsed(answer, target.path()), dtypes)
        return {name: _with_empty_axes(array, metadata.shape(outputs[name])) for name, array in arrays.items()}

    def _json(self, method: str, path: str, *, timeout_s: float) -> Any:
        return self._parsed(self._send(method, path, timeout_s=timeout_s), path)

    def _parsed(self, answer: Response, path: str) -> Any:
        try:
            return json_tensors.parse(answer.body)
        except (ValueError, RecursionError) as error:
            raise ProbeError(f"{self._http.url}{path}: expected JSON, got {answer.body[:200]!r}") from error

    def _send(self, method: str, path: str, body: bytes | None = None, *, timeout_s: float) -> Response:
        headers = {"Content-Type": "application/json"} if body is not None else None
        answer = self._http.request(method, path, body=body, headers=headers, timeout_s=timeout_s)
        if answer.status != 200:
            raise ServerAnswerError(answer.status, _error_text(answer), where=f"{self._http.url}{path}")
        return answer


def _error_text(answer: Response) -> str:
    try:
        return str(json_tensors.parse(answer.body)["error"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return answer.text.strip()[:1024] or "(no text)"


def _with_empty_axes(array: Array, shape: tuple[int | None, ...] | None) -> Array:
    """Return an array without elements with all axes of ``shape``; JSON's ``[]`` tells only the first."""
    if array.size or shape is None or array.ndim >= len(shape):
        return array
    rest = tuple(size or 0 for size in shape[array.ndim :])
    return np.empty(array.shape + rest, array.dtype)

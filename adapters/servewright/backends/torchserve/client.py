"""A light client of one TorchServe: predictions over HTTP and gRPC, and its management API."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import numpy as np
from numpy.typing import NDArray

from servewright.backends.torchserve import payload, protos
from servewright.backends.torchserve.descriptions import ModelDescription, read_descriptions
from servewright.backends.torchserve.payload import Form
from servewright.backends.torchserve.tokens import KeyFile, Kind
from servewright.channels import Channel
from servewright.errors import InputError, ProbeError, ServerAnswerError
from servewright.http import HttpConnection, Response
from servewright.processes import wait_until
from servewright.server import Readable

Tensors = Mapping[str, NDArray[np.generic]]
T = TypeVar("T")

_ALL_VERSIONS = "all"
_MODELS_PER_PAGE = 100
# Registering and scaling wait for workers, which import torch and load the model.
_MANAGEMENT_TIMEOUT_S = 120.0
_EVERY_S = 0.1


class Client:
    """Talks to one server; safe to share between threads.

    ``endpoints`` are ``host:port`` by name: http, management, metrics, grpc, of which only those that are used need
    be there. With a ``key_file``, every request carries a valid token. ``guessed``: the server may want no tokens and
    have no such file, and then none is sent unless it asks.
    """

    def __init__(
        self, endpoints: Mapping[str, str], *, key_file: Readable | None = None, guessed: bool = False
    ) -> None:
        self._endpoints = dict(endpoints)
        self._lock = threading.Lock()
        self._connections: dict[str, HttpConnection] = {}
        self._channels: dict[str, Channel] = {}
        self._keys = KeyFile(key_file, self._renew, guessed=guessed) if key_file else None

    def predict(
        self,
        model: str,
        inputs: Tensors,
        *,
        version: str | None = None,
        transport: str = "http",
        form: Form = "raw",
        dtypes: Mapping[str, str] | None = None,
        timeout_s: float = 30.0,
    ) -> dict[str, NDArray[np.generic]]:
        """Return the outputs by name, of a model that answers as servewright's handlers do.

        ``dtypes`` says what the numbers of a JSON answer are; the other forms tell. Raises `ServerAnswerError` where
        the server or the handler refuses.
        """
        if transport == "grpc":
            fields = payload.encode_grpc(inputs, form)
            return payload.decode_grpc(self.send_fields(model, fields, version=version, timeout_s=timeout_s), dtypes)
        if transport != "http":
            raise InputError(f"no transport {transport!r}; choose from http, grpc")
        body, headers = payload.encode_http(inputs, form)
        answer = self.send(model, body, headers=headers, version=version, timeout_s=timeout_s)
        return payload.decode_http(answer.status, answer.headers, answer.body, dtypes)

    def send(
        self,
        model: str,
        body: bytes,
        *,
        headers: Mapping[str, str],
        version: str | None = None,
        timeout_s: float = 30.0,
    ) -> Response:
        """Send any body over HTTP and return the answer, whatever its status.

        ``headers`` should name a Content-Type: without one the server reads the body as form fields.
        """
        return self._request("http", "POST", _path("predictions", model, version), body, headers, timeout_s)

    def send_fields(
        self, model: str, fields: Mapping[str, bytes], *, version: str | None = None, timeout_s: float = 30.0
    ) -> bytes:
        """Send named fields over gRPC and return the answer's bytes."""
        request = protos.PredictionsRequest(model_name=model, model_version=version or "", input=fields)
        call = self._channel("grpc").unary(
            protos.PREDICTIONS, protos.PredictionsRequest.SerializeToString, protos.PredictionResponse.FromString
        )

        def send(authorization: Mapping[str, str]) -> bytes:
            answer: bytes = call(request, timeout_s=timeout_s, metadata=authorization).prediction
            return answer

        return self._authorized("inference", send)

    def ping(self, *, timeout_s: float = 5.0) -> str:
        """Return the server's word: "Healthy" is no promise that a model is loaded; see `describe`."""
        answer = self._request("http", "GET", "/ping", timeout_s=timeout_s)
        content = answer.json()
        if not isinstance(content, dict) or "status" not in content:
            raise _refusal(answer, self._endpoint("http") + "/ping")
        return str(content["status"])

    def describe(
        self, model: str, version: str | None = _ALL_VERSIONS, *, timeout_s: float = 30.0
    ) -> tuple[ModelDescription, ...]:
        """Return the versions of a model, or one ``version``, or the default one for None."""
        return read_descriptions(self._manage("GET", _path("models", model, version), timeout_s=timeout_s))

    def models(self, *, timeout_s: float = 30.0) -> dict[str, str]:
        """Return every model's name and the archive that it was loaded from."""
        found: dict[str, str] = {}
        page: Mapping[str, object] = {}
        while True:
            answer = self._manage("GET", "/models", {"limit": _MODELS_PER_PAGE, **page}, timeout_s=timeout_s)
            found |= {each["modelName"]: each["modelUrl"] for each in answer["models"]}
            if "nextPageToken" not in answer:
                return found
            page = {"next_page_token": answer["nextPageToken"]}

    def register(
        self,
        url: str,
        *,
        name: str | None = None,
        workers: int = 1,
        batch_size: int | None = None,
        max_batch_delay_ms: int | None = None,
        response_timeout_s: int | None = None,
        startup_timeout_s: int | None = None,
        timeout_s: float = _MANAGEMENT_TIMEOUT_S,
    ) -> None:
        """Load an archive of the model store, or of an allowed URL, and wait for its workers.

        The server must have been started with its model API enabled. What the archive's own model-config.yaml says
        of workers and timeouts wins. The last worker may be told as UNLOADING for a moment more: see `await_workers`.
        """
        # As a query: from a JSON body, a missing delay becomes -10000 ms.
        query = {
            "url": url,
            "model_name": name,
            "initial_workers": workers,
            "synchronous": "true",
            "batch_size": batch_size,
            "max_batch_delay": max_batch_delay_ms,
            "response_timeout": response_timeout_s,
            "startup_timeout": startup_timeout_s,
        }
        self._manage("POST", "/models", query, timeout_s=timeout_s)

    def unregister(self, model: str, version: str | None = None, *, timeout_s: float = _MANAGEMENT_TIMEOUT_S) -> None:
        """Unload a version, or the default one; the server's model API must be enabled."""
        self._manage("DELETE", _path("models", model, version), timeout_s=timeout_s)

    def scale(
        self,
        model: str,
        *,
        min_workers: int,
        max_workers: int | None = None,
        version: str | None = None,
        timeout_s: float = _MANAGEMENT_TIMEOUT_S,
    ) -> None:
        """Change the number of a model's workers, and wait until it is so; ``timeout_s`` bounds each of the two."""
        query = {"min_worker": min_workers, "max_worker": max_workers or min_workers, "synchronous": "true"}
        self._manage("PUT", _path("models", model, version), query, timeout_s=timeout_s)
        # The server counts a worker as soon as it has loaded, and tells of it as UNLOADING for a moment more.
        self.await_workers(model, min_workers, version=version, within_s=timeout_s)

    def await_workers(self, model: str, count: int, *, version: str | None = None, within_s: float) -> None:
        """Wait until ``count`` workers of a version, or of the default one, are READY; `ProbeTimeoutError` if not."""

        def ready() -> bool:
            found = self.describe(model, version)[0].ready_workers
            if found < count:
                raise ProbeError(f"{found} of {count} are READY")
            return True

        of = model if version is None else f"{model} {version}"
        wait_until(ready, within_s=within_s, every_s=_EVERY_S, what=f"the workers of {of} are READY")

    def set_default(self, model: str, version: str, *, timeout_s: float = 30.0) -> None:
        """Make ``version`` the one that answers requests which name none."""
        self._manage("PUT", _path("models", model, version) + "/set-default", timeout_s=timeout_s)

    def takes_models(self, *, timeout_s: float = 30.0) -> bool:
        """Tell whether the model API is enabled: by a registration of nothing, which is refused either way."""
        answer = self._request("management", "POST", "/models", timeout_s=timeout_s)
        if answer.status not in (400, 405):
            raise _refusal(answer, self._endpoint("management") + "/models")
        return answer.status == 400

    def metrics(self, *, timeout_s: float = 30.0) -> str:
        """Return the metrics in Prometheus' text format; it needs no token."""
        answer = self._connection("metrics").get("/metrics", timeout_s=timeout_s)
        if answer.status != 200:
            raise _refusal(answer, self._endpoint("metrics") + "/metrics")
        return answer.text

    def server_version(self, *, timeout_s: float = 30.0) -> str:
        """Return the version that the server's API description tells."""
        content = self._request("http", "OPTIONS", "/", timeout_s=timeout_s).json()
        try:
            return str(content["info"]["version"])
        except (KeyError, TypeError) as error:
            raise ProbeError(f"{self._endpoint('http')}: the API description tells no version") from error

    def authorization(self) -> dict[str, str]:
        """Return the headers that let a prediction in, valid now and for a while; none without a key file."""
        return _bearer(self._keys.key("inference") if self._keys else None)

    def close(self) -> None:
        """Close every connection."""
        with self._lock:
            for connection in self._connections.values():
                connection.close()
            for channel in self._channels.values():
                channel.close()
            self._connections.clear()
            self._channels.clear()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _manage(self, method: str, path: str, query: Mapping[str, object] | None = None, *, timeout_s: float) -> Any:
        given = {name: value for name, value in (query or {}).items() if value is not None}
        answer = self._request(
            "management", method, path + (f"?{urlencode(given)}" if given else ""), timeout_s=timeout_s
        )
        if answer.status != 200:
            raise _refusal(answer, self._endpoint("management") + path)
        return answer.json()

    def _request(
        self,
        endpoint: str,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 30.0,
    ) -> Response:
        connection = self._connection(endpoint)

        def send(authorization: Mapping[str, str]) -> Response:
            answer = connection.request(
                method, path, body=body, headers={**(headers or {}), **authorization}, timeout_s=timeout_s
            )
            if answer.status == 400 and b"InvalidKeyException" in answer.body:
                raise _refusal(answer, self._endpoint(endpoint) + path)
            return answer

        return self._authorized("inference" if endpoint == "http" else "management", send)

    def _authorized(self, kind: Kind, send: Callable[[Mapping[str, str]], T]) -> T:
        """Send with a token; once more where it is refused: another client may have renewed it, or none was known."""
        if self._keys is None:
            return send({})
        key = self._keys.key(kind)
        try:
            return send(_bearer(key))
        except ServerAnswerError as error:
            if error.status not in (400, "PERMISSION_DENIED") or not self._keys.replace(kind, key):
                raise
        return send(_bearer(self._keys.key(kind)))

    def _renew(self, kind: Kind, api_key: str) -> None:
        path = f"/token?type={kind}"
        answer = self._connection("management").get(path, headers=_bearer(api_key))
        if answer.status != 200:
            raise _refusal(answer, self._endpoint("management") + path)

    def _endpoint(self, name: str) -> str:
        try:
            return self._endpoints[name]
        except KeyError as error:
            raise InputError(f"the server has no {name} endpoint; it has {', '.join(self._endpoints)}") from error

    def _connection(self, name: str) -> HttpConnection:
        with self._lock:
            if name not in self._connections:
                self._connections[name] = HttpConnection(f"http://{self._endpoint(name)}")
            return self._connections[name]

    def _channel(self, name: str) -> Channel:
        with self._lock:
            if name not in self._channels:
                self._channels[name] = Channel(self._endpoint(name))
            return self._channels[name]


def _path(collection: str, model: str, version: str | None) -> str:
    parts = (collection, model) if version is None else (collection, model, version)
    return "/" + "/".join(quote(part, safe="") for part in parts)


def _bearer(key: str | None) -> dict[str, str]:
    # gRPC takes lower-case names only, HTTP takes any.
    return {} if key is None else {"authorization": f"Bearer {key}"}


def _refusal(answer: Response, where: str) -> ServerAnswerError:
    try:
        message = str(answer.json()["message"])
    except (ProbeError, KeyError, TypeError):
        message = answer.text[:500]
    return ServerAnswerError(answer.status, message, where=where)

"""The REST API: routes, bodies, answers, and CORS, metrics and gzip around them."""

from __future__ import annotations

import asyncio
import json
import re
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from servewright.backends.tfserving import protos
from servewright.backends.tfserving.embedded import json_examples, json_writer
from servewright.backends.tfserving.embedded.batching import now_us
from servewright.backends.tfserving.embedded.http import HTML, Request, Response, error_page
from servewright.backends.tfserving.embedded.inference import classify, regress
from servewright.backends.tfserving.embedded.json_tensors import predict_body
from servewright.backends.tfserving.embedded.metrics import Metrics
from servewright.backends.tfserving.embedded.model_service import model_metadata, model_status
from servewright.backends.tfserving.embedded.models import Models
from servewright.backends.tfserving.embedded.predict import predict, predict_signature
from servewright.backends.tfserving.embedded.servable import DEFAULT_SIGNATURE, Servable
from servewright.backends.tfserving.embedded.status import HTTP_STATUS, Code, StatusError, invalid_argument

DEFAULT_METRICS_PATH: Final = "/monitoring/prometheus/metrics"
_LARGEST_INFLATED: Final = 100 << 20
_PREDICTION = re.compile(
    r"/v1/models/([^/:]+)(?:(?:/versions/(\d+))|(?:/labels/([^/:]+)))?:(classify|regress|predict)",
    re.IGNORECASE | re.ASCII,
)
_STATUS = re.compile(
    r"/v1/models(?:/([^/:]+))?(?:(?:/versions/(\d+))|(?:/labels/([^/:]+)))?(?:/(metadata))?", re.IGNORECASE | re.ASCII
)
_ANY = re.compile(r"/v1/.*", re.IGNORECASE)
_ORIGIN = re.compile(r"https?://")
_JSON: Final = {"Content-Type": "application/json"}
_CORS: Final = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, GET",
    "Access-Control-Allow-Headers": "Content-Type",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RestOptions:
    """``metrics_path`` is empty where no metrics are shown; ``threads`` counts requests that run at once."""

    threads: int
    timeout_ms: int = 30_000
    cors: bool = False
    metrics_path: str = ""
    check_method: bool = False


@dataclass(slots=True)
class _Target:
    """What a request is about; filled in as far as the path could be read."""

    model: str = ""
    version: int | None = None
    label: str | None = None
    verb: str = ""
    metadata: bool = False
    matched: bool = False

    @property
    def spec(self) -> Any:
        """The target as a ModelSpec."""
        spec = protos.ModelSpec(name=self.model)
        if self.version is not None:
            spec.version.value = self.version
        if self.label is not None:
            spec.version_label = self.label
        return spec


class UnanswerableError(StatusError):
    """A failure that the real server answers with an empty body."""


class RestApi:
    """Answers HTTP requests with what the models say."""

    def __init__(self, models: Models, metrics: Metrics, options: RestOptions) -> None:
        self._models, self._metrics, self._options = models, metrics, options
        self._threads = asyncio.Semaphore(options.threads)

    async def __call__(self, request: Request) -> Response:
        """Return the answer to a request."""
        if self._options.metrics_path and request.bare_path == self._options.metrics_path:
            return self._show_metrics(request)
        if not _ANY.fullmatch(request.path):
            return error_page(404)
        async with self._threads:
            return await self._dispatch(request)

    def _show_metrics(self, request: Request) -> Response:
        headers = {"Content-Type": "text/plain"}
        if request.path != self._options.metrics_path:
            text = f"Unexpected path: {request.path}. Should be {self._options.metrics_path}"
            return Response(400, text.encode(), headers)
        return Response(200, self._metrics.page().encode("utf-8", "replace"), headers)

    async def _dispatch(self, request: Request) -> Response:
        started = time.monotonic_ns()
        headers: Mapping[str, str] = _JSON
        target, status, body = _Target(), Code.OK, b""
        try:
            if request.method == "OPTIONS":
                headers = {"Content-Type": HTML}
                if not _ORIGIN.search(request.headers.get("origin", "")):
                    raise UnanswerableError(Code.FAILED_PRECONDITION, "Origin header is missing in CORS preflight")
            else:
                body = await self._answer(request, target)
        except UnanswerableError as error:
            status = error.code
        except StatusError as error:
            status, body = error.code, json_writer.error_page(error.message)
        if status is Code.OK:
            spent = (time.monotonic_ns() - started) // 1000
            self._metrics.request_latency.add(spent, target.model, target.verb, "REST")
        self._metrics.requests.add(target.model, status.name)
        if self._options.cors:
            headers = {**headers, **_CORS}
        return Response(HTTP_STATUS[status], body, headers)

    async def _answer(self, request: Request, target: _Target) -> bytes:
        malformed = invalid_argument(f"Malformed request: {request.method} {request.path}")
        _read_target(request, target)
        if not target.matched:
            raise malformed
        if request.method == "GET":
            if not target.model:
                raise invalid_argument("Missing model name in request.")
            return self._metadata(target) if target.metadata else self._status(target)
        body = _inflated(request)
        if target.verb == "predict":
            return await self._predict(target, body)
        if target.verb == "classify":
            return await self._classify(target, body)
        if target.verb == "regress":
            return await self._regress(target, body)
        raise malformed

    def _status(self, target: _Target) -> bytes:
        return _proto_json(model_status(self._models, target.spec)).encode("utf-8", "surrogateescape")

    def _metadata(self, target: _Target) -> bytes:
        response = model_metadata(self._models, target.spec)
        signatures = protos.SignatureDefMap()
        response.metadata["signature_def"].Unpack(signatures)
        text = (
            f'{{\n"model_spec":{_proto_json(response.model_spec)},\n"metadata": {{"signature_def": '
            f"{_proto_json(signatures)}}}\n}}\n"
        )
        return text.encode("utf-8", "surrogateescape")

    @property
    def _deadline(self) -> int | None:
        return now_us() + self._options.timeout_ms * 1000 if self._options.timeout_ms > 0 else None

    async def _predict(self, target: _Target, body: bytes) -> bytes:
        spec = target.spec

        def inputs_of(name: str) -> Mapping[str, int]:
            servable = self._models.find(spec)
            name = name or DEFAULT_SIGNATURE
            if name not in servable.signatures:
                raise invalid_argument(f'Serving signature name: "{name}" not found in signature def')
            return servable.signatures[name].input_types

        asked = predict_body(body, inputs_of)
        with self._models.find(spec).leased() as servable:
            signature = predict_signature(servable, asked.signature_name, check_method=self._options.check_method)
            results = await predict(
                servable, signature, asked.inputs, self._metrics, model=target.model, deadline_us=self._deadline,
                read=_as_it_is,
            )  # fmt: skip
        if not results:
            raise invalid_argument("Cannot convert empty tensor map to JSON")
        return (json_writer.rows if asked.row else json_writer.columns)(dict(results))

    async def _classify(self, target: _Target, body: bytes) -> bytes:
        request = json_examples.example_request(body, protos.ClassificationRequest(model_spec=target.spec))
        with self._found(request) as servable:
            response = await classify(
                servable, request, self._metrics, check_method=self._options.check_method, deadline_us=self._deadline
            )
        if not response.result.classifications:
            raise invalid_argument("Cannot convert empty ClassificationResults to JSON")
        return json_writer.classifications(
            [[(one.label, one.score) for one in entry.classes] for entry in response.result.classifications]
        )

    async def _regress(self, target: _Target, body: bytes) -> bytes:
        request = json_examples.example_request(body, protos.RegressionRequest(model_spec=target.spec))
        with self._found(request) as servable:
            response = await regress(
                servable, request, self._metrics, check_method=self._options.check_method, deadline_us=self._deadline
            )
        if not response.result.regressions:
            raise invalid_argument("Cannot convert empty RegressionResults to JSON")
        return json_writer.regressions([one.value for one in response.result.regressions])

    def _found(self, request: Any) -> Any:
        servable: Servable = self._models.find(request.model_spec)
        return servable.leased()


def _as_it_is(tensor: Any, name: str) -> Any:  # noqa: ARG001
    return tensor


def _read_target(request: Request, target: _Target) -> None:
    """Fill in what the path says; raise `StatusError` for a version that is no number."""
    if request.method == "POST":
        found = _PREDICTION.fullmatch(request.path)
    elif request.method == "GET":
        found = _STATUS.fullmatch(request.path)
    else:
        found = None
    if found is None:
        return
    target.matched = True
    name, version, label, last = found.groups()
    if request.method == "POST":
        target.verb = last or ""
    else:
        target.metadata = last == "metadata"
    if name:
        target.model = _decoded(name)
    if version:
        version = version.lstrip("0") or "0"
        if len(version) > len(str(1 << 63)) or int(version) >= 1 << 63:
            raise UnanswerableError(Code.INVALID_ARGUMENT, f"Failed to convert version: {version} to numeric.")
        target.version = int(version)
    if label:
        target.label = _decoded(label)


def _decoded(text: str) -> str:
    return unquote_to_bytes(text.encode("latin-1")).decode("utf-8", "replace")


def _inflated(request: Request) -> bytes:
    """Return the body, unpacked where its header says gzip; what cannot be unpacked is an empty body."""
    if "gzip" not in request.headers.get("content-encoding", "") or not request.body:
        return request.body
    unpacker = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        data = unpacker.decompress(request.body, _LARGEST_INFLATED + 1)
    except zlib.error:
        return b""
    return data if unpacker.eof and len(data) <= _LARGEST_INFLATED else b""


def _proto_json(message: Any) -> str:
    """Return a message as the real server prints it: its own field names, defaults shown, one blank a level."""
    from google.protobuf import json_format

    shown = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    text = json.dumps(shown, indent=1, ensure_ascii=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e") + "\n"

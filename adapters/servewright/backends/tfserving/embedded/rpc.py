"""The gRPC services, on raw bytes: PredictionService, ModelService and, if asked for, the health service."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from servewright import __version__
from servewright.backends.tfserving import protos
from servewright.backends.tfserving.embedded import STAND_IN_METADATA
from servewright.backends.tfserving.embedded.batching import now_us
from servewright.backends.tfserving.embedded.inference import classify, multi_inference, regress
from servewright.backends.tfserving.embedded.log import log
from servewright.backends.tfserving.embedded.metrics import Metrics
from servewright.backends.tfserving.embedded.model_service import model_metadata, model_status, reload_config
from servewright.backends.tfserving.embedded.models import Models
from servewright.backends.tfserving.embedded.predict import predict, predict_signature
from servewright.backends.tfserving.embedded.predict_wire import write_response
from servewright.backends.tfserving.embedded.status import Code, StatusError, invalid_argument

_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}
_WHO: Final = ((STAND_IN_METADATA, __version__),)
_SERVING: Final = b"\x08\x01"
_UNKNOWN_SERVICE: Final = b"\x08\x03"
_HEALTHY: Final = ("", "ModelService", "PredictionService")
_MOMENT_S: Final = 0.02
_GRACE_S: Final = 0.01
_LONGEST_DEADLINE_S: Final = 1e9  # no deadline is a very late one

Answer = Callable[[Any, "int | None"], Awaitable[bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RpcOptions:
    """``calls`` run at once, the others are turned away."""

    calls: int
    health: bool = False
    check_method: bool = False


class Services(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Finds the answer to every method of the server."""

    def __init__(self, models: Models, metrics: Metrics, options: RpcOptions) -> None:
        self._models, self._metrics, self._options = models, metrics, options
        self._running = 0
        self._waiting: deque[asyncio.Future[bool]] = deque()
        self._handlers: dict[str, Any] = {
            protos.PREDICT: self._handler("PredictRequest", self._predict),
            protos.CLASSIFY: self._handler("ClassificationRequest", self._classify),
            protos.REGRESS: self._handler("RegressionRequest", self._regress),
            protos.MULTI_INFERENCE: self._handler("MultiInferenceRequest", self._multi_inference),
            protos.GET_MODEL_METADATA: self._handler("GetModelMetadataRequest", self._metadata, introduces=True),
            protos.GET_MODEL_STATUS: self._handler("GetModelStatusRequest", self._status, introduces=True),
            protos.RELOAD_CONFIG: self._handler("ReloadConfigRequest", self._reload, introduces=True),
        }
        if options.health:
            self._handlers[protos.HEALTH_CHECK] = self._handler("HealthCheckRequest", self._health)
            watch = protos.HEALTH_CHECK.replace("/Check", "/Watch")
            self._handlers[watch] = grpc.unary_stream_rpc_method_handler(_watch_health)

    def service(self, handler_call_details: Any) -> Any:
        """Return what answers a call; unknown methods are refused without words, as by the real server."""
        return self._handlers.get(handler_call_details.method, _UNIMPLEMENTED)

    def _handler(self, message: str, answer: Answer, *, introduces: bool = False) -> Any:
        """Return a handler that parses a request, counts it against the threads, and turns errors into codes.

        ``introduces`` sends ahead of the answer what this server is.
        """
        parse = protos.SCHEMA[message].FromString

        async def handle(data: bytes, context: Any) -> bytes:
            if self._running >= self._options.calls and not await self._soon():
                await _refuse(context, Code.RESOURCE_EXHAUSTED, "Server Threadpool Exhausted")
            self._running += 1
            try:
                if introduces:
                    await context.send_initial_metadata(_WHO)
                try:
                    request = parse(data)
                except DecodeError:
                    await _refuse(context, Code.INTERNAL, "")
                    raise
                left = context.time_remaining()
                # The client's own clock ends its wait; TensorFlow's ends the work a moment later.
                deadline = None
                if left is not None and left < _LONGEST_DEADLINE_S:
                    deadline = now_us() + int((left + _GRACE_S) * 1e6)
                try:
                    return await answer(request, deadline)
                except StatusError as error:
                    await _refuse(context, error.code, error.details)
                    raise
                except Exception as error:  # a mistake of ours is this call's error, and nobody else's
                    log("E", "servewright", f"{message} failed: {error!r}")
                    await _refuse(context, Code.INTERNAL, repr(error))
                    raise
            finally:
                self._running -= 1
                while self._waiting and self._running < self._options.calls:
                    waiter = self._waiting.popleft()
                    if not waiter.done():
                        waiter.set_result(True)
                        break

        return grpc.unary_unary_rpc_method_handler(handle)

    async def _soon(self) -> bool:
        """Wait a moment for a call to end; tell whether one did.

        What comes in while the event loop is busy is seen here all at once, and by the real server one by one.
        """
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        self._waiting.append(waiter)
        timer = loop.call_later(_MOMENT_S, _give_up, waiter)
        try:
            return await waiter and self._running < self._options.calls
        finally:
            timer.cancel()

    async def _predict(self, request: Any, deadline_us: int | None) -> bytes:
        started = time.monotonic_ns()
        spec = request.model_spec
        try:
            if not request.HasField("model_spec"):
                raise invalid_argument("Missing ModelSpec")
            with self._models.find(spec).leased() as servable:
                signature = predict_signature(servable, spec.signature_name, check_method=self._options.check_method)
                results = await predict(
                    servable, signature, request.inputs, self._metrics, model=spec.name,
                    output_filter=request.output_filter, deadline_us=deadline_us,
                )  # fmt: skip
        except StatusError as error:
            self._metrics.requests.add(spec.name, error.code.name)
            raise
        except asyncio.CancelledError:
            self._count_abandoned(spec.name, deadline_us)
            raise
        answer = write_response(results, signature.spec)
        self._count(spec.name, "Predict", started)
        return answer

    def _count_abandoned(self, model: str, deadline_us: int | None) -> None:
        """Count a call whose client has gone: the real server finds out when the model has run."""
        late = deadline_us is not None and now_us() >= deadline_us - int(2 * _GRACE_S * 1e6)
        self._metrics.requests.add(model, "DEADLINE_EXCEEDED" if late else "OK")

    def _count(self, model: str, api: str, started: int) -> None:
        spent = (time.monotonic_ns() - started) // 1000
        self._metrics.request_latency.add(spent, model, api, "GRPC")
        self._metrics.requests.add(model, "OK")

    async def _infer(self, request: Any, api: str, run: Any, deadline_us: int | None) -> bytes:
        started = time.monotonic_ns()
        spec = request.model_spec
        try:
            if not request.HasField("model_spec"):
                raise invalid_argument("Missing ModelSpec")
            with self._models.find(spec).leased() as servable:
                response = await run(
                    servable, request, self._metrics, check_method=self._options.check_method, deadline_us=deadline_us
                )
        except StatusError as error:
            self._metrics.requests.add(spec.name, error.code.name)
            raise
        except asyncio.CancelledError:
            self._count_abandoned(spec.name, deadline_us)
            raise
        self._count(spec.name, api, started)
        data: bytes = response.SerializeToString()
        return data

    async def _classify(self, request: Any, deadline_us: int | None) -> bytes:
        return await self._infer(request, "Classify", classify, deadline_us)

    async def _regress(self, request: Any, deadline_us: int | None) -> bytes:
        return await self._infer(request, "Regress", regress, deadline_us)

    async def _multi_inference(self, request: Any, deadline_us: int | None) -> bytes:
        spec = request.tasks[0].model_spec if request.tasks else protos.ModelSpec()
        with self._models.find(spec).leased() as servable:
            response = await multi_inference(
                servable, request, self._metrics, check_method=self._options.check_method, deadline_us=deadline_us
            )
        data: bytes = response.SerializeToString()
        return data

    async def _metadata(self, request: Any, deadline_us: int | None) -> bytes:  # noqa: ARG002
        if not request.HasField("model_spec"):
            raise invalid_argument("Missing ModelSpec")
        data: bytes = model_metadata(
            self._models, request.model_spec, tuple(request.metadata_field)
        ).SerializeToString()
        return data

    async def _status(self, request: Any, deadline_us: int | None) -> bytes:  # noqa: ARG002
        if not request.HasField("model_spec"):
            raise invalid_argument("Missing ModelSpec")
        data: bytes = model_status(self._models, request.model_spec).SerializeToString()
        return data

    async def _reload(self, request: Any, deadline_us: int | None) -> bytes:  # noqa: ARG002
        data: bytes = (await reload_config(self._models, self._metrics, request)).SerializeToString()
        return data

    async def _health(self, request: Any, deadline_us: int | None) -> bytes:  # noqa: ARG002
        if request.service not in _HEALTHY:
            raise StatusError(Code.NOT_FOUND, "service name unknown")
        return _SERVING


def _give_up(waiter: asyncio.Future[bool]) -> None:
    if not waiter.done():
        waiter.set_result(False)


async def _refuse(context: Any, code: Code, details: str) -> None:
    """End a call with an error."""
    await context.abort(_CODES[int(code)], details)


async def _unimplemented(data: bytes, context: Any) -> bytes:  # noqa: ARG001
    await _refuse(context, Code.UNIMPLEMENTED, "")
    return b""


async def _watch_health(data: bytes, context: Any) -> AsyncIterator[bytes]:
    try:
        request = protos.HealthCheckRequest.FromString(data)
    except DecodeError:
        await _refuse(context, Code.INTERNAL, "")
        return
    yield _SERVING if request.service in _HEALTHY else _UNKNOWN_SERVICE
    await asyncio.Event().wait()  # nothing changes until the server or the client ends


_UNIMPLEMENTED: Final = grpc.unary_unary_rpc_method_handler(_unimplemented)

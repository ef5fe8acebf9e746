"""PredictionService, ModelService and, if asked for, the health service: messages in, messages out."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.message import DecodeError

from servewright import __version__
from servewright.backends.tfserving import protos
from servewright.backends.tfserving.embedded import STAND_IN_METADATA
from servewright.backends.tfserving.embedded.batching import now_us
from servewright.backends.tfserving.embedded.grpc_server import Call
from servewright.backends.tfserving.embedded.inference import classify, multi_inference, regress
from servewright.backends.tfserving.embedded.metrics import Metrics
from servewright.backends.tfserving.embedded.model_service import model_metadata, model_status, reload_config
from servewright.backends.tfserving.embedded.models import Models
from servewright.backends.tfserving.embedded.predict import predict, predict_signature
from servewright.backends.tfserving.embedded.predict_wire import write_response
from servewright.backends.tfserving.embedded.status import Code, StatusError, invalid_argument

_WHO: Final = [(STAND_IN_METADATA.encode(), __version__.encode())]
_SAYS_WHO: Final = {protos.GET_MODEL_METADATA, protos.GET_MODEL_STATUS, protos.RELOAD_CONFIG}
_HEALTH_WATCH: Final = protos.HEALTH_CHECK.replace("/Check", "/Watch")
_SERVING: Final = b"\x08\x01"
_UNKNOWN_SERVICE: Final = b"\x08\x03"
_HEALTHY: Final = ("", "ModelService", "PredictionService")
_MOMENT_S: Final = 0.005
_PATIENCE: Final = 4  # moments in which no call ends
_LONGEST_WAIT: Final = 20  # moments in all
_GRACE_US: Final = 10_000

Answer = Callable[[Any, "int | None"], Awaitable[bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RpcOptions:
    """``calls`` run at once, the others are turned away."""

    calls: int
    health: bool = False
    check_method: bool = False


class Services:
    """Answers every method of the server."""

    def __init__(self, models: Models, metrics: Metrics, options: RpcOptions) -> None:
        self._models, self._metrics, self._options = models, metrics, options
        self._running = self._ended = 0
        self._waiting: deque[asyncio.Future[bool]] = deque()
        self._methods: dict[str, tuple[Callable[[bytes], Any], Answer]] = {
            path: (protos.SCHEMA[message].FromString, answer)
            for path, message, answer in (
                (protos.PREDICT, "PredictRequest", self._predict),
                (protos.CLASSIFY, "ClassificationRequest", self._classify),
                (protos.REGRESS, "RegressionRequest", self._regress),
                (protos.MULTI_INFERENCE, "MultiInferenceRequest", self._multi_inference),
                (protos.GET_MODEL_METADATA, "GetModelMetadataRequest", self._metadata),
                (protos.GET_MODEL_STATUS, "GetModelStatusRequest", self._status),
                (protos.RELOAD_CONFIG, "ReloadConfigRequest", self._reload),
                (protos.HEALTH_CHECK, "HealthCheckRequest", self._health),
            )
            if path != protos.HEALTH_CHECK or options.health
        }

    def metadata(self, method: str) -> list[tuple[bytes, bytes]]:
        """Return what is sent ahead of an answer: what this server is, where a method is not about speed."""
        return _WHO if method in _SAYS_WHO else []

    def streams(self, method: str) -> bool:
        """Tell whether a method answers with more than one message."""
        return method == _HEALTH_WATCH and self._options.health

    def waits(self, method: str) -> bool:
        """Tell whether a method only waits: for the models of a new config."""
        return method == protos.RELOAD_CONFIG

    async def answer(self, call: Call) -> bytes:
        """Return the answer to a call; raise `StatusError`.

        Unknown methods and broken messages are refused without words, as by the real server.
        """
        known = self._methods.get(call.method)
        if known is None:
            raise StatusError(Code.UNIMPLEMENTED, "")
        # The client's own clock ends its wait; TensorFlow's ends the work a moment later.
        deadline = None if call.timeout_us is None else now_us() + call.timeout_us + _GRACE_US
        if self._running < self._options.calls:
            self._running += 1
        elif not await self._place():
            raise StatusError(Code.RESOURCE_EXHAUSTED, "Server Threadpool Exhausted")
        try:
            parse, answer = known
            try:
                request = parse(call.data)
            except DecodeError:
                raise StatusError(Code.INTERNAL, "") from None
            return await answer(request, deadline)
        finally:
            self._leave_place()

    async def stream(self, call: Call) -> AsyncIterator[bytes]:
        """Yield the health of a service: it changes with the end of the server alone."""
        try:
            service = protos.HealthCheckRequest.FromString(call.data).service
        except DecodeError:
            raise StatusError(Code.INTERNAL, "") from None
        yield _SERVING if service in _HEALTHY else _UNKNOWN_SERVICE
        await asyncio.Event().wait()

    async def _place(self) -> bool:
        """Wait for the place of a call that ends; tell whether there was one.

        What comes in while the event loop is busy is seen here all at once, and by the real server one by one: as long
        as calls end, the next ones are still to come. When none ends, all threads are held, and there is no place.
        """
        waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        self._wait_on(waiter, self._ended, _PATIENCE, _LONGEST_WAIT)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.result():
                self._leave_place()
            raise

    def _wait_on(self, waiter: asyncio.Future[bool], ended: int, patience: int, left: int) -> None:
        """Look after each moment whether a wait has to end; where the machine gives us no time, a long one is one."""
        if waiter.done():
            return
        if self._ended != ended:
            patience = _PATIENCE
        if not patience or not left:
            waiter.set_result(False)
            return
        waiter.get_loop().call_later(_MOMENT_S, self._wait_on, waiter, self._ended, patience - 1, left - 1)

    def _leave_place(self) -> None:
        """Hand the place of a call that has ended to the one that waits longest, before any that comes now."""
        self._ended += 1
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(True)
                return
        self._running -= 1

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
        answer = write_response(results, signature.spec)
        self._count(spec.name, "Predict", started)
        return answer

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

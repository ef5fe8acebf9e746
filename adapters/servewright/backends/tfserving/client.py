"""A light client of TensorFlow Serving: numpy in, numpy out, over HTTP or gRPC, without TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

from numpy.typing import ArrayLike

from servewright.backends.tfserving import metadata
from servewright.backends.tfserving.rest import Rest
from servewright.backends.tfserving.targets import Target
from servewright.backends.tfserving.tensors import Array
from servewright.backends.tfserving.versions import ModelVersion
from servewright.errors import InputError, ProbeError, ServerAnswerError

if TYPE_CHECKING:
    from servewright.backends.tfserving.rpc import Rpc
    from servewright.spec import Signature

Transport = Literal["http", "grpc"]
METRICS = "/monitoring/prometheus/metrics"
STAND_IN_PRODUCT = "servewright-embedded/"
STAND_IN_METADATA = "servewright-stand-in"

__all__ = ["METRICS", "Client", "ModelVersion", "Transport"]


class Client:
    """A client of one server; safe to share between threads.

    ``grpc`` is an address such as ``127.0.0.1:8500``, ``http`` one such as ``127.0.0.1:8501``, also with ``http://``
    before it; one of the two may be left out. What the server refuses is a `ServerAnswerError` with the server's
    own text, and a server that cannot be talked to, or that answers nonsense, another `ProbeError`.
    """

    def __init__(self, grpc: str | None = None, http: str | None = None, *, metrics_path: str = METRICS) -> None:
        self._address = grpc
        self._metrics_path = metrics_path
        self._lock = Lock()
        self._opened: Rpc | None = None
        self._closed = False
        if not grpc and not http:
            raise InputError("a client needs a gRPC or an HTTP address")
        self._rest = Rest(http if "://" in http else f"http://{http}") if http else None

    def predict(
        self,
        model: str,
        inputs: Mapping[str, ArrayLike],
        *,
        version: int | None = None,
        label: str | None = None,
        signature: str = "",
        transport: Transport = "http",
        timeout_s: float = 30.0,
    ) -> dict[str, Array]:
        """Return the outputs by name; without ``version`` and ``label`` those of the version that the server prefers.

        Arrays that come over gRPC may be read-only. Dtypes are the same over both transports.
        """
        target = Target(model, version, label, signature)
        return self._over(transport).predict(target, inputs, timeout_s=timeout_s)

    def status(self, model: str, *, timeout_s: float = 30.0) -> tuple[ModelVersion, ...]:
        """Return every version of ``model`` that the server knows, loaded or not, as the server orders them."""
        return self._any().status(Target(model), timeout_s=timeout_s)

    def metadata(
        self,
        model: str,
        *,
        version: int | None = None,
        label: str | None = None,
        signature: str = "",
        timeout_s: float = 30.0,
    ) -> Signature:
        """Return a signature of ``model``, ``serving_default`` unless named, its tensors in order of their names."""
        _, definitions = self._any().definitions(Target(model, version, label), timeout_s=timeout_s)
        return metadata.signature(model, definitions, signature)

    def version_of_label(self, model: str, label: str, *, timeout_s: float = 30.0) -> int | None:
        """Return the version that ``label`` stands for, or None where the server does not know the label."""
        try:
            version, _ = self._any().definitions(Target(model, label=label), timeout_s=timeout_s)
        except ServerAnswerError as error:
            if error.message.startswith("Unrecognized servable version label"):
                return None
            raise
        return version

    def metrics(self, *, timeout_s: float = 30.0) -> str:
        """Return the server's Prometheus metrics; they are served over HTTP alone."""
        return self._over_http().text(self._metrics_path, timeout_s=timeout_s)

    def reload(self, config: Any, *, timeout_s: float = 30.0) -> None:
        """Make the server serve a ``ModelServerConfig`` message, or the text of one, in place of all that it serves.

        Over gRPC alone. The call waits for new models; new versions of a model that was there load later.
        """
        if isinstance(config, str):
            from servewright.backends.tfserving import protos

            config = protos.SCHEMA.parse_text("ModelServerConfig", config)
        try:
            self._over_grpc().reload(config, timeout_s=timeout_s)
        finally:
            if self._rest:
                self._rest.forget()

    def stand_in(self, *, timeout_s: float = 30.0) -> str:
        """Return the version of our own stand-in, or nothing where another server answers."""
        if self._rest:
            product = self._rest.product(timeout_s=timeout_s)
            return product.removeprefix(STAND_IN_PRODUCT) if product.startswith(STAND_IN_PRODUCT) else ""
        return str(self._over_grpc().said_first(timeout_s=timeout_s).get(STAND_IN_METADATA, ""))

    def close(self) -> None:
        """Close every connection; calls under way are cancelled."""
        with self._lock:
            self._closed = True
            if self._rest:
                self._rest.close()
            if self._opened:
                self._opened.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _over(self, transport: Transport) -> Rest | Rpc:
        return self._over_grpc() if transport == "grpc" else self._over_http()

    def _any(self) -> Rest | Rpc:
        return self._rest or self._over_grpc()

    def _over_http(self) -> Rest:
        if self._rest is None:
            raise InputError("this client was given no HTTP address")
        return self._rest

    def _over_grpc(self) -> Rpc:
        """Return the gRPC side, made when it is first needed: grpcio is an extra, and the slower half to import."""
        with self._lock:
            if self._closed:
                raise ProbeError(f"{self._address}: this client is closed")
            if self._opened is None:
                if self._address is None:
                    raise InputError("this client was given no gRPC address")
                from servewright.backends.tfserving.rpc import Rpc

                self._opened = Rpc(self._address)
            return self._opened

"""TensorFlow Serving over gRPC."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import ArrayLike

from servewright.backends.tfserving import metadata, predictions, protos, versions
from servewright.backends.tfserving.dtypes import TensorError
from servewright.backends.tfserving.fields import BrokenMessageError
from servewright.backends.tfserving.targets import Target
from servewright.backends.tfserving.tensors import Array
from servewright.channels import Channel
from servewright.errors import ProbeError, ServerAnswerError

_GLIBC_LARGEST = 31 << 20  # glibc learns nothing from blocks of 32 MiB and more


def _as_is(data: bytes) -> bytes:
    return data


def _serialized(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data


class Rpc:
    """The gRPC services of one server; safe to share between threads."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._largest = 0
        self._channel = Channel(address)
        self._predict = self._channel.unary(protos.PREDICT, _as_is, _as_is)
        self._metadata = self._channel.unary(protos.GET_MODEL_METADATA, _serialized, _as_is)
        self._status = self._channel.unary(protos.GET_MODEL_STATUS, _serialized, _as_is)
        self._reload = self._channel.unary(protos.RELOAD_CONFIG, _serialized, _as_is)

    def predict(self, target: Target, inputs: Mapping[str, ArrayLike], *, timeout_s: float) -> dict[str, Array]:
        """Return the outputs by name."""
        request = predictions.encode_request(target.encoded(), inputs)
        self._keep_memory(len(request))
        data = self._predict(request, timeout_s=timeout_s)
        try:
            return predictions.decode_answer(data)
        except (BrokenMessageError, TensorError) as error:
            raise ProbeError(f"{self._address}: the answer cannot be read: {error}") from error

    def definitions(self, target: Target, *, timeout_s: float) -> tuple[int, Mapping[str, Any]]:
        """Return the version that ``target`` means, and its SignatureDef messages."""
        request = protos.GetModelMetadataRequest(model_spec=target.message(), metadata_field=["signature_def"])
        data = self._metadata(request, timeout_s=timeout_s)
        return metadata.from_message(self._parsed("GetModelMetadataResponse", data))

    def status(self, target: Target, *, timeout_s: float) -> tuple[versions.ModelVersion, ...]:
        """Return every version of the model that the server knows, as it tells them."""
        data = self._status(protos.GetModelStatusRequest(model_spec=target.message()), timeout_s=timeout_s)
        try:
            return versions.from_bytes(data)
        except BrokenMessageError as error:
            raise ProbeError(f"{self._address}: the answer cannot be read: {error}") from error

    def reload(self, config: Any, *, timeout_s: float) -> None:
        """Replace the server's models by those of a ``ModelServerConfig`` message."""
        data = self._reload(protos.ReloadConfigRequest(config=config), timeout_s=timeout_s)
        status = self._parsed("ReloadConfigResponse", data).status
        if status.error_code:
            name = protos.Code.Name(status.error_code)
            raise ServerAnswerError(name, status.error_message, where=f"{self._address}{protos.RELOAD_CONFIG}")

    def said_first(self, *, timeout_s: float) -> dict[str, str | bytes]:
        """Return the metadata that the server sends before any answer."""
        return self._status.initial_metadata(protos.GetModelStatusRequest(), timeout_s=timeout_s)

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def _keep_memory(self, size: int) -> None:
        """Let the C library keep the memory of two buffers of ``size`` bytes between calls.

        glibc returns freed memory to the system above twice the largest block that it ever gave back, which a request
        and grpcio's copy of it reach together; every call would then wait for each page anew, longer than for the
        copying. A larger block, freed untouched, raises that limit. Elsewhere this does nothing.
        """
        if size > self._largest:
            self._largest = size
            bytes(min(4 * size, _GLIBC_LARGEST))

    def _parsed(self, name: str, data: bytes) -> Any:
        from google.protobuf.message import DecodeError

        try:
            return protos.SCHEMA[name].FromString(data)
        except DecodeError as error:
            raise ProbeError(f"{self._address}: the answer is no {name}: {error}") from error

"""gRPC for every backend: the one home of its channels, with its errors translated at this border."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from servewright.errors import MissingExtraError, ProbeError, ProbeTimeoutError, ServerAnswerError

if TYPE_CHECKING:
    import grpc

Encode = Callable[[Any], bytes]
Decode = Callable[[bytes], Any]

# gRPC's own 4 MiB would refuse answers that the servers are glad to give (they take 2 GiB).
_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Loopback through a proxy named in the environment would leave the machine.
    ("grpc.enable_http_proxy", 0),
)


class Channel:
    """A gRPC channel to one server; safe to share between threads."""

    def __init__(
        self,
        address: str,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        options: Iterable[tuple[str, Any]] = (),
    ) -> None:
        self.address = address
        grpc = _grpc()
        settings = [*_OPTIONS, *options]
        if credentials is None:
            self._channel = grpc.insecure_channel(address, options=settings)
        else:
            self._channel = grpc.secure_channel(address, credentials, options=settings)

    def unary(self, method: str, encode: Encode, decode: Decode) -> Call:
        """Return a callable for ``method``, a full path such as ``/package.Service/Method``."""
        return Call(self._channel.unary_unary(method, encode, decode), f"{self.address}{method}")

    def close(self) -> None:
        """Close the channel; calls under way are cancelled."""
        self._channel.close()

    def __enter__(self) -> Channel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Call:
    """One method of one channel."""

    __slots__ = ("_invoke", "_where")

    def __init__(self, invoke: Any, where: str) -> None:
        self._invoke, self._where = invoke, where

    def __call__(self, request: Any, *, timeout_s: float = 30.0, metadata: Mapping[str, str] | None = None) -> Any:
        """Return the decoded answer.

        Raises `ProbeTimeoutError` where the deadline passed, `ProbeError` where nobody listens, and
        `ServerAnswerError`, with the code's name as its status, for every other answer that is not OK.
        """
        import grpc

        try:
            return self._invoke(request, timeout=timeout_s, metadata=tuple((metadata or {}).items()))
        except grpc.RpcError as error:
            code, details = error.code(), error.details() or ""
            # A code of gRPC's own making is told from the same code sent by a server by its text alone.
            if code == grpc.StatusCode.DEADLINE_EXCEEDED and details == "Deadline Exceeded":
                raise ProbeTimeoutError(f"{self._where}: no answer in {timeout_s:g} s") from error
            if code == grpc.StatusCode.UNAVAILABLE and details.startswith("failed to connect"):
                raise ProbeError(f"{self._where}: {details}") from error
            raise ServerAnswerError(code.name, details, where=self._where) from error

    def initial_metadata(self, request: Any, *, timeout_s: float = 30.0) -> dict[str, str | bytes]:
        """Return what the server says before its answer, be that an error or not; empty where nobody answers."""
        call = self._invoke.future(request, timeout=timeout_s)
        return {item.key: item.value for item in call.initial_metadata() or ()}


def _grpc() -> Any:
    try:
        import grpc
    except ImportError as error:
        raise MissingExtraError("grpcio", "grpc", "talking gRPC") from error
    return grpc

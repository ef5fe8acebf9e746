"""Ports: gRPC in the clear, over TLS or on a socket file, and what the flags say about its channels."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from servewright.backends.tfserving.embedded.config import read_text_message
from servewright.backends.tfserving.embedded.flags import ServerFlags
from servewright.backends.tfserving.embedded.grpc_server import GrpcServer
from servewright.backends.tfserving.embedded.log import log
from servewright.backends.tfserving.embedded.rpc import Services
from servewright.backends.tfserving.embedded.status import invalid_argument

BIND_VARIABLE: Final = "SERVEWRIGHT_EMBEDDED_BIND"
_LAST_PORT: Final = 65535
_MOST_STREAMS: Final = "grpc.max_concurrent_streams"


def bind_address() -> str:
    """Return the address on which the server listens; the real one has no such choice and takes all."""
    return os.environ.get(BIND_VARIABLE) or "127.0.0.1"


def channel_arguments(text: str) -> list[tuple[str, Any]]:
    """Return ``k=v,k=v`` as gRPC options, whole numbers as such; raise `StatusError` for a pair without ``=``."""
    options: list[tuple[str, Any]] = []
    for pair in text.split(",") if text else ():
        key, sign, value = pair.partition("=")
        if not sign:  # the real server ends here with a segmentation fault
            raise invalid_argument(f"--grpc_channel_arguments has {pair!r}, which is no key=value")
        options.append((key, int(value) if value.lstrip("+-").isdecimal() else value.partition("=")[0]))
    return options


def tls(flags: ServerFlags) -> ssl.SSLContext | None:
    """Return how gRPC is encrypted, or ``None``; raise `StatusError` for a file that cannot be used."""
    if not flags.ssl_config_file:
        return None
    config = read_text_message("SSLConfig", flags.ssl_config_file)
    if not config.server_key or not config.server_cert:
        raise invalid_argument(f"{flags.ssl_config_file} has no server_key or no server_cert; both are PEM text")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["h2"])
    try:
        with TemporaryDirectory() as folder:  # Python reads keys from files alone; nobody else can read these
            key, cert = Path(folder, "key.pem"), Path(folder, "cert.pem")
            key.write_text(config.server_key)
            cert.write_text(config.server_cert)
            context.load_cert_chain(cert, key)
        if config.custom_ca:
            context.load_verify_locations(cadata=config.custom_ca)
    except (ssl.SSLError, OSError, ValueError) as error:
        log("E", "server.cc", f"{flags.ssl_config_file}: {error}")
        raise invalid_argument("Failed to BuildAndStart gRPC server") from error
    if config.client_verify:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


async def start_grpc(flags: ServerFlags, services: Services, secret: ssl.SSLContext | None) -> GrpcServer:
    """Return a running gRPC server; raise `StatusError` where it cannot listen."""
    options = dict(channel_arguments(flags.grpc_channel_arguments))
    for name in options.keys() - {_MOST_STREAMS}:
        log("W", "servewright", f"Channel argument without effect here: {name}")
    most = options.get(_MOST_STREAMS, 0)
    server = GrpcServer(services, most_streams=most if isinstance(most, int) else 0)
    try:
        if 0 < flags.port <= _LAST_PORT:
            await server.listen(bind_address(), flags.port, secret)
            log("I", "server.cc", f"Running gRPC ModelServer at {_bracketed(bind_address())}:{flags.port} ...")
        elif flags.port:
            log("E", "server.cc", f"{flags.port} is no port; gRPC is not served")
        if flags.grpc_socket_path:
            await server.listen_at(flags.grpc_socket_path, secret)
            log("I", "server.cc", f"Running gRPC ModelServer at UNIX socket {flags.grpc_socket_path} ...")
    except OSError as error:
        log("E", "server.cc", f"gRPC cannot listen: {error}")
        raise invalid_argument("Failed to BuildAndStart gRPC server") from error
    return server


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address

"""Ports: gRPC in the clear, over TLS or on a socket file, and what the flags say about its channels."""

from __future__ import annotations

import os
from typing import Any, Final

import grpc

from servewright.backends.tfserving.embedded.config import read_text_message
from servewright.backends.tfserving.embedded.flags import ServerFlags
from servewright.backends.tfserving.embedded.log import log
from servewright.backends.tfserving.embedded.rpc import Services
from servewright.backends.tfserving.embedded.status import invalid_argument

BIND_VARIABLE: Final = "SERVEWRIGHT_EMBEDDED_BIND"
_LAST_PORT: Final = 65535


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


def credentials(flags: ServerFlags) -> Any:
    """Return the server's TLS credentials, or ``None``; raise `StatusError` for a file that cannot be used."""
    if not flags.ssl_config_file:
        return None
    ssl = read_text_message("SSLConfig", flags.ssl_config_file)
    if not ssl.server_key or not ssl.server_cert:
        raise invalid_argument(f"{flags.ssl_config_file} has no server_key or no server_cert; both are PEM text")
    return grpc.ssl_server_credentials(
        [(ssl.server_key.encode(), ssl.server_cert.encode())],
        root_certificates=ssl.custom_ca.encode() or None,
        require_client_auth=bool(ssl.client_verify),
    )


async def start_grpc(flags: ServerFlags, services: Services, secret: Any) -> Any:
    """Return a running gRPC server; raise `StatusError` where it cannot listen."""
    options = [
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),
        *channel_arguments(flags.grpc_channel_arguments),
    ]
    server = grpc.aio.server(options=options)
    server.add_generic_rpc_handlers((services,))
    places = []
    if 0 < flags.port <= _LAST_PORT:
        places.append(f"{_bracketed(bind_address())}:{flags.port}")
    if flags.grpc_socket_path:
        places.append(f"unix:{flags.grpc_socket_path}")
    for place in places:
        try:
            bound = server.add_secure_port(place, secret) if secret else server.add_insecure_port(place)
        except RuntimeError as error:
            log("E", "server.cc", f"gRPC cannot listen at {place}: {error}")
            raise invalid_argument("Failed to BuildAndStart gRPC server") from error
        if not bound:
            raise invalid_argument("Failed to BuildAndStart gRPC server")
    await server.start()
    if 0 < flags.port <= _LAST_PORT:
        log("I", "server.cc", f"Running gRPC ModelServer at {places[0]} ...")
    elif flags.port:
        log("E", "server.cc", f"{flags.port} is no port; gRPC is not served")
    if flags.grpc_socket_path:
        log("I", "server.cc", f"Running gRPC ModelServer at UNIX socket {flags.grpc_socket_path} ...")
    return server


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address

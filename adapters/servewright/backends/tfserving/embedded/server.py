"""The server: its parts put together, started in the real one's order, and ended without a trace."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from typing import Any

from servewright import __version__, processors
from servewright.backends.tfserving.embedded import EMULATED_VERSION
from servewright.backends.tfserving.embedded.batching import BatchPool
from servewright.backends.tfserving.embedded.config import read_text_message
from servewright.backends.tfserving.embedded.flags import CommandLine, ServerFlags
from servewright.backends.tfserving.embedded.grpc_server import GrpcServer
from servewright.backends.tfserving.embedded.http import HttpServer
from servewright.backends.tfserving.embedded.listening import bind_address, channel_arguments, start_grpc, tls
from servewright.backends.tfserving.embedded.loading import Loader
from servewright.backends.tfserving.embedded.log import log
from servewright.backends.tfserving.embedded.metrics import Metrics
from servewright.backends.tfserving.embedded.models import ModelOptions, Models
from servewright.backends.tfserving.embedded.rest import DEFAULT_METRICS_PATH, RestApi, RestOptions
from servewright.backends.tfserving.embedded.rpc import RpcOptions, Services
from servewright.backends.tfserving.embedded.settings import Settings, batch_threads, read_settings
from servewright.backends.tfserving.embedded.status import StatusError
from servewright.backends.tfserving.embedded.workers import Workers

_DRAIN_S = 1.5  # a SIGTERM ends the server within two seconds


async def serve(line: CommandLine) -> None:
    """Serve until SIGTERM or SIGINT; raise `StatusError` where the server does not start."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    introduce(line)
    flags = line.flags
    running = _Running(flags, read_settings(flags))
    starting = asyncio.ensure_future(running.start())
    waiting = asyncio.ensure_future(ended.wait())
    await asyncio.wait({starting, waiting}, return_when=asyncio.FIRST_COMPLETED)
    try:
        if starting.done():
            starting.result()
            await waiting
        log("I", "servewright", "Ending: requests under way may finish")
    finally:
        waiting.cancel()
        starting.cancel()
        with suppress(asyncio.CancelledError, StatusError):
            await starting
        await running.stop()


def introduce(line: CommandLine) -> None:
    """Say in the log what this is, and which flags have no effect."""
    log(
        "I",
        "servewright",
        f"servewright embedded TF Serving stand-in {__version__} (behaves as tensorflow_model_server "
        f"{EMULATED_VERSION}; this is not TensorFlow Serving)",
    )
    for word in line.without_effect:
        log("W", "servewright", f"Flag without effect here: {word}")


class _Running:
    """What a server holds while it runs."""

    def __init__(self, flags: ServerFlags, settings: Settings) -> None:
        loop = asyncio.get_running_loop()
        self._flags, self._settings = flags, settings
        self._metrics = Metrics()
        cpus = processors.usable()
        # As many as requests may run at once: a model that batches in its own graph waits for all of them together.
        self._workers = Workers(max(4 * cpus, flags.grpc_max_threads + flags.rest_api_num_threads), "model", loop)
        self._background = Workers(4 * cpus, "load", loop)
        self._grpc: GrpcServer | None = None
        self._http: HttpServer | None = None
        self._config_polling: asyncio.Task[None] | None = None
        batching = settings.load.batching
        pool = BatchPool(batch_threads(batching), loop) if batching is not None else None
        loader = Loader(
            settings.load, workers=self._workers, load_workers=self._background, pool=pool, metrics=self._metrics
        )
        options = ModelOptions(
            poll_s=flags.file_system_poll_wait_seconds,
            max_load_retries=max(0, flags.max_num_load_retries),
            load_retry_interval_s=max(0, flags.load_retry_interval_micros) / 1e6,
            allow_labels_for_unavailable=flags.allow_version_labels_for_unavailable_models,
            platforms=settings.platforms,
        )
        self._models = Models(options, loader, self._background)
        if batching is not None:
            log("I", "servewright", f"Batching parameters in force: {_one_line(batching)}; threads: {pool_size(pool)}")

    async def start(self) -> None:
        """Load the models, and open the ports once all of them are there."""
        flags = self._flags
        secret = tls(flags)
        channel_arguments(flags.grpc_channel_arguments)
        await self._models.reload(self._settings.config)
        if flags.model_config_file and flags.model_config_file_poll_wait_seconds > 0:
            self._config_polling = asyncio.create_task(self._poll_config())
        options = RpcOptions(
            calls=flags.grpc_max_threads - 1,  # the real server keeps one thread to listen
            health=flags.enable_grpc_healthcheck_service,
            check_method=flags.enable_signature_method_name_check,
        )
        self._grpc = await start_grpc(flags, Services(self._models, self._metrics, options), secret)
        if flags.rest_api_port:
            await self._start_rest()

    async def _start_rest(self) -> None:
        flags = self._flags
        if flags.rest_api_port == flags.port:
            log(
                "E",
                "server.cc",
                "server_options.http_port cannot be same as grpc_port. Please use a different port for HTTP/REST API. "
                "Skipped exporting HTTP/REST API.",
            )
            return
        path = ""
        if flags.monitoring_config_file:
            try:
                prometheus = read_text_message("MonitoringConfig", flags.monitoring_config_file).prometheus_config
            except StatusError as error:
                log("E", "server.cc", f"REST is not served, because of the monitoring config: {error}")
                return
            path = (prometheus.path or DEFAULT_METRICS_PATH) if prometheus.enable else ""
        options = RestOptions(
            threads=max(1, flags.rest_api_num_threads - 1),  # the real server's event loop takes one
            timeout_ms=flags.rest_api_timeout_in_ms,
            cors=flags.rest_api_enable_cors_support,
            metrics_path=path,
            check_method=flags.enable_signature_method_name_check,
        )
        server = HttpServer(RestApi(self._models, self._metrics, options))
        try:
            await server.start(bind_address(), flags.rest_api_port)
        except (OSError, OverflowError) as error:
            log("E", "server.cc", f"Failed to start HTTP Server at localhost:{flags.rest_api_port}: {error}")
            return
        self._http = server
        log("I", "server.cc", f"Exporting HTTP/REST API at:localhost:{flags.rest_api_port} ...")

    async def _poll_config(self) -> None:
        flags = self._flags
        while True:
            await asyncio.sleep(flags.model_config_file_poll_wait_seconds)
            try:
                config = await self._background.run(
                    lambda: read_text_message("ModelServerConfig", flags.model_config_file)
                )
            except StatusError as error:
                log("E", "server.cc", f"Failed to read ModelServerConfig file: {error.message}")
                continue
            try:
                await self._models.reload(config)
            except StatusError as error:
                log("E", "server.cc", f"PollFilesystemAndReloadConfig failed to ReloadConfig: {error.message}")

    async def stop(self) -> None:
        """Close the ports, let requests under way finish for a moment, and stop everything."""
        if self._config_polling:
            self._config_polling.cancel()
        stops = []
        if self._grpc is not None:
            stops.append(self._grpc.stop(_DRAIN_S))
        if self._http is not None:
            stops.append(self._http.stop(_DRAIN_S))
        await asyncio.gather(*stops)
        await self._models.close()
        with suppress(OSError):
            if self._flags.grpc_socket_path:
                os.unlink(self._flags.grpc_socket_path)  # noqa: PTH108


def pool_size(pool: BatchPool | None) -> int:
    """Return how many batch threads there are."""
    return pool.workers.count if pool else 0


def _one_line(message: Any) -> str:
    return " ".join(str(message).split())

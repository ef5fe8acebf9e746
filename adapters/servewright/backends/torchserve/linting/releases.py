"""Since which release of TorchServe its keys and options exist, as the strings of each release's classes tell.

Compared: 0.8.2, 0.9.0, 0.10.0, 0.11.1 and 0.12.0, the last of each series. What is not named here is in all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from servewright.backends.torchserve import keys
from servewright.linting.linter import Context

RELEASES: Final = ("0.8", "0.9", "0.10", "0.11", "0.12")

PROPERTIES: Final[Mapping[str, str]] = {
    "use_env_allowed_urls": "0.9",
    "cpp_log_config": "0.10",
    "model_metrics_auto_detect": "0.10",
    "system_metrics_cmd": "0.10",
    "token_expiration_min": "0.10",
    "ts_open_inference_protocol": "0.10",
    "disable_token_authorization": "0.11",
    "enable_model_api": "0.11",
    "grpc_inference_address": "0.11",
    "grpc_inference_max_connection_age_grace_ms": "0.11",
    "grpc_inference_max_connection_age_ms": "0.11",
    "grpc_management_address": "0.11",
    "grpc_management_max_connection_age_grace_ms": "0.11",
    "grpc_management_max_connection_age_ms": "0.11",
    "ipex_gpu_enable": "0.11",
    "ts_header_key_sequence_end": "0.11",
    "ts_header_key_sequence_id": "0.11",
    "ts_header_key_sequence_start": "0.11",
    "default_startup_timeout": "0.12",
}
MODEL_CONFIG: Final[Mapping[str, str]] = {
    "continuousBatching": "0.9",
    "maxNumSequence": "0.10",
    "maxSequenceJobQueueSize": "0.10",
    "sequenceMaxIdleMSec": "0.10",
    "useVenv": "0.10",
    "asyncCommunication": "0.11",
    "sequenceBatching": "0.11",
    "sequenceTimeoutMSec": "0.12",
    "startupTimeout": "0.12",
}
OPTIONS: Final[Mapping[str, str]] = {
    "--cpp-log-config": "0.10",
    "--disable-token-auth": "0.11",
    "--dt": "0.11",
    "--enable-model-api": "0.11",
}


def too_new(name: str, since: Mapping[str, str], context: Context) -> str:
    """Return what to say of ``name`` where the target release has it not yet; empty where it has."""
    target = context.targets.get("torchserve", keys.DEFAULT_TARGET)
    first = since.get(name, RELEASES[0])
    return f"{name} exists since {first}, the target is {target}" if _number(first) > _number(target) else ""


def _number(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in release.split(".")[:2])

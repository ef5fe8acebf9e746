"""The flags of ``tensorflow_model_server``: their kinds, their defaults, and since which release they exist.

Source: ``main.cc`` and ``server.h`` of tensorflow/serving. A real server prints unknown flags and goes on, so the
spelling has to be checked here.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

Kind = Literal["bool", "int", "float", "string"]
_KINDS: Final[Mapping[Kind, tuple[type, ...]]] = MappingProxyType(
    {"bool": (bool,), "int": (int,), "float": (int, float), "string": (str,)}
)
_LARGEST: Final = 2**31 - 1
_PAIRS: Final = re.compile(r"[^=,]+=[^=,]*(,[^=,]+=[^=,]*)*")
# The last release of each series: images are tagged by whole releases, there is no tensorflow/serving:2.17.
LAST: Final = {
    "2.11": "2.11.1", "2.12": "2.12.2", "2.13": "2.13.1", "2.14": "2.14.1", "2.15": "2.15.1", "2.16": "2.16.1",
    "2.17": "2.17.1", "2.18": "2.18.0", "2.19": "2.19.1", "2.20": "2.20.0",
}  # fmt: skip
TARGETS: Final = tuple(LAST)
DEFAULT_TARGET: Final = "2.17"


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag: its kind, its default as text, and the first release that knows it."""

    kind: Kind
    default: str = ""
    since: str = "2.0"


FLAGS: Final[Mapping[str, Flag]] = MappingProxyType(
    {
        "port": Flag("int", "8500"),
        "grpc_socket_path": Flag("string"),
        "rest_api_port": Flag("int", "0"),
        "rest_api_num_threads": Flag("int", "4 x CPUs"),
        "rest_api_timeout_in_ms": Flag("int", "30000"),
        "rest_api_enable_cors_support": Flag("bool", "false"),
        "grpc_max_threads": Flag("int", "4 x CPUs"),
        "grpc_channel_arguments": Flag("string"),
        "enable_grpc_healthcheck_service": Flag("bool", "false", "2.15"),
        "enable_profiler": Flag("bool", "true"),
        "model_name": Flag("string", "default"),
        "model_base_path": Flag("string"),
        "model_config_file": Flag("string"),
        "model_config_file_poll_wait_seconds": Flag("int", "0"),
        "file_system_poll_wait_seconds": Flag("int", "1"),
        "allow_version_labels_for_unavailable_models": Flag("bool", "false"),
        "enable_batching": Flag("bool", "false"),
        "batching_parameters_file": Flag("string"),
        "enable_per_model_batching_parameters": Flag("bool", "false", "2.11"),
        "num_load_threads": Flag("int", "0"),
        "num_unload_threads": Flag("int", "0"),
        "max_num_load_retries": Flag("int", "5"),
        "load_retry_interval_micros": Flag("int", "60000000"),
        "flush_filesystem_caches": Flag("bool", "true"),
        "tensorflow_session_parallelism": Flag("int", "0"),
        "tensorflow_intra_op_parallelism": Flag("int", "0"),
        "tensorflow_inter_op_parallelism": Flag("int", "0"),
        "tensorflow_session_config_file": Flag("string", "", "2.8"),
        "per_process_gpu_memory_fraction": Flag("float", "0"),
        "platform_config_file": Flag("string"),
        "saved_model_tags": Flag("string", "serve"),
        "enable_model_warmup": Flag("bool", "true"),
        "num_request_iterations_for_warmup": Flag("int", "0"),
        "monitoring_config_file": Flag("string"),
        "ssl_config_file": Flag("string"),
        "use_alts_credentials": Flag("bool", "false"),
        "remove_unused_fields_from_bundle_metagraph": Flag("bool", "true"),
        "prefer_tflite_model": Flag("bool", "false"),
        "num_tflite_pools": Flag("int", "CPUs"),
        "num_tflite_interpreters_per_pool": Flag("int", "1"),
        "enable_signature_method_name_check": Flag("bool", "false"),
        "xla_cpu_compilation_enabled": Flag("bool", "false", "2.18"),
        "xla_gpu_compilation_enabled": Flag("bool", "false", "2.18"),
        "mixed_precision": Flag("string", "", "2.15"),
        "thread_pool_factory_config_file": Flag("string"),
        "skip_initialize_tpu": Flag("bool", "false", "2.15"),
        "enable_serialization_as_tensor_content": Flag("bool", "false", "2.19"),
        "version": Flag("bool", "false"),
    }
)


def release(target: str) -> tuple[int, ...]:
    """Return ``2.17`` as ``(2, 17)``, to compare."""
    return tuple(int(part) for part in target.split(".")[:2])


def complaint(name: str, value: object, *, target: str) -> tuple[str, str] | None:
    """Return why ``--name=value`` is wrong for a server of release ``target``, and what to do; or ``None``."""
    flag = FLAGS.get(name)
    if flag is None:
        close = difflib.get_close_matches(name, FLAGS, n=1)
        return (
            f"tensorflow_model_server has no flag --{name}; it would print it and go on",
            f"did you mean {close[0]!r}?" if close else "remove it",
        )
    if release(flag.since) > release(target):
        return f"--{name} exists since {flag.since}, the target is {target}", f"raise target.tfserving to {flag.since}"
    wanted = _KINDS[flag.kind]
    if not isinstance(value, wanted) or (flag.kind != "bool" and isinstance(value, bool)):
        return f"--{name} takes a {flag.kind}, not {value!r}", f"write a {flag.kind}"
    if isinstance(value, int) and not -_LARGEST - 1 <= value <= _LARGEST:
        return f"--{name} is a 32-bit number", f"write at most {_LARGEST}"
    if name == "grpc_channel_arguments" and not _PAIRS.fullmatch(str(value)):
        return f"the server dies of --{name}={value!r}", "write key=value,key=value"
    return None


def word(name: str, value: object) -> str:
    """Return ``--name=value``; the server does not read a value from the next word."""
    return f"--{name}={str(value).lower() if isinstance(value, bool) else value}"


def read(argv: Sequence[str]) -> dict[str, str]:
    """Return the flags of a command line by name; the last of a kind wins, as in the server."""
    found: dict[str, str] = {}
    for argument in argv:
        if argument.startswith("--"):
            name, sign, value = argument[2:].partition("=")
            if name in FLAGS:
                found[name] = value if sign else "true"
    return found

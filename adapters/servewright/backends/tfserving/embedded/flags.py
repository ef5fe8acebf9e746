"""The command line, read as the real server reads it: ``--name=value``, the last one wins, unknown words are shown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from servewright import processors
from servewright.backends.tfserving.embedded import EMULATED_VERSION
from servewright.backends.tfserving.flags import FLAGS, Flag, release

# Flags whose effect the stand-in does not have; the log names each that is set.
NOT_APPLICABLE = {
    "enable_profiler": "there is no profiler service",
    "flush_filesystem_caches": "the system's file cache is left alone",
    "num_unload_threads": "models are unloaded in threads of their own",
    "per_process_gpu_memory_fraction": "models run on the CPU unless the session config says otherwise",
    "prefer_tflite_model": "TensorFlow Lite models are not loaded",
    "num_tflite_pools": "TensorFlow Lite models are not loaded",
    "num_tflite_interpreters_per_pool": "TensorFlow Lite models are not loaded",
    "remove_unused_fields_from_bundle_metagraph": "the graph is not kept beside the session",
    "mixed_precision": "graphs are not rewritten",
    "skip_initialize_tpu": "there are no TPUs",
    "thread_pool_factory_config_file": "there are no thread pool factories",
    "use_alts_credentials": "ALTS exists on Google's cloud only",
}

_INTEGER = re.compile(r"\s*[+-]?[0-9]+")
_FLOAT = re.compile(r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_LONGEST_NUMBER = 20
_TRUE, _FALSE = ("true", "1"), ("false", "0")


def _threads() -> int:
    return 4 * processors.usable()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFlags:
    """The flags that have an effect here, with the real server's defaults."""

    port: int = 8500
    grpc_socket_path: str = ""
    rest_api_port: int = 0
    rest_api_num_threads: int = 0
    rest_api_timeout_in_ms: int = 30000
    rest_api_enable_cors_support: bool = False
    grpc_max_threads: int = 0
    grpc_channel_arguments: str = ""
    enable_grpc_healthcheck_service: bool = False
    model_name: str = "default"
    model_base_path: str = ""
    model_config_file: str = ""
    model_config_file_poll_wait_seconds: int = 0
    file_system_poll_wait_seconds: int = 1
    allow_version_labels_for_unavailable_models: bool = False
    enable_batching: bool = False
    batching_parameters_file: str = ""
    enable_per_model_batching_parameters: bool = False
    num_load_threads: int = 0
    max_num_load_retries: int = 5
    load_retry_interval_micros: int = 60_000_000
    tensorflow_session_parallelism: int = 0
    tensorflow_intra_op_parallelism: int = 0
    tensorflow_inter_op_parallelism: int = 0
    tensorflow_session_config_file: str = ""
    platform_config_file: str = ""
    saved_model_tags: str = "serve"
    enable_model_warmup: bool = True
    num_request_iterations_for_warmup: int = 0
    monitoring_config_file: str = ""
    ssl_config_file: str = ""
    use_alts_credentials: bool = False
    enable_signature_method_name_check: bool = False
    version: bool = False


@dataclass(frozen=True, slots=True)
class CommandLine:
    """What was read: flags, words that are none, and flags that were given but have no effect here."""

    flags: ServerFlags
    unknown: tuple[str, ...] = ()
    without_effect: tuple[str, ...] = ()


class FlagValueError(Exception):
    """A known flag with a value that it cannot have; the server prints how it is used and ends with 255."""


def parse(argv: Sequence[str]) -> CommandLine:
    """Read the words after the program's name; raise `FlagValueError`."""
    known = {name: flag for name, flag in FLAGS.items() if release(flag.since) <= release(EMULATED_VERSION)}
    own = {entry.name for entry in fields(ServerFlags)}
    values: dict[str, Any] = {"rest_api_num_threads": _threads(), "grpc_max_threads": _threads()}
    unknown, without_effect = [], []
    for word in argv:
        found = _read(word, known)
        if found is None:
            unknown.append(word)
            continue
        name, value = found
        if name in own:
            values[name] = value
        if name in NOT_APPLICABLE:
            without_effect.append(word)
    if unknown and unknown[0] == "--help":
        raise FlagValueError("--help")
    return CommandLine(ServerFlags(**values), tuple(unknown), tuple(without_effect))


def _read(word: str, known: dict[str, Flag]) -> tuple[str, Any] | None:
    if not word.startswith("--"):
        return None
    name, sign, text = word[2:].partition("=")
    flag = known.get(name)
    if flag is None:
        for other, candidate in known.items():  # the real server takes what follows a boolean's name for its value
            if candidate.kind == "bool" and word[2:].startswith(other):
                raise FlagValueError(f"Couldn't interpret value {word[2 + len(other) :]} for flag {other}.")
        return None
    if flag.kind == "bool":
        if not sign or text.lower() in _TRUE:
            return name, True
        if text.lower() in _FALSE:
            return name, False
        raise FlagValueError(f"Couldn't interpret value ={text} for flag {name}.")
    if not sign:
        return None
    if flag.kind == "string":
        return name, text
    pattern = _INTEGER if flag.kind == "int" else _FLOAT
    if not pattern.fullmatch(text):
        raise FlagValueError(f"Couldn't interpret value {text} for flag {name}.")
    if flag.kind == "float":
        return name, float(text)
    if len(text) > _LONGEST_NUMBER:
        raise FlagValueError(f"Couldn't interpret value {text} for flag {name}.")
    return name, int(text)


def usage() -> str:
    """Return how the program is used."""
    kinds = {"bool": "bool", "int": "int32", "float": "float", "string": "string"}
    lines = ["usage: tensorflow_model_server", "Flags:"]
    for name, flag in FLAGS.items():
        if release(flag.since) <= release(EMULATED_VERSION):
            note = f"not applicable: {NOT_APPLICABLE[name]}" if name in NOT_APPLICABLE else f"default {flag.default!r}"
            lines.append(f"\t--{name + '=' + (flag.default or repr('')):<48}\t{kinds[flag.kind]}\t{note}")
    return "\n".join(lines)

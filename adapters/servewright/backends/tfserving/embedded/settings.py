"""What the flags and the files they name come to: read and checked before TensorFlow is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from servewright import processors
from servewright.backends.tfserving import protos
from servewright.backends.tfserving.embedded.config import read_text_message, single_model
from servewright.backends.tfserving.embedded.flags import ServerFlags
from servewright.backends.tfserving.embedded.loading import LoadOptions
from servewright.backends.tfserving.embedded.status import invalid_argument

DEFAULT_POOL = "model_server_batch_threads"
_TENSORFLOW = "tensorflow"
_ADAPTER = "type.googleapis.com/tensorflow.serving.SavedModelBundleSourceAdapterConfig"


@dataclass(frozen=True, slots=True)
class Settings:
    """A server's settings; ``config`` is the ModelServerConfig to begin with."""

    config: Any
    load: LoadOptions
    platforms: frozenset[str]


def read_settings(flags: ServerFlags) -> Settings:
    """Return the settings, or raise `StatusError` for the first thing that is wrong, in the real server's order."""
    if flags.port == 0 and not flags.grpc_socket_path:
        raise invalid_argument(
            "At least one of server_options.grpc_port or server_options.grpc_socket_path must be set."
        )
    if flags.use_alts_credentials and flags.ssl_config_file:
        raise invalid_argument("Either use_alts_credentials must be false or ssl_config_file must be empty.")
    if not flags.model_base_path and not flags.model_config_file:
        raise invalid_argument("Both server_options.model_base_path and server_options.model_config_file are empty!")
    if flags.model_config_file:
        config = read_text_message("ModelServerConfig", flags.model_config_file)
    else:
        config = single_model(flags.model_name, flags.model_base_path)
    if flags.platform_config_file:
        load, platforms = _from_platforms(flags)
    else:
        load, platforms = _from_flags(flags), frozenset({_TENSORFLOW})
    _check_threads(flags)
    return Settings(config, load, platforms)


def _check_threads(flags: ServerFlags) -> None:
    """Refuse what ends the real server with a signal."""
    if flags.rest_api_port and flags.rest_api_num_threads < 1:
        raise invalid_argument(f"rest_api_num_threads must be positive; was {flags.rest_api_num_threads}")
    if flags.grpc_max_threads < 1:
        raise invalid_argument(f"grpc_max_threads must be positive; was {flags.grpc_max_threads}")


def _from_flags(flags: ServerFlags) -> LoadOptions:
    batching = None
    if flags.enable_batching:
        if flags.batching_parameters_file:
            batching = read_text_message("BatchingParameters", flags.batching_parameters_file)
        else:
            batching = protos.BatchingParameters(thread_pool_name={"value": DEFAULT_POOL})
    elif flags.batching_parameters_file:
        raise invalid_argument(
            "server_options.batching_parameters_file is set without setting server_options.enable_batching to true."
        )
    session = protos.ConfigProto()
    if flags.tensorflow_session_config_file:
        session = read_text_message("ConfigProto", flags.tensorflow_session_config_file)
    intra, inter = flags.tensorflow_intra_op_parallelism, flags.tensorflow_inter_op_parallelism
    both = flags.tensorflow_session_parallelism
    if intra > 0 and inter > 0 and both > 0:
        raise invalid_argument(
            "Either configure server_options.tensorflow_session_parallelism or "
            "(server_options.tensorflow_intra_op_parallelism, server_options.tensorflow_inter_op_parallelism) "
            "separately. You cannot configure all."
        )
    if intra <= 0 and inter <= 0:
        intra = inter = both
    session.intra_op_parallelism_threads, session.inter_op_parallelism_threads = intra, inter
    return LoadOptions(
        tags=tuple(flags.saved_model_tags.split(",")),
        session_config=session.SerializeToString(),
        batching=batching,
        per_model_batching=flags.enable_batching and flags.enable_per_model_batching_parameters,
        warm_up=flags.enable_model_warmup,
        warm_up_iterations=max(1, flags.num_request_iterations_for_warmup),
    )


def _from_platforms(flags: ServerFlags) -> tuple[LoadOptions, frozenset[str]]:
    """Read a platform config file: it replaces every flag of batching, sessions, tags and warm-up."""
    platforms = read_text_message("PlatformConfigMap", flags.platform_config_file).platform_configs
    if _TENSORFLOW not in platforms:
        return LoadOptions(), frozenset(platforms)
    source = platforms[_TENSORFLOW].source_adapter_config
    if source.type_url != _ADAPTER:
        raise invalid_argument(
            f"{flags.platform_config_file}: no source adapter for {source.type_url or 'an empty type'}"
        )
    adapter = protos.SavedModelBundleSourceAdapterConfig.FromString(source.value)
    bundle = adapter.legacy_config
    iterations = bundle.model_warmup_options.num_request_iterations
    load = LoadOptions(
        tags=tuple(bundle.saved_model_tags) or ("serve",),
        session_config=bundle.session_config.SerializeToString(),
        batching=bundle.batching_parameters if bundle.HasField("batching_parameters") else None,
        per_model_batching=bundle.enable_per_model_batching_params,
        warm_up=bundle.enable_model_warmup,
        warm_up_iterations=max(1, iterations.value),
    )
    return load, frozenset(platforms)


def batch_threads(parameters: Any) -> int:
    """Return the size of the one pool of batch threads; raise `StatusError` unless it is positive."""
    if not parameters.HasField("num_batch_threads"):
        return processors.usable()
    threads = int(parameters.num_batch_threads.value)
    if threads < 1:
        raise invalid_argument(f"num_batch_threads must be positive; was {threads}")
    return threads

"""GetModelStatus, GetModelMetadata and HandleReloadConfigRequest."""

from __future__ import annotations

from typing import Any

from servewright.backends.tfserving import protos
from servewright.backends.tfserving.embedded.metrics import Metrics
from servewright.backends.tfserving.embedded.models import Models
from servewright.backends.tfserving.embedded.states import VersionState
from servewright.backends.tfserving.embedded.status import invalid_argument, not_found

SIGNATURE_FIELD = "signature_def"


def model_status(models: Models, spec: Any) -> Any:
    """Return the GetModelStatusResponse for a ModelSpec; a label is not looked at. Raises `StatusError`."""
    states = models.states.of(spec.name)
    if spec.HasField("version"):
        version = spec.version.value
        if version not in states:
            raise not_found(f"Could not find version {version} of model {spec.name}")
        states = {version: states[version]}
    elif not states:
        raise not_found(f"Could not find any versions of model {spec.name}")
    response = protos.GetModelStatusResponse()
    for version, entry in states.items():
        response.model_version_status.add(version=version, state=int(entry.state), status=_status(entry))
    return response


def _status(entry: VersionState) -> Any:
    error = entry.error
    if error is None:
        return protos.StatusProto()
    return protos.StatusProto(error_code=int(error.code), error_message=error.message)


def model_metadata(models: Models, spec: Any, fields: tuple[str, ...] = (SIGNATURE_FIELD,)) -> Any:
    """Return the GetModelMetadataResponse for a ModelSpec; raise `StatusError`."""
    if not fields:
        raise invalid_argument("GetModelMetadataRequest must specify at least one metadata_field")
    for field in fields:
        if field != SIGNATURE_FIELD:
            raise invalid_argument(f"Metadata field {field} is not supported")
    servable = models.find(spec)
    signatures = protos.SignatureDefMap()
    for name, signature in servable.signatures.items():
        signatures.signature_def[name].CopyFrom(signature.message)
    response = protos.GetModelMetadataResponse()
    response.model_spec.name = servable.name
    response.model_spec.version.value = servable.version
    response.metadata[SIGNATURE_FIELD].Pack(signatures)
    return response


async def reload_config(models: Models, metrics: Metrics, request: Any) -> Any:
    """Apply a ReloadConfigRequest and return its response; raise `StatusError`."""
    before = {name: metrics.value(name) for name in request.metric_names}
    if request.config.WhichOneof("config") != "model_config_list":
        raise invalid_argument(
            "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is currently "
            "supported"
        )
    await models.reload(request.config)
    response = protos.ReloadConfigResponse()
    response.status.SetInParent()
    for name in before:
        response.metric.add(name=name, int64_value_increase=metrics.value(name) - before[name])
    return response

"""gRPC lines, and sequences of them on one server."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping, Sequence
from typing import Any

import grpc
from google.protobuf import json_format

from integration.conformance import rest_group
from integration.conformance.equality import same_message, same_text
from integration.conformance.recordings import Line
from integration.conformance.results import Result, differs, equal, left_out
from integration.conformance.servers import Server
from servewright.backends.tfserving import protos

METHODS = {
    "Predict": (protos.PREDICT, "PredictRequest", "PredictResponse"),
    "Classify": (protos.CLASSIFY, "ClassificationRequest", "ClassificationResponse"),
    "Regress": (protos.REGRESS, "RegressionRequest", "RegressionResponse"),
    "MultiInference": (protos.MULTI_INFERENCE, "MultiInferenceRequest", "MultiInferenceResponse"),
    "GetModelMetadata": (protos.GET_MODEL_METADATA, "GetModelMetadataRequest", "GetModelMetadataResponse"),
    "GetModelStatus": (protos.GET_MODEL_STATUS, "GetModelStatusRequest", "GetModelStatusResponse"),
    "HandleReloadConfigRequest": (protos.RELOAD_CONFIG, "ReloadConfigRequest", "ReloadConfigResponse"),
}


class Asker:
    """A channel to one server."""

    def __init__(self, server: Server) -> None:
        self.server = server
        options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        self.channel = grpc.insecure_channel(f"{server.host}:{server.place.grpc_port}", options=options)

    def close(self) -> None:
        """Close the channel."""
        self.channel.close()

    def __call__(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """Send a recorded request; return code, details and response as they are recorded."""
        method = raw["method"]
        if method.startswith("/"):
            return self._plain(method, base64.b64decode(raw.get("request_b64") or ""), raw)
        path, _, response = METHODS[method]
        answer = self._plain(path, request_bytes(raw, self.server.place.fill), raw)
        if answer["grpc_code"] == "OK":
            try:
                message = protos.SCHEMA[response].FromString(base64.b64decode(answer["response"]))
            except Exception as error:  # noqa: BLE001  (whatever the client's parser says)
                return {"grpc_code": "INTERNAL", "details": f"Exception deserializing response! {error}"}
            answer["response"] = as_dict(message)
        return answer

    def _plain(self, path: str, data: bytes, raw: Mapping[str, Any]) -> dict[str, Any]:
        call = self.channel.unary_unary(path)
        metadata = tuple((str(name), str(value)) for name, value in raw.get("metadata") or ())
        try:
            answer = call(data, timeout=raw.get("deadline_s", 15), metadata=metadata or None)
        except grpc.RpcError as error:
            return {"grpc_code": error.code().name, "details": error.details() or ""}
        return {"grpc_code": "OK", "details": "", "response": base64.b64encode(answer).decode()}


def request_bytes(raw: Mapping[str, Any], fill: Any) -> bytes:
    """Return the bytes of a recorded request."""
    if "request_b64" in raw:
        return base64.b64decode(raw["request_b64"])
    name = METHODS[raw["method"]][1]
    message = json_format.ParseDict(_filled(raw.get("request") or {}, fill), protos.SCHEMA[name](),
                                    descriptor_pool=protos.SCHEMA.pool)  # fmt: skip
    data: bytes = message.SerializeToString()
    return data


def _filled(value: Any, fill: Any) -> Any:
    if isinstance(value, str):
        return fill(value)
    if isinstance(value, dict):
        return {key: _filled(inner, fill) for key, inner in value.items()}
    return [_filled(inner, fill) for inner in value] if isinstance(value, list) else value


def as_dict(message: Any) -> Any:
    """Return a message as the recordings hold it."""
    return json_format.MessageToDict(message, preserving_proto_field_name=True, descriptor_pool=protos.SCHEMA.pool)


def check(asker: Asker, line: Line) -> Result:
    """Ask what a line asked, and compare."""
    if not line.expect.get("grpc_code"):
        return left_out("grpc", line.id, "nothing recorded")
    why = compare(asker(line.raw), line.expect, asker, line.raw.get("approx"))
    return differs("grpc", line.id, why) if why else equal("grpc", line.id)


def compare(answer: Mapping[str, Any], expect: Mapping[str, Any], asker: Asker, approx: float | None = None) -> str:
    """Return what differs between an answer and the recorded one, or nothing."""
    fill = asker.server.place.fill
    if answer["grpc_code"] != expect["grpc_code"]:
        return f"{answer['grpc_code']} {answer['details']!r} instead of {expect['grpc_code']} {expect.get('details')!r}"
    wanted = fill(expect.get("details") or "")
    if not same_text(answer["details"], wanted):
        return f"{answer['details']!r} instead of {wanted!r}"
    if "response" in expect and not same_message(answer.get("response"), _filled(expect["response"], fill), approx):
        return f"{str(answer.get('response'))[:400]} instead of {str(expect['response'])[:400]}"
    return ""


def ask_until(asker: Asker, raw: Mapping[str, Any], states: Sequence[str] | None, within_s: float = 15) -> Any:
    """Ask once, or again and again until the versions are in these states."""
    end = time.monotonic() + within_s
    while True:
        answer = asker(raw)
        if not states:
            return answer
        response = answer.get("response")
        found = response.get("model_version_status", []) if isinstance(response, dict) else []
        if sorted(entry.get("state", "") for entry in found) == sorted(states) or time.monotonic() > end:
            return answer
        time.sleep(0.1)


def check_sequence(asker: Asker, lines: Sequence[Line]) -> list[Result]:
    """Ask the steps of a sequence in their order."""
    results = []
    for line in lines:
        raw = line.raw
        if "method" not in raw:
            time.sleep(raw.get("sleep_s") or raw.get("sleep") or 0)
            continue
        if raw.get("transport") == "rest" or "path" in raw:
            answer = rest_group.check(asker.server, line, partial=True)
            results.append(Result("grpc", line.id, answer.verdict, answer.why))
            continue
        why = compare(ask_until(asker, raw, raw.get("until_states")), line.expect, asker, raw.get("approx"))
        results.append(differs("grpc", line.id, why) if why else equal("grpc", line.id))
    return results

"""Batching lines: requests that start together, and which of them were computed together."""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from integration.conformance import rest_group
from integration.conformance.equality import same_message, same_text
from integration.conformance.grpc_group import METHODS, Asker, as_dict, request_bytes
from integration.conformance.recordings import Line
from integration.conformance.results import Result, differs, equal, left_out
from servewright.backends.tfserving import protos

_METRICS = "/monitoring/prometheus/metrics"
_COUNTED = re.compile(r":tensorflow:serving:batching_session:([a-z_]+)(\{.*\})? (\S+)")


def check(asker: Asker, line: Line) -> Result:
    """Send the requests as they were sent, and compare groups, results and counters."""
    expect = line.expect
    if not expect["same_in_all_runs"]:
        return left_out("batching", line.id, "the grouping depends on timing")
    run = expect["runs"][0]
    if "server_ended" in run:
        return left_out("batching", line.id, f"the real server ends: {run['server_ended']}")
    before = _counters(asker)
    asked = requests(line.raw["requests"])
    answers = _send(asker, line.raw, asked)
    why = _compare(line, run, asked, answers, before, asker)
    return differs("batching", line.id, why) if why else equal("batching", line.id)


def requests(recorded: Any) -> list[dict[str, Any]]:
    """Return every request; each row gets a number of its own, so that a batch's total tells who was in it."""
    if isinstance(recorded, dict):
        recorded = [recorded["each"]] * recorded["times"]
    asked, value = [], 1
    for entry in recorded:
        own = dict(entry)
        if "inputs" not in own:
            own["values"] = list(range(value, value + own["rows"]))
            value += own["rows"]
        asked.append(own)
    return asked


def _message(asker: Asker, own: Mapping[str, Any]) -> bytes:
    if "inputs" in own:
        raw = {"method": "Predict", "request": {"model_spec": {"name": own["model"]}, "inputs": own["inputs"]}}
        return request_bytes(raw, asker.server.place.fill)
    message = protos.PredictRequest(
        model_spec={"name": own["model"]},
        inputs={"x": {"dtype": 9, "tensor_shape": {"dim": [{"size": own["rows"]}]}, "int64_val": own["values"]}},
        output_filter=own.get("filter", ()),
    )
    data: bytes = message.SerializeToString()
    return data


def _send(asker: Asker, raw: Mapping[str, Any], asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    answers: list[dict[str, Any]] = [{} for _ in asked]
    messages = [_message(asker, own) for own in asked]
    over_rest = raw.get("transport") == "rest"

    def one(at: int) -> None:
        if over_rest:
            answers[at] = _over_rest(asker, asked[at])
        else:
            answers[at] = asker._plain(METHODS["Predict"][0], messages[at], raw)

    asker({"method": "GetModelStatus", "request": {"model_spec": {"name": "-"}}})  # the channel is open after this
    threads = [threading.Thread(target=one, args=(at,)) for at in range(len(asked))]
    for at, thread in enumerate(threads):
        thread.start()
        if raw.get("stagger_ms"):
            time.sleep(raw["stagger_ms"] / 1000)
        elif raw.get("stagger_first_ms") and at == 0:
            time.sleep(raw["stagger_first_ms"] / 1000)
    for thread in threads:
        thread.join()
    for answer in answers:
        if answer["grpc_code"] == "OK" and isinstance(answer["response"], str):
            message = protos.PredictResponse.FromString(base64.b64decode(answer["response"]))
            answer["response"] = as_dict(message)
    return answers


def _over_rest(asker: Asker, own: Mapping[str, Any]) -> dict[str, Any]:
    body = json.dumps({"inputs": own["values"]})
    raw = {"method": "POST", "path": f"/v1/models/{own['model']}:predict", "body": body}
    answer = rest_group.ask(asker.server, raw)
    if answer.status != 200:
        return {"grpc_code": str(answer.status), "details": answer.body.decode(errors="replace")}
    outputs = json.loads(answer.body)["outputs"]
    named = {name: {"int64_val": [str(value) for value in values]} for name, values in outputs.items()}
    return {"grpc_code": "OK", "details": "", "response": {"outputs": named}}


def _compare(
    line: Line, run: Mapping[str, Any], asked: list[dict[str, Any]], answers: list[dict[str, Any]],
    before: Counter[str], asker: Asker,
) -> str:  # fmt: skip
    found = Counter(f"{a['grpc_code']}: {a['details']}" if a["details"] else a["grpc_code"] for a in answers)
    wanted = Counter(run["results"])
    if sorted(found.values()) != sorted(wanted.values()) or not all(
        any(same_text(one, other) and wanted[one] == count for one in wanted) for other, count in found.items()
    ):
        return f"results {dict(found)} instead of {dict(wanted)}"
    if "batches" in run:
        staggered = any(isinstance(batch["requests"], list) for batch in run["batches"])
        ours = _groups(asked, answers, by_index=staggered)
        theirs = sorted(json.dumps(batch, sort_keys=True) for batch in run["batches"])
        if not any("model" in batch for batch in run["batches"]):
            for batch in ours:
                batch.pop("model", None)
        if sorted(json.dumps(batch, sort_keys=True) for batch in ours) != theirs:
            return f"batches {ours} instead of {run['batches']}"
    for answer, other in zip(answers, run.get("answers", ()), strict=False):
        outputs = answer.get("response", {}).get("outputs") if answer["grpc_code"] == "OK" else None
        if not same_message(outputs, other.get("outputs")):
            return f"{outputs} instead of {other.get('outputs')}"
    return _compare_counters(run.get("counters") or {}, before, asker)


def _groups(asked: list[dict[str, Any]], answers: list[dict[str, Any]], *, by_index: bool) -> list[dict[str, Any]]:
    """Return the batches, told apart by model, size and total of each computed row."""
    batches: dict[tuple[str, str, str], dict[str, Any]] = {}
    for at, (own, answer) in enumerate(zip(asked, answers, strict=True)):
        if answer["grpc_code"] != "OK":
            continue
        outputs = answer["response"]["outputs"]
        sizes, totals = _numbers(outputs["size"]), _numbers(outputs["total"])
        for size, total in zip(sizes, totals, strict=True):
            batch = batches.setdefault((own["model"], size, total), {"asked": 0, "members": set()})
            batch["asked"] += 1
            batch["members"].add(at)
    result = []
    for (model, size, _), batch in batches.items():
        members = sorted(batch["members"])
        result.append(
            {
                "computed_rows": int(size),
                "asked_rows": batch["asked"],
                "requests": members if by_index else len(members),
                "model": model,
            }
        )
    return result


def _numbers(tensor: Mapping[str, Any]) -> list[str]:
    return [str(value) for value in tensor.get("int64_val") or tensor.get("int_val") or ()]


def _counters(asker: Asker) -> Counter[str]:
    answer = rest_group.ask(asker.server, {"method": "GET", "path": _METRICS})
    found: Counter[str] = Counter()
    for row in answer.body.decode(errors="replace").splitlines():
        counted = _COUNTED.fullmatch(row)
        if counted and "_bucket" not in counted[1]:
            labels = "" if counted[2] in (None, "{}") else counted[2]
            found[counted[1] + labels] += int(float(counted[3]))
    return found


def _compare_counters(expected: Mapping[str, Any], before: Counter[str], asker: Asker) -> str:
    wanted = {
        key: value for key, value in expected.items() if not key.endswith("_buckets") and "latency_sum" not in key
    }
    if not wanted:
        return ""
    end = time.monotonic() + 2
    while True:
        after = _counters(asker)
        grown = {key: after[key] - before[key] for key in after if after[key] != before[key]}
        ours = {key: value for key, value in grown.items() if "latency_sum" not in key}
        if ours == wanted:
            return ""
        if time.monotonic() > end:
            return f"counters {ours} instead of {wanted}"
        time.sleep(0.1)

"""A TorchServe handler for any model that takes tensors and gives tensors: numbers in, numbers out.

One forward serves a whole batch, and a bad request fails alone. This file stands alone in an archive: it needs
numpy, torch and ts, and onnxruntime for an ONNX model. Its forms of requests and answers are in ``docs/handlers.md``.

TorchServe refuses a handler module with more than one class, so what belongs to a request is a plain mapping here,
and errors are TorchServe's own ``PredictionException``, which carries an HTTP status.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import logging
import math
import struct
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from http import HTTPStatus
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import torch
from ts.utils.util import PredictionException

JSON = "application/json"
NPY = "application/x-npy"
RAW = "application/octet-stream"
FRAME = "application/x-safetensors"
FORM = "application/x-www-form-urlencoded"
ERROR_MAGIC = b"SERVEWRIGHT-ERROR\n"  # what an error over gRPC begins with: no other answer can begin so

# What may be said about a payload: the field's name over gRPC and in multipart forms, and the header's over HTTP.
ABOUT = {
    "accept": "accept",
    "content_type": "content-type",
    "dtype": "x-tensor-dtype",
    "name": "x-tensor-name",
    "shape": "x-tensor-shape",
    "top_k": "x-top-k",
}
FRAME_DTYPES = {
    "BOOL": "bool", "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64",
    "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64",
    "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
}  # fmt: skip
FRAME_CODES = {name: code for code, name in FRAME_DTYPES.items()}

Tensors = dict[str, np.ndarray]
Specs = Sequence[Mapping[str, Any]]  # each: name, dtype, shape (a list, with None for any size; or None: any rank)
Model = Callable[[Tensors], Tensors]
Takes = tuple[Sequence[str], Sequence[str]]  # the names of a module's parameters, and which can be given by name

logger = logging.getLogger(__name__)


class TensorHandler:
    """Serve one model; every request carries any number of rows."""

    def initialize(self, context: Any) -> None:
        """Load the model that ``model-config.yaml`` names; a ValueError here tells what is wrong with the archive."""
        config = (context.model_yaml_config or {}).get("servewright")
        if not config:
            raise ValueError("model-config.yaml has no section 'servewright'; render it with servewright")
        signature, self.options = config["signature"], config.get("options") or {}
        self.inputs: Specs = signature["inputs"]
        self.outputs: Specs = signature["outputs"]
        for spec in (*self.inputs, *self.outputs):
            if spec["dtype"] not in FRAME_CODES:
                raise ValueError(f"{spec['name']!r} is of dtype {spec['dtype']}, which this handler cannot carry")
        self.folder = Path(context.system_properties["model_dir"])
        self.labels = read_labels(self.folder, self.options, self.outputs[0])
        self.default_top_k = 0  # tensors unless a request asks for classes
        device = chosen_device(config["model"], self.options, context.system_properties.get("gpu_id"))
        if self.options.get("threads"):
            torch.set_num_threads(self.options["threads"])
        self.model = load_model(self.folder, config["model"], self.options, device, self.inputs, self.outputs)

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[bytes]:
        """Answer every request of a batch, each with its own outcome; nothing is raised."""
        headers = [context.get_all_request_header(index) for index in range(len(data))]
        about: dict[int, dict[str, str]] = {}
        batch: dict[int, Tensors] = {}
        outcomes: dict[int, Tensors | PredictionException] = {}
        for index, fields in enumerate(data):
            try:
                payload, about[index] = request_parts(fields, headers[index])
                batch[index] = fitted(self.decode(payload, about[index]), self.inputs)
            except Exception as error:  # noqa: BLE001, PERF203  (one request's failure must not be its neighbours')
                outcomes[index] = as_failure(error)
        for group in groups(self.collate(batch), self.inputs):
            outcomes |= self.infer(group)
        answers = []
        for index in range(len(data)):
            # Over gRPC, TorchServe gives each field's content type and no header at all.
            over_http = any(isinstance(value, str) for value in headers[index].values())
            status, described, body = self.answer(outcomes[index], about.get(index, {}), over_http=over_http)
            if status != HTTPStatus.OK:
                context.set_response_status(code=status.value, phrase=status.phrase, idx=index)
            for name, value in described.items():
                context.set_response_header(index, name, value)
            answers.append(body)
        return answers

    def decode(self, payload: Any, about: Mapping[str, str]) -> Tensors:
        """Return the tensors of one request."""
        return decode_tensors(payload, about, self.inputs)

    def collate(self, batch: dict[int, Tensors]) -> dict[int, Tensors]:
        """Make the requests of one batch fit each other where that changes no answer; numbers stay as they are."""
        return batch

    def infer(self, batch: dict[int, Tensors]) -> dict[int, Tensors | PredictionException]:
        """Run one forward over all rows; if it fails, each request alone, so that only the culprit fails."""
        rows = [len(next(iter(tensors.values()))) for tensors in batch.values()]
        try:
            outputs = kept_rows(self.model(joined(list(batch.values()))), self.outputs, sum(rows))
        except PredictionException as error:  # the model does not do what its signature says: nobody's culprit
            return dict.fromkeys(batch, error)
        except Exception as error:  # noqa: BLE001  (whatever a model raises)
            if len(batch) == 1:
                return dict.fromkeys(batch, as_failure(error))
            logger.warning("a batch of %d requests failed (%s); trying them one by one", len(batch), error)
            return {i: outcome for i, tensors in batch.items() for outcome in self.infer({i: tensors}).values()}
        ends = list(accumulate(rows))
        return {
            index: {name: array[end - count : end] for name, array in outputs.items()}
            for index, count, end in zip(batch, rows, ends)
        }

    def answer(
        self, outcome: Tensors | PredictionException, about: Mapping[str, str], *, over_http: bool
    ) -> tuple[HTTPStatus, dict[str, str], bytes]:
        """Return status, headers and body for what became of a request."""
        try:
            if isinstance(outcome, PredictionException):
                raise outcome
            return HTTPStatus.OK, *self.encode(outcome, about, over_http=over_http)
        except Exception as error:  # noqa: BLE001  (one request's failure must not become its neighbours')
            failure = as_failure(error)
            status = HTTPStatus(failure.error_code)
            return status, {"content-type": JSON}, error_body(status, failure.message, over_http=over_http)

    def encode(self, outputs: Tensors, about: Mapping[str, str], *, over_http: bool) -> tuple[dict[str, str], bytes]:
        """Return headers and body of an answer, in the first form of ``Accept`` that can hold it."""
        possible = (JSON, FRAME, NPY, RAW) if len(outputs) == 1 and over_http else (JSON, FRAME)
        form = next((form for form in accepted(about.get("accept", "")) if form in possible), None)
        if form is None:
            raise PredictionException(
                f"Accept is {about['accept']!r}, but this answer can be {', '.join(possible)}",
                HTTPStatus.NOT_ACCEPTABLE,
            )
        if form == JSON:
            top_k = asked_top_k(about, self.default_top_k)
            scores = outputs[self.outputs[0]["name"]]
            return {"content-type": JSON}, to_json(
                {"predictions": classes(scores, top_k, self.labels, softmax=self.options.get("softmax", True))}
                if top_k
                else {"outputs": {name: array.tolist() for name, array in outputs.items()}}
            )
        if form == FRAME:
            return {"content-type": FRAME}, to_frame(outputs)
        return to_single(form, *next(iter(outputs.items())))


# Requests


def bad_request(message: str) -> PredictionException:
    """Return the error of a request that cannot be used."""
    return PredictionException(message, HTTPStatus.BAD_REQUEST)


def request_parts(fields: Mapping[str, Any], headers: Mapping[str, Any]) -> tuple[Any, dict[str, str]]:
    """Return a request's payload, and what is said about it in headers or in fields beside it."""
    lowered = {name.lower(): value for name, value in headers.items() if isinstance(value, str)}
    if lowered.get("content-type", "").startswith(FORM):  # the body has been torn apart at every '&' and '='
        raise bad_request(
            f"the Content-Type {FORM} (the default of some clients) damages payloads; send {JSON} or {RAW}"
        )
    payload = "body" if "body" in fields else "data"
    if payload not in fields:
        raise bad_request(
            f"no payload: send a body, or over gRPC and in multipart forms a field 'data'; got {list(fields)}"
        )
    if unknown := sorted(set(fields) - {payload, *ABOUT}):
        raise bad_request(f"unknown fields {unknown}; beside {payload!r} there may be {list(ABOUT)}")
    about = {key: lowered[header] for key, header in ABOUT.items() if header in lowered}
    part = headers.get(payload)
    about["content_type"] = part.get("content-type", "") if isinstance(part, dict) else ""  # not the whole form's
    for key in ABOUT:
        if key in fields:
            about[key] = text_of(fields[key], key)
    about["content_type"] = about["content_type"].partition(";")[0].strip().lower()
    if about["content_type"] == JSON:
        return parsed(fields[payload]), about
    return fields[payload], about


def parsed(payload: Any) -> Any:
    """Return the content of JSON; what TorchServe could parse came parsed."""
    try:
        return json.loads(payload) if isinstance(payload, (bytes, bytearray)) else payload
    except (ValueError, RecursionError) as error:
        raise bad_request(f"the payload is not JSON: {error}") from error


def text_of(value: Any, what: str) -> str:
    """Return text that came as UTF-8 or as text."""
    try:
        return value.decode() if isinstance(value, (bytes, bytearray)) else str(value)
    except UnicodeDecodeError as error:
        raise bad_request(f"{what} is not UTF-8") from error


def decode_tensors(payload: Any, about: Mapping[str, str], specs: Specs) -> Tensors:
    """Return the tensors of a payload in any of the four forms."""
    form = about["content_type"] or (RAW if "dtype" in about else JSON)
    if form == JSON:
        return columns_of(parsed(payload), specs)
    if form not in (FRAME, RAW, NPY) or not isinstance(payload, (bytes, bytearray)):
        raise PredictionException(
            f"Content-Type {form!r} is not one of {JSON}, {NPY}, {RAW}, {FRAME}", HTTPStatus.UNSUPPORTED_MEDIA_TYPE
        )
    if form == FRAME:
        return from_frame(payload)
    name = unquote(about["name"]) if "name" in about else only(specs)
    if form == NPY:
        return {name: from_npy(payload)}
    if "dtype" not in about or "shape" not in about:
        raise bad_request("raw bytes need X-Tensor-Dtype and X-Tensor-Shape (over gRPC the fields dtype and shape)")
    return {name: from_raw(memoryview(payload), about["dtype"], parsed_sizes(about["shape"]))}


def only(specs: Specs) -> str:
    """Return the one input's name, where a form holds a single tensor without a name."""
    if len(specs) != 1:
        raise bad_request(f"the model has {len(specs)} inputs, {[spec['name'] for spec in specs]}: name them")
    return str(specs[0]["name"])


def columns_of(body: Any, specs: Specs) -> Tensors:
    """Return the tensors of a JSON body: ``{"inputs": ...}``, ``{"instances": [...]}`` or a bare nested list."""
    columns = body
    if isinstance(body, dict):
        if len(body) != 1 or not body.keys() <= {"inputs", "instances"}:
            raise bad_request(f'expected {{"inputs": ...}} or {{"instances": [...]}}, got the keys {sorted(body)[:9]}')
        ((kind, columns),) = body.items()
        if kind == "instances" and isinstance(columns, list) and columns and isinstance(columns[0], dict):
            columns = turned(columns)
        elif kind == "instances" and not isinstance(columns, list):
            raise bad_request('"instances" is not a list of rows')
    if not isinstance(columns, dict):
        columns = {only(specs): columns}
    return {name: from_lists(name, values) for name, values in columns.items()}


def turned(rows: list[Any]) -> dict[str, list[Any]]:
    """Turn a list of rows, each by input name, into one column for each name."""
    names = rows[0].keys()
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or row.keys() != names:
            raise bad_request(
                f"row {number} of the instances does not name the inputs that row 0 names, {sorted(names)}"
            )
    return {name: [row[name] for row in rows] for name in names}


def from_lists(name: str, values: Any) -> np.ndarray:
    """Return nested lists of numbers as an array."""
    try:
        if isinstance(values, list) and holds_numbers(values):
            return np.asarray(values)
    except (ValueError, RecursionError) as error:
        raise bad_request(f"input {name!r} is ragged or too deep") from error
    raise bad_request(f"input {name!r} is not a nested list of numbers")


def holds_numbers(values: list[Any]) -> bool:
    """Whether only numbers are nested here: numpy would widen every element to the longest text among them."""
    kinds = set(map(type, values))
    return all(map(holds_numbers, values)) if kinds == {list} else kinds <= {int, float, bool}


def from_npy(data: bytes | bytearray) -> np.ndarray:
    """Return a ``.npy`` file's array; its header is believed only as far as the data reaches."""
    try:
        file = BytesIO(data[:20_000])  # numpy refuses headers beyond 10,000
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_column, dtype = read(file)
        shape = sizes(shape)
        if dtype.name not in FRAME_CODES:
            raise ValueError(f"dtype {dtype}")
    except Exception as error:  # numpy's reader raises whatever Python's own parser does
        raise bad_request(f"the payload is not a .npy file: {error}") from error
    array = viewed(memoryview(data)[file.tell() :], dtype, shape)
    return array.reshape(shape[::-1]).T if by_column else array


def sizes(values: Iterable[Any]) -> tuple[int, ...]:
    """Return a shape that can be used, or raise ValueError."""
    shape = tuple(values)
    if len(shape) > 32 or not all(type(size) is int and 0 <= size < 2**62 for size in shape):
        raise ValueError(f"{shape} is not a shape")
    return shape


def parsed_sizes(text: str) -> tuple[int, ...]:
    """Return the shape that is written as ``2,1,8,8``."""
    try:
        return sizes(int(part) for part in text.split(",")) if text.strip() else ()
    except ValueError as error:
        raise bad_request(f"the shape {text[:99]!r} is not a list of sizes such as 2,1,8,8") from error


def from_raw(data: memoryview, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return little-endian bytes as an array; bfloat16, which numpy does not have, comes as float32."""
    if dtype not in FRAME_CODES:
        raise bad_request(f"dtype {dtype[:99]!r} is not one of {', '.join(FRAME_CODES)}")
    if dtype == "bfloat16":
        return (viewed(data, np.dtype("<u2"), shape).astype("uint32") << np.uint32(16)).view("float32")
    return viewed(data, np.dtype(dtype).newbyteorder("<"), shape)


def viewed(data: memoryview, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray:
    """Return bytes as an array without a copy; they must be as many as the shape takes."""
    expected = math.prod(shape) * dtype.itemsize
    if expected != len(data):
        raise bad_request(f"{dtype} of shape {list(shape)} takes {expected} bytes, but {len(data)} came")
    return np.frombuffer(data, dtype).reshape(shape)


def from_frame(data: bytes | bytearray) -> Tensors:
    """Return the tensors of a safetensors frame: 8 bytes of header length, a JSON header, the arrays' bytes."""
    try:
        (length,) = struct.unpack_from("<Q", data)
        if length > len(data) - 8:
            raise ValueError(f"a header of {length} bytes")
        header = json.loads(data[8 : 8 + length])
        body, tensors = memoryview(data)[8 + length :], {}
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = sizes(entry["data_offsets"])
                if not start <= end <= len(body):
                    raise ValueError(f"{name!r} lies outside")
                tensors[name] = from_raw(body[start:end], FRAME_DTYPES[entry["dtype"]], sizes(entry["shape"]))
        return tensors
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise bad_request(f"the payload is not a safetensors frame: {error!r}") from error


def fitted(tensors: Tensors, specs: Specs) -> Tensors:
    """Return the tensors as the signature wants them, or say how they do not fit it."""
    names = [spec["name"] for spec in specs]
    if tensors.keys() != set(names):
        raise bad_request(f"the inputs are {sorted(tensors)[:99]}, but the signature says {names}")
    fit = {spec["name"]: fitted_one(tensors[spec["name"]], spec) for spec in specs}
    rows = {name: len(array) for name, array in fit.items()}
    if len(set(rows.values())) != 1:
        raise bad_request(f"the inputs differ in rows: {rows}")
    return fit


def fitted_one(array: np.ndarray, spec: Mapping[str, Any]) -> np.ndarray:
    """Return one tensor in the signature's dtype, whose values must fit it, and in C order."""
    name, wanted = spec["name"], wire_dtype(spec)
    if array.dtype.kind not in "biuf":
        raise bad_request(f"input {name!r} holds {array.dtype}, not numbers that fit 64 bits")
    if not fits(array.shape, spec["shape"]):
        raise bad_request(
            f"input {name!r} has shape {list(array.shape)}, but the signature says {json.dumps(spec['shape'])}"
        )
    if array.ndim == 0 or array.size == 0:
        raise bad_request(f"input {name!r} of shape {list(array.shape)} holds nothing; the first axis is the batch")
    if array.dtype != wanted:
        if array.dtype.kind in "iu" and wanted.kind in "iu":
            limits = np.iinfo(wanted)
            fitting = limits.min <= int(array.min()) and int(array.max()) <= limits.max
        else:
            fitting = np.can_cast(array.dtype, wanted, "same_kind")
        if not fitting:
            raise bad_request(f"input {name!r} holds {array.dtype} values that do not fit {spec['dtype']}")
    try:
        with np.errstate(over="raise"):
            return np.require(array, wanted, ["C", "A", "W"])  # aligned and writeable, or torch warns and copies
    except FloatingPointError as error:
        raise bad_request(f"input {name!r} holds values beyond {spec['dtype']}") from error


def fits(shape: Sequence[int], wanted: Sequence[int | None] | None) -> bool:
    """Whether a shape is one that the signature allows."""
    return wanted is None or (
        len(shape) == len(wanted) and all(size in (None, real) for size, real in zip(wanted, shape))
    )


def wire_dtype(spec: Mapping[str, Any]) -> np.dtype[Any]:
    """Return the numpy dtype that carries a tensor: float32 stands for bfloat16, which numpy does not have."""
    return np.dtype("float32" if spec["dtype"] == "bfloat16" else spec["dtype"])


# Batches


def groups(batch: dict[int, Tensors], specs: Specs) -> list[dict[int, Tensors]]:
    """Return the requests that can share a forward: equal but for their rows, and rows the signature leaves open."""
    found: dict[Any, dict[int, Tensors]] = {}
    alone = any(spec["shape"] and spec["shape"][0] is not None for spec in specs)
    for index, tensors in batch.items():
        key = index if alone else tuple(array.shape[1:] for array in tensors.values())
        found.setdefault(key, {})[index] = tensors
    return list(found.values())


def joined(requests: list[Tensors]) -> Tensors:
    """Return the rows of all requests; those of a single one are not copied."""
    if len(requests) == 1:
        return requests[0]
    return {name: np.concatenate([tensors[name] for tensors in requests]) for name in requests[0]}


def kept_rows(outputs: Tensors, specs: Specs, rows: int) -> Tensors:
    """Return the outputs in the signature's dtypes; a shape or a kind that it does not allow is an error."""
    kept = {}
    for spec in specs:
        name, array = spec["name"], outputs[spec["name"]]
        if array.ndim == 0 or len(array) != rows:
            raise PredictionException(
                f"output {name!r} has shape {list(array.shape)} for {rows} rows of input: "
                "its first axis is not the batch"
            )
        wanted = wire_dtype(spec)
        castable = array.dtype.kind == wanted.kind == "f" or np.can_cast(array.dtype, wanted, "safe")
        if not castable or not fits(array.shape[1:], spec["shape"] and spec["shape"][1:]):
            raise PredictionException(
                f"output {name!r} is {array.dtype} of shape {list(array.shape)}, "
                f"but the signature says {spec['dtype']} of {json.dumps(spec['shape'])}"
            )
        kept[name] = np.ascontiguousarray(array, wanted)
    return kept


# Answers


def accepted(accept: str) -> list[str]:
    """Return the media types of an Accept header, the preferred first; JSON where anything will do."""
    weighted = []
    for part in filter(None, (part.strip().lower() for part in accept.split(","))):
        form, *parameters = (piece.strip() for piece in part.split(";"))
        weights = [parameter[2:] for parameter in parameters if parameter.startswith("q=")]
        try:
            weight = float(weights[0]) if weights else 1.0
        except ValueError:
            weight = 0.0
        if weight > 0:
            weighted.append((weight, JSON if form in ("*/*", "application/*") else form))
    return [form for _, form in sorted(weighted, key=lambda pair: -pair[0])] if accept.strip() else [JSON]


def asked_top_k(about: Mapping[str, str], default: int) -> int:
    """Return how many classes the request asks for; 0 asks for the numbers themselves."""
    text = about.get("top_k", str(default)).strip()
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise bad_request(f"top_k {text[:99]!r} is not a number")
    return int(text)


def classes(scores: np.ndarray, top_k: int, labels: Sequence[str], *, softmax: bool) -> list[list[dict[str, Any]]]:
    """Return for every row its best classes: index, label and probability, the likeliest first."""
    if scores.ndim != 2:
        raise bad_request(f"top_k needs an output of shape [rows, classes], and this one is {list(scores.shape)}")
    likely = probabilities(scores.astype("float64")) if softmax else scores
    best = np.argsort(-likely, axis=1, kind="stable")[:, :top_k]
    return [
        [
            {"index": index, "score": score} | ({"label": labels[index]} if index < len(labels) else {})
            for index, score in zip(indices, np.take(row, indices).tolist())
        ]
        for row, indices in zip(likely, best.tolist())
    ]


def probabilities(scores: np.ndarray) -> np.ndarray:
    """Return the softmax of every row, unless the rows are distributions already."""
    if bool((scores >= 0).all()) and np.allclose(scores.sum(axis=1), 1, atol=1e-3):
        return scores
    raised = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def to_json(answer: Mapping[str, Any]) -> bytes:
    """Return JSON; NaN and Infinity are printed as such."""
    return json.dumps(answer).encode()


def to_frame(tensors: Tensors) -> bytes:
    """Return the tensors as a safetensors frame, the arrays aligned to 8 bytes."""
    header, start = {}, 0
    for name, array in tensors.items():
        offsets = [start, start + array.nbytes]
        header[name] = {"dtype": FRAME_CODES[array.dtype.name], "shape": array.shape, "data_offsets": offsets}
        start += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return b"".join((struct.pack("<Q", len(text)), text, *(array.data for array in tensors.values())))


def to_single(form: str, name: str, array: np.ndarray) -> tuple[dict[str, str], bytes]:
    """Return the headers that describe one tensor, and its bytes, plain or as ``.npy``."""
    headers = {"content-type": form, "X-Tensor-Name": quote(name, safe="/:")}
    if form == NPY:
        file = BytesIO()
        np.save(file, array, allow_pickle=False)
        return headers, file.getvalue()
    shape = ",".join(map(str, array.shape))
    return headers | {"X-Tensor-Dtype": array.dtype.name, "X-Tensor-Shape": shape}, array.tobytes()


def as_failure(error: Exception) -> PredictionException:
    """Return any error as one with a status; what nobody foresaw is logged with its traceback."""
    if isinstance(error, PredictionException):
        return error
    logger.error("a request failed", exc_info=error)
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return PredictionException("out of memory", HTTPStatus.INSUFFICIENT_STORAGE)
    return PredictionException(f"the model failed: {type(error).__name__}: {error}", HTTPStatus.INTERNAL_SERVER_ERROR)


def error_body(status: HTTPStatus, message: str, *, over_http: bool) -> bytes:
    """Return an error as TorchServe words its own; over gRPC, where no status arrives, behind the magic line."""
    kind = status.phrase.removesuffix(" Error").replace(" ", "") + "Exception"
    body = json.dumps({"code": status.value, "type": kind, "message": message}).encode()
    return body if over_http else ERROR_MAGIC + body


# Models


def read_labels(folder: Path, options: Mapping[str, Any], output: Mapping[str, Any]) -> list[str]:
    """Return the names of the classes, one line each."""
    if not options.get("labels"):
        return []
    labels: list[str] = (folder / options["labels"]).read_text(encoding="utf-8").splitlines()
    last = output["shape"][-1] if output["shape"] else None
    if last not in (None, len(labels)):
        raise ValueError(
            f"{options['labels']} has {len(labels)} lines, but output {output['name']!r} has {last} classes"
        )
    return labels


def chosen_device(model: Mapping[str, Any], options: Mapping[str, Any], gpu_id: int | None) -> torch.device:
    """Return where to compute: as the options say, else the GPU that TorchServe gave to this worker, if any."""
    available = torch.cuda.is_available() and model["format"] != "onnx"
    wanted = options.get("device") or ("cuda" if gpu_id is not None and available else "cpu")
    if wanted == "cpu":
        return torch.device("cpu")
    if not available:
        raise ValueError(f"device {wanted} was asked for, but this worker has no CUDA device for {model['format']}")
    return torch.device("cuda", gpu_id or 0)


def load_model(
    folder: Path,
    model: Mapping[str, Any],
    options: Mapping[str, Any],
    device: torch.device,
    inputs: Specs,
    outputs: Specs,
) -> Model:
    """Return the archive's model as a function from named arrays to named arrays."""
    if model["format"] == "onnx":
        if options.get("compile") or options.get("script") or options.get("dtype", "float32") != "float32":
            raise ValueError("compile, script and dtype are for torch models, and this one is onnx")
        return onnx_model(folder / model["file"], options, inputs, outputs)
    module, takes = load_module(folder, model, device)
    if options.get("script"):
        if model["format"] == "exported_program":
            raise ValueError("an exported program cannot be scripted; use compile")
        if not isinstance(module, torch.jit.ScriptModule):
            module = torch.jit.script(module)
        module = torch.jit.optimize_for_inference(module)
    autocast = getattr(torch, options.get("dtype", "float32"))
    if options.get("compile"):
        run = torch_model(torch.compile(module), takes, device, autocast, inputs, outputs)
        warm_up(run, inputs)
        return run
    return torch_model(module, takes, device, autocast, inputs, outputs)


# Where training loops put the weights beside their own state.
NESTS = ("state_dict", "model_state_dict", "model")


def load_module(folder: Path, model: Mapping[str, Any], device: torch.device) -> tuple[Any, Takes]:
    """Return the module in eval mode on its device, and what it takes; of a state dict, weights only are unpickled."""
    path, form = folder / model["file"], model["format"]
    if form == "torchscript":
        module = torch.jit.load(path, map_location=device).eval()  # type: ignore[no-untyped-call]
        names = [argument.name for argument in module.forward.schema.arguments[1:]]
        return module, (names, names)
    if form == "exported_program":
        program = torch.export.load(path)
        takes = taken_by_program(program)
        if device.type != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, device)
        return program.module(), takes  # exported in eval mode or not: it cannot be changed any more
    if form != "state_dict":
        raise ValueError(f"{form} is not one of torchscript, state_dict, exported_program, onnx")
    module = network(folder / model["code"], model["class"])
    weights = torch.load(path, map_location="cpu", weights_only=True)
    for nest in NESTS:
        if isinstance(weights.get(nest), Mapping):
            weights = weights[nest]
            break
    module.load_state_dict(weights)
    kinds = {name: each.kind for name, each in inspect.signature(module.forward).parameters.items()}
    names = [name for name, kind in kinds.items() if kind not in (kind.VAR_POSITIONAL, kind.VAR_KEYWORD)]
    return module.to(device).eval(), (names, [name for name in names if kinds[name] != kinds[name].POSITIONAL_ONLY])


def taken_by_program(program: Any) -> Takes:
    """Return what an exported program takes: by the names of forward's parameters, where each is one tensor."""
    call = program.module_call_graph[0].signature
    graph = list(program.graph_signature.user_inputs)
    own = getattr(call, "forward_arg_names", None) or []
    # Trees of torch 2.8 and before have a list.
    keywords = call.in_spec.child(1) if hasattr(call.in_spec, "child") else call.in_spec.children_specs[1]
    return (list(own) if len(own) == len(graph) else graph), list(keywords.context or ())


def network(path: Path, name: str) -> torch.nn.Module:
    """Return what ``name`` of the archive's own Python file makes: a class, or a function."""
    spec = importlib.util.spec_from_file_location(f"servewright_model_{path.stem}", path)
    assert spec is not None  # the file ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and torch.jit.script look their module up there
    spec.loader.exec_module(module)
    make = getattr(module, name, None)
    made = make() if callable(make) else None
    if not isinstance(made, torch.nn.Module):
        raise ValueError(f"{path.name} has nothing called {name!r} that makes a torch.nn.Module")
    return made


def torch_model(
    module: Any, takes: Takes, device: torch.device, autocast: torch.dtype, inputs: Specs, outputs: Specs
) -> Model:  # fmt: skip
    """Return a torch module as a function of named arrays."""
    by_place, by_name = handed([spec["name"] for spec in inputs], takes)
    dtypes = {spec["name"]: getattr(torch, spec["dtype"]) for spec in inputs}

    def run(arrays: Tensors) -> Tensors:
        tensors = {name: torch.from_numpy(arrays[name]).to(device, dtype) for name, dtype in dtypes.items()}
        places = [tensors[name] for name in by_place]
        keywords = {parameter: tensors[name] for parameter, name in by_name.items()}
        mixed = autocast != torch.float32
        with torch.inference_mode(), torch.autocast(device.type, autocast if mixed else None, enabled=mixed):
            answer = module(*places, **keywords)
        return {name: as_array(name, value) for name, value in named(answer, outputs).items()}

    return run


def handed(inputs: Sequence[str], takes: Takes) -> tuple[list[str], dict[str, str]]:
    """Return which inputs a module gets by place, in order, and which by which of its parameters' names."""
    parameters, keywords = takes
    pairs = bound(inputs, parameters)
    if not pairs:
        return list(inputs), {}
    by_name = {parameter: name for parameter, name in pairs if parameter in keywords}
    return [name for parameter, name in pairs if parameter not in keywords], by_name


def bound(inputs: Sequence[str], parameters: Sequence[str]) -> list[tuple[str, str]]:
    """Return each parameter that gets an input, in order, and that input; nothing where there are more inputs.

    Inputs go to the parameters of their names, the others in order to the parameters that are left.
    """
    own = [name for name in inputs if name in parameters]
    left = [name for name in parameters if name not in own]
    others = [name for name in inputs if name not in own]
    if len(others) > len(left):
        return []
    chosen = {**dict(zip(own, own)), **dict(zip(left, others))}
    return [(name, chosen[name]) for name in parameters if name in chosen]


def named(answer: Any, outputs: Specs) -> dict[str, Any]:
    """Return a model's answer by output name: by its own names, where it has these, else in the signature's order."""
    names, found = [spec["name"] for spec in outputs], flattened(answer)
    if set(names) <= set(found):
        return {name: found[name] for name in names}
    if len(found) != len(names):
        raise PredictionException(
            f"the model gives {len(found)} outputs ({', '.join(found)[:200]}), but the signature names {names}"
        )
    if isinstance(answer, Mapping) or hasattr(answer, "_fields"):
        refuse_half_named(names, list(found))
    return dict(zip(names, found.values()))


def refuse_half_named(names: Sequence[str], found: Sequence[str]) -> None:
    """Raise an error where some names are the model's own and others are not: nobody can tell which is which."""
    missing = [name for name in names if name not in found]
    if missing and len(missing) < len(names):
        raise PredictionException(f"the model answers {sorted(found)}, without the signature's {missing}")


def flattened(answer: Any) -> dict[str, Any]:
    """Return what a model gave, by name: the keys of mappings, those inside by ``outer_inner``, ``output_0`` and so on.

    What is None is left out: structured outputs name much that a model does not give.
    """
    if isinstance(answer, tuple) and (fields := getattr(answer, "_fields", None)):
        answer = dict(zip(fields, answer))
    if isinstance(answer, Mapping):
        return {
            f"{key}_{inner}" if isinstance(value, (Mapping, tuple, list)) else str(key): item
            for key, value in answer.items()
            if value is not None
            for inner, item in flattened(value).items()
        }
    if isinstance(answer, (tuple, list)):
        leaves = [leaf for value in answer if value is not None for leaf in flattened(value).values()]
        return {f"output_{index}": leaf for index, leaf in enumerate(leaves)}
    return {"output": answer}


def as_array(name: str, value: Any) -> np.ndarray:
    """Return an output tensor as an array."""
    if not isinstance(value, torch.Tensor):
        raise PredictionException(f"output {name!r} is a {type(value).__name__}, not a tensor")
    plain = value.float() if value.dtype == torch.bfloat16 else value
    return plain.detach().cpu().numpy()


def onnx_model(path: Path, options: Mapping[str, Any], inputs: Specs, outputs: Specs) -> Model:
    """Return an ONNX model as a function of named arrays."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = options.get("threads", 0)
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    takes, gives = [value.name for value in session.get_inputs()], [value.name for value in session.get_outputs()]
    names, wanted = [spec["name"] for spec in inputs], [spec["name"] for spec in outputs]
    feed = {name: parameter for parameter, name in bound(names, takes)}
    if len(feed) != len(takes):
        raise ValueError(f"{path.name} takes {takes}, but the signature says {names}")
    if not set(wanted) <= set(gives):
        if len(wanted) != len(gives):
            raise ValueError(f"{path.name} gives {gives}, but the signature says {wanted}")
        refuse_half_named(wanted, gives)
    fetched = wanted if set(wanted) <= set(gives) else gives

    def run(arrays: Tensors) -> Tensors:
        values = session.run(fetched, {feed[name]: array for name, array in arrays.items()})
        return {name: np.asarray(value) for name, value in zip(wanted, values)}

    return run


def warm_up(run: Model, inputs: Specs) -> None:
    """Compile now what requests would wait for: sizes 1 and 2 are special to torch.compile, 3 makes it general."""
    if all(spec["shape"] and None not in spec["shape"][1:] for spec in inputs):
        for rows in (1, 2, 3):
            run({spec["name"]: np.zeros((rows, *spec["shape"][1:]), wire_dtype(spec)) for spec in inputs})

"""The spec, version 1: what a model is and how it shall be served, whatever serves it.

A spec that exists is a spec that makes sense: nobody downstream checks again. Durations are in microseconds,
sizes in bytes, rates per second; paths are text, relative to the spec's folder. Nothing here names a backend:
where a key holds one value per backend, the names come with the text, and the reader checks them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    StringConstraints,
    Tag,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from servewright import units

DTYPES = (
    "float32", "float64", "float16", "bfloat16",
    "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "bool", "string", "complex64", "complex128",
)  # fmt: skip
FORMATS = ("saved_model", "keras", "torchscript", "state_dict", "exported_program", "onnx")
HANDLERS = ("tensor", "vision", "text")


class Part(BaseModel):
    """A piece of a spec: frozen, and no key is ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _error(reason: str, remedy: str = "") -> PydanticCustomError:
    return PydanticCustomError("servewright", "{reason}", {"reason": reason, "remedy": remedy})


def _with_unit(parse: Callable[[str], Any], example: str) -> BeforeValidator:
    def read(value: object) -> object:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise _error(f"{value!r} is not a quantity", f"write it with its unit: {example}")
        try:
            return parse(str(value))
        except units.UnitError as error:
            raise _error(error.reason, error.remedy) from error

    return BeforeValidator(read)


def _quantity(pattern: str, example: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": pattern, "examples": [example]})


Duration = Annotated[
    int,
    _with_unit(units.parse_duration_us, "5ms, 250us, 30s"),
    PlainSerializer(units.format_duration, return_type=str),
    _quantity(r"^\s*\d+(\.\d+)?\s*(us|µs|ms|s|m|min|h)\s*$", "5ms"),
]
Size = Annotated[
    int,
    _with_unit(units.parse_size_bytes, "64MiB, 2GiB"),
    PlainSerializer(units.format_size, return_type=str),
    _quantity(r"^\s*\d+(\.\d+)?\s*([kKMGT]i?)?B?\s*$", "2GiB"),
]
Rate = Annotated[
    float,
    _with_unit(units.parse_rate_per_s, "200/s"),
    PlainSerializer(lambda rate: f"{rate:g}/s", return_type=str),
    _quantity(r"^\s*\d+(\.\d+)?\s*[kM]?\s*/\s*(s|m|min|h)\s*$", "200/s"),
]


def _share(value: object) -> object:
    text = str(value).strip()
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text)
    if not match or float(match[1]) > 100:
        raise _error(f"{text!r} is not a share", "write a percentage: 0.1%")
    return float(match[1]) / 100


Share = Annotated[
    float,
    BeforeValidator(_share),
    PlainSerializer(lambda share: f"{share * 100:g}%", return_type=str),
    _quantity(r"^\d+(\.\d+)?\s*%$", "0.1%"),
]


def _path_inside(text: str) -> str:
    """Refuse a relative path that leaves the spec's folder; an absolute path says openly where it leads."""
    if not text or "\0" in text:
        raise _error("an empty path" if not text else "a path with a NUL byte", "name a file")
    if "://" in text:
        raise _error(
            f"{text!r} is a URL, and only local files can be read so far", "download it first and give the file's path"
        )
    path = PurePosixPath(text)
    depth = 0
    for part in path.parts:
        depth += -1 if part == ".." else 1
        if depth < (1 if path.is_absolute() else 0):
            raise _error(
                f"{text!r} leaves the folder of the spec", "move the file beside the spec, or give its absolute path"
            )
    return text


FilePath = Annotated[str, AfterValidator(_path_inside), Field(min_length=1, max_length=4096)]
ModelName = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=128),
    Field(description="letters, digits, '_', '-' and '.'; what every server and its URLs accept"),
]
Positive = Annotated[int, Field(ge=1, le=2**31 - 1)]
VersionNumber = Annotated[int, Field(ge=1, le=2**63 - 1)]


class TensorSpec(Part):
    """One input or output: numpy's dtype name (or ``string``), and its shape with ``None`` for any size."""

    name: Annotated[str, Field(min_length=1, max_length=512)]
    dtype: Literal[
        "float32", "float64", "float16", "bfloat16",
        "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
        "bool", "string", "complex64", "complex128",
    ]  # fmt: skip
    shape: Annotated[
        tuple[Annotated[int, Field(ge=0, le=2**40)] | None, ...] | None,
        BeforeValidator(lambda shape: tuple(shape) if isinstance(shape, list) else shape),
        Field(description="null for any size; the first axis is the batch; null instead of a list: unknown rank"),
    ]


def _sequence(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


AsTuple = BeforeValidator(_sequence)


class Signature(Part):
    """What a model takes and gives, in the order in which it takes and gives it."""

    name: Annotated[str, Field(min_length=1, max_length=512)] = "serving_default"
    inputs: Annotated[tuple[TensorSpec, ...], AsTuple, Field(min_length=1)]
    outputs: Annotated[tuple[TensorSpec, ...], AsTuple, Field(min_length=1)]

    @field_validator("inputs", "outputs")
    @classmethod
    def _unique(cls, tensors: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        names = [tensor.name for tensor in tensors]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise _error(f"{twice[0]!r} is listed twice", "give every tensor a name of its own")
        return tensors


class ModelSource(Part):
    """A model's file or folder, and how to read it."""

    path: FilePath
    format: Literal["saved_model", "keras", "torchscript", "state_dict", "exported_program", "onnx"]
    code: Annotated[
        str | None, Field(description="for a state_dict: the file and class of the network, such as net.py:DigitsNet")
    ] = None

    @model_validator(mode="after")
    def _code_belongs_to_state_dicts(self) -> ModelSource:
        if (self.format == "state_dict") != (self.code is not None):
            if self.code is None:
                raise _error("a state_dict holds weights only", "name the network's class: code: net.py:Net")
            raise _error(f"code has no use for format {self.format}", "remove it, or say format: state_dict")
        if self.code is not None:
            file, _, name = self.code.partition(":")
            if not file.endswith(".py") or not name.isidentifier():
                raise _error(f"{self.code!r} does not name a class", "write file.py:ClassName")
            _path_inside(file)
        return self


def _one_or_each(value: object) -> str:
    return "one" if isinstance(value, ModelSource) or (isinstance(value, dict) and "path" in value) else "each"


Models = Annotated[
    Annotated[ModelSource, Tag("one")]
    | Annotated[dict[str, ModelSource], Tag("each"), Field(min_length=1)],
    Discriminator(_one_or_each),
]  # fmt: skip


class ImageOptions(Part):
    """How the vision handler turns a picture into the model's input."""

    size: Annotated[tuple[Positive, Positive] | None, AsTuple] = None
    mean: Annotated[tuple[float, ...], AsTuple] = ()
    std: Annotated[tuple[float, ...], AsTuple] = ()
    mode: Literal["RGB", "L"] | None = None
    resize: Literal["crop", "pad", "stretch"] = "crop"


class TextOptions(Part):
    """How the text handler turns text into the model's input."""

    tokenizer: FilePath
    max_length: Positive = 512


class Handler(Part):
    """What turns requests into tensors on servers that run user code: one of ours by name, or a file."""

    use: Annotated[str, Field(description="tensor, vision, text, or the path of a handler file of your own")] = "tensor"
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    compile: bool = False
    script: bool = False
    labels: FilePath | None = None
    top_k: Positive = 5
    softmax: bool = True
    image: ImageOptions | None = None
    text: TextOptions | None = None

    @field_validator("use")
    @classmethod
    def _known(cls, use: str) -> str:
        if use not in HANDLERS and not use.endswith(".py"):
            raise _error(f"no handler {use!r}", f"choose {', '.join(HANDLERS)}, or the path of a .py file")
        return _path_inside(use)

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> Handler:
        if self.use == "text" and self.text is None:
            raise _error("the text handler needs a tokenizer", "add text: {tokenizer: tokenizer.json}")
        return self


class Batching(Part):
    """How requests may be grouped: sizes in rows, the queue in requests, the delay in microseconds."""

    max_size: Annotated[int, Field(ge=1, le=2**20)] = 1
    max_delay: Duration = 0
    allowed_sizes: Annotated[tuple[Positive, ...], AsTuple] = ()
    queue: Positive | None = None
    threads: Annotated[int, Field(ge=1, le=4096)] | None = None

    @model_validator(mode="after")
    def _sizes_agree(self) -> Batching:
        sizes = self.allowed_sizes
        if list(sizes) != sorted(set(sizes)):
            raise _error(f"allowed_sizes {list(sizes)} do not increase", "sort them; unsorted lists round wrongly")
        if sizes and sizes[-1] != self.max_size:
            raise _error(
                f"the last of allowed_sizes is {sizes[-1]}, but max_size is {self.max_size}",
                "make them equal: the server refuses to load the model otherwise",
            )
        if self.queue is not None and self.queue < self.max_size:
            raise _error(
                f"a queue of {self.queue} can never fill a batch of {self.max_size}", "raise queue or lower max_size"
            )
        if self.max_size == 1 and self.max_delay > 0:
            raise _error("a delay without batching does nothing", "set max_size above 1, or remove max_delay")
        return self


class Threads(Part):
    """Compute threads: within one operation, and between operations."""

    intra_op: Annotated[int, Field(ge=1, le=4096)] | None = None
    inter_op: Annotated[int, Field(ge=1, le=4096)] | None = None


class Latest(Part):
    """Serve the newest versions."""

    latest: Positive


class Specific(Part):
    """Serve exactly these versions."""

    specific: Annotated[tuple[VersionNumber, ...], AsTuple, Field(min_length=1)]


def _policy_kind(value: object) -> str:
    if isinstance(value, str):
        return "all"
    return "specific" if isinstance(value, Specific) or (isinstance(value, dict) and "specific" in value) else "latest"


VersionPolicy = Annotated[
    Annotated[Literal["all"], Tag("all")] | Annotated[Latest, Tag("latest")] | Annotated[Specific, Tag("specific")],
    Discriminator(_policy_kind),
]
LabelName = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^/:\s]+$")]


class Versions(Part):
    """Which versions are served, and what they are called."""

    policy: VersionPolicy = Latest(latest=1)
    labels: dict[LabelName, VersionNumber] = {}

    @model_validator(mode="after")
    def _labels_are_served(self) -> Versions:
        if isinstance(self.policy, Specific):
            lost = {label: version for label, version in self.labels.items() if version not in self.policy.specific}
            if lost:
                label, version = next(iter(lost.items()))
                raise _error(
                    f"label {label!r} names version {version}, which the policy does not serve",
                    f"add {version} to policy.specific, or point the label elsewhere",
                )
        return self


class Limits(Part):
    """What a server may take: memory and messages in bytes, times in microseconds."""

    memory: Size | None = None
    request: Size | None = None
    response: Size | None = None
    response_timeout: Duration | None = None
    startup_timeout: Duration | None = None
    cpus: Annotated[float, Field(gt=0, le=4096, allow_inf_nan=False)] | None = None

    @field_validator("memory", "request", "response", "response_timeout", "startup_timeout")
    @classmethod
    def _positive(cls, value: int | None) -> int | None:
        if value is not None and value <= 0:
            raise _error("a limit of zero lets nothing through", "raise it, or remove the key")
        return value


class Golden(Part):
    """Recorded inputs and the outputs they must give, both ``.npz`` with one array per tensor."""

    inputs: FilePath
    outputs: FilePath
    rtol: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 1e-4
    atol: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-5


class Slo(Part):
    """The service level objective: latency percentiles in microseconds, the rate per second, the share of errors."""

    p50: Duration | None = None
    p90: Duration | None = None
    p99: Duration | None = None
    rate: Rate | None = None
    errors: Share | None = None


class ModelSpec(Part):
    """One model and how it shall be served."""

    servewright: Literal[1] = 1
    name: ModelName
    version: (
        VersionNumber | Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]
    ) = 1
    model: Models
    signature: Signature
    handler: Handler = Handler()
    requirements: FilePath | None = None
    files: Annotated[tuple[FilePath, ...], AsTuple] = ()
    batching: Batching = Batching()
    workers: Annotated[int, Field(ge=1, le=1024)] = 1
    threads: Threads = Threads()
    versions: Versions = Versions()
    device: Annotated[str, StringConstraints(pattern=r"^(cpu|gpu(:\d{1,3})?)$")] = "cpu"
    limits: Limits = Limits()
    golden: Annotated[tuple[Golden, ...], AsTuple] = ()
    slo: Slo = Slo()
    target: dict[str, Annotated[str, StringConstraints(pattern=r"^\d+(\.\d+){0,3}$")]] = {}
    options: Annotated[
        dict[str, dict[str, Any]], Field(description="each backend's own settings; in a file: a key named after it")
    ] = {}

    def source(self, backend: str) -> ModelSource | None:
        """Return the model that ``backend`` shall serve, or ``None`` where the spec has none for it."""
        return self.model if isinstance(self.model, ModelSource) else self.model.get(backend)


class ServerPorts(Part):
    """Ports by name; absent ones are the system's to choose, or the server's defaults in a container."""

    grpc: Annotated[int, Field(ge=1, le=65535)] | None = None
    http: Annotated[int, Field(ge=1, le=65535)] | None = None


class ServerSettings(Part):
    """What belongs to the server and not to one model."""

    threads: Annotated[
        int | None, Field(ge=2, le=65536, description="server threads, per transport; raised by itself to fill a batch")
    ] = None
    bind: Literal["loopback", "all"] = "loopback"
    tokens: bool = True
    model_api: bool = False
    metrics: bool = True
    poll: Duration | None = None
    ports: ServerPorts = ServerPorts()

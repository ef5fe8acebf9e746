"""The spec, version 1: what a model is and how it shall be served, whatever serves it.

A spec that exists is a spec that makes sense: nobody downstream checks again. Durations are in microseconds,
sizes in bytes, rates per second; paths are text, relative to the spec's folder. Nothing here names a backend:
where a key holds one value per backend, the names come with the text, and the reader checks them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from servewright.complaints import (
    ALL,
    EACH,
    LATEST,
    ONE,
    SPECIFIC,
    choose,
    complaint,
    refusing,
    refusing_before,
    shown,
)
from servewright.fields import (
    AsTuple,
    FilePath,
    LabelName,
    ModelName,
    Part,
    Positive,
    Release,
    Version,
    VersionNumber,
    formed,
    path_inside,
)
from servewright.quantities import Duration, Rate, Share, Size

Dtype = Literal[
    "float32", "float64", "float16", "bfloat16",
    "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "bool", "string", "complex64", "complex128",
]  # fmt: skip
Format = Literal["saved_model", "keras", "torchscript", "state_dict", "exported_program", "onnx", "archive"]
DTYPES: tuple[str, ...] = get_args(Dtype)
# What a model's file can be; an archive is one that somebody has packed already.
FORMATS: tuple[str, ...] = tuple(form for form in get_args(Format) if form != "archive")
HANDLERS = ("tensor", "vision", "text")


def _plain_shape(value: object) -> object:
    if not isinstance(value, list):
        return value
    if any(isinstance(size, int) and size < 0 for size in value):
        raise complaint(f"{shown(value)} has a negative size", "write null for any size")
    return tuple(value)


class TensorSpec(Part):
    """One input or output: numpy's dtype name (or ``string``), and its shape with ``None`` for any size."""

    name: Annotated[str, Field(min_length=1, max_length=512)]
    dtype: Dtype
    shape: Annotated[
        tuple[Annotated[int, Field(ge=0, le=2**40)] | None, ...] | None,
        BeforeValidator(_plain_shape),
        Field(description="null for any size; the first axis is the batch; null instead of a list: unknown rank"),
    ]


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
            raise complaint(f"{twice[0]!r} is listed twice", "give every tensor a name of its own")
        return tensors


class ModelSource(Part):
    """A model's file or folder, and how to read it.

    ``deployed``: it lies with its server, under the ``path`` that the server knows, and not here. Then configs can be
    rendered and compared, and nothing can be packaged.
    """

    deployed: bool = False
    path: Annotated[str, Field(max_length=4096, json_schema_extra={"minLength": 1})]
    format: Format
    code: Annotated[
        str | None, Field(description="for a state_dict: the file and class of the network, such as net.py:DigitsNet")
    ] = None

    @field_validator("path")
    @classmethod
    def _inside(cls, path: str, info: ValidationInfo) -> str:
        if not info.data.get("deployed"):
            return path_inside(path)
        if not path or not path.isprintable():
            raise complaint(f"{shown(path)} is no path", "write it as the server knows it")
        return path

    @model_validator(mode="after")
    def _archives_are_deployed(self) -> ModelSource:
        if self.format == "archive" and not self.deployed:
            raise complaint(
                "an archive is packed already", "say deployed: true, or name the model's own file and format"
            )
        return self

    @model_validator(mode="after")
    def _code_belongs_to_state_dicts(self) -> ModelSource:
        if (self.format == "state_dict") != (self.code is not None):
            if self.code is None:
                raise complaint("a state_dict holds weights only", "name the network's class: code: net.py:Net")
            raise complaint(f"code has no use for format {self.format}", "remove it, or say format: state_dict")
        if self.code is not None:
            file, _, name = self.code.partition(":")
            if not file.endswith(".py") or not name.isidentifier():
                raise complaint(f"{self.code!r} does not name a class", "write file.py:ClassName")
            path_inside(file)
        return self


def _known_or_not(value: object) -> object:
    """Return the signature that says nothing for ``unknown``."""
    return UNKNOWN if value == "unknown" else value


# What nobody told, such as the signature of a model that was imported from a server's config.
UNKNOWN = Signature.model_construct(name="serving_default", inputs=(), outputs=())


def _one_or_each(value: object) -> str:
    one = isinstance(value, ModelSource) or (
        isinstance(value, dict) and not ModelSource.model_fields.keys().isdisjoint(value)
    )
    return ONE if one else EACH


Models = Annotated[
    Annotated[ModelSource, Tag(ONE)]
    | Annotated[dict[str, ModelSource], Tag(EACH), Field(min_length=1)],
    Discriminator(_one_or_each),
]  # fmt: skip


class ImageOptions(Part):
    """How the vision handler turns a picture into the model's input."""

    size: Annotated[tuple[Positive, Positive] | None, AsTuple] = None
    mean: Annotated[tuple[float, ...], AsTuple] = ()
    std: Annotated[tuple[Annotated[float, Field(gt=0)], ...], AsTuple] = ()
    mode: Literal["RGB", "L"] | None = None
    resize: Literal["crop", "pad", "stretch"] = "crop"

    @model_validator(mode="after")
    def _one_for_each_channel(self) -> ImageOptions:
        channels = {"L": (1,), "RGB": (1, 3)}.get(self.mode or "", (1, 3))
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values and len(values) not in channels:
                raise complaint(f"{name} has {len(values)} values", "write one for each channel, or one for all")
        return self


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
            raise complaint(f"no handler {shown(use)}", f"{choose(use, HANDLERS)}; or name the .py file of your own")
        return path_inside(use)

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> Handler:
        if self.use == "text" and self.text is None:
            raise complaint("the text handler needs a tokenizer", "add text: {tokenizer: tokenizer.json}")
        for name, options in (("image", self.image), ("text", self.text)):
            kind = "vision" if name == "image" else name
            if options is not None and self.use in HANDLERS and self.use != kind:
                raise complaint(f"the {self.use} handler takes no {name}", f"remove it, or say use: {kind}")
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
            raise complaint(f"allowed_sizes {list(sizes)} do not increase", "sort them; unsorted lists round wrongly")
        if sizes and sizes[-1] != self.max_size:
            raise complaint(
                f"the last of allowed_sizes is {sizes[-1]}, but max_size is {self.max_size}",
                "make them equal: the server refuses to load the model otherwise",
            )
        if self.queue is not None and self.queue < self.max_size:
            raise complaint(
                f"a queue of {self.queue} can never fill a batch of {self.max_size}", "raise queue or lower max_size"
            )
        if self.max_size == 1 and self.max_delay > 0:
            raise complaint("a delay without batching does nothing", "set max_size above 1, or remove max_delay")
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

    specific: Annotated[
        tuple[VersionNumber, ...],
        AsTuple,
        Field(min_length=1),
        refusing(lambda versions: len(set(versions)) < len(versions), "lists a version twice", "list each once"),
    ]


def _policy_kind(value: object) -> str:
    if isinstance(value, str):
        return ALL
    return SPECIFIC if isinstance(value, Specific) or (isinstance(value, dict) and "specific" in value) else LATEST


VersionPolicy = Annotated[
    Annotated[Literal["all"], Tag(ALL)] | Annotated[Latest, Tag(LATEST)] | Annotated[Specific, Tag(SPECIFIC)],
    Discriminator(_policy_kind),
    refusing_before(
        lambda policy: policy != "all" and not isinstance(policy, dict | Latest | Specific),
        "is not a policy", "write all, {latest: 2} or {specific: [1, 2]}",
    ),
]  # fmt: skip


class Versions(Part):
    """Which versions are served, and what they are called."""

    policy: VersionPolicy = Latest(latest=1)
    labels: dict[LabelName, VersionNumber] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _labels_are_served(self) -> Versions:
        if isinstance(self.policy, Specific):
            lost = {label: version for label, version in self.labels.items() if version not in self.policy.specific}
            if lost:
                label, version = next(iter(lost.items()))
                raise complaint(
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
            raise complaint("a limit of zero lets nothing through", "raise it, or remove the key")
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
    version: Version = 1
    model: Models
    signature: Annotated[
        Signature, BeforeValidator(_known_or_not, json_schema_input_type=Signature | Literal["unknown"])
    ]
    handler: Handler = Handler()
    requirements: FilePath | None = None
    files: Annotated[tuple[FilePath, ...], AsTuple] = ()
    batching: Batching = Batching()
    workers: Annotated[int, Field(ge=1, le=1024)] = 1
    threads: Threads = Threads()
    versions: Versions = Versions()
    device: Annotated[str, *formed(r"cpu|gpu(:[0-9]{1,3})?", "is not a device", "write cpu, gpu or gpu:0")] = "cpu"
    limits: Limits = Limits()
    golden: Annotated[tuple[Golden, ...], AsTuple] = ()
    slo: Slo = Slo()
    target: dict[str, Release] = Field(default_factory=dict)
    options: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="each backend's own settings; in a file: a key named after it"
    )

    @model_validator(mode="after")
    def _signature_is_known(self) -> ModelSpec:
        if not self.signature.inputs and not self.deployed:
            raise complaint(
                "signature: unknown is for models that are deployed already", "write its inputs and outputs"
            )
        return self

    @property
    def deployed(self) -> bool:
        """Whether no file of the model lies here."""
        sources = [self.model] if isinstance(self.model, ModelSource) else self.model.values()
        return all(source.deployed for source in sources)

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

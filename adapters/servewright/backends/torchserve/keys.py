"""What becomes of each key of a spec on TorchServe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from servewright import units
from servewright.backend import Fate, Outcome, outcome
from servewright.backends.torchserve import settings
from servewright.backends.torchserve.settings import NAME, options
from servewright.spec import HANDLERS, ImageOptions, Latest, ModelSpec, ServerSettings
from servewright.specfile import Document

__all__ = ["NAME", "TARGETS", "explain", "in_flight", "options", "queue", "release"]

# The last of each series, by which its image is named. Before 0.11.1 tokens are a plugin that images do not have.
_LAST: Final = {"0.11": "0.11.1", "0.12": "0.12.0"}
_WITHOUT_TOKENS: Final = "0.11.0"
TARGETS: Final = tuple(_LAST)
DEFAULT_TARGET: Final = "0.12"
DEFAULT_QUEUE: Final = 100
DEFAULT_TIMEOUT_S: Final = 120
DEFAULT_MESSAGE_BYTES: Final = 6_553_500
_FORMATS: Final = ("torchscript", "state_dict", "exported_program", "onnx")
_NOT_CARRIED: Final = ("string", "complex64", "complex128")


def queue(spec: ModelSpec) -> int:
    """Return how many requests may wait for the model: as the spec says, or the server's own setting."""
    whole = str(options(spec).properties.get("job_queue_size", ""))
    return spec.batching.queue or (int(whole) if whole.isdecimal() else 0) or DEFAULT_QUEUE


def in_flight(spec: ModelSpec) -> int:
    """Return how many requests the queue and the workers hold at once."""
    return queue(spec) + spec.workers * spec.batching.max_size


def release(spec: ModelSpec) -> str:
    """Return the release that a spec is for, in full; of a series, the last one."""
    asked = spec.target.get(NAME, DEFAULT_TARGET)
    return _LAST.get(asked, asked)


def explain(document: Document, server: ServerSettings) -> Iterator[Outcome]:
    """Yield what becomes of every key, refusals included."""
    spec = document.spec
    yield from _model(spec)
    yield from _handler(spec)
    yield from settings.explain(spec)
    yield from _batching(spec)
    yield from _workers(spec)
    yield from _versions(spec)
    yield from _limits(spec)
    if spec.requirements:
        note = "installed at each load, from the network; bake them into an image for production"
        yield outcome(spec, "requirements", Fate.APPLIED, "requirementsFile, install_py_dep_per_model", note=note)
    if spec.files:
        yield outcome(spec, "files", Fate.APPLIED, "extra files of the archive")
    for key in ("golden", "slo"):
        if key in spec.model_fields_set:
            yield outcome(spec, key, Fate.NOT_APPLICABLE, note="no setting of the server; servewright checks it")
    yield from _server(server)


def _model(spec: ModelSpec) -> Iterator[Outcome]:
    yield outcome(spec, "name", Fate.APPLIED, "modelName")
    yield outcome(spec, "version", Fate.APPLIED, "modelVersion")
    source = spec.source(NAME)
    key = f"model.{NAME}" if isinstance(spec.model, dict) else "model"
    if source is None:
        remedy = "add model.torchserve: {path: model.pt, format: torchscript}"
        yield outcome(spec, "model", Fate.REFUSED, note="the spec has no model for torchserve", remedy=remedy, value="")
    elif source.format not in _FORMATS and not source.deployed and spec.handler.use in HANDLERS:
        note = f"the {spec.handler.use} handler cannot load {source.format}"
        remedy = "export torchscript, exported_program or onnx, or name a handler of your own"
        yield outcome(spec, key, Fate.REFUSED, note=note, remedy=remedy, value=source.format)
    else:
        yield outcome(spec, key, Fate.APPLIED, "serializedFile", value=source.path)
    yield outcome(spec, "signature", Fate.APPLIED, "servewright.signature", value=spec.signature.name)
    if spec.handler.use in HANDLERS and not (source and source.deployed):
        yield from _tensors(spec)
    if asked := spec.target.get(NAME):
        note = remedy = ""
        if ".".join(asked.split(".")[:2]) not in TARGETS:
            note, remedy = f"release {asked} is not known", f"choose {TARGETS[0]} or {TARGETS[-1]}"
        elif asked == _WITHOUT_TOKENS:
            note, remedy = "this release asks nobody for a token", f"choose {_LAST['0.11']}, which does"
        if note:
            yield outcome(spec, f"target.{NAME}", Fate.REFUSED, note=note, value=asked, remedy=remedy)
        else:
            yield outcome(spec, f"target.{NAME}", Fate.APPLIED, "the image", value=asked)


def _tensors(spec: ModelSpec) -> Iterator[Outcome]:
    """Yield refusals of tensors that torch does not have, or no form of a request carries."""
    for key, tensors in (("inputs", spec.signature.inputs), ("outputs", spec.signature.outputs)):
        for tensor in tensors:
            if tensor.dtype in _NOT_CARRIED:
                note = f"the {spec.handler.use} handler cannot carry {tensor.name!r}, which is {tensor.dtype}"
                remedy = "give the model numbers, or name a handler of your own"
                yield outcome(spec, f"signature.{key}", Fate.REFUSED, note=note, remedy=remedy, value=tensor.dtype)


def _handler(spec: ModelSpec) -> Iterator[Outcome]:
    handler, source = spec.handler, spec.source(NAME)
    yield outcome(spec, "handler.use", Fate.APPLIED, "handler")
    for name in ("dtype", "compile", "script", "labels", "top_k", "softmax", "image", "text"):
        if name not in handler.model_fields_set:
            continue
        key = f"handler.{name}"
        wrong = _misused(name, getattr(handler, name), source.format) if source and handler.use in HANDLERS else None
        if wrong:
            yield outcome(
                spec, key, Fate.REFUSED, note=wrong, remedy="remove it, or export the model in another format"
            )
        elif name == "top_k" and handler.use == "tensor":
            note = "each request asks for as many classes as it wants"
            yield outcome(spec, key, Fate.NOT_APPLICABLE, note=note)
        else:
            yield outcome(spec, key, Fate.APPLIED, f"servewright.options.{'vision' if name == 'image' else name}")
    if handler.use == "vision":
        yield from _vision(spec, handler.image or ImageOptions())


def _misused(name: str, value: object, form: str) -> str:
    """Return why an option cannot be used with a model of format ``form``, or an empty text."""
    if form == "onnx" and ((name in ("compile", "script") and value) or (name == "dtype" and value != "float32")):
        return f"{name} is for torch models, and this one is onnx"
    if form == "exported_program" and name == "script" and value:
        return "an exported program cannot be scripted"
    return ""


def _vision(spec: ModelSpec, image: ImageOptions) -> Iterator[Outcome]:
    """Yield refusals of pictures that are not what the model takes."""
    shape = spec.signature.inputs[0].shape
    if len(spec.signature.inputs) != 1 or shape is None or len(shape) != 4:
        note = "the vision handler needs one input of shape [null, channels, height, width]"
        yield outcome(spec, "signature.inputs", Fate.REFUSED, note=note, value="", remedy="use another handler")
        return
    mode = image.mode or ("L" if shape[1] == 1 else "RGB")
    channels = {"L": 1, "RGB": 3}[mode]
    if shape[1] not in (None, channels):
        note = f"mode {mode} gives {channels} channels, and the model takes {shape[1]}"
        yield outcome(spec, "handler.image", Fate.REFUSED, note=note, remedy="choose the mode L or RGB that fits")
    if image.size and any(want not in (None, size) for size, want in zip(image.size, shape[2:], strict=True)):
        note = f"size {list(image.size)} is not the model's {list(shape[2:])}"
        yield outcome(spec, "handler.image", Fate.REFUSED, note=note, remedy="remove size, or correct it")


def _batching(spec: ModelSpec) -> Iterator[Outcome]:
    batching, delay = spec.batching, spec.batching.max_delay
    yield outcome(spec, "batching.max_size", Fate.APPLIED, "batchSize")
    if batching.max_size > 1 and delay == 0:
        note, remedy = "TorchServe takes a delay of 0 for 100 ms", "write max_delay: 1ms, the shortest that it knows"
        yield outcome(spec, "batching.max_delay", Fate.REFUSED, note=note, remedy=remedy)
    elif batching.max_size > 1 and delay % 1000:
        why = "would round to 0, which means 100 ms there" if delay < 1000 else "cannot be kept"
        note = f"TorchServe counts whole milliseconds; {units.format_duration(delay)} {why}"
        remedy = f"write max_delay: {max(1, round(delay / 1000))}ms"
        yield outcome(spec, "batching.max_delay", Fate.REFUSED, note=note, remedy=remedy)
    elif batching.max_size > 1:
        yield outcome(spec, "batching.max_delay", Fate.APPLIED, "maxBatchDelay")
    if batching.queue:
        yield outcome(spec, "batching.queue", Fate.APPLIED, "jobQueueSize")
    elif batching.max_size > DEFAULT_QUEUE:
        note = f"a batch of {batching.max_size} never fills from the default queue of {DEFAULT_QUEUE}"
        remedy = f"write queue: {4 * batching.max_size}"
        yield outcome(spec, "batching.queue", Fate.REFUSED, value="", note=note, remedy=remedy)
    if batching.allowed_sizes:
        note = "TorchServe runs batches of any size, without padding"
        yield outcome(spec, "batching.allowed_sizes", Fate.NOT_APPLICABLE, note=note)
    if batching.threads:
        note = "every worker is a thread of its own: see workers"
        yield outcome(spec, "batching.threads", Fate.NOT_APPLICABLE, note=note)


def _workers(spec: ModelSpec) -> Iterator[Outcome]:
    note = "no load moves the number between the two"
    yield outcome(spec, "workers", Fate.APPLIED, "minWorkers = maxWorkers", note=note)
    if spec.threads.intra_op:
        yield outcome(spec, "threads.intra_op", Fate.APPLIED, "OMP_NUM_THREADS and torch.set_num_threads")
    if spec.threads.inter_op:
        note = "one forward runs at a time in a worker"
        yield outcome(spec, "threads.inter_op", Fate.NOT_APPLICABLE, note=note)
    source = spec.source(NAME)
    if spec.device != "cpu" and source and source.format == "onnx" and spec.handler.use in HANDLERS:
        note = f"the {spec.handler.use} handler runs onnx on CPUs, and its workers would not start"
        remedy = "remove it, or export the model for torch"
        yield outcome(spec, "device", Fate.REFUSED, note=note, remedy=remedy)
    elif "device" in spec.model_fields_set:
        setting = "deviceType" + (", deviceIds" if ":" in spec.device else "")
        yield outcome(spec, "device", Fate.APPLIED, setting)


def _versions(spec: ModelSpec) -> Iterator[Outcome]:
    if spec.versions.labels:
        note = "TorchServe has no labels; its default version takes their place"
        yield outcome(spec, "versions.labels", Fate.NOT_APPLICABLE, note=note)
    if "policy" in spec.versions.model_fields_set:
        only = spec.versions.policy == Latest(latest=1)
        note = "one version is registered, and served" if only else "every version that is registered is served"
        yield outcome(spec, "versions.policy", Fate.NOT_APPLICABLE, note=note)


def _limits(spec: ModelSpec) -> Iterator[Outcome]:
    limits = spec.limits
    for key in ("memory", "cpus"):
        if getattr(limits, key):
            yield outcome(spec, f"limits.{key}", Fate.APPLIED, f"the container's {key}", note="not in runtime process")
    for key, setting in (("request", "max_request_size"), ("response", "max_response_size")):
        size = getattr(limits, key)
        if size and size > 2**31 - 1:
            note = f"{setting} is a 32-bit number: TorchServe would not start"
            yield outcome(spec, f"limits.{key}", Fate.REFUSED, note=note, remedy="write at most 2047MiB")
        elif size:
            yield outcome(spec, f"limits.{key}", Fate.APPLIED, setting, note="one value for all models: the largest")
    for key, setting in (("response_timeout", "responseTimeout"), ("startup_timeout", "startupTimeout")):
        timeout = getattr(limits, key)
        if timeout and timeout % 1_000_000:
            note = f"TorchServe counts whole seconds, and takes 0 for {DEFAULT_TIMEOUT_S}"
            yield outcome(spec, f"limits.{key}", Fate.REFUSED, note=note, remedy=f"write {-(-timeout // 1_000_000)}s")
        elif timeout:
            yield outcome(spec, f"limits.{key}", Fate.APPLIED, setting)


def _server(server: ServerSettings) -> Iterator[Outcome]:
    """Yield what becomes of the fleet's settings for the server."""
    fates = {
        "threads": (Fate.APPLIED, "number_of_netty_threads", ""),
        "metrics": (Fate.APPLIED, "enable_metrics_api, metrics_mode", ""),
        "ports": (Fate.APPLIED, "inference_address, grpc_inference_port", ""),
        "poll": (Fate.NOT_APPLICABLE, "", "TorchServe looks for no new versions: they are registered"),
        "tokens": (Fate.APPLIED, "disable_token_authorization", ""),
        "model_api": (Fate.APPLIED, "enable_model_api", ""),
        "bind": (Fate.APPLIED, "inference_address, grpc_inference_address", ""),
    }
    for name in sorted(server.model_fields_set):
        fate, setting, note = fates[name]
        remedy = ""
        if name == "bind" and server.bind == "all":
            fate, setting, note = Fate.REFUSED, "", "servers started here bind loopback only"
            remedy = "remove it; a container binds every address inside, and publishes what you say"
        value = getattr(server, name)
        yield Outcome(key=f"server.{name}", value=str(value), fate=fate, setting=setting, note=note, remedy=remedy)

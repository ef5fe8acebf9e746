"""Checks of ``model-config.yaml``, and of the ``model_config.json`` that TorchServe never reads."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from servewright.backends.torchserve.linting import releases, rules
from servewright.backends.torchserve.linting.properties import LONG_TIMEOUT_S, MODEL_KEYS
from servewright.linting.finding import Edit, Finding
from servewright.linting.linter import Context, FileKind, Found
from servewright.linting.sources import Source
from servewright.linting.yamlplaces import Node, PlacedYamlError, documents

_INTEGERS: Final = frozenset(
    {"minWorkers", "maxWorkers", "batchSize", "maxBatchDelay", "responseTimeout", "startupTimeout", "parallelLevel",
     "maxRetryTimeoutInSec", "clientTimeoutInMills", "jobQueueSize", "sequenceMaxIdleMSec", "sequenceTimeoutMSec",
     "maxSequenceJobQueueSize", "maxNumSequence"}
)  # fmt: skip
_BOOLEANS: Final = frozenset(
    {"useJobTicket", "continuousBatching", "sequenceBatching", "asyncCommunication", "useVenv"}
)
_TEXTS: Final = frozenset({"deviceType", "parallelType"})
FRONTEND: Final = _INTEGERS | _BOOLEANS | _TEXTS | {"deviceIds", "torchrun"}
_TORCHRUN: Final = frozenset(
    {"nnodes", "nproc-per-node", "rdzv-backend", "rdzv-endpoint", "rdzv-conf", "monitor-interval", "node-rank",
     "OMP_NUMBER_THREADS", "rdzv-id", "max-restarts"}
)  # fmt: skip
_POSITIVE: Final = frozenset({"responseTimeout", "startupTimeout", "jobQueueSize", "batchSize"})
_PLACEHOLDER: Final = re.compile(r"\$\{[^}]+\}|\{\{.*\}\}")
_NORMAL: Final = {name.lower(): name for name in FRONTEND}
# What the keys of a model_config.json are called, and where they belong.
_FICTION: Final[Mapping[str, str]] = {
    "model_name": "give it to torch-model-archiver as --model-name: it is modelName in MANIFEST.json",
    "model_version": "give it to torch-model-archiver as --version: it is modelVersion in MANIFEST.json",
    "batch_size": "write batchSize in model-config.yaml",
    "max_batch_delay": "write maxBatchDelay in model-config.yaml",
    "preload_model": "name the archive in load_models in config.properties, or with --models",
    "gpu": "write deviceType: gpu in model-config.yaml, and number_of_gpu in config.properties",
    "cuda_device": "write deviceIds: [0] in model-config.yaml",
    "workers_per_model": "write default_workers_per_model in config.properties, or minWorkers and maxWorkers in "
    "model-config.yaml",
    "max_workers": "write maxWorkers in model-config.yaml",
    "min_workers": "write minWorkers in model-config.yaml",
    "response_timeout": "write responseTimeout in model-config.yaml",
    "handler": "give it to torch-model-archiver as --handler",
}


def recognise(source: Source) -> bool:
    """Tell whether a text is a ``model-config.yaml``."""
    if source.suffix not in (".yaml", ".yml", ".txt", "") and "#" not in source.filename:
        return False
    if source.text.lstrip().startswith(("{", "[", "#!")):
        return False
    found = {match[1] for match in re.finditer(r"(?m)^([A-Za-z]\w*)[ \t]*:", source.text)}
    if found & {"apiVersion", "services", "kind"}:
        return False
    telling = FRONTEND - {"torchrun"}
    if found & telling or {name.lower() for name in found} & {name.lower() for name in telling}:
        return True
    named = bool(re.match(r"model[-_]config.*\.ya?ml$", source.filename.lower()))
    return named or (bool(found & {"pt2", "torchrun"}) and source.suffix in (".yaml", ".yml"))


def check(source: Source, context: Context) -> Found:
    """Check the settings of one model."""
    try:
        found = documents(source.text)
    except PlacedYamlError as error:
        yield rules.YAML.on(source.name, error.line, error.column, error.reason)
        return
    if not found or found[0].kind != "map":
        yield rules.NO_MAP.at(source, 0, "it is empty" if not found or found[0].value is None else "")
        return
    if len(found) > 1:
        yield rules.YAML.on(source.name, found[1].line, found[1].column, "a second document begins here")
        return
    config = found[0]
    values: dict[str, Node] = {}
    for key, value in config.pairs:
        if key.text in values:
            yield _on(rules.YAML_TWICE, source, key, repr(key.text))
        values[key.text] = value
        if what := releases.too_new(key.text, releases.MODEL_CONFIG, context):
            yield _on(rules.NEWER_SETTING, source, key, what)
        else:
            yield from _key(source, key, value)
    yield from _together(source, values)


def _on(
    rule: Any, source: Source, node: Node, what: str = "", *, remedy: str = "", edit: Edit | None = None
) -> Finding:
    finding: Finding = rule.on(source.name, node.line, node.column, what, remedy=remedy, edit=edit)
    return finding


def _key(source: Source, key: Node, value: Node) -> Iterator[Finding]:
    name = key.text
    if name not in FRONTEND:
        meant = MODEL_KEYS.get(name.lower()) or _NORMAL.get(name.lower().replace("_", "").replace("-", ""), "")
        if not meant and value.kind == "scalar":
            meant = next(iter(difflib.get_close_matches(name[:80], FRONTEND, n=1, cutoff=0.85)), "")
        if meant:
            start = source.offset(key.line, key.column)
            same = meant.lower() == name.lower().replace("_", "").replace("-", "")
            edit = Edit(start=start, end=start + len(name), text=meant) if same and not key.style else None
            yield _on(rules.YAML_KEY, source, key, repr(name), remedy=f"write {meant}", edit=edit)
        return
    if value.kind == "scalar" and _PLACEHOLDER.search(value.text):
        yield _on(rules.YAML_PLACEHOLDER, source, value, f"{name}: {value.text}")
        return
    wanted: tuple[type, str] | None = None
    if name in _INTEGERS:
        wanted = (int, "a whole number")
    elif name in _BOOLEANS:
        wanted = (bool, "true or false")
    elif name in _TEXTS:
        wanted = (str, "a text")
    plain = value.value
    if wanted and (not isinstance(plain, wanted[0]) or (wanted[0] is int and isinstance(plain, bool))):
        shown = value.text if value.kind == "scalar" else f"a {value.kind}"
        yield _on(rules.YAML_TYPE, source, value, f"{name} takes {wanted[1]}, not {shown[:40]!r}")
        return
    if name == "maxBatchDelay" and plain == 0:
        yield _on(rules.ZERO_DELAY, source, value)
    elif name in _INTEGERS and isinstance(plain, int) and plain < (1 if name in _POSITIVE else 0):
        yield _on(rules.YAML_RANGE, source, value, f"{name}: {plain}")
    elif name == "deviceType" and str(plain).lower() not in ("cpu", "gpu"):
        yield _on(rules.DEVICE, source, value, repr(plain))
    elif name == "parallelType" and plain not in ("pp", "tp", "pptp", "custom", ""):
        yield _on(rules.PARALLEL, source, value, repr(plain))
    elif name == "torchrun":
        for inner, _ in value.pairs:
            if inner.text not in _TORCHRUN:
                close = difflib.get_close_matches(inner.text[:80], _TORCHRUN, n=1)
                yield _on(rules.TORCHRUN, source, inner, inner.text, remedy=f"write {close[0]}" if close else "")


def _together(source: Source, values: Mapping[str, Node]) -> Iterator[Finding]:
    def number(name: str) -> int | None:
        plain = values[name].value if name in values else None
        return plain if isinstance(plain, int) and not isinstance(plain, bool) else None

    low, high = number("minWorkers"), number("maxWorkers")
    if (low is None) != (high is None) or (low is not None and high is not None and high < low):
        given = "minWorkers" if low is not None else "maxWorkers"
        yield _on(rules.WORKER_PAIR, source, values["maxWorkers" if high is not None else given], f"{low} and {high}")
    elif low is not None and high is not None and high > low:
        yield _on(rules.NO_SCALING, source, values["maxWorkers"], f"{low} and {high}")
    size, delay = number("batchSize"), number("maxBatchDelay")
    if delay and "batchSize" not in values:
        yield _on(rules.DELAY_ALONE, source, values["maxBatchDelay"])
    elif size is not None and size > 1 and "maxBatchDelay" not in values:
        yield _on(rules.DEFAULT_DELAY, source, values["batchSize"])
    elif size is not None and delay is not None and size > 1 and delay >= 1000:
        yield _on(rules.LONG_DELAY, source, values["maxBatchDelay"], f"{delay} ms")
    queue = number("jobQueueSize")
    if size is not None and queue is not None and 0 < queue < size:
        yield _on(rules.SHORT_QUEUE, source, values["jobQueueSize"], f"{queue} < {size}")
    timeout = number("responseTimeout")
    if timeout is not None and timeout >= LONG_TIMEOUT_S:
        yield _on(rules.LONG_ANSWER, source, values["responseTimeout"], f"{timeout} s")
    if "parallelLevel" in values and "torchrun" in values:
        yield _on(rules.LEVEL_TWICE, source, values["parallelLevel"])
    if "deviceIds" in values:
        ids = values["deviceIds"]
        device = values["deviceType"].value if "deviceType" in values else "gpu"
        bad = ids.kind != "list" or any(not isinstance(item.value, int) or item.value < 0 for item in ids.items)
        if bad or str(device).lower() == "cpu":
            yield _on(rules.DEVICE_IDS, source, ids, "with deviceType cpu" if not bad else "")


def recognise_fiction(source: Source) -> bool:
    """Tell whether a JSON is the ``model_config.json`` of articles, which no release ever read."""
    if source.suffix != ".json":
        return False
    found = set(re.findall(r'"(\w+)"\s*:', source.text[:20_000]))
    return (
        len(found & set(_FICTION)) >= 3
        and "batch_size" in found
        and bool(found & {"workers_per_model", "max_batch_delay", "preload_model", "min_workers"})
    )


def check_fiction(source: Source, context: Context) -> Found:
    """Name, for each key, what it is called and where it belongs."""
    yield rules.FICTION.at(source, 0)
    try:
        found = documents(source.text)
    except PlacedYamlError:
        return
    for key, _ in found[0].pairs if found else []:
        meant = _FICTION.get(key.text) or (
            f"write {MODEL_KEYS[key.text.lower()]} in model-config.yaml"
            if key.text.lower() in MODEL_KEYS
            else "remove it"
        )
        yield _on(rules.FICTION_KEY, source, key, repr(key.text), remedy=meant)


KINDS: Final = (
    FileKind(name="ts_model_config", title="TorchServe's model-config.yaml", recognise=recognise, check=check),
    FileKind(
        name="ts_model_config_json", title="a model_config.json for TorchServe", recognise=recognise_fiction,
        check=check_fiction,
    ),
)  # fmt: skip

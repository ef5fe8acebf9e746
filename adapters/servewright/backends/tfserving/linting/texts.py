"""Checks of TensorFlow Serving's text files, each over the message as it was read."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from servewright.backends.tfserving import protos
from servewright.backends.tfserving.linting import pbtxt, rules
from servewright.backends.tfserving.linting.pbtxt import Field, Flaw, Message
from servewright.linting.finding import Edit, Finding
from servewright.linting.linter import Context, FileKind, Follow, Found
from servewright.linting.rule import Rule
from servewright.linting.sources import Source

_URI: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_PLACEHOLDER: Final = re.compile(r"\$\{[^}]*\}|\$\([^)]*\)|\$[A-Za-z_]\w*|\{\{.*?\}\}|<[A-Z_]{2,}>|%[A-Z_]{2,}%")
_DEFAULT_BATCH: Final = 1000
_LONG_TIMEOUT: Final = 50_000
_ENDLESS: Final = 100_000
_BATCHING_FIELDS: Final = (
    "max_batch_size", "batch_timeout_micros", "max_enqueued_batches", "num_batch_threads", "thread_pool_name",
    "allowed_batch_sizes", "pad_variable_length_inputs", "enable_large_batch_splitting", "max_execution_batch_size",
)  # fmt: skip
_SESSION_FIELDS: Final = (
    "gpu_options", "allow_soft_placement", "log_device_placement", "intra_op_parallelism_threads",
    "inter_op_parallelism_threads", "graph_options", "device_count", "session_inter_op_thread_pool",
)  # fmt: skip
_SESSION_PARENTS: Final = ("platform_config", "session_config", "tensorflow")
# Fields that people write where they do not belong, and where what they mean belongs.
_ELSEWHERE: Final[Mapping[str, str]] = {
    "platform_config": "there is no config of a session per model: move gpu_options and allow_soft_placement to a file "
    "for --tensorflow_session_config_file, and threads to --tensorflow_intra_op_parallelism and "
    "--tensorflow_inter_op_parallelism",
    "tensorflow": "remove it: there is no message of that name; what is inside belongs to the session or to flags",
    "gpu_options": 'write gpu_options { visible_device_list: "0" } in a file for --tensorflow_session_config_file',
    "visible_device_list": 'write gpu_options { visible_device_list: "0" } in a file for '
    "--tensorflow_session_config_file",
    "allow_soft_placement": "write it in a file for --tensorflow_session_config_file",
    "inter_op_parallelism_threads": "use the flag --tensorflow_inter_op_parallelism=N",
    "intra_op_parallelism_threads": "use the flag --tensorflow_intra_op_parallelism=N",
    "batching_parameters": "write its fields into a file of their own, for --batching_parameters_file with "
    "--enable_batching",
    "config": "put it into model_config_list { ... }",
    "model_version_policy": "put it into a model's config { ... }",
    "versions": "write specific { versions: N }",
    "num_versions": "write latest { num_versions: N }",
    "version_label": 'write version_labels { key: "stable" value: N }',
    "max_batch_size": "write it in a file for --batching_parameters_file",
    "signature_name": "remove it: requests name the signature",
    "path": 'write prometheus_config { enable: true path: "..." }',
    "enable": "write prometheus_config { enable: true }",
    "prometheus_config": "write it in a file for --monitoring_config_file",
}


def pattern(*names: str) -> re.Pattern[str]:
    """Return what finds one of ``names`` where a field may begin."""
    return re.compile(r"(?m)(?:^|[{\s,;*])(?:" + "|".join(names) + r")\s*[:{<]")


def _flaws(source: Source, flaws: list[Flaw], root: str) -> Iterator[Finding]:
    for flaw in flaws:
        line, column = source.place(flaw.said_at)
        said = f"{line}:{column}: {flaw.message.removesuffix('.') if flaw.kind != 'syntax' else flaw.message}"
        rest = source.text[flaw.at : flaw.at + 80].partition("\n")[0]
        if flaw.kind in ("syntax", "value") and _PLACEHOLDER.match(rest):
            yield rules.PLACEHOLDER.at(source, flaw.at, said)
        elif flaw.kind == "field":
            yield _unknown(source, flaw, said, root)
            for name, at in flaw.inside:
                if flaw.name in _SESSION_PARENTS and name in _ELSEWHERE:
                    what = f"{name} inside {flaw.name}, which does not exist"
                    yield rules.UNKNOWN_FIELD.at(source, at, what, remedy=_ELSEWHERE[name])
        elif flaw.kind == "value":
            yield rules.WRONG_VALUE.at(source, flaw.at, said, remedy=_value_remedy(flaw))
        else:
            rule = {"twice": rules.TWICE, "oneof": rules.ONEOF}.get(flaw.kind, rules.SYNTAX)
            yield rule.at(source, flaw.at, said, remedy=_syntax_remedy(source, flaw))


def _unknown(source: Source, flaw: Flaw, said: str, root: str) -> Finding:
    fields = [field.name for field in protos.SCHEMA.pool.FindMessageTypeByName(flaw.parent).fields]
    word = flaw.name
    same = [name for name in fields if name.replace("_", "").lower() == word.replace("_", "").replace("-", "").lower()]
    close = same or difflib.get_close_matches(word[:80], fields, n=1, cutoff=0.75)
    edit = Edit(start=flaw.at, end=flaw.at + len(word), text=same[0]) if same else None
    if close:
        remedy = f"write {close[0]}"
    elif word in _ELSEWHERE and word not in fields:
        remedy = _ELSEWHERE[word]
    elif word.startswith(("low_priority_", "mixed_priority_")) or word == "batch_padding_policy":
        remedy = "remove it: it is an attribute of the BatchFunction op in a graph, and no field of this file"
    elif word in _BATCHING_FIELDS and root != "BatchingParameters":
        remedy = "write it in a file for --batching_parameters_file, with --enable_batching"
    elif word in _SESSION_FIELDS and root != "ConfigProto":
        remedy = "write it in a file for --tensorflow_session_config_file"
    else:
        remedy = f"choose from {', '.join(fields)}" if len(fields) <= 12 else "remove it"
    return rules.UNKNOWN_FIELD.at(source, flaw.at, said, remedy=remedy, edit=edit)


def _value_remedy(flaw: Flaw) -> str:
    if 'Expected "{"' in flaw.message and flaw.name in _BATCHING_FIELDS:
        return f"write {flaw.name} {{ value: N }}"
    if 'Expected ":"' in flaw.message:
        return f"write {flaw.name}: VALUE"
    if "escape sequence" in flaw.message:
        return "write \\\\ for a backslash"
    if "Expected string" in flaw.message:
        return "put the text in quotes"
    return ""


def _syntax_remedy(source: Source, flaw: Flaw) -> str:
    rest = source.text[flaw.at : flaw.at + 3]
    line = source.line(source.place(flaw.at)[0]).strip()
    if rest.startswith(("/", "...")):
        return "begin comments with #"
    if rest[:1] == "}":
        return "remove this brace: it closes nothing"
    if rest == "":
        return "close every { with a }"
    if rest.startswith("**") or line.startswith("```"):
        return "remove what is left of Markdown"
    return ""


def _texts(kind: str, source: Source) -> tuple[Message, list[Finding]]:
    message, flaws = pbtxt.read(source.text, getattr(protos, kind))
    return message, list(_flaws(source, flaws, kind))


def check_models(source: Source, context: Context) -> Found:
    """Check a ModelServerConfig."""
    if not source.text:
        yield rules.EMPTY.at(source, 0)
        return
    config, findings = _texts("ModelServerConfig", source)
    yield from findings
    if custom := config.get("custom_model_config"):
        yield rules.CUSTOM.at(source, custom.start)
    models = [model for lists in config.all("model_config_list") for model in lists.message.all("config")]
    if not models and not findings and not config.get("custom_model_config"):
        yield rules.NO_MODELS.at(source, 0)
    names: set[str] = set()
    for model in models:
        name = model.message.get("name")
        if name is None or not name.value:
            yield rules.EMPTY_NAME.at(source, (name or model).start)
        else:
            if name.value in names:
                yield rules.DUPLICATE_MODEL.at(source, name.start, repr(name.value))
            elif re.search(r"[/:]", name.value):
                yield rules.UNREACHABLE_NAME.at(source, name.start, repr(name.value))
            names.add(name.value)
        yield from _base_path(source, model)
        yield from _platform(source, model)
        yield from _policy(source, model)
        if logging := model.message.get("logging_config"):
            yield rules.LOGGING.at(source, logging.start)


def _base_path(source: Source, model: Field) -> Found:
    path = model.message.get("base_path")
    if path is None or not path.value:
        yield rules.NO_BASE_PATH.at(source, (path or model).start)
        return
    text = path.value
    if not text.startswith("/") and not _URI.match(text):
        if _PLACEHOLDER.match(text):
            remedy = "the server does not expand variables: write the path, or fill the template in before"
        elif re.match(r"[A-Za-z]:[\\/]", text):
            remedy = "the server runs on Linux: write the path inside its container, such as /models/NAME"
        else:
            remedy = ""
        yield rules.RELATIVE_BASE_PATH.at(source, path.at, repr(text), remedy=remedy)
        return
    leaf = text.rstrip("/").rpartition("/")[2]
    if re.fullmatch(r"[0-9]+", leaf):
        yield rules.VERSION_IN_PATH.at(source, path.at, repr(text))
    if re.match(r"/(home|Users|root|tmp)/", text):
        yield rules.WORKSTATION_PATH.at(source, path.at, repr(text))
    if text.startswith("/"):
        yield from check_folder(source, path.at, Path(text))


def check_folder(source: Source, at: int, folder: Path) -> Found:
    """Check the versions below a base path, where this machine has it."""
    try:
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    except (OSError, ValueError):  # no such path, or none that any file system has
        return
    versions: dict[int, str] = {}
    for name in names:
        if not re.fullmatch(r"\s*[0-9]+", name) or len(name) > 18:
            continue
        if int(name) in versions:
            yield rules.SAME_VERSION.at(source, at, f"{versions[int(name)]} and {name}")
            continue
        versions[int(name)] = name
        if not any((folder / name / file).exists() for file in ("saved_model.pb", "saved_model.pbtxt", "model.tflite")):
            yield rules.NO_SAVED_MODEL.at(source, at, str(folder / name))
    if not versions:
        yield rules.NOTHING_THERE.at(source, at, str(folder))


def _platform(source: Source, model: Field) -> Found:
    platform, kind = model.message.get("model_platform"), model.message.get("model_type")
    typed = kind is not None and kind.value not in ("MODEL_TYPE_UNSPECIFIED",)
    if platform is not None and platform.value and typed:
        assert kind is not None
        yield rules.BOTH_PLATFORMS.at(source, kind.start)
    elif platform is not None and platform.value:
        if platform.value != "tensorflow":
            yield rules.UNKNOWN_PLATFORM.at(source, platform.at, repr(platform.value))
    elif typed:
        assert kind is not None
        if kind.value != "TENSORFLOW":
            yield rules.UNKNOWN_PLATFORM.at(source, kind.at, str(kind.value))
        else:
            edit = Edit(start=kind.start, end=kind.end, text='model_platform: "tensorflow"')
            yield rules.MODEL_TYPE.at(source, kind.start, edit=edit)
    else:
        yield rules.NO_PLATFORM.at(source, (platform or model).start)


def _policy(source: Source, model: Field) -> Found:
    served: set[int] | None = None
    policy = model.message.get("model_version_policy")
    if policy is not None:
        if specific := policy.message.get("specific"):
            versions = specific.message.all("versions")
            served = {version.value for version in versions}
            if not versions:
                yield rules.NO_VERSIONS.at(source, specific.start)
            for version in versions:
                if version.value < 0:
                    yield rules.VERSION_NUMBER.at(source, version.at, str(version.value))
        if (latest := policy.message.get("latest")) and not latest.message.value("num_versions", 0):
            yield rules.ZERO_LATEST.at(source, latest.start)
        if every := policy.message.get("all"):
            yield rules.ALL_VERSIONS.at(source, every.start)
    labels: set[str] = set()
    entries = model.message.all("version_labels")
    if entries:
        yield rules.LABELS_AT_START.at(source, entries[0].start)
    for entry in entries:
        label, version = entry.message.value("key", ""), entry.message.value("value", 0)
        if label in labels:
            yield rules.LABEL_TWICE.at(source, entry.start, repr(label))
        labels.add(label)
        if version < 0 or (served is not None and version not in served):
            yield rules.LABEL_NOT_SERVED.at(source, entry.start, f"{label!r} names {version}")


def check_batching(source: Source, context: Context) -> Found:
    """Check BatchingParameters."""
    if not source.text:
        yield rules.EMPTY.at(source, 0)
        return
    batching, findings = _texts("BatchingParameters", source)
    yield from findings
    value, place = batching.value, partial(_place, batching)
    size, execution = value("max_batch_size"), value("max_execution_batch_size")
    splitting = bool(value("enable_large_batch_splitting"))
    if size is None and not findings:
        rule = rules.SPLIT_UNSIZED if splitting else rules.NO_BATCH_SIZE
        yield rule.at(source, place("enable_large_batch_splitting") if splitting else place(""))
    elif size == 0:
        yield rules.ZERO_BATCH.at(source, place("max_batch_size"))
    elif size is not None and size < 0:
        yield rules.NEGATIVE_BATCH.at(source, place("max_batch_size"), str(size))
    checks: tuple[tuple[str, Callable[[Any], bool], Rule], ...] = (
        ("batch_timeout_micros", lambda found: found < 0, rules.NEGATIVE_TIMEOUT),
        ("batch_timeout_micros", lambda found: found >= _LONG_TIMEOUT, rules.LONG_TIMEOUT),
        ("max_enqueued_batches", lambda found: found < 1, rules.NO_QUEUE),
        ("max_enqueued_batches", lambda found: found >= _ENDLESS, rules.ENDLESS_QUEUE),
        ("num_batch_threads", lambda found: found < 1, rules.NO_THREADS),
    )
    for name, wrong, rule in checks:
        found = value(name)
        if found is not None and wrong(found):
            yield rule.at(source, place(name), str(found))
    if execution is not None and not splitting:
        yield rules.NO_SPLIT.at(source, place("max_execution_batch_size"))
    elif execution is not None and size is not None and execution > size > 0:
        yield rules.SPLIT_SIZES.at(source, place("max_execution_batch_size"), f"{execution} > {size}")
    sizes = batching.all("allowed_batch_sizes")
    if sizes:
        wanted = _DEFAULT_BATCH if size is None else size
        numbers = [each.value for each in sizes]
        if numbers != sorted(set(numbers)):
            yield rules.SIZES_ORDER.at(source, sizes[0].start, str(numbers))
        if numbers[-1] != wanted and wanted > 0:
            what = f"it ends with {numbers[-1]}, and max_batch_size is {wanted}{' by default' if size is None else ''}"
            yield rules.LAST_SIZE.at(source, sizes[-1].at, what)


def _place(message: Message, name: str) -> int:
    found = message.get(name)
    return found.start if found else message.fields[0].start if message.fields else 0


def check_monitoring(source: Source, context: Context) -> Found:
    """Check a MonitoringConfig."""
    config, findings = _texts("MonitoringConfig", source)
    yield from findings
    prometheus = config.get("prometheus_config")
    if findings:
        return
    if prometheus is None or not prometheus.message.value("enable", default=False):
        yield rules.NO_METRICS.at(source, prometheus.start if prometheus else 0)
    elif (path := prometheus.message.get("path")) and path.value and not path.value.startswith("/"):
        edit = Edit(start=path.at + 1, end=path.at + 1, text="/")
        yield rules.METRICS_PATH.at(source, path.at, repr(path.value), edit=edit)


def check_session(source: Source, context: Context) -> Found:
    """Check a tensorflow.ConfigProto."""
    config, findings = _texts("ConfigProto", source)
    yield from findings
    for name in ("intra_op_parallelism_threads", "inter_op_parallelism_threads"):
        if found := config.get(name):
            yield rules.OVERWRITTEN_THREADS.at(source, found.start, name)
    for options in config.all("gpu_options"):
        if found := options.message.get("per_process_gpu_memory_fraction"):
            yield rules.OVERWRITTEN_MEMORY.at(source, found.start)


def check_ssl(source: Source, context: Context) -> Found:
    """Check an SSLConfig."""
    config, findings = _texts("SSLConfig", source)
    yield from findings
    for name in ("server_key", "server_cert", "custom_ca"):
        found = config.get(name)
        if found and found.value and "-----BEGIN" not in found.value:
            yield rules.NOT_PEM.at(source, found.at, name)


def check_platforms(source: Source, context: Context) -> Found:
    """Check a PlatformConfigMap."""
    _, findings = _texts("PlatformConfigMap", source)
    yield from findings


def _recognised(names: re.Pattern[str], files: str) -> Callable[[Source], bool]:
    by_name = re.compile(files)

    def recognise(source: Source) -> bool:
        if source.suffix in (".json", ".yaml", ".yml", ".py", ".sh", ".properties", ".mar", ".ipynb"):
            return False
        if "tensorflow_model_server" in source.text or source.filename.lower().startswith("dockerfile"):
            return False
        text = re.sub(r"(?m)#.*$", "", source.text)
        return bool(names.search(text)) or bool(by_name.search(source.filename.lower()))

    return recognise


_PROTO_SUFFIX: Final = r"\.(pbtxt|config|conf|textproto|txt|cfg)$"


def _kind(
    name: str,
    title: str,
    fields: tuple[str, ...],
    files: str,
    check: Callable[[Source, Context], Iterator[Finding | Follow]],
) -> FileKind:
    names = files + _PROTO_SUFFIX
    return FileKind(name=name, title=title, recognise=_recognised(pattern(*fields), names), check=check)


KINDS: Final = (
    _kind(
        "tfs_model_config", "TensorFlow Serving's --model_config_file", ("model_config_list", "custom_model_config"),
        r"^(bad_|good_)?models?_config", check_models,
    ),
    _kind(
        "tfs_platform", "TensorFlow Serving's --platform_config_file", ("platform_configs",), r"^platform_config",
        check_platforms,
    ),
    _kind(
        "tfs_monitoring", "TensorFlow Serving's --monitoring_config_file", ("prometheus_config",), r"^monitoring(_config)?",
        check_monitoring,
    ),
    _kind(
        "tfs_batching", "TensorFlow Serving's --batching_parameters_file", (*_BATCHING_FIELDS, "batching_parameters"),
        r"^batching_(param(eter)?s|config)", check_batching,
    ),
    _kind(
        "tfs_session", "TensorFlow Serving's --tensorflow_session_config_file", _SESSION_FIELDS, r"^session(_config)?",
        check_session,
    ),
    _kind(
        "tfs_ssl", "TensorFlow Serving's --ssl_config_file", ("server_key", "server_cert", "custom_ca"), r"^ssl_config",
        check_ssl,
    ),
)  # fmt: skip

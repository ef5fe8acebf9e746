"""Checks of ``config.properties``."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from servewright.backends.torchserve import settings
from servewright.backends.torchserve.linting import releases, rules
from servewright.backends.torchserve.properties import Entry, parse_lines, variables
from servewright.errors import SpecError
from servewright.linting.finding import Edit, Finding
from servewright.linting.linter import Context, FileKind, Follow, Found
from servewright.linting.sources import Source

INTEGERS: Final = frozenset(
    {"grpc_inference_max_connection_age_ms", "grpc_inference_max_connection_age_grace_ms",
     "grpc_management_max_connection_age_ms", "grpc_management_max_connection_age_grace_ms",
     "grpc_inference_port", "grpc_management_port", "default_workers_per_model", "default_response_timeout",
     "default_startup_timeout", "unregister_model_timeout", "job_queue_size", "number_of_netty_threads",
     "netty_client_threads", "number_of_gpu", "max_request_size", "max_response_size", "metric_time_interval",
     "io_ratio", "initial_worker_port", "initial_distribution_port"}
)  # fmt: skip
BOOLEANS: Final = frozenset(
    {"enable_grpc_ssl", "install_py_dep_per_model", "decode_input_request", "limit_max_image_pixels", "enable_metrics_api",
     "model_metrics_auto_detect", "disable_system_metrics", "disable_token_authorization", "enable_model_api",
     "use_env_allowed_urls", "enable_envvars_config", "ts_open_inference_protocol", "async_logging",
     "prefer_direct_buffer", "use_native_io", "cpu_launcher_enable", "ipex_enable", "ipex_gpu_enable", "debug"}
)  # fmt: skip
# Seen on 0.12.0: nonsense in these does not keep the server from starting; in the others it does.
_LATE_INTEGERS: Final = frozenset(
    {"default_response_timeout", "default_startup_timeout", "unregister_model_timeout", "max_response_size",
     "metric_time_interval", "io_ratio"}
)  # fmt: skip
_CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "metrics_mode": ("prometheus", "log", "legacy"),
    "service_envelope": ("body", "json", "kserve", "kservev2"),
}
_ADDRESSES: Final = ("inference_address", "management_address", "metrics_address")
_ADDRESS: Final = re.compile(r"https?://[^/:\s]+(:[0-9]{1,5})?/?|https?://\[[0-9a-fA-F:.]+\](:[0-9]{1,5})?/?|unix:/.+")
_OPEN: Final = re.compile(r"https?://(0\.0\.0\.0|\[::\]|\*)(:|/|$)")
# Settings of one model, and how model-config.yaml calls them.
MODEL_KEYS: Final[Mapping[str, str]] = {
    "batch_size": "batchSize", "batchsize": "batchSize", "max_batch_delay": "maxBatchDelay",
    "maxbatchdelay": "maxBatchDelay", "min_workers": "minWorkers", "minworkers": "minWorkers",
    "max_workers": "maxWorkers", "maxworkers": "maxWorkers", "response_timeout": "responseTimeout",
    "responsetimeout": "responseTimeout", "startup_timeout": "startupTimeout", "startuptimeout": "startupTimeout",
    "device_type": "deviceType", "devicetype": "deviceType", "device_ids": "deviceIds", "deviceids": "deviceIds",
    "parallel_type": "parallelType", "paralleltype": "parallelType", "min_worker": "minWorkers",
    "max_worker": "maxWorkers",
}  # fmt: skip
_OLD_KEYS: Final[Mapping[str, str]] = {
    "preload_model": "it is a key of multi-model-server: load_models names what is loaded at the start",
    "num_workers": "set default_workers_per_model, or minWorkers and maxWorkers in model-config.yaml",
    "workers_per_model": "set default_workers_per_model",
    "default_log_level": "there is no log level here: give a log4j2 file with --log-config",
    "log_level": "there is no log level here: give a log4j2 file with --log-config",
    "metrics_format": "set metrics_mode=prometheus",
    "number_of_gpus": "set number_of_gpu",
    "gpu_id": "set deviceIds in model-config.yaml",
    "snapshot": "set model_snapshot",
    "model_snapshot_disabled": "start the server with --ncs",
    "ncs": "start the server with --ncs",
    "load_model": "set load_models",
    "tensorflow_gpu_fraction": "it is a key of another server: remove it",
    "grpc_port": "set grpc_inference_port",
    "vmargs_extra": "set vmargs",
}
# Every key that the server reads: those that a spec may give as they are, and those that a spec has its own words for.
KNOWN: Final = (
    frozenset(settings.PROPERTIES)
    | INTEGERS
    | BOOLEANS
    | {"inference_address", "management_address", "metrics_address", "grpc_inference_address", "grpc_management_address",
       "model_store", "load_models", "metrics_mode", "models", "model_snapshot", "token_expiration_min"}
)  # fmt: skip
# Keys by which a file shows that it is TorchServe's; the others have namesakes in other programs' files.
_TELLING: Final = KNOWN - {
    "debug", "models", "keystore", "keystore_pass", "keystore_type", "vmargs", "plugins_path", "allowed_urls",
    "io_ratio", "certificate_file", "private_key_file", "async_logging",
}  # fmt: skip
_MODEL_INTEGERS: Final = ("minWorkers", "maxWorkers", "batchSize", "maxBatchDelay", "responseTimeout", "startupTimeout")
_MODELS_KEYS: Final = frozenset(_MODEL_INTEGERS) | {"defaultVersion", "marName", "runtimeType"}
_SNAPSHOT_KEYS: Final = ("defaultVersion", "marName", "minWorkers", "maxWorkers", "batchSize", "maxBatchDelay")
_SMALL: Final = 10_000
_LONG_DELAY_MS: Final = 1000
LONG_TIMEOUT_S: Final = 3600


def recognise(source: Source) -> bool:
    """Tell whether a text is a ``config.properties``."""
    if source.suffix in (".py", ".json", ".yaml", ".yml", ".sh", ".mar", ".pbtxt", ".ipynb"):
        return False
    if source.filename.lower().startswith(("dockerfile", "docker-compose")):
        return False
    found = {match[1].lower() for match in re.finditer(r"(?m)^[ \t]*([A-Za-z][\w-]*)[ \t]*[=:]", source.text)}
    if found & _TELLING or re.search(r"(?m)^(models|model_snapshot)[ \t]*=[ \t]*\{", source.text):
        return True
    normal = {name.replace("-", "_") for name in found}
    return source.filename == "config.properties" and bool(normal & (_TELLING | set(MODEL_KEYS) | set(_OLD_KEYS)))


def check(source: Source, context: Context) -> Found:
    """Check every key and value, and what they mean together."""
    try:
        entries = parse_lines(source.text)
    except SpecError as error:
        problem = error.problems[0]
        yield rules.ESCAPE.on(source.name, problem.line, problem.column, problem.reason)
        return
    seen: dict[str, Entry] = {}
    broken: set[int] = set()
    for entry in entries:
        if entry.line in broken:
            continue
        if entry.key in seen:
            yield rules.TWICE.on(source.name, entry.line, 1, f"{entry.key}, first on line {seen[entry.key].line}")
        seen[entry.key] = entry
        if entry.key in ("models", "model_snapshot"):
            yield from _models(source, entry, broken)
        elif entry.key in KNOWN and (what := releases.too_new(entry.key, releases.PROPERTIES, context)):
            yield rules.NEWER_KEY.on(source.name, entry.line, _indent(source, entry.line), what)
        elif entry.key in KNOWN:
            yield from _value(source, entry)
        else:
            yield _unknown(source, entry, _json_before(seen, entry))
    yield from _together(source, seen)
    yield from _store(source, seen)


def _indent(source: Source, line: int) -> int:
    """Return the column at which a line's text begins."""
    return 1 + len(source.line(line)) - len(source.line(line).lstrip())


def _json_before(seen: Mapping[str, Entry], entry: Entry) -> str:
    """Return the key whose JSON was cut off before this line: without a backslash each line is an entry of its own."""
    for name in ("models", "model_snapshot", "snapshot"):
        if name in seen and seen[name].line < entry.line and seen[name].value.count("{") > seen[name].value.count("}"):
            return name
    return ""


def _key_edit(source: Source, entry: Entry, text: str) -> Edit | None:
    start = source.offset(entry.line)
    start += len(source.line(entry.line)) - len(source.line(entry.line).lstrip())
    end = start + len(entry.key)
    return Edit(start=start, end=end, text=text) if source.text[start:end] == entry.key else None


def _unknown(source: Source, entry: Entry, inside: str) -> Finding:
    what, name = repr(entry.key), entry.key.strip('"').lower().replace("-", "_")
    column = _indent(source, entry.line)
    if inside and not re.fullmatch(r"[a-z_]+", entry.key):
        remedy = f"it was meant for {inside}: end every line of the JSON but the last with a backslash"
        return rules.UNKNOWN_KEY.on(source.name, entry.line, column, what, remedy=remedy)
    if name in KNOWN:
        edit = _key_edit(source, entry, name)
        return rules.UNKNOWN_KEY.on(source.name, entry.line, column, what, remedy=f"write {name}", edit=edit)
    if name in MODEL_KEYS:
        remedy = f"write {MODEL_KEYS[name]} into model-config.yaml, or into models={{...}}"
        return rules.MODEL_KEY.on(source.name, entry.line, column, what, remedy=remedy)
    if name in _OLD_KEYS:
        return rules.OLD_KEY.on(source.name, entry.line, column, what, remedy=_OLD_KEYS[name])
    close = difflib.get_close_matches(name[:80], KNOWN, n=1, cutoff=0.8)
    remedy = f"did you mean {close[0]}?" if close else ""
    return rules.UNKNOWN_KEY.on(source.name, entry.line, column, what, remedy=remedy)


def _value(source: Source, entry: Entry) -> Iterator[Finding]:
    key, value, line = entry.key, entry.value, entry.line
    column = source.line(line).find(value[:20]) + 1 if value else 1
    column = max(column, 1)
    whole = source.line(line)
    late = key in _LATE_INTEGERS
    edit = _blanks_edit(source, entry)
    if key in INTEGERS and "$$" not in value and not _is_int(value, key):
        rule = rules.LATE_INTEGER if late else rules.NOT_INTEGER
        yield rule.on(
            source.name, line, column, f"{key}={value!r}", edit=edit if _is_int(value.rstrip(), key) else None
        )
        return
    if value != value.rstrip():
        if key in _ADDRESSES:
            yield rules.ADDRESS.on(source.name, line, column, f"{key}={value!r}", edit=edit)
            return
        yield rules.TRAILING.on(source.name, line, len(whole.rstrip()) + 1, f"{key}={value!r}", edit=edit)
        value = value.rstrip()
    if len(value) > 1 and value[0] in "\"'" and value[-1] == value[0]:
        yield rules.QUOTED.on(source.name, line, column, f"{key}={value}")
        return
    if re.search(r"\s#", value):
        yield rules.COMMENT.on(source.name, line, column, f"{key}={value!r}")
    elif key in BOOLEANS and value.lower() not in ("true", "false") and "$$" not in value:
        yield rules.NOT_BOOLEAN.on(source.name, line, column, f"{key}={value!r}")
    elif key in _CHOICES and value and value.lower() not in _CHOICES[key]:
        remedy = f"write {', '.join(_CHOICES[key][:-1])} or {_CHOICES[key][-1]}"
        yield rules.UNKNOWN_CHOICE.on(source.name, line, column, f"{key}={value!r}", remedy=remedy)
    elif not value and key not in ("vmargs", "load_models", "blacklist_env_vars", "system_metrics_cmd"):
        yield rules.NO_TRUE_VALUE.on(source.name, line, 1, key)
    elif key in _ADDRESSES and "$$" not in value and not _ADDRESS.fullmatch(value):
        yield rules.ADDRESS.on(source.name, line, column, f"{key}={value!r}")
    for name in variables(value):
        yield rules.VARIABLE.on(source.name, line, column, f"$${name}$$")
    if key in ("max_request_size", "max_response_size") and _is_int(value) and 0 <= int(value) < _SMALL:
        yield rules.SMALL_LIMIT.on(source.name, line, column, f"{key}={value}")


def _blanks_edit(source: Source, entry: Entry) -> Edit | None:
    """Return the removal of the blanks after a value, where it ends on the line on which it began."""
    whole, value = source.line(entry.line), entry.value
    if value == value.rstrip() or not whole.endswith(value):
        return None
    end = source.offset(entry.line) + len(whole)
    return Edit(start=end - (len(value) - len(value.rstrip())), end=end, text="")


def _is_int(value: str, key: str = "") -> bool:
    bits = 63 if key.endswith("_ms") else 31
    return bool(re.fullmatch(r"[-+]?[0-9]{1,19}", value)) and -(2**bits) <= int(value) < 2**bits


def _models(source: Source, entry: Entry, broken: set[int]) -> Iterator[Finding]:
    try:
        value = json.loads(entry.value)
    except (ValueError, RecursionError) as error:
        yield rules.BROKEN_JSON.on(source.name, entry.line, 1, f"{entry.key}: {error}")
        _mark_cut_json(source, entry, broken)
        return
    snapshot = entry.key == "model_snapshot"
    models = value.get("models") if snapshot and isinstance(value, dict) else value
    if not isinstance(models, dict):
        yield rules.BROKEN_JSON.on(source.name, entry.line, 1, f"{entry.key}: it holds no models by name")
        return
    for name, versions in models.items():
        for version, own in versions.items() if isinstance(versions, dict) else ():
            if isinstance(own, dict):
                yield from _settings(source, entry, f"{name} {version}", own, snapshot=snapshot)


def _mark_cut_json(source: Source, entry: Entry, broken: set[int]) -> None:
    """Count the braces of a JSON that was cut off at the end of its line: its other lines are no keys."""
    if entry.value.count("{") <= entry.value.count("}"):
        return
    depth = 0
    for line in range(entry.line, source.lines + 1):
        text = source.line(line)
        depth += text.count("{") - text.count("}")
        if line != entry.line:
            broken.add(line)
        if depth <= 0:
            return


def _settings(
    source: Source, entry: Entry, model: str, settings: Mapping[str, Any], *, snapshot: bool
) -> Iterator[Finding]:
    def column(key: str) -> int:
        return max(source.line(entry.line).find(f'"{key}"') + 1, 1)

    missing = [key for key in _SNAPSHOT_KEYS if key not in settings] if snapshot else []
    if missing:
        yield rules.SNAPSHOT_KEYS.on(source.name, entry.line, 1, f"{model} lacks {', '.join(missing)}")
    for key, value in settings.items():
        if key not in _MODELS_KEYS and not snapshot:
            meant = MODEL_KEYS.get(key.lower()) or next(iter(difflib.get_close_matches(key, _MODELS_KEYS, n=1)), "")
            remedy = f"write {meant}" if meant else "move it to model-config.yaml, or remove it"
            yield rules.MODELS_VALUE.on(source.name, entry.line, column(key), f"{model}: {key}", remedy=remedy)
        elif key in _MODEL_INTEGERS and (not isinstance(value, int) or isinstance(value, bool) or value <= 0):
            yield rules.MODELS_VALUE.on(source.name, entry.line, column(key), f"{model}: {key} {value!r}")
    size, delay = settings.get("batchSize", 1), settings.get("maxBatchDelay")
    if isinstance(delay, int) and delay > 0 and size == 1 and "batchSize" not in settings:
        yield rules.DELAY_ALONE.on(source.name, entry.line, column("maxBatchDelay"), model)
    elif isinstance(delay, int) and isinstance(size, int) and size > 1 and delay >= _LONG_DELAY_MS:
        yield rules.LONG_DELAY.on(source.name, entry.line, column("maxBatchDelay"), f"{model}: {delay} ms")
    low, high = settings.get("minWorkers"), settings.get("maxWorkers")
    if isinstance(low, int) and isinstance(high, int):
        if high < low:
            yield rules.WORKER_PAIR.on(source.name, entry.line, column("maxWorkers"), f"{model}: {low} and {high}")
        elif high > low:
            yield rules.NO_SCALING.on(source.name, entry.line, column("maxWorkers"), f"{model}: {low} and {high}")


def _together(source: Source, seen: Mapping[str, Entry]) -> Iterator[Finding]:
    value = {key: entry.value.strip() for key, entry in seen.items()}

    def found(rule: Any, key: str, what: str = "") -> Finding:
        finding: Finding = rule.on(source.name, seen[key].line, 1, what)
        return finding

    inference, management = value.get("inference_address", ""), value.get("management_address", "")
    shared = bool(inference) and inference == management
    if _OPEN.match(management):
        if "allowed_urls" not in value:
            yield found(rules.OPEN_MANAGEMENT, "management_address", management)
        if value.get("disable_token_authorization", "").lower() == "true":
            yield found(rules.NO_TOKENS, "disable_token_authorization")
    if shared:
        yield found(rules.SHARED_LISTENER, "management_address")
    if _OPEN.match(inference) and "grpc_inference_address" not in value:
        yield found(rules.GRPC_LOCAL, "inference_address")
    if "model_snapshot" in value and "load_models" in value:
        yield found(rules.SNAPSHOT_WINS, "load_models")
    if value.get("install_py_dep_per_model", "").lower() == "true":
        yield found(rules.INSTALLS, "install_py_dep_per_model")
    if value.get("cors_allowed_origin") == "*":
        yield found(rules.ANY_ORIGIN, "cors_allowed_origin")
    if value.get("keystore_pass") and "$$" not in value["keystore_pass"]:
        yield found(rules.PASSWORD, "keystore_pass")
    if value.get("load_models") and "model_store" not in value:
        yield found(rules.NO_STORE, "load_models")
    if value.get("default_response_timeout", "").isdigit() and int(value["default_response_timeout"]) >= LONG_TIMEOUT_S:
        yield found(rules.LONG_ANSWER, "default_response_timeout")
    if value.get("service_envelope") == "kservev2" and (models := _batched(value)):
        yield found(rules.KSERVE_BATCH, "service_envelope", models)
    yield from _ports(source, seen, value)


def _batched(value: Mapping[str, str]) -> str:
    sizes = re.findall(r'"batchSize"\s*:\s*([0-9]{1,6})', value.get("models", "") + value.get("model_snapshot", ""))
    return next((f"batchSize {size}" for size in sizes if int(size) > 1), "")


def _ports(source: Source, seen: Mapping[str, Entry], value: Mapping[str, str]) -> Iterator[Finding]:
    used: dict[str, str] = {}
    for key, default in (("inference_address", "8080"), ("management_address", "8081"), ("metrics_address", "8082")):
        text = value.get(key, f"http://127.0.0.1:{default}")
        port = text.rstrip("/").rpartition(":")[2]
        if text.startswith("http") and port.isdigit():
            used.setdefault(port, key)
    for key, default in (("grpc_inference_port", "7070"), ("grpc_management_port", "7071")):
        port = value.get(key, default)
        other = used.setdefault(port, key)
        if other != key:
            at = key if key in seen else other
            if at in seen:
                yield rules.PORT_CLASH.on(source.name, seen[at].line, 1, f"{key} and {other}: {port}")


def _store(source: Source, seen: Mapping[str, Entry]) -> Found:
    store = seen.get("model_store")
    if store is None or not store.value.strip():
        return
    text = store.value.strip().strip("\"'")
    if not text.startswith("/") and "$$" not in text:
        yield rules.RELATIVE_STORE.on(source.name, store.line, 1, repr(text))
    folder = Path(text) if text.startswith("/") else source.path.parent / text
    try:
        paths = sorted(folder.iterdir()) if folder.is_dir() and folder != Path("/") else []
    except (OSError, ValueError):  # no such path, or none that any file system has
        return
    if not paths:
        return
    load = seen["load_models"].value.strip() if "load_models" in seen else ""
    for part in load.split(",") if load.lower() != "all" else ():
        name = part.rpartition("=")[2].strip()
        if name and "/" not in name and ":" not in name and name not in {path.name for path in paths}:
            yield rules.MISSING_ARCHIVE.on(source.name, seen["load_models"].line, 1, name)
    for path in paths:
        if path.suffix == ".mar" and path.is_file():
            yield Follow(path=path, kind="mar")


KIND: Final = FileKind(
    name="ts_config_properties", title="TorchServe's config.properties", recognise=recognise, check=check
)

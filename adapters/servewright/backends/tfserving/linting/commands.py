"""Checks of the commands and containers that start TensorFlow Serving."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from servewright.backends.tfserving import flags, protos
from servewright.backends.tfserving.linting import pbtxt, rules, texts
from servewright.linting.commands import Invocation, Word
from servewright.linting.finding import Edit, Finding, Severity
from servewright.linting.linter import Context, Follow, Found
from servewright.linting.rule import Rule
from servewright.linting.sources import Source

_ERROR, _WARNING, _NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE


def _rule(number: int, severity: Severity, title: str, happens: str, do: str, reference: str = "main.cc") -> Rule:
    return Rule(id=f"RUN{number:03}", severity=severity, title=title, happens=happens, do=do, reference=reference)


UNKNOWN_FLAG: Final = _rule(
    10, _WARNING, "A flag that the server does not have", "the server prints the flag and its usage, and goes on without it",
    "remove it", "tensorflow/serving#1413",
)  # fmt: skip
NEWER_FLAG: Final = _rule(
    11, _WARNING, "A flag of a newer release", "the server prints the flag and its usage, and goes on without it",
    "use a newer image, or remove the flag",
)  # fmt: skip
FLAG_VALUE: Final = _rule(
    12, _ERROR, "A flag with a value of the wrong kind", "the server exits with 255", "write a value of the flag's kind",
)  # fmt: skip
SEPARATE_VALUE: Final = _rule(
    13, _WARNING, "A flag's value in a word of its own", "the server does not read it: the flag keeps its default",
    "write --name=value", "recorded: startup/flags/space-value",
)  # fmt: skip
BATCHING_OFF: Final = _rule(
    14, _ERROR, "A batching file without --enable_batching",
    "the server exits: batching_parameters_file is set without setting enable_batching to true",
    "add --enable_batching=true", "model_servers/server.cc",
)  # fmt: skip
BATCHING_DEFAULTS: Final = _rule(
    15, _NOTE, "Batching without a parameters file", "batches grow up to 1000 rows and never wait for more",
    "add --batching_parameters_file=FILE", "model_servers/server.cc",
)  # fmt: skip
NO_SOURCE: Final = _rule(
    16, _ERROR, "No model is named",
    "the server exits: Both server_options.model_base_path and server_options.model_config_file are empty",
    "add --model_base_path or --model_config_file", "model_servers/server.cc",
)  # fmt: skip
IGNORED_MODEL: Final = _rule(
    17, _WARNING, "A model's flags beside a config file", "--model_config_file wins, and this is not read",
    "remove it, or put the model into the file",
)  # fmt: skip
NO_REST: Final = _rule(
    18, _WARNING, "Metrics without REST", "the monitoring file is read only where REST is on",
    "add --rest_api_port=8501", "model_servers/server.cc",
)  # fmt: skip
SAME_PORT: Final = _rule(
    19, _WARNING, "One port for gRPC and REST", "the server logs an error and opens no REST",
    "give REST a port of its own", "model_servers/server.cc",
)  # fmt: skip
ONE_REST_THREAD: Final = _rule(
    20, _WARNING, "A single REST thread", "the event loop takes it: REST hangs", "write at least 2", "tensorflow/serving#1576",
)  # fmt: skip
TWO_SECURITIES: Final = _rule(
    21, _ERROR, "ALTS and SSL together", "the server exits", "keep one of the two", "model_servers/server.cc",
)  # fmt: skip
THREE_PARALLELISMS: Final = _rule(
    22, _ERROR, "Session parallelism given three times", "the server exits: You cannot configure all",
    "keep --tensorflow_session_parallelism, or the other two", "model_servers/server.cc",
)  # fmt: skip
PLATFORM_FILE: Final = _rule(
    23, _WARNING, "Flags that a platform file overrides",
    "with --platform_config_file, flags of batching, sessions, tags and warm-up are not read",
    "put the settings into the platform file, or drop it", "tensorflow/serving#584",
)  # fmt: skip
LABELS_FAIL: Final = _rule(
    24, _ERROR, "Labels in the first config without the flag that allows them",
    "the server exits: the versions are not loaded yet when labels are assigned",
    "add --allow_version_labels_for_unavailable_models=true", "tensorflow/serving#1230",
)  # fmt: skip
RELATIVE_MODEL: Final = _rule(
    25, _ERROR, "A relative --model_base_path", "the server refuses it: an absolute path or URI is expected",
    "write the path from the root on", "model_servers/server_core.cc",
)  # fmt: skip
VERSION_MODEL: Final = _rule(
    26, _WARNING, "--model_base_path ends in a version",
    "the server looks for versions below it and finds none; it waits without opening a port",
    "name the folder above the version's", "tensorflow/serving#1419",
)  # fmt: skip
FLOATING_IMAGE: Final = _rule(
    27, _WARNING, "An image without a release", "the next pull may bring another server",
    "name a release, such as tensorflow/serving:2.17.1, or a digest", "hub.docker.com/r/tensorflow/serving",
)  # fmt: skip
NO_PORTS: Final = _rule(
    28, _ERROR, "gRPC is off and has no socket", "the server exits: at least one of port and socket must be set",
    "remove --port=0, or add --grpc_socket_path", "model_servers/server.cc",
)  # fmt: skip
BAD_CHANNEL: Final = _rule(
    29, _ERROR, "Channel arguments that are no pairs", "the server crashes on a part without =",
    "write name=value,name=value", "model_servers/server.cc",
)  # fmt: skip

RULES: Final = tuple(value for value in list(globals().values()) if isinstance(value, Rule))
_PROGRAMS: Final = ("tensorflow_model_server", "tf_serving_entrypoint.sh", "tensorflow_model_server.exe")
_FILES: Final[Mapping[str, str]] = {
    "model_config_file": "tfs_model_config",
    "batching_parameters_file": "tfs_batching",
    "monitoring_config_file": "tfs_monitoring",
    "tensorflow_session_config_file": "tfs_session",
    "platform_config_file": "tfs_platform",
    "ssl_config_file": "tfs_ssl",
}
_OVERRIDDEN: Final = (
    "enable_batching", "batching_parameters_file", "tensorflow_session_config_file", "saved_model_tags",
    "enable_model_warmup", "num_request_iterations_for_warmup", "mixed_precision",
)  # fmt: skip
_TRUE: Final = ("true", "True", "TRUE", "1", "")


def check(invocation: Invocation, context: Context) -> Found:
    """Check what starts ``tensorflow_model_server``, directly or through the official image."""
    at = invocation.position(*_PROGRAMS)
    official = bool(re.search(r"(^|/)tensorflow/serving$", invocation.image_name))
    if at < 0 and not official:
        return
    if official and invocation.image is not None:
        yield from _image(invocation, invocation.image)
    if at < 0 and invocation.words and not invocation.words[0].text.startswith("-"):
        return  # another program in the image
    words = invocation.words[at + 1 :] if at >= 0 else invocation.words
    direct = at >= 0 and invocation.words[at].program == _PROGRAMS[0]
    given: dict[str, Word] = {}
    source = invocation.source
    target = context.targets.get("tfserving", flags.DEFAULT_TARGET)
    yield from _flags(source, words, target, given)
    yield from _together(invocation, given, direct=direct)
    yield from _files(invocation, given, context)


def _image(invocation: Invocation, image: Word) -> Found:
    if not invocation.tag or re.fullmatch(r"(latest|nightly)(-.*)?|devel(-gpu)?|gpu", invocation.tag):
        yield FLOATING_IMAGE.at(invocation.source, image.at, repr(image.text))


def _flags(source: Source, words: tuple[Word, ...], target: str, given: dict[str, Word]) -> Iterator[Finding]:
    skip = False
    for number, word in enumerate(words):
        if skip:
            skip = False
            continue
        if not word.text.startswith("-") or word.text == "-":
            continue
        if word.text in ("--help", "--version"):
            given["version"] = word
            continue
        dashes = len(word.text) - len(word.text.lstrip("-"))
        name, sign, value = word.text[dashes:].partition("=")
        flag = flags.FLAGS.get(name)
        value_word = Word(value, word.at + dashes + len(name) + 1)
        if flag is None or dashes != 2:
            yield _unknown(source, word, name, dashes)
            continue
        if flags.release(flag.since) > flags.release(target):
            yield NEWER_FLAG.at(source, word.at, f"--{name} exists since {flag.since}, the target is {target}")
            continue
        following = words[number + 1] if number + 1 < len(words) else None
        if not sign and flag.kind != "bool":
            end = following.text if following and not following.text.startswith("-") else "VALUE"
            skip = end != "VALUE"
            yield SEPARATE_VALUE.at(source, word.at, f"--{name}", remedy=f"write --{name}={end}")
            continue
        given[name] = value_word
        if flag.kind == "bool" and sign and value.lower() not in ("true", "false", "0", "1"):
            if "$" not in value:
                yield FLAG_VALUE.at(source, value_word.at, f"--{name} takes true or false, not {value!r}")
        elif flag.kind in ("int", "float") and not re.fullmatch(
            (r"[-+]?[0-9]+" if flag.kind == "int" else r"[-+]?[0-9.]+([eE][-+]?[0-9]+)?")
            + r"|.*(\$|\{\{).*",  # a variable or a template: nobody knows yet
            value,
        ):
            yield FLAG_VALUE.at(source, value_word.at, f"--{name} takes a number, not {value!r}")


def _unknown(source: Source, word: Word, name: str, dashes: int) -> Finding:
    same = name.replace("-", "_").lower()
    if same in flags.FLAGS:
        end = word.at + dashes + len(name)
        # Where quotes or escapes stand in the way, nothing is mended by itself.
        plain = source.text[word.at : end] == word.text[: dashes + len(name)]
        edit = Edit(start=word.at, end=end, text=f"--{same}") if plain else None
        return UNKNOWN_FLAG.at(source, word.at, repr("-" * dashes + name), remedy=f"write --{same}", edit=edit)
    close = difflib.get_close_matches(name, flags.FLAGS, n=1)
    remedy = f"did you mean --{close[0]}?" if close else ""
    return UNKNOWN_FLAG.at(source, word.at, repr("-" * dashes + name), remedy=remedy)


def _together(invocation: Invocation, given: Mapping[str, Word], *, direct: bool) -> Found:
    source = invocation.source

    def on(name: str) -> bool:
        return name in given and given[name].text in _TRUE

    if "version" in given:
        return
    if "batching_parameters_file" in given and not on("enable_batching") and given["batching_parameters_file"].text:
        yield BATCHING_OFF.at(source, given["batching_parameters_file"].at)
    if on("enable_batching") and "batching_parameters_file" not in given:
        yield BATCHING_DEFAULTS.at(source, given["enable_batching"].at)
    if direct and not {"model_base_path", "model_config_file"} & set(given) and not _open_ended(invocation):
        yield NO_SOURCE.at(source, invocation.at)
    if "model_config_file" in given:
        for name in ("model_name", "model_base_path"):
            if name in given:
                yield IGNORED_MODEL.at(source, given[name].at, f"--{name}")
    if "monitoring_config_file" in given and direct and given.get("rest_api_port", Word("0", 0)).text == "0":
        yield NO_REST.at(source, given["monitoring_config_file"].at)
    rest = given.get("rest_api_port")
    if rest and rest.text not in ("", "0") and rest.text == given.get("port", Word("8500", 0)).text:
        yield SAME_PORT.at(source, rest.at)
    if (threads := given.get("rest_api_num_threads")) and threads.text == "1":
        yield ONE_REST_THREAD.at(source, threads.at)
    if on("use_alts_credentials") and "ssl_config_file" in given:
        yield TWO_SECURITIES.at(source, given["ssl_config_file"].at)
    parallel = [f"tensorflow_{part}_parallelism" for part in ("session", "intra_op", "inter_op")]
    if all(name in given and given[name].text != "0" for name in parallel):
        yield THREE_PARALLELISMS.at(source, given[parallel[0]].at)
    if "platform_config_file" in given:
        for name in _OVERRIDDEN:
            if name in given:
                yield PLATFORM_FILE.at(source, given[name].at, f"--{name}")
    if (port := given.get("port")) and port.text == "0" and "grpc_socket_path" not in given:
        yield NO_PORTS.at(source, port.at)
    if (channel := given.get("grpc_channel_arguments")) and any(
        "=" not in part for part in channel.text.split(",") if part
    ):
        yield BAD_CHANNEL.at(source, channel.at, repr(channel.text))
    yield from _model_path(source, given)


def _model_path(source: Source, given: Mapping[str, Word]) -> Found:
    path = given.get("model_base_path")
    if path is None or "$" in path.text or "model_config_file" in given:
        return
    if not path.text.startswith("/") and "://" not in path.text:
        yield RELATIVE_MODEL.at(source, path.at, repr(path.text))
    elif re.fullmatch(r"[0-9]+", path.text.rstrip("/").rpartition("/")[2]):
        yield VERSION_MODEL.at(source, path.at, repr(path.text))


def _open_ended(invocation: Invocation) -> bool:
    """Tell whether more words may come from elsewhere: ``"$@"``, a variable, a Dockerfile's CMD."""
    return any("$" in word.text or word.text == "\\" for word in invocation.words) or invocation.origin == "dockerfile"


def _files(invocation: Invocation, given: Mapping[str, Word], context: Context) -> Iterator[Finding | Follow]:
    for name, kind in _FILES.items():
        word = given.get(name)
        if word is None or not word.text or "$" in word.text:
            continue
        path = _found(invocation, word.text)
        if path is None:
            continue
        yield Follow(path=path, kind=kind)
        if (
            name == "model_config_file"
            and given.get("allow_version_labels_for_unavailable_models", Word("false", 0)).text not in _TRUE
        ):
            config = context.read(path)
            if config and _labels(config):
                yield LABELS_FAIL.at(invocation.source, word.at, str(path))
    folder = given.get("model_base_path")
    if folder and (path := _found(invocation, folder.text)) and path.is_dir():
        yield from texts.check_folder(invocation.source, folder.at, path)


def _labels(config: Source) -> bool:
    message, _ = pbtxt.read(config.text, protos.ModelServerConfig)
    models = [model for lists in message.all("model_config_list") for model in lists.message.all("config")]
    return any(model.message.all("version_labels") for model in models)


def _found(invocation: Invocation, text: str) -> Path | None:
    """Return where a path of the server lies on this machine, if it does."""
    beside = invocation.source.path.parent
    for path in (Path(invocation.local(text)), Path(text)):
        for candidate in (path, beside / path):
            if candidate.exists():
                return candidate
    return None


__all__ = ["RULES", "check", "rules"]

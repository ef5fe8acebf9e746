"""Checks of the commands, the containers and the environment that start TorchServe."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from servewright.backends.torchserve.linting import releases
from servewright.backends.torchserve.linting.properties import KNOWN
from servewright.backends.torchserve.properties import parse
from servewright.errors import SpecError
from servewright.linting.commands import Invocation, Word
from servewright.linting.finding import Edit, Finding, Severity
from servewright.linting.linter import Context, Follow, Found
from servewright.linting.rule import Rule

_ERROR, _WARNING, _NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE


def _rule(number: int, severity: Severity, title: str, happens: str, do: str, reference: str = "") -> Rule:
    return Rule(id=f"RUN{number:03}", severity=severity, title=title, happens=happens, do=do, reference=reference)


UNKNOWN_FLAG: Final = _rule(
    50, _ERROR, "An option that torchserve does not have", "it prints its usage and exits with 2", "remove it",
    "ts/arg_parser.py",
)  # fmt: skip
NO_STORE: Final = _rule(
    51, _ERROR, "No model store is named", "torchserve exits with 1: --model-store is required",
    "add --model-store, or --ts-config of a file with model_store", "ts/model_server.py",
)  # fmt: skip
BACKGROUND: Final = _rule(
    52, _WARNING, "torchserve goes to the background", "the container ends as soon as the command returns",
    "add --foreground", "ts/model_server.py",
)  # fmt: skip
SNAPSHOTS: Final = _rule(
    53, _WARNING, "Neither --ncs nor --ts-config", "a restart loads the last snapshot from logs/config: old models and ports",
    "add --ncs", "SnapshotManager.java",
)  # fmt: skip
ENV_IGNORED: Final = _rule(
    54, _WARNING, "TS_ variables that are not read", "they count only with enable_envvars_config=true in config.properties",
    "add that line to the file", "ConfigManager.java",
)  # fmt: skip
ENV_UNKNOWN: Final = _rule(
    55, _WARNING, "A TS_ variable of no key", "TorchServe ignores it", "correct or remove it", "ConfigManager.java",
)  # fmt: skip
MISSING_MODEL: Final = _rule(
    56, _WARNING, "--models names an archive that is not in the store", "the server starts without the model",
    "put the archive there, or correct the name", "pytorch/serve#2099",
)  # fmt: skip
OPEN_MANAGEMENT: Final = _rule(
    57, _WARNING, "The management port is published to the network", "who reaches it can load code of his own",
    "publish it to 127.0.0.1 alone: 127.0.0.1:8081:8081", "CVE-2023-43654",
)  # fmt: skip
NO_TOKENS: Final = _rule(
    58, _NOTE, "Tokens are off", "everybody who reaches the ports may call the APIs",
    "remove --disable-token-auth, or keep the ports to yourself", "pytorch/serve#3157",
)  # fmt: skip
FLOATING_IMAGE: Final = _rule(
    59, _WARNING, "An image without a release", "the next pull may bring another server",
    "name a release, such as pytorch/torchserve:0.12.0-cpu, or a digest", "hub.docker.com/r/pytorch/torchserve",
)  # fmt: skip
NO_SUCH_IMAGE: Final = _rule(
    60, _WARNING, "A tag that was never published", "there is no plain release tag: the pull fails",
    "add -cpu or -gpu to the tag", "hub.docker.com/r/pytorch/torchserve",
)  # fmt: skip
NO_ACTION: Final = _rule(
    61, _WARNING, "torchserve without --start", "it prints its usage and starts nothing", "add --start", "ts/model_server.py",
)  # fmt: skip
OPEN_API: Final = _rule(
    62, _WARNING, "The model API without tokens", "everybody who reaches the port can register models, which is running code",
    "remove --disable-token-auth or --enable-model-api", "pytorch/serve SECURITY.md",
)  # fmt: skip

RULES: Final = tuple(value for value in list(globals().values()) if isinstance(value, Rule))
# Options, and whether each takes a value.
OPTIONS: Final[Mapping[str, bool]] = {
    "-v": False, "--version": False, "--start": False, "--stop": False, "--ts-config": True, "--model-store": True,
    "--workflow-store": True, "--models": True, "--log-config": True, "--cpp-log-config": True, "--foreground": False,
    "--no-config-snapshots": False, "--ncs": False, "--plugins-path": True, "--ppath": True,
    "--disable-token-auth": False, "--dt": False, "--enable-model-api": False, "-h": False, "--help": False,
}  # fmt: skip
_MEANT: Final = {
    "--log-level": "write --log-config FILE, a log4j2 file: there is no log level on the command line",
    "--metrics-mode": "write metrics_mode=prometheus into config.properties (prometheus, log or legacy)",
    "--model-name": "write --models NAME=FILE.mar",
    "--port": "set inference_address in config.properties",
    "--workers": "set default_workers_per_model in config.properties",
    "--batch-size": "set batchSize in model-config.yaml",
    "--config": "write --ts-config FILE",
    "--gpu": "set number_of_gpu in config.properties",
    "--inference-address": "set inference_address in config.properties",
}
_OTHER_VARIABLES: Final = frozenset(
    {"TS_CONFIG_FILE", "TS_MODEL_SERVER_HOME", "TS_OPEN_INFERENCE_PROTOCOL", "TS_BENCHMARK", "TS_ALLOWED_URLS",
     "TS_TOKEN_EXPIRATION_TIME_MIN", "TS_HEADER_KEY_SEQUENCE_ID", "TS_HEADER_KEY_SEQUENCE_START",
     "TS_HEADER_KEY_SEQUENCE_END", "TS_SERVICE_ENVELOPE"}
)  # fmt: skip
_IMAGE: Final = re.compile(r"(^|/)pytorch/torchserve(-kfs|-nightly)?$")


def check(invocation: Invocation, context: Context) -> Found:
    """Check what starts ``torchserve``, directly or through the official image."""
    at = invocation.position("torchserve")
    # `pip install torchserve` and `docker build -t torchserve` start nothing.
    starts = at == 0 or (at > 0 and any(word.text.startswith("--") for word in invocation.words[at + 1 :])
                         and invocation.words[0].program not in ("pip", "pip3", "apt-get", "conda", "docker", "echo", "python", "kubectl", "helm"))  # fmt: skip
    official = bool(_IMAGE.search(invocation.image_name))
    if not official and not starts:
        return
    if official and invocation.image is not None:
        yield from _image(invocation, invocation.image)
    options: dict[str, Word] = {}
    if starts:
        yield from _options(invocation, at, options, context)
        yield from _together(invocation, at, options)
    yield from _ports(invocation)
    config = _config(invocation, options)
    if config is not None:
        yield Follow(path=config, kind="ts_config_properties")
    yield from _environment(invocation, config, context)
    yield from _models(invocation, options)


def _image(invocation: Invocation, image: Word) -> Found:
    tag = invocation.tag
    if not tag or re.fullmatch(r"latest(-cpu|-gpu)?", tag):
        yield FLOATING_IMAGE.at(invocation.source, image.at, repr(image.text))
    elif re.fullmatch(r"[0-9]+\.[0-9]+\.[0-9]+", tag) and invocation.image_name.endswith("/torchserve"):
        yield NO_SUCH_IMAGE.at(invocation.source, image.at, repr(image.text), remedy=f"write {image.text}-cpu or -gpu")


def _options(invocation: Invocation, at: int, options: dict[str, Word], context: Context) -> Iterator[Finding]:
    words = invocation.words[at + 1 :]
    source = invocation.source
    taking = ""
    for number, word in enumerate(words):
        name, sign, value = word.text.partition("=")
        if not word.text.startswith("-"):
            if taking and (taking == "--models" or not options[taking].text):
                options[taking] = Word(f"{options[taking].text} {word.text}".strip(), word.at)
            continue
        taking = ""
        # argparse takes any beginning of an option that only one option has.
        full = name if name in OPTIONS else ""
        if not full:
            candidates = [option for option in OPTIONS if len(name) > 2 and option.startswith(name)]
            full = candidates[0] if len(candidates) == 1 else ""
        if not full:
            yield _unknown(invocation, word, name)
            if not sign and number + 1 < len(words) and not words[number + 1].text.startswith("-"):
                taking = "?"
                options["?"] = Word("?", word.at)
            continue
        if what := releases.too_new(full, releases.OPTIONS, context):
            yield UNKNOWN_FLAG.at(source, word.at, what, remedy="use a newer release, or remove it")
            continue
        options[full] = Word(value, word.at)
        if OPTIONS[full] and not sign:
            taking = full


def _unknown(invocation: Invocation, word: Word, name: str) -> Finding:
    source = invocation.source
    if name in _MEANT:
        return UNKNOWN_FLAG.at(source, word.at, repr(name), remedy=_MEANT[name])
    same = "--" + name.lstrip("-").replace("_", "-").lower()
    if same in OPTIONS:
        edit = Edit(start=word.at, end=word.at + len(name), text=same)
        fits = source.text[edit.start : edit.end] == name
        return UNKNOWN_FLAG.at(source, word.at, repr(name), remedy=f"write {same}", edit=edit if fits else None)
    close = difflib.get_close_matches(name, OPTIONS, n=1)
    return UNKNOWN_FLAG.at(source, word.at, repr(name), remedy=f"did you mean {close[0]}?" if close else "")


def _together(invocation: Invocation, at: int, options: Mapping[str, Word]) -> Iterator[Finding]:
    source, place = invocation.source, invocation.words[at].at
    if {"--stop", "--version", "-v", "--help", "-h"} & set(options):
        return
    variable = any("$" in word.text for word in invocation.words)
    if "--start" not in options:
        if not variable:
            yield NO_ACTION.at(source, place)
        return
    configured = "--ts-config" in options or "TS_CONFIG_FILE" in invocation.environment or variable
    if "--model-store" not in options and not configured:
        yield NO_STORE.at(source, place)
    in_container = invocation.origin in ("dockerfile", "compose", "kubernetes")
    official = bool(_IMAGE.search(invocation.image_name)) and at == 0  # its entry point waits for ever
    if "--foreground" not in options and in_container and not invocation.stays and not official:
        yield BACKGROUND.at(source, place)
    if "--ncs" not in options and "--no-config-snapshots" not in options and not configured:
        yield SNAPSHOTS.at(source, place)
    off = options.get("--disable-token-auth") or options.get("--dt")
    if off is not None:
        rule = OPEN_API if "--enable-model-api" in options else NO_TOKENS
        yield rule.at(source, off.at)


def _ports(invocation: Invocation) -> Iterator[Finding]:
    for port in invocation.ports:
        parts = port.text.partition("/")[0].rsplit(":", 2)
        inside, host = parts[-1], parts[0] if len(parts) == 3 else ""
        if inside in ("8081", "7071") and len(parts) > 1 and host.strip("[]") not in ("127.0.0.1", "::1", "localhost"):
            yield OPEN_MANAGEMENT.at(invocation.source, port.at, repr(port.text))


def _config(invocation: Invocation, options: Mapping[str, Word]) -> Path | None:
    named = options.get("--ts-config") or invocation.environment.get("TS_CONFIG_FILE")
    if named is not None:
        return _found(invocation, named.text)
    if _IMAGE.search(invocation.image_name):
        return _found(invocation, "/home/model-server/config.properties")
    return None


def _environment(invocation: Invocation, config: Path | None, context: Context) -> Iterator[Finding]:
    known = {f"TS_{key.upper()}" for key in KNOWN} | _OTHER_VARIABLES
    overrides: list[str] = []
    for name, word in invocation.environment.items():
        if not name.startswith("TS_"):
            continue
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
            yield ENV_UNKNOWN.at(invocation.source, word.at, name, remedy=f"did you mean {close[0]}?" if close else "")
        elif name not in ("TS_CONFIG_FILE", "TS_OPEN_INFERENCE_PROTOCOL", "TS_MODEL_SERVER_HOME", "TS_BENCHMARK"):
            overrides.append(name)
    if not overrides or config is None:
        return
    text = context.read(config)
    try:
        settings = parse(text.text) if text else {}
    except SpecError:
        return
    if settings.get("enable_envvars_config", "").strip().lower() != "true":
        word = invocation.environment[overrides[0]]
        yield ENV_IGNORED.at(invocation.source, word.at, f"{', '.join(overrides)} with {config}")


def _models(invocation: Invocation, options: Mapping[str, Word]) -> Found:
    store = options.get("--model-store")
    folder = _found(invocation, store.text) if store and store.text else None
    if folder is None or not folder.is_dir():
        return
    models = options.get("--models")
    for part in re.split(r"[,\s]+", models.text) if models else ():
        name = part.rpartition("=")[2]
        if models and name and "$" not in name and "/" not in name and name != "all" and not (folder / name).exists():
            yield MISSING_MODEL.at(invocation.source, models.at, repr(name))
    for path in sorted(folder.glob("*.mar")):
        yield Follow(path=path, kind="mar")


def _found(invocation: Invocation, text: str) -> Path | None:
    """Return where a path of the server lies on this machine, if it does."""
    if not text or "$" in text:
        return None
    beside = invocation.source.path.parent
    for path in (Path(invocation.local(text)), Path(text)):
        for candidate in (path, beside / path):
            if candidate.exists():
                return candidate
    return None

"""What can be wrong in TorchServe's files; sources are its code, its issues, and starts of a real 0.12.0."""

from __future__ import annotations

from typing import Final

from servewright.linting.finding import Severity
from servewright.linting.rule import Rule

_ERROR, _WARNING, _NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE


def _rule(number: int, severity: Severity, title: str, happens: str, do: str, reference: str = "") -> Rule:
    return Rule(id=f"TS{number:03}", severity=severity, title=title, happens=happens, do=do, reference=reference)


ESCAPE: Final = _rule(
    1, _ERROR, "A malformed \\u escape", "Java refuses the file and the server exits", "write \\\\ for a backslash",
    "java.util.Properties",
)  # fmt: skip
UNKNOWN_KEY: Final = _rule(
    2, _WARNING, "A key that nothing reads", "TorchServe ignores it without a word", "remove it", "ConfigManager.java",
)  # fmt: skip
MODEL_KEY: Final = _rule(
    3, _WARNING, "A model's setting among the server's", "TorchServe ignores it here",
    "write it into the model's model-config.yaml, or into models={...}", "ConfigManager.java",
)  # fmt: skip
OLD_KEY: Final = _rule(
    4, _WARNING, "A key of another server or an older release", "TorchServe ignores it", "remove it",
    "pytorch/serve#2365",
)  # fmt: skip
TWICE: Final = _rule(
    5, _WARNING, "A key given twice", "the last one wins, without a word", "remove one of the two", "java.util.Properties",
)  # fmt: skip
NOT_INTEGER: Final = _rule(
    6, _ERROR, "A value that must be a whole number", "the server exits: Invalid configuration", "write digits alone",
    "seen on 0.12.0",
)  # fmt: skip
NOT_BOOLEAN: Final = _rule(
    7, _WARNING, "A switch that is neither true nor false", "everything but true counts as false", "write true or false",
    "ConfigManager.java",
)  # fmt: skip
QUOTED: Final = _rule(
    8, _WARNING, "A value in quotes", "the quotes are part of the value", "remove the quotes", "java.util.Properties",
)  # fmt: skip
TRAILING: Final = _rule(
    9, _WARNING, "Blanks after a value", "they are part of the value", "remove them", "java.util.Properties",
)  # fmt: skip
COMMENT: Final = _rule(
    10, _WARNING, "A comment after a value", "it is part of the value: comments have lines of their own",
    "put it on a line of its own", "java.util.Properties",
)  # fmt: skip
BROKEN_JSON: Final = _rule(
    11, _ERROR, "models or model_snapshot is not JSON", "the server cannot read it and exits",
    "write JSON on one line, or end every line but the last with a backslash", "ConfigManager.java",
)  # fmt: skip
SNAPSHOT_KEYS: Final = _rule(
    12, _ERROR, "A model_snapshot entry without a key that it needs", "the server ends with a NullPointerException",
    "add defaultVersion, marName, minWorkers, maxWorkers, batchSize and maxBatchDelay", "Model.java",
)  # fmt: skip
MODELS_VALUE: Final = _rule(
    13, _WARNING, "A setting in models={...} that is not read", "TorchServe ignores it or takes its default",
    "write a positive whole number to a key that it knows", "ConfigManager.java",
)  # fmt: skip
SNAPSHOT_WINS: Final = _rule(
    14, _NOTE, "model_snapshot beside load_models", "load_models is not read", "remove one of the two", "SnapshotManager.java",
)  # fmt: skip
UNKNOWN_CHOICE: Final = _rule(
    15, _WARNING, "A value that is not among the choices", "TorchServe falls back or fails at the first request",
    "choose an allowed value", "ConfigManager.java",
)  # fmt: skip
ADDRESS: Final = _rule(
    16, _ERROR, "An address that is none", "the server exits: invalid address",
    "write http://host:port, https://host:port or unix:/path", "Connector.java",
)  # fmt: skip
OPEN_MANAGEMENT: Final = _rule(
    17, _WARNING, "The management port is open to the network",
    "who reaches it can load code of his own: allowed_urls lets any URL in",
    "bind it to 127.0.0.1, or set allowed_urls and keep tokens on", "pytorch/serve SECURITY.md; CVE-2023-43654",
)  # fmt: skip
NO_TOKENS: Final = _rule(
    18, _WARNING, "Tokens are off on an open server", "everybody who reaches it may call every API",
    "remove disable_token_authorization=true, or bind to 127.0.0.1", "pytorch/serve#3157",
)  # fmt: skip
SHARED_LISTENER: Final = _rule(
    19, _NOTE, "Inference and management share a listener", "management is open wherever inference is",
    "give management an address of its own", "ConfigManager.java",
)  # fmt: skip
GRPC_LOCAL: Final = _rule(
    20, _NOTE, "HTTP is open and gRPC is not", "gRPC listens on 127.0.0.1: a published port 7070 cannot be reached",
    "set grpc_inference_address=0.0.0.0 if gRPC is used", "ConfigManager.java",
)  # fmt: skip
INSTALLS: Final = _rule(
    21, _NOTE, "Packages are installed when a model loads", "each load needs the network and takes what is newest",
    "bake the packages into the image", "pytorch/serve#1130",
)  # fmt: skip
ANY_ORIGIN: Final = _rule(
    22, _WARNING, "Any web page may call the server", "browsers allow requests from every site",
    "name the origins", "ConfigManager.java",
)  # fmt: skip
PASSWORD: Final = _rule(
    23, _WARNING, "A password in the file", "who can read the file has it",
    "use keystore_pass=$$KEYSTORE_PASS$$ and set the variable", "ConfigManager.java",
)  # fmt: skip
RELATIVE_STORE: Final = _rule(
    24, _NOTE, "A relative model_store", "it depends on the folder that the server is started in", "write the path from the root on",
    "ConfigManager.java",
)  # fmt: skip
NO_STORE: Final = _rule(
    25, _NOTE, "Models without a model_store", "the server exits unless --model-store names one", "add model_store=/path",
    "ts/model_server.py",
)  # fmt: skip
SMALL_LIMIT: Final = _rule(
    26, _WARNING, "A tiny size limit", "it counts bytes: nearly every request is refused with 413",
    "write bytes: 10485760 is 10 MiB", "ConfigManager.java",
)  # fmt: skip
VARIABLE: Final = _rule(
    28, _NOTE, "A variable of the environment in a value", "the server exits where the variable is not set",
    "set it wherever this file is used", "ConfigManager.java",
)  # fmt: skip
MISSING_ARCHIVE: Final = _rule(
    30, _WARNING, "load_models names an archive that is not in the store", "the server starts without the model",
    "put the archive there, or correct the name", "pytorch/serve#2099",
)  # fmt: skip
PORT_CLASH: Final = _rule(
    33, _ERROR, "Two listeners on one port", "the second cannot bind and the server exits", "give each a port of its own",
    "ModelServer.java",
)  # fmt: skip
NO_TRUE_VALUE: Final = _rule(
    34, _WARNING, "A line without a value", "the key is set to an empty text", "write key=value, or remove the line",
    "java.util.Properties",
)  # fmt: skip
LATE_INTEGER: Final = _rule(
    35,
    _WARNING,
    "A number that is read later and is none",
    "the server starts, and fails when it needs the number",
    "write digits alone",
    "seen on 0.12.0",
)
NEWER_KEY: Final = _rule(
    36, _WARNING, "A key of a newer release", "this release ignores it without a word",
    "use a newer release, or remove it", "ConfigManager.java of 0.8.2 to 0.12.0",
)  # fmt: skip
YAML: Final = _rule(
    40, _ERROR, "model-config.yaml is not YAML", "the model's workers die in a loop, and /ping says Healthy",
    "correct the YAML at this place", "seen on 0.12.0",
)  # fmt: skip
NO_MAP: Final = _rule(
    41, _ERROR, "model-config.yaml is no map", "the server exits where the model is loaded at its start",
    "write key: value lines, or leave the file out", "seen on 0.12.0",
)  # fmt: skip
YAML_KEY: Final = _rule(
    42, _WARNING, "A misspelt key of the model's settings", "TorchServe hands it to the handler and reads nothing",
    "write the key as TorchServe spells it", "ModelConfig.java",
)  # fmt: skip
YAML_TYPE: Final = _rule(
    43, _WARNING, "A setting of the wrong type", "TorchServe logs a line and takes the default",
    "write a value of its type, without quotes", "seen on 0.12.0",
)  # fmt: skip
YAML_RANGE: Final = _rule(
    44, _WARNING, "A setting out of range", "TorchServe takes the default", "write a positive number", "seen on 0.12.0",
)  # fmt: skip
ZERO_DELAY: Final = _rule(
    45, _WARNING, "maxBatchDelay 0", "zero counts as not set: 100 ms", "write 1, the smallest real value", "seen on 0.12.0",
)  # fmt: skip
WORKER_PAIR: Final = _rule(
    46, _WARNING, "minWorkers and maxWorkers do not go together", "both are ignored: the server chooses",
    "set both, and maxWorkers not below minWorkers", "ModelConfig.java",
)  # fmt: skip
DELAY_ALONE: Final = _rule(
    47, _WARNING, "A batch delay without a batch size", "the batch is 1: nothing is ever grouped",
    "add batchSize, or remove maxBatchDelay", "pytorch/serve#1699",
)  # fmt: skip
DEFAULT_DELAY: Final = _rule(
    48, _NOTE, "A batch size without a delay", "a batch that does not fill waits 100 ms, the default",
    "add maxBatchDelay in milliseconds", "pytorch/serve#2005",
)  # fmt: skip
DEVICE: Final = _rule(
    49, _WARNING, "An unknown deviceType", "TorchServe takes the GPU if there is one", "write cpu or gpu", "ModelConfig.java",
)  # fmt: skip
DEVICE_IDS: Final = _rule(
    50, _WARNING, "deviceIds that are not used", "one bad element drops the list, and the CPU has no ids",
    "list whole numbers of GPUs, with deviceType: gpu", "ModelConfig.java",
)  # fmt: skip
PARALLEL: Final = _rule(
    51, _WARNING, "An unknown parallelType", "TorchServe logs a line and uses none", "write pp, tp, pptp or custom", "ModelConfig.java",
)  # fmt: skip
TORCHRUN: Final = _rule(
    52, _WARNING, "An unknown key below torchrun", "TorchServe logs a line and ignores it", "correct the key", "ModelConfig.java",
)  # fmt: skip
LEVEL_TWICE: Final = _rule(
    53, _NOTE, "parallelLevel beside torchrun", "torchrun's nproc-per-node replaces it", "remove parallelLevel", "ModelConfig.java",
)  # fmt: skip
NO_SCALING: Final = _rule(
    54, _NOTE, "maxWorkers above minWorkers", "TorchServe starts minWorkers and never scales by itself",
    "set both to what you need", "pytorch/serve#3339",
)  # fmt: skip
SHORT_QUEUE: Final = _rule(
    55, _WARNING, "A queue shorter than a batch", "no batch ever fills", "raise jobQueueSize above batchSize", "pytorch/serve#2019",
)  # fmt: skip
YAML_TWICE: Final = _rule(
    56, _WARNING, "A key given twice", "the last one wins, without a word", "remove one of the two", "SnakeYAML",
)  # fmt: skip
YAML_PLACEHOLDER: Final = _rule(
    57, _WARNING, "A placeholder that nothing filled in", "TorchServe does not expand variables here: it takes the text",
    "write the value", "ModelConfig.java",
)  # fmt: skip
LONG_ANSWER: Final = _rule(
    58, _NOTE, "A responseTimeout of an hour or more", "a worker that hangs is not restarted for that long",
    "write what the slowest batch needs", "ModelConfig.java",
)  # fmt: skip
LONG_DELAY: Final = _rule(
    59, _NOTE, "A long batch delay", "every batch that does not fill waits that long",
    "write 1 to 50 milliseconds for requests that somebody waits for", "pytorch/serve#2019",
)  # fmt: skip
FICTION: Final = _rule(
    60, _WARNING, "A file that TorchServe does not read", "there is no model_config.json: nothing in it has an effect",
    "write model-config.yaml and name it with --config-file when the archive is made", "model-archiver/README.md",
)  # fmt: skip
FICTION_KEY: Final = _rule(
    61, _WARNING, "A key that has another name and place", "TorchServe does not read it here", "write what is named",
    "ModelConfig.java",
)  # fmt: skip
KSERVE_BATCH: Final = _rule(
    62, _WARNING, "kservev2 with batches", "the envelope reads the first request only: answers do not match",
    "keep batchSize at 1, or use another envelope", "ts/torch_handler/request_envelope/kservev2.py",
)  # fmt: skip
NEWER_SETTING: Final = _rule(
    63, _WARNING, "A model's setting of a newer release", "this release hands it to the handler and reads nothing",
    "use a newer release, or remove it", "ModelConfig.java of 0.8.2 to 0.12.0",
)  # fmt: skip

RULES: Final = tuple(value for value in list(globals().values()) if isinstance(value, Rule))

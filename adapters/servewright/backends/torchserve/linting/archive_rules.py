"""What can be wrong in a ``.mar``: the zip, its manifest, its handler, its weights."""

from __future__ import annotations

from typing import Final

from servewright.linting.finding import Severity
from servewright.linting.rule import Rule

_ERROR, _WARNING, _NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE


def _rule(number: int, severity: Severity, title: str, happens: str, do: str, reference: str = "") -> Rule:
    return Rule(id=f"MAR{number:03}", severity=severity, title=title, happens=happens, do=do, reference=reference)


BROKEN_MANIFEST: Final = _rule(
    1, _ERROR, "MANIFEST.json is not JSON", "registration fails: 400 InvalidModelException", "correct the JSON at this place",
    "seen on 0.12.0",
)  # fmt: skip
NO_MODEL: Final = _rule(
    2, _ERROR, "A manifest without a model", "registration fails: Missing Model entry in manifest file",
    'add "model": {"modelName": ..., "handler": ...}', "ModelArchive.java",
)  # fmt: skip
NO_NAME: Final = _rule(
    3, _WARNING, "A manifest without modelName", "the model loads only where a name is given with it: NAME=FILE.mar",
    "add modelName", "ModelArchive.java",
)  # fmt: skip
NO_HANDLER: Final = _rule(
    4, _WARNING, "A manifest without a handler", "workers fail unless default_service_handler is set", "add handler",
    "seen on 0.12.0",
)  # fmt: skip
NO_VERSION: Final = _rule(
    5, _NOTE, "A manifest without modelVersion", "it is version 1.0", "add modelVersion", "seen on 0.12.0"
)
NO_DATES: Final = _rule(
    6, _NOTE, "A manifest without createdOn or archiverVersion", "the server logs a warning",
    "make the archive with an archiver", "seen on 0.12.0",
)  # fmt: skip
RUNTIME: Final = _rule(
    7, _WARNING, "An unknown runtime", "the server takes python", "write python, python3 or LSP", "Manifest.java",
)  # fmt: skip
MANIFEST_KEY: Final = _rule(
    8, _WARNING, "A key of the manifest that nothing reads", "TorchServe ignores it", "correct or remove it", "Manifest.java",
)  # fmt: skip
MODEL_NAME: Final = _rule(
    9, _WARNING, "A model name that URLs cannot hold", "requests cannot name the model",
    "use letters, digits, ., - and _, and begin with a letter or digit", "model_packaging_utils.py",
)  # fmt: skip
OLD_FORMAT: Final = _rule(
    10, _NOTE, "A manifest of multi-model-server", "its other keys are ignored", "make the archive anew with torch-model-archiver",
    "Manifest.java",
)  # fmt: skip
NO_ZIP: Final = _rule(
    20, _ERROR, "An archive that is no zip", "registration fails: 400", "make the archive anew: it was cut off", "seen on 0.12.0",
)  # fmt: skip
UNSAFE_NAME: Final = _rule(
    21, _ERROR, "A member whose name leaves the folder or fits no file system",
    "unpacking it may write anywhere on the machine", "do not use the archive; make it anew from its sources",
    "CVE-2023-48299",
)  # fmt: skip
LINK: Final = _rule(
    22, _ERROR, "A link or a device in the archive", "unpacking it may reach files outside of its folder",
    "do not use the archive; store plain files", "APPNOTE 4.3",
)  # fmt: skip
CLASHING: Final = _rule(
    23, _ERROR, "Members that hide each other", "what is unpacked depends on the program and on the file system",
    "store every file once, under one name", "APPNOTE 4.3",
)  # fmt: skip
BOMB: Final = _rule(
    24, _ERROR, "An archive that unpacks to far more than it is", "unpacking it fills the disk",
    "do not use the archive", "CWE-409",
)  # fmt: skip
METHOD: Final = _rule(
    25, _ERROR, "Members that Java cannot read", "unpacking fails", "store or deflate every member, without a password",
    "java.util.zip",
)  # fmt: skip
HIDDEN: Final = _rule(
    26, _ERROR, "Records that contradict each other, or bytes that belong to nothing",
    "programs see different contents in one archive", "do not use the archive; make it anew from its sources", "CWE-436",
)  # fmt: skip
MISSING_MANIFEST: Final = _rule(
    30, _WARNING, "An archive without MAR-INF/MANIFEST.json",
    "it loads only through the management API, with model_name and handler given", "make it with torch-model-archiver",
    "seen on 0.12.0",
)  # fmt: skip
MISSING_HANDLER: Final = _rule(
    31, _ERROR, "The handler is not in the archive", "workers die: the module cannot be imported",
    "add the file, or name a built-in handler", "pytorch/serve#498",
)  # fmt: skip
MISSING_FILE: Final = _rule(
    32, _ERROR, "The manifest names a file that is not in the archive", "workers die in a loop, and /ping says Healthy",
    "add the file to the archive's root, or correct the manifest", "seen on 0.12.0",
)  # fmt: skip
PICKLE: Final = _rule(
    36, _WARNING, "Weights that run code when they are read", "whoever wrote the file decides what the worker runs",
    "store weights alone: torch.save(model.state_dict()), or safetensors", "docs.python.org/3/library/pickle.html",
)  # fmt: skip
OPENED_FILE: Final = _rule(
    40, _WARNING, "The handler opens a file that is not in the archive", "it raises FileNotFoundError when it runs",
    "add the file with --extra-files", "pytorch/serve#2391",
)  # fmt: skip
HANDLER_SYNTAX: Final = _rule(
    41, _ERROR, "The handler is not Python", "workers die: SyntaxError", "correct the code at this place", "pytorch/serve#498",
)  # fmt: skip
HANDLER_CLASSES: Final = _rule(
    42, _ERROR, "The handler has no entry point", "workers die: the module must define handle, or exactly one class",
    "define handle(data, context), or one class", "ts/model_loader.py",
)  # fmt: skip
HANDLER_METHODS: Final = _rule(
    43, _ERROR, "The handler's class lacks a method", "workers die: handle and initialize are called",
    "define both, or derive from BaseHandler", "ts/model_loader.py",
)  # fmt: skip
SHADOWED_MODULE: Final = _rule(
    44, _WARNING, "The handler has the name of another module", "that module may be imported instead", "rename the file",
    "ts/model_loader.py",
)  # fmt: skip
NO_LIST: Final = _rule(
    45, _WARNING, "The handler does not return a list", "answers are 503: Invalid model predict output",
    "return one element per request of the batch", "ts/service.py",
)  # fmt: skip
DANGEROUS_CALL: Final = _rule(
    46, _WARNING, "The handler reads pickles or runs texts", "a file or a request decides what the worker runs",
    "load with torch.load(..., weights_only=True), parse with json", "docs.python.org/3/library/pickle.html",
)  # fmt: skip
HANDLER_ARGUMENTS: Final = _rule(
    47, _ERROR, "handle does not take data and context", "every request is a 503: the call raises TypeError",
    "define handle(data, context)", "ts/service.py",
)  # fmt: skip
ONE_ITEM: Final = _rule(
    48, _NOTE, "The handler reads the first request only", "with batchSize above 1 the other requests get no answer",
    "loop over data", "ts/service.py",
)  # fmt: skip
HIDES_LIBRARY: Final = _rule(
    49, _WARNING, "A file of the archive hides a library",
    "the model's folder comes first for workers: every later import of that name gets this file",
    "rename the file, or leave the library to requirements.txt", "docs.python.org/3/using/cmdline.html#envvar-PYTHONPATH",
)  # fmt: skip

RULES: Final = tuple(value for value in list(globals().values()) if isinstance(value, Rule))
# Which rule a finding of the archive check belongs to.
OF_CHECK: Final = {
    "no zip": NO_ZIP, "broken": NO_ZIP, "empty name": UNSAFE_NAME, "backslash": UNSAFE_NAME,
    "control character": UNSAFE_NAME, "absolute path": UNSAFE_NAME, "drive letter": UNSAFE_NAME,
    "parent path": UNSAFE_NAME, "empty component": UNSAFE_NAME, "too long": UNSAFE_NAME, "duplicate": CLASHING,
    "collision": CLASHING, "shadowed": CLASHING, "link": LINK, "device": LINK, "encryption": METHOD, "method": METHOD,
    "size bomb": BOMB, "ratio bomb": BOMB, "count bomb": BOMB, "trailing data": HIDDEN, "hidden data": HIDDEN,
    "overlap": HIDDEN, "mismatch": HIDDEN, "content": HIDDEN,
}  # fmt: skip

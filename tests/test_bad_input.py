"""Bad specs and broken models: a clear line each, exit code 2, no traceback, and nothing left behind.

Every row goes through the real command line. ``CASES`` are specs about good (if hollow) models, ``MODELS`` broken model
files, ``GOLDENS`` broken recordings; what a row says must be in the one place where users look, on stderr.
"""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest

from servewright import registry

if TYPE_CHECKING:
    from conftest import Cli, Workshop

TORCHSERVE, TFSERVING = registry.get("torchserve"), registry.get("tfserving")
Change = Mapping[str, Any]


@pytest.fixture(autouse=True)
def _nothing_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Check after each test that no process was left, and nothing in the temporary folder or the state folder."""
    # Short, or runs would go to the machine's own temporary folder: sockets lie in them.
    with tempfile.TemporaryDirectory(prefix="left-", dir="/tmp") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.setenv("SERVEWRIGHT_STATE", str(tmp_path / "state"))
        before = {child.pid for child in psutil.Process().children(recursive=True)}
        yield
        left = [path.name for path in Path(folder).iterdir()]
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert left == []
    assert not (tmp_path / "state").exists() or not list((tmp_path / "state").iterdir())
    children = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    assert [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE] == []


def assert_refused(result: tuple[int, str, str], *said: str) -> None:
    code, out, err = result
    assert (code, out) == (2, ""), err
    assert all(line.startswith("servewright: ") for line in err.splitlines() if not line.startswith("- ")), err
    assert "Traceback" not in err
    assert [text for text in said if text not in err] == [], err


def listing(folder: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_mtime_ns for path in folder.rglob("*")}


# -- texts that are no spec ----------------------------------------------------------------------------------------

TEXTS: dict[str, tuple[bytes | str, tuple[str, ...]]] = {
    "empty": (b"", ("the file is empty", "servewright init")),
    "comment only": ("# nothing\n", ("the file is empty",)),
    "a word": ("digits\n", (":1:1: a spec is a mapping; start with: servewright: 1",)),
    "a list": ("- a\n- b\n", ("a spec is a mapping",)),
    "not UTF-8": (b"servewright: 1\nname: caf\xe9\n", (":2:10: not UTF-8 text; save it as UTF-8",)),
    "UTF-16": ("name: x".encode("utf-16"), ("not UTF-8 text",)),
    "NUL bytes": (b"servewright: 1\nname: a\x00b\n", (":2:8: the character U+0000 cannot stand in YAML",)),
    "an escape": (b"name: \x1b[2J\n", (":1:7: the character U+001B",)),
    "tabs": ("model:\n\tpath: x\n", (":2:1: ", "indent with spaces: YAML takes no tabs")),
    "unclosed": ("model: {path: x\n", ("while parsing a flow mapping", "correct the YAML")),
    "two documents": ("name: a\n---\nname: b\n", (":2:1: a second document begins here; write one file for each",)),
    "duplicate keys": ("name: a\nname: b\n", (":2:1: name: 'name' stands twice; remove one of the two",)),
    "a key that is a list": ("? [a]\n: 1\n", ("a key that is not text; write a plain key",)),
    "a Python tag": (
        "name: !!python/object/apply:os.system ['touch canary']\n",
        ("the tag", "is not allowed; remove it"),
    ),
    "an alias to itself": ("name: &a [*a]\n", ("the alias *a stands before its anchor, or in it",)),
    "an unknown alias": ("name: *nobody\n", ("the alias *nobody stands before its anchor",)),
    "an alias bomb": (
        "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)),
        ("too many values (aliases that multiply?)",),
    ),
    "deep lists": ("[" * 50_000, ("nested too deeply",)),
    "deep mappings": ("{a: " * 50_000, ("nested too deeply",)),
    "infinite numbers": ("name: x\nworkers: .inf\n", (":2:10: workers: '.inf' is no number that a server could use",)),
    "a number of fifty digits": ("workers: " + "9" * 50, ("has too many digits; write at most 40",)),
    "more than 32 MiB": (b"a: " + b"x" * (33 * 2**20), ("bytes is too large; a spec has a few KiB",)),
    "a merge key": ("a: &a {name: x}\n<<: *a\n", ("unknown key '<<'",)),
    "a fleet of nothing": ("servewright: 1\nfleet: f\nmodels: []\n", ("models: [] is empty; write at least 1",)),
    "a fleet of numbers": ("servewright: 1\nfleet: f\nmodels: [3]\n", ("models[0]: 3 is no model",)),
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("command", ["render", "verify"])
def test_texts_that_are_no_spec(workshop: Workshop, cli: Cli, name: str, command: str) -> None:
    """Each says where it stops to be a spec, and what to write."""
    content, said = TEXTS[name]
    spec = workshop.write(content)
    before = listing(workshop.folder)
    assert_refused(cli(command, spec), str(spec), *said)
    assert listing(workshop.folder) == before


# -- values that no server could use: backend, what is changed in a good spec, what is said ----------------------------

CASES: dict[str, tuple[Any, Change, tuple[str, ...]]] = {
    "an unknown key": (TORCHSERVE, {"batchin": {}}, ("batchin: unknown key 'batchin'; did you mean 'batching'?",)),
    "an unknown key inside": (
        TORCHSERVE,
        {"batching": {"max_sise": 2}},
        ("batching.max_sise: ", "did you mean 'max_size'?"),
    ),
    "no version of the spec": (TORCHSERVE, {"servewright": ...}, ("servewright: is missing", "servewright: 1")),
    "a later version of the spec": (TORCHSERVE, {"servewright": 2}, ("servewright: 2 is not allowed; choose from 1",)),
    "no name": (TORCHSERVE, {"name": ...}, ("name: is missing; add it",)),
    "a name with blanks": (
        TORCHSERVE,
        {"name": "my model"},
        ("name: 'my model' is not a name that every server takes",),
    ),
    "a name that climbs": (TORCHSERVE, {"name": "../../etc"}, ("name: '../../etc' is not a name",)),
    "a number for a name": (TORCHSERVE, {"name": 3}, ('name: 3 is not a text; put it in quotes: "3"',)),
    "version 0": (TFSERVING, {"version": 0}, ("version: 0 is too small; write at least 1",)),
    "a huge version": (TFSERVING, {"version": 2**64}, ("version: 18446744073709551616 is too large",)),
    "a version like 1.0": (TFSERVING, {"version": 1.0}, ('a text in quotes, such as "1.0"',)),
    "a word for a version": (
        TFSERVING,
        {"version": "1.0"},
        ("version: '1.0' is not a number: versions are folders here", ": 1"),
    ),
    "no model": (TORCHSERVE, {"model": ...}, ("model: is missing",)),
    "a model that is a word": (TORCHSERVE, {"model": "model.pt"}, ("model: 'model.pt' is not a mapping",)),
    "a missing file": (
        TORCHSERVE,
        {"model": {"path": "no.pt", "format": "torchscript"}},
        ("model.path: 'no.pt' does not exist",),
    ),
    "an unknown format": (
        TORCHSERVE,
        {"model": {"path": "x", "format": "pytorch"}},
        ("model.format: 'pytorch' is not allowed",),
    ),
    "a format of the other server": (
        TORCHSERVE,
        {"model": {"path": "tf", "format": "saved_model"}},
        ("cannot load saved_model",),
    ),
    "a model for nobody": (
        TORCHSERVE,
        {"model": {"tritn": {"path": "x", "format": "onnx"}}},
        ("model.tritn: no backend 'tritn'",),
    ),
    "no model for this server": (
        TFSERVING,
        {"model": {"torchserve": {"path": "ts", "format": "torchscript"}}},
        ("the spec has no model for tfserving",),
    ),
    "a path that escapes": (
        TORCHSERVE,
        {"model": {"path": "../../etc/passwd", "format": "onnx"}},
        ("leaves the folder of the spec",),
    ),
    "a path with a NUL": (TORCHSERVE, {"files": ["a\0b"]}, (r"files[0]: 'a\x00b' has a control character in it",)),
    "a URL": (
        TORCHSERVE,
        {"model": {"path": "s3://bucket/m.pt", "format": "onnx"}},
        ("is a URL, and only local files can be read so far",),
    ),
    "weights without code": (
        TORCHSERVE,
        {"model": {"path": "ts", "format": "state_dict"}},
        ("name the network's class: code: net.py:Net",),
    ),
    "code that is missing": (
        TORCHSERVE,
        {"model": {"path": "ts", "format": "state_dict", "code": "no.py:Net"}},
        ("'no.py' does not exist",),
    ),
    "no signature": (TORCHSERVE, {"signature": ...}, ("signature: is missing",)),
    "no inputs": (TORCHSERVE, {"signature": {"inputs": [], "outputs": []}}, ("signature.inputs: [] is empty",)),
    "an unknown dtype": (
        TORCHSERVE,
        {"dtype": "floot32"},
        ("signature.inputs[0].dtype: 'floot32' is not allowed; did you mean 'float32'?",),
    ),
    "a size of -1": (TORCHSERVE, {"shape": [-1, 8]}, ("has a negative size; write null for any size",)),
    "a size of half": (TORCHSERVE, {"shape": [None, 0.5]}, ("0.5 is not a whole number",)),
    "a huge size": (TORCHSERVE, {"shape": [None, 2**50]}, ("is too large",)),
    "a shape that is a number": (TORCHSERVE, {"shape": 8}, ("8 is not a list; write a list: [...]",)),
    "two inputs of one name": (
        TORCHSERVE,
        {
            "signature": {
                "inputs": [{"name": "x", "dtype": "int8", "shape": None}] * 2,
                "outputs": [{"name": "y", "dtype": "int8", "shape": None}],
            }
        },
        ("signature.inputs: 'x' is listed twice",),
    ),
    "a delay without a unit": (
        TORCHSERVE,
        {"batching": {"max_size": 2, "max_delay": 5}},
        ("'5' has no unit; write a unit: 5ms, 2s",),
    ),
    "a delay in the wrong unit": (
        TORCHSERVE,
        {"batching": {"max_size": 2, "max_delay": "5 MB"}},
        ("unknown unit 'MB'",),
    ),
    "a negative delay": (TORCHSERVE, {"batching": {"max_size": 2, "max_delay": "-5ms"}}, ("'-5ms' is negative",)),
    "a delay of a week": (
        TFSERVING,
        {"batching": {"max_size": 2, "max_delay": "168h"}},
        ("is more than a day; write at most 24h",),
    ),
    "a delay of 0 on TorchServe": (
        TORCHSERVE,
        {"batching": {"max_size": 4}},
        ("TorchServe takes a delay of 0 for 100 ms", "max_delay: 1ms"),
    ),
    "a delay that rounds to 0": (
        TORCHSERVE,
        {"batching": {"max_size": 4, "max_delay": "400us"}},
        ("would round to 0, which means 100 ms there",),
    ),
    "a delay that is cut": (
        TORCHSERVE,
        {"batching": {"max_size": 4, "max_delay": "1500us"}},
        ("1.5ms cannot be kept", "max_delay: 2ms"),
    ),
    "a delay without batching": (
        TORCHSERVE,
        {"batching": {"max_delay": "5ms"}},
        ("a delay without batching does nothing",),
    ),
    "a batch of 0": (TORCHSERVE, {"batching": {"max_size": 0}}, ("batching.max_size: 0 is too small",)),
    "a batch of a billion": (
        TORCHSERVE,
        {"batching": {"max_size": 10**9}},
        ("batching.max_size: 1000000000 is too large",),
    ),
    "a queue below the batch": (
        TFSERVING,
        {"batching": {"max_size": 8, "queue": 4}},
        ("a queue of 4 can never fill a batch of 8",),
    ),
    "a batch above the usual queue": (
        TORCHSERVE,
        {"batching": {"max_size": 200, "max_delay": "1ms"}},
        ("never fills from the default queue of 100",),
    ),
    "sizes that do not increase": (
        TFSERVING,
        {"batching": {"max_size": 8, "allowed_sizes": [8, 4]}},
        ("do not increase; sort them",),
    ),
    "a last size that is another": (
        TFSERVING,
        {"batching": {"max_size": 8, "allowed_sizes": [2, 4]}},
        ("the last of allowed_sizes is 4, but max_size is 8",),
    ),
    "no workers": (TORCHSERVE, {"workers": 0}, ("workers: 0 is too small",)),
    "a word for workers": (TORCHSERVE, {"workers": "two"}, ("workers: 'two' is not a whole number",)),
    "a GPU by another name": (
        TORCHSERVE,
        {"device": "cuda"},
        ("device: 'cuda' is not a device; write cpu, gpu or gpu:0",),
    ),
    "a wrong policy": (
        TFSERVING,
        {"versions": {"policy": "newest"}},
        ("write all, {latest: 2} or {specific: [1, 2]}",),
    ),
    "a policy that serves another": (
        TFSERVING,
        {"versions": {"policy": {"specific": [1]}}},
        ("version 3 is packaged but the policy serves only [1]",),
    ),
    "a label of what is not served": (
        TFSERVING,
        {"versions": {"labels": {"old": 1}}},
        ("versions.labels.old: label 'old' names version 1, but latest: 1",),
    ),
    "a label of what does not exist": (
        TFSERVING,
        {"versions": {"policy": "all", "labels": {"next": 9}}},
        ("names version 9, and the newest is 3",),
    ),
    "a label with a slash": (TFSERVING, {"versions": {"labels": {"a/b": 3}}}, ("'a/b' is not a label; use no blanks",)),
    "a release that never was": (
        TFSERVING,
        {"target": {"tfserving": "1.15"}},
        ("release 1.15 is not known; choose 2.11 to",),
    ),
    "a release whose tokens are a plugin": (
        TORCHSERVE,
        {"target": {"torchserve": "0.11.0"}},
        ("target.torchserve", "this release asks nobody for a token; choose 0.11.1"),
    ),
    "a release as a number": (
        TFSERVING,
        {"target": {"tfserving": 2.17}},
        ('2.17 is not a text; put it in quotes: "2.17"',),
    ),
    "a release of nobody": (
        TFSERVING,
        {"target": {"tfservin": "2.17"}},
        ("no backend 'tfservin'; did you mean 'tfserving'?",),
    ),
    "memory in an unknown unit": (
        TORCHSERVE,
        {"limits": {"memory": "2 gigs"}},
        ("unknown unit 'gigs'", "64MiB (1024-based)"),
    ),
    "messages above 2 GiB": (
        TORCHSERVE,
        {"limits": {"request": "3GiB"}},
        ("max_request_size is a 32-bit number", "2047MiB"),
    ),
    "a timeout of 0": (TORCHSERVE, {"limits": {"response_timeout": "0s"}}, ("a limit of zero lets nothing through",)),
    "a timeout in half seconds": (
        TORCHSERVE,
        {"limits": {"response_timeout": "1500ms"}},
        ("TorchServe counts whole seconds", "write 2s"),
    ),
    "a timeout in microseconds": (
        TFSERVING,
        {"limits": {"response_timeout": "1500us"}},
        ("the server counts whole milliseconds; write 2ms",),
    ),
    "a misspelt flag": (
        TFSERVING,
        {"tfserving": {"flags": {"enable_profilr": True}}},
        ("has no flag --enable_profilr", "did you mean 'enable_profiler'?"),
    ),
    "a flag of a later release": (
        TFSERVING,
        {"target": {"tfserving": "2.12"}, "tfserving": {"flags": {"mixed_precision": "bfloat16"}}},
        ("--mixed_precision exists since 2.15, the target is 2.12",),
    ),
    "a flag of ours": (
        TFSERVING,
        {"tfserving": {"flags": {"port": 1}}},
        ("--port is set by the fleet's server.ports",),
    ),
    "a flag that ends the server": (
        TFSERVING,
        {"tfserving": {"flags": {"version": True}}},
        ("the server would print its version and end",),
    ),
    "a flag of another kind": (
        TFSERVING,
        {"tfserving": {"flags": {"num_load_threads": "two"}}},
        ("--num_load_threads takes a int, not 'two'",),
    ),
    "a flag of two lines": (
        TFSERVING,
        {"tfserving": {"flags": {"saved_model_tags": "a\n--port=1"}}},
        ("a flag is one line",),
    ),
    "too few server threads": (
        TFSERVING,
        {"batching": {"max_size": 32}, "tfserving": {"flags": {"grpc_max_threads": 8}}},
        ("8 server threads can never fill a batch of 32",),
    ),
    "a field that no session has": (
        TFSERVING,
        {"tfserving": {"session": {"intra_op": 2}}},
        ("not a tensorflow.ConfigProto", "intra_op"),
    ),
    "a field that is overwritten": (
        TFSERVING,
        {"tfserving": {"session": {"intra_op_parallelism_threads": 2}}},
        ("the server overwrites it from its flags; use threads.intra_op",),
    ),
    "splitting without batching": (
        TFSERVING,
        {"tfserving": {"batching": {"enable_large_batch_splitting": True}}},
        ("splitting without a max_size makes a broken queue",),
    ),
    "a size without splitting": (
        TFSERVING,
        {"batching": {"max_size": 8}, "tfserving": {"batching": {"max_execution_batch_size": 4}}},
        ("the server reads it only with splitting on",),
    ),
    "a size above the batch": (
        TFSERVING,
        {
            "batching": {"max_size": 8},
            "tfserving": {"batching": {"enable_large_batch_splitting": True, "max_execution_batch_size": 9}},
        },
        ("it is above max_size 8",),
    ),
    "a relative base path": (
        TFSERVING,
        {"tfserving": {"base_path": "models/x"}},
        ("tfserving.base_path: 'models/x' is not of the form",),
    ),
    "an unknown setting": (
        TFSERVING,
        {"tfserving": {"flgs": {}}},
        ("tfserving.flgs: unknown key 'flgs'; did you mean 'flags'?",),
    ),
    "settings that are a list": (TORCHSERVE, {"torchserve": [1]}, ("torchserve: [1] is not a mapping",)),
    "an unknown property": (
        TORCHSERVE,
        {"torchserve": {"properties": {"job_queue_sise": 5}}},
        ("silently ignore 'job_queue_sise'", "did you mean 'job_queue_size'?"),
    ),
    "a property of ours": (
        TORCHSERVE,
        {"torchserve": {"properties": {"inference_address": "http://0.0.0.0:80"}}},
        ("inference_address is set by the fleet's server.ports",),
    ),
    "a property of another kind": (
        TORCHSERVE,
        {"torchserve": {"properties": {"job_queue_size": "many"}}},
        ("job_queue_size takes a whole number, not 'many'",),
    ),
    "a property with a variable": (
        TORCHSERVE,
        {"torchserve": {"properties": {"vmargs": "$$HOME$$"}}},
        ("would put its environment's HOME into",),
    ),
    "a key of another kind": (
        TORCHSERVE,
        {"torchserve": {"yaml": {"useJobTicket": "yes"}}},
        ("useJobTicket takes a boolean",),
    ),
    "a misspelt key": (
        TORCHSERVE,
        {"torchserve": {"yaml": {"maxretrytimeoutinsec": 5}}},
        ("did you mean 'maxRetryTimeoutInSec'?",),
    ),
    "a variable of ours": (
        TORCHSERVE,
        {"torchserve": {"environment": {"TEMP": "/x"}}},
        ("TEMP is set by the runtime",),
    ),
    "a variable with a NUL": (
        TORCHSERVE,
        {"torchserve": {"environment": {"A": "x\0"}}},
        ("a variable holds no NUL byte",),
    ),
    "a variable that is none": (
        TORCHSERVE,
        {"torchserve": {"environment": {"A=B": "x"}}},
        ("'A=B' is no name of a variable",),
    ),
    "an unknown handler": (
        TORCHSERVE,
        {"handler": {"use": "visoin"}},
        ("no handler 'visoin'; did you mean 'vision'?",),
    ),
    "a handler that is missing": (
        TORCHSERVE,
        {"handler": {"use": "mine.py"}},
        ("handler.use: 'mine.py' does not exist",),
    ),
    "a text handler without text": (TORCHSERVE, {"handler": {"use": "text"}}, ("the text handler needs a tokenizer",)),
    "a picture for a flat model": (
        TORCHSERVE,
        {"handler": {"use": "vision"}, "shape": [None, 4]},
        ("the vision handler needs one input of shape",),
    ),
    "colours for a grey model": (
        TORCHSERVE,
        {"handler": {"use": "vision", "image": {"mode": "RGB"}}},
        ("mode RGB gives 3 channels, and the model takes 1",),
    ),
    "requirements that are missing": (
        TORCHSERVE,
        {"requirements": "req.txt"},
        ("requirements: 'req.txt' does not exist",),
    ),
    "goldens that are missing": (
        TORCHSERVE,
        {"golden": [{"inputs": "in.npz", "outputs": "out.npz"}]},
        ("golden[0].inputs: 'in.npz' does not exist",),
    ),
    "a rate without time": (TORCHSERVE, {"slo": {"rate": "200"}}, ("'200' is not a rate; write a rate: 200/s",)),
    "a share above all": (TORCHSERVE, {"slo": {"errors": "120%"}}, ("'120%' is not a share; write a percentage",)),
}


def changed(workshop: Workshop, backend: Any, change: Change) -> dict[str, Any]:
    values = workshop.values(backend)
    tensor = {key: change[key] for key in ("dtype", "shape") if key in change}
    if tensor:
        values["signature"] = values["signature"] | {"inputs": [values["signature"]["inputs"][0] | tensor]}
    rest = {key: value for key, value in change.items() if key not in ("dtype", "shape")}
    shutil.copytree(workshop.folder / workshop.model("saved_model"), workshop.folder / "tf")
    shutil.copyfile(workshop.folder / workshop.model("torchscript"), workshop.folder / "ts")
    return {key: value for key, value in (values | rest).items() if value is not ...}


@pytest.mark.parametrize("name", CASES)
def test_values_that_no_server_could_use(workshop: Workshop, cli: Cli, name: str) -> None:
    """Each is refused before anything is made, at its key, with a remedy."""
    backend, change, said = CASES[name]
    spec = workshop.write(changed(workshop, backend, change))
    before = listing(workshop.folder)
    result = cli("package", spec, "-b", backend.name, "-o", workshop.folder / "out")
    assert_refused(result, f"{spec}", *said)
    assert listing(workshop.folder) == before


def test_all_problems_of_a_spec_come_at_once(workshop: Workshop, cli: Cli) -> None:
    """A line for each, in the order of the file."""
    values = workshop.values(TORCHSERVE, workers=0, device="cuda", batching={"max_sise": 2, "queue": 0})
    code, _, err = cli("render", workshop.write(values))
    lines = err.splitlines()
    assert (code, len(lines)) == (2, 4)
    places = [int(line.split(":")[2]) for line in lines]
    assert places == sorted(places)


# -- model files ----------------------------------------------------------------------------------------------------


class Bomb:
    """Makes a file when it is unpickled: the canary, which nobody may ever see."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.system, (f"touch {self.canary}",)


def zipped(path: Path, names: Mapping[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in names.items():
            archive.writestr(f"model/{name}", content)


def truncated(workshop: Workshop, path: Path) -> None:
    path.write_bytes((workshop.folder / workshop.model("torchscript")).read_bytes()[:100])


MODELS: dict[str, tuple[str, Callable[[Any, Path], object], tuple[str, ...]]] = {
    "zero bytes": (
        "torchscript",
        lambda _, path: path.touch(),
        ("is empty: zero bytes; write or download the model again",),
    ),
    "a folder for a file": ("torchscript", lambda _, path: path.mkdir(), ("'m' is a folder; name a file",)),
    "an empty folder": ("saved_model", lambda _, path: path.mkdir(), ("is a folder without saved_model.pb",)),
    "a folder of versions": (
        "saved_model",
        lambda shop, path: shutil.copytree(shop.folder / shop.model("saved_model"), path / "3"),
        ("holds versions of a SavedModel; name one of them",),
    ),
    "a graph of zero bytes": ("saved_model", lambda _, path: (path.mkdir(), (path / "saved_model.pb").touch()), ("m",)),
    "a graph of noise": (
        "saved_model",
        lambda _, path: (path.mkdir(), (path / "saved_model.pb").write_bytes(b"\xff" * 99)),
        ("is broken",),
    ),
    "a file for a folder": ("saved_model", lambda _, path: path.write_bytes(b"\x08\x01"), ("m",)),
    "a named pipe": ("torchscript", lambda _, path: os.mkfifo(path), ("is neither a file nor a folder",)),
    "a dangling link": ("torchscript", lambda _, path: path.symlink_to("nowhere"), ("does not exist",)),
    "a Git LFS pointer": (
        "torchscript",
        lambda _, path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        ("is a Git LFS pointer, not the model; fetch the model with: git lfs pull",),
    ),
    "a web page": (
        "onnx",
        lambda _, path: path.write_text("<!DOCTYPE html><html>404</html>"),
        ("is a web page, not a model: the download failed",),
    ),
    "a gzip archive": (
        "torchscript",
        lambda _, path: path.write_bytes(b"\x1f\x8b\x08" + b"\0" * 30),
        ("is a gzip archive; unpack it first",),
    ),
    "text": ("torchscript", lambda _, path: path.write_text("weights"), ("is a text file, not a model",)),
    "noise": ("onnx", lambda _, path: path.write_bytes(bytes(range(200, 256)) * 9), ("is of an unknown format",)),
    "half a zip": ("torchscript", truncated, ("is a broken zip archive",)),
    "a zip of something else": (
        "torchscript",
        lambda _, path: zipped(path, {"readme.txt": b"hello"}),
        ("is a zip archive without a model in it",),
    ),
    "another format": (
        "torchscript",
        lambda shop, path: shutil.copyfile(shop.folder / shop.model("onnx"), path),
        ("is a onnx model, not torchscript; write format: onnx",),
    ),
    "safetensors": (
        "torchscript",
        lambda _, path: path.write_bytes((30).to_bytes(8, "little") + b'{"w": {"dtype": "F32"}}      '),
        ("is a safetensors file; write it as a state_dict",),
    ),
    "TensorFlow Lite": (
        "onnx",
        lambda _, path: path.write_bytes(b"\x1c\0\0\0TFL3" + b"\0" * 30),
        ("is a TensorFlow Lite model; export the original",),
    ),
    "an .npz": ("torchscript", lambda _, path: written(path, np.savez, x=np.zeros(3)), ("is a numpy .npz file",)),
    "a .mar": ("torchscript", lambda _, path: _mar(path), ("is a model archive that is already packed",)),
}


def written(path: Path, write: Callable[..., object], *values: object, **named: object) -> None:
    """Write with a function of numpy's, which would add its own ending to a name."""
    with path.open("wb") as file:
        write(file, *values, **named)


def damaged(path: Path) -> None:
    """Change bytes in the middle of what a zip holds."""
    content = bytearray(path.read_bytes())
    for at in range(90, 120):
        content[at] ^= 0xFF
    path.write_bytes(content)


def _mar(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", "{}")


@pytest.mark.parametrize("name", MODELS)
def test_model_files_that_are_none(workshop: Workshop, cli: Cli, name: str) -> None:
    """Each is refused before an artifact is begun, with what it is and how to get the real one."""
    form, make, said = MODELS[name]
    make(workshop, workshop.folder / "m")
    backend = TFSERVING if form == "saved_model" else TORCHSERVE
    spec = workshop.write(workshop.values(backend, model={"path": "m", "format": form}))
    before = listing(workshop.folder)
    assert_refused(cli("package", spec, "-o", workshop.folder / "out"), f"{spec}:", ": model.path: ", *said)
    assert listing(workshop.folder) == before


@pytest.mark.parametrize("form", ["state_dict", "torchscript", "onnx"])
@pytest.mark.parametrize("command", ["package", "init", "verify"])
def test_pickle_bombs_do_not_go_off(workshop: Workshop, cli: Cli, form: str, command: str) -> None:
    """A file whose reading would run a command is refused, says which command's module, and was not read."""
    canary = workshop.folder / "canary"
    bomb = pickle.dumps(Bomb(canary), protocol=2)
    path = workshop.folder / "m"
    if form == "torchscript":
        path.write_bytes(bomb)  # what torch.save never wrote
    else:
        zipped(path, {"data.pkl": bomb, "version": b"3"})
    (workshop.folder / "net.py").write_text("class Net: pass\n")
    model = {"path": "m", "format": form} | ({"code": "net.py:Net"} if form == "state_dict" else {})
    spec = workshop.write(workshop.values(TORCHSERVE, model=model))
    words = ("init", path, "-o", workshop.folder / "s.yaml") if command == "init" else (command, spec)
    result = cli(*words, *(("-o", workshop.folder / "out") if command == "package" else ()))
    assert_refused(result, "m")
    assert not canary.exists()
    assert not (workshop.folder / "out").exists()


def test_weights_that_run_code_are_trusted_only_on_request(workshop: Workshop, cli: Cli) -> None:
    """The refusal names what would run and how to allow it; allowing it packs the file, and still reads nothing."""
    canary = workshop.folder / "canary"
    zipped(workshop.folder / "m", {"data.pkl": pickle.dumps(Bomb(canary), protocol=2), "version": b"3"})
    (workshop.folder / "net.py").write_text("class Net: pass\n")
    model = {"path": "m", "format": "state_dict", "code": "net.py:Net"}
    spec, out = workshop.write(workshop.values(TORCHSERVE, model=model)), workshop.folder / "out"
    assert_refused(cli("package", spec, "-o", out), "system", "--trust")
    assert cli("package", spec, "-o", out, "--trust")[0] == 0
    assert not canary.exists()


CODES: dict[str, tuple[str, tuple[str, ...]]] = {
    "no Python": ("class Net(:\n", ("net.py:1 is not Python",)),
    "no such class": ("class Other: pass\n", ("net.py defines no 'Net'; name a class or function in it",)),
    "NUL bytes": ("class Net: pass\n\0", ("net.py is not Python",)),
    "deep brackets": ("x = " + "(" * 5000, ("is not Python",)),
}


@pytest.mark.parametrize("name", CODES)
def test_code_that_is_none(workshop: Workshop, cli: Cli, name: str) -> None:
    """The code of a network is read, and not run, before it is packed."""
    content, said = CODES[name]
    values = workshop.values(TORCHSERVE, model=workshop.source("state_dict"))
    (workshop.folder / "net.py").write_text(content)
    result = cli("package", workshop.write(values), "-o", workshop.folder / "out")
    assert_refused(result, "model.code: ", *said)


def test_handlers_that_are_no_python(workshop: Workshop, cli: Cli) -> None:
    """A handler with a syntax error would kill every worker of the server."""
    (workshop.folder / "mine.py").write_text("def handle(data, context)\n    return data\n")
    spec = workshop.write(workshop.values(TORCHSERVE, handler={"use": "mine.py"}))
    assert_refused(
        cli("package", spec, "-o", workshop.folder / "out"), "handler.use: mine.py:1 is not Python: expected ':'"
    )


SIGNATURES: dict[str, tuple[Change, tuple[str, ...]]] = {
    "wrong dtype": (
        {"dtype": "int64"},
        ("signature.inputs[0].dtype: 'image' is float32 in the model, not int64; write float32",),
    ),
    "wrong name": (
        {"name": "picture"},
        ("the model has no input 'picture'; its inputs: image", "the model's input 'image' is missing"),
    ),
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_that_the_model_does_not_have(workshop: Workshop, cli: Cli, name: str) -> None:
    """Where the file tells its tensors, a spec that tells others is refused at the tensor."""
    change, said = SIGNATURES[name]
    values = workshop.values(TFSERVING)
    values["signature"] = values["signature"] | {"inputs": [values["signature"]["inputs"][0] | change]}
    result = cli("package", workshop.write(values), "-o", workshop.folder / "out")
    assert_refused(result, *said)


def test_signatures_by_another_name(workshop: Workshop, cli: Cli) -> None:
    """The names of those that the model has are the remedy."""
    values = workshop.values(TFSERVING, signature=dict(workshop.SIGNATURE) | {"name": "predict"})
    result = cli("package", workshop.write(values), "-o", workshop.folder / "out")
    assert_refused(result, "the model has no signature 'predict'; its signatures: serving_default")


# -- recordings --------------------------------------------------------------------------------------------------------

IMAGE, SCORES = np.zeros((2, 1, 8, 8), np.float32), np.zeros((2, 10), np.float32)


class Objects:
    """Something that only a pickle can hold."""


def _compressed_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,)}"
        padded = header + b" " * (118 - len(header) - 1) + b"\n"
        archive.writestr("image.npy", b"\x93NUMPY\x01\x00\x76\x00" + padded + b"\0" * 100)


GOLDENS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "zero bytes": (lambda path: path.write_bytes(b""), ("is not an .npz of plain arrays",)),
    "noise": (lambda path: path.write_bytes(b"\x93NUM" * 50), ("is not an .npz of plain arrays",)),
    "one array": (lambda path: written(path, np.save, IMAGE), ("is not an .npz of plain arrays",)),
    "pickled objects": (
        lambda path: np.savez(path, image=np.array([Objects()], object)),
        ("is not an .npz of plain arrays", "allow_pickle=False"),
    ),
    "half a file": (
        lambda path: (np.savez(path, image=IMAGE), path.write_bytes(path.read_bytes()[:200])),
        ("is not an .npz of plain arrays",),
    ),
    "no arrays": (lambda path: np.savez(path), ("holds [], the signature names ['image']",)),
    "other names": (lambda path: np.savez(path, picture=IMAGE), ("holds ['picture'], the signature names ['image']",)),
    "another dtype": (
        lambda path: np.savez(path, image=IMAGE.astype(np.float64)),
        ("image is float64, the signature says float32",),
    ),
    "text": (lambda path: np.savez(path, image=np.array(["a", "b"])), ("image is <U1, the signature says float32",)),
    "another shape": (
        lambda path: np.savez(path, image=IMAGE[:, 0]),
        ("image has shape [2, 8, 8], the signature says [any, 1, 8, 8]",),
    ),
    "no rows": (lambda path: np.savez(path, image=IMAGE[:0]), ("'image' has no rows",)),
    "other rows": (lambda path: np.savez(path, image=IMAGE[:1]), ("the rows differ: 'image' has 1, 'scores' has 2",)),
    "four terabytes": (_compressed_bomb, ("is not an .npz of plain arrays",)),
    "a broken member": (
        lambda path: (np.savez_compressed(path, image=IMAGE + np.arange(8)), damaged(path)),
        ("is not an .npz of plain arrays",),
    ),
}


@pytest.mark.parametrize("name", GOLDENS)
def test_recordings_that_are_none(workshop: Workshop, cli: Cli, name: str) -> None:
    """Golden data is looked at before a server is started for it."""
    make, said = GOLDENS[name]
    make(workshop.folder / "in.npz")
    np.savez(workshop.folder / "out.npz", scores=SCORES)
    golden = [{"inputs": "in.npz", "outputs": "out.npz"}]
    spec = workshop.write(workshop.values(TORCHSERVE, golden=golden))
    before = listing(workshop.folder)
    assert_refused(cli("verify", spec), f"{spec}:", ": golden[0]: ", *said)
    assert listing(workshop.folder) == before


# -- files that others may not read, words that cannot be meant ------------------------------------------------

AS_NOBODY = """
import contextlib, io, os, sys
from servewright.cli import run
with contextlib.redirect_stdout(io.StringIO()):
    run(sys.argv[1:])  # imports what is needed: the interpreter itself may lie where nobody may read
os.setgid(65534); os.setuid(65534)
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can become another user")
@pytest.mark.parametrize("name", ["spec.yaml", "model_torchscript", "in.npz"])
def test_files_that_others_may_not_read(workshop: Workshop, name: str) -> None:
    """The system's own reason is said, with the file and what to check."""
    for file in ("in.npz", "out.npz"):
        workshop.arrays(file, rows=2)
    spec = workshop.write(workshop.values(TORCHSERVE, golden=[{"inputs": "in.npz", "outputs": "out.npz"}]))
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="readable-") as folder:
        shutil.copytree(workshop.folder, f"{folder}/here")
        for each in (Path(folder), Path(folder) / "here"):
            each.chmod(0o755)
        (Path(folder) / "here" / name).chmod(0)
        command = [sys.executable, "-c", AS_NOBODY, "render", f"{folder}/here/{spec.name}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        said = (name, "cannot be read: Permission denied; check its permissions")
        assert_refused((done.returncode, done.stdout, done.stderr), *said)


COMMANDS: dict[str, tuple[Callable[[Any, Path], tuple[object, ...]], tuple[str, ...]]] = {
    "no such spec": (
        lambda shop, _: ("render", shop.folder / "no.yaml"),
        ("no.yaml does not exist; write one with: servewright init MODEL -o",),
    ),
    "a folder for a spec": (lambda shop, _: ("render", shop.folder), ("is a folder; name the spec file in it",)),
    "a pipe for a spec": (
        lambda shop, _: (os.mkfifo(shop.folder / "p"), "render", shop.folder / "p")[1:],
        ("is not a regular file; name a spec file",),
    ),
    "an unknown backend": (
        lambda _, spec: ("render", spec, "-b", "triton"),
        ("no backend 'triton'; choose from tfserving, torchserve",),
    ),
    "the other backend": (
        lambda _, spec: ("render", spec, "-b", "tfserving"),
        ("TensorFlow Serving cannot load torchscript",),
    ),
    "an unknown runtime": (
        lambda _, spec: ("verify", spec, "-r", "podman"),
        ("has no runtime 'podman'; choose from auto,",),
    ),
    "a file for a folder": (
        lambda shop, spec: ("render", spec, "-o", shop.folder / "net.py"),
        ("is a file; name a folder",),
    ),
    "a folder of others": (
        lambda shop, spec: ("package", spec, "-o", shop.folder),
        ("is there and is no artifact; choose another folder",),
    ),
    "a manifest of others": (
        lambda shop, spec: ((shop.folder / "manifest.json").write_text("{}"), "package", spec, "-o", shop.folder)[1:],
        ("is no manifest of an artifact",),
    ),
    "a relative site": (
        lambda _, spec: ("render", spec, "--models", "models"),
        ("'models' is not an absolute path; write it as the server sees it",),
    ),
    "a spec that is there": (
        lambda shop, spec: ("init", shop.folder / "model_torchscript", "-o", spec),
        ("is there already; replace it with --force",),
    ),
    "no such model": (lambda shop, _: ("init", shop.folder / "no.pt"), ("no.pt does not exist",)),
    "no such server": (lambda _, __: ("logs", "nobody"), ("no server 'nobody' (none runs); see: servewright ps",)),
    "nothing to end": (lambda _, __: ("down", "nobody"), ("no server 'nobody'",)),
    "no server named": (
        lambda _, spec: ("probe", spec),
        ("say which server: --name, or --http and --grpc; see: servewright probe --help",),
    ),
    "an address that is none": (
        lambda _, spec: ("probe", spec, "--http", "no address"),
        ("'no address' is not host:port", "see: servewright probe --help"),
    ),
    "a check of nothing": (
        lambda _, spec: ("render", spec, "--check"),
        ("--check compares with a folder; add -o FOLDER",),
    ),
    "an unknown option": (
        lambda _, spec: ("render", spec, "--outptu", "x"),
        ("no such option '--outptu'", "'--output'", "see: servewright render --help"),
    ),
    "an unknown command": (lambda _, __: ("rendr",), ("no command 'rendr'; did you mean 'render'?",)),
    "no spec": (lambda _, __: ("render",), ("missing argument 'SPEC'; see: servewright render --help",)),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_that_cannot_be_meant(workshop: Workshop, cli: Cli, name: str) -> None:
    """Wrong words are one line with a remedy, like wrong specs."""
    words, said = COMMANDS[name]
    (workshop.folder / "net.py").write_text("class Net: pass\n")
    spec = workshop.write(workshop.values(TORCHSERVE))
    assert_refused(cli(*words(workshop, spec)), *said)


def test_artifacts_with_files_of_others_are_not_replaced(workshop: Workshop, cli: Cli) -> None:
    """What somebody put into an artifact's folder would be lost."""
    spec, out = workshop.write(workshop.values(TORCHSERVE)), workshop.folder / "out"
    assert cli("package", spec, "-o", out)[0] == 0
    assert cli("package", spec, "-o", out)[0] == 0
    (out / "notes.txt").write_text("mine")
    assert_refused(cli("package", spec, "-o", out), "holds notes.txt, which is not of the artifact")
    assert (out / "notes.txt").read_text() == "mine"


def test_two_files_of_one_name_in_an_archive(workshop: Workshop, cli: Cli) -> None:
    """An archive is flat: of two files of one name, one would be lost."""
    for folder in ("a", "b"):
        (workshop.folder / folder).mkdir()
        (workshop.folder / folder / "vocab.txt").write_text(folder)
    spec = workshop.write(workshop.values(TORCHSERVE, files=["a/vocab.txt", "b/vocab.txt"]))
    result = cli("package", spec, "-o", workshop.folder / "out")
    assert_refused(result, "files: two files would be called 'vocab.txt' in the archive", "rename one")


# -- the same, as users run it ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["deep lists", "an alias bomb", "NUL bytes", "more than 32 MiB"])
def test_processes_end_with_a_line_and_not_with_a_signal(workshop: Workshop, name: str) -> None:
    """A process of its own, for what could kill it."""
    content, said = TEXTS[name]
    command = [sys.executable, "-m", "servewright", "render", str(workshop.write(content))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert_refused((done.returncode, done.stdout, done.stderr), *said)


def test_bad_input_is_counted() -> None:
    """The tables above hold what they are said to hold."""
    tables = (TEXTS, CASES, MODELS, CODES, SIGNATURES, GOLDENS, COMMANDS)
    assert sum(map(len, tables)) >= 150

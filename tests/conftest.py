"""What several test modules share: every backend in turn, specs to go with it, and small models of every format.

Real models are written once for each group of formats, when first asked for; a workshop's are hollow, and written in no
time: enough to be packaged, not to be run.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import hypothesis
import pytest

import servewright
from servewright import registry, specfile
from servewright.backend import Backend
from servewright.cli import run
from servewright.fleet import Fleet
from servewright.spec import ServerSettings
from servewright.specfile import Document

sys.path.insert(0, str(Path(__file__).parent))
from load_toys import Serve, Toy

# The wheel's run says what it means to test: an editable install beside it must not be taken instead.
_EXPECTED = os.environ.get("SERVEWRIGHT_EXPECT_PACKAGE")
assert _EXPECTED is None or Path(servewright.__file__).parent == Path(_EXPECTED), servewright.__file__
# A run in the background ignores Ctrl-C, and what tests press would be lost.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests make no claim on time: how long an example takes depends on what else the machine does.
hypothesis.settings.register_profile("servewright", deadline=None)
hypothesis.settings.load_profile("servewright")

_NEEDED = {"torch": "torch", "tensorflow": "tensorflow", "keras": "keras", "onnx": "onnx"}


class ModelShelf:
    """Folders of models by group; see ``models.py`` for what is in them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __getitem__(self, group: str) -> Path:
        """Return the folder of ``group``, writing it first where that was not done yet."""
        needed = _NEEDED.get(group)
        if needed and importlib.util.find_spec(needed) is None:
            pytest.skip(f"needs {needed}")
        target = self._folder / group
        if not target.is_dir():
            beside = Path(tempfile.mkdtemp(dir=self._folder))
            beside.chmod(0o755)
            command = [sys.executable, "-W", "ignore", str(Path(__file__).parent / "models.py"), group, str(beside)]
            done = subprocess.run(
                command, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr[-3000:]
            try:
                beside.rename(target)
            except OSError:  # another worker was quicker
                assert target.is_dir()
        return target

    def truth(self, group: str) -> Any:
        """Return what the framework itself said of the models of ``group``."""
        return json.loads((self[group] / "truth.json").read_text())


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> ModelShelf:
    """Small real models, shared between the workers of a run."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "models"
    folder.mkdir(exist_ok=True)
    return ModelShelf(folder)


@pytest.fixture(params=registry.names())
def backend(request: pytest.FixtureRequest) -> Backend:
    """Every backend in turn: a new folder is tested with no edit here."""
    return registry.get(request.param)


def as_yaml(values: Mapping[str, Any]) -> str:
    """Return values as JSON that is YAML too: PyYAML leaves texts bare that YAML 1.2 takes for numbers, such as 0e0."""
    text = json.dumps(dict(values), ensure_ascii=False, indent=2)
    return re.sub("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]", lambda found: f"\\u{ord(found[0]):04x}", text)


class Workshop:
    """A folder with hollow models of every format, and specs about them."""

    SIGNATURE: Mapping[str, Any] = {
        "name": "serving_default",
        "inputs": [{"name": "image", "dtype": "float32", "shape": [None, 1, 8, 8]}],
        "outputs": [{"name": "scores", "dtype": "float32", "shape": [None, 10]}],
    }

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def model(self, form: str) -> str:
        """Write a hollow model of format ``form`` and return its name."""
        path = self.folder / f"model_{form}"
        if not path.exists():
            _HOLLOW[form](path)
        return path.name

    def source(self, form: str) -> dict[str, Any]:
        """Return the model key of a spec for a hollow model of format ``form``."""
        found = {"path": self.model(form), "format": form}
        if form == "state_dict":
            (self.folder / "net.py").write_text("class Net: pass\n")
            found["code"] = "net.py:Net"
        return found

    def values(self, *backends: Backend, **changes: Any) -> dict[str, Any]:
        """Return a small spec for ``backends``; ``changes`` replace its top-level keys, and ``...`` removes one."""
        models = {backend.name: self.source(backend.formats[0]) for backend in backends}
        model = models if len(backends) > 1 else next(iter(models.values()))
        found = {"servewright": 1, "name": "digits", "version": 3, "model": model, "signature": dict(self.SIGNATURE)}
        return {key: value for key, value in (found | changes).items() if value is not ...}

    def rich_values(self, *backends: Backend, **changes: Any) -> dict[str, Any]:
        """Return a spec that sets every key which all backends take."""
        for name in ("in.npz", "out.npz"):
            self.arrays(name, rows=4)
        rich = {
            "batching": {"max_size": 32, "max_delay": "5ms", "allowed_sizes": [8, 16, 32], "queue": 1024, "threads": 2},
            "workers": 2,
            "threads": {"intra_op": 2, "inter_op": 1},
            "versions": {"policy": {"latest": 2}, "labels": {"stable": 3}},
            "device": "cpu",
            "limits": {
                "memory": "2GiB", "request": "64MiB", "response": "64MiB", "cpus": 2, "response_timeout": "30s",
                "startup_timeout": "90s",
            },
            "golden": [{"inputs": "in.npz", "outputs": "out.npz", "rtol": 1e-4, "atol": 1e-5}],
            "slo": {"p99": "50ms", "rate": "200/s", "errors": "0.1%"},
            "target": {backend.name: backend.targets[-1] for backend in backends},
        }  # fmt: skip
        return self.values(*backends, **(rich | changes))

    def arrays(self, name: str, *, rows: int) -> None:
        """Write golden data that fits `SIGNATURE`: inputs for a name with ``in``, else outputs."""
        import numpy as np

        side = "inputs" if "in" in name else "outputs"
        shapes = {tensor["name"]: (rows, *tensor["shape"][1:]) for tensor in self.SIGNATURE[side]}
        np.savez(self.folder / name, **{key: np.zeros(shape, np.float32) for key, shape in shapes.items()})

    def write(self, content: Mapping[str, Any] | str | bytes, name: str = "spec.yaml") -> Path:
        """Write a spec file: values as `as_yaml` does, text and bytes as they are."""
        path = self.folder / name
        if isinstance(content, Mapping):
            content = as_yaml(content)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def document(self, content: Mapping[str, Any] | str | bytes) -> Document:
        """Return the spec that a file of ``content`` would hold."""
        return specfile.load(self.write(content), backends=registry.names())

    def fleet(self, *contents: Mapping[str, Any], **server: Any) -> Fleet:
        """Return a fleet of specs; ``server`` are its settings."""
        documents = tuple(self.document(content) for content in contents)
        return Fleet(name="fleet", models=documents, server=ServerSettings.model_validate(server))


def _hollow_zip(path: Path, names: Mapping[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in names.items():
            archive.writestr(f"model/{name}", content)


def _hollow_saved_model(path: Path) -> None:
    from servewright.backends.tfserving import protos

    sides = {}
    for side in ("inputs", "outputs"):
        sides[side] = {}
        for tensor in Workshop.SIGNATURE[side]:
            dims = [{"size": -1 if size is None else size} for size in tensor["shape"]]
            sides[side][tensor["name"]] = {"name": "x:0", "dtype": 1, "tensor_shape": {"dim": dims}}
    graph = {"meta_info_def": {"tags": ["serve"]}, "signature_def": {Workshop.SIGNATURE["name"]: sides}}
    message = protos.SavedModel(saved_model_schema_version=1, meta_graphs=[graph])
    path.mkdir()
    (path / "saved_model.pb").write_bytes(message.SerializeToString())


_PICKLE = b"\x80\x02}q\x00."  # an empty dict
_HOLLOW = {
    "torchscript": lambda path: _hollow_zip(path, {"data.pkl": _PICKLE, "constants.pkl": _PICKLE, "code/x.py": b""}),
    "state_dict": lambda path: _hollow_zip(path, {"data.pkl": _PICKLE, "version": b"3"}),
    "exported_program": lambda path: _hollow_zip(path, {"models/model.json": b"{}", "version": b"1"}),
    "onnx": lambda path: path.write_bytes(b"\x08\x08\x3a\x00"),
    "keras": lambda path: _hollow_zip(path, {"config.json": b"{}", "metadata.json": b"{}"}),
    "saved_model": _hollow_saved_model,
}


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    """Return a folder of its own for a test, its specs and its hollow models."""
    return Workshop(tmp_path)


class Cli:
    """The command line, in this process: its exit code and what it printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *words: object) -> tuple[int, str, str]:
        """Return the exit code, stdout and stderr of ``servewright WORDS``."""
        self._capsys.readouterr()
        code = run([str(word) for word in words])
        printed = self._capsys.readouterr()
        return code, printed.out, printed.err


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Return the command line, in this process."""
    return Cli(capsys)


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Return what starts toy servers to load, which end with the test."""
    with ExitStack() as held:

        def start(**faults: object) -> Toy:
            toy = Toy(**faults)  # type: ignore[arg-type]
            held.callback(toy.end)
            return toy

        yield start

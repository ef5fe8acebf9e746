"""Models for the tests against real servers: trained once, on real data, in every format."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from integration.sandbox import REQUIRED, Sandbox, missing, sandbox
from servewright import launching, registry

# A run in the background ignores Ctrl-C, and what tests press would be lost.
signal.signal(signal.SIGINT, signal.default_int_handler)

SIGNATURE = """signature:
  inputs: [{name: image, dtype: float32, shape: [null, 1, 8, 8]}]
  outputs: [{name: scores, dtype: float32, shape: [null, 10]}]
"""
SOURCES = {
    "torchscript": "{path: torch/model.pt, format: torchscript}",
    "state_dict": '{path: torch/weights.pt, format: state_dict, code: "torch/net.py:DigitsNet"}',
    "exported_program": "{path: torch/model.pt2, format: exported_program}",
    "onnx": "{path: torch/model.onnx, format: onnx}",
    "saved_model": "{path: keras/saved_model, format: saved_model}",
    "keras": "{path: keras/model.keras, format: keras}",
}
KERAS = ("saved_model", "keras")
Need = Callable[[str, str], None]
# Called with a backend, what to add to the Dockerfile of its image, and files to copy; returns the tag.
MakeImage = Callable[..., str]


@dataclass(frozen=True, slots=True)
class Models:
    """The digits network in every format, below one folder, with golden data for each framework."""

    folder: Path

    def spec(self, path: Path, *formats: str, extra: str = "") -> Path:
        """Write a spec for ``formats`` to ``path``; the models are linked beside it."""
        for name in ("torch", "keras"):
            if not (path.parent / name).exists():
                shutil.copytree(self.folder / name, path.parent / name, copy_function=os.link)
        backends = {"tfserving" if each in KERAS else "torchserve": each for each in formats}
        models = "".join(f"  {backend}: {SOURCES[each]}\n" for backend, each in backends.items())
        home = "keras" if formats[0] in KERAS else "torch"
        golden = (
            ""
            if "golden" in extra or len(formats) > 1
            else f"golden: [{{inputs: {home}/golden/in.npz, outputs: {home}/golden/out.npz}}]\n"
        )
        path.write_text(f"servewright: 1\nname: digits\nversion: 3\nmodel:\n{models}{SIGNATURE}{golden}{extra}")
        return path


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Train the network in torch and in Keras, and write it in every format."""
    folder = tmp_path_factory.mktemp("models")
    # In a process of its own: the frameworks' own warnings are not ours, and their memory is given back.
    subprocess.run(
        [sys.executable, "-m", "servewright.demo.formats", str(folder), "2"],
        check=True,
        capture_output=True,
        timeout=600,
    )
    return Models(folder)


@pytest.fixture
def left_behind(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[str]]]:
    """Give the test a temporary folder of its own; return what it left there, and which of its servers run."""
    import psutil

    def present() -> list[str]:
        # torch, TensorFlow and onnxruntime keep files of their own there; those are not ours to judge.
        folders = sorted(str(path) for path in folder.iterdir() if "servewright" in path.name)
        processes = []
        for process in psutil.Process().children(recursive=True):
            try:
                command = " ".join(process.cmdline())
            except psutil.Error:  # it ended meanwhile, or waits for its parent to hear so
                continue
            if "org.pytorch.serve" in command or "servewright.backends" in command:
                processes.append(f"{process.pid} {command[:100]}")
        return folders + processes

    # Short, for the sockets that workers keep below it; others may be running servers below the usual one.
    folder = Path(tempfile.mkdtemp(prefix="swt-", dir="/tmp"))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    yield present
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def tensorflow_model_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let the embedded server play the binary where this machine has none: runtime process is then tested too."""
    with pytest.MonkeyPatch.context() as patch:
        if not os.environ.get("SERVEWRIGHT_TENSORFLOW_MODEL_SERVER") and not shutil.which("tensorflow_model_server"):
            binary = tmp_path_factory.mktemp("bin") / "tensorflow_model_server"
            binary.write_text(f'#!/bin/sh\nexec {sys.executable} -m servewright.backends.tfserving.embedded "$@"\n')
            binary.chmod(0o755)
            patch.setenv("SERVEWRIGHT_TENSORFLOW_MODEL_SERVER", str(binary))
        yield


@pytest.fixture
def box() -> Iterator[Sandbox]:
    """Make a place of its own for commands that are killed."""
    with sandbox() as made:
        yield made


def require(backend: str, runtime: str) -> None:
    """Skip where a runtime is absent, or fail where SERVEWRIGHT_REQUIRE names it."""
    why = missing(backend, runtime)
    if why and runtime in REQUIRED:
        pytest.fail(f"SERVEWRIGHT_REQUIRE names {runtime}: {why}", pytrace=False)
    if why:
        pytest.skip(why)


@pytest.fixture
def need() -> Need:
    """Return what skips or fails where a runtime is absent."""
    return require


@pytest.fixture
def make_image(need: Need, box: Sandbox) -> Iterator[MakeImage]:
    """Return what makes an image from that of a backend; it is removed at the end."""
    made: list[str] = []

    def make(backend: str, dockerfile: str, **files: str) -> str:
        need(backend, "docker")
        assert box.engine is not None
        lines = f"FROM {launching.image_for(registry.get(backend))}\n{dockerfile}\n"
        # A folder's name is random, and "-_" in it would be no name of an image.
        name = "".join(filter(str.isalnum, box.folder.name.lower()))
        tag = f"servewright-foreign-{name}:{len(made)}"
        context = io.BytesIO()
        with tarfile.open(fileobj=context, mode="w") as tar:
            for name, text in {"Dockerfile": lines, **files}.items():
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = len(text.encode()), 0o755
                tar.addfile(entry, io.BytesIO(text.encode()))
        context.seek(0)
        said = list(box.engine.api.build(fileobj=context, custom_context=True, tag=tag, rm=True, decode=True))
        assert not any("error" in event for event in said), said
        made.append(tag)
        return tag

    yield make
    assert box.engine is not None
    for container in box.containers():
        box.engine.api.remove_container(container["Id"], force=True, v=True)
    for tag in made:
        box.engine.api.remove_image(tag, force=True)

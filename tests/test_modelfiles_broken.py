"""Model files that cannot be used: each says what it is, where, and what to do, and none runs anything."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from servewright.errors import ExitCode, InputError, ModelFileError, UntrustedPickleError
from servewright.modelfiles import detect, exported_program, inspect


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("absent.pt", "does not exist; correct the path"),
        ("empty.pt", "is empty: zero bytes"),
        ("pointer.pt", "Git LFS pointer.*git lfs pull"),
        ("page.onnx", "a web page, not a model: the download failed"),
        ("archive.tar.gz", "gzip archive; unpack it"),
        ("lite.tflite", "TensorFlow Lite"),
        ("some.safetensors", r"safetensors.*torch\.save"),
        ("noise.onnx", "unknown format"),
        ("settings.json", "a JSON file, not a model"),
        ("notes.txt", "a text file, not a model"),
        ("pickled.pkl", "a Python pickle that torch.save did not write"),
        ("joined.npy", "a numpy array"),
        ("plain.zip", "a zip archive without a model"),
        ("folder", "a folder without saved_model.pb"),
        ("versions", "holds versions of a SavedModel; name one of them: .*versions/10"),
        ("versions/10", "saved_model.pb is empty"),
        ("versions/10/saved_model.pb", "is empty"),
    ],
)
def test_what_is_no_model_is_named(models: Any, name: str, said: str) -> None:
    """Missing, empty and foreign files are refused with what they are and what to do, as bad input."""
    with pytest.raises(ModelFileError, match=said) as caught:
        inspect(models["broken"] / name)
    assert caught.value.exit_code == ExitCode.BAD_INPUT


def test_a_path_with_a_nul_is_no_path() -> None:
    """A NUL byte in a path is an error of ours."""
    with pytest.raises(ModelFileError, match="not a path"):
        detect(Path("model\0.pt"))


@pytest.mark.parametrize(
    ("group", "name"),
    [
        ("torch", "script.pt"),
        ("torch", "weights.pt"),
        ("torch", "plain.pt2"),
        ("keras", "digits.keras"),
        ("onnx", "small.onnx"),
    ],
)
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_cut_files_are_refused(models: Any, tmp_path: Path, group: str, name: str, share: float) -> None:
    """A download that broke off is said to have done so."""
    content = (models[group] / name).read_bytes()
    cut = tmp_path / name
    cut.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ModelFileError, match=r"broken|breaks off"):
        inspect(cut)


@pytest.mark.tensorflow
def test_a_cut_hdf5_file_is_refused(models: Any, tmp_path: Path) -> None:
    """An HDF5 file that broke off is said to be broken by the library that reads it."""
    content = (models["keras"] / "digits.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelFileError, match="broken"):
        inspect(tmp_path / "cut.h5")


@pytest.mark.torch
def test_another_format_than_was_said(models: Any) -> None:
    """A format that the content contradicts is refused, with the one that it has."""
    with pytest.raises(ModelFileError, match="is a torchscript model, not onnx; write format: torchscript"):
        inspect(models["torch"] / "script.pt", format="onnx")
    with pytest.raises(InputError, match="no model format 'pytorch'; choose from saved_model"):
        inspect(models["torch"] / "script.pt", format="pytorch")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_unreadable_files_are_refused(tmp_path: Path, kind: str) -> None:
    """A model that may not be read is refused as such; root reads everything, so another user tries."""
    place = Path("/tmp") / f"servewright-unreadable-{os.getpid()}"  # pytest's own folders are root's alone
    place.mkdir(mode=0o755)
    try:
        target = place / "model"
        if kind == "file":
            target.write_bytes(b"PK")
        else:
            target.mkdir()
            (target / "saved_model.pb").write_bytes(b"\x08\x01")
        target.chmod(0)
        code = (
            "import os, sys, pathlib, servewright.modelfiles as m, servewright.modelfiles.inspection\n"
            "import servewright.errors as e\n"
            "os.setuid(65534)\n"
            f"try: m.inspect(pathlib.Path({str(target)!r}))\n"
            "except e.ModelFileError as error: print(error)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert f"{target} cannot be read: Permission denied; check its permissions" in done.stdout
    finally:
        place.joinpath("model").chmod(0o700)
        shutil.rmtree(place)


@pytest.mark.parametrize("shape", [["NaN"], [-4], [1.5], [[1]], "x", [1 << 60]], ids=str)
def test_shapes_that_are_none(tmp_path: Path, shape: Any) -> None:
    """A shape with anything but sizes in it is refused, and names its tensor."""
    layers = [
        {"class_name": "InputLayer", "config": {"name": "image", "dtype": "float32", "batch_shape": shape}},
        {
            "class_name": "Dense",
            "config": {"name": "y", "units": 3, "dtype": {"config": {"name": "float32"}}},
            "build_config": {"input_shape": [None, 4]},
        },
    ]
    path = tmp_path / "model.keras"
    with zipfile.ZipFile(path, "w") as archive:
        config = {"class_name": "Sequential", "config": {"layers": layers}}
        archive.writestr("config.json", json.dumps(config).replace('"NaN"', "NaN"))
        archive.writestr("metadata.json", "{}")
    with pytest.raises(ModelFileError, match="'image' has shape"):
        inspect(path)


def test_a_member_twice_is_refused(tmp_path: Path) -> None:
    """A zip that holds a name twice could show us one and the framework the other."""
    path = tmp_path / "model.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("metadata.json", "{}")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("config.json", '{"class_name": "Lambda"}')
    with pytest.raises(ModelFileError, match=r"'config\.json' twice"):
        inspect(path)


@pytest.mark.torch
@pytest.mark.parametrize("name", ["bomb.pt", "legacy_bomb.pt"])
def test_bombs_do_not_go_off(models: Any, name: str) -> None:
    """A pickle that runs a command is refused before anything is read, and leaves no trace."""
    folder = models["torch"]
    with pytest.raises(UntrustedPickleError, match=r"posix\.system"):
        inspect(folder / name, example=folder / "example.npz", code=f"{folder / 'net.py'}:Net")
    assert not (folder / "canary").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not an .npz"),
        (b"not a zip", "not an .npz"),
        (None, "does not exist"),
    ],
)
@pytest.mark.torch
def test_examples_that_are_none(models: Any, tmp_path: Path, content: bytes | None, said: str) -> None:
    """An example that is missing, or no archive of arrays, is refused with how to write one."""
    example = tmp_path / "in.npz"
    if content is not None:
        example.write_bytes(content)
    with pytest.raises(InputError, match=rf"{said}.*numpy\.savez"):
        inspect(models["torch"] / "script.pt", example=example)


@pytest.mark.torch
def test_an_example_with_objects_is_refused(models: Any, tmp_path: Path) -> None:
    """An example that holds Python objects would have to be unpickled, and is not."""
    import numpy as np

    np.savez(tmp_path / "in.npz", x=np.array([{}], object))
    with pytest.raises(InputError, match="it holds Python objects"):
        inspect(models["torch"] / "script.pt", example=tmp_path / "in.npz")


def rewritten(source: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Copy an exported program with its graph changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename.endswith("models/model.json"):
                program = json.loads(content)
                change(program)
                content = json.dumps(program).encode()
            new.writestr(entry.filename, content)
    return target


def _size(program: dict[str, Any]) -> None:
    values = program["graph_module"]["graph"]["tensor_values"]
    values["x"]["sizes"][0]["as_expr"]["expr_str"] = "__import__('os').system('touch canary')"


def _size_without_quotes(program: dict[str, Any]) -> None:
    values = program["graph_module"]["graph"]["tensor_values"]
    values["x"]["sizes"][0]["as_expr"]["expr_str"] = "eval(chr(49))"


def _guard(program: dict[str, Any]) -> None:
    program["guards_code"] = ["L['x'].size()[0] >= __import__('os').system('touch canary')"]


def _guard_in_a_comment(program: dict[str, Any]) -> None:
    program["guards_code"] = ["L['x'].size()[0] #"]


def _target(program: dict[str, Any]) -> None:
    program["graph_module"]["graph"]["nodes"][0]["target"] = "torch.os.system"


def _operator(program: dict[str, Any]) -> None:
    program["graph_module"]["graph"]["nodes"][0]["target"] = "_operator.methodcaller"


def _dunder(program: dict[str, Any]) -> None:
    program["graph_module"]["graph"]["nodes"][0]["target"] = "torch.ops.aten.__class__"


def _name(program: dict[str, Any]) -> None:
    program["graph_module"]["graph"]["inputs"][0]["as_tensor"]["name"] = "x=__import__('os').system('touch canary')"


def _parameter(program: dict[str, Any]) -> None:
    specs = program["graph_module"]["signature"]["input_specs"]
    specs[0]["parameter"]["parameter_name"] = 'a"), __import__("os").system("touch canary"), ("'


def _structure(program: dict[str, Any]) -> None:
    call = program["graph_module"]["module_call_graph"][0]["signature"]
    call["in_spec"] = call["in_spec"].replace("null", '{\\"__enum__\\": true, \\"fqn\\": \\"antigravity:x\\"}', 1)


def _note(program: dict[str, Any]) -> None:
    program["graph_module"]["graph"]["nodes"][0]["metadata"]["stack_trace"] = "File x\rimport os"


@pytest.mark.torch
@pytest.mark.parametrize(
    "change",
    [
        _size, _size_without_quotes, _guard, _guard_in_a_comment, _target, _operator, _dunder, _name, _parameter,
        _structure, _note,
    ],
)  # fmt: skip
def test_python_in_an_exported_program_is_refused(
    models: Any, tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    """Every text of a program that torch would evaluate as Python is checked before torch sees it."""
    path = rewritten(models["torch"] / "plain.pt2", tmp_path / "model.pt2", change)
    with pytest.raises(UntrustedPickleError, match=r"would run Python that models/model\.json holds.*--trust"):
        inspect(path)


@pytest.mark.torch
def test_torch_itself_does_run_python_in_an_exported_program(models: Any, tmp_path: Path) -> None:
    """The check is needed: loading such a program with torch runs the code."""
    path = rewritten(models["torch"] / "plain.pt2", tmp_path / "model.pt2", _size)
    code = f"import torch; torch.export.load({str(path)!r})"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, capture_output=True, check=False)
    assert (tmp_path / "canary").exists()


@pytest.mark.torch
@pytest.mark.parametrize("member", ["data/sample_inputs/model.pt", "data/constants/opaque_obj_0", "data/extra"])
def test_pickles_in_an_exported_program_are_scanned(models: Any, tmp_path: Path, member: str) -> None:
    """A pickle anywhere in a program is scanned: torch.export.load reads some without restriction."""
    bomb = (models["torch"] / "bomb.pt").read_bytes()
    path = tmp_path / "model.pt2"
    with zipfile.ZipFile(models["torch"] / "plain.pt2") as old, zipfile.ZipFile(path, "w") as new:
        root = old.namelist()[0].partition("/")[0]
        for entry in old.infolist():
            if entry.filename != f"{root}/{member}":
                new.writestr(entry.filename, old.read(entry))
        new.writestr(f"{root}/{member}", bomb)
    with pytest.raises(UntrustedPickleError, match=r"posix\.system"):
        inspect(path)


@pytest.mark.torch
def test_weights_that_claim_to_be_pickled_are_scanned(models: Any, tmp_path: Path) -> None:
    """A weight whose entry says that it is pickled is scanned as a pickle."""
    path = tmp_path / "model.pt2"
    with zipfile.ZipFile(models["torch"] / "plain.pt2") as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename.endswith("weights_config.json"):
                content = content.replace(b'"use_pickle": false', b'"use_pickle": true')
            if "/weight_" in entry.filename:
                content = (models["torch"] / "legacy_bomb.pt").read_bytes()
            new.writestr(entry.filename, content)
    with pytest.raises(UntrustedPickleError, match=r"posix\.system"):
        inspect(path)


@pytest.mark.torch
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_program_without_parts_of_its_graph(models: Any, tmp_path: Path, data: st.DataObject) -> None:
    """A graph that lacks any of its keys is read or refused, with an error of ours."""

    def drop(program: dict[str, Any]) -> None:
        place: Any = program
        while True:
            keys = sorted(place) if isinstance(place, dict) else list(range(len(place)))
            key = data.draw(st.sampled_from(keys))
            inner = place[key]
            if not isinstance(inner, dict | list) or not inner or data.draw(st.booleans()):
                del place[key]
                return
            place = inner

    path = rewritten(models["torch"] / "keyword.pt2", tmp_path / "model.pt2", drop)
    try:
        said = str(exported_program.inspect(exported_program.Source(path=path, format="exported_program")).path)
    except ModelFileError as error:
        said = str(error)
    assert str(path) in said

"""The original model in a process of its own: right answers, names and order, and every way in which it can fail."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from servewright.errors import InputError, MissingExtraError, ModelFileError, UntrustedPickleError
from servewright.modelfiles import frames, inspect
from servewright.modelfiles.child import Child
from servewright.reference import ReferenceModel
from servewright.spec import Signature, TensorSpec

ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)
ONES = np.ones((2, 1), np.float32)


def signature(inputs: list[tuple[str, str]], outputs: list[str]) -> Signature:
    return Signature(
        inputs=tuple(TensorSpec(name=name, dtype=dtype, shape=None) for name, dtype in inputs),  # type: ignore[arg-type]
        outputs=tuple(TensorSpec(name=name, dtype="float32", shape=None) for name in outputs),
    )


@pytest.mark.torch
@pytest.mark.parametrize("name", ["script.pt", "weights.pt", "legacy.pt", "checkpoint.pt", "plain.pt2"])
def test_every_torch_format_gives_the_networks_own_answer(models: Any, name: str) -> None:
    """All files of one network answer as the network did when they were written, under the signature's names."""
    folder = models["torch"]
    expected = np.load(folder / "answer.npz")
    wanted = signature([("x", "float32"), ("scale", "float32")], ["scores", "total"])
    code = f"{folder / 'net.py'}:Net" if name.endswith(".pt") and name != "script.pt" else None
    with ReferenceModel(folder / name, signature=wanted, code=code) as model:
        found = model.predict({"scale": ONES, "x": ROWS})
    assert list(found) == ["scores", "total"]
    for output, values in found.items():
        np.testing.assert_allclose(values, expected[output], rtol=1e-6)


@pytest.mark.torch
def test_keywords_of_forward_are_given_by_name(models: Any) -> None:
    """An exported program with keyword-only inputs gets them by name, and its mapping names the outputs."""
    with ReferenceModel(models["torch"] / "keyword.pt2") as model:
        once = model.predict({"x": ROWS, "scale": np.ones(1, np.float32)})
        twice = model.predict({"x": ROWS, "scale": np.full(1, 2, np.float32)})
    np.testing.assert_allclose(twice["scores"], 2 * once["scores"], rtol=1e-6)
    assert list(once) == ["scores", "probabilities"]
    renamed = signature([("image", "float32"), ("times", "float32")], ["scores", "probabilities"])
    with ReferenceModel(models["torch"] / "keyword.pt2", signature=renamed) as model:
        again = model.predict({"times": np.full(1, 2, np.float32), "image": ROWS})
    np.testing.assert_array_equal(again["scores"], twice["scores"])


@pytest.mark.torch
def test_a_parameter_that_nobody_gives_is_passed_over(tmp_path: Path) -> None:
    """What comes after it still gets its own input."""
    torch = pytest.importorskip("torch")
    (tmp_path / "net.py").write_text(
        "import torch\n\n\nclass Net(torch.nn.Module):\n"
        "    def forward(self, left, power=None, right=None):\n"
        "        return left - right if power is None else left**power\n"
    )
    torch.save({}, tmp_path / "weights.pt")
    wanted = signature([("right", "float32"), ("left", "float32")], ["difference"])
    with ReferenceModel(tmp_path / "weights.pt", signature=wanted, code=f"{tmp_path / 'net.py'}:Net") as model:
        found = model.predict({"left": ROWS, "right": 3 * ROWS})
    np.testing.assert_array_equal(found["difference"], -2 * ROWS)


@pytest.mark.torch
def test_bfloat16_comes_as_float32(models: Any) -> None:
    """Numbers that numpy has no type for come as float32, with nothing lost."""
    with ReferenceModel(models["torch"] / "named.pt") as model:
        found = model.predict({"x": ROWS})
    assert found["half"].dtype == np.float32
    np.testing.assert_array_equal(found["half"], ROWS / 2)


@pytest.mark.tensorflow
def test_saved_models_answer_by_signature(models: Any) -> None:
    """Each signature of a SavedModel is run under its own name, numbers and texts alike."""
    path = models["tensorflow"] / "saved_model"
    with ReferenceModel(path) as model:
        found = model.predict({"x": [[1.0, 2.0], [4.0, 1.0]]})
    np.testing.assert_allclose(found["scores"], [[2.0, 4.0], [4.5, 2.0]])
    np.testing.assert_array_equal(found["best"], [1, 0])
    lower = next(item for item in inspect(path).signatures if item.name == "lower")
    with ReferenceModel(path, signature=lower) as model:
        found = model.predict({"text": np.array(["ÄB", b"C\0D"], object)})
    assert found["text"].tolist() == ["Äb".encode(), b"c\0d"]
    np.testing.assert_array_equal(found["half"], [3.0, 3.0])


@pytest.mark.tensorflow
def test_names_that_are_no_python_names(models: Any) -> None:
    """A TensorFlow 1 model with a slash in an input's name is run like any other."""
    with ReferenceModel(models["tensorflow"] / "version_1") as model:
        np.testing.assert_allclose(model.predict({"in/x": [[1.0, 1.0]]})["y"], [[2.0, 3.0]])


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", ["digits.keras", "digits.h5"])
def test_keras_models_answer_as_in_keras(models: Any, name: str) -> None:
    """Both forms of a Keras file answer as the network did when it was saved."""
    recorded = np.load(models["keras"] / "digits.npz")
    with ReferenceModel(models["keras"] / name) as model:
        found = model.predict({"image": recorded["image"]})
    np.testing.assert_allclose(found["scores"], recorded["scores"], rtol=1e-5)


@pytest.mark.tensorflow
def test_an_exported_keras_model_answers_like_its_source(models: Any, tmp_path: Path) -> None:
    """The SavedModel made from a Keras file of many inputs and outputs gives the file's own answers, name by name."""
    from servewright.modelfiles.keras import export_saved_model

    source = models["keras"] / "mapping.keras"
    inputs = {"a": ROWS, "b": np.array([[1, 2, 3, 4], [6, 5, 4, 3]], np.int32)}
    with ReferenceModel(source) as ours, ReferenceModel(export_saved_model(source, tmp_path / "1")) as theirs:
        one, two = ours.predict(inputs), theirs.predict(inputs)
    assert set(one) == set(two) == {"logits", "total"}
    for name, values in one.items():
        np.testing.assert_allclose(values, two[name], rtol=1e-5)


def test_onnx_models_answer(models: Any) -> None:
    """An ONNX graph gives its outputs by name, with weights inside or beside it, and texts as bytes."""
    pytest.importorskip("onnxruntime")
    expected = ROWS @ np.arange(12, dtype=np.float32).reshape(4, 3)
    for name in ("small.onnx", "apart/model.onnx"):
        with ReferenceModel(models["onnx"] / name) as model:
            found = model.predict({"x": ROWS})
        np.testing.assert_allclose(found["scores"], expected)
        np.testing.assert_array_equal(found["best"], expected.argmax(1))
    with ReferenceModel(models["onnx"] / "text.onnx") as model:
        assert model.predict({"text": ["ä", "b"]})["twice"].tolist() == ["ää".encode(), b"bb"]


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({}, "input 'x' is missing; the signature 'serving_default' takes x"),
        ({"x": ROWS, "y": ROWS}, "there is no input 'y'"),
        ({"x": [["a"]]}, "'x' has dtype string, and the signature says float32"),
        ({"x": np.array([{}], object)}, "'x' has dtype string"),
        ({"x": ROWS + 1j}, "'x' has dtype complex64"),
    ],
)
def test_inputs_that_the_signature_does_not_have(models: Any, inputs: dict[str, Any], said: str) -> None:
    """Wrong names and kinds are refused before a process is started."""
    model = ReferenceModel(models["onnx"] / "small.onnx")
    with pytest.raises(InputError, match=said):
        model.predict(inputs)
    assert model._child is None


def test_objects_are_no_input(models: Any) -> None:
    """An array of Python objects for a text input is refused, and not pickled."""
    pytest.importorskip("onnxruntime")
    with (
        ReferenceModel(models["onnx"] / "text.onnx") as model,
        pytest.raises(InputError, match="holds dict; give numbers or text"),
    ):
        model.predict({"text": np.array([{}], object)})


def test_an_interrupted_call_leaves_no_answer_behind(models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an interrupt, the next call gets its own answer and not the one that was still on its way."""
    pytest.importorskip("onnxruntime")
    model = ReferenceModel(models["onnx"] / "small.onnx")
    model.predict({"x": ROWS})

    def interrupted(_: object) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(frames, "read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            model.predict({"x": ROWS})
    assert model.predict({"x": ROWS[:1]})["best"].shape == (1,)
    model.close()


@pytest.mark.torch
def test_what_the_model_refuses_is_said_in_its_words(models: Any) -> None:
    """An input of the wrong size gives the framework's reason in one line, and the model lives on."""
    wanted = signature([("x", "float32"), ("scale", "float32")], ["scores", "total"])
    with ReferenceModel(models["torch"] / "script.pt", signature=wanted) as model:
        with pytest.raises(ModelFileError, match=r"script\.pt refused these inputs: .*cannot be multiplied"):
            model.predict({"x": ROWS[:, :3], "scale": ONES})
        assert model.predict({"x": ROWS, "scale": ONES})["total"].shape == (2,)


@pytest.mark.torch
def test_a_signature_that_the_model_does_not_have(models: Any) -> None:
    """A signature with other outputs than the network gives is refused with both lists."""
    wanted = signature([("x", "float32"), ("scale", "float32")], ["only"])
    with (
        ReferenceModel(models["torch"] / "script.pt", signature=wanted) as model,
        pytest.raises(ModelFileError, match=r"returns 2 outputs \(output_0, output_1\).*has 1 \(only\)"),
    ):
        model.predict({"x": ROWS, "scale": ONES})


@pytest.fixture
def others() -> set[psutil.Process]:
    """Children that were there before the test, such as the resource tracker of multiprocessing."""
    return set(psutil.Process().children(recursive=True))


@pytest.mark.torch
def test_a_crash_is_an_error_here(models: Any, others: set[psutil.Process]) -> None:
    """A model that kills its process gives an error with the signal, and no process is left."""
    folder = models["torch"]
    model = ReferenceModel(folder / "weights.pt", code=f"{folder / 'net.py'}:crashes")
    with pytest.raises(ModelFileError, match=r"died.*SIGSEGV"):
        model.predict({"x": ROWS})
    assert not set(psutil.Process().children(recursive=True)) - others


@pytest.mark.torch
def test_a_model_that_hangs_is_ended(models: Any, others: set[psutil.Process]) -> None:
    """A model that takes longer than the timeout is ended, with an error that says so."""
    folder = models["torch"]
    model = ReferenceModel(folder / "weights.pt", code=f"{folder / 'net.py'}:hangs", timeout_s=0.5)
    with pytest.raises(ModelFileError, match=r"no answer in 0\.5 s; give it more time"):
        model.predict({"x": ROWS})
    assert not set(psutil.Process().children(recursive=True)) - others


@pytest.mark.torch
def test_what_a_network_prints_does_not_disturb(models: Any) -> None:
    """Output of the user's code goes past the pipe on which the answers come."""
    folder = models["torch"]
    with ReferenceModel(folder / "weights.pt", code=f"{folder / 'net.py'}:talks") as model:
        assert model.predict({"x": ROWS, "scale": ONES})["output_1"].shape == (2,)


@pytest.mark.torch
def test_strangers_pickles_are_refused_here_too(models: Any) -> None:
    """Making the reference runs no pickle either."""
    folder = models["torch"]
    with pytest.raises(UntrustedPickleError, match=r"posix\.system"):
        ReferenceModel(folder / "bomb.pt", code=f"{folder / 'net.py'}:Net")
    assert not (folder / "canary").exists()


def test_the_process_ends_with_the_block(models: Any, others: set[psutil.Process]) -> None:
    """Closing ends the process; closing twice does nothing; a later call starts another."""
    pytest.importorskip("onnxruntime")
    model = ReferenceModel(models["onnx"] / "small.onnx")
    with model:
        assert len(set(psutil.Process().children()) - others) == 1
    assert not set(psutil.Process().children()) - others
    model.close()
    assert model.predict({"x": ROWS})["best"].shape == (2,)
    model.close()
    assert not set(psutil.Process().children()) - others


def test_the_process_ends_with_ours(models: Any) -> None:
    """The child sees its input end when its parent is killed, and ends."""
    pytest.importorskip("onnxruntime")
    code = (
        "import os, sys, pathlib, psutil, servewright.reference as r\n"
        f"model = r.ReferenceModel(pathlib.Path({str(models['onnx'] / 'small.onnx')!r})).__enter__()\n"
        "print(psutil.Process().children()[0].pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(int(done.stdout)).wait(timeout=20)
    assert not psutil.pid_exists(int(done.stdout))


@pytest.mark.parametrize(
    ("format", "hidden", "extra"),
    [
        ("onnx", "onnxruntime", "onnx"),
        ("torchscript", "torch", "torchserve"),
        ("saved_model", "tensorflow", "tensorflow"),
    ],
)
def test_a_missing_framework_is_said_with_its_pip_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    format: str,  # noqa: A002
    hidden: str,
    extra: str,
) -> None:
    """Without the framework, the error names the package and the extra that brings it."""
    (tmp_path / f"{hidden}.py").write_text("raise ImportError('hidden')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    source = {"path": str(tmp_path / "model"), "format": format}
    with Child(format) as child, pytest.raises(MissingExtraError, match=rf"needs {hidden}; run: pip.*\[{extra}\]"):
        child.call("load", {"source": source})


ARRAYS = st_numpy.arrays(
    dtype=st.sampled_from(["float32", "float64", "float16", "int8", "int64", "uint16", "bool", "complex64", ">f4"]),
    shape=st_numpy.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
)
TEXTS = st_numpy.arrays(dtype=object, shape=st_numpy.array_shapes(min_side=0, max_side=3), elements=st.binary())


@given(st.dictionaries(st.text(max_size=5), ARRAYS | TEXTS, max_size=4), st.dictionaries(st.text(), st.integers()))
def test_messages_arrive_as_they_were_sent(arrays: dict[str, Any], values: dict[str, int]) -> None:
    """Any arrays, texts among them, come out of the pipe as they went in, one message after the other."""
    stream = io.BytesIO()
    frames.write(stream, values, arrays)
    frames.write(stream, {"next": 1})
    stream.seek(0)
    found_values, found = frames.read(stream)
    assert found_values == values
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype.kind == array.dtype.kind
    assert frames.read(stream)[0] == {"next": 1}


@given(st.binary(max_size=60))
def test_a_message_that_breaks_off_ends_the_stream(content: bytes) -> None:
    """A stream that ends within a message is an end, not a wait."""
    stream = io.BytesIO()
    frames.write(stream, {}, {"x": np.frombuffer(content, np.uint8)})
    cut = io.BytesIO(stream.getvalue()[:-1] if content else stream.getvalue()[:2])
    with pytest.raises(EOFError):
        frames.read(cut)


def test_texts_that_are_none_are_refused() -> None:
    """An array of objects other than text cannot be sent, and is not pickled."""
    with pytest.raises(TypeError, match="holds dict"):
        frames.write(io.BytesIO(), {}, {"x": np.array([{}], object)})


def test_the_child_does_not_import_from_where_it_runs(tmp_path: Path, models: Any) -> None:
    """A file in the user's folder that is called like a module is not run."""
    (tmp_path / "json.py").write_text("raise SystemExit('stranger')")
    here = Path.cwd()
    os.chdir(tmp_path)
    try:
        with ReferenceModel(models["onnx"] / "small.onnx") as model:
            assert model.signature is not None
    finally:
        os.chdir(here)

"""What model files say of themselves, held against what their own frameworks say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servewright.errors import InputError, ModelFileError, PackagingError, UntrustedPickleError
from servewright.modelfiles import detect, inspect, onnx, protowire
from servewright.modelfiles.keras import export_saved_model
from servewright.modelfiles.keras_config import signature_parts, unique_names
from servewright.spec import Signature, TensorSpec

CONFORMANCE = os.environ.get("SERVEWRIGHT_CONFORMANCE")


def pairs(tensors: tuple[TensorSpec, ...]) -> list[list[Any]]:
    return [[item.dtype, None if item.shape is None else list(item.shape)] for item in tensors]


def named(signature: Signature) -> list[dict[str, Any]]:
    sides = signature.inputs, signature.outputs
    return [{item.name: pair for item, pair in zip(side, pairs(side), strict=True)} for side in sides]


def shown(path: Path, **options: Any) -> list[list[tuple[str, str, tuple[int | None, ...] | None]]]:
    """Return (name, dtype, shape) of the inputs and outputs of the default signature."""
    signature = inspect(path, **options).signatures[0]
    return [[(item.name, item.dtype, item.shape) for item in side] for side in (signature.inputs, signature.outputs)]


def test_nothing_heavy_is_imported() -> None:
    """Looking into a file imports neither numpy nor a framework into this process."""
    heavy = {"numpy", "torch", "tensorflow", "keras", "onnx", "google.protobuf"}
    modules = "servewright.modelfiles.onnx, servewright.modelfiles.keras, servewright.modelfiles.saved_model"
    code = f"import sys, {modules}; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", ["saved_model", "version_1"])
def test_saved_models_say_what_tensorflow_says(models: Any, name: str) -> None:
    """Every signature of a SavedModel, of both TensorFlow versions, is read as TensorFlow reads it."""
    found = inspect(models["tensorflow"] / name)
    assert {item.name: named(item) for item in found.signatures} == models.truth("tensorflow")[name]
    assert found.signatures[0].name == "serving_default"
    assert found.format == "saved_model"
    assert found.size_bytes == sum(file.stat().st_size for file in found.path.rglob("*") if file.is_file())


@pytest.mark.tensorflow
def test_a_text_saved_model_says_the_same(models: Any) -> None:
    """A SavedModel in text form is read by TensorFlow in a child, with the same result."""
    folder = models["tensorflow"]
    assert inspect(folder / "as_text").signatures == inspect(folder / "saved_model").signatures


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("unsigned", "no signature that can be served"),
        ("untagged", r"no graph for serving \(tags: train\)"),
    ],
)
def test_saved_models_that_cannot_be_served(models: Any, name: str, said: str) -> None:
    """A SavedModel without a signature, or for training alone, is refused with the reason."""
    with pytest.raises(ModelFileError, match=said):
        inspect(models["tensorflow"] / name)


@pytest.mark.tensorflow
def test_a_signature_that_cannot_be_served_is_left_out(models: Any) -> None:
    """A sparse input takes its own signature away, with a note, and not the others."""
    found = inspect(models["tensorflow"] / "sparse")
    assert [item.name for item in found.signatures] == ["lower", "odd"]
    assert any("serving_default" in note and "sparse" in note for note in found.notes)


@pytest.mark.tensorflow
def test_a_saved_model_without_its_weights_is_refused(models: Any, tmp_path: Path) -> None:
    """An index without its data files means that the folder was not copied whole."""
    source = models["tensorflow"] / "saved_model"
    (tmp_path / "model/variables").mkdir(parents=True)
    for name in ("saved_model.pb", "variables/variables.index"):
        (tmp_path / "model" / name).write_bytes((source / name).read_bytes())
    with pytest.raises(ModelFileError, match="weights; copy the whole folder"):
        inspect(tmp_path / "model")


@pytest.mark.skipif(CONFORMANCE is None, reason="SERVEWRIGHT_CONFORMANCE names no folder of recorded models")
def test_recorded_models() -> None:
    """Each recorded SavedModel says what its notes say, and each broken one is refused clearly."""
    root = Path(CONFORMANCE or "") / "tfserving"
    truth = json.loads((root / "models.json").read_text())
    seen = 0
    for path in sorted((root / "models").glob("*/*")):
        name = f"{path.parent.name}/{path.name}"
        if not truth.get(name, {}).get("signatures"):
            with pytest.raises(ModelFileError):
                inspect(path)
            continue
        found = {item.name: named(item) for item in inspect(path).signatures}
        for signature, sides in truth[name]["signatures"].items():
            assert found[signature] == [sides["inputs"], sides["outputs"]], name
            seen += 1
    assert seen > 30


@pytest.mark.torch
@pytest.mark.parametrize("name", ["plain", "keyword", "text", "picture", "choice", "fixed"])
def test_exported_programs_say_what_torch_says(models: Any, name: str) -> None:
    """The graph of an exported program tells the dtypes and sizes that torch.export itself does."""
    signature = inspect(models["torch"] / f"{name}.pt2").signatures[0]
    assert [pairs(signature.inputs), pairs(signature.outputs)] == models.truth("torch")["exported"][name]


@pytest.mark.torch
def test_exported_programs_name_inputs_and_outputs(models: Any) -> None:
    """Inputs have the names of forward's parameters, outputs the keys of a mapping, or a number."""
    folder = models["torch"]
    keyword = inspect(folder / "keyword.pt2").signatures[0]
    assert [item.name for item in keyword.inputs + keyword.outputs] == ["x", "scale", "scores", "probabilities"]
    plain = inspect(folder / "plain.pt2").signatures[0]
    assert [item.name for item in plain.inputs + plain.outputs] == ["x", "scale", "output_0", "output_1"]


@pytest.mark.torch
def test_a_fixed_batch_is_noted(models: Any) -> None:
    """A program that was exported for one batch size says that it cannot be batched."""
    notes = inspect(models["torch"] / "fixed.pt2").notes
    assert any("'x' has a fixed batch of 2" in note for note in notes)


@pytest.mark.torch
@pytest.mark.parametrize("name", ["script.pt", "trace.pt", "weights.pt", "legacy.pt", "checkpoint.pt"])
def test_torch_files_are_asked_by_example(models: Any, name: str) -> None:
    """An example is run in the order of forward's parameters, and tells which axes grow with the rows."""
    folder = models["torch"]
    code = None if name in ("script.pt", "trace.pt") else f"{folder / 'net.py'}:Net"
    assert shown(folder / name, example=folder / "example.npz", code=code) == [
        [("x", "float32", (None, 4)), ("scale", "float32", (None, 1))],
        [("output_0", "float32", (None, 3)), ("output_1", "float32", (None,))],
    ]


@pytest.mark.torch
def test_names_of_the_example_that_forward_lacks_go_by_position(models: Any) -> None:
    """Inputs under other names are handed over in their order, and a note says so."""
    folder = models["torch"]
    found = inspect(folder / "script.pt", example=folder / "other_names.npz")
    assert [item.name for item in found.signatures[0].inputs] == ["first", "second"]
    assert any("by position: the model calls them x, scale" in note for note in found.notes)


@pytest.mark.torch
def test_outputs_of_a_mapping_keep_their_names(models: Any) -> None:
    """A mapping that a network returns names the outputs; bfloat16 is said as float32, which it comes as."""
    folder = models["torch"]
    (_, outputs) = shown(folder / "named.pt", example=folder / "x.npz")
    assert outputs == [("twice", "float32", (None, 4)), ("half", "float32", (None, 4))]


@pytest.mark.torch
def test_a_model_that_refuses_another_batch(models: Any) -> None:
    """A network that runs the example alone is said to have a fixed batch."""
    folder = models["torch"]
    found = inspect(folder / "fixed.pt", example=folder / "x.npz")
    assert found.signatures[0].inputs[0].shape == (2, 4)
    assert any("refuses twice the rows" in note for note in found.notes)


@pytest.mark.torch
@pytest.mark.parametrize(("name", "needs"), [("script.pt", ("example",)), ("weights.pt", ("code", "example"))])
def test_what_a_file_leaves_open_is_said(models: Any, name: str, needs: tuple[str, ...]) -> None:
    """A file that does not tell its shapes says what it needs, and is no error."""
    found = inspect(models["torch"] / name)
    assert found.needs == needs
    assert found.signatures == ()


@pytest.mark.torch
def test_a_whole_network_runs_with_trust_alone(models: Any) -> None:
    """A pickled network is refused, and read when its user trusts it."""
    folder = models["torch"]
    options = {"example": folder / "example.npz", "code": f"{folder / 'net.py'}:Net"}
    with pytest.raises(UntrustedPickleError):
        inspect(folder / "whole.pt", **options)
    assert inspect(folder / "whole.pt", trust=True, **options).signatures[0].outputs[0].shape == (None, 3)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("net.py:Other", "does not fit.*size mismatch"),
        ("net.py:Wants", "wants arguments"),
        ("net.py:number", "not callable|gives int"),
        ("net.py:Nothing", "has no 'Nothing'; it has .*Net"),
        ("absent.py:Net", "does not exist"),
    ],
)
def test_code_that_does_not_fit(models: Any, code: str, said: str) -> None:
    """Naming the wrong class or file gives an error that says what is there."""
    folder = models["torch"]
    with pytest.raises(InputError, match=said):
        inspect(folder / "weights.pt", example=folder / "example.npz", code=str(folder / code))


@pytest.mark.tensorflow
def test_keras_files_tell_without_keras(models: Any) -> None:
    """A network that ends in a layer of known effect tells its signature from its JSON alone."""
    import zipfile

    with zipfile.ZipFile(models["keras"] / "digits.keras") as archive:
        found = signature_parts(json.loads(archive.read("config.json")))
    assert found == {
        "inputs": [("image", "float32", [None, 8, 8, 1])],
        "outputs": [("scores", "float32", [None, 10])],
    }


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("digits.h5", [[("image", "float32", (None, 8, 8, 1))], [("scores", "float32", (None, 10))]]),
        (
            "mapping.keras",
            [
                [("a", "float32", (None, 4)), ("b", "int32", (None, 4))],
                [("logits", "float32", (None, 3)), ("total", "float32", (None, 2))],
            ],
        ),
        (
            "listed.keras",
            [
                [("b", "int32", (None, 4)), ("a", "float32", (None, 4))],
                [("soft", "float32", (None, 3)), ("lookup", "float32", (None, 4, 2)), ("y", "float32", (None, 3))],
            ],
        ),
        (
            "shared.keras",
            [[("a", "float32", (None, 4))], [("same", "float32", (None, 4)), ("same_1", "float32", (None, 4))]],
        ),
        ("fixed.keras", [[("a", "float32", (2, 4))], [("y", "float32", (2, 1))]]),
    ],
)
def test_keras_files_tell_their_signature(models: Any, name: str, expected: Any) -> None:
    """Single, listed and mapped inputs and outputs are named and ordered as Keras takes and gives them."""
    assert shown(models["keras"] / name) == expected


@pytest.mark.tensorflow
def test_the_json_agrees_with_keras(models: Any) -> None:
    """Where the JSON alone tells the signature, Keras itself says the same."""
    from servewright.modelfiles.child import Child

    with Child("keras") as child:
        for name in ("digits.keras", "shared.keras", "fixed.keras"):
            path = models["keras"] / name
            asked, _ = child.call("describe", {"source": {"path": str(path), "format": "keras"}})
            said = [
                [(item, dtype, tuple(shape)) for item, dtype, shape in asked[side]] for side in ("inputs", "outputs")
            ]
            assert said == shown(path), name


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", ["lambda.keras", "lambda.h5"])
def test_lambda_layers_are_refused(models: Any, name: str) -> None:
    """Bytecode in a Keras file is refused without trust, in both forms of the file, and read with it."""
    with pytest.raises(UntrustedPickleError, match=r"Lambda layer.*--trust"):
        inspect(models["keras"] / name)


@pytest.mark.tensorflow
def test_a_trusted_lambda_layer_runs(models: Any) -> None:
    """With trust, a Lambda layer is read."""
    assert shown(models["keras"] / "lambda.keras", trust=True)[1] == [("twice", "float32", (None, 4))]


@pytest.mark.tensorflow
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("custom.keras", "mine>Plus, whose code is not in the file"),
        ("only.weights.h5", "weights without a network"),
    ],
)
def test_keras_files_that_lack_something(models: Any, name: str, said: str) -> None:
    """A layer of one's own, and a file of weights alone, are refused with what to do."""
    with pytest.raises(ModelFileError, match=said):
        inspect(models["keras"] / name)


@pytest.mark.parametrize(
    "part",
    [
        {"module": "os", "class_name": "function", "config": "system", "registered_name": "system"},
        {"module": "keras.utils", "class_name": "function", "config": "get_file"},
        {"module": "keras.src.utils.file_utils", "class_name": "function", "config": "get_file"},
        {"module": "keras.config", "class_name": "function", "config": "enable_unsafe_deserialization"},
        {"module": "keras.saving", "class_name": "load_model", "config": {}},
        {"module": "keras.src.saving.saving_lib", "class_name": "load_model", "config": {}},
        {"class_name": "__lambda__", "config": {"code": "4wEAAAA="}},
        {"module": "keras.layers", "class_name": "TorchModuleWrapper", "config": {"module": "UEsDB"}},
        {"module": "keras.layers", "class_name": "TFSMLayer", "config": {"filepath": "/etc"}},
    ],
    ids=lambda part: f"{part.get('module')}.{part['class_name']}",
)
def test_keras_json_that_names_functions_is_refused(tmp_path: Path, part: dict[str, Any]) -> None:
    """A config that names code outside Keras's layers is refused, wherever it stands, before Keras sees it."""
    import zipfile

    path = tmp_path / "model.keras"
    layers = [{"module": "keras.layers", "class_name": "Activation", "config": {"activation": part}}]
    config = {"module": "keras", "class_name": "Sequential", "config": {"layers": layers}}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("metadata.json", "{}")
    with pytest.raises(ModelFileError, match=r"whose code is not in the file|--trust"):
        inspect(path)


@pytest.mark.tensorflow
@pytest.mark.parametrize("name", ["digits.h5", "listed.keras"])
def test_keras_models_export_with_the_same_signature(models: Any, tmp_path: Path, name: str) -> None:
    """The SavedModel that is exported has one signature, which is the Keras file's own."""
    source = models["keras"] / name
    before = source.read_bytes()
    found = inspect(export_saved_model(source, tmp_path / "out/1"))
    assert [item.name for item in found.signatures] == ["serving_default"]
    assert named(found.signatures[0]) == named(inspect(source).signatures[0])
    assert source.read_bytes() == before
    assert [item.name for item in (tmp_path / "out").iterdir()] == ["1"]


@pytest.mark.tensorflow
def test_an_export_does_not_overwrite(models: Any, tmp_path: Path) -> None:
    """A folder that is there already is left as it is, and nothing else is left behind."""
    (tmp_path / "1").mkdir()
    with pytest.raises(PackagingError, match="exists already"):
        export_saved_model(models["keras"] / "digits.keras", tmp_path / "1")
    with pytest.raises(UntrustedPickleError):
        export_saved_model(models["keras"] / "lambda.keras", tmp_path / "2")
    assert [item.name for item in tmp_path.iterdir()] == ["1"]


@given(st.lists(st.text(max_size=8), max_size=8))
def test_names_are_unique_and_plain(names: list[str]) -> None:
    """Whatever layers are called, the signature's names are different identifiers of ASCII."""
    result = unique_names(names)
    assert len(set(result)) == len(result) == len(names)
    assert all(name.isascii() and name.replace("_", "a").isalnum() and name[0] != "_" for name in result)


def test_onnx_graphs_tell_their_signature(models: Any) -> None:
    """Inputs without weights, named axes as any size, texts as texts."""
    folder = models["onnx"]
    expected = [
        [("x", "float32", (None, 4))],
        [("scores", "float32", (None, 3)), ("best", "int64", (None,))],
    ]
    assert shown(folder / "small.onnx") == expected
    assert shown(folder / "apart/model.onnx") == expected
    assert shown(folder / "text.onnx") == [[("text", "string", (None,))], [("twice", "string", (None,))]]


def test_onnx_weights_beside_the_file(models: Any) -> None:
    """Weights kept in another file are named, missed where it is missing, and never sought outside the folder."""
    folder = models["onnx"]
    assert onnx.external_files(folder / "apart/model.onnx") == ("weights.bin",)
    assert onnx.external_files(folder / "small.onnx") == ()
    with pytest.raises(ModelFileError, match=r"weights\.bin.*not beside it; copy that file too"):
        inspect(folder / "lost/model.onnx")
    with pytest.raises(ModelFileError, match="outside its own folder"):
        inspect(folder / "outside/model.onnx")


@given(st.binary(max_size=200))
def test_any_bytes_are_fields_or_an_error(content: bytes) -> None:
    """Walking arbitrary bytes ends in fields that lie within them, or in an error of ours."""
    try:
        found = list(protowire.fields(memoryview(content)))
    except protowire.WireError:
        return
    assert sum(len(value) for _, value in found if isinstance(value, memoryview)) <= len(content)


@pytest.mark.tensorflow
@given(data=st.data())
def test_a_damaged_saved_model_never_gives_a_traceback(models: Any, data: st.DataObject) -> None:
    """With any byte changed, a SavedModel is read or refused, with an error of ours."""
    import tempfile

    content = bytearray((models["tensorflow"] / "version_1/saved_model.pb").read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "saved_model.pb").write_bytes(content)
        try:
            said = str(inspect(Path(folder)).path)
        except ModelFileError as error:
            said = str(error)
        assert folder in said


@pytest.mark.parametrize(
    ("group", "name", "format"),
    [
        ("tensorflow", "saved_model", "saved_model"),
        ("keras", "digits.keras", "keras"),
        ("keras", "digits.h5", "keras"),
        ("torch", "script.pt", "torchscript"),
        ("torch", "weights.pt", "state_dict"),
        ("torch", "legacy.pt", "state_dict"),
        ("torch", "plain.pt2", "exported_program"),
        ("onnx", "small.onnx", "onnx"),
    ],
)
def test_formats_are_told_by_content(models: Any, tmp_path: Path, group: str, name: str, format: str) -> None:  # noqa: A002
    """A model is recognised whatever it is called."""
    source = models[group] / name
    disguised = tmp_path / "something.bin"
    disguised.symlink_to(source)
    assert detect(disguised) == detect(source) == format

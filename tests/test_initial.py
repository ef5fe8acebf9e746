"""The first spec of a model: it loads again as what was found, whatever the files are called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servewright import specfile
from servewright.errors import InputError
from servewright.initial import initial_spec, model_name
from servewright.modelfiles import inspect
from servewright.modelfiles.inspection import Inspection
from servewright.spec import DTYPES, ModelSpec, Signature, TensorSpec

BACKENDS = ("one", "two")
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
TENSORS = st.lists(
    st.builds(
        TensorSpec,
        name=TEXT,
        dtype=st.sampled_from(DTYPES),
        shape=st.none() | st.lists(st.none() | st.integers(0, 2**40), max_size=4).map(tuple),
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda item: item.name,
).map(tuple)


def found(path: Path, signature: Signature, **more: Any) -> Inspection:
    return Inspection(path=path, **{"format": "saved_model", "signatures": (signature,), **more})


def a_signature(*, output: str = "y", shape: tuple[int | None, ...] = (None, 4), dtype: str = "float32") -> Signature:
    return Signature(
        inputs=(TensorSpec(name="x", dtype=dtype, shape=shape),),  # type: ignore[arg-type]
        outputs=(TensorSpec(name=output, dtype="float32", shape=(None, 2)),),
    )


def loaded(text: str, folder: Path) -> ModelSpec:
    return specfile.parse(text.encode(), folder=folder, backends=BACKENDS).spec


@given(
    signature=st.builds(Signature, name=TEXT, inputs=TENSORS, outputs=TENSORS), notes=st.lists(st.text(), max_size=2)
)
def test_any_signature_is_read_back(signature: Signature, notes: list[str]) -> None:
    """Whatever names a model uses, and whatever is noted, the spec reads back as the signature that was found."""
    model = found(Path(__file__).parent, signature, notes=tuple(notes))
    text = initial_spec({"one": model}, name="digits", relative_to=Path(__file__).parent.parent)
    assert loaded(text, Path(__file__).parent.parent).signature == signature


@pytest.mark.parametrize(
    "name",
    ["model.pt", "my model.pt", "it's: a #1.pt", "null", "1.5", "naïve-模型.pt", 'quo"te.pt', "yes"],
)
def test_any_file_name_is_read_back(tmp_path: Path, name: str) -> None:
    """A file is found again under its name, relative to the spec, however it is called."""
    (tmp_path / name).write_bytes(b"x")
    model = found(tmp_path / name, a_signature(), format="torchscript")
    spec = loaded(initial_spec({"": model}, name="digits", relative_to=tmp_path), tmp_path)
    assert spec.source("one") == spec.source("two")
    assert spec.source("one").path == name  # type: ignore[union-attr]


def test_a_file_name_of_two_lines_is_refused(tmp_path: Path) -> None:
    """A name that a spec cannot hold is refused when the spec is written, not when it is read."""
    with pytest.raises(InputError, match=r"'new\\nline' has a control character in it; rename the file"):
        initial_spec({"": found(tmp_path / "new\nline", a_signature())}, name="n", relative_to=tmp_path)


def test_files_elsewhere_are_named_from_the_root(tmp_path: Path) -> None:
    """A model outside the spec's folder has an absolute path: a spec does not climb."""
    (tmp_path / "specs").mkdir()
    (tmp_path / "model.pt").write_bytes(b"x")
    (tmp_path / "net.py").write_text("class Net: ...")
    model = found(tmp_path / "model.pt", a_signature(), format="state_dict", code=f"{tmp_path / 'net.py'}:Net")
    spec = loaded(initial_spec({"one": model}, name="n", relative_to=tmp_path / "specs"), tmp_path / "specs")
    source = spec.source("one")
    assert source is not None
    assert source.path == str(tmp_path / "model.pt")
    assert source.code == f"{tmp_path / 'net.py'}:Net"
    assert spec.source("two") is None


def test_what_is_missing_is_asked_for(tmp_path: Path) -> None:
    """A model that leaves its signature open cannot be written down, and the error says what to give."""
    model = Inspection(path=tmp_path / "w.pt", format="state_dict", needs=("code", "example"))
    with pytest.raises(InputError, match=r"--code net\.py:Net and .*--example in\.npz"):
        initial_spec({"": model}, name="n", relative_to=tmp_path)
    with pytest.raises(InputError, match="no model given"):
        initial_spec({}, name="n", relative_to=tmp_path)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (a_signature(dtype="int32"), "input 'x' is float32 and int32; cast it"),
        (a_signature(shape=(None, 5)), r"input 'x' has shape \[null, 4\] and \[null, 5\]; reshape it"),
        (a_signature(output="z"), "outputs y and z; return a mapping"),
    ],
)
def test_models_that_differ_are_refused(tmp_path: Path, other: Signature, said: str) -> None:
    """Models of one spec must take and give the same; the first difference is said, with what to do."""
    models = {
        "one": found(tmp_path / "a.onnx", a_signature(), format="onnx"),
        "two": found(tmp_path / "b", other),
    }
    with pytest.raises(InputError, match=said):
        initial_spec(models, name="n", relative_to=tmp_path)


def test_a_nameless_output_takes_the_other_models_name(tmp_path: Path) -> None:
    """A network that returns one tensor has no name for it; a model that has one gives it."""
    (tmp_path / "a.pt").write_bytes(b"x")
    (tmp_path / "b").mkdir()
    models = {
        "one": found(tmp_path / "b", a_signature(output="scores")),
        "two": found(tmp_path / "a.pt", a_signature(output="output"), format="torchscript"),
    }
    spec = loaded(initial_spec(models, name="n", relative_to=tmp_path), tmp_path)
    assert spec.signature == a_signature(output="scores")


def test_the_order_is_that_of_the_model_that_has_one(tmp_path: Path) -> None:
    """Names known in the order of the alphabet follow the order in which the other network takes them."""
    x, a = (TensorSpec(name=name, dtype="float32", shape=(None,)) for name in ("x", "a"))
    y = TensorSpec(name="y", dtype="float32", shape=(None,))
    (tmp_path / "t.pt").write_bytes(b"x")
    (tmp_path / "s").mkdir()
    models = {
        "one": found(tmp_path / "s", Signature(inputs=(a, x), outputs=(y,))),
        "two": found(tmp_path / "t.pt", Signature(inputs=(x, a), outputs=(y,)), format="torchscript"),
    }
    spec = loaded(initial_spec(models, name="n", relative_to=tmp_path), tmp_path)
    assert [item.name for item in spec.signature.inputs] == ["x", "a"]


@pytest.mark.parametrize(
    ("group", "name"),
    [("tensorflow", "saved_model"), ("keras", "digits.keras"), ("torch", "plain.pt2"), ("onnx", "small.onnx")],
)
def test_real_models_give_specs_that_load(models: Any, group: str, name: str) -> None:
    """What is written for a real model loads as its own signature."""
    folder = models[group]
    model = inspect(folder / name)
    text = initial_spec({"one": model}, name=model_name(folder / name), relative_to=folder)
    assert loaded(text, folder).signature == model.signatures[0]


@given(st.text(max_size=40))
def test_names_are_what_servers_accept(stem: str) -> None:
    """A name made from any file name is one that the spec takes."""
    name = model_name(Path("/models/" + stem.replace("\0", "") + ".pt"))
    ModelSpec.model_validate(
        {
            "servewright": 1,
            "name": name,
            "version": 1,
            "model": {"path": "m.pt", "format": "onnx"},
            "signature": a_signature().model_dump(),
        }
    )


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/work/digits/model.pt", "digits"),
        ("/work/digits/saved_model", "digits"),
        ("/work/digits/3", "digits"),
        ("/work/my net.v2.onnx", "my-net.v2"),
        ("/1/2/model.keras", "model"),
    ],
)
def test_names_come_from_what_tells_most(path: str, name: str) -> None:
    """Files that are all called alike are named after their folder."""
    assert model_name(Path(path)) == name

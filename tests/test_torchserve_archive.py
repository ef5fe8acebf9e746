"""Model archives of TorchServe: what lies where, and which names get in each other's way."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from servewright import pipeline, registry
from servewright.archive import write_zip
from servewright.archive_check import check_archive
from servewright.backends.torchserve.archive import mar_members
from servewright.errors import InputError
from servewright.packaging import package
from servewright.tree import assemble_tree


@pytest.fixture
def parts(tmp_path: Path) -> dict[str, Any]:
    """Give the parts of an archive with everything in it."""
    sources = {}
    for name in ("net/model.pt", "code/model.py", "code/handler.py", "pins.txt", "words/vocab.txt", "labels.txt"):
        sources[name] = tmp_path / name
        sources[name].parent.mkdir(exist_ok=True)
        sources[name].write_text(name)
    return {
        "manifest_json": '{"model": {}}',
        "model_config_yaml": "batchSize: 8\n",
        "model_file": sources["net/model.pt"],
        "extra": {"vocab.txt": sources["words/vocab.txt"], "tokens/labels.txt": sources["labels.txt"], "note": b"x"},
        "handler": sources["code/handler.py"],
        "requirements": sources["pins.txt"],
        "code": sources["code/model.py"],
    }


class TestMembers:
    """The members of a model archive."""

    def test_lie_in_the_root_but_for_the_manifest(self, parts: dict[str, Any]) -> None:
        """Every file has its base name, the requirements the one that the manifest gives them."""
        members = mar_members(**parts)
        assert {
            name: content if isinstance(content, bytes) else content.read_bytes() for name, content in members.items()
        } == {
            "MAR-INF/MANIFEST.json": b'{"model": {}}',
            "model-config.yaml": b"batchSize: 8\n",
            "model.pt": b"net/model.pt",
            "model.py": b"code/model.py",
            "handler.py": b"code/handler.py",
            "requirements.txt": b"pins.txt",
            "vocab.txt": b"words/vocab.txt",
            "tokens/labels.txt": b"labels.txt",
            "note": b"x",
        }

    def test_may_be_few(self, parts: dict[str, Any]) -> None:
        """Code, requirements and extra files are optional."""
        members = mar_members(**parts | {"code": None, "requirements": None, "extra": {}})
        assert sorted(members) == ["MAR-INF/MANIFEST.json", "handler.py", "model-config.yaml", "model.pt"]

    def test_are_the_same_in_both_forms(self, parts: dict[str, Any], tmp_path: Path) -> None:
        """The file and the directory hold the same names and contents, and the file is safe to unpack."""
        members = mar_members(**parts)
        write_zip(tmp_path / "m.mar", members)
        assemble_tree(tmp_path / "m", members)
        with zipfile.ZipFile(tmp_path / "m.mar") as archive:
            packed = {name: archive.read(name) for name in archive.namelist()}
        files = (path for path in (tmp_path / "m").rglob("*") if path.is_file())
        assert packed == {path.relative_to(tmp_path / "m").as_posix(): path.read_bytes() for path in files}
        assert check_archive(tmp_path / "m.mar") == ()

    @pytest.mark.parametrize("packed", [True, False])
    def test_hold_the_weights_that_lie_beside_an_onnx_graph(self, packed: bool, models: Any, tmp_path: Path) -> None:
        """As torch's exporter writes them by default; the server has nothing but the archive."""
        runtime = pytest.importorskip("onnxruntime")
        shutil.copytree(models["onnx"] / "apart", tmp_path / "model")
        spec = tmp_path / "one.yaml"
        spec.write_text(
            "servewright: 1\nname: one\nmodel: {path: model/model.onnx, format: onnx}\nsignature:\n"
            "  inputs: [{name: x, dtype: float32, shape: [null, 4]}]\n"
            "  outputs: [{name: scores, dtype: float32, shape: [null, 3]}]\n"
        )
        package(pipeline.load(spec), registry.get("torchserve"), tmp_path / "out", packed=packed)
        folder = tmp_path / "out" / "models" / "one"
        if packed:
            with zipfile.ZipFile(folder.with_suffix(".mar")) as archive:
                archive.extractall(folder)
        session = runtime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
        (scores,) = session.run(["scores"], {"x": np.ones((1, 4), np.float32)})
        np.testing.assert_array_equal(scores, [[18.0, 22.0, 26.0]])

    def test_may_name_one_file_twice(self, parts: dict[str, Any]) -> None:
        """A file that is given in two roles is packed once."""
        members = mar_members(**parts | {"extra": {"model.py": parts["code"]}})
        assert members["model.py"] == parts["code"]


class TestClashes:
    """Two files of one name are refused."""

    @pytest.mark.parametrize(
        ("extra", "roles"),
        [
            ("model.pt", "the model .* and an extra file"),
            ("handler.py", "the handler .* and an extra file"),
            ("requirements.txt", "the requirements .* and an extra file"),
            ("model-config.yaml", "the rendered model config and an extra file"),
            ("MAR-INF/MANIFEST.json", "the archive's manifest and an extra file"),
        ],
    )
    def test_name_both_files_and_what_to_do(
        self, parts: dict[str, Any], tmp_path: Path, extra: str, roles: str
    ) -> None:
        """The error says which two files would bear which name."""
        with pytest.raises(InputError, match=rf"would be called '{extra}' in the archive: {roles}.*; rename one"):
            mar_members(**parts | {"extra": {extra: tmp_path / "other"}})

    def test_between_code_and_handler(self, parts: dict[str, Any], tmp_path: Path) -> None:
        """The model's code and the handler may not have one base name."""
        with pytest.raises(InputError, match=r"the handler .* and the model's code"):
            mar_members(**parts | {"code": tmp_path / "elsewhere" / "handler.py"})

    def test_are_reported_all_at_once(self, parts: dict[str, Any]) -> None:
        """One error names every clash, and files where only TorchServe's own may lie."""
        with pytest.raises(InputError) as raised:
            mar_members(**parts | {"extra": {"model.pt": b"", "handler.py": b"", "MAR-INF/x": b""}})
        assert len(str(raised.value).splitlines()) == 3

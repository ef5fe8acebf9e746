"""Model repositories of TensorFlow Serving: a SavedModel's files, and what is added to them."""

from __future__ import annotations

from pathlib import Path

import pytest

from servewright.backends.tfserving.repository import version_members
from servewright.errors import InputError, ModelFileError
from servewright.tree import assemble_tree


@pytest.fixture
def saved_model(tmp_path: Path) -> Path:
    """Give a directory laid out like a SavedModel."""
    root = tmp_path / "saved_model"
    for name in ("saved_model.pb", "variables/variables.index", "assets/vocab.txt", "assets.extra/note"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


class TestMembers:
    """The members of a version."""

    def test_are_the_saved_models_files(self, saved_model: Path) -> None:
        """Every file keeps its place below the version's directory, files of ``assets.extra`` too."""
        root = "models/m/3"
        assert version_members("m", 3, saved_model) == {
            f"{root}/saved_model.pb": saved_model / "saved_model.pb",
            f"{root}/variables/variables.index": saved_model / "variables/variables.index",
            f"{root}/assets/vocab.txt": saved_model / "assets/vocab.txt",
            f"{root}/assets.extra/note": saved_model / "assets.extra/note",
        }

    def test_hold_what_is_added(self, saved_model: Path) -> None:
        """Warm-up requests and batching parameters go where the server looks for them."""
        members = version_members("m", 3, saved_model, warmup=b"records", batching="max_batch_size { value: 8 }\n")
        assert members["models/m/3/assets.extra/tf_serving_warmup_requests"] == b"records"
        assert members["models/m/3/batching_params.pbtxt"] == b"max_batch_size { value: 8 }\n"

    def test_leave_the_source_untouched(self, saved_model: Path, tmp_path: Path) -> None:
        """What is added lies in the repository, never in the model's own directory."""
        before = sorted(saved_model.rglob("*"))
        assemble_tree(tmp_path / "out", version_members("m", 3, saved_model, warmup=b"records"))
        assert sorted(saved_model.rglob("*")) == before
        assert (tmp_path / "out/models/m/3/assets.extra/tf_serving_warmup_requests").read_bytes() == b"records"

    def test_follow_links(self, saved_model: Path, tmp_path: Path) -> None:
        """A model whose files and directories are links, as in a hub's cache, is taken as what they show."""
        (tmp_path / "linked").mkdir()
        for entry in saved_model.iterdir():
            (tmp_path / "linked" / entry.name).symlink_to(entry)
        assert version_members("m", 3, tmp_path / "linked").keys() == version_members("m", 3, saved_model).keys()


class TestRefusal:
    """What is no SavedModel, or has such a file already, is refused."""

    @pytest.mark.parametrize(
        ("added", "file"),
        [
            ({"warmup": b""}, "assets.extra/tf_serving_warmup_requests"),
            ({"batching": ""}, "batching_params.pbtxt"),
        ],
        ids=["warmup", "batching"],
    )
    def test_file_that_is_there_already(self, saved_model: Path, added: dict[str, bytes | str], file: str) -> None:
        """A recorded warm-up of the model's own is kept, and one of the spec's beside it an input error."""
        (saved_model / file).write_bytes(b"own")
        assert version_members("m", 3, saved_model)[f"models/m/3/{file}"] == saved_model / file
        with pytest.raises(InputError, match=f"has its own {file}"):
            version_members("m", 3, saved_model, **added)  # type: ignore[arg-type]

    def test_missing_or_wrong_model(self, tmp_path: Path) -> None:
        """A path that is missing, a file, or a directory of something else, is a model file error that says which."""
        (tmp_path / "file").write_bytes(b"")
        (tmp_path / "empty").mkdir()
        for name, reason in {"missing": "does not exist", "file": "is a file", "empty": r"no saved_model\.pb"}.items():
            with pytest.raises(ModelFileError, match=reason):
                version_members("m", 3, tmp_path / name)

    def test_ring_of_links(self, saved_model: Path) -> None:
        """A directory that links to itself does not keep the walk going for ever."""
        (saved_model / "assets" / "ring").symlink_to(saved_model)
        with pytest.raises(ModelFileError, match="links to a directory that it lies in"):
            version_members("m", 3, saved_model)

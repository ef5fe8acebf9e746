"""Packaging: an artifact is whole or not there; the same fleet gives the same bytes; sources are only read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from servewright import manifest, materials, pipeline, registry
from servewright.backend import Backend
from servewright.errors import InputError, PackagingError, SpecError
from servewright.packaging import package

if TYPE_CHECKING:
    from conftest import Workshop

TORCHSERVE, TFSERVING = registry.get("torchserve"), registry.get("tfserving")


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestArtifacts:
    """What packaging writes."""

    @pytest.mark.parametrize("packed", [True, False])
    def test_are_the_same_bytes_for_the_same_fleet(self, workshop: Workshop, backend: Backend, packed: bool) -> None:
        """Neither the clock nor the folder shows in an artifact."""
        fleet = workshop.fleet(workshop.rich_values(backend))
        first = package(fleet, backend, workshop.folder / "one", packed=packed)
        for path in workshop.folder.glob("model_*"):
            os.utime(path, (1_000_000_000, 1_000_000_000))
        second = package(fleet, backend, workshop.folder / "deep" / "two", packed=packed)
        assert content(first.root) == content(second.root)
        assert first.digest == second.digest

    def test_say_what_they_hold(self, workshop: Workshop, backend: Backend) -> None:
        """The manifest lists every file with its digest, and proves the folder unchanged."""
        fleet = workshop.fleet(workshop.rich_values(backend))
        artifact = package(fleet, backend, workshop.folder / "out")
        found = manifest.load_manifest(artifact.root)
        assert (found.backend, found.spec_digest, found.digest) == (backend.name, fleet.digest, artifact.digest)
        assert set(found.files) == set(content(artifact.root)) - {manifest.FILE}
        assert manifest.verify(artifact.root) == ()

    def test_tell_another_spec_and_another_model_apart(self, workshop: Workshop) -> None:
        """The digest covers both; the models' own digest covers these alone."""
        values = workshop.values(TFSERVING)
        first = package(workshop.fleet(values), TFSERVING, workshop.folder / "one")
        second = package(workshop.fleet(values, poll="5s"), TFSERVING, workshop.folder / "two")
        one, two = (manifest.load_manifest(artifact.root) for artifact in (first, second))
        assert first.digest != second.digest
        assert one.model_digest == two.model_digest

    def test_leave_sources_untouched(self, workshop: Workshop, backend: Backend) -> None:
        """Neither content nor times of a source change, and links go to the content."""
        fleet = workshop.fleet(workshop.values(backend))
        before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in workshop.folder.rglob("*")}
        for packed in (True, False):
            package(fleet, backend, workshop.folder / "out" / str(packed), packed=packed)
        out = workshop.folder / "out"
        after = {path for path in workshop.folder.rglob("*") if path != out and out not in path.parents}
        assert after == set(before)
        assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in before if path.is_file()} == {
            path: state for path, state in before.items() if path.is_file()
        }

    def test_of_folders_are_hard_links(self, workshop: Workshop) -> None:
        """Gigabytes of weights cost no time and no space."""
        fleet = workshop.fleet(workshop.values(TORCHSERVE))
        artifact = package(fleet, TORCHSERVE, workshop.folder / "out", packed=False)
        linked = artifact.models / "digits" / "model_torchscript"
        assert linked.samefile(workshop.folder / "model_torchscript")

    def test_of_archives_are_stored_and_sorted(self, workshop: Workshop) -> None:
        """A .mar is a zip without compression, in the order of its names, with the oldest date."""
        package(workshop.fleet(workshop.values(TORCHSERVE)), TORCHSERVE, workshop.folder / "out")
        with zipfile.ZipFile(workshop.folder / "out" / "models" / "digits.mar") as archive:
            entries = archive.infolist()
        assert [entry.filename for entry in entries] == sorted(entry.filename for entry in entries)
        assert {entry.compress_type for entry in entries} == {zipfile.ZIP_STORED}
        assert {entry.date_time for entry in entries} == {(1980, 1, 1, 0, 0, 0)}
        names = {entry.filename for entry in entries}
        assert names == {
            "MAR-INF/MANIFEST.json",
            "model-config.yaml",
            "model_torchscript",
            "servewright_tensor.py",
        }

    def test_of_rich_archives_hold_all_that_the_spec_names(self, workshop: Workshop) -> None:
        """Code, handler, labels, requirements and further files are in the archive."""
        for name in ("labels.txt", "req.txt", "mine.py"):
            (workshop.folder / name).write_text("")
        (workshop.folder / "extra" / "deep").mkdir(parents=True)
        (workshop.folder / "extra" / "deep" / "a.txt").write_text("a")
        values = workshop.values(
            TORCHSERVE,
            model=workshop.source("state_dict"),
            handler={"use": "mine.py", "labels": "labels.txt"},
            requirements="req.txt",
            files=["extra"],
        )
        package(workshop.fleet(values), TORCHSERVE, workshop.folder / "out")
        with zipfile.ZipFile(workshop.folder / "out" / "models" / "digits.mar") as archive:
            names = set(archive.namelist())
            model = json.loads(archive.read("MAR-INF/MANIFEST.json"))["model"]
        assert names >= {"net.py", "mine.py", "labels.txt", "requirements.txt", "extra/deep/a.txt", "model_state_dict"}
        assert (model["handler"], model["requirementsFile"]) == ("mine.py", "requirements.txt")

    def test_of_versions_are_folders_with_warm_up(self, workshop: Workshop) -> None:
        """One recorded request for each allowed batch size, beside the model's own files."""
        package(workshop.fleet(workshop.rich_values(TFSERVING)), TFSERVING, workshop.folder / "out")
        found = set(content(workshop.folder / "out" / "models"))
        assert found == {"digits/3/saved_model.pb", "digits/3/assets.extra/tf_serving_warmup_requests"}
        values = workshop.values(TFSERVING, tfserving={"warmup": False})
        package(workshop.fleet(values), TFSERVING, workshop.folder / "cold")
        assert set(content(workshop.folder / "cold" / "models")) == {"digits/3/saved_model.pb"}

    @pytest.mark.parametrize(
        ("tensor", "warm"),
        [({"dtype": "float32", "shape": [None, 8, 8]}, True), ({"dtype": "string", "shape": [None]}, False),
         ({"dtype": "float32", "shape": [None, None, None, 3]}, False), ({"dtype": "int64", "shape": [None]}, True)],
    )  # fmt: skip
    def test_are_warmed_up_with_nothing_that_a_model_may_refuse(
        self, tensor: dict[str, Any], warm: bool, workshop: Workshop
    ) -> None:
        """A warm-up that fails is a model that does not load: made-up texts are no pictures, and sizes too small."""
        signature = workshop.SIGNATURE | {"inputs": [{"name": "x", **tensor}]}
        package(workshop.fleet(workshop.values(TFSERVING, signature=signature)), TFSERVING, workshop.folder / "out")
        found = set(content(workshop.folder / "out" / "models"))
        assert ("digits/3/assets.extra/tf_serving_warmup_requests" in found) is warm


class TestReplacing:
    """A folder that is there already."""

    def test_changes_it_in_one_step(self, workshop: Workshop, backend: Backend) -> None:
        """The older artifact is gone, and nothing of the making is left."""
        package(workshop.fleet(workshop.values(backend, name="old")), backend, workshop.folder / "out")
        package(workshop.fleet(workshop.values(backend, name="new")), backend, workshop.folder / "out")
        assert not [name for name in content(workshop.folder / "out") if "old" in name]
        assert [path.name for path in workshop.folder.iterdir() if path.name.startswith(".")] == []

    def test_takes_an_empty_folder(self, workshop: Workshop, backend: Backend) -> None:
        """A folder that somebody made for it is filled."""
        (workshop.folder / "out").mkdir()
        package(workshop.fleet(workshop.values(backend)), backend, workshop.folder / "out")
        assert (workshop.folder / "out" / manifest.FILE).is_file()

    @pytest.mark.parametrize(
        ("files", "said"),
        [
            ({"mine.txt": "x"}, "is there and is no artifact; choose another folder"),
            ({"manifest.json": '{"name": "a web app"}'}, "is no manifest of an artifact"),
            ({"manifest.json": "not json"}, "is no manifest of an artifact"),
        ],
    )
    def test_refuses_folders_of_others(self, workshop: Workshop, files: dict[str, str], said: str) -> None:
        """What we did not write we do not remove, whatever it is called."""
        out = workshop.folder / "out"
        out.mkdir()
        for name, text in files.items():
            (out / name).write_text(text)
        with pytest.raises(InputError, match=said):
            package(workshop.fleet(workshop.values(TORCHSERVE)), TORCHSERVE, out)
        assert {path.name: path.read_text() for path in out.iterdir()} == files

    def test_refuses_a_file(self, workshop: Workshop) -> None:
        """A file of that name is somebody's."""
        (workshop.folder / "out").write_text("mine")
        with pytest.raises(InputError, match="is there and is no artifact"):
            package(workshop.fleet(workshop.values(TORCHSERVE)), TORCHSERVE, workshop.folder / "out")

    def test_keeps_the_old_one_where_the_new_one_fails(
        self, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A full disk leaves what was there, whole."""
        fleet, out = workshop.fleet(workshop.values(TORCHSERVE)), workshop.folder / "out"
        artifact = package(fleet, TORCHSERVE, out)

        def full(*_: object, **__: object) -> Any:
            raise PackagingError("the disk is full")

        monkeypatch.setattr("servewright.packaging.assemble_tree", full)
        with pytest.raises(PackagingError):
            package(workshop.fleet(workshop.values(TORCHSERVE, name="new")), TORCHSERVE, out)
        assert manifest.load_manifest(out).digest == artifact.digest
        assert manifest.verify(out) == ()
        assert [path.name for path in workshop.folder.iterdir() if path.name.startswith(".")] == []


KILLED = """
import os, signal, sys
from pathlib import Path
from servewright import packaging, pipeline, registry

spec, backend, out, place = sys.argv[1:]
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
setattr(packaging, place, die)
pipeline.package(pipeline.load(Path(spec)), registry.get(backend), Path(out))
"""

PACKAGED = """
import sys
from pathlib import Path
from servewright import pipeline, registry

spec, backend, out = sys.argv[1:]
print(pipeline.package(pipeline.load(Path(spec)), registry.get(backend), Path(out)).digest)
"""


class TestInterruption:
    """What ends in the middle."""

    @pytest.mark.parametrize("place", ["assemble_tree", "manifest_of", "_written"])
    def test_by_a_kill_leaves_nothing_that_looks_finished(
        self, workshop: Workshop, backend: Backend, place: str
    ) -> None:
        """Whenever the process dies, there is no artifact; the next one is made, and sweeps."""
        spec, out = workshop.write(workshop.values(backend)), workshop.folder / "out"
        done = subprocess.run([sys.executable, "-c", KILLED, spec, backend.name, out, place], check=False)
        assert done.returncode == -9
        assert not out.exists()
        artifact = pipeline.package(pipeline.load(spec), backend, out)
        assert manifest.verify(artifact.root) == ()
        assert [path.name for path in workshop.folder.iterdir() if path.name.startswith(".")] == []

    def test_by_another_packager_disturbs_neither(self, workshop: Workshop, backend: Backend) -> None:
        """Two that write one folder at once leave one whole artifact."""
        spec, out = workshop.write(workshop.rich_values(backend)), workshop.folder / "out"
        command = [sys.executable, "-c", PACKAGED, spec, backend.name, out]
        at_once = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
        digests = [process.communicate(timeout=120)[0] for process in at_once]
        assert [process.returncode for process in at_once] == [0] * 4
        assert len(set(digests)) == 1
        assert digests[0]
        assert manifest.verify(out) == ()
        assert [path.name for path in workshop.folder.iterdir() if path.name.startswith(".")] == []


class TestMaterials:
    """What is looked into before anything is made."""

    def test_pass_where_they_are_right(self, workshop: Workshop, backend: Backend) -> None:
        """Hollow models of every format that a backend takes are of their format."""
        for form in backend.formats:
            fleet = workshop.fleet(workshop.values(backend, model=workshop.source(form)))
            if form != "exported_program":  # a hollow one holds no program
                materials.check(fleet, backend)

    def test_report_every_model_and_golden_at_once(self, workshop: Workshop) -> None:
        """Two models of a fleet and their recordings are corrected in one go."""
        for name in ("a.pt", "b.pt"):
            (workshop.folder / name).write_text("no model")
        for name in ("in.npz", "out.npz"):
            (workshop.folder / name).write_text("no arrays")
        golden = [{"inputs": "in.npz", "outputs": "out.npz"}]
        specs = [
            workshop.values(TORCHSERVE, name=name, model={"path": f"{name}.pt", "format": "torchscript"}, golden=golden)
            for name in "ab"
        ]
        with pytest.raises(SpecError) as caught:
            materials.check(workshop.fleet(*specs), TORCHSERVE)
        assert [problem.path for problem in caught.value.problems] == ["model.path", "golden[0]"] * 2

    def test_are_those_of_the_backend_alone(self, workshop: Workshop) -> None:
        """A broken model of the other server is its own affair."""
        values = workshop.values(TORCHSERVE, TFSERVING)
        (workshop.folder / "model_saved_model" / "saved_model.pb").write_bytes(b"\xff" * 40)
        fleet = workshop.fleet(values)
        materials.check(fleet, TORCHSERVE)
        with pytest.raises(SpecError, match=r"model\.tfserving\.path"):
            materials.check(fleet, TFSERVING)

    def test_import_no_framework(self, workshop: Workshop) -> None:
        """Looking is cheap: no framework is loaded for it."""
        spec = workshop.write(workshop.rich_values(TORCHSERVE))
        program = (
            "import sys; from pathlib import Path; from servewright import pipeline, registry;"
            "pipeline.check(pipeline.load(Path(sys.argv[1])), registry.get('torchserve'));"
            "print(*{'torch', 'tensorflow', 'keras', 'grpc'} & set(sys.modules))"
        )
        done = subprocess.run([sys.executable, "-c", program, spec], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == ""


def test_a_copy_elsewhere_is_still_an_artifact(workshop: Workshop, backend: Backend) -> None:
    """Artifacts are shipped: nothing in one depends on where it lies."""
    package(workshop.fleet(workshop.rich_values(backend)), backend, workshop.folder / "out")
    shutil.copytree(workshop.folder / "out", workshop.folder / "shipped")
    assert manifest.verify(workshop.folder / "shipped") == ()
    assert str(workshop.folder) not in "".join(
        text.decode(errors="replace") for text in content(workshop.folder / "shipped").values()
    )

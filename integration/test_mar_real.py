"""A real TorchServe serves from our archives, as a file and as a directory of hard links."""

from __future__ import annotations

import json
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.test_torchserve_process import Started, torchserve
from servewright.archive import write_zip
from servewright.archive_check import check_archive
from servewright.backends.torchserve.archive import mar_members
from servewright.digest import read_digest
from servewright.tree import assemble_tree

# Answers with the checksums of all that lies beside it, so that nothing but the right bytes gives the right answer.
HANDLER = """
import hashlib
import importlib
import json
import pathlib


def handle(data, context):
    if data is None:
        return None
    root = pathlib.Path(context.system_properties["model_dir"])
    names = ("weights.bin", "inner/vocab.txt", "inner/other.txt", "requirements.txt", "model-config.yaml")
    sums = {name: hashlib.sha256((root / name).read_bytes()).hexdigest() for name in names}
    sums["code"] = importlib.import_module("network_of_this_archive").ANSWER
    return [json.dumps(sums).encode() for _ in data]
"""
RAW = {"Content-Type": "application/octet-stream"}
FORMS = {"packed": "packed.mar", "folder": "folder"}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the parts of a model."""
    folder = tmp_path_factory.mktemp("sources")
    (folder / "weights.bin").write_bytes(bytes(range(256)) * 100_000)
    (folder / "vocab.txt").write_text("the cat sat")
    (folder / "pins.txt").write_text("numpy\n")
    (folder / "network_of_this_archive.py").write_text("ANSWER = 42\n")
    (folder / "handler_of_this_archive.py").write_text(HANDLER)
    return folder


@pytest.fixture(scope="module")
def store(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model store with one model in both forms, from the same members."""
    store = tmp_path_factory.mktemp("store")
    for name, stored in FORMS.items():
        manifest = {
            "runtime": "python",
            "model": {
                "modelName": name,
                "modelVersion": "1.0",
                "handler": "handler_of_this_archive.py:handle",
                "serializedFile": "weights.bin",
                "requirementsFile": "requirements.txt",
                "configFile": "model-config.yaml",
            },
        }
        members = mar_members(
            manifest_json=json.dumps(manifest),
            model_config_yaml="minWorkers: 1\nmaxWorkers: 1\nbatchSize: 4\nmaxBatchDelay: 7\n",
            model_file=sources / "weights.bin",
            extra={"inner/vocab.txt": sources / "vocab.txt", "inner/other.txt": b"other"},
            handler=sources / "handler_of_this_archive.py",
            requirements=sources / "pins.txt",
            code=sources / "network_of_this_archive.py",
        )
        if stored.endswith(".mar"):
            write_zip(store / stored, members)
        else:
            assemble_tree(store / stored, members)
    return store


@pytest.fixture(scope="module")
def served(store: Path) -> Iterator[Started]:
    """Run one server that loads both forms at its start."""
    with torchserve(
        store, model_api=True, load_models=",".join(f"{name}={file}" for name, file in FORMS.items())
    ) as up:
        up.wait_ready(*FORMS)
        yield up


@pytest.mark.parametrize("form", FORMS)
def test_serves_every_file_as_it_was(served: Started, sources: Path, form: str) -> None:
    """The worker finds the weights, extra files, requirements, config and code, byte for byte."""
    answer = served.client.send(form, b"{}", headers=RAW)
    assert answer.status == 200
    found = json.loads(answer.body)
    assert found["code"] == 42
    assert found["weights.bin"] == read_digest(sources / "weights.bin").sha256
    assert found["inner/vocab.txt"] == read_digest(sources / "vocab.txt").sha256
    assert found["requirements.txt"] == read_digest(sources / "pins.txt").sha256


@pytest.mark.parametrize("form", FORMS)
def test_reads_the_config_inside(served: Started, form: str) -> None:
    """The batch settings of the model's own config are in force in both forms."""
    (found,) = served.client.describe(form)
    assert (found.batch_size, found.max_batch_delay_ms, found.ready_workers) == (4, 7, 1)


@pytest.mark.parametrize(("form", "file"), FORMS.items())
def test_registers_again(served: Started, form: str, file: str) -> None:
    """A form can be unloaded and loaded again through the management API, and the store keeps it."""
    served.client.unregister(form)
    served.client.register(file, name=form)
    assert served.client.send(form, b"{}", headers=RAW).status == 200
    assert set(served.client.models()) == set(FORMS)


def test_the_directory_is_made_of_hard_links(store: Path, sources: Path) -> None:
    """What the server reads in the directory form is the source file itself."""
    assert (store / "folder" / "weights.bin").samefile(sources / "weights.bin")


def test_beyond_four_gigabytes(tmp_path: Path) -> None:
    """An archive with members and offsets beyond 32 bits is the same to us, to Python and to Java."""
    size = (4 << 30) + 5
    free = shutil.disk_usage(tmp_path).free
    if free < 2 * size:
        pytest.skip(f"needs {2 * size >> 20} MiB of disk, and there are {free >> 20}")
    with (tmp_path / "large.bin").open("wb") as file:
        file.truncate(size)
    try:
        write_zip(tmp_path / "a.zip", {"large.bin": tmp_path / "large.bin", "z/behind": b"seen"})
        assert check_archive(tmp_path / "a.zip") == ()
        with zipfile.ZipFile(tmp_path / "a.zip") as archive:
            assert [(info.filename, info.file_size) for info in archive.infolist()] == [
                ("large.bin", size),
                ("z/behind", 4),
            ]
            assert archive.read("z/behind") == b"seen"
        if shutil.which("jar"):
            listed = subprocess.run(["jar", "tf", tmp_path / "a.zip"], text=True, capture_output=True, check=True)
            assert listed.stdout.split() == ["large.bin", "z/behind"]
    finally:
        (tmp_path / "a.zip").unlink(missing_ok=True)

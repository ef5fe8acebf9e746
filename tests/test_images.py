"""What an image is built from: the same bytes everywhere, a user without rights, health, labels, an inventory."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import stat
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servewright import images, registry
from servewright.assets import asset_dir
from servewright.backend import Backend
from servewright.errors import InputError

if TYPE_CHECKING:
    from conftest import Cli

DIGEST = "sha256:" + "0" * 64


@pytest.fixture(params=[name for name in registry.names() if registry.get(name).recipe])
def backend(request: pytest.FixtureRequest) -> Backend:
    """Return every backend that has a recipe in turn."""
    return registry.get(request.param)


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    """Return a Dockerfile's instructions, continuation lines joined, in order."""
    lines = re.sub(r"\\\n", " ", dockerfile).splitlines()
    words = [line.partition(" ") for line in lines if line.strip() and not line.lstrip().startswith("#")]
    return [(name.strip(), " ".join(rest.split())) for name, _, rest in words]


def last_stage(dockerfile: str) -> dict[str, str]:
    """Return what the image itself is told, the last of each instruction."""
    found = instructions(dockerfile)
    start = max(at for at, (name, _) in enumerate(found) if name == "FROM")
    return dict(found[start:])


def tar_of(found: images.Context) -> bytes:
    """Return the context as an engine gets it."""
    file = io.BytesIO()
    images._write_tar(found, file)
    return file.getvalue()


class TestDockerfile:
    """What a built image is told."""

    def test_runs_without_rights_and_tells_its_health(self, backend: Backend) -> None:
        """A user that is not root, a check of its health, a clean signal, and no shell around the server."""
        told = last_stage(images.context(backend).dockerfile)
        assert told["USER"].partition(":")[0] not in ("", "0", "root")
        assert "healthcheck.py" in told["HEALTHCHECK"]
        assert told["STOPSIGNAL"] == "SIGTERM"
        assert json.loads(told["ENTRYPOINT"])
        assert json.loads(told["CMD"])
        assert set(told["EXPOSE"].split()) == {str(port) for port in backend.home.ports.values()}

    @pytest.mark.parametrize(
        ("config", "said"),
        [
            ("model_config_list { config { name: 'my model' base_path: '/m' } }", "URLError"),
            ('# name: "gone"\nmodel_config_list {\n  config {\n    base_path: "/m" name: "a"\n  }\n}', "URLError"),
            ("model_config_list {}", "names no model"),
        ],
    )
    def test_is_not_healthy_where_nobody_listens(self, config: str, said: str, tmp_path: Path) -> None:
        """Also with a config of somebody's own, in any layout."""
        (tmp_path / "model_config.pbtxt").write_text(config)
        script = (asset_dir("templates") / "tfserving" / "healthcheck.py").read_text()
        script = script.replace("/config/", f"{tmp_path}/").replace("127.0.0.1:8501", "127.0.0.1:1")
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert (done.returncode, said in done.stderr) == (1, True), done.stderr

    def test_a_base_by_its_digest(self, backend: Backend) -> None:
        """A pinned base is used as it is, in both stages, and labelled; another gets a note."""
        base = f"registry.example:5000/python@{DIGEST}"
        found = images.context(backend, base=base)
        assert [rest.split()[0] for name, rest in instructions(found.dockerfile) if name == "FROM"] == [base] * 2
        assert found.notes == ()
        labels = dict(word.split("=", 1) for word in shlex.split(last_stage(found.dockerfile)["LABEL"]))
        assert labels["org.opencontainers.image.base.digest"] == DIGEST
        assert labels["org.opencontainers.image.base.name"] == "registry.example:5000/python"
        assert labels["servewright.sbom"] == images.SBOM
        assert "not pinned" in images.context(backend).notes[0]

    @pytest.mark.parametrize("base", ["python\nRUN evil", "python evil", "-x", "", "$BASE", "py`id`thon", "a;b"])
    def test_a_base_that_is_none(self, base: str, backend: Backend) -> None:
        """What is no image name never gets into a Dockerfile."""
        with pytest.raises(InputError, match="is no image name"):
            images.context(backend, base=base)

    @given(st.dictionaries(st.from_regex(r"\A[a-z.]{1,20}\Z"), st.text(max_size=40), max_size=4))
    def test_values_are_quoted(self, values: dict[str, str]) -> None:
        """A label says what it was to say, in any letters, or is refused; no instruction can be slipped in."""
        if not all(value.isprintable() for value in values.values()):
            with pytest.raises(InputError, match="not printable"):
                images._quoted(values)
            return
        line = " ".join(f"{name}={value}" for name, value in images._quoted(values))
        assert "\n" not in line
        assert not re.search(r"(?<!\\)(\\\\)*\$", line)
        assert dict(word.split("=", 1) for word in shlex.split(line)) == values


class TestContext:
    """What goes to the engine."""

    def test_is_the_same_whatever_the_clock_says(self, backend: Backend, tmp_path: Path) -> None:
        """Dates, modes and owners of the files do not matter, only their names and contents."""
        wheels = tmp_path / "wheels"
        wheels.mkdir()
        for name in ("b-1.0-py3-none-any.whl", "a-1.0-py3-none-any.whl"):
            (wheels / name).write_bytes(name.encode())
        first = tar_of(images.context(backend, wheelhouse=wheels))
        os.utime(wheels / "a-1.0-py3-none-any.whl", (1, 1))
        (wheels / "b-1.0-py3-none-any.whl").chmod(0o600)
        assert tar_of(images.context(backend, wheelhouse=wheels)) == first
        with tarfile.open(fileobj=io.BytesIO(first)) as tar:
            entries = tar.getmembers()
        assert {(entry.mode, entry.uid, entry.gid, entry.mtime) for entry in entries} == {(0o644, 0, 0, 0)}
        names = [entry.name for entry in entries if entry.name != "Dockerfile"]
        assert not [name for name in names if "__pycache__" in name]
        assert {f"packages/wheelhouse/{wheel.name}" for wheel in wheels.iterdir()} <= set(names)

    def test_a_wheelhouse_without_wheels(self, backend: Backend, tmp_path: Path) -> None:
        """An empty folder is refused, with the command that fills it."""
        with pytest.raises(InputError, match="pip wheel"):
            images.context(backend, wheelhouse=tmp_path)

    def test_what_is_installed_is_pinned(self, backend: Backend) -> None:
        """Every requirement names one version: a rebuild installs the same."""
        lines = images.recipe_of(backend, None).requirements
        assert lines
        assert [line for line in lines if "==" not in line] == []


class TestDockerfileOnly:
    """For those who build elsewhere."""

    def test_writes_all_that_is_copied(self, backend: Backend, cli: Cli, tmp_path: Path) -> None:
        """Each COPY of the Dockerfile finds its files beside it, readable, and no engine is asked."""
        folder = tmp_path / "context"
        code, said, error = cli("image", "-b", backend.name, "--dockerfile-only", "-o", folder, "--json")
        assert (code, json.loads(said)["folder"]) == (0, str(folder)), error
        for name, rest in instructions((folder / "Dockerfile").read_text()):
            if name == "COPY" and not rest.startswith("--from"):
                source = folder / rest.split()[0]
                assert any(source.iterdir()), rest
        assert {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()} == {0o644}

    def test_spares_a_folder_that_is_in_use(self, backend: Backend, cli: Cli, tmp_path: Path) -> None:
        """Files of the user's own are not mixed with ours."""
        (tmp_path / "mine.txt").write_text("mine")
        code, _, error = cli("image", "-b", backend.name, "--dockerfile-only", "-o", tmp_path)
        assert (code, [path.name for path in tmp_path.iterdir()]) == (2, ["mine.txt"])
        assert "not empty" in error

    @pytest.mark.parametrize("words", [("--dockerfile-only",), ("-o", "x"), ("-t", "x:1", "--dockerfile-only"), ()])
    def test_says_what_is_missing(self, words: tuple[str, ...], cli: Cli) -> None:
        """A tag to build, or a folder to write to: one of the two."""
        code, _, error = cli("image", "-b", "torchserve", *words)
        assert code == 2
        assert "--tag" in error

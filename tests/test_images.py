"""What an image is built from: the same bytes everywhere, a user without rights, health, labels, an inventory."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from servewright import images, processes, registry
from servewright.assets import asset_dir
from servewright.backend import Backend
from servewright.backends.torchserve import properties
from servewright.errors import InputError, PackagingError, SpecError

if TYPE_CHECKING:
    from conftest import Cli, Workshop

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
    @example({"a": "$", "b": '\\$\\\\"$HOME'})
    def test_values_are_quoted(self, values: dict[str, str]) -> None:
        """A label says what it was to say, in any letters, or is refused; no instruction can be slipped in."""
        if not all(value.isprintable() for value in values.values()):
            with pytest.raises(InputError, match="not printable"):
                images._quoted(values)
            return
        line = " ".join(f"{name}={value}" for name, value in images._quoted(values))
        assert "\n" not in line
        assert not re.search(r"(?<!\\)(\\\\)*\$", line)
        # A Dockerfile's \$ is a dollar within quotes, as a shell's is; `shlex` leaves it as it stands.
        line = re.sub(r"\\(.)", lambda escaped: "$" if escaped[1] == "$" else escaped[0], line)
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
        for taken in (tmp_path, tmp_path / "mine.txt"):
            code, _, error = cli("image", "-b", backend.name, "--dockerfile-only", "-o", taken)
            assert (code, [path.name for path in tmp_path.iterdir()]) == (2, ["mine.txt"])
            assert f"{taken} is there and not an empty folder" in error

    def test_is_whole_or_not_at_all(self, backend: Backend, cli: Cli, tmp_path: Path) -> None:
        """What cannot be written leaves nothing behind."""
        (tmp_path / "file").touch()
        for taken in (tmp_path / "a" / ("x" * 300), tmp_path / "file" / "context"):
            code, _, error = cli("image", "-b", backend.name, "--dockerfile-only", "-o", taken)
            assert (code != 0, f"cannot write {taken}" in error) == (True, True), error
        found = images.Context(dockerfile="FROM x\n", content={"a": b"a file", "a/b": b"below it"})
        with pytest.raises(PackagingError, match="cannot write"):
            images.write(found, tmp_path / "half")
        assert [path.name for path in tmp_path.iterdir()] == ["file"]

    def test_can_be_built_by_anybody(self, backend: Backend, cli: Cli, tmp_path: Path) -> None:
        """Whatever the user's umask: the image copies the modes, and is run by another user."""
        before = os.umask(0o077)
        try:
            code, _, error = cli("image", "-b", backend.name, "--dockerfile-only", "-o", tmp_path / "new" / "context")
        finally:
            os.umask(before)
        assert code == 0, error
        made = [tmp_path / "new" / "context", *(tmp_path / "new" / "context").rglob("*")]
        assert {stat.S_IMODE(path.stat().st_mode) for path in made if path.is_dir()} == {0o755}
        assert {stat.S_IMODE(path.stat().st_mode) for path in made if path.is_file()} == {0o644}
        assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700

    @pytest.mark.parametrize("words", [("--dockerfile-only",), ("-o", "x"), ("-t", "x:1", "--dockerfile-only"), ()])
    def test_says_what_is_missing(self, words: tuple[str, ...], cli: Cli) -> None:
        """A tag to build, or a folder to write to: one of the two."""
        code, _, error = cli("image", "-b", "torchserve", *words)
        assert code == 2
        assert "--tag" in error


@pytest.fixture
def shop(workshop: Workshop) -> Path:
    """Return a fleet file of two servers, which batch more in production."""
    text = f"""\
servewright: 1
fleet: shop
defaults:
  model: {{path: {workshop.model("saved_model")}, format: saved_model}}
  signature: {json.dumps(workshop.SIGNATURE)}
  batching: {{max_size: 8, max_delay: 2ms}}
models: [{{name: a}}, {{name: b}}]
shards: {{x: {{models: [a]}}, y: {{models: [b]}}}}
environments: {{prod: {{defaults: {{batching: {{max_size: 32}}}}}}}}
"""
    return workshop.write(text, "fleet.yaml")


class TestOfAFleet:
    """An image holds one server of it, as it is in one environment."""

    def test_holds_what_was_chosen(self, shop: Path, cli: Cli, tmp_path: Path) -> None:
        """The shard's models alone, with the environment's settings."""
        folder = tmp_path / "context"
        words = ("--env", "prod", "--shard", "x", "--dockerfile-only", "-o", folder)
        code, _, error = cli("image", shop, *words)
        assert code == 0, error
        assert [path.name for path in (folder / "artifact" / "models").iterdir()] == ["a"]
        config = folder / "artifact" / "config"
        assert "value: 32" in (config / "batching_parameters.pbtxt").read_text()
        assert (config / "model_config.pbtxt").read_text().count("config {") == 1
        assert "shop-x on" in last_stage((folder / "Dockerfile").read_text())["LABEL"]

    def test_listens_where_images_do(self, backend: Backend, workshop: Workshop, cli: Cli, tmp_path: Path) -> None:
        """Its health check asks there; which ports a fleet has outside is for who runs the image."""
        workshop.write(workshop.values(backend), name="one.yaml")
        fleet = workshop.folder / "fleet.yaml"
        fleet.write_text("servewright: 1\nfleet: all\nserver: {ports: {http: 29999}}\nmodels: [one.yaml]\n")
        code, said, error = cli("image", fleet, "-b", backend.name, "--dockerfile-only", "-o", tmp_path / "context")
        assert code == 0, error
        assert "server.ports are for who runs the image" in said
        config = tmp_path / "context" / "artifact" / "config"
        texts = "".join(path.read_text() for path in config.rglob("*") if path.is_file())
        assert "29999" not in texts

    @pytest.mark.parametrize("more", [("--mount",), ("--requirements",), ()])
    def test_is_refused_whole(self, more: tuple[str, ...], shop: Path, cli: Cli, tmp_path: Path) -> None:
        """Models of several servers never end up in one image."""
        code, _, error = cli("image", shop, *more, "--dockerfile-only", "-o", tmp_path / "context")
        assert (code, (tmp_path / "context").exists()) == (2, False)
        assert "is shared by several servers; choose one with --shard: x, y" in error

    @pytest.mark.parametrize("words", [("--env", "prod"), ("--shard", "x")])
    def test_is_what_there_is_to_choose_from(self, words: tuple[str, ...], cli: Cli, tmp_path: Path) -> None:
        """Without a fleet file there is none, and nothing is silently dropped."""
        code, _, error = cli("image", "-b", "tfserving", *words, "--dockerfile-only", "-o", tmp_path / "context")
        assert code == 2
        assert "choose from a fleet file" in error


class TestRequirements:
    """What the models of TorchServe ask pip for is in the image."""

    TORCHSERVE = registry.get("torchserve")

    def lines(self, workshop: Workshop, text: str | bytes) -> list[str]:
        """Return what pip installs where a model's requirements file says ``text``."""
        path = workshop.folder / "needs.txt"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        fleet = workshop.fleet(workshop.values(self.TORCHSERVE, requirements=path.name))
        return list(images.recipe_of(self.TORCHSERVE, fleet).requirements)

    def test_are_installed_once(self, workshop: Workshop) -> None:
        """Those of every model, whole lines without comments, beside what the server needs itself."""
        (workshop.folder / "one.txt").write_text("# ours\nscipy==1.14.0  # why\n\nregex>=2024,\\\n  <2026\n")
        (workshop.folder / "two.txt").write_text("scipy==1.14.0\r\n--extra-index-url https://pypi.example/simple\r\n")
        documents = [workshop.values(self.TORCHSERVE, name=name, requirements=f"{name}.txt") for name in ("one", "two")]
        own = images.recipe_of(self.TORCHSERVE, workshop.fleet(workshop.values(self.TORCHSERVE))).requirements
        found = images.recipe_of(self.TORCHSERVE, workshop.fleet(*documents))
        theirs = ("scipy==1.14.0", "regex>=2024, <2026", "--extra-index-url https://pypi.example/simple")
        assert found.requirements == (*own, *theirs)

    @pytest.mark.parametrize(
        ("line", "kept"), [("Pillow==11.0.0", False), ("numpy<2", False), ("numpy", True), ("numpy_financial", True)]
    )
    def test_come_before_what_we_would_pin(self, line: str, kept: bool, workshop: Workshop) -> None:
        """A package of the server's that a model wants in a version of its own is asked for once."""
        name = re.split("[<=_]", line.lower())[0]
        found = self.lines(workshop, line)
        assert line in found
        assert any(each.startswith(f"{name}==") for each in found if each != line) is kept

    @pytest.mark.parametrize(
        ("line", "said"),
        [
            *((line, "has no file beside") for line in (
                "-r other.txt", "-rother.txt", "--constraint=c.txt", "-e .", "./wheels/own.whl", "own-1.0-any.whl",
                "vendored/own", "own @ file:///own", "--find-links wheels", "/own",
            )),
            ("scipy==1 --hash=sha256:00", "wants a hash"),
            (b"scipy\xff==1", "it is no text"),
        ],
    )  # fmt: skip
    def test_that_no_build_can_install_are_refused(self, line: str | bytes, said: str, workshop: Workshop) -> None:
        """With their place in the spec, before anything is built."""
        with pytest.raises(SpecError, match=said) as caught:
            self.lines(workshop, line)
        assert caught.value.problems[0].path == "requirements"

    @pytest.mark.parametrize(
        "line",
        [
            "own @ https://x.example/own.tar.gz",
            "git+https://x.example/own",
            "-f https://x.example/w",
            "a[b]==1; c=='d'",
        ],
    )
    def test_from_elsewhere_are_left_to_pip(self, line: str, workshop: Workshop) -> None:
        """An address is not a file beside."""
        assert self.lines(workshop, line)[-1] == line

    def test_are_not_installed_again_at_the_start(self, workshop: Workshop, cli: Cli) -> None:
        """The image starts without network: its config differs from the artifact's in that alone."""
        (workshop.folder / "needs.txt").write_text("scipy\n")
        spec = workshop.write(workshop.values(self.TORCHSERVE, requirements="needs.txt"))
        artifact, context = workshop.folder / "artifact", workshop.folder / "context"
        assert cli("package", spec, "-o", artifact)[0] == 0
        code, said, error = cli("image", spec, "--dockerfile-only", "-o", context, "--json")
        assert code == 0, error
        packaged, baked = (
            properties.parse((folder / "config.properties").read_text())
            for folder in (artifact / "config", context / "artifact" / "config")
        )
        assert packaged == baked | {"install_py_dep_per_model": "true"}
        assert "install_py_dep_per_model" not in baked
        files = {path.relative_to(artifact) for path in artifact.rglob("*") if path.is_file()}
        there = {path.relative_to(context / "artifact") for path in (context / "artifact").rglob("*") if path.is_file()}
        assert there == files - {Path("manifest.json")}
        notes = json.loads(said)["notes"]
        assert any("scipy: not pinned" in note for note in notes)
        assert not any("mount" in note for note in notes)

    def test_of_mounted_models_get_a_note(self, workshop: Workshop) -> None:
        """What is mounted is not ours to settle, and would go to the network."""
        (workshop.folder / "needs.txt").write_text("scipy==1.14.0\n")
        fleet = workshop.fleet(workshop.values(self.TORCHSERVE, requirements="needs.txt"))
        notes = images.context(self.TORCHSERVE, fleet=fleet, base=f"python@{DIGEST}").notes
        assert len(notes) == 1
        assert "from the network" in notes[0]

    def test_go_to_the_engine_once(self, workshop: Workshop, tmp_path: Path) -> None:
        """A config that takes the place of the artifact's is not in the context twice."""
        folder = tmp_path / "config"
        folder.mkdir()
        for name in ("a", "b"):
            (folder / name).write_text("old")
        found = images.Context(dockerfile="", content={"config": folder, "config/a": b"new"})
        with tarfile.open(fileobj=io.BytesIO(tar_of(found))) as tar:
            read = [(entry.name, content.read()) for entry in tar if (content := tar.extractfile(entry))]
        assert sorted(read) == [("Dockerfile", b""), ("config/a", b"new"), ("config/b", b"old")]


class TestTarget:
    """The release that a spec is for."""

    @pytest.mark.parametrize("release", ["0.11", "0.12.1", "0.1"])
    def test_of_which_there_is_no_image(self, release: str, workshop: Workshop, cli: Cli) -> None:
        """Another release than the one that is installed is refused, with what to do."""
        spec = workshop.write(workshop.values(registry.get("torchserve"), target={"torchserve": release}))
        code, _, error = cli("image", spec, "--dockerfile-only", "-o", workshop.folder / "context")
        assert (code, (workshop.folder / "context").exists()) == (2, False)
        assert "target.torchserve" in error
        assert "choose 0.11" in error if release == "0.1" else f"own image, pytorch/torchserve:{release}" in error

    @pytest.mark.parametrize("target", [{}, {"torchserve": "0.12"}, {"torchserve": "0.12.0"}])
    def test_that_is_installed(self, target: dict[str, str], workshop: Workshop) -> None:
        """The one release that an image can be built of."""
        backend = registry.get("torchserve")
        fleet = workshop.fleet(workshop.values(backend, target=target))
        assert images.recipe_of(backend, fleet).requirements[0] == "torchserve==0.12.0"


_STOPS_SLOWLY = """
import signal, sys, time
from pathlib import Path
def stop(*_):
    time.sleep(1)
    Path("stopped").touch()
    sys.exit()
signal.signal(signal.SIGTERM, stop)
Path("started").touch()
while True:
    time.sleep(60)
"""
_WRAPS = "import subprocess, sys; subprocess.Popen([sys.executable, *sys.argv[1:]]).wait()"


@pytest.mark.skipif(sys.platform != "linux", reason="what runs in images runs on Linux")
class TestEntrypoint:
    """The program that starts the server in an image, here with somebody else as PID 1."""

    ENTRYPOINT = asset_dir("templates") / "image" / "entrypoint.py"

    @pytest.fixture
    def started(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
        """Yield the entrypoint with as many wrappers around a slow server as the test says."""
        wraps = [word for _ in range(request.param) for word in (sys.executable, "-c", _WRAPS)]
        words = [sys.executable, self.ENTRYPOINT, *wraps[:3], *(w for w in wraps[3:] if w != sys.executable)]
        with subprocess.Popen([*words, "-c", _STOPS_SLOWLY], cwd=tmp_path, start_new_session=True) as process:
            try:
                processes.wait_until((tmp_path / "started").exists, within_s=60, what="the server has started")
                yield process
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

    @pytest.mark.parametrize("started", [1, 2, 3], indirect=True)
    def test_waits_for_all_that_it_started(self, started: subprocess.Popen[bytes], tmp_path: Path) -> None:
        """A wrapper ends at once; the server behind it is told too, however deep, and ends in its own time."""
        started.send_signal(signal.SIGTERM)
        assert started.wait(30) == 128 + signal.SIGTERM
        assert (tmp_path / "stopped").exists()

    def test_ends_with_the_server(self, tmp_path: Path) -> None:
        """A server that ends by itself leaves nothing worth waiting for, and its exit code."""
        leaves = (
            "import subprocess, sys; print(subprocess.Popen(['sleep', '60'], stdout=-3, stderr=-3).pid); sys.exit(7)"
        )
        words = [sys.executable, self.ENTRYPOINT, sys.executable, "-c", leaves]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=30)
        os.kill(int(done.stdout), signal.SIGKILL)
        assert done.returncode == 7

    def test_makes_the_folders_of_its_environment(self, tmp_path: Path) -> None:
        """A volume over the run folder is empty; one that cannot be made is told, and the server has the last word."""
        (tmp_path / "file").touch()
        named = {"TMPDIR": "run/tmp", "TEMP": "run/tmp", "LOG_LOCATION": "file/logs"}
        done = subprocess.run(
            [sys.executable, self.ENTRYPOINT, "true"],
            env={**os.environ, **{name: str(tmp_path / path) for name, path in named.items()}},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, (tmp_path / "run" / "tmp").is_dir()) == (0, True)
        assert "LOG_LOCATION: " in done.stderr
        assert "Not a directory" in done.stderr

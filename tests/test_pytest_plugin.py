"""The pytest plugin, as a user's project has it: every run here is a pytest of its own, over files of its own.

Not by the fixture ``pytester``, which drops the modules that a test imported: protobuf's cannot be imported twice.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from servewright import state

sys.path.insert(0, str(Path(__file__).parent))
import embedded_graphs as graphs

SPEC = """servewright: 1
name: half
model: {path: half, format: saved_model}
signature:
  inputs: [{name: x, dtype: float32, shape: [null]}]
  outputs: [{name: y, dtype: float32, shape: [null]}]
"""
# As strict as a user's pytest can be: nothing of ours may warn there, or be unknown.
STRICT = ("-p", "no:cacheprovider", "-W", "error", "--strict-markers", "--strict-config", "-rA")
needs_tensorflow = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is None, reason="needs tensorflow's library"
)


class Project:
    """A user's project: a model and its spec in a folder, and tests beside them."""

    def __init__(self, root: Path, temporary: Path) -> None:
        self.root, self.temporary = root, temporary
        self.folder = root / "tests"
        graphs.save_half_plus(self.folder / "half", 1.0)
        (self.folder / "half.yaml").write_text(SPEC)
        (self.root / "pytest.ini").write_text("[pytest]\n")

    def run(self, test: str, *options: str) -> pytest.RunResult:
        """Run pytest over ``test``."""
        head = "import os, signal, sys\nimport pytest\n"
        (self.folder / "test_it.py").write_text(head + test)
        command = [sys.executable, "-m", "pytest", *STRICT, *options]
        done = subprocess.run(
            command, cwd=self.root, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False
        )
        sys.stdout.write(done.stdout + done.stderr)  # where a test fails, its report shows them
        return pytest.RunResult(done.returncode, done.stdout.splitlines(), done.stderr.splitlines(), 0.0)

    def left(self) -> list[str]:
        """Return what lies among the temporary files."""
        return sorted(path.name for path in self.temporary.glob("servewright*"))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """Make a project on a machine without a Docker Engine; its servers, and all their files, are its own."""
    # Short: a longer path would not be taken for runs, whose sockets lie below it.
    temporary = Path(tempfile.mkdtemp(prefix="swp-", dir="/tmp"))
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setenv("SERVEWRIGHT_STATE", str(temporary / "state"))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{temporary}/no.sock")
    # Of all that is installed here only ours and what it meets: other plugins take longer to load than our tests.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p servewright")
    yield Project(tmp_path, temporary)
    for record in state.records():
        state.end(record)
    shutil.rmtree(temporary, ignore_errors=True)


class TestStartup:
    """What every user of the environment has of it, whether or not they serve."""

    def test_is_by_an_entry_point(self) -> None:
        """An install is enough; `-p no:servewright` turns it off."""
        (found,) = {entry.value for entry in entry_points(group="pytest11") if entry.name == "servewright"}
        assert found == "servewright.pytest_plugin"

    def test_imports_nothing_else(self, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        """A suite that asks for no server loads the plugin's own module, and sees no word of it."""
        monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD")
        monkeypatch.delenv("PYTEST_ADDOPTS")
        done = project.run(
            "def test_it(pytestconfig):\n"
            "    assert pytestconfig.pluginmanager.has_plugin('servewright')\n"
            "    ours = {name for name in sys.modules if name.startswith('servewright')}\n"
            "    assert ours == {'servewright', 'servewright.pytest_plugin'}\n"
            "    heavy = {'numpy', 'pydantic', 'yaml', 'docker', 'grpc', 'tensorflow', 'torch', 'urllib3'}\n"
            "    assert not heavy & set(sys.modules)\n"
        )
        done.assert_outcomes(passed=1)
        assert "serv" not in done.stdout.str().partition("collected 1 item")[2] + done.stderr.str()

    def test_leaves_names_to_users(self, project: Project) -> None:
        """A project with a fixture and a marker of these names keeps its own."""
        done = project.run(
            "@pytest.fixture\n"
            "def serving():\n"
            "    return 'a tennis ball'\n"
            "@pytest.mark.serving('ace', speed=200)\n"
            "def test_it(serving):\n"
            "    assert serving == 'a tennis ball'\n"
        )
        done.assert_outcomes(passed=1)


@needs_tensorflow
@pytest.mark.tensorflow
class TestServers:
    """Real ones, on the embedded TensorFlow Serving."""

    def test_are_shared_unless_asked_otherwise(self, project: Project) -> None:
        """The same wish gives the same server, also through fixtures; `scope="function"` gives one that ends."""
        done = project.run(
            "import numpy as np\n"
            "X = {'x': np.array([2, 4], np.float32)}\n"
            "seen = {}\n"
            "def test_one(serving):\n"
            "    server = serving('half.yaml', runtime='embedded')\n"
            "    assert server.predict(X)['y'].tolist() == [2, 3]\n"
            "    seen['shared'] = server\n"
            "@pytest.fixture(scope='module')\n"
            "def half(session_serving):\n"
            "    return session_serving('tests/half.yaml', backend='tfserving', runtime='embedded')\n"
            "@pytest.mark.serving(runtime='embedded')\n"
            "class TestMarked:\n"
            "    @pytest.mark.serving('half.yaml', scope='function')\n"
            "    def test_own(self, serving):\n"
            "        server = seen['own'] = serving()\n"
            "        assert server.url != seen['shared'].url\n"
            "        assert server.predict(X, transport='grpc')['y'].tolist() == [2, 3]\n"
            "    def test_own_has_ended(self, serving):\n"
            "        assert not seen['own'].alive()\n"
            "        assert serving('half.yaml') is seen['shared']\n"
            "        assert seen['shared'].alive()\n"
        )
        done.assert_outcomes(passed=3)
        assert project.left() == []
        assert state.records() == []

    def test_that_die_are_told_of_and_replaced(self, project: Project) -> None:
        """The failed test's report has the server's log and its end; the next test gets another server."""
        done = project.run(
            "import numpy as np\n"
            "X = {'x': np.array([2, 4], np.float32)}\n"
            "@pytest.fixture(scope='session')\n"
            "def half(session_serving):\n"
            "    return session_serving('tests/half.yaml', runtime='embedded')\n"
            "def test_dies(half):\n"
            "    os.kill(half.server.handle.pid, signal.SIGKILL)\n"
            "    half.predict(X)\n"
            "def test_goes_on(serving):\n"
            "    assert serving('half.yaml', runtime='embedded').predict(X)['y'].tolist() == [2, 3]\n"
            "def test_without_a_server():\n"
            "    assert 1 == 2\n"
        )
        done.assert_outcomes(passed=1, failed=2)
        # Of the two that failed, one used a server.
        assert done.stdout.str().count("- Server log: half (tfserving, embedded) -") == 1
        done.stdout.fnmatch_lines(
            [
                "*_ test_dies _*",
                "*- Server log: half (tfserving, embedded) -*",
                "*Successfully loaded servable version {name: half version: 1}*",
                "(the server has ended: it was killed by signal 9)",
                "*_ test_without_a_server _*",
            ]
        )
        assert project.left() == []

    def test_run_side_by_side_and_stay_where_asked(self, project: Project) -> None:
        """Two workers of pytest-xdist have servers of their own, and `--serving-keep` leaves them running, by name."""
        pytest.importorskip("xdist")
        done = project.run(
            "import numpy as np\n"
            "@pytest.mark.parametrize('value', [0, 2, 4, 6])\n"
            "def test_it(serving, value):\n"
            "    server = serving('half.yaml')\n"
            "    assert server.predict({'x': np.full(3, value, np.float32)})['y'].tolist() == [value / 2 + 1] * 3\n",
            *("-p", "xdist", "-n", "2", "--serving-keep", "--serving-runtime", "embedded"),
        )
        done.assert_outcomes(passed=4)
        kept = state.records()
        assert {record.name.rpartition("-")[0] for record in kept} == {"pytest-half-gw0", "pytest-half-gw1"}
        assert {state.word_for(record) for record in kept} == {"running"}
        assert len({address for record in kept for address in record.endpoints.values()}) == 4
        done.stdout.fnmatch_lines(
            ["*servers left running*", f"servewright down {kept[0].name} {kept[1].name}"], consecutive=True
        )


class TestFailedStarts:
    """Servers that do not come up."""

    def test_are_not_tried_again(self, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        """Every test that wants the server says why it is not there; it was started once, and nothing is left."""
        starts, binary = project.temporary / "starts", project.temporary / "tensorflow_model_server"
        binary.write_text(f"#!/bin/sh\necho one >> {starts}\necho 'no such luck'\nexit 7\n")
        binary.chmod(0o755)
        monkeypatch.setenv("SERVEWRIGHT_TENSORFLOW_MODEL_SERVER", str(binary))
        done = project.run(
            "@pytest.mark.parametrize('number', [1, 2])\n"
            "def test_it(serving, number):\n"
            "    serving('half.yaml', runtime='process')\n"
        )
        done.assert_outcomes(failed=2)
        said = ["E *LaunchError: *ended before it was ready: it exited with code 7", "E *| no such luck"]
        done.stdout.fnmatch_lines([*said, *said])
        assert starts.read_text() == "one\n"
        assert project.left() == []


class TestAbsentRuntimes:
    """Where a machine cannot run what a test asks for."""

    TEST = (
        "def test_it(serving):\n"
        "    serving('half.yaml', runtime='docker')\n"
        "@pytest.mark.serving('half.yaml', image='mine:1')\n"
        "def test_by_its_image(serving):\n"
        "    serving()\n"
    )

    def test_skip(self, project: Project) -> None:
        """A skip names the runtime and the reason, at the user's line; an image alone asks for docker."""
        done = project.run(self.TEST)
        done.assert_outcomes(skipped=2)
        done.stdout.fnmatch_lines(
            [f"SKIPPED * tests/test_it.py:{line}: servewright: runtime docker: no Docker Engine *" for line in (4, 7)]
        )

    def test_fail_where_required(self, project: Project) -> None:
        """CI that means to test on containers says so, and is not green without them."""
        done = project.run(self.TEST, "--serving-require", "docker,embedded")
        done.assert_outcomes(failed=2)
        done.stdout.fnmatch_lines(["servewright: runtime docker is required: no Docker Engine *"])

    def test_that_do_not_exist_cannot_be_required(self, project: Project) -> None:
        """A misspelt name would require nothing."""
        done = project.run(self.TEST, "--serving-require", "doker")
        done.assert_outcomes(errors=2)
        done.stdout.fnmatch_lines(["*serving-require: doker is none of auto, docker, embedded, process*"])

    def test_are_set_from_outside(self, project: Project) -> None:
        """The command line beats the test, and the test the ini file, which can require a runtime too."""
        (project.root / "pytest.ini").write_text(
            "[pytest]\nserving_runtime = docker\nserving_require = process docker\n"
        )
        test = (
            "@pytest.mark.parametrize('named', [None, 'nowhere'])\n"
            "def test_it(serving, named):\n"
            "    serving('half.yaml', runtime=named)\n"
        )
        required, unknown = (
            "servewright: runtime docker is required: *",
            "E *InputError: tfserving has no runtime 'nowhere'*",
        )
        done = project.run(test)
        done.assert_outcomes(failed=2)
        done.stdout.fnmatch_lines([required, unknown])
        done = project.run(test, "--serving-runtime", "docker")
        done.assert_outcomes(failed=2)
        done.stdout.fnmatch_lines([required, required])


class TestMistakes:
    """What a user gets wrong is said at the user's own line."""

    CALLS = (
        ("serving('none.yaml')", "InputError: no spec 'none.yaml' in */tests, *"),
        ("serving()", 'InputError: which server? name a spec: serving("digits.yaml"), *'),
        ("serving('half.yaml', scope='module')", "InputError: scope 'module' is none of session, function*"),
        ("serving('bad.yaml')", "SpecError: */tests/bad.yaml:7:1: batchin: *"),
    )

    def test_of_calls(self, project: Project) -> None:
        """The report shows the test's line and the reason, and nothing of this package's insides."""
        (project.folder / "bad.yaml").write_text(SPEC + "batchin: 3\n")
        done = project.run(
            "".join(f"def test_{number}(serving):\n    {call}\n" for number, (call, _) in enumerate(self.CALLS))
        )
        done.assert_outcomes(failed=len(self.CALLS))
        done.stdout.fnmatch_lines([line for call, said in self.CALLS for line in (f">*{call}", f"E *{said}")])
        assert "pytest_plugin.py" not in done.stdout.str()

    def test_of_markers(self, project: Project) -> None:
        """A misspelt word of the marker is no default of anything."""
        done = project.run("@pytest.mark.serving('half.yaml', runtim='docker')\ndef test_it(serving):\n    pass\n")
        done.assert_outcomes(errors=1)
        done.stdout.fnmatch_lines(["@pytest.mark.serving takes a spec, and by name backend, runtime, *runtim*"])

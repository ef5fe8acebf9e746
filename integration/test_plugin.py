"""A user's tests against real TorchServe and TensorFlow Serving, and a shell's: what they see, and what is left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from integration.conftest import Models
from integration.sandbox import Sandbox
from servewright import processes

Need = Callable[[str, str], None]
SERVERS = [("torchserve", "process"), ("torchserve", "docker"), ("tfserving", "docker")]
FORMATS = {"torchserve": "torchscript", "tfserving": "saved_model"}
HEAD = "import pathlib, time\nimport numpy as np\nx = np.zeros((1, 1, 8, 8), np.float32)\n"


class Project:
    """A user's tests of one spec, in a folder; their servers lie in a sandbox."""

    def __init__(self, folder: Path, box: Sandbox) -> None:
        self.folder, self.box = folder, box

    def start(self, tests: str, *options: str) -> subprocess.Popen[str]:
        """Start pytest over ``tests``."""
        (self.folder / "test_digits.py").write_text(HEAD + tests)
        (self.folder / "pytest.ini").write_text("[pytest]\n")
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-W", "error", "-rA", *options]
        return subprocess.Popen(
            command, cwd=self.folder, env=self.box.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def run(self, tests: str, *options: str) -> pytest.RunResult:
        """Run pytest over ``tests`` to its end."""
        with self.start(tests, *options) as running:
            try:
                printed, _ = running.communicate(timeout=300)
            finally:
                running.kill()
        sys.stdout.write(printed)
        return pytest.RunResult(running.returncode, printed.splitlines(), [], 0.0)


@pytest.fixture
def project(tmp_path: Path, box: Sandbox) -> Project:
    """Make a folder for a user's tests; its servers may take their time."""
    box.deadline = "10min"
    return Project(tmp_path, box)


@pytest.mark.parametrize(("backend", "runtime"), SERVERS)
def test_a_users_test(backend: str, runtime: str, models: Models, project: Project, need: Need) -> None:
    """It reads as the README has it; a failed one shows the server's log; nothing is left."""
    need(backend, runtime)
    models.spec(project.folder / "digits.yaml", FORMATS[backend])
    done = project.run(
        "def test_digits(serving):\n"
        f"    server = serving('digits.yaml', backend='{backend}', runtime='{runtime}')\n"
        "    assert server.predict({'image': x})['scores'].shape == (1, 10)\n"
        "def test_that_fails(serving):\n"
        f"    server = serving('digits.yaml', backend='{backend}', runtime='{runtime}')\n"
        "    assert server.predict({'image': x}, transport='grpc')['scores'].shape == (1, 11)\n",
        *("--serving-require", runtime),
    )
    done.assert_outcomes(passed=1, failed=1)
    done.stdout.fnmatch_lines(
        ["*_ test_that_fails _*", "E*assert (1, 10) == (1, 11)", f"*- Server log: digits ({backend}, {runtime}) -*"]
    )
    (title,) = (line for line in done.outlines if "- Server log: " in line)
    log, _, _ = "\n".join(done.outlines).partition(title)[2].partition("short test summary")
    assert len(log.splitlines()) > 5
    assert project.box.left() == []


@pytest.mark.parametrize(("backend", "runtime"), SERVERS)
def test_side_by_side(backend: str, runtime: str, models: Models, project: Project, need: Need) -> None:
    """Two workers have servers of their own, and `--serving-keep` leaves both for `ps`, `logs` and `down`."""
    pytest.importorskip("xdist")
    need(backend, runtime)
    models.spec(project.folder / "digits.yaml", FORMATS[backend])
    # Each worker's test waits until the other worker's has its server: both run at once.
    done = project.run(
        "import os\n"
        "import pytest\n"
        "@pytest.mark.parametrize('me', [0, 1])\n"
        f"@pytest.mark.serving('digits.yaml', backend='{backend}')\n"
        "def test_it(serving, me):\n"
        "    server = serving()\n"
        "    pathlib.Path(f'ready{me}').touch()\n"
        "    end = time.monotonic() + 120\n"
        "    while not pathlib.Path(f'ready{1 - me}').exists():\n"
        "        assert time.monotonic() < end\n"
        "        time.sleep(0.05)\n"
        "    assert server.predict({'image': x})['scores'].shape == (1, 10)\n",
        *("-n", "2", "--serving-keep", "--serving-runtime", runtime),
    )
    done.assert_outcomes(passed=2)
    kept = project.box.json("ps", "--json")
    assert [record["state"] for record in kept] == ["running", "running"]
    addresses = [address for record in kept for address in record["endpoints"].values()]
    assert len(addresses) == len(set(addresses))
    names = [record["name"] for record in kept]
    done.stdout.fnmatch_lines([f"servewright down {' '.join(sorted(names))}"])
    assert project.box.json("logs", names[0], "--json")["lines"]
    assert project.box.run("down", *names).returncode == 0
    assert project.box.left() == []


@pytest.mark.parametrize(("backend", "runtime"), SERVERS)
def test_a_killed_pytest(backend: str, runtime: str, models: Models, project: Project, need: Need) -> None:
    """Its server ends by itself, and the next run removes what files it left."""
    need(backend, runtime)
    models.spec(project.folder / "digits.yaml", FORMATS[backend])
    running = project.start(
        "def test_that_is_killed(serving):\n"
        f"    server = serving('digits.yaml', backend='{backend}', runtime='{runtime}')\n"
        "    pathlib.Path('part').write_text(server.endpoints['http'])\n"
        "    pathlib.Path('part').rename('address')\n"
        "    time.sleep(300)\n"
    )
    address = project.folder / "address"
    try:
        processes.wait_until(
            lambda: address.exists() or running.poll() is not None, within_s=240, what="the server is ready"
        )
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        printed, _ = running.communicate(timeout=30)
    assert address.exists(), printed
    port = int(address.read_text().rpartition(":")[2])
    processes.wait_until(lambda: processes.port_is_free(port), within_s=60, what="the server ends")
    assert project.box.run("ps").returncode == 0
    assert project.box.left() == []


@pytest.mark.parametrize(("backend", "runtime"), SERVERS)
def test_another_language(backend: str, runtime: str, models: Models, project: Project, need: Need) -> None:
    """What `up --wait --json` prints is enough for a program that knows HTTP alone."""
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("needs curl")
    need(backend, runtime)
    spec = models.spec(project.folder / "digits.yaml", FORMATS[backend])
    record = project.box.json("up", str(spec), "--runtime", runtime, "--name", "other", "--wait", "--json")
    try:
        (model,) = record["models"]
        path = f"predictions/{model}" if backend == "torchserve" else f"v1/models/{model}:predict"
        body = json.dumps({"inputs": {"image": [[[[0.0] * 8] * 8]]}})
        headers = [
            f"{name}: {value}" for name, value in {**record["headers"], "content-type": "application/json"}.items()
        ]
        words = [curl, "--silent", "--max-time", "60", f"http://{record['endpoints']['http']}/{path}", "--data", body]
        asked = subprocess.run(
            [*words, *(word for header in headers for word in ("--header", header))],
            capture_output=True, text=True, timeout=90, check=True,
        )  # fmt: skip
        answer = json.loads(asked.stdout)["outputs"]
        # TensorFlow Serving leaves the name out where there is one output.
        scores = answer["scores"] if isinstance(answer, dict) else answer
        assert len(scores[0]) == 10
    finally:
        assert project.box.run("down", "other").returncode == 0
    assert project.box.left() == []

"""Finding a Docker Engine: by variable, context or usual socket; and one sentence where there is none to use."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from typing import TYPE_CHECKING, Any

import pytest

from servewright import engine
from servewright.errors import UnavailableError

if TYPE_CHECKING:
    from conftest import Cli

pytest.importorskip("docker")

NEW = {"Version": "27.0.1", "ApiVersion": "1.46", "MinAPIVersion": "1.24"}
INFO = {"OSType": "linux", "NCPU": 4, "MemTotal": 8 * 2**30, "SecurityOptions": ["name=seccomp,profile=default"]}


class _Server(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True


@contextmanager
def engine_at(path: Path, version: dict[str, Any] | None = None, **info: Any) -> Iterator[None]:
    """Answer at the socket ``path`` as an engine of that version does when it is asked who it is."""
    answers = {"version": version or NEW, "info": INFO | info}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def address_string(self) -> str:
            return "a socket"

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (its name there)
            del format, args

        def do_GET(self) -> None:
            body = json.dumps(answers.get(self.path.rpartition("/")[2], {})).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    path.parent.mkdir(parents=True, exist_ok=True)
    with _Server(str(path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join(10)


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make a home of our own, where no engine of this machine is looked for; its path is short, as sockets need."""
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="sw-", dir="/tmp"))
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder / "run"))
    usual = engine._usual_sockets
    monkeypatch.setattr(engine, "_usual_sockets", lambda: (path for path in usual() if path.is_relative_to(folder)))
    yield folder
    shutil.rmtree(folder)


def closed(found: engine.Engine) -> engine.Engine:
    """Close the connections of an engine that was found, and return it."""
    found.api.close()
    return found


class TestFinding:
    """Where an engine is looked for."""

    def test_a_variable_comes_first(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """DOCKER_HOST beats every socket that is there."""
        with engine_at(home / "run" / "docker.sock"), engine_at(home / "named.sock", {**NEW, "Version": "28.1"}):
            monkeypatch.setenv("DOCKER_HOST", f"unix://{home}/named.sock")
            assert closed(engine.connect()).version == "28.1"

    @pytest.mark.parametrize("place", ["run/docker.sock", ".docker/run/docker.sock", "run/podman/podman.sock"])
    def test_usual_sockets(self, place: str, home: Path) -> None:
        """A rootless engine's, Docker Desktop's and Podman's sockets are found without being named."""
        with engine_at(home / place):
            found = closed(engine.connect())
        assert found.address.url == f"unix://{home / place}"

    def test_a_rootless_engine_says_so(self, home: Path) -> None:
        """What an engine without root cannot do is known from what it says of itself."""
        with engine_at(home / "run" / "docker.sock", SecurityOptions=["name=seccomp", "name=rootless"]):
            assert closed(engine.connect()).rootless

    def test_the_context_called_default_is_the_usual_socket(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It has no address of its own."""
        monkeypatch.setenv("DOCKER_CONTEXT", "default")
        with engine_at(home / "run" / "docker.sock"):
            assert closed(engine.connect()).address.source == str(home / "run" / "docker.sock")

    @pytest.mark.parametrize("text", ["{", "[]", '{"Endpoints": {}}', '{"Endpoints": {"docker": {}}}'])
    def test_a_context_that_says_nothing(self, text: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A broken context is an error, not another engine."""
        monkeypatch.setenv("DOCKER_CONTEXT", "mine")
        meta = home / ".docker" / "contexts" / "meta" / hashlib.sha256(b"mine").hexdigest() / "meta.json"
        meta.parent.mkdir(parents=True)
        meta.write_text(text)
        with engine_at(home / "run" / "docker.sock"), pytest.raises(UnavailableError, match="context"):
            engine.connect()

    @pytest.mark.parametrize("how", ["variable", "in use"])
    def test_a_context(self, how: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The current context, or the one that DOCKER_CONTEXT names, leads to its engine."""
        meta = home / ".docker" / "contexts" / "meta" / hashlib.sha256(b"mine").hexdigest() / "meta.json"
        meta.parent.mkdir(parents=True)
        address = {"Host": f"unix://{home}/mine.sock", "SkipTLSVerify": False}
        meta.write_text(json.dumps({"Name": "mine", "Metadata": {}, "Endpoints": {"docker": address}}))
        if how == "variable":
            monkeypatch.setenv("DOCKER_CONTEXT", "mine")
        else:
            (home / ".docker" / "config.json").write_text('{"currentContext": "mine"}')
        monkeypatch.setenv("DOCKER_CONFIG", str(home / ".docker"))
        with engine_at(home / "mine.sock"), engine_at(home / "run" / "docker.sock", {**NEW, "Version": "other"}):
            found = closed(engine.connect())
        assert (found.version, found.address.source) == ("27.0.1", "the Docker context mine")


def nowhere(home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Leave no engine at all; return what the reason says."""
    del home, monkeypatch
    return "no Docker Engine"


def nobody_listens(home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Leave a socket whose engine has ended."""
    with engine_at(home / "left.sock"):
        pass
    monkeypatch.setenv("DOCKER_HOST", f"unix://{home}/left.sock")
    return "start it"


def no_such_context(home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name a context that does not exist."""
    del home
    monkeypatch.setenv("DOCKER_CONTEXT", "gone")
    return "gone"


def another_machine(home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name an engine whose loopback is not ours."""
    del home
    monkeypatch.setenv("DOCKER_HOST", "tcp://192.0.2.1:2375")
    return "another machine"


def no_address(home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name something that is no address."""
    del home
    monkeypatch.setenv("DOCKER_HOST", "carrier-pigeon")
    return "carrier-pigeon"


class TestNoEngine:
    """One sentence, with the reason, and exit code 3."""

    @pytest.mark.parametrize("tag", ["Mine:1", "a-_b", "a:", "a b", ":1", "a//b", "-a", "a:-1", ""])
    def test_a_name_that_no_image_can_have_is_refused(self, cli: Cli, tag: str) -> None:
        """Before anything is packaged, and with an example of one."""
        code, out, said = cli("image", "--backend", "torchserve", "--tag", tag)
        assert (code, out) == (2, "")
        assert "such as digits:3" in said

    @pytest.mark.parametrize("why", [nowhere, nobody_listens, no_such_context, another_machine, no_address])
    def test_says_why(
        self,
        why: Callable[[Path, pytest.MonkeyPatch], str],
        home: Path,
        monkeypatch: pytest.MonkeyPatch,
        cli: Cli,
    ) -> None:
        """Every reason is told by name."""
        expected = why(home, monkeypatch)
        code, _, said = cli("image", "--backend", "torchserve", "--tag", "mine:1")
        assert code == 3, said
        assert expected in said
        assert "Traceback" not in said

    @pytest.mark.parametrize("version", ["1.24", "1.39"])
    def test_too_old(self, version: str, home: Path) -> None:
        """An engine from before device requests is refused, with the release that is needed."""
        with (
            engine_at(home / "run" / "docker.sock", {"Version": "18.9", "ApiVersion": version}),
            pytest.raises(UnavailableError, match=r"too old.*19\.03"),
        ):
            engine.connect()

    def test_windows_containers(self, home: Path) -> None:
        """An engine that is switched to Windows containers cannot run a Linux server."""
        with (
            engine_at(home / "run" / "docker.sock", OSType="windows"),
            pytest.raises(UnavailableError, match="windows"),
        ):
            engine.connect()

    def test_no_permission(self, home: Path) -> None:
        """A socket that this user may not open is told apart from one where nobody listens."""
        if os.geteuid() == 0 and not hasattr(os, "seteuid"):
            pytest.skip("nobody to become")
        path = home / "run" / "docker.sock"
        with engine_at(path):
            path.chmod(0)
            home.chmod(0o755)
            us = os.geteuid()
            if us == 0:
                os.seteuid(65534)
            try:
                with pytest.raises(UnavailableError, match=r"no permission.*usermod"):
                    engine.connect_to(engine.Address(f"unix://{path}", "DOCKER_HOST"))
            finally:
                os.seteuid(us)

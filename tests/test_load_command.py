"""`servewright load`: what it takes, prints and exits with."""

from __future__ import annotations

import functools
import json
import os
import signal
from pathlib import Path

import pytest

from load_toys import SPEC, Serve
from servewright import state
from servewright.cli import run
from servewright.load.measurement import Measurement
from servewright.load.running import measure
from servewright.load.saturation import find_max
from servewright.load.workload import Workload


class TestCommand:
    """The command line."""

    def test_loads_a_url_and_prints_json(
        self, serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Any HTTP server can be loaded with a file as the body."""
        (tmp_path / "x.json").write_text("{}")
        words = ["--data", str(tmp_path / "x.json"), "--rate", "50/s", "--duration", "600ms", "--warm-up", "0s"]
        code = run(["load", f"http://{serve().address}/x", *words, "--json", "--allow-client-bound"])
        document = json.loads(capsys.readouterr().out)
        assert (code, document["errors"]) == (0, {})
        # Three windows that agree end a load early.
        assert (document["requests"] >= 15) if document["ended"] == "stable" else (document["requests"] == 30)

    def test_fails_where_no_answer_was_good(
        self, serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The errors are printed, and the exit code is that of a server that fails."""
        (tmp_path / "x.json").write_text("{}")
        url = f"http://{serve(status='404 Not Found').address}/x"
        words = ["--data", str(tmp_path / "x.json"), "--rate", "50/s", "--duration", "600ms", "--allow-client-bound"]
        assert run(["load", url, *words]) == 4
        said = capsys.readouterr()
        assert "HTTP 404: 30 (100.00% of requests)" in said.out
        assert "latency   -" in said.out
        assert "no request got a good answer" in said.err
        assert run(["load", url, *words, "--json"]) == 4
        assert json.loads(capsys.readouterr().out)["ok"] is False

    def test_numbers_that_are_the_clients_own_are_not_printed(
        self, serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """One process cannot send a million requests a second: exit code 1, and the numbers only for who allows it."""
        (tmp_path / "x.json").write_text("{}")
        words = ["load", f"http://{serve().address}/x", "--data", str(tmp_path / "x.json"), "--duration", "600ms"]
        words += ["--rate", "1M/s", "--processes", "1", "--warm-up", "0s", "--timeout", "1s"]
        assert run(words) == 1
        said = capsys.readouterr()
        assert said.out == ""
        assert "servewright: client-bound: " in said.err
        assert "use more --processes or a lower --rate; --allow-client-bound prints the numbers" in said.err
        assert run([*words, "--allow-client-bound"]) == 0
        printed = capsys.readouterr().out.splitlines()
        assert printed[0].startswith("rate ")
        assert [line for line in printed if line.startswith("CLIENT-BOUND ")] == [printed[-1]]
        assert run([*words, "--allow-client-bound", "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["ok"] is False
        assert "--processes" in document["client"]["bound"]

    def test_a_search_ends_where_the_client_is_the_bound(
        self, serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A rate that the client cannot send is no rate that the server does not bear: exit code 1, nothing found."""
        (tmp_path / "x.json").write_text("{}")
        search = functools.partial(find_max, first=1e6)
        monkeypatch.setattr("servewright.load.saturation.find_max", search)
        words = ["--find-max", "--duration", "600ms", "--warm-up", "0s", "--timeout", "1s", "--processes", "1"]
        url = f"http://{serve().address}/x"
        assert run(["load", url, "--data", str(tmp_path / "x.json"), *words]) == 1
        said = capsys.readouterr()
        assert said.out == ""
        assert "servewright: client-bound: " in said.err

    def test_names_a_server_that_is_dead(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nobody waits for an answer that cannot come; and of several models, one is to be loaded."""
        monkeypatch.setenv("SERVEWRIGHT_STATE", str(tmp_path / "state"))
        for name in ("one", "two"):
            (tmp_path / f"{name}.yaml").write_text(SPEC.replace("NAME", name))
        (tmp_path / "fleet.yaml").write_text("servewright: 1\nfleet: both\nmodels: [one.yaml, two.yaml]\n")
        with state.claimed("one") as folder:
            gone = state.Record(
                name="one", backend="tfserving", runtime="embedded", endpoints={"http": "127.0.0.1:1"}, spec="",
                run=str(folder), log=str(folder / "log"), stand_in=True, site={}, models=("one",), pid=2**22 + 1,
            )  # fmt: skip
            state.write(folder, gone)
        assert run(["load", str(tmp_path / "one.yaml"), "--rate", "5/s"]) == 4
        assert "one is dead; see: servewright logs one" in capsys.readouterr().err
        assert run(["probe", str(tmp_path / "one.yaml"), "--name", "one"]) == 4
        assert "one is dead; see: servewright logs one" in capsys.readouterr().err
        for word in ("load", "probe"):
            more = ["--rate", "5/s"] if word == "load" else []
            assert run([word, str(tmp_path / "one.yaml"), "--name", "one", "--http", "127.0.0.1:1", *more]) == 2
            assert "--name is a server of `up`" in capsys.readouterr().err
        monkeypatch.setattr(state, "word_for", lambda _: "running")
        assert run(["load", str(tmp_path / "one.yaml"), "--rate", "5/s", "-b", "torchserve"]) == 2
        assert "one is a tfserving server; leave out -b" in capsys.readouterr().err
        assert run(["load", str(tmp_path / "one.yaml"), "--rate", "5/s", "--key-file", str(tmp_path / "none")]) == 2
        assert "--key-file goes with --http or --grpc" in capsys.readouterr().err
        assert run(["load", str(tmp_path / "fleet.yaml"), "--rate", "5/s"]) == 2
        assert "has 2 models; load the spec of one" in capsys.readouterr().err

    @pytest.mark.parametrize(
        "words",
        [[], ["--rate", "5/s", "--concurrency", "2"], ["--rate", "fast"], ["--rate", "5/s", "--duration", "3"],
         ["--rate", "5/s", "--slo", "p99=1ms"], ["--rate", "0/s"], ["--rate", "5/s", "--header", "x"],
         ["--rate", "5/s", "--header", ":x"], ["--rate", "5/s", "--header", "X: \u0151"],
         ["--rate", "5/s", "--transport", "grpc"], ["--rate", "\u00b2"], ["--concurrency", "2", "--poisson"],
         ["--rate", "5/s", "--backend", "tfserving"], ["--rate", "5/s", "--name", "x"],
         ["--rate", "5/s", "--grpc", "127.0.0.1:1"], ["--rate", "nan"], ["--rate", "inf"], ["--rate", "-5"],
         ["--rate", "1e300"], ["--rate", "2M/s"], ["--rate", "0.000000000001"], ["--rate", "5/s", "--duration", "inf"],
         ["--rate", "5/s", "--duration", "0s"], ["--rate", "5/s", "--warm-up", "-1s"],
         ["--rate", "5/s", "--timeout", "0s"], ["--rate", "5/s", "--poisson", "--seed", "-1"],
         ["--rate", "5/s", "--processes", "0"], ["--rate", "5/s", "--processes", "100000"], ["--concurrency", "0"],
         ["--concurrency", "1000000000"], ["--find-max", "--slo", "p99=nan"], ["--find-max", "--slo", "p99=0ms"],
         ["--find-max", "--slo", "errors=nan"], ["--find-max", "--slo", "errors=-1%"]],
    )  # fmt: skip
    def test_refuses_what_makes_no_sense(
        self, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Options that contradict each other, or say nothing, are bad input, and one line says why."""
        (tmp_path / "x.json").write_text("{}")
        assert run(["load", "http://127.0.0.1:1/x", "--data", str(tmp_path / "x.json"), *words]) == 2
        said = capsys.readouterr().err
        assert said.startswith("servewright: ")
        assert said.count("\n") == 1
        assert "defect" not in said

    @pytest.mark.parametrize(
        "url",
        ["http://[::1/x", "http://a..b/x", "http://127.0.0.1:1/\u65e5", "http://127.0.0.1:1/a b", "http://:80/",
         "http://me:secret@127.0.0.1:1/", "ftp://me:secret@127.0.0.1/", "http://me:secret@[::1/",
         "http://127.0.0.1:99999/", "ftp://127.0.0.1/x"],
    )  # fmt: skip
    def test_refuses_a_url_that_cannot_be_sent_to(
        self, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """It is bad input, and no secret in it is told."""
        (tmp_path / "x.json").write_text("{}")
        assert run(["load", url, "--data", str(tmp_path / "x.json"), "--rate", "5/s"]) == 2
        assert "secret" not in capsys.readouterr().err

    def test_a_search_that_is_ended_early_tells_what_it_tried(
        self, serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Ctrl-C in the second trial leaves the first."""
        (tmp_path / "x.json").write_text("{}")
        measured: list[Workload] = []

        def once(load: Workload, **options: object) -> Measurement:
            measured.append(load)
            if len(measured) == 2:
                os.kill(os.getpid(), signal.SIGINT)
            return measure(load, **options)  # type: ignore[arg-type]

        monkeypatch.setattr("servewright.load.running.measure", once)
        words = ["--data", str(tmp_path / "x.json"), "--find-max", "--duration", "600ms", "--warm-up", "0s"]
        address = serve().address
        code = run(["load", f"http://{address}/x", *words, "--json", "--allow-client-bound", "--slo", "errors=1%"])
        document = json.loads(capsys.readouterr().out)
        assert (code, document["ok"], document["complete"]) == (130, False, False)
        assert [trial["asked"] for trial in document["trials"]] == [100.0]

    def test_a_search_that_fails_prints_one_document(
        self, serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What was tried, and why it ended."""
        (tmp_path / "x.json").write_text("{}")
        toy = serve()
        measured: list[Workload] = []

        def once(load: Workload, **options: object) -> Measurement:
            measured.append(load)
            if len(measured) == 2:
                toy.stop()
            return measure(load, **options)  # type: ignore[arg-type]

        monkeypatch.setattr("servewright.load.running.measure", once)
        words = ["--data", str(tmp_path / "x.json"), "--find-max", "--duration", "600ms", "--warm-up", "0s"]
        code = run(["load", f"http://{toy.address}/x", *words, "--json", "--allow-client-bound", "--slo", "errors=1%"])
        said = capsys.readouterr()
        document = json.loads(said.out)
        assert (code, document["ok"], document["complete"]) == (4, False, False)
        assert [trial["asked"] for trial in document["trials"]] == [100.0]
        assert document["error"]["kind"] == "ProbeError"
        assert document["error"]["message"] in said.err

"""The command line: help, JSON, exit codes, signals and pipes, the same for every command."""

from __future__ import annotations

import importlib
import io
import json
import keyword
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pytest

from servewright import __version__, launching, registry
from servewright import cli as command_line
from servewright.backend import Identity
from servewright.cli import COMMANDS, printing
from servewright.errors import (
    CheckFailedError,
    ExitCode,
    InputError,
    LaunchError,
    ProbeError,
    ServewrightError,
    UnavailableError,
)
from servewright.reporting import Check, Report, Status

if TYPE_CHECKING:
    from conftest import Cli, Workshop

TORCHSERVE = registry.get("torchserve")


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVEWRIGHT_STATE", str(tmp_path / "state"))


def command(name: str) -> click.Command:
    group = command_line.root
    found = group.get_command(click.Context(group), name)
    assert found is not None
    return found


class TestHelp:
    """What the commands say of themselves."""

    @pytest.mark.parametrize("name", COMMANDS)
    def test_of_every_command_has_an_example(self, cli: Cli, name: str) -> None:
        """Each shows how it is called, in words that it understands itself."""
        code, out, err = cli(name, "--help")
        assert (code, err) == (0, "")
        assert out.startswith(f"Usage: servewright {name}")
        assert f"servewright {name}" in " ".join(out.partition("Example")[2].split())
        assert cli(name, "-h") == (0, out, "")

    @pytest.mark.parametrize("name", COMMANDS)
    def test_examples_name_options_that_there_are(self, name: str) -> None:
        """An example that was not renamed with its option would teach what fails."""
        found = command(name)
        known = {option for parameter in found.params for option in (*parameter.opts, *parameter.secondary_opts)}
        own = [part for part in (found.epilog or "").replace("`", "").split(";") if f"servewright {name} " in part]
        words = [word.partition("=")[0] for part in own for word in part.split("&&")[0].split() if word.startswith("-")]
        assert set(words) <= known | {"--help"}

    @pytest.mark.parametrize("name", COMMANDS)
    def test_describes_every_option(self, name: str) -> None:
        """An option without a word of help is a riddle."""
        found = command(name)
        options = [parameter for parameter in found.params if isinstance(parameter, click.Option)]
        assert [
            option.name for option in options if not option.help and not isinstance(option.type, click.Choice)
        ] == []
        assert found.help

    def test_lists_every_command_with_its_module(self, cli: Cli) -> None:
        """The list is complete, and each command is where its name says."""
        _, out, _ = cli("--help")
        folder = Path(command_line.__file__).parent
        for name, said in COMMANDS.items():
            assert f"  {name}" in out
            assert said in " ".join(out.split())
        modules = {path.stem for path in folder.glob("*.py")} - {"__init__", "options", "printing"}
        commands = {path for path in modules if hasattr(importlib.import_module(f"servewright.cli.{path}"), "command")}
        assert {name.replace("-", "_") + "_" * keyword.iskeyword(name) for name in COMMANDS} == commands

    def test_comes_without_words_too_and_fails(self, cli: Cli) -> None:
        """A script that forgot its command does not go on."""
        code, out, err = cli()
        assert code == 2
        assert "Commands:" in out + err

    def test_tells_the_version(self, cli: Cli) -> None:
        """The version is the package's."""
        assert cli("--version") == (0, f"servewright, version {__version__}\n", "")


class TestJson:
    """`--json`: one document on stdout, and nothing else."""

    @pytest.mark.parametrize("name", COMMANDS)
    def test_is_an_option_of_every_command(self, name: str) -> None:
        """Whatever a command says, a program can read."""
        assert "--json" in {option for parameter in command(name).params for option in parameter.opts}

    @pytest.mark.parametrize(
        "words",
        [
            ("render", "SPEC"),
            ("render", "SPEC", "-o", "FOLDER/config"),
            ("render", "SPEC", "--explain"),
            ("package", "SPEC", "-o", "FOLDER/out"),
            ("schema",),
            ("ps",),
            ("down", "--all"),
            ("init", "FOLDER/model_saved_model"),
            ("init", "FOLDER/model_saved_model", "-o", "FOLDER/new.yaml"),
        ],
        ids=" ".join,
    )
    def test_is_valid_where_all_is_well(self, workshop: Workshop, cli: Cli, words: tuple[str, ...]) -> None:
        """Stages and notes go to stderr."""
        spec = workshop.write(workshop.values(TORCHSERVE))
        workshop.model("saved_model")
        filled = [word.replace("SPEC", str(spec)).replace("FOLDER", str(workshop.folder)) for word in words]
        code, out, _ = cli(*filled, "--json")
        assert code == 0
        json.loads(out)

    @pytest.mark.parametrize(
        "words",
        [
            ("render", "nope.yaml"),
            ("render", "SPEC", "-b", "nobody"),
            ("render", "SPEC", "--nonsense"),
            ("render",),
            ("package", "SPEC"),
            ("init", "nope.pt"),
            ("logs", "nobody"),
            ("down", "nobody"),
            ("down",),
            ("up", "nope.yaml"),
            ("verify", "nope.yaml", "-"),
            ("probe", "nope.yaml", "-"),
        ],
        ids=" ".join,
    )
    def test_holds_errors_too(self, workshop: Workshop, cli: Cli, words: tuple[str, ...]) -> None:
        """A program learns what was wrong without reading stderr; people still find it there."""
        spec = workshop.write(workshop.values(TORCHSERVE))
        words = tuple(str(spec) if word == "SPEC" else word for word in words)
        at = len(words) - (words[-1] == "-")
        code, out, err = cli(*words[:at], "--json", *words[at:])
        document = json.loads(out)
        assert code == 2
        assert document["ok"] is False
        assert document["error"]["kind"].endswith("Error")
        assert document["error"]["message"].splitlines()[0] in err

    def test_gives_each_problem_with_its_place(self, workshop: Workshop, cli: Cli) -> None:
        """Editors and CI mark the line."""
        spec = workshop.write(workshop.values(TORCHSERVE, workers=0, device="cuda"))
        _, out, _ = cli("render", spec, "--json")
        problems = json.loads(out)["error"]["problems"]
        assert [problem["path"] for problem in problems] == ["workers", "device"]
        assert all(problem["file"] == str(spec) and problem["line"] and problem["remedy"] for problem in problems)

    @pytest.mark.parametrize("name", ["verify", "probe"])
    @pytest.mark.parametrize("style", ["--json REPORT", "--json=REPORT"])
    def test_of_errors_goes_to_the_file_that_is_named(
        self, workshop: Workshop, cli: Cli, name: str, style: str
    ) -> None:
        """Where the report would have gone, the error goes."""
        report = workshop.folder / "report.json"
        code, out, err = cli(name, "nope.yaml", *style.replace("REPORT", str(report)).split())
        assert (code, out) == (2, "")
        assert json.loads(report.read_text())["error"]["message"] in err


FAILURES: list[tuple[type[ServewrightError] | BaseException, int]] = [
    (InputError("x"), 2),
    (CheckFailedError("x"), 1),
    (UnavailableError("x"), 3),
    (LaunchError("x"), 4),
    (ProbeError("x"), 4),
    (KeyboardInterrupt(), 130),
    (SystemExit(7), 7),
]


class TestExitCodes:
    """What a command ends with."""

    @pytest.mark.parametrize(("failure", "code"), FAILURES, ids=lambda value: type(value).__name__)
    def test_follow_the_error(
        self, cli: Cli, monkeypatch: pytest.MonkeyPatch, failure: BaseException, code: int
    ) -> None:
        """Each kind of failure has its code, a line, and no traceback."""

        def fail() -> Any:
            raise failure

        monkeypatch.setattr("servewright.state.records", fail)
        found, out, err = cli("ps")
        assert (found, out) == (code, "")
        assert "Traceback" not in err
        assert isinstance(failure, SystemExit) or err.startswith(("servewright: ", "\nservewright: "))

    def test_are_those_of_the_design(self) -> None:
        """Scripts depend on the numbers."""
        assert {code.name: int(code) for code in ExitCode} == {
            "OK": 0,
            "CHECK_FAILED": 1,
            "BAD_INPUT": 2,
            "UNAVAILABLE": 3,
            "SERVER_FAILED": 4,
            "INTERRUPTED": 130,
            "TERMINATED": 143,
        }

    def test_of_a_bug_are_a_traceback(self, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
        """What nobody foresaw is not dressed up as a mistake of the user's."""

        def fail() -> Any:
            raise ZeroDivisionError

        monkeypatch.setattr("servewright.state.records", fail)
        with pytest.raises(ZeroDivisionError):
            cli("ps")

    def test_stay_with_more_words(self, cli: Cli) -> None:
        """`-v` adds the traceback, and changes nothing else."""
        code, _, err = cli("-v", "logs", "nobody")
        assert code == 2
        assert "Traceback" in err
        assert err.splitlines()[-1] == "servewright: no server 'nobody' (none runs); see: servewright ps"


class TestErrors:
    """What is printed when something is wrong."""

    def test_shows_notes_and_log_lines(self, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
        """A server's last lines are indented, and a note follows its error."""

        def fail() -> Any:
            error = LaunchError("the server died", log_tail=["one", "two\x1b[31m"])
            error.add_note("noted")
            raise error

        monkeypatch.setattr("servewright.state.records", fail)
        code, _, err = cli("ps")
        assert code == 4
        assert err.splitlines() == [
            "servewright: the server died",
            "servewright: last lines of the server's log:",
            "  | one",
            r"  | two\x1b[31m",
            "servewright: noted",
        ]

    def test_shows_no_control_characters(self, workshop: Workshop, cli: Cli) -> None:
        """A stranger's spec cannot move the cursor, nor colour the terminal."""
        spec = workshop.write('servewright: 1\n"\\x1b[2J\\nname": x\n')
        code, _, err = cli("render", spec)
        assert code == 2
        assert "\x1b" not in err
        assert all(line.startswith("servewright: ") for line in err.splitlines())
        table = cli(
            "render", workshop.write(workshop.values(TORCHSERVE, signature=_named("a\x1b[31mb\nc"))), "--explain"
        )
        assert table[0] == 0
        assert "\x1b" not in table[1]

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (("rendr",), "no command 'rendr'; did you mean 'render'?; see: servewright --help"),
            (("xyzzy",), "no command 'xyzzy'; choose from init, "),
            (("render",), "missing argument 'SPEC'; see: servewright render --help"),
            (("render", "a", "b"), "got unexpected extra argument (b); see: servewright render --help"),
            (("logs", "x", "-n", "0"), "0 is not in the range x>=1; see: servewright logs --help"),
            (("package", "x"), "missing option '-o' / '--output'; see: servewright package --help"),
            (
                ("package", "x", "-o", "y", "--form", "tar"),
                "'tar' is not one of 'archive', 'directory'; see: servewright package",
            ),
            (("down",), "name a server, or say --all; see: servewright down --help"),
            (("down", "x", "--all"), "name a server, or say --all; see: servewright down --help"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
    )
    def test_of_usage_are_one_line_with_a_hint(self, cli: Cli, words: tuple[str, ...], said: str) -> None:
        """Wrong words are told like any other error."""
        code, out, err = cli(*words)
        assert (code, out) == (2, "")
        assert len(err.splitlines()) == 1
        assert err.startswith("servewright: ")
        assert said in err


def _named(name: str) -> dict[str, Any]:
    tensor = {"name": "x", "dtype": "int8", "shape": None}
    return {"name": name, "inputs": [tensor], "outputs": [tensor]}


SLOW = """
import sys, time
from servewright import state
from servewright.cli import main


def wait():
    print("waiting", file=sys.stderr, flush=True)
    time.sleep(60)


state.records = wait
main(["ps"])
"""


class TestProcess:
    """The program as the system sees it."""

    @pytest.mark.parametrize(
        ("number", "code", "said"),
        [(signal.SIGINT, 130, "servewright: interrupted"), (signal.SIGTERM, 143, "servewright: terminated")],
        ids=["Ctrl-C", "SIGTERM"],
    )
    def test_ends_when_it_is_told_to(self, number: int, code: int, said: str) -> None:
        """A signal unwinds what was begun, and gives the code that shells expect."""
        with subprocess.Popen([sys.executable, "-c", SLOW], stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            assert process.stderr.readline() == "waiting\n"
            process.send_signal(number)
            rest = process.stderr.read()
            assert process.wait(20) == code
        assert said in rest
        assert "Traceback" not in rest

    @pytest.mark.parametrize("words", [["schema"], ["--help"]], ids=" ".join)
    def test_does_not_mind_a_reader_that_has_enough(self, words: list[str]) -> None:
        """`servewright schema | head -1` is a success of both."""
        with subprocess.Popen(
            [sys.executable, "-m", "servewright", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            assert process.stderr.read() == ""
            assert process.wait(20) in (0, 1)

    def test_prints_names_that_are_no_text(self, workshop: Workshop) -> None:
        """A file's name may be bytes that no encoding has."""
        spec = workshop.write(workshop.values(TORCHSERVE))
        folder = os.fsdecode(os.fsencode(workshop.folder) + b"/caf\xe9")
        command = [sys.executable, "-m", "servewright", "render", str(spec), "-o", folder]
        done = subprocess.run(command, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        assert b"caf\\udce9" in done.stdout

    def test_restores_the_handler_of_signals(self, cli: Cli) -> None:
        """Whoever runs the command line in his own process keeps his own handler."""
        before = signal.getsignal(signal.SIGTERM)
        cli("ps")
        assert signal.getsignal(signal.SIGTERM) is before


class Terminal(io.StringIO):
    """A terminal, as far as programs ask."""

    def isatty(self) -> bool:
        """Say that it is one."""
        return True


def report(**changes: Any) -> Report:
    checks = (Check("a", Status.PASS, "good"), Check("b", Status.FAIL, "bad"), Check("c", Status.UNVERIFIABLE))
    server = Identity(name="Server", version="1.0", stand_in=True)
    values = {"backend": "x", "runtime": "process", "server": server, "checks": checks, "notes": ("a note",)}
    return Report(**{**values, "timings_s": {"package": 0.1234}, **changes})


class TestPrinting:
    """Rich on a terminal, plain when piped."""

    @pytest.fixture(autouse=True)
    def _plain_environment(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("TERM", "xterm-256color")
        return

    def test_colours_terminals_only(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        """Colours go to a terminal, and not where NO_COLOR is set; nothing of the kind goes into a pipe."""
        for no_color, colour in (("", True), ("1", False)):
            terminal = Terminal()
            monkeypatch.setattr(sys, "stdout", terminal)
            monkeypatch.setenv("NO_COLOR", no_color)
            printing.check(Check("b", Status.FAIL, "bad"))
            assert ("31m" in terminal.getvalue()) is colour
            assert "FAIL b: bad" in terminal.getvalue()
        monkeypatch.undo()
        printing.check(Check("b", Status.FAIL, "bad"))
        assert capsys.readouterr().out == "FAIL b: bad\n"

    def test_lays_tables_out_for_both(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Columns line up, and brackets are text and not markup."""
        printing.table(("a", "bb"), [("[red]x", 1), ("y", "")])
        assert capsys.readouterr().out == "a       bb\n[red]x  1\ny\n"
        terminal = Terminal()
        monkeypatch.setattr(sys, "stdout", terminal)
        printing.table(("a", "bb"), [("[red]x", 1)])
        assert "[red]x" in terminal.getvalue()
        monkeypatch.setenv("COLUMNS", "40")
        monkeypatch.setattr(sys, "stdout", narrow := Terminal())
        printing.table(("name", "address"), [("n" * 30, "127.0.0.1:8501")])
        assert "\N{HORIZONTAL ELLIPSIS}" not in narrow.getvalue()
        assert "8501" in "".join(narrow.getvalue().split())

    def test_ends_reports_with_the_result(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Notes, timings, and one line that says what came of it, on which server."""
        printing.report(report())
        assert capsys.readouterr().out.splitlines() == [
            "note a note",
            "time package 0.1 s",
            "FAILED Server 1.0 (stand-in), runtime process: 1 passed, 1 failed, 1 unverifiable",
        ]

    @pytest.mark.parametrize(
        ("statuses", "strict", "code"),
        [
            ((Status.PASS,), False, 0),
            ((Status.PASS, Status.FAIL), False, 1),
            ((Status.UNVERIFIABLE,), False, 0),
            ((Status.UNVERIFIABLE,), True, 1),
            ((), True, 0),
        ],
    )
    def test_reports_say_what_to_exit_with(self, statuses: tuple[Status, ...], strict: bool, code: int) -> None:
        """What could not be checked counts only where it shall."""
        found = report(checks=tuple(Check("x", status) for status in statuses), strict=strict)
        assert found.exit_code == code
        assert found.ok is (code == 0)

    def test_reports_as_json_have_the_published_form(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Other programs read these keys."""
        with pytest.raises(SystemExit) as ended:
            printing.finish(report(), tmp_path / "deep" / "report.json")
        assert ended.value.code == 1
        written = json.loads((tmp_path / "deep" / "report.json").read_text())
        capsys.readouterr()
        with pytest.raises(SystemExit):
            printing.finish(report(), Path("-"))
        assert json.loads(capsys.readouterr().out) == written
        assert set(written) >= {"ok", "backend", "runtime", "server", "checks", "timings_s", "artifacts"}
        assert written["server"] == {"name": "Server", "version": "1.0", "stand_in": True}
        assert written["checks"][1] == {"name": "b", "status": "fail", "detail": "bad"}
        assert written["timings_s"] == {"package": 0.123}


class TestChoosing:
    """Which backend and which runtime."""

    def test_takes_the_only_backend_that_fits(self, workshop: Workshop, cli: Cli) -> None:
        """A spec for one server needs no --backend."""
        code, out, _ = cli("render", workshop.write(workshop.values(TORCHSERVE)), "--json")
        assert code == 0
        assert "config.properties" in json.loads(out)["files"]

    def test_asks_where_several_fit(self, workshop: Workshop, cli: Cli) -> None:
        """A spec for both is not guessed at."""
        values = workshop.values(*(registry.get(name) for name in registry.names()))
        code, _, err = cli("render", workshop.write(values))
        assert code == 2
        assert "could go to tfserving, torchserve; choose one with --backend" in err

    def test_names_every_runtime_that_was_refused(self) -> None:
        """Where nothing here can run a server, each runtime says what it needs, with exit code 3."""

        def refuse(runtime: str) -> Any:
            raise UnavailableError(f"install what {runtime} needs")

        nothing = replace(TORCHSERVE, program=refuse, runtimes=("process", "embedded"))
        with pytest.raises(UnavailableError) as caught:
            launching.choose(nothing, "auto")
        assert all(f"{runtime}: install what {runtime} needs" in str(caught.value) for runtime in nothing.runtimes)
        assert caught.value.exit_code == 3

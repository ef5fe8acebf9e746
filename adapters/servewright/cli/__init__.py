"""The command line: parse, call, print. Nothing here decides anything."""

from __future__ import annotations

import importlib
import io
import keyword
import os
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any, Final

import click

from servewright import __version__
from servewright.errors import ExitCode, InputError, ServewrightError, SystemCallError

# The module of each command, imported when it is called, and what `--help` says of it.
COMMANDS: Final[Mapping[str, str]] = {
    "init": "Write a spec by looking into a model.",
    "schema": "Print the JSON Schema of the spec.",
    "render": "Write the server's configuration files.",
    "package": "Write configs and model store, ready to serve.",
    "image": "Build an image of a server, with or without models.",
    "verify": "Package, launch, probe and stop: the whole job.",
    "up": "Start a server that stays.",
    "down": "End servers that `up` started.",
    "ps": "List servers that `up` started.",
    "logs": "Print the log of a server.",
    "probe": "Check a running server against a spec.",
    "load": "Send load to a running server, and say what users see.",
    "rollout": "Move running servers to a new version: canary, probe, promote.",
    "rollback": "Take a rollout back.",
    "tune": "Find the batching settings that serve a load best, and write them.",
    "plan": "Say how many replicas a rate needs, from a study.",
    "report": "Write what a tuning study found, as a page or a text.",
    "lint": "Check configs, archives and commands that are there already.",
    "import": "Make specs of configs that exist, or of what a server tells.",
    "diff": "Compare a spec with what a live server has.",
    "verify-archive": "Prove model archives safe, without unpacking them.",
    "sign": "Sign archives and artifacts with a key of your own.",
    "doctor": "Say what this machine can run, and what is missing.",
    "demo": "Train on handwritten digits, serve, and compare.",
}
# Whose `--json` names a file; the others' is a flag.
_JSON_TO_A_FILE: Final = frozenset({"verify", "probe"})


class _Commands(click.Group):
    """The commands by name; none is imported before it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  (click's signature)
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module = cmd_name.replace("-", "_") + "_" * keyword.iskeyword(cmd_name)
        command = importlib.import_module(f"servewright.cli.{module}").command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS:
            import difflib

            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(COMMANDS)}"
            ctx.fail(f"no command {args[0]!r}; {hint}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _UnreadError from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Example: servewright init model.pt --example in.npz -o digits.yaml && servewright verify digits.yaml",
)
@click.version_option(__version__, prog_name="servewright")
@click.option("-v", "--verbose", is_flag=True, help="Show tracebacks of errors, and more detail.")
@click.pass_context
def root(ctx: click.Context, *, verbose: bool) -> None:
    """Render, package, launch, prove and tune models on TensorFlow Serving and TorchServe."""
    ctx.obj = {"verbose": verbose}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may be no text
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code (`ExitCode`)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        root.main(words, prog_name="servewright", standalone_mode=False)
        sys.stdout.flush()
    except SystemExit as request:
        return int(request.code or 0)
    except click.exceptions.Exit as request:
        return request.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return int(ExitCode.BAD_INPUT)
    except click.ClickException as error:
        return _complain(InputError(_usage(error)), words)
    except ServewrightError as error:
        if "-v" in words or "--verbose" in words:
            traceback.print_exception(error)
        return _complain(error, words)
    except (click.Abort, KeyboardInterrupt):
        print("servewright: interrupted", file=sys.stderr)  # noqa: T201
        return int(ExitCode.INTERRUPTED)
    except _Terminated:
        print("servewright: terminated", file=sys.stderr)  # noqa: T201
        return int(ExitCode.TERMINATED)
    except (BrokenPipeError, _UnreadError):
        return _unread()
    except OSError as error:  # a full disk, a folder that may not be written to
        if "-v" in words or "--verbose" in words:
            traceback.print_exception(error)
        return _complain(SystemCallError(error), words)
    finally:
        signal.signal(signal.SIGTERM, previous)
    return int(ExitCode.OK)


def _unread() -> int:
    """Throw away what nobody reads any more (`head` has enough): the interpreter would complain when it flushes."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno() if sys.__stdout__ else 1)
    return int(ExitCode.OK)


def _usage(error: click.ClickException) -> str:
    """Return what is wrong with the words, in one line, with where to read on."""
    text = " ".join(error.format_message().split()).rstrip(".")
    context = getattr(error, "ctx", None)
    place = context.command_path if context else "servewright"
    return f"{text[:1].lower()}{text[1:]}; see: {place} --help"


class _UnreadError(Exception):
    """The reader of a pipe has gone: nothing went wrong here, though click would take it so."""


class _Terminated(BaseException):
    """SIGTERM came: unwind, so that what started stops."""


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise _Terminated


def _complain(error: ServewrightError, words: Sequence[str]) -> int:
    """Say what went wrong, a line for each problem, and return the exit code."""
    from servewright.cli import printing

    lines = [*str(error).splitlines(), *getattr(error, "__notes__", ())]
    if target := _json_target(words):
        import json

        problems = [asdict(problem) for problem in getattr(error, "problems", ())]
        document = {"ok": False, "error": {"kind": type(error).__name__, "message": str(error), "problems": problems}}
        if target == "-":
            printing.as_json(document)
        else:
            with suppress(OSError):  # the lines on stderr say it too
                Path(target).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    for line in lines:
        shown = "".join(map(printing.visible, line))
        print(shown if line.startswith("  |") else f"servewright: {shown}", file=sys.stderr)  # noqa: T201
    return int(error.exit_code)


def _json_target(words: Sequence[str]) -> str:
    """Return where ``--json`` wants the document: a file, ``-`` for stdout, or nothing where it was not given."""
    command = next((word for word in words if not word.startswith("-")), "")
    for index, word in enumerate(words):
        if word.startswith("--json="):
            return word.removeprefix("--json=")
        if word == "--json":
            return next(iter(words[index + 1 :]), "-") if command in _JSON_TO_A_FILE else "-"
    return ""

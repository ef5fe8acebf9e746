"""The command line: parse, call, print. Nothing here decides anything."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Final

import click

from servewright import __version__
from servewright.errors import ExitCode, ServewrightError

# The module of each command, imported when it is called, and what `--help` says of it.
COMMANDS: Final[Mapping[str, str]] = {
    "init": "Write a spec by looking into a model.",
    "schema": "Print the JSON Schema of the spec.",
    "render": "Write the server's configuration files.",
    "package": "Write configs and model store, ready to serve.",
    "verify": "Package, launch, probe and stop: the whole job.",
    "up": "Start a server that stays.",
    "down": "End servers that `up` started.",
    "ps": "List servers that `up` started.",
    "logs": "Print the log of a server.",
    "probe": "Check a running server against a spec.",
    "doctor": "Say what this machine can run, and what is missing.",
    "demo": "Train on handwritten digits, serve, and compare.",
}


class _Commands(click.Group):
    """The commands by name; none is imported before it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  (click's signature)
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"servewright.cli.{cmd_name}").command
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
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code (`ExitCode`)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        root.main(words, prog_name="servewright", standalone_mode=False)
    except SystemExit as request:
        return int(request.code or 0)
    except click.exceptions.Exit as request:
        return request.exit_code
    except click.ClickException as error:
        error.show()
        return int(ExitCode.BAD_INPUT)
    except ServewrightError as error:
        if "-v" in words or "--verbose" in words:
            raise
        _complain(error, as_json="--json" in words)
        return int(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        print("servewright: interrupted", file=sys.stderr)  # noqa: T201
        return int(ExitCode.INTERRUPTED)
    except _Terminated:
        print("servewright: terminated", file=sys.stderr)  # noqa: T201
        return int(ExitCode.TERMINATED)
    except BrokenPipeError:
        # The reader (`head`, say) has enough; the interpreter would complain again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.OK)
    finally:
        signal.signal(signal.SIGTERM, previous)
    return int(ExitCode.OK)


class _Terminated(BaseException):
    """SIGTERM came: unwind, so that what started stops."""


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise _Terminated


def _complain(error: ServewrightError, *, as_json: bool) -> None:
    """Say what went wrong: a line for each problem, and what was noted on the way."""
    if as_json:
        import json

        problems = [str(problem) for problem in getattr(error, "problems", ())]
        document = {"ok": False, "error": {"kind": type(error).__name__, "message": str(error), "problems": problems}}
        print(json.dumps(document, indent=2))  # noqa: T201
    for line in str(error).splitlines() + list(getattr(error, "__notes__", ())):
        print(line if line.startswith("  |") else f"servewright: {line}", file=sys.stderr)  # noqa: T201

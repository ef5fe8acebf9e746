"""What commands print: rich on a terminal, plain when piped, JSON when asked."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from servewright.reporting import Check, Report

_MARKS = {"pass": ("ok", "green"), "fail": ("FAIL", "bold red"), "unverifiable": ("open", "yellow")}


def console(*, error: bool = False) -> Console:
    """Return a console that colours terminals only and honours ``NO_COLOR``."""
    from rich.console import Console

    return Console(stderr=error, highlight=False, soft_wrap=True, markup=False)


def line(text: str = "") -> None:
    """Print one line of output."""
    print(text)  # noqa: T201


def visible(character: str) -> str:
    """Return a character, or its escape where a terminal would obey it instead of showing it."""
    return character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode()


def stage(text: str) -> None:
    """Say on stderr what is being done; results alone go to stdout."""
    if sys.stderr.isatty():
        console(error=True).print(f"· {text}", style="dim")
    else:
        print(f"- {text}", file=sys.stderr)  # noqa: T201


@contextmanager
def pulling() -> Iterator[Callable[[float, str], None]]:
    """Yield what shows how far an image's download is: a bar on a terminal, a line per quarter elsewhere."""
    if not sys.stderr.isatty():
        said: set[int] = set()

        def say(share: float, what: str) -> None:
            quarter = int(share * 4)
            if quarter not in said:
                said.add(quarter)
                stage(f"{what} {25 * quarter} %")

        yield say
        return
    from rich.progress import Progress

    with Progress(console=console(error=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def show(share: float, what: str) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=1.0)
            bars.update(tasks[what], completed=share)

        yield show


def as_json(document: Any) -> None:
    """Print ``document`` as JSON."""
    print(json.dumps(document, indent=2, sort_keys=False, default=str))  # noqa: T201


def check(found: Check) -> None:
    """Print the result of one check as it comes."""
    mark, style = _MARKS[str(found.status)]
    text = f"{mark:<5}{found.name}" + (f": {found.detail}" if found.detail else "")
    if sys.stdout.isatty():
        console().print(text, style=style if mark != "ok" else None)
    else:
        line(text)


def report(found: Report) -> None:
    """Print the end of a report: its notes, its timings, and the result in one line."""
    for note in found.notes:
        line(f"note {note}")
    if found.timings_s:
        line("time " + ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in found.timings_s.items()))
    text = ("PASSED " if found.ok else "FAILED ") + found.headline
    if sys.stdout.isatty():
        console().print(text, style="bold green" if found.ok else "bold red")
    else:
        line(text)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows below their columns; fixed width when piped, drawn on a terminal."""
    texts = [["".join(map(visible, str(cell))) for cell in row] for row in rows]
    if sys.stdout.isatty():
        from rich.table import Table

        drawn = Table(box=None, pad_edge=False, header_style="bold")
        for name in columns:
            drawn.add_column(name, overflow="fold")  # an ellipsis would hide a port, or a whole setting
        for row in texts:
            drawn.add_row(*row)
        console().print(drawn)
        return
    widths = [max(map(len, column)) for column in zip(columns, *texts, strict=True)]
    for row in [list(columns), *texts]:
        line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def finish(found: Report, json_file: Path | None) -> None:
    """Print or write the report as was asked, and exit as it says."""
    if json_file is None or str(json_file) != "-":
        report(found)
    if json_file is not None and str(json_file) == "-":
        as_json(found.as_json())
    elif json_file is not None:
        from servewright.writing import write_texts

        write_texts({json_file.name: json.dumps(found.as_json(), indent=2) + "\n"}, json_file.parent)
    if found.exit_code:
        raise SystemExit(int(found.exit_code))

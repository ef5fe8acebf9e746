"""`servewright logs`."""

from __future__ import annotations

import click

from servewright.cli import printing
from servewright.cli.options import json_option


@click.command("logs", epilog="Example: servewright logs digits -n 50")
@click.argument("name")
@click.option(
    "-n", "--lines", default=200, show_default=True, type=click.IntRange(1), help="How many lines from the end."
)
@json_option
def command(*, name: str, lines: int, as_json: bool) -> None:
    """Print the last lines that the server NAME wrote."""
    from servewright import state

    found = state.find(name).handle().log_tail(lines)
    if as_json:
        printing.as_json({"name": name, "lines": list(found)})
        return
    for text in found:
        printing.line(text)

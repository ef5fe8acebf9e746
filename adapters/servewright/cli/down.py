"""`servewright down`."""

from __future__ import annotations

import click

from servewright.cli import printing
from servewright.cli.options import json_option


@click.command("down", epilog="Examples: servewright down digits; servewright down --all")
@click.argument("names", nargs=-1)
@click.option("--all", "every", is_flag=True, help="End every server that `up` started.")
@json_option
def command(*, names: tuple[str, ...], every: bool, as_json: bool) -> None:
    """End servers that `up` started, and remove what they left."""
    from servewright import pipeline, state

    if bool(names) == every:
        raise click.UsageError("name a server, or say --all")
    pipeline.sweep()
    ended = [record.name for record in state.records()] if every else list(names)
    for name in ended:
        pipeline.down(name)
        if not as_json:
            printing.line(f"{name} ended")
    if as_json:
        printing.as_json({"ok": True, "ended": ended})
    elif not ended:
        printing.line("no server runs")

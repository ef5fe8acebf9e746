"""`servewright down`."""

from __future__ import annotations

import click

from servewright.cli import printing
from servewright.cli.options import json_option
from servewright.errors import ServewrightError


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
    wanted = [record.name for record in state.records()] if every else list(names)
    ended: list[str] = []
    failed: dict[str, ServewrightError] = {}
    for name in wanted:
        try:
            pipeline.down(name)
        except ServewrightError as error:  # the others are to end all the same
            failed[name] = error
            continue
        ended.append(name)
        if not as_json:
            printing.line(f"{name} ended")
    if failed and not ended and len(failed) == 1:
        raise next(iter(failed.values()))
    if as_json:
        failures = {name: str(error) for name, error in failed.items()}
        printing.as_json({"ok": not failed, "ended": ended} | ({"failed": failures} if failed else {}))
    elif not wanted:
        printing.line("no server runs")
    for name, why in failed.items():
        printing.stage(f"{name} was not ended: {why}")
    if failed:
        raise SystemExit(int(next(iter(failed.values())).exit_code))

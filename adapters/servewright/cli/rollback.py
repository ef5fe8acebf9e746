"""`servewright rollback`."""

from __future__ import annotations

import click

from servewright.cli.options import json_option


@click.command(
    "rollback",
    epilog="Examples: servewright rollback; servewright rollback digits; "
    "servewright rollback digits-20260131T120000123456-1a2b",
)
@click.argument("rollout", required=False, metavar="[ID|FLEET]")
@click.option("--timeout", default="120s", show_default=True, help="How long one step may take.")
@json_option
def command(*, rollout: str | None, timeout: str, as_json: bool) -> None:
    """Take a rollout back, finished or not: the newest, the newest of a fleet, or the one with an id."""
    from servewright.cli import rolling

    rolling.roll_back(rollout, patience_s=rolling.seconds(timeout, "--timeout"), as_json=as_json)

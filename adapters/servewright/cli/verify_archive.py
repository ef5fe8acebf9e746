"""`servewright verify-archive`."""

from __future__ import annotations

from pathlib import Path

import click

from servewright.cli import printing
from servewright.cli.options import PATH


@click.command("verify-archive", epilog="Example: servewright verify-archive model-store/*.mar --json")
@click.argument("archives", type=PATH, nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
@click.option("--strict", is_flag=True, help="Count warnings, such as pickles that run code, as failures.")
def command(*, archives: tuple[Path, ...], as_json: bool, strict: bool) -> None:
    """Prove ARCHIVES safe to unpack and complete: names, links, bombs, records, manifest, handler, weights.

    Every byte is read and none is unpacked or run. Exit 0: safe. Exit 1: not. Exit 2: no such file.
    """
    from servewright.linting import reports, walking
    from servewright.linting.finding import Severity

    result = walking.lint(archives, walking.Wishes(kind="mar"))
    if as_json:
        printing.as_json(reports.as_json(result))
    else:
        printing.line(reports.as_text(result))
    worst = result.worst()
    if worst is not None and worst.weight >= (Severity.WARNING if strict else Severity.ERROR).weight:
        raise SystemExit(1)

"""`servewright demo`."""

from __future__ import annotations

from pathlib import Path

import click

from servewright.cli import printing
from servewright.cli.options import PATH, json_option


@click.command("demo", epilog="Example: servewright demo -o digits/")
@click.option(
    "-o", "--output", type=PATH, default=Path("out/demo"), show_default=True, help="Where models and specs go."
)
@json_option
def command(*, output: Path, as_json: bool) -> None:
    """Train on handwritten digits, serve on both servers, and compare served with in-process accuracy."""
    from dataclasses import asdict

    from servewright.errors import CheckFailedError, MissingExtraError
    from servewright.reporting import Report

    try:
        from servewright.demo import journey
    except ImportError as error:
        raise MissingExtraError(str(error.name), "dev", "the demonstration") from error
    reports: list[Report] = []

    def show(report: Report) -> None:
        reports.append(report)
        if not as_json:
            printing.report(report)

    rows = list(journey.run(output, say=printing.stage, show=show))
    ok = all(report.ok for report in reports) and all(row.equal for row in rows)
    if as_json:
        printing.as_json(
            {"ok": ok, "served": [asdict(row) for row in rows], "reports": [report.as_json() for report in reports]}
        )
    else:
        printing.line()
        printing.table(
            ("server", "over", "pictures", "accuracy served", "in process", "p50 ms", "p99 ms"),
            [
                (
                    row.server, row.transport, row.pictures, f"{row.accuracy:.4f}", f"{row.accuracy_in_process:.4f}",
                    f"{row.p50_ms:.2f}", f"{row.p99_ms:.2f}",
                )
                for row in rows
            ],
        )  # fmt: skip
    if not ok:
        raise CheckFailedError("the served models are not what was trained; the lines above say where")

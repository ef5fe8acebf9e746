"""`servewright ps`."""

from __future__ import annotations

from dataclasses import asdict

import click

from servewright.cli import printing
from servewright.cli.options import json_option


@click.command("ps", epilog="Example: servewright ps --json")
@json_option
def command(*, as_json: bool) -> None:
    """List the servers that `up` started."""
    from servewright import pipeline, state

    pipeline.sweep()
    found = [(record, state.word_for(record)) for record in state.records()]
    if as_json:
        printing.as_json([asdict(record) | {"state": state_of} for record, state_of in found])
        return
    printing.table(
        ("name", "state", "backend", "runtime", "http", "grpc", "spec"),
        [
            (
                record.name, state_of, record.backend, record.runtime, record.endpoints.get("http", "-"),
                record.endpoints.get("grpc", "-"), record.spec,
            )
            for record, state_of in found
        ],
    )  # fmt: skip

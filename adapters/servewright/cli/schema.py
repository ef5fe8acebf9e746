"""`servewright schema`."""

from __future__ import annotations

import click

from servewright.cli import printing
from servewright.cli.options import json_option


@click.command("schema", epilog="Example: servewright schema > spec.schema.json")
@json_option
def command(*, as_json: bool) -> None:
    """Print the JSON Schema of the spec, for editors and other tools."""
    del as_json  # it is JSON in any case
    from servewright import registry
    from servewright.schema import spec_schema

    printing.as_json(spec_schema({name: registry.get(name) for name in registry.names()}))

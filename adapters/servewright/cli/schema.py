"""`servewright schema`."""

from __future__ import annotations

import click

from servewright.cli import printing


@click.command("schema", epilog="Example: servewright schema > spec.schema.json")
def command() -> None:
    """Print the JSON Schema of the spec, for editors and other tools."""
    from servewright import registry
    from servewright.schema import spec_schema

    printing.as_json(spec_schema({name: registry.get(name) for name in registry.names()}))

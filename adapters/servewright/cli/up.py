"""`servewright up`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from servewright.cli import printing
from servewright.cli.options import (
    backend_option,
    environment_option,
    image_option,
    json_option,
    runtime_option,
    shard_option,
    spec_argument,
    trust_option,
)


@click.command("up", epilog="Example: servewright up digits.yaml --backend torchserve && servewright ps")
@spec_argument
@backend_option
@environment_option
@shard_option
@runtime_option
@image_option
@click.option("--name", help="What to call the server (default: the spec's name).")
@click.option("--wait/--no-wait", default=True, help="Return when it serves (always so; the flag is for scripts).")
@trust_option
@json_option
def command(
    *,
    spec: Path,
    backend: str | None,
    environment: str | None,
    shard: str | None,
    runtime: str,
    image: str | None,
    name: str | None,
    wait: bool,
    trust: bool,
    as_json: bool,
) -> None:
    """Start a server for SPEC that stays, and print its addresses; `down` ends it."""
    from servewright import pipeline, serving

    del wait  # a server that is not ready would be of no use to whoever reads its addresses
    fleet, chosen = pipeline.choose(spec, backend, environment=environment, shard=shard)
    with printing.pulling() as on_pull:
        record = pipeline.up(
            fleet, chosen, spec, name=name, runtime=runtime, image=image, trust=trust, on_stage=printing.stage,
            on_pull=on_pull,
        )  # fmt: skip
    if as_json:
        # Whoever reads JSON sends requests of its own, which a server with tokens turns away without them.
        with serving.attached(record.name) as server:
            headers = server.headers
        printing.as_json({"ok": True} | asdict(record) | {"headers": headers})
        return
    printing.line(
        f"{record.name} serves ({record.backend}, {record.runtime}{', a stand-in' if record.stand_in else ''})"
    )
    for transport, address in sorted(record.endpoints.items()):
        printing.line(f"  {transport:<16}{address}")
    printing.line(f"end it with: servewright down {record.name}")

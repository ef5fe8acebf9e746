"""`servewright package`."""

from __future__ import annotations

from pathlib import Path

import click

from servewright.cli import printing
from servewright.cli.options import (
    PATH,
    backend_option,
    environment_option,
    json_option,
    shard_option,
    spec_argument,
    trust_option,
)


@click.command("package", epilog="Example: servewright package digits.yaml --backend torchserve -o dist/")
@spec_argument
@backend_option
@environment_option
@shard_option
@click.option("-o", "--output", type=PATH, required=True, help="The folder to write; an older artifact is replaced.")
@click.option(
    "--form",
    type=click.Choice(["archive", "directory"]),
    default="archive",
    show_default=True,
    help="TorchServe: .mar files to ship, or folders of hard links, made in constant time.",
)
@trust_option
@json_option
def command(
    *,
    spec: Path,
    backend: str | None,
    environment: str | None,
    shard: str | None,
    output: Path,
    form: str,
    trust: bool,
    as_json: bool,
) -> None:
    """Write configs, model store and digests of SPEC to a folder."""
    from servewright import pipeline

    fleet, chosen = pipeline.choose(spec, backend, environment=environment, shard=shard)
    printing.stage(f"package {fleet.name} for {chosen.title}")
    artifact = pipeline.package(fleet, chosen, output, packed=form == "archive", trust=trust)
    if as_json:
        printing.as_json({"ok": True, "backend": chosen.name, "folder": str(output), "digest": artifact.digest})
        return
    for path in sorted(path for path in output.rglob("*") if path.is_file()):
        printing.line(str(path))
    printing.line(f"digest {artifact.digest}")

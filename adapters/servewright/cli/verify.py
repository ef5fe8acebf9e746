"""`servewright verify`."""

from __future__ import annotations

from pathlib import Path

import click

from servewright.cli import printing
from servewright.cli.options import (
    PATH,
    backend_option,
    environment_option,
    image_option,
    require_real_option,
    runtime_option,
    shard_option,
    spec_argument,
    strict_option,
    trust_option,
)


@click.command("verify", epilog="Example: servewright verify digits.yaml --backend torchserve --json report.json")
@spec_argument
@backend_option
@environment_option
@shard_option
@runtime_option
@image_option
@click.option("-o", "--output", type=PATH, help="Keep the artifact in this folder.")
@click.option(
    "--json", "json_file", type=PATH, help="Write the report to this file; '-' prints it instead of the text."
)
@click.option("--form", type=click.Choice(["archive", "directory"]), default="archive", help="As for package.")
@click.option("--no-parity", is_flag=True, help="Do not run the original model beside the server.")
@strict_option
@require_real_option
@trust_option
def command(
    *,
    spec: Path,
    backend: str | None,
    environment: str | None,
    shard: str | None,
    runtime: str,
    image: str | None,
    output: Path | None,
    json_file: Path | None,
    form: str,
    no_parity: bool,
    strict: bool,
    require_real: bool,
    trust: bool,
) -> None:
    """Package SPEC, launch its server, check everything, stop: exit 0 only where all of it passed."""
    from servewright import pipeline

    fleet, chosen = pipeline.choose(spec, backend, environment=environment, shard=shard)
    wishes = pipeline.Wishes(
        runtime=runtime,
        image=image,
        output=output,
        packed=form == "archive",
        parity=not no_parity,
        trust=trust,
        strict=strict,
        require_real=require_real,
    )
    printed = str(json_file) == "-"
    with printing.pulling() as on_pull:
        report = pipeline.verify(
            fleet, chosen, wishes, on_stage=printing.stage, on_pull=on_pull,
            on_check=(lambda _: None) if printed else printing.check,
        )  # fmt: skip
    printing.finish(report, json_file)

"""`servewright probe`."""

from __future__ import annotations

from pathlib import Path

import click

from servewright.cli import printing
from servewright.cli.options import (
    ADDRESS,
    PATH,
    backend_option,
    environment_option,
    require_real_option,
    shard_option,
    spec_argument,
    strict_option,
    trust_option,
)


@click.command(
    "probe",
    epilog="Examples: servewright probe digits.yaml --name digits; "
    "servewright probe digits.yaml -b tfserving --grpc 127.0.0.1:8500 --http 127.0.0.1:8501",
)
@spec_argument
@backend_option
@environment_option
@shard_option
@click.option("--name", help="A server that `up` started.")
@click.option("--http", type=ADDRESS, help="Where the HTTP API listens.")
@click.option("--grpc", type=ADDRESS, help="Where the gRPC API listens.")
@click.option("--management", type=ADDRESS, help="Where TorchServe's management API listens.")
@click.option("--key-file", type=PATH, help="TorchServe's key_file.json.")
@click.option(
    "--json", "json_file", type=PATH, help="Write the report to this file; '-' prints it instead of the text."
)
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
    name: str | None,
    http: str | None,
    grpc: str | None,
    management: str | None,
    key_file: Path | None,
    json_file: Path | None,
    no_parity: bool,
    strict: bool,
    require_real: bool,
    trust: bool,
) -> None:
    """Check a running server against SPEC; it is left running."""
    from servewright import pipeline, state
    from servewright.server import RunningServer

    if name is not None and (http or grpc or management or key_file):
        raise click.UsageError("--name is a server of `up` with its own addresses and keys; leave the others out")
    record = state.running(name) if name is not None else None
    fleet, chosen = pipeline.choose(
        spec, backend or (record.backend if record else None), environment=environment, shard=shard
    )
    if record is not None:
        server = record.server()
    else:
        given = {"http": http, "grpc": grpc, "management": management}
        endpoints = {transport: address for transport, address in given.items() if address}
        if not endpoints:
            raise click.UsageError("say which server: --name, or --http and --grpc")
        if key_file is not None:
            endpoints["key_file"] = str(key_file)
        server = RunningServer(backend=chosen.name, runtime="remote", endpoints=endpoints)
    wishes = pipeline.Wishes(parity=not no_parity, trust=trust, strict=strict, require_real=require_real)
    printed = str(json_file) == "-"
    report = pipeline.probe(fleet, chosen, server, wishes, on_check=(lambda _: None) if printed else printing.check)
    printing.finish(report, json_file)

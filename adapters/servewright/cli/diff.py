"""`servewright diff`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from servewright.cli import printing
from servewright.cli.options import PATH, backend_option, environment_option, json_option, shard_option, spec_argument

if TYPE_CHECKING:
    from servewright.drift import Drift


@click.command(
    "diff",
    epilog="Examples: servewright diff digits.yaml --live digits; "
    "servewright diff fleet.yaml -b torchserve --live http://127.0.0.1:8081 --key-file key_file.json --json",
)
@spec_argument
@backend_option
@environment_option
@shard_option
@click.option(
    "--live", required=True, metavar="NAME|URL",
    help="A server that `up` started, TorchServe's management address, or TensorFlow Serving's HTTP (or grpc://).",
)  # fmt: skip
@click.option("--key-file", type=PATH, help="TorchServe's key_file.json, for its token.")
@click.option("--strict", is_flag=True, help="Count settings that cannot be read as differences.")
@json_option
def command(
    *,
    spec: Path,
    backend: str | None,
    environment: str | None,
    shard: str | None,
    live: str,
    key_file: Path | None,
    strict: bool,
    as_json: bool,
) -> None:
    """Compare SPEC with what a live server has loaded; nothing is changed.

    Exit 0: nothing that can be read differs. Exit 1: something does. Exit 4: the server cannot be asked.
    """
    from servewright import pipeline
    from servewright.rollout.live import with_management

    fleet, chosen = pipeline.choose(spec, backend, environment=environment, shard=shard)
    found = pipeline.drift(fleet, chosen, with_management(live, key_file))
    failed = bool(found.differences) or (strict and bool(found.unread))
    if as_json:
        printing.as_json({**found.as_json(), "ok": not failed})
    else:
        _print(found)
    if failed:
        raise SystemExit(1)


def _print(found: Drift) -> None:
    server = f"{found.server.name} {found.server.version}{', a stand-in' if found.server.stand_in else ''}"
    for each in found.differences:
        printing.line(f"{each.setting}: the spec says {each.wanted}, the server has {each.found} ({each.source})")
    same = len(found.readings) - len(found.differences) - len(found.unread)
    counts = f"{len(found.differences)} differ, {same} as in the spec, {len(found.unread)} cannot be read"
    printing.line(f"{server}: {counts}")

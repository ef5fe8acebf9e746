"""`servewright render`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from servewright.cli import printing
from servewright.cli.options import PATH, backend_option, environment_option, json_option, shard_option, spec_argument
from servewright.errors import CheckFailedError, ExitCode, InputError

if TYPE_CHECKING:
    from servewright.backend import Outcome


@click.command("render", epilog="Example: servewright render digits.yaml --backend tfserving -o config/")
@spec_argument
@backend_option
@click.option("-o", "--output", type=PATH, help="The folder to write to; without it the texts are printed.")
@click.option("--check", is_flag=True, help="Write nothing; exit 1 with a diff where the folder differs.")
@click.option("--explain", is_flag=True, help="Print what becomes of each key of the spec, and write nothing.")
@click.option("--models", help="Where the models lie, as the server sees it (default: as in the official image).")
@click.option("--config", help="Where the configs lie, as the server sees it.")
@environment_option
@shard_option
@json_option
def command(
    *,
    spec: Path,
    backend: str | None,
    output: Path | None,
    check: bool,
    explain: bool,
    models: str | None,
    config: str | None,
    environment: str | None,
    shard: str | None,
    as_json: bool,
) -> None:
    """Write the server's configuration files for SPEC."""
    from servewright import pipeline, placing
    from servewright.rendering import site_of

    if check and output is None:
        raise click.UsageError("--check compares with a folder; add -o FOLDER")
    fleet = pipeline.load(spec, environment=environment)
    chosen = pipeline.backend_for(fleet, backend)
    if shard is not None:
        fleet = placing.shard_of(fleet, chosen.name, shard)
    if explain:
        from servewright.rendering import outcomes

        _print_outcomes(outcomes(fleet, chosen), as_json=as_json)
        return
    texts = pipeline.render_all(fleet, chosen, site_of(fleet, chosen, models=models, config=config))
    if output is None:
        _print_texts(texts, as_json=as_json)
    elif check:
        from servewright.writing import differences

        found = differences(texts, output)
        if as_json:
            printing.as_json({"ok": not found, "differences": list(found)})
            raise SystemExit(int(ExitCode.CHECK_FAILED if found else ExitCode.OK))
        for text in found:
            printing.line(text)
        if found:
            raise CheckFailedError(
                f"{output} differs from {spec}; write it with: servewright render {spec} -o {output}"
            )
    else:
        from servewright.writing import write_texts

        written = write_texts(texts, output)
        if as_json:
            printing.as_json({"ok": True, "backend": chosen.name, "files": [str(path) for path in written]})
        else:
            for path in written:
                printing.line(str(path))


def _print_texts(texts: dict[str, str], *, as_json: bool) -> None:
    if as_json:
        printing.as_json({"ok": True, "files": texts})
        return
    for path, text in texts.items():
        printing.line(f"# {path}\n{text.rstrip()}\n")


def _print_outcomes(found: Mapping[str, Sequence[Outcome]], *, as_json: bool) -> None:
    rows = [(model, outcome) for model, each in found.items() for outcome in each]
    refused = [outcome.key for _, outcome in rows if outcome.fate == "refused"]
    if as_json:
        keys = [{"model": model} | asdict(outcome) for model, outcome in rows]
        printing.as_json({"ok": not refused, "keys": keys})
        raise SystemExit(int(ExitCode.BAD_INPUT if refused else ExitCode.OK))
    notes = ["; ".join(filter(None, (outcome.note, outcome.remedy))) for _, outcome in rows]
    printing.table(
        ("model", "key", "value", "fate", "setting", "note"),
        [
            (model, each.key, each.value, each.fate, each.setting, note)
            for (model, each), note in zip(rows, notes, strict=True)
        ],
    )
    if refused:
        raise InputError(f"refused: {', '.join(refused)}; see the notes above")

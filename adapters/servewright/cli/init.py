"""`servewright init`."""

from __future__ import annotations

from pathlib import Path

import click

from servewright.cli import printing
from servewright.cli.options import PATH, json_option, trust_option


@click.command(
    "init",
    epilog="Examples: servewright init saved_model/ -o digits.yaml; "
    "servewright init model.pt saved_model/ --example in.npz --name digits -o digits.yaml",
)
@click.argument("models", nargs=-1, required=True, type=PATH)
@click.option("-o", "--output", type=PATH, help="The spec file to write (default: print it).")
@click.option("--name", help="The model's name (default: after its file).")
@click.option("--example", type=PATH, help="An .npz with inputs by name, for files that do not tell their shapes.")
@click.option("--code", help="For a state_dict: the file and class of the network, such as net.py:Net.")
@click.option("--format", "model_format", help="The model's format, where its content does not tell.")
@click.option("--force", is_flag=True, help="Replace a spec that is there.")
@trust_option
@json_option
def command(
    *,
    models: tuple[Path, ...],
    output: Path | None,
    name: str | None,
    example: Path | None,
    code: str | None,
    model_format: str | None,
    force: bool,
    trust: bool,
    as_json: bool,
) -> None:
    """Write a spec by looking into MODELS: one model, or the same network once for each server."""
    from servewright import pipeline
    from servewright.errors import InputError

    if output is not None and output.exists() and not force:
        raise InputError(f"{output} is there already; replace it with --force, or choose another -o")
    folder = output.absolute().parent if output else Path.cwd()
    text, notes = pipeline.initial(
        models, name=name, folder=folder, example=example, code=code, format=model_format, trust=trust
    )
    if output is not None:
        from servewright.writing import write_texts

        write_texts({output.name: text}, folder)
    for note in notes:
        printing.stage(note)
    if as_json:
        printing.as_json({"ok": True, "output": str(output) if output else None, "spec": text, "notes": notes})
    elif output is None:
        printing.line(text.rstrip("\n"))
    else:
        printing.line(f"{output} written; next: servewright verify {output}")

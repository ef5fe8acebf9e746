"""`servewright import`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from servewright.cli import printing
from servewright.cli.options import PATH, backend_option, json_option
from servewright.errors import InputError

if TYPE_CHECKING:
    from servewright.importing import Imported


@click.command(
    "import",
    epilog="Examples: servewright import serving/ -o fleet/; "
    "servewright import --live http://127.0.0.1:8081 -b torchserve -o fleet/; "
    "servewright import --live http://host:8501 --config models.config -o fleet/",
)
@click.argument("paths", type=PATH, nargs=-1)
@click.option("-o", "--output", type=PATH, required=True, help="The folder to write the fleet file and the specs to.")
@click.option(
    "--live",
    metavar="NAME|URL",
    help="A running server: TorchServe's management address, or TensorFlow Serving's HTTP.",
)
@click.option(
    "--config", "configs", type=PATH, multiple=True, help="The config of the live server, where it tells none."
)
@click.option("--key-file", type=PATH, help="TorchServe's key_file.json, for its token.")
@click.option("--name", default="imported", show_default=True, help="What to call the fleet.")
@backend_option
@json_option
def command(
    *,
    paths: tuple[Path, ...],
    output: Path,
    live: str | None,
    configs: tuple[Path, ...],
    key_file: Path | None,
    name: str,
    backend: str | None,
    as_json: bool,
) -> None:
    """Make a fleet file and specs of the configs in PATHS, and of what a running server tells.

    What is written renders back to the same meaning: that is proved before it is written.
    """
    from servewright import pipeline
    from servewright.rollout.live import with_management
    from servewright.writing import write_texts

    every = (*paths, *configs)
    if not every and live is None:
        raise click.UsageError("name files or folders to import, or --live")
    there = with_management(live, key_file) if live is not None else None
    found = pipeline.import_configs(every, name=name, live=there, backend=backend)
    folders = {each.backend: output / each.backend if len(found) > 1 else output for each in found}
    taken = next(
        (path for each in found for file in each.texts if (path := folders[each.backend] / file).exists()), None
    )
    if taken is not None:
        raise InputError(f"{taken} is there already; choose another folder")
    written = {each.backend: write_texts(each.texts, folders[each.backend]) for each in found}
    if as_json:
        printing.as_json({"ok": True, "fleets": [_values(each, written[each.backend]) for each in found]})
        return
    for each in found:
        for path in written[each.backend][-1:]:
            printing.line(f"{path}: {len(each.models)} model{'s' * (len(each.models) != 1)} for {each.backend}")
        for note in each.notes:
            printing.line(f"note: {note}")
        printing.line(f"next: servewright render {folders[each.backend] / 'fleet.yaml'} -b {each.backend}")


def _values(found: Imported, written: list[Path]) -> dict[str, object]:
    return {
        "backend": found.backend, "models": list(found.models), "notes": list(found.notes),
        "files": [str(path) for path in written],
    }  # fmt: skip

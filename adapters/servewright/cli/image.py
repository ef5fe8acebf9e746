"""`servewright image`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import click

from servewright.cli import printing
from servewright.cli.options import (
    PATH,
    backend_option,
    environment_option,
    json_option,
    shard_option,
    trust_option,
)

# An image's name as Docker's reference grammar has it, with a registry and a tag where wanted.
_WORD: Final = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_HOST: Final = r"(?:[A-Za-z0-9.-]+(?::[0-9]+)?/)?"
_NAME: Final = re.compile(rf"{_HOST}{_WORD}(?:/{_WORD})*(?::[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}})?")


@click.command(
    "image",
    epilog="Examples: servewright image digits.yaml -b torchserve -t digits:3; "
    "servewright image -b torchserve -t torchserve:0.12 --base python:3.11-slim@sha256:...; "
    "servewright image digits.yaml -b tfserving --dockerfile-only -o context/; "
    "servewright image fleet.yaml -b tfserving --env prod --shard east -t east:3",
)
@click.argument("spec", type=PATH, required=False)
@backend_option
@environment_option
@shard_option
@click.option("-t", "--tag", help="What to call the image.")
@click.option("--base", help="An image that has Python 3.11 with venv, best by digest (default: Python's slim image).")
@click.option("--wheelhouse", type=PATH, help="Install from this folder of wheels, and from no index.")
@click.option("--mount", "mounted", is_flag=True, help="Leave the models out: they are mounted later.")
@click.option("--dockerfile-only", is_flag=True, help="Write the Dockerfile and what it copies to -o; build nothing.")
@click.option("-o", "--output", type=PATH, help="The folder for --dockerfile-only.")
@click.option("--requirements", is_flag=True, help="Print what pip would install, to fill a wheelhouse.")
@trust_option
@json_option
def command(
    *,
    spec: Path | None,
    backend: str | None,
    environment: str | None,
    shard: str | None,
    tag: str | None,
    base: str | None,
    wheelhouse: Path | None,
    mounted: bool,
    dockerfile_only: bool,
    output: Path | None,
    requirements: bool,
    trust: bool,
    as_json: bool,
) -> None:
    """Build an image that serves SPEC, or one of a server for any models."""
    from servewright import images, pipeline, registry

    if spec is None and backend is None:
        raise click.UsageError("name a spec, or a server with --backend")
    if spec is None and (environment or shard):
        raise click.UsageError("--env and --shard choose from a fleet file; name it")
    fleet = None
    if spec is None:
        chosen = registry.get(str(backend))
    else:
        fleet, chosen = pipeline.choose(spec, backend, environment=environment, shard=shard)
    recipe = images.recipe_of(chosen, fleet)  # what cannot be in an image is refused before a model is packaged
    if requirements:
        for line in recipe.requirements:
            printing.line(line)
        return
    if dockerfile_only == (tag is not None) or dockerfile_only != (output is not None):
        raise click.UsageError("say --tag to build, or --dockerfile-only with --output to write what is built from")
    if tag is not None and not _NAME.fullmatch(tag):
        raise click.UsageError(f"--tag {tag} is no image's name; write small letters and digits, such as digits:3")
    wishes = pipeline.ImageWishes(base=base, wheelhouse=wheelhouse, mounted=mounted, trust=trust)
    made, notes = pipeline.image(fleet, chosen, wishes, tag=tag, folder=output, on_stage=printing.stage)
    if as_json:
        printing.as_json({"ok": True} | made | {"notes": list(notes)})
        return
    for note in notes:
        printing.line(f"note {note}")
    for name, value in made.items():
        printing.line(f"{name} {value}")

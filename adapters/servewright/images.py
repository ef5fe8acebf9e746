"""Images: a server, and models if wanted, become a build context; an engine makes an image of it.

Everything in a context has the same dates, modes and order wherever it is made, so that an engine can reuse layers.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import servewright
from servewright import engine, staging
from servewright.archive_check import refuse_unsafe
from servewright.assets import asset_dir
from servewright.backend import Artifact, Backend, Recipe
from servewright.engine import Engine, Image
from servewright.errors import InputError, LaunchError
from servewright.fleet import Fleet

# Debian's Python has the same version in the build as at run time: both stages start from the same base.
DEFAULT_BASE = "python:3.11-slim-bookworm"
USER = "1000:1000"
SBOM = "/opt/servewright/sbom.cdx.json"
_PINNED = re.compile(r"@sha256:[0-9a-f]{64}$")
_BUILD_ARGUMENTS = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL")


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """A build context: the text of the Dockerfile, and files and folders by their path beside it."""

    dockerfile: str
    content: Mapping[str, Path | bytes]
    notes: tuple[str, ...] = ()


def context(
    backend: Backend,
    *,
    fleet: Fleet | None = None,
    artifact: Artifact | None = None,
    base: str = DEFAULT_BASE,
    wheelhouse: Path | None = None,
) -> Context:
    """Return what an image of ``backend`` is built from, with the models of ``artifact`` or for mounted ones.

    ``wheelhouse`` is a folder of wheels; without one pip asks its index.
    """
    if wheelhouse is not None and not any(wheelhouse.glob("*.whl")):
        raise InputError(
            f"{wheelhouse} holds no wheels; fill it: pip wheel --wheel-dir {wheelhouse} -r requirements.txt"
        )
    recipe = recipe_of(backend, fleet)
    content: dict[str, Path | bytes] = {f"server/{name}": text for name, text in recipe.files.items()}
    for name in ("sbom.py", "entrypoint.py"):
        content[f"server/{name}"] = asset_dir("templates") / "image" / name
    if recipe.own_code:
        content["server/servewright"] = Path(servewright.__file__).parent
    content["packages/requirements.txt"] = "".join(f"{line}\n" for line in recipe.requirements).encode()
    if wheelhouse is not None:
        content["packages/wheelhouse"] = wheelhouse
    settled = _settled(backend, fleet) if fleet else {}
    if artifact is not None:
        refuse_unsafe(artifact.models)
        content |= {"artifact/models": artifact.models, "artifact/config": artifact.config}
        content |= {f"artifact/config/{path}": text.encode() for path, text in settled.items()}
    return Context(
        dockerfile=_dockerfile(backend, recipe, fleet, artifact, base=base, wheelhouse=wheelhouse is not None),
        content=content,
        notes=tuple(_notes(recipe, settled, base=base, baked=artifact is not None)),
    )


def _notes(recipe: Recipe, settled: Mapping[str, str], *, base: str, baked: bool) -> Iterator[str]:
    if not _PINNED.search(base):
        yield f"base {base} is not pinned by a digest: a rebuild may take another"
    if loose := [line for line in recipe.requirements if not re.match(r"-|[^;]*(==|@)", line)]:
        yield f"{', '.join(loose)}: not pinned with ==, a rebuild may take others"
    if settled and not baked:
        yield (
            f"the models' requirements are in the image, and a {' or '.join(settled)} that `package` wrote still has "
            "the server install them at each start, from the network: see docs/docker.md for one that does not"
        )


def _settled(backend: Backend, fleet: Fleet) -> dict[str, str]:
    """Return the server's own configs that differ where the models' requirements are in the image already.

    The server would install them again at each start, from the network, which a container may not have.
    """
    from servewright.rendering import render

    if not any(document.spec.requirements for document in fleet.models):
        return {}
    models = tuple(
        replace(document, spec=document.spec.model_copy(update={"requirements": None})) for document in fleet.models
    )
    before, after = (render(each, backend) for each in (fleet, replace(fleet, models=models)))
    # What lies in a folder is a copy of a model's own: its archive goes into the image as it is.
    return {path: text for path, text in after.items() if "/" not in path and text != before.get(path)}


def recipe_of(backend: Backend, fleet: Fleet | None) -> Recipe:
    """Return what an image of ``backend`` is made of."""
    from servewright.rendering import check

    if backend.recipe is None:
        raise InputError(f"servewright has no recipe for an image of {backend.title}; use the official one")
    if fleet is not None:
        check(fleet, backend)
    return backend.recipe(fleet, backend.home)


def _dockerfile(
    backend: Backend, recipe: Recipe, fleet: Fleet | None, artifact: Artifact | None, *, base: str, wheelhouse: bool
) -> str:
    from servewright.rendering import template_environment

    home = backend.home
    # A user that the base does not know has no name and no home, and Python's libraries ask for both.
    environment = {"HOME": home.run, "USER": "model-server", "LOGNAME": "model-server"} | dict(recipe.environment)
    if recipe.own_code:
        environment["PYTHONPATH"] = "/opt/servewright"
    template = template_environment(asset_dir("templates") / "image").get_template("Dockerfile.j2")
    return template.render(
        title=recipe.title,
        tool_version=servewright.__version__,
        base=_one_word(base, "the base"),
        wheelhouse=wheelhouse,
        steps=recipe.steps,
        uncompiled="/site-packages/(" + "|".join(recipe.uncompiled or ("pip",)) + ")/",
        models=home.models,
        config=home.config,
        run=home.run,
        folders=[f"{home.run}/{folder}" for folder in recipe.folders]
        + ([] if artifact else [home.models, home.config]),
        user=USER,
        baked=artifact is not None,
        environment=_quoted(environment),
        labels=_quoted(_labels(recipe, fleet, artifact, base)),
        ports=sorted(home.ports.values()),
        command=json.dumps(list(recipe.argv)),
    )


def _labels(recipe: Recipe, fleet: Fleet | None, artifact: Artifact | None, base: str) -> dict[str, str]:
    found = {
        "org.opencontainers.image.title": f"{fleet.name} on {recipe.title}" if fleet else recipe.title,
        "org.opencontainers.image.base.name": base.partition("@")[0],
        "servewright.tool": servewright.__version__,
        "servewright.sbom": SBOM,
    }
    if digest := base.partition("@")[2]:
        found["org.opencontainers.image.base.digest"] = digest
    if fleet:
        found["servewright.spec"] = fleet.digest
        versions = {str(document.spec.version) for document in fleet.models}
        if len(versions) == 1:
            found["org.opencontainers.image.version"] = versions.pop()
    if artifact:
        found["servewright.artifact"] = artifact.digest
    return found


def _quoted(values: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return ``values`` in order, each as a string of a Dockerfile, in which nothing is expanded."""
    found = []
    for name, value in sorted(values.items()):
        if not value.isprintable():
            raise InputError(f"{name}: {value!r} cannot be written into a Dockerfile; remove what is not printable")
        found.append((name, '"' + re.sub(r'(["\\$])', r"\\\1", value) + '"'))
    return found


def _one_word(text: str, what: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:/@-]*", text):
        raise InputError(f"{what} {text!r} is no image name; write NAME:TAG or NAME@sha256:DIGEST")
    return text


def write(found: Context, folder: Path) -> None:
    """Write the context to ``folder``, for those who build elsewhere; whole, or not at all."""
    with staging.writing(folder):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder} is there and not an empty folder; choose another one")
    with staging.staged_directory(folder) as part, staging.writing(folder):
        part.chmod(0o755)
        for path, source in [("Dockerfile", found.dockerfile.encode()), *_files(found)]:
            target = part / path
            _make_folder(target.parent)
            if isinstance(source, bytes):
                target.write_bytes(source)
            else:
                shutil.copyfile(source, target)
            target.chmod(0o644)


def _make_folder(folder: Path) -> None:
    """Make ``folder`` where it is not there: the image copies its mode, and is run by another user."""
    if not folder.exists():
        _make_folder(folder.parent)
        folder.mkdir()
        folder.chmod(0o755)


def build(where: Engine, found: Context, tag: str, *, on_line: Callable[[str], None]) -> Image:
    """Build ``found`` into an image called ``tag``."""
    _one_word(tag, "the tag")
    arguments = {name: value for name in _BUILD_ARGUMENTS if (value := os.environ.get(name))}
    with tempfile.TemporaryFile(prefix="servewright-context-") as file:
        _write_tar(found, file)
        file.seek(0)
        doing = f"build {tag}"
        with engine.translated(doing):
            events = where.api.build(
                fileobj=file, custom_context=True, tag=tag, rm=True, forcerm=True, decode=True, buildargs=arguments
            )
            _follow(events, doing, on_line)
    image = engine.local_image(where, tag)
    assert image is not None  # the engine has just made it
    return image


def _follow(events: Iterator[dict[str, Any]], doing: str, on_line: Callable[[str], None]) -> None:
    said: list[str] = []
    for event in events:
        for line in str(event.get("stream", "")).splitlines():
            if line.strip():
                said.append(line)
                on_line(line)
        if "error" in event:
            raise LaunchError(f"{doing}: {event['error'].strip()}", log_tail=said[-30:])


def _files(found: Context) -> Iterator[tuple[str, Path | bytes]]:
    """Yield every file of a context by its path, in order; one that is named itself is not taken from its folder."""
    for path, source in sorted(found.content.items()):
        if isinstance(source, bytes) or source.is_file():
            yield path, source
            continue
        for each in sorted(source.rglob("*")):
            inside = f"{path}/{each.relative_to(source).as_posix()}"
            if each.is_file() and "__pycache__" not in each.parts and inside not in found.content:
                yield inside, each


def _write_tar(found: Context, file: IO[bytes]) -> None:
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for path, source in [("Dockerfile", found.dockerfile.encode()), *_files(found)]:
            entry = tarfile.TarInfo(path)
            entry.mode = 0o644
            if isinstance(source, bytes):
                entry.size = len(source)
                tar.addfile(entry, io.BytesIO(source))
            else:
                entry.size = source.stat().st_size
                with source.open("rb") as content:
                    tar.addfile(entry, content)

"""Rendering: a fleet and a backend become texts. Pure: the disk is read for templates only.

Every text is parsed back with its true grammar and must mean what was meant, so no string in a spec can add a line.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from servewright import garbage
from servewright.backend import Backend, Fate, Outcome, Site
from servewright.errors import InputError, ServewrightError, SpecError
from servewright.fleet import Fleet

if TYPE_CHECKING:
    from jinja2 import Environment


class ParseBackError(ServewrightError):
    """A rendered text does not mean what was meant: a bug in a template, never the user's fault."""


def outcomes(fleet: Fleet, backend: Backend) -> dict[str, tuple[Outcome, ...]]:
    """Return what becomes of every key on ``backend``, by model, refusals included."""
    return {document.spec.name: tuple(backend.explain(document, fleet.server)) for document in fleet.models}


def check(fleet: Fleet, backend: Backend) -> None:
    """Raise a `SpecError` that names every key that ``backend`` refuses."""
    found = outcomes(fleet, backend)
    problems = [
        document.problem(outcome.key, outcome.note, outcome.remedy)
        for document in fleet.models
        for outcome in found[document.spec.name]
        if outcome.fate is Fate.REFUSED
    ]
    if problems:
        raise SpecError(problems)


def render(fleet: Fleet, backend: Backend, site: Site | None = None) -> dict[str, str]:
    """Return the text of every file that ``backend`` needs, by its path; same fleet, same bytes."""
    with garbage.collected_seldom():
        check(fleet, backend)
        return _rendered(fleet, backend, site or site_of(fleet, backend))


def _rendered(fleet: Fleet, backend: Backend, site: Site) -> dict[str, str]:
    environment = template_environment(backend.templates, tuple(sorted(backend.filters.items())))
    texts: dict[str, str] = {}
    parsed: dict[tuple[str, str], object] = {}  # models of one fleet have many a text in common
    for path, view in sorted(backend.views(fleet, site).items()):
        text = environment.get_template(view.template).render(view.values)
        known = path.rpartition("/")[2], text
        found = parsed[known] if known in parsed else parsed.setdefault(known, backend.parse(path, text))
        if found != view.meaning:
            raise ParseBackError(f"{path}: rendered text means {found!r}, not {view.meaning!r}; please report this")
        texts[path] = text
    return texts


def site_of(fleet: Fleet, backend: Backend, *, models: str | None = None, config: str | None = None) -> Site:
    """Return where the server of ``fleet`` lives in its usual container, but for what the fleet or the caller says."""
    home = backend.home
    for folder, form in ((models, r"/|[a-z0-9]+://."), (config, "/")):
        if folder is not None and not (re.match(form, folder) and folder.isprintable()):
            reason = f"{folder!r} is not an absolute path"
            raise InputError(f"{reason}; write it as the server sees it, such as {home.models}")
    ports = {name: port for name, port in fleet.server.ports.model_dump().items() if port is not None}
    return replace(home, models=models or home.models, config=config or home.config, ports={**home.ports, **ports})


@lru_cache(maxsize=8)
def template_environment(templates: Path, filters: tuple[tuple[str, Callable[..., str]], ...] = ()) -> Environment:
    """Return what renders the templates of a folder: a name that a view lacks is an error, and nothing is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    if not templates.is_dir():
        raise InputError(f"{templates} holds no templates; reinstall servewright")
    environment = Environment(
        loader=FileSystemLoader(templates),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701  (pbtxt, properties and YAML files, not HTML)
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(filters)
    return environment

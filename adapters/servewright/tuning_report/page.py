"""The report as one page: everything in it, nothing fetched, and nothing of the study can run.

What comes from the study is escaped by the templates. A policy in the page lets a browser apply the page's own style
and run its own script, known by their digests, and load nothing at all.
"""

from __future__ import annotations

import base64
import hashlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from servewright.assets import asset_dir
from servewright.rendering import template_environment
from servewright.tuning.study import Study
from servewright.tuning_report.charts import SHAPES, drawn
from servewright.tuning_report.findings import found

if TYPE_CHECKING:
    from jinja2 import Environment


def html(study: Study) -> str:
    """Return the page about ``study``; same study, same bytes."""
    folder = asset_dir("templates") / "report"
    style, script = (_Own((folder / name).read_text(encoding="utf-8")) for name in ("style.css", "script.js"))
    policy = (
        f"default-src 'none'; style-src {_digest(style.text)}; script-src {_digest(script.text)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        _environment(folder)
        .get_template("page.html.j2")
        .render(
            found=found(study), charts=drawn(study), shapes=SHAPES, style=style, script=script, policy=policy,
        )
    )  # fmt: skip


@lru_cache(maxsize=1)
def _environment(folder: Path) -> Environment:
    """Return what renders the page: every value is escaped, as HTML asks for."""
    return template_environment(folder, (("diffed", _diffed),)).overlay(autoescape=True)


class _Own:
    """A text of our own, which is not escaped: Jinja asks for this one method."""

    def __init__(self, text: str) -> None:
        self.text = text.replace("\r\n", "\n")

    def __html__(self) -> str:
        return self.text


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _diffed(line: str) -> str:
    """Return what kind of line of a unified diff this is."""
    if line.startswith(("---", "+++", "@@")):
        return "place"
    return {"+": "added", "-": "removed"}.get(line[:1], "kept-line")

"""`servewright report`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from servewright.cli import printing
from servewright.cli.options import PATH, json_option

if TYPE_CHECKING:
    from servewright.tuning.study import Study

_PAGE: Final = "report.html"


@click.command(
    "report",
    epilog="Examples: servewright report study/; servewright report study/ --format markdown -o report.md; "
    "servewright report study/study.json --format terminal",
)
@click.argument("study", type=PATH)
@click.option(
    "--format", "style", type=click.Choice(["html", "terminal", "markdown"]), default="html", show_default=True,
    help="A page for a browser, a text for this terminal, or Markdown.",
)  # fmt: skip
@click.option("-o", "--output", type=PATH, help="The file to write; - prints (default: report.html beside the study).")
@json_option
def command(*, study: Path, style: str, output: Path | None, as_json: bool) -> None:
    """Write what a tuning study found: one page that needs no network, or a text.

    STUDY: the folder that `servewright tune` wrote, or its study.json.
    """
    from servewright.tuning import study as studies

    found = studies.load(study)
    text = _text(found, style)
    target = output
    if target is None and style == "html":
        target = (study if study.is_dir() else study.parent) / _PAGE
    printed = target is None or str(target) == "-"
    if target is not None and not printed:
        from servewright.writing import write_texts

        write_texts({target.name: text}, target.parent)
    if as_json:
        printing.as_json(
            {"ok": True, "file": None if printed else str(target), "format": style, "state": found.state,
             "conclusion": found.conclusion, "stand_in": found.server.stand_in}
            | ({"text": text} if printed else {})
        )  # fmt: skip
    else:
        printing.line(text.rstrip("\n") if printed else str(target))


def _text(found: Study, style: str) -> str:
    from servewright.tuning_report import page, texts

    if style == "html":
        return page.html(found)
    if style == "markdown":
        return texts.markdown(found)
    return texts.terminal(found, width=min(shutil.get_terminal_size((100, 24)).columns, 120))

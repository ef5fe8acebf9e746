"""The report as text: for a terminal, and in Markdown. What comes from the study cannot leave its place in either."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator
from typing import Final

from servewright.tuning.study import Study
from servewright.tuning_report.findings import Findings, Section, Table, found
from servewright.tuning_report.numerals import bare

_BAR: Final = 28
_PARTS: Final = " ▏▎▍▌▋▊▉█"


def terminal(study: Study, width: int = 100) -> str:
    """Return the report for a terminal of ``width`` columns; tables may be wider."""
    said = found(study)
    lines = [_visible(said.title), ""]
    for mark, text in _head(said):
        lines += _wrapped(f"{mark}{text}", width)
    lines.append("")
    figures = [(figure.value, figure.what) for figure in said.figures]
    widest = max((len(value) for value, _ in figures), default=0)
    lines += [f"  {value:>{widest}}  {what}" for value, what in figures]
    for section in said.sections:
        lines += ["", _visible(section.title), "-" * len(section.title)]
        for text in section.says:
            lines += _wrapped(text, width)
        if section.key == "tried":
            lines += _bars(study)
        for patch in section.patches:
            lines += ["", _visible(patch.title)]
            lines += ["  " + _visible(line) for line in patch.text.splitlines()]
        for table in section.tables:
            lines += ["", *_aligned(table)]
    return "\n".join(line.rstrip() for line in (*lines, "", _visible(said.made))) + "\n"


def markdown(study: Study) -> str:
    """Return the report in Markdown, with the tables that GitHub and most others know."""
    said = found(study)
    lines = [f"# {_inline(said.title)}", ""]
    for mark, text in _head(said):
        lines += [f"> **{mark.removesuffix(': ')}**: {_inline(text)}" if mark else _inline(text), ""]
    lines += [f"- **{_inline(figure.value)}** {_inline(figure.what)}" for figure in said.figures]
    for section in said.sections:
        lines += ["", f"## {_inline(section.title)}", *_in_markdown(section)]
    return "\n".join((*lines, "", _inline(said.made))) + "\n"


def _head(said: Findings) -> Iterator[tuple[str, str]]:
    if said.stand_in:
        yield "STAND-IN: ", said.stand_in
    if said.ended:
        yield "NOTE: ", said.ended
    yield "", f"{said.verdict}."
    if said.conclusion:
        yield "", said.conclusion
    for note in said.notes:
        yield "NOTE: ", note


def _in_markdown(section: Section) -> Iterator[str]:
    for text in section.says:
        yield from ("", _inline(text))
    for patch in section.patches:
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", patch.text)), default=0))
        content = [_visible(line) for line in patch.text.splitlines()]
        yield from ("", f"**{_inline(patch.title)}**", "", f"{fence}diff", *content, fence)
    for table in section.tables:
        yield from ("", f"**{_inline(table.title)}**", "", _row(table.columns))
        yield _row("--:" if place in table.figures else "---" for place in range(len(table.columns)))
        yield from map(_row, table.rows)


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell if set(cell) <= set("-:") and cell else _inline(cell) for cell in cells) + " |"


def _inline(text: str) -> str:
    """Return a text that Markdown shows as it is: no markup, no HTML, no cell that ends early."""
    return re.sub(r"([\\`*_\[\]<>|~#!&])", r"\\\1", _visible(text))


def _visible(text: str) -> str:
    """Return ``text`` in one line, with escapes for what a terminal would obey instead of showing it."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape", "surrogatepass").decode() for each in text
    )


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(_visible(text), max(width, 20), break_long_words=False, break_on_hyphens=False) or [""]


def _aligned(table: Table) -> Iterator[str]:
    rows = [[_visible(cell) for cell in row] for row in (table.columns, *table.rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = zip(range(len(row)), row, widths, strict=True)
        yield "  ".join(
            cell.rjust(width) if place in table.figures else cell.ljust(width) for place, cell, width in cells
        )


def _bars(study: Study) -> Iterator[str]:
    """Yield a bar for each measurement, as long as what is maximised (the rate) or minimised (p99) is large."""
    by_rate = study.goal.maximise == "rate"
    values = [each.rate if by_rate else each.p99_ms or 0.0 for each in study.measurements]
    most = max(values, default=0.0)
    if most <= 0:
        return
    unit = "/s" if by_rate else " ms"
    shown = [f"{bare(value)}{unit}" for value in values]
    widest = max(map(len, shown))
    yield ""
    for each, value, text in zip(study.measurements, values, shown, strict=True):
        eighths = round(value / most * _BAR * 8)
        bar = "█" * (eighths // 8) + _PARTS[eighths % 8].strip()
        verdict = "unsafe" if each.unsafe else "breaks a promise" if each.broken else ""
        yield f"  {each.index:>4}  {'' if each.unsafe else text:>{widest}}  {bar:<{_BAR}}  {verdict}"

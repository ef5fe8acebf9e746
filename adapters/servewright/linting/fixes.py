"""Safe changes applied to a text: each once, none over another."""

from __future__ import annotations

from collections.abc import Iterable

from servewright.linting.finding import Edit, Finding


def fixed(text: str, findings: Iterable[Finding]) -> tuple[str, int]:
    """Return ``text`` with the edits of ``findings`` made, and how many; of two that overlap, the first."""
    edits: list[Edit] = sorted(
        {(edit.start, edit.end, edit.text): edit for finding in findings if (edit := finding.edit)}.values(),
        key=lambda edit: (edit.start, edit.end),
    )
    parts, at, count = [], 0, 0
    for edit in edits:
        if edit.start < at:
            continue
        parts += [text[at : edit.start], edit.text]
        at, count = edit.end, count + 1
    return "".join(parts) + text[at:], count

"""Comments that silence findings: ``# servewright: ignore=TFS012`` on a line or above it, or for a whole file."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator

from servewright.linting.finding import Finding, Severity
from servewright.linting.rule import Rule
from servewright.linting.sources import Source

_COMMENT = re.compile(r"[#!][ \t]*servewright:[ \t]*(ignore-file|ignore)(?:[ \t]*=[ \t]*([A-Za-z0-9, \t]+))?")

UNKNOWN = Rule(
    id="GEN002",
    severity=Severity.WARNING,
    title="A suppression names a rule that does not exist",
    happens="the comment silences nothing",
    do="correct the id; they are listed by: servewright lint --rules",
    reference="docs/lint.md",
)


def apply(source: Source, findings: Iterable[Finding], known: Collection[str]) -> Iterator[Finding]:
    """Yield the findings that no comment of ``source`` silences, and a complaint for each unknown id in one."""
    whole: set[str] = set()
    lines: dict[int, set[str]] = {}
    for found in _COMMENT.finditer(source.text):
        ids = {part.strip().upper() for part in (found[2] or "*").split(",") if part.strip()}
        line, column = source.place(found.start())
        for wrong in sorted(ids - set(known) - {"*"}):
            yield UNKNOWN.on(source.name, line, column, f"there is no rule {wrong}")
        if found[1] == "ignore-file":
            whole |= ids
        else:
            alone = not source.line(line)[: column - 1].strip()
            lines.setdefault(line + 1 if alone else line, set()).update(ids)
    for finding in findings:
        silenced = whole | lines.get(finding.line, set())
        if finding.rule not in silenced and "*" not in silenced:
            yield finding

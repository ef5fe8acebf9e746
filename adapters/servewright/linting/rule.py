"""Rules: what is looked for, how bad it is, what happens and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from servewright.linting.finding import Edit, Finding, Severity
from servewright.linting.sources import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A rule with an id that never changes; ``happens`` and ``do`` are one sentence each."""

    id: str
    severity: Severity
    title: str
    happens: str
    do: str
    reference: str = ""

    def at(
        self,
        source: Source,
        offset: int,
        what: str = "",
        *,
        remedy: str = "",
        edit: Edit | None = None,
    ) -> Finding:
        """Return a finding of this rule at the character ``offset`` of ``source``."""
        line, column = source.place(offset)
        return self.on(source.name, line, column, what, remedy=remedy, edit=edit)

    def on(
        self, file: str, line: int, column: int, what: str = "", *, remedy: str = "", edit: Edit | None = None
    ) -> Finding:
        """Return a finding of this rule at a line and a column, both counted from 1."""
        return Finding(
            rule=self.id,
            severity=self.severity,
            file=file,
            line=line,
            column=column,
            what=f"{what}: {self.happens}" if what else self.happens,
            remedy=remedy or self.do,
            reference=self.reference,
            edit=edit,
        )


def by_id(rules: Iterable[Rule]) -> Mapping[str, Rule]:
    """Return the rules by their ids, sorted; two of one id are a mistake of ours."""
    found: dict[str, Rule] = {}
    for rule in rules:
        assert rule.id not in found, rule.id
        found[rule.id] = rule
    return dict(sorted(found.items()))

"""What a linter finds: a place, what happens there, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How bad a finding is."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"

    @property
    def weight(self) -> int:
        """A number that is larger for what is worse."""
        return {"note": 0, "warning": 1, "error": 2}[self.value]


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """A safe change of a text: the characters from ``start`` to ``end`` become ``text``."""

    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong: ``line`` and ``column`` count from 1; ``edit`` is given where a fix is safe."""

    rule: str
    severity: Severity
    file: str
    line: int
    column: int
    what: str
    remedy: str
    reference: str = ""
    edit: Edit | None = None

    @property
    def order(self) -> tuple[str, int, int, str]:
        """The order in which findings are told."""
        return self.file, self.line, self.column, self.rule

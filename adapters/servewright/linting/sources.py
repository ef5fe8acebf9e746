"""A text that is linted, and the places in it."""

from __future__ import annotations

import bisect
import re
from dataclasses import dataclass, field
from pathlib import Path

MAX_BYTES = 32 << 20
_BREAK = re.compile(r"\r\n|\r|\n")


@dataclass(frozen=True, slots=True)
class Source:
    """A text with the name that it is shown under; ``path`` is where it lies, or the archive that holds it."""

    name: str
    path: Path
    text: str
    _starts: list[int] = field(default_factory=list, compare=False, repr=False)

    @property
    def filename(self) -> str:
        """The last part of the name."""
        return self.name.replace("\\", "/").rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The end of the name, in small letters, with its dot."""
        return Path(self.filename).suffix.lower()

    @property
    def lines(self) -> int:
        """How many lines there are; an end of line at the end begins another, empty one."""
        return len(self._line_starts())

    def place(self, offset: int) -> tuple[int, int]:
        """Return the line and the column, counted from 1, of a character."""
        starts = self._line_starts()
        line = bisect.bisect_right(starts, offset) - 1
        return line + 1, offset - starts[line] + 1

    def offset(self, line: int, column: int = 1) -> int:
        """Return the character at a line and a column."""
        starts = self._line_starts()
        return min(starts[min(line, len(starts)) - 1] + column - 1, len(self.text))

    def line(self, number: int) -> str:
        """Return one line without its end; empty where there is none."""
        starts = self._line_starts()
        if not 1 <= number <= len(starts):
            return ""
        end = starts[number] if number < len(starts) else len(self.text)
        return self.text[starts[number - 1] : end].rstrip("\r\n")

    def _line_starts(self) -> list[int]:
        if not self._starts:
            self._starts.append(0)
            self._starts.extend(found.end() for found in _BREAK.finditer(self.text))
        return self._starts


def excerpt(source: Source, line: int, column: int, *, width: int = 100) -> list[str]:
    """Return the line and a mark below the column, cut to ``width`` where the line is long."""
    text = source.line(line).replace("\t", " ")
    start = max(0, column - 1 - width // 2) if len(text) > width else 0
    shown = "".join(char if char.isprintable() else "?" for char in text[start : start + width])
    return [f"{line:>5} | {shown}", " " * 5 + " | " + " " * (column - 1 - start) + "^"]

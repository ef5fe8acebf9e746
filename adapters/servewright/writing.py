"""Rendered texts on disk: written whole, or compared with what is there."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path

from servewright.staging import staged_file


def write_texts(texts: Mapping[str, str], folder: Path) -> list[Path]:
    """Write every text to its path below ``folder``; each file is replaced in one step."""
    import os

    written = []
    for path, text in texts.items():
        target = folder / path
        with staged_file(target) as descriptor:
            os.write(descriptor, text.encode())
        written.append(target)
    return written


def differences(texts: Mapping[str, str], folder: Path) -> tuple[str, ...]:
    """Return a unified diff for each file that is absent from ``folder`` or differs from its text."""
    return tuple(_differences(texts, folder))


def _differences(texts: Mapping[str, str], folder: Path) -> Iterator[str]:
    for path, text in texts.items():
        target = folder / path
        try:
            there = target.read_text(encoding="utf-8", errors="replace")
        except OSError:
            there = ""
        if there != text:
            diff = difflib.unified_diff(
                there.splitlines(), text.splitlines(), fromfile=str(target), tofile=f"{path} (rendered)", lineterm=""
            )
            yield "\n".join(diff)

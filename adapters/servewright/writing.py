"""Rendered texts on disk: written whole, or compared with what is there."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from servewright.errors import InputError
from servewright.staging import staged_file


def write_texts(texts: Mapping[str, str], folder: Path) -> list[Path]:
    """Write every text to its path below ``folder``; each file is replaced in one step."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; name a folder")
    written = []
    for path, text in texts.items():
        target = folder / path
        with staged_file(target) as descriptor:
            rest = memoryview(text.encode())
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        written.append(target)
    return written


def differences(texts: Mapping[str, str], folder: Path) -> tuple[str, ...]:
    """Return a unified diff for each file that is absent from ``folder`` or differs from its text."""
    return tuple(_differences(texts, folder))


def _differences(texts: Mapping[str, str], folder: Path) -> Iterator[str]:
    for path, text in texts.items():
        target = folder / path
        try:
            there = target.read_bytes()
        except OSError as error:
            yield f"--- {target}\n+++ {path} (rendered)\n{target}: {error.strerror or error}"
            continue
        if there != text.encode():
            yield "\n".join(_diff(there.decode(errors="backslashreplace"), text, str(target), f"{path} (rendered)"))


def _diff(there: str, text: str, old: str, new: str) -> Iterator[str]:
    lines = list(difflib.unified_diff(there.splitlines(), text.splitlines(), old, new, lineterm=""))
    yield from lines or [f"--- {old}", f"+++ {new}", "the lines end differently"]

"""What goes into an artifact: safe relative names, each with its bytes or the file that holds them."""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path

from servewright.errors import InputError

Members = Mapping[str, Path | bytes]
"""Content by its name inside the artifact; names are separated by ``/`` on every machine."""

_DRIVE = re.compile(r"[A-Za-z]:")
_LONGEST_PART = 255  # bytes; what ext4, xfs, APFS and NTFS hold


def name_problems(names: Iterable[str]) -> tuple[str, ...]:
    """Return why ``names`` cannot all be files below one directory, on any file system; empty when they can."""
    problems: list[str] = []
    files: dict[str, str] = {}
    for name in sorted(names):
        if reason := _unsafe(name):
            problems.append(f"member name {name!r} {reason}")
            continue
        key = _folded(name)
        if key in files:
            how = "occurs twice" if files[key] == name else f"differs from {files[key]!r} only by case or accents' form"
            problems.append(f"member name {name!r} {how}")
        files.setdefault(key, name)
    for key, name in files.items():
        above = (key[:end] for end in range(len(key)) if key[end] == "/")
        problems += [
            f"member name {name!r} needs a directory where {files[path]!r} is a file" for path in above if path in files
        ]
    return tuple(problems)


def check_members(members: Members) -> None:
    """Refuse unsafe names, and sources that are no readable regular files, all at once."""
    problems = list(name_problems(members))
    problems += [
        f"member {name!r}: {problem}"
        for name, content in sorted(members.items())
        if isinstance(content, Path) and (problem := source_problem(content))
    ]
    if problems:
        raise InputError("\n".join(problems))


def source_problem(source: Path) -> str:
    """Return why ``source`` cannot be packed, or an empty text."""
    try:
        mode = source.stat().st_mode
    except FileNotFoundError:
        return f"{source} does not exist"
    except (OSError, ValueError) as error:
        return f"{source} cannot be read: {getattr(error, 'strerror', None) or error}"
    if stat.S_ISDIR(mode):
        return f"{source} is a directory, not a file"
    if not stat.S_ISREG(mode):  # opening a named pipe would wait for ever, and a device has no end
        return f"{source} is not a regular file"
    return "" if os.access(source, os.R_OK) else f"{source} cannot be read: no permission"


def _unsafe(name: str) -> str:
    parts = name.split("/")
    if not name:
        return "is empty"
    if "\\" in name:
        return "holds a backslash; separate with /"
    if any(unicodedata.category(char) in ("Cc", "Cs") for char in name):
        return "holds a control character or a broken one"
    if name.startswith("/") or _DRIVE.match(name):
        return "is absolute; names are relative to the artifact"
    if ".." in parts:
        return "leaves the artifact"
    if "" in parts or "." in parts:
        return "has an empty or '.' component"
    if max(len(part.encode()) for part in parts) > _LONGEST_PART or len(name.encode()) > 4096:
        return "is too long"
    return ""


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())

"""What goes into an artifact: safe relative names, each with its bytes or the file that holds them."""

from __future__ import annotations

import re
import stat
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from servewright.errors import InputError

Members = Mapping[str, Path | bytes]
"""Content by its name inside the artifact; names are separated by ``/`` on every machine."""

_DRIVE = re.compile(r"[A-Za-z]:")
_LONGEST_PART = 255  # bytes; what ext4, xfs, APFS and NTFS hold
_LONGEST = 4096  # bytes; PATH_MAX on Linux


class NameRule(StrEnum):
    """What a member's name can break."""

    EMPTY = "empty name"
    BACKSLASH = "backslash"
    CONTROL = "control character"
    ABSOLUTE = "absolute path"
    DRIVE = "drive letter"
    PARENT = "parent path"
    COMPONENT = "empty component"
    LENGTH = "too long"
    DUPLICATE = "duplicate"
    COLLISION = "collision"
    SHADOWED = "shadowed"


@dataclass(frozen=True, slots=True)
class NameProblem:
    """A name that cannot be a file below a directory: what it breaks, and how to say it after the name."""

    name: str
    rule: NameRule
    reason: str


def name_problems(files: Iterable[str], directories: Iterable[str] = ()) -> tuple[NameProblem, ...]:
    """Return why ``files`` and ``directories`` cannot all lie below one directory, on any file system."""
    problems: list[NameProblem] = []
    known: dict[str, str] = {}
    for name in sorted(files):
        if problem := _unsafe(name):
            problems.append(problem)
            continue
        if other := known.get(key := _folded(name)):
            rule = NameRule.DUPLICATE if other == name else NameRule.COLLISION
            reason = "occurs twice" if other == name else f"is {other!r} on a file system that ignores case"
            problems.append(NameProblem(name, rule, reason))
        known.setdefault(key, name)
    needed = [(name, key[:end]) for key, name in known.items() for end in range(len(key)) if key[end] == "/"]
    for name in sorted(set(directories)):
        if problem := _unsafe(name):
            problems.append(problem)
        needed.append((name, _folded(name)))
    problems += [
        NameProblem(name, NameRule.SHADOWED, f"needs a directory where {known[path]!r} is a file")
        for name, path in needed
        if path in known
    ]
    return tuple(problems)


def check_members(members: Members) -> None:
    """Refuse unsafe names, and sources that are no readable regular files, all at once."""
    problems = [f"member name {problem.name!r} {problem.reason}" for problem in name_problems(members)]
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
        if stat.S_ISDIR(mode):
            return f"{source} is a directory, not a file"
        if not stat.S_ISREG(mode):  # opening a named pipe would wait for ever, and a device has no end
            return f"{source} is not a regular file"
        source.open("rb").close()
    except FileNotFoundError:
        return f"{source} does not exist"
    except (OSError, ValueError) as error:
        return f"{source} cannot be read: {getattr(error, 'strerror', None) or error}"
    return ""


def _unsafe(name: str) -> NameProblem | None:
    parts = name.split("/")
    if not name:
        return NameProblem(name, NameRule.EMPTY, "is empty")
    if "\\" in name:
        return NameProblem(name, NameRule.BACKSLASH, "holds a backslash; separate with /")
    if any(unicodedata.category(char) in ("Cc", "Cs") for char in name):
        return NameProblem(name, NameRule.CONTROL, "holds a control character or a broken one")
    if name.startswith("/"):
        return NameProblem(name, NameRule.ABSOLUTE, "is absolute; names are relative to the artifact")
    if _DRIVE.match(name):
        return NameProblem(name, NameRule.DRIVE, "starts with a drive letter; names are relative to the artifact")
    if ".." in parts:
        return NameProblem(name, NameRule.PARENT, "leaves the artifact")
    if "" in parts or "." in parts:
        return NameProblem(name, NameRule.COMPONENT, "has an empty or '.' component")
    if max(len(part.encode()) for part in parts) > _LONGEST_PART or len(name.encode()) > _LONGEST:
        return NameProblem(name, NameRule.LENGTH, "is too long")
    return None


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())

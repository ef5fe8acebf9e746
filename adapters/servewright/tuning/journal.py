"""A study's journal, written so that no kill loses more than the measurement in progress.

``journal.jsonl`` is a line of JSON per fact, on the disk before the next one is sought. Its first line says what the
study is about; a study is resumed by asking the same questions again, of which the journal answers the old ones.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from servewright.errors import InputError
from servewright.tuning.study import FORMAT

NAME: Final = "journal.jsonl"


class Journal:
    """Facts in the order in which they were found, one JSON line each; what `append` returned from is on the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.facts: list[dict[str, Any]] = []

    @classmethod
    def create(cls, path: Path, head: Mapping[str, Any]) -> Journal:
        """Begin a journal with what the study is about; one that is there is an `InputError`."""
        journal = cls(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                if b"\n" in path.read_bytes():
                    raise InputError(f"{path} holds a study already; go on with --resume, or choose another -o")
                path.unlink()  # killed before its first line was whole
        except OSError as error:
            raise InputError(f"{path} cannot be made: {error.strerror or error}; choose another -o") from error
        journal.append("study", {"format": FORMAT, **head})
        return journal

    @classmethod
    def resume(cls, path: Path) -> Journal:
        """Read a journal to go on with it; a last line that a kill has torn is cut off."""
        journal = cls(path)
        try:
            content = path.read_bytes()
        except FileNotFoundError as error:
            raise InputError(f"{path} does not exist; there is no study to resume: leave out --resume") from error
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}; check its permissions") from error
        whole = content.rfind(b"\n") + 1
        for number, line in enumerate(content[:whole].splitlines(), 1):
            journal.facts.append(_fact(line, path, number))
        if not journal.facts:
            raise InputError(f"{path} holds nothing yet; leave out --resume")
        if journal.facts[0]["kind"] != "study" or journal.facts[0].get("format") != FORMAT:
            raise InputError(f"{path} is no journal of format {FORMAT}; name a study that this version began")
        if whole < len(content):
            with path.open("r+b") as file:
                file.truncate(whole)
                os.fsync(file.fileno())
        return journal

    @property
    def head(self) -> dict[str, Any]:
        """What the study is about."""
        return self.facts[0]

    def all(self, kind: str) -> list[dict[str, Any]]:
        """Return the facts of one kind, in order."""
        return [fact for fact in self.facts if fact["kind"] == kind]

    def forget(self) -> None:
        """Remove a journal of a study that failed before it had measured anything; others stay."""
        if all(fact["kind"] in ("study", "server") for fact in self.facts):
            self.path.unlink(missing_ok=True)

    def append(self, kind: str, fact: Mapping[str, Any]) -> None:
        """Write one fact; it is on the disk when this returns."""
        whole = {"kind": kind, **fact}
        line = json.dumps(whole, ensure_ascii=False, allow_nan=False) + "\n"
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        before = os.fstat(descriptor).st_size
        try:
            rest = memoryview(line.encode())
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
        except OSError as error:
            os.ftruncate(descriptor, before)
            raise InputError(f"{self.path} cannot be written: {error.strerror or error}; make room there") from error
        finally:
            os.close(descriptor)
        self.facts.append(whole)


def _fact(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        fact = json.loads(line)
    except ValueError as error:
        raise InputError(f"{path}:{number}: {error}; the journal was changed by hand: begin a new study") from error
    if not isinstance(fact, dict) or not isinstance(fact.get("kind"), str):
        raise InputError(f"{path}:{number}: no fact of a journal; the journal was changed by hand: begin a new study")
    return fact

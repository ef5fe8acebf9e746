"""Java properties text, read as the JVM reads it and written so that nothing in a value can end it.

A file is bytes in ISO-8859-1: decode it so before `parse`. What `escape_key` and `escape_value` return is ASCII.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from servewright.errors import Problem, SpecError

_BLANK = " \t\f"
_ENDS = "\r\n"
_UNICODE_DIGITS = 4
_CONTROLS = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}
_ESCAPES = {"\t": "\\t", "\n": "\\n", "\r": "\\r", "\f": "\\f", "\\": "\\\\"}
_HEXADECIMAL = re.compile(r"[0-9A-Fa-f]{4}")
# TorchServe replaces this by a variable of its environment, in every value (ConfigManager.resolveEnvVarVals).
_VARIABLE = re.compile(r"\$\$([^$]+[^$])\$\$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One key with its value, and the line (from 1) on which it begins."""

    key: str
    value: str
    line: int


def parse(text: str) -> dict[str, str]:
    """Return what ``java.util.Properties`` would hold: of a key given twice, the last value.

    Raises `SpecError` with the line of a malformed escape, on which the JVM gives up too.
    """
    return {entry.key: entry.value for entry in parse_lines(text)}


def parse_lines(text: str) -> tuple[Entry, ...]:
    """Return every entry in the order of the file, repeated keys included."""
    return tuple(_entry(line, number) for line, number in _logical_lines(text))


def escape_key(text: str) -> str:
    """Escape ``text`` for the left of the ``=``."""
    return "".join("\\" + each if each in " =:#!" else _escape(each) for each in text)


def escape_value(text: str) -> str:
    """Escape ``text`` for the right of the ``=``, up to the end of the line."""
    # A blank at either end as \u0020: an editor that strips `\ ` at the end of a line leaves a continuation.
    inner = text.strip(" ")
    before = len(text) - len(text.lstrip(" ")) if inner else len(text)
    after = len(text) - len(text.rstrip(" ")) if inner else 0
    return "\\u0020" * before + "".join(map(_escape, inner)) + "\\u0020" * after


def variables(value: str) -> tuple[str, ...]:
    """Return the environment variables that TorchServe puts into ``value`` for ``$$NAME$$``, which has no escape."""
    return tuple(_VARIABLE.findall(value))


def whole_variable(value: str) -> str | None:
    """Return the environment variable that ``value`` is, where it is ``$$NAME$$`` and nothing else."""
    found = _VARIABLE.fullmatch(value)
    return found[1] if found else None


def _escape(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    if " " <= character <= "~":
        return character
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


def _logical_lines(text: str) -> list[tuple[str, int]]:
    """Return each line that is neither blank nor comment, its continuations joined, with its number."""
    found: list[tuple[str, int]] = []
    natural = re.split(r"\r\n|\r|\n", text)
    if not natural[-1] and not text.endswith("\r\n"):
        natural.pop()  # the end of the last line begins no other; Java forgets this after \r\n, which shows just below
    at = 0
    while at < len(natural):
        number, line = at + 1, natural[at].lstrip(_BLANK)
        at += 1
        if not line or line[0] in "#!":
            continue
        while _continues(line):
            line = line[:-1]
            if not line or at == len(natural):
                break  # after nothing but a backslash comes a line of its own, which may be a comment
            line += natural[at].lstrip(_BLANK)
            at += 1
        if line or at == len(natural):
            found.append((line, number))
    return found


def _continues(line: str) -> bool:
    return (len(line) - len(line.rstrip("\\"))) % 2 == 1


def _entry(line: str, number: int) -> Entry:
    end = 0
    while end < len(line) and line[end] not in "=:" + _BLANK:
        end += 2 if line[end] == "\\" else 1
    end = min(end, len(line))
    rest = line[end:].lstrip(_BLANK)
    if rest[:1] in ("=", ":"):
        rest = rest[1:].lstrip(_BLANK)
    return Entry(key=_unescape(line[:end], number), value=_unescape(rest, number), line=number)


def _unescape(text: str, number: int) -> str:
    if "\\" not in text:
        return text
    parts: list[str] = []
    at = 0
    while at < len(text):
        character = text[at]
        at += 1
        if character != "\\" or at == len(text):
            parts.append(character)
            continue
        character = text[at]
        at += 1
        if character != "u":
            parts.append(_CONTROLS.get(character, character))
            continue
        digits = _HEXADECIMAL.match(text, at)
        if digits is None:
            reason = f"\\u{text[at : at + _UNICODE_DIGITS]} is no character: \\u takes four hexadecimal digits"
            raise SpecError([Problem(reason=reason, remedy="write \\\\ for a backslash", line=number, column=1)])
        parts.append(chr(int(digits[0], 16)))
        at += _UNICODE_DIGITS
    # Beyond U+FFFF, Java writes two escapes for one character.
    return "".join(parts).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")

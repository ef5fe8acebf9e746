"""A spec's text with some of its keys changed: every other byte stays, comments above all.

A YAML library that keeps comments still lays the rest out anew. Here the lines of a changed key are found by its place,
and what was written is read back: it must mean the old spec with the new values, and nothing else.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from servewright import yamltext
from servewright.errors import InputError, SpecError

_VALUE = re.compile(
    r"""(?P<value>"(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|\[[^\]#]*\]|[^#\n]*?)(?P<rest>[ \t]*(?:(?<=[ \t])#[^\n]*)?)\n?$"""
)


def changed(text: str, keys: Mapping[str, Any], *, file: str) -> str:
    """Return ``text`` with dotted ``keys`` of at most two parts set; `InputError` where it is laid out beyond this."""
    if "\r\n" in text:
        return changed(text.replace("\r\n", "\n"), keys, file=file).replace("\n", "\r\n")
    wanted = expected(yamltext.parse(text.encode(), file=file).value, keys)
    with suppress(SpecError):  # an edit that went wrong may be no YAML at all
        found = _edited(text, keys, wanted, file)
        if yamltext.parse(found.encode(), file=file).value == wanted:
            return found
    lines = ", ".join(f"{key}: {_scalar(value)}" for key, value in keys.items())
    raise InputError(f"{file} is laid out in a way that cannot be changed in place; write by hand: {lines}")


def _edited(text: str, keys: Mapping[str, Any], wanted: Any, file: str) -> str:
    if text.lstrip().startswith("{") and (found := _as_json(text, wanted)) != text:
        return found
    for key, value in keys.items():
        head, _, inner = key.partition(".")
        text = _set(text, head, inner, value, file)
    return text


def expected(values: Any, keys: Mapping[str, Any]) -> Any:
    """Return a spec's ``values`` with dotted ``keys`` set."""
    wanted = copy.deepcopy(values)
    for key, value in keys.items():
        head, _, inner = key.partition(".")
        if not inner:
            wanted[head] = value
        else:
            wanted[head] = {**(wanted.get(head) or {}), inner: value}
    return wanted


def _as_json(text: str, wanted: Any) -> str:
    try:
        json.loads(text)
    except ValueError:
        return text
    indent = re.search(r"\n([ \t]+)\S", text)
    return json.dumps(wanted, indent=indent[1] if indent else None, ensure_ascii=False) + "\n"


def _scalar(value: Any) -> str:
    return "[" + ", ".join(map(str, value)) + "]" if isinstance(value, list | tuple) else str(value)


def _set(text: str, head: str, inner: str, value: Any, file: str) -> str:
    places = yamltext.parse(text.encode(), file=file).places
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    shown = _scalar(value)
    if (head,) not in places:
        end = next((at for at, line in enumerate(lines) if line.rstrip() == "..."), len(lines))
        lines.insert(end, f"{head}: {{{inner}: {shown}}}\n" if inner else f"{head}: {shown}\n")
        return "".join(lines)
    first = places[(head,)].line - 1
    if not inner:
        lines[first] = _replaced(lines[first], head, shown)
        return "".join(lines)
    if (head, inner) in places:
        at = places[(head, inner)]
        before = lines[at.line - 1][: at.column - 1]
        if not before.strip():
            end = _end(lines, at.line - 1, at.column - 1)
            kept = [line for line in lines[at.line : end] if line.lstrip().startswith("#")]
            lines[at.line - 1 : end] = [
                before + _replaced(lines[at.line - 1][at.column - 1 :], inner, shown),
                *kept,
            ]
        else:
            rest = lines[at.line - 1][at.column - 1 :]
            flow = re.compile(
                rf"(['\"]?{re.escape(inner)}['\"]?\s*:\s*)(\[[^\]]*\]|\"[^\"]*\"|'[^']*'|[^,}}\]\n#]*?)(\s*[,}}\n#])"
            )
            lines[at.line - 1] = before + flow.sub(lambda found: found[1] + shown + found[3], rest, count=1)
        return "".join(lines)
    return _inserted(lines, places, head, inner, shown)


def _replaced(line: str, key: str, shown: str) -> str:
    found = re.search(rf"""(["']?){re.escape(key)}\1\s*:""", line)
    start = found.end() if found else len(line)
    match = _VALUE.match(line, start)
    rest = match["rest"] if match else ""
    return f"{line[:start]} {shown}{rest}\n"


def _end(lines: list[str], first: int, indent: int) -> int:
    """Return the line after the last that belongs to the key at ``first``."""
    end = first + 1
    for index in range(first + 1, len(lines)):
        text = lines[index].lstrip()
        if not text.strip() or text.startswith("#"):
            continue
        if len(lines[index]) - len(text) < indent or (len(lines[index]) - len(text) == indent and text[0] != "-"):
            break
        end = index + 1
    return end


def _inserted(
    lines: list[str], places: Mapping[yamltext.Path_, yamltext.Place], head: str, inner: str, shown: str
) -> str:
    first = places[(head,)].line - 1
    siblings = [place for path, place in places.items() if len(path) == 2 and path[0] == head]
    flow = re.match(rf"""\s*(["']?){re.escape(head)}\1\s*:\s*(?:[&!]\S*\s+)*\{{""", lines[first])
    if flow:
        opened = flow.end() - 1
        gap = ", " if siblings else ""
        closes = max((place.line for place in siblings), default=first + 1) - 1
        at = lines[closes].find("}", siblings[-1].column if siblings and closes != first else opened)
        lines[closes] = f"{lines[closes][:at].rstrip()}{gap}{inner}: {shown}{lines[closes][at:]}"
    elif siblings and siblings[0].line - 1 > first:
        indent = " " * (siblings[0].column - 1)
        last = max(siblings, key=lambda place: place.line).line - 1
        lines.insert(_end(lines, last, siblings[0].column - 1), f"{indent}{inner}: {shown}\n")
    else:
        lines[first] = _replaced(lines[first], head, f"{{{inner}: {shown}}}")
    return "".join(lines)

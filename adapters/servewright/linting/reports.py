"""Findings as text with excerpts, as JSON, as SARIF 2.1.0, and as annotations of GitHub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any, Final
from urllib.parse import quote

from servewright import __version__
from servewright.linting.finding import Finding, Severity
from servewright.linting.rule import Rule
from servewright.linting.sources import excerpt
from servewright.linting.walking import Result

_SCHEMA: Final = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_GITHUB: Final = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.NOTE: "notice"}


def counts(result: Result) -> dict[str, int]:
    """Return how many findings there are of each severity."""
    return {str(each): sum(found.severity is each for found in result.findings) for each in reversed(Severity)}


def as_text(result: Result) -> str:
    """Print every finding with its line, what happens, what to do, and where that is known from."""
    lines: list[str] = []
    for found in result.findings:
        lines.append(f"{found.file}:{found.line}:{found.column}: {found.severity} {found.rule}: {found.what}")
        source = result.sources.get(found.file)
        if source is not None and source.line(found.line):
            lines += excerpt(source, found.line, found.column)
        lines.append(f"      do: {found.remedy}" + (" (--fix does it)" if found.edit else ""))
        if found.reference:
            lines.append(f"      see: {found.reference}")
    for name, count in result.fixed.items():
        lines.append(f"{name}: {count} fixed")
    for name in result.skipped:
        lines.append(f"{name}: not a file of a model server that is known; give --kind to check it as one")
    number = counts(result)
    lines.append(
        f"{len(result.kinds)} files: {number['error']} errors, {number['warning']} warnings, {number['note']} notes"
    )
    return "\n".join(lines)


def as_json(result: Result) -> dict[str, Any]:
    """Return the findings as plain values."""
    return {
        "files": [{"file": name, "kind": kind} for name, kind in result.kinds.items()],
        "skipped": list(result.skipped),
        "fixed": dict(result.fixed),
        "counts": counts(result),
        "findings": [
            {
                "rule": found.rule,
                "severity": str(found.severity),
                "file": found.file,
                "line": found.line,
                "column": found.column,
                "what": found.what,
                "remedy": found.remedy,
                "reference": found.reference,
                "fixable": found.edit is not None,
            }
            for found in result.findings
        ],
    }


def as_sarif(result: Result, rules: Mapping[str, Rule]) -> dict[str, Any]:
    """Return the findings as a SARIF 2.1.0 log."""
    used = sorted({found.rule for found in result.findings})
    order = {rule: number for number, rule in enumerate(used)}
    return {
        "$schema": _SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "servewright",
                        "version": __version__,
                        "rules": [_descriptor(rules[name]) for name in used],
                    }
                },
                "columnKind": "unicodeCodePoints",
                "results": [_result(found, order[found.rule], result) for found in result.findings],
            }
        ],
    }


def _descriptor(rule: Rule) -> dict[str, Any]:
    help_text = rule.do + (f" ({rule.reference})" if rule.reference else "")
    return {
        "id": rule.id,
        "shortDescription": {"text": rule.title},
        "fullDescription": {"text": rule.happens},
        "help": {"text": help_text},
        "defaultConfiguration": {"level": str(rule.severity)},
    }


def _result(found: Finding, index: int, result: Result) -> dict[str, Any]:
    location = {
        "physicalLocation": {
            "artifactLocation": {"uri": _uri(found.file)},
            "region": {"startLine": found.line, "startColumn": found.column},
        }
    }
    return {
        "ruleId": found.rule,
        "ruleIndex": index,
        "level": str(found.severity),
        "message": {"text": f"{found.what}; {found.remedy}"},
        "locations": [location],
    } | _fix(found, result)


def _fix(found: Finding, result: Result) -> dict[str, Any]:
    source = result.sources.get(found.file)
    if found.edit is None or source is None:
        return {}
    (line, column), (end_line, end_column) = source.place(found.edit.start), source.place(found.edit.end)
    region = {"startLine": line, "startColumn": column, "endLine": end_line, "endColumn": end_column}
    replacement = {"deletedRegion": region, "insertedContent": {"text": found.edit.text}}
    change = {"artifactLocation": {"uri": _uri(found.file)}, "replacements": [replacement]}
    return {"fixes": [{"description": {"text": found.remedy}, "artifactChanges": [change]}]}


def _uri(name: str) -> str:
    path = PurePath(name.partition("!/")[0])
    if path.is_absolute():
        try:
            path = path.relative_to(Path.cwd())
        except ValueError:
            return quote(f"file://{path.as_posix()}", safe="/:")
    return quote(path.as_posix(), safe="/")


def as_github(result: Result) -> str:
    """Print findings as workflow commands, which GitHub shows beside the lines."""
    return "\n".join(
        f"::{_GITHUB[found.severity]} file={_property(found.file.partition('!/')[0])},line={found.line},"
        f"col={found.column},title={_property(found.rule)}::{_message(f'{found.what}; {found.remedy}')}"
        for found in result.findings
    )


def _message(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _message(text).replace(":", "%3A").replace(",", "%2C")


def printed(result: Result, style: str, rules: Mapping[str, Rule]) -> str:
    """Return the report in one of the styles: text, json, sarif or github."""
    if style == "json":
        return json.dumps(as_json(result), indent=2)
    if style == "sarif":
        return json.dumps(as_sarif(result, rules), indent=2)
    return as_github(result) if style == "github" else as_text(result)

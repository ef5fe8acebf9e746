"""On real configs the linter neither crashes nor hangs, and is right about what servers load."""

from __future__ import annotations

import csv
import os
import re
import time
from pathlib import Path

import pytest
from google.protobuf import text_format

from servewright.backends.tfserving import protos
from servewright.linting import walking
from servewright.linting.finding import Severity
from servewright.linting.walking import Result, Wishes

_CORPUS = Path(os.environ.get("SERVEWRIGHT_CORPUS", "/nonexistent"))
_MESSAGES = {
    "tfs_model_config": "ModelServerConfig",
    "tfs_batching": "BatchingParameters",
    "tfs_monitoring": "MonitoringConfig",
}
pytestmark = pytest.mark.skipif(not _CORPUS.is_dir(), reason="SERVEWRIGHT_CORPUS names no corpus")


def _rows() -> list[dict[str, str]]:
    if not _CORPUS.is_dir():
        return []
    with (_CORPUS / "INDEX.tsv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


@pytest.fixture(scope="module")
def results() -> dict[str, Result]:
    """Lint each file as the kind that the index gives."""
    return {row["file"]: walking.lint([_CORPUS / row["file"]], Wishes(kind=row["kind"])) for row in _rows()}


def _errors(result: Result) -> list[tuple[str, int]]:
    return [(found.rule, found.line) for found in result.findings if found.severity is Severity.ERROR]


def test_takes_no_time() -> None:
    """The whole corpus, read as one folder, is done in seconds."""
    start = time.monotonic()
    result = walking.lint([_CORPUS])
    assert time.monotonic() - start < 30
    assert result.kinds


def test_text_that_protobuf_refuses_is_an_error_on_its_line(results: dict[str, Result]) -> None:
    """Every pbtxt that protobuf's own parser refuses has its first error on the line that the parser names."""
    wrong = []
    refused = 0
    for row in _rows():
        if row["kind"] not in _MESSAGES:
            continue
        text = (_CORPUS / row["file"]).read_bytes().decode("utf-8")
        try:
            text_format.Parse(text, getattr(protos, _MESSAGES[row["kind"]])())
        except text_format.ParseError as error:
            refused += 1
            syntax = [
                line for rule, line in _errors(results[row["file"]]) if rule in {f"TFS{n:03}" for n in range(1, 8)}
            ]
            if syntax[:1] != [error.GetLine()]:
                wrong.append((row["file"], error.GetLine(), syntax))
    assert not wrong
    assert refused >= 10


def test_no_error_on_what_the_index_calls_good(results: dict[str, Result]) -> None:
    """What servers load, by the index's judgement, has warnings and notes at most."""
    wrong = [(row["file"], _errors(results[row["file"]])) for row in _rows() if row["verdict"] != "bad"]
    assert [found for found in wrong if found[1]] == []


def test_every_fatal_note_of_the_index_is_an_error(results: dict[str, Result]) -> None:
    """What the index calls fatal or a parse error is an error."""
    fatal = [row for row in _rows() if re.search(r"parse[- ]error|fatal|json-parse", row["note"])]
    assert len(fatal) >= 10
    assert [row["file"] for row in fatal if not _errors(results[row["file"]])] == []


def test_files_are_recognised_by_their_content() -> None:
    """All but a few broken ones are recognised without being told what they are."""
    strange = [
        row["file"] for row in _rows() if list(walking.lint([_CORPUS / row["file"]]).kinds.values()) != [row["kind"]]
    ]
    # No server could tell either: a Python template, a text without any field, a block of other fields.
    assert len(strange) <= 3, strange

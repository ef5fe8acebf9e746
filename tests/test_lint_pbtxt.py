"""The text-format reader agrees with recorded answers of a real server and with protobuf's own parser."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st

from servewright.backends.tfserving import protos
from servewright.backends.tfserving.linting import pbtxt
from servewright.linting.sources import Source

_RECORDED = os.environ.get("SERVEWRIGHT_CONFORMANCE")
_SAID = re.compile(r"Error parsing text-format (?:[\w.]*\.)?(\w+): (\d+):(\d+): (.*)")


def _recordings() -> list[tuple[str, str, str, str]]:
    """Return (id, message, text, said) of every start that a real server refused for its text."""
    found: list[tuple[str, str, str, str]] = []
    path = Path(_RECORDED or "/nonexistent") / "tfserving" / "startup.jsonl"
    if not path.is_file():
        return found
    for line in path.read_text().splitlines():
        case = json.loads(line)
        for _, printed in case.get("expect", {}).get("lines", []):
            if said := _SAID.search(printed):
                names = {
                    "ModelServerConfig": "models",
                    "BatchingParameters": "batching",
                    "MonitoringConfig": "monitoring",
                }
                stem = names.get(
                    said[1], {"ConfigProto": "session", "PlatformConfigMap": "platform"}.get(said[1], "ssl")
                )
                text = next(text for name, text in case["files"].items() if name.startswith(stem))
                found.append((case["id"], said[1], text, f"{said[2]}:{said[3]}: {said[4]}"))
    return found


@pytest.mark.skipif(not _RECORDED, reason="SERVEWRIGHT_CONFORMANCE names no recordings")
def test_says_what_a_real_server_said() -> None:
    """The first flaw has the words, the line and the column of a real server's log."""
    recordings = _recordings()
    assert len(recordings) >= 10
    wrong = []
    for name, kind, text, said in recordings:
        # The recorder wrote its own folder for the placeholder: the same length, or the column would not be there.
        _, flaws = pbtxt.read(text, getattr(protos, kind))
        assert flaws, name
        line, column = Source("x", Path("x"), text).place(flaws[0].said_at)
        ours = f"{line}:{column}: {flaws[0].message}"
        if "${" in text.splitlines()[line - 1]:  # the recorder's folder had another length than its placeholder
            ours, said = re.sub(r"^(\d+):\d+", r"\1", ours), re.sub(r"^(\d+):\d+", r"\1", said)
        if ours != said:
            wrong.append((name, ours, said))
    assert not wrong


_LEGAL = [
    "model_config_list { config { name: 'm', base_path: \"/m\" \"odel\"; model_platform: 'tensorflow' } }",
    "model_config_list: < config: < name: 'm' > >",
    "model_config_list { config: [ { name: 'a' }, { name: 'b' } ] }",
    "# only a comment\r\nmodel_config_list {\r\n}\r\n",
    "model_config_list { config { model_version_policy { specific { versions: [1, 2,3] versions: 0x10 } } } }",
    "model_config_list { config { version_labels { key: 'a' value: 1 } version_labels: {key:'b',value:-2}, } };",
    "custom_model_config { type_url: 'x' value: '\\001\\x41\\n' }",
    "",
]
_ILLEGAL = [
    "model_config_list { config { name: 'm' ",
    "model_config_list { config { name: m } }",
    "model_config_list { config { nme: 'm' } }",
    "model_config_list { } }",
    "model_config_list { config { name: 'm' name: 'n' } }",
    "model_config_list [ ]",
    "{ model_config_list {} }",
    "model_config_list { config { model_version_policy { latest {} all {} } } }",
    "model_config_list { config { model_type: NOPE } }",
    "model_config_list { config { model_version_policy { specific { versions: 1.5 } } } }",
    "model_config_list { config { name: 'm\n' } }",
    "// comment\nmodel_config_list {}",
    "model_config_list { config { ... } }",
]


@pytest.mark.parametrize("text", _LEGAL)
def test_takes_what_protobuf_takes(text: str) -> None:
    """Commas, semicolons, single quotes, lists, angle brackets and adjacent strings are legal."""
    text_format.Parse(text, protos.ModelServerConfig())
    assert pbtxt.read(text, protos.ModelServerConfig)[1] == []


@pytest.mark.parametrize("text", _ILLEGAL)
def test_refuses_what_protobuf_refuses(text: str) -> None:
    """Every text that protobuf's own parser refuses has a flaw."""
    with pytest.raises(text_format.ParseError):
        text_format.Parse(text, protos.ModelServerConfig())
    assert pbtxt.read(text, protos.ModelServerConfig)[1]


_WORDS = st.sampled_from(
    ["model_config_list", "config", "name", "base_path", "model_platform", "model_version_policy", "specific", "latest",
     "versions", "num_versions", "all", "version_labels", "key", "value", "{", "}", "{", "}", ":", ":", ",", ";", "'a'",
     '"b"', "1", "0x1f", "-", "2", "1.5", "true", "nope", "[", "]", "<", ">", "# c\n", "\n"]
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(_WORDS, max_size=25).map(" ".join))
def test_agrees_with_protobuf_on_any_words(text: str) -> None:
    """A text has a flaw exactly where protobuf's own parser refuses it."""
    try:
        text_format.Parse(text, protos.ModelServerConfig())
        refused = False
    except text_format.ParseError:
        refused = True
    assert bool(pbtxt.read(text, protos.ModelServerConfig)[1]) == refused


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=80))
def test_reads_any_text(text: str) -> None:
    """No text crashes the reader."""
    pbtxt.read(text, protos.BatchingParameters)


def test_goes_on_after_an_unknown_field() -> None:
    """Every unknown field is found, not only the first, and what lies between is read."""
    text = "a { b: 1 }\nmax_batch_size { value: 4 }\nc: 'x' 'y'\n"
    message, flaws = pbtxt.read(text, protos.BatchingParameters)
    assert [flaw.name for flaw in flaws] == ["a", "c"]
    assert message.value("max_batch_size") == 4

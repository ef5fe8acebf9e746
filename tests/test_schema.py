"""The JSON Schema: it takes the specs that are good, and refuses what is wrong in form."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from servewright import registry
from servewright.backend import Backend
from servewright.quantities import Duration, Rate, Share, Size
from servewright.schema import DIALECT, spec_schema

if TYPE_CHECKING:
    from conftest import Cli, Workshop

SCHEMA = spec_schema({name: registry.get(name) for name in registry.names()})
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def test_is_a_schema_of_its_dialect() -> None:
    """The schema itself is right, and says which draft it is written in."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == DIALECT
    assert SCHEMA["title"] == "servewright spec, version 1"


def test_is_what_the_command_prints(cli: Cli) -> None:
    """Editors are pointed at the command's output."""
    code, out, err = cli("schema")
    assert (code, json.loads(out), err) == (0, SCHEMA, "")


def test_takes_small_and_rich_specs(workshop: Workshop, backend: Backend) -> None:
    """Specs that load are valid, with quantities as texts and plain versions of them."""
    others = [registry.get(name) for name in registry.names()]
    for values in (
        workshop.values(backend),
        workshop.rich_values(backend),
        workshop.rich_values(*others),
        workshop.values(backend, version="1.0-rc.1", batching={"max_size": 2, "max_delay": 0}, limits={"memory": 1024}),
        workshop.values(backend, versions={"policy": "all"}, **{backend.name: {}}),
    ):
        workshop.document(values)
        VALIDATOR.validate(values)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": ...},
        {"servewright": ...},
        {"servewright": 2},
        {"signature": ...},
        {"name": "a b"},
        {"version": 0},
        {"version": 1.5},
        {"version": "a/b"},
        {"unknown": 1},
        {"options": {}},
        {"model": {"path": "x"}},
        {"model": {"path": "x", "format": "tensorrt"}},
        {"model": {"nobody": {"path": "x", "format": "onnx"}}},
        {"target": {"nobody": "1.0"}},
        {"target": {"tfserving": 2.17}},
        {"workers": 0},
        {"workers": "2"},
        {"device": "cuda"},
        {"batching": {"max_sise": 3}},
        {"batching": {"max_size": 2, "max_delay": 5}},
        {"batching": {"max_size": 2, "max_delay": "5 seconds"}},
        {"limits": {"memory": "2Gb"}},
        {"limits": {"cpus": -1}},
        {"versions": {"policy": "newest"}},
        {"versions": {"policy": {"latest": 0}}},
        {"slo": {"rate": 200}},
        {"slo": {"errors": 0.001}},
        {"golden": [{"inputs": "a.npz"}]},
        {"handler": {"dtype": "int8"}},
        {"tfserving": {"nonsense": 1}},
        {"torchserve": {"yaml": []}},
    ],
    ids=str,
)
def test_refuses_what_a_spec_refuses(workshop: Workshop, changes: dict[str, Any]) -> None:
    """What is wrong in form is seen in the editor, before any command runs."""
    values = workshop.values(registry.get("torchserve"), **changes)
    assert not VALIDATOR.is_valid(values)


_UNITS = (
    "B",
    "kB",
    "KB",
    "k",
    "MB",
    "MiB",
    "Gi",
    "GB",
    "us",
    "µs",
    "ms",
    "MS",
    "s",
    "m",
    "min",
    "h",
    "d",
    "/s",
    "k/m",
    "M/h",
    "/d",
    "%",
    "%%",
)


@pytest.mark.parametrize("kind", [Duration, Size, Rate, Share], ids=["duration", "size", "rate", "share"])
@given(
    number=st.from_regex(r"\A[+-]?[0-9]{0,3}(\.[0-9]{0,2})?\Z"),
    blank=st.sampled_from(["", " "]),
    unit=st.just("") | st.sampled_from(_UNITS),
)
def test_takes_the_quantities_that_a_spec_takes(kind: Any, number: str, blank: str, unit: str) -> None:
    """A text of the schema's form is a quantity, and one of another form is none."""
    text = f"{number}{blank}{unit}"
    adapter = TypeAdapter(kind)
    in_form = jsonschema.Draft202012Validator(adapter.json_schema()).is_valid(text)
    if in_form:
        with contextlib.suppress(ValidationError):
            adapter.validate_python(text)
            return
        # A form cannot tell what is too much, or too fine.
        with pytest.raises(ValidationError, match=r"whole number|more than a day|not a share"):
            adapter.validate_python(text)
    else:
        with pytest.raises(ValidationError):
            adapter.validate_python(text)

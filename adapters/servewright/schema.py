"""The JSON Schema of the spec, with each backend's own settings under the backend's name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from servewright.backend import Backend
from servewright.spec import ModelSpec

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def spec_schema(backends: Mapping[str, Backend]) -> dict[str, Any]:
    """Return the schema of a spec file."""
    schema = ModelSpec.model_json_schema(ref_template="#/$defs/{model}")
    properties = schema["properties"]
    del properties["options"]
    for name, backend in backends.items():
        own = backend.options().model_json_schema(ref_template="#/$defs/{model}")
        for key, definition in own.pop("$defs", {}).items():
            known = schema["$defs"].setdefault(key, definition)
            assert known == definition, f"two definitions of {key}"
        properties[name] = own | {"description": f"settings of {backend.title} alone"}
    for key in ("model", "target"):
        _only(properties[key], sorted(backends))
    schema["required"] = sorted({*schema["required"], "servewright"})
    return {"$schema": DIALECT} | schema | {"title": "servewright spec, version 1"}


def _only(schema: dict[str, Any], names: list[str]) -> None:
    """Let mappings that hold a value for each backend have no other keys."""
    for branch in (schema, *schema.get("oneOf", ())):
        if "additionalProperties" in branch:
            branch["propertyNames"] = {"enum": names}

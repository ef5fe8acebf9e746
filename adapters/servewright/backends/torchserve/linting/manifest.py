"""Checks of ``MANIFEST.json``."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Iterator
from typing import Any, Final

from servewright.backends.torchserve.linting import archive_rules as rules
from servewright.linting.finding import Edit, Finding
from servewright.linting.linter import Context, FileKind, Found
from servewright.linting.sources import Source
from servewright.linting.yamlplaces import Node, PlacedYamlError, documents

TOP: Final = ("createdOn", "runtime", "model", "archiverVersion")
MODEL: Final = (
    "modelName", "modelVersion", "handler", "serializedFile", "modelFile", "requirementsFile", "configFile",
    "envelope", "description",
)  # fmt: skip
FILES: Final = ("serializedFile", "modelFile", "requirementsFile", "configFile")
BUILT_IN: Final = frozenset(
    {"base_handler", "text_classifier", "image_classifier", "object_detector", "image_segmenter",
     "dali_image_classifier", "vllm_handler", "trt_llm_handler", "densenet_handler", "vision_handler", "text_handler"}
)  # fmt: skip
_OLD: Final = frozenset(
    {"specificationVersion", "implementationVersion", "modelServerVersion", "license", "publisher", "engine"}
)
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def recognise(source: Source) -> bool:
    """Tell whether a text is a model archive's manifest."""
    if source.filename == "MANIFEST.json" or source.filename.endswith("_MANIFEST.json"):
        return True
    return source.suffix == ".json" and '"modelName"' in source.text and '"handler"' in source.text


def check(source: Source, context: Context) -> Found:
    """Check a manifest by itself."""
    yield from checked(source, None)


def checked(source: Source, members: Collection[str] | None) -> Iterator[Finding]:
    """Check a manifest, and against the archive's ``members`` where these are known."""
    root = None
    try:
        json.loads(source.text)
        root = documents(source.text)[0]
    except (ValueError, RecursionError, PlacedYamlError, IndexError) as error:
        line, column = getattr(error, "lineno", 0), getattr(error, "colno", 0)
        if not line:
            line, column = getattr(error, "line", 1), getattr(error, "column", 1)
        what = "it is empty" if not source.text.strip() else str(getattr(error, "msg", error))
        yield rules.BROKEN_MANIFEST.on(source.name, line, column, what)
        return
    model = root.get("model")
    if root.kind != "map" or model is None or model.kind != "map":
        yield _on(rules.NO_MODEL, source, model or root)
        return
    yield from _keys(source, root, TOP)
    yield from _keys(source, model, MODEL)
    if root.get("createdOn") is None or root.get("archiverVersion") is None:
        yield _on(rules.NO_DATES, source, root)
    runtime = root.get("runtime")
    if runtime is not None and runtime.text.lower() not in ("python", "python3", "lsp"):
        yield _on(rules.RUNTIME, source, runtime, repr(runtime.text))
    name = model.get("modelName")
    if name is None or not name.text:
        yield _on(rules.NO_NAME, source, name or model)
    elif not _NAME.fullmatch(name.text):
        yield _on(rules.MODEL_NAME, source, name, repr(name.text))
    if model.get("modelVersion") is None:
        yield _on(rules.NO_VERSION, source, model)
    handler = model.get("handler")
    if handler is None or not handler.text:
        yield _on(rules.NO_HANDLER, source, handler or model)
    if members is not None:
        yield from _against(source, model, members, lsp=runtime is not None and runtime.text.lower() == "lsp")


def _against(source: Source, model: Node, members: Collection[str], *, lsp: bool) -> Iterator[Finding]:
    for key in FILES:
        named = model.get(key)
        if named is not None and named.text and named.text not in members:
            close = difflib.get_close_matches(named.text[:80], list(members), n=1)
            remedy = f"the archive holds {close[0]!r}: name that, or add {named.text!r}" if close else ""
            yield _on(rules.MISSING_FILE, source, named, f"{key} {named.text!r}", remedy=remedy)
    handler = model.get("handler")
    if handler is not None and handler.text and not lsp:
        file = handler.text.partition(":")[0]
        if file not in members and f"{file}.py" not in members and file not in BUILT_IN:
            yield _on(rules.MISSING_HANDLER, source, handler, repr(handler.text))


def _keys(source: Source, node: Node, known: tuple[str, ...]) -> Iterator[Finding]:
    old = next((key for key, _ in node.pairs if key.text in _OLD), None)
    if old is not None:
        yield _on(rules.OLD_FORMAT, source, old)
    for key, _ in node.pairs:
        if key.text in known or key.text in _OLD or (old is not None and key.text == "description"):
            continue
        same = [name for name in known if name.lower() == key.text.lower().replace("_", "").replace("-", "")]
        close = same or difflib.get_close_matches(key.text[:80], known, n=1, cutoff=0.8)
        start = source.offset(key.line, key.column) + 1
        edit = None
        if same and source.text[start : start + len(key.text)] == key.text:
            edit = Edit(start=start, end=start + len(key.text), text=same[0])
        remedy = f"write {close[0]}" if close else ""
        yield _on(rules.MANIFEST_KEY, source, key, repr(key.text), remedy=remedy, edit=edit)


def _on(
    rule: Any, source: Source, node: Node, what: str = "", *, remedy: str = "", edit: Edit | None = None
) -> Finding:
    finding: Finding = rule.on(source.name, node.line, node.column, what, remedy=remedy, edit=edit)
    return finding


KIND: Final = FileKind(name="ts_manifest", title="a model archive's MANIFEST.json", recognise=recognise, check=check)

"""YAML and JSON as they are in the wild: several documents, anchors, tags; every node with its place.

Read by events, so that no depth of nesting can exhaust the stack in C; meaning is YAML 1.1's, as Java and Compose
read it. `yamltext` is the strict reader of our own specs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

_MAX_NODES: Final = 500_000
_MAX_DEPTH: Final = 100
_RESOLVER: Final = yaml.SafeLoader("")


class PlacedYamlError(Exception):
    """A text that is not YAML; ``line`` and ``column`` count from 1."""

    def __init__(self, reason: str, line: int, column: int) -> None:
        self.reason, self.line, self.column = reason, line, column
        super().__init__(reason)


@dataclass(slots=True)
class Node:
    """A value with the place where it starts: a scalar, a list of nodes, or pairs of nodes."""

    line: int
    column: int
    kind: str
    text: str = ""
    style: str = ""
    items: list[Node] = field(default_factory=list)
    pairs: list[tuple[Node, Node]] = field(default_factory=list)

    def get(self, key: str) -> Node | None:
        """Return the value of ``key``; of several, the last, as the readers do."""
        found = None
        for name, value in self.pairs:
            if name.text == key:
                found = value
        return found

    @property
    def value(self) -> Any:
        """A scalar as YAML 1.1 means it; ``None`` for what is no scalar."""
        if self.kind != "scalar":
            return None
        if self.style:
            return self.text
        tag = _RESOLVER.resolve(yaml.ScalarNode, self.text, (True, False))  # type: ignore[no-untyped-call]
        try:
            return _RESOLVER.construct_object(yaml.ScalarNode(tag, self.text))
        except (yaml.YAMLError, ValueError, OverflowError):
            return self.text

    def scalars(self) -> list[Node]:
        """Return the scalars of a list, or the scalar itself."""
        return [self] if self.kind == "scalar" else [item for item in self.items if item.kind == "scalar"]

    def walk(self) -> Iterator[Node]:
        """Yield this node and everything below it."""
        waiting = [self]
        while waiting:
            node = waiting.pop()
            yield node
            waiting += [value for _, value in reversed(node.pairs)]
            waiting += reversed(node.items)


def documents(text: str) -> list[Node]:
    """Return every document of ``text``; raise `PlacedYamlError` where it is broken."""
    text = text.removeprefix("\ufeff")
    try:
        return list(_documents(text))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        if mark and mark.index >= len(text):  # libyaml names a line behind the last where a text ends too early
            before = text.rstrip("\r\n")
            start = max(before.rfind("\n"), before.rfind("\r")) + 1
            line = len(re.findall(r"\r\n|\r|\n", before)) + 1
            raise PlacedYamlError(reason, line, len(before) - start + 1) from error
        raise PlacedYamlError(reason, mark.line + 1 if mark else 1, mark.column + 1 if mark else 1) from error
    except yaml.reader.ReaderError as error:
        at = int(error.position) if isinstance(error.position, int) else 0
        line = text.count("\n", 0, at) + 1
        raise PlacedYamlError(str(error.reason), line, at - text.rfind("\n", 0, at)) from error


def _documents(text: str) -> Iterator[Node]:
    anchors: dict[str, Node] = {}
    stack: list[Node] = []
    keys: list[Node | None] = []
    count = 0
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    for event in yaml.parse(text, Loader=loader):
        if isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            node = stack.pop()
            keys.pop()
            if not stack:
                yield node
            continue
        if not isinstance(event, yaml.NodeEvent):
            continue
        assert event.start_mark is not None  # libyaml marks every node
        line, column = event.start_mark.line + 1, event.start_mark.column + 1
        count += 1
        if count > _MAX_NODES or len(stack) > _MAX_DEPTH:
            raise PlacedYamlError("too many or too deep values", line, column)
        if isinstance(event, yaml.AliasEvent):
            node = anchors.get(event.anchor or "", Node(line, column, "scalar"))
            if any(node is open_node for open_node in stack):
                raise PlacedYamlError(f"the alias *{event.anchor} stands inside its anchor", line, column)
        elif isinstance(event, yaml.ScalarEvent):
            node = Node(line, column, "scalar", text=event.value, style=event.style or "")
        else:
            node = Node(line, column, "map" if isinstance(event, yaml.MappingStartEvent) else "list")
        if not isinstance(event, yaml.AliasEvent) and event.anchor is not None:
            anchors[event.anchor] = node
        _attach(node, stack, keys)
        if isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            stack.append(node)
            keys.append(None)
        elif not stack:
            yield node


def _attach(node: Node, stack: list[Node], keys: list[Node | None]) -> None:
    if not stack:
        return
    parent = stack[-1]
    if parent.kind == "list":
        parent.items.append(node)
    elif (key := keys[-1]) is None:
        keys[-1] = node
    else:
        parent.pairs.append((key, node))
        keys[-1] = None

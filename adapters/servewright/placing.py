"""Several servers, one fleet: which model goes to which server, by the memory that each needs."""

from __future__ import annotations

import fnmatch
import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from servewright import units
from servewright.errors import InputError, Problem, SpecError
from servewright.fleet import Fleet, Shard
from servewright.specfile import Document


def placed(fleet: Fleet, backend: str) -> Mapping[str, Fleet]:
    """Return the fleet of each server by its name; a fleet without shards is one server, called ``""``.

    The largest model goes first, and each to the server with the most room left (in bytes), unless the shard's
    ``models`` say where it belongs; of equals, the first. A model needs its ``limits.memory``, or what its files take
    on the disk. Same fleet, same placement. Raises `SpecError` for a model that no server has room for, or whose need
    nobody tells.
    """
    if not fleet.shards:
        return {"": fleet}
    if len({shard.memory is None for shard in fleet.shards}) > 1:
        mute = next(shard.name for shard in fleet.shards if shard.memory is None)
        raise SpecError(
            [Problem(reason="it tells no memory, and others do", remedy="tell it", path=f"shards.{mute}.memory")]
        )
    needs = {document.spec.name: _need(document, backend, fleet.shards) for document in fleet.models}
    chosen = _chosen(fleet, needs)
    found = {}
    for shard in fleet.shards:
        own = tuple(document for document in fleet.models if chosen[document.spec.name] == shard.name)
        if own:
            found[shard.name] = replace(
                fleet, name=f"{fleet.name}-{shard.name}"[:128], models=own, server=shard.server, shards=()
            )
    return found


def shard_of(fleet: Fleet, backend: str, name: str | None) -> Fleet:
    """Return the fleet of the server called ``name``, or ``fleet`` itself where it is one server's."""
    names = ", ".join(shard.name for shard in fleet.shards)
    if name is None:
        if fleet.shards:
            raise InputError(f"{fleet.name} is shared by several servers; choose one with --shard: {names}")
        return fleet
    found = placed(fleet, backend)
    if name not in found or not fleet.shards:
        raise InputError(f"no shard {name!r} with models; " + (f"choose from {names}" if names else "it has none"))
    return found[name]


def memory_of(document: Document, backend: str) -> int | None:
    """Return the bytes that a model needs: what its spec says, or what its files take; ``None`` where neither tells."""
    if document.spec.limits.memory:
        return document.spec.limits.memory
    source = document.spec.source(backend)
    return (_size(document.resolve(source.path)) if source else 0) or None


def _size(path: Path) -> int:
    try:
        if path.is_dir():
            return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        return path.stat().st_size
    except OSError:
        return 0


def _need(document: Document, backend: str, shards: Sequence[Shard]) -> int:
    need = memory_of(document, backend)
    if need is None:
        if shards[0].memory is None or _pinned(document.spec.name, shards):
            return 0
        remedy = "write limits: {memory: 2GiB}, or name the model under the shard's models"
        raise SpecError([document.problem("limits.memory", "nobody tells how much memory this model needs", remedy)])
    return need


def _pinned(name: str, shards: Sequence[Shard]) -> Shard | None:
    return next((shard for shard in shards if any(fnmatch.fnmatchcase(name, each) for each in shard.models)), None)


def _chosen(fleet: Fleet, needs: Mapping[str, int]) -> dict[str, str]:
    """Return the shard of every model."""
    chosen: dict[str, str] = {}
    room = {shard.name: shard.memory for shard in fleet.shards}
    counts = dict.fromkeys(room, 0)
    waiting: list[Document] = []
    for document in fleet.models:
        name = document.spec.name
        if (pin := _pinned(name, fleet.shards)) is None:
            waiting.append(document)
            continue
        chosen[name] = pin.name
        room[pin.name] = _less(room[pin.name], needs[name])
        counts[pin.name] += 1
    problems = list(_overfull(room))
    # Most room first; of shards that tell no memory, the one with the least on it.
    limited = fleet.shards[0].memory is not None
    heap = [(-(left or 0), counts[name], order, name) for order, (name, left) in enumerate(room.items())]
    heapq.heapify(heap)
    for document in sorted(waiting, key=lambda each: (-needs[each.spec.name], each.spec.name)):
        name, need = document.spec.name, needs[document.spec.name]
        left, count, order, shard = heap[0]
        if limited and need > -left:
            most = units.format_size(max(0, -left))
            reason = f"it needs {units.format_size(need)}, and no shard has more than {most} left"
            problems.append(document.problem("limits.memory", reason, "add a shard, or give one more memory"))
            continue
        chosen[name] = shard
        heapq.heapreplace(heap, (left + need, count + 1, order, shard))
    if problems:
        raise SpecError(problems)
    return chosen


def _less(left: int | None, need: int) -> int | None:
    return None if left is None else left - need


def _overfull(room: Mapping[str, int | None]) -> Iterator[Problem]:
    for name, left in room.items():
        if left is not None and left < 0:
            reason = f"the models that must be there need {units.format_size(-left)} more than it has"
            yield Problem(reason=reason, remedy="give it more memory, or fewer models", path=f"shards.{name}")

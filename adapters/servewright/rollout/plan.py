"""A rollout's plan: frozen steps that a backend lays out, carries out, takes back and observes.

Every step holds, as plain values, all that is needed to do it and to undo it, twice if need be: a plan that was
journalled can be carried on, or taken back, by another process than the one that made it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from servewright.fleet import Fleet
    from servewright.server import RunningServer
    from servewright.specfile import Document

# The kinds of steps that are the same on every server; all others are the backend's.
PUBLISH = "publish"
PROBE = "probe"


class Phase(StrEnum):
    """How far a rollout is; before `PROMOTE`, only who asks for the canary gets it."""

    PREPARE = "prepare"
    CANARY = "canary"
    PROBE = "probe"
    PROMOTE = "promote"
    RETIRE = "retire"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step on one server.

    ``kind`` says who carries it out: `PUBLISH` and `PROBE` are the core's, others the backend's. ``answers`` says, by
    the way of asking (``digits``, ``digits label stable``, ``digits version 3``), which versions may answer from the
    beginning of this step to the beginning of the next.
    """

    phase: Phase
    kind: str
    title: str
    model: str
    values: Mapping[str, Any] = field(default_factory=dict)
    answers: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the step as plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Step:
        """Return what `as_json` gave; `KeyError`, `TypeError` or `ValueError` for anything else."""
        return cls(**{**values, "phase": Phase(values["phase"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """What an earlier rollout did to a server: its steps, and whether they stand or were taken back."""

    steps: tuple[Step, ...]
    promoted: bool


Naming = Literal["model", "label"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """What a rollout shall do on one server.

    Attributes:
        fleet: the models and their new versions.
        artifact: the folder of the packaged models.
        options: what was said of the server beside its addresses: ``store``, ``config`` and the like.
        naming: what the canary is called by, where the server leaves a choice.
        label: the canary's label, or what its name ends in.
        replace_all: whatever else the server holds may go.
        drain_s: how long a retired version must have had nothing to do, in seconds.
        earlier: the last rollout that went to this server, if one did.
    """

    fleet: Fleet
    artifact: Path
    options: Mapping[str, str]
    naming: Naming = "model"
    label: str = "canary"
    replace_all: bool = False
    drain_s: float = 1.0
    earlier: Earlier | None = None


class Place(StrEnum):
    """Where a server is found with respect to a step."""

    BEFORE = "before"
    BETWEEN = "between"
    AFTER = "after"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rolling:
    """How the live servers of a backend are moved.

    Attributes:
        options: what can be said of a server beside its addresses, and what each means.
        prepare: checks what the server must allow and lays the steps out; touches nothing. What is missing is an
            `InputError` that names it.
        carry_out: does a step and waits, for at most so many seconds, until it shows; doing it again does no harm.
        undo: takes a step back and waits until that shows, whether it was done, half done, or never begun.
        observe: tells where the server is with respect to a step.
        canary: the client and the spec with which a probe step asks the canary and nobody else.
    """

    options: Mapping[str, str]
    prepare: Callable[[Aim, RunningServer, Any], tuple[Step, ...]]
    carry_out: Callable[[Step, Any, float], None]
    undo: Callable[[Step, Any, float], None]
    observe: Callable[[Step, Any], Place]
    canary: Callable[[Step, Any, Document], tuple[Any, Document]]

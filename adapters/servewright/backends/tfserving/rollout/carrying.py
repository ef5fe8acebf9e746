"""A step carried out: the server gets a config, and it shows that it has it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from servewright.backends.tfserving.rollout.config_file import replace_file
from servewright.backends.tfserving.rollout.served import AVAILABLE, END, status, version_of_label
from servewright.backends.tfserving.rollout.state import State, models_of
from servewright.errors import CheckFailedError, ProbeError
from servewright.processes import wait_until
from servewright.rollout.plan import Place, Step

if TYPE_CHECKING:
    from servewright.backends.tfserving.client import Client

_EVERY_S = 0.1


def carry_out(step: Step, client: Client, patience_s: float) -> None:
    """Give the server the config of a step, and wait until it shows."""
    _reach(step, State(**step.values["after"]), client, patience_s)


def undo(step: Step, client: Client, patience_s: float) -> None:
    """Give the server the config from before a step, and wait until it shows."""
    _reach(step, State(**step.values["before"]), client, patience_s)


def observe(step: Step, client: Client) -> Place:
    """Tell which of a step's two configs the server shows; the first where they look the same, as a pin does."""
    for which, place in (("before", Place.BEFORE), ("after", Place.AFTER)):
        with suppress(CheckFailedError):  # a version that does not load: neither
            if not any(_lacking(State(**step.values[which]), client, set())):
                return place
    return Place.BETWEEN


def _reach(step: Step, state: State, client: Client, patience_s: float) -> None:
    failed_before = {
        (model, entry.version) for model in state.serves for entry in status(client, model) if entry.state == END
    }
    if step.values["way"]["via"] == "file":
        replace_file(Path(step.values["way"]["file"]), state.config)
    else:
        client.reload(state.config, timeout_s=patience_s)

    def settled() -> bool:
        if lacking := next(_lacking(state, client, failed_before), ""):
            raise ProbeError(lacking)
        return True

    what = f"{step.title} shows"
    if step.values["way"]["via"] == "file":
        what += f" (does the server poll {step.values['way']['file']}: --model_config_file_poll_wait_seconds?)"
    wait_until(settled, within_s=patience_s, every_s=_EVERY_S, what=what)


def _lacking(state: State, client: Client, failed_before: set[tuple[str, int]]) -> Iterator[str]:
    """Yield each way in which the server does not show ``state`` yet; a version that failed is a `CheckFailedError`.

    ``failed_before``: the server remembers the failures of earlier attempts until it tries again.
    """
    for model, versions in state.serves.items():
        entries = {entry.version: entry for entry in status(client, model)}
        for version in versions:
            found = entries.get(version)
            if found is None or found.state != AVAILABLE:
                if found and found.state != END:
                    failed_before.discard((model, version))
                elif found and found.error_message and (model, version) not in failed_before:
                    raise CheckFailedError(f"{model} version {version} does not load: {found.error_message}")
                yield f"{model} {version} is {found.state if found else 'not known'}"
        for version, entry in entries.items():
            if entry.state == AVAILABLE and version not in versions:
                yield f"{model} {version} is still served"
    for model in models_of(state.message):
        if model.name not in state.serves:
            continue
        for label, wanted in model.version_labels.items():
            if (label_is := version_of_label(client, model.name, label)) != wanted:
                yield f"label {label} of {model.name} is on {label_is or 'nothing'} and not on {wanted}"
    for name, labels in state.unknown.items():
        for label in labels:
            if version_of_label(client, name, label) is not None:
                yield f"label {label} of {name} is still there"

"""The steps of a rollout: the states of one server, each from the one before it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from servewright.backends.tfserving import protos
from servewright.backends.tfserving.rollout.change import Change
from servewright.backends.tfserving.rollout.served import listed
from servewright.backends.tfserving.rollout.state import CONFIG, State, models_of, text_of
from servewright.errors import InputError
from servewright.rollout.plan import PROBE, PUBLISH, Aim, Phase, Step
from servewright.rollout.publishing import same

_MOST_STATES = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Lays the states of one server out."""

    aim: Aim
    changes: Sequence[Change]
    way: Mapping[str, str]

    def steps(self, current: State) -> Iterator[Step]:
        """Yield every step, from the config that is there to the one that shall be."""
        if self.aim.naming == "model":
            unused = {self._canary(change): () for change in self.changes}
            current = replace(current, serves={**current.serves, **unused})
        states = [(Phase.PREPARE, "", self._seen(current, None))]
        for phase, title, state in self._states(current):
            states.append((phase, title, self._seen(state, len(states) if phase is not Phase.RETIRE else None)))
        published = probed = False
        for (_, _, before), (phase, title, after) in pairwise(states):
            if phase is not Phase.PREPARE and not published:
                yield from self._publishing(before)
                published = True
            if phase in (Phase.PROMOTE, Phase.RETIRE) and not probed:
                yield from self._probing(before)
                probed = True
            yield self._config_step(phase, title, before, after)

    def _states(self, current: State) -> Iterator[tuple[Phase, str, State]]:
        """Yield each state after the current one, with its phase and title."""
        state = current
        everyone = {change.name: change for change in self.changes}
        pinned = self._with(state, {name: {"versions": change.old} for name, change in everyone.items()})
        if pinned.message != state.message:
            state = replace(pinned, serves=state.serves)
            yield Phase.PREPARE, f"pin {self._named(lambda change: change.old)}", state
        both = {name: (*change.old, change.version) for name, change in everyone.items()}
        naming = self.aim.naming
        if naming == "model":
            state = self._with_canaries(state, {name: max(change.old) for name, change in everyone.items()})
            yield Phase.CANARY, f"add {self._canaries()}, with the old version first", state
            state = self._with_canaries(state, {name: change.version for name, change in everyone.items()})
            yield Phase.CANARY, f"serve the new version as {self._canaries()}", state
            state = self._with(state, {name: {"versions": versions} for name, versions in both.items()})
            yield Phase.PROMOTE, f"load {self._named(lambda change: (change.version,))} beside the old", state
        else:
            state = self._with(state, {name: {"versions": versions} for name, versions in both.items()})
            yield Phase.CANARY, f"load {self._named(lambda change: (change.version,))} beside the old", state
            labelled = {name: {self.aim.label: change.version} for name, change in everyone.items()}
            state = self._with(state, {name: {"labels": labels} for name, labels in labelled.items()})
            yield Phase.CANARY, f"put label {self.aim.label} on the new version", state
        moved = {name: {"labels": dict(change.labels)} for name, change in everyone.items()}
        if naming == "label":
            for name, change in everyone.items():
                moved[name]["labels"].setdefault(self.aim.label, change.version)
        labelled_state = self._with(state, moved)
        if labelled_state.message != state.message:
            state = labelled_state
            yield Phase.PROMOTE, "move the labels to the new version", state
        yield (
            Phase.RETIRE,
            "retire the old version" + (" and the canary" if naming == "model" else ""),
            self._final(state),
        )

    def _final(self, state: State) -> State:
        config = state.message
        canaries = set(map(self._canary, self.changes)) if self.aim.naming == "model" else set()
        kept = [model for model in models_of(config) if model.name not in canaries]
        by_name = {change.name: change for change in self.changes}
        final = protos.ModelServerConfig()
        final.model_config_list.SetInParent()
        for model in kept:
            entry = final.model_config_list.config.add()
            entry.CopyFrom(model)
            if change := by_name.get(model.name):
                entry.model_version_policy.CopyFrom(change.policy)
                entry.version_labels.clear()
                entry.version_labels.update(change.labels)
        served = {change.name: change.final for change in self.changes}
        return State(config=text_of(final), serves={**state.serves, **dict.fromkeys(canaries, ()), **served})

    def _with(self, state: State, changed: Mapping[str, Mapping[str, Any]]) -> State:
        """Return ``state`` with other versions served, or labels added, of some models."""
        config, serves = state.message, dict(state.serves)
        for model in models_of(config):
            change = changed.get(model.name, {})
            if versions := change.get("versions"):
                model.model_version_policy.Clear()
                model.model_version_policy.specific.versions.extend(sorted(versions))
                serves[model.name] = tuple(sorted(versions))
            for label, version in change.get("labels", {}).items():
                model.version_labels[label] = version
        return State(config=text_of(config), serves=serves)

    def _with_canaries(self, state: State, versions: Mapping[str, int]) -> State:
        config, serves = state.message, dict(state.serves)
        for change in self.changes:
            name = self._canary(change)
            model = next((each for each in models_of(config) if each.name == name), None)
            if model is None:
                model = config.model_config_list.config.add()
                model.CopyFrom(next(each for each in models_of(config) if each.name == change.name))
                model.name = name
                model.version_labels.clear()
                model.model_version_policy.Clear()
            elif not serves[name]:
                raise InputError(f"the server serves a model called {name} already; choose another --canary-name")
            model.model_version_policy.specific.versions[:] = [versions[change.name]]
            serves[name] = (versions[change.name],)
        return State(config=text_of(config), serves=serves)

    def _canary(self, change: Change) -> str:
        return f"{change.name}-{self.aim.label}"

    def _canaries(self) -> str:
        return ", ".join(map(self._canary, self.changes))

    def _named(self, versions: Any) -> str:
        return ", ".join(f"{change.name} {listed(versions(change))}" for change in self.changes)

    def _seen(self, state: State, number: int | None) -> State:
        """Return ``state`` with what shows, in a polled file, that the server has read it.

        That is a label of its own: it can only resolve where the server has taken the whole config. A policy alone
        would not show. The first and the last config have none: all of them are gone then.
        """
        if self.way["via"] != "file":
            return state
        first = self.changes[0]
        everyone = [_marker(each) for each in range(1, _MOST_STATES)]
        if number is None:
            return replace(state, unknown={first.name: everyone})
        config = state.message
        model = next(each for each in models_of(config) if each.name == first.name)
        model.version_labels[_marker(number)] = max(first.old)
        return replace(state, config=text_of(config))

    def _publishing(self, state: State) -> Iterator[Step]:
        for change in self.changes:
            source, target = self.aim.artifact / "models" / change.name / str(change.version), change.folder
            target = target / str(change.version)
            if target.exists():
                if not same(source, target):
                    raise InputError(
                        f"{target} holds another model; give the spec a new version, or move that folder away"
                    )
                continue
            alone = "pin its version (model_version_policy: specific) on all of them, or roll them out one at a time"
            pinned = change.policy.HasField("specific")
            yield Step(
                phase=Phase.PREPARE, kind=PUBLISH, title=f"put {change.name} {change.version} into {change.folder}",
                model=change.name,
                values={"source": str(source), "target": str(target), **({} if pinned else {"alone": (
                    f"with the policy of {change.name} they would load version {change.version} before their turn: "
                    + alone)})},
                answers=self._answers(state, state),
            )  # fmt: skip

    def _probing(self, state: State) -> Iterator[Step]:
        for change in self.changes:
            how = (
                {"model": self._canary(change)}
                if self.aim.naming == "model"
                else {"model": change.name, "label": self.aim.label}
            )
            yield Step(
                phase=Phase.PROBE, kind=PROBE, title=f"probe {' label '.join(how.values())}", model=change.name,
                values=how, answers=self._answers(state, state),
            )  # fmt: skip

    def _config_step(self, phase: Phase, title: str, before: State, after: State) -> Step:
        return Step(
            phase=phase, kind=CONFIG, title=title, model=self.changes[0].name,
            values={"way": dict(self.way), "before": before.as_json(), "after": after.as_json()},
            answers=self._answers(before, after),
        )  # fmt: skip

    def _answers(self, before: State, after: State) -> dict[str, tuple[str, ...]]:
        """Return which versions may answer while a server goes from one state to the other, by the way of asking."""
        found: dict[str, set[int]] = {}
        for state in (before, after):
            for model in {*(change.name for change in self.changes), *map(self._canary, self.changes)}:
                if served := state.serves.get(model):
                    found.setdefault(model, set()).add(max(served))
                    for version in served:
                        found.setdefault(f"{model} version {version}", set()).add(version)
                for label, version in state.labels(model).items():
                    if not _is_marker(label):
                        found.setdefault(f"{model} label {label}", set()).add(version)
        return {asked: tuple(map(str, sorted(versions))) for asked, versions in sorted(found.items())}


def _marker(number: int) -> str:
    return f"servewright-step-{number}"


def _is_marker(label: str) -> bool:
    return label.startswith("servewright-step-")

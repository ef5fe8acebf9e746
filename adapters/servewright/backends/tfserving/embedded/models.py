"""The models that are served: what the config and the disk ask for is loaded, what they no longer ask for unloaded."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Set
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from servewright.backends.tfserving import protos
from servewright.backends.tfserving.embedded import config as configs
from servewright.backends.tfserving.embedded.disk import Watched, wanted_versions
from servewright.backends.tfserving.embedded.loading import Loader
from servewright.backends.tfserving.embedded.log import log
from servewright.backends.tfserving.embedded.servable import Servable
from servewright.backends.tfserving.embedded.states import State, States, not_available, servable_id
from servewright.backends.tfserving.embedded.status import (
    Code,
    StatusError,
    failed_precondition,
    invalid_argument,
    not_found,
)
from servewright.backends.tfserving.embedded.workers import Workers


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """How models are watched and loaded; durations are in seconds."""

    poll_s: int = 1
    max_load_retries: int = 5
    load_retry_interval_s: float = 60.0
    allow_labels_for_unavailable: bool = False
    platforms: frozenset[str] = frozenset({"tensorflow"})


@dataclass(slots=True, eq=False)
class _Slot:
    """A version that was asked for and is not forgotten yet."""

    path: str
    aspired: bool = True
    state: State = State.START
    servable: Servable | None = None
    task: asyncio.Task[None] | None = None


class Models:
    """Every model, version and label of a server. Used from the event loop's thread alone."""

    def __init__(self, options: ModelOptions, loader: Loader, disk_workers: Workers) -> None:
        self.options, self.states = options, States()
        self._loader, self._disk_workers = loader, disk_workers
        self._config = protos.ModelServerConfig()
        self._labels: dict[str, dict[str, int]] | None = None
        self._watched: list[Watched] = []
        self._slots: dict[str, dict[int, _Slot]] = {}
        self._reloading = asyncio.Lock()
        self._polling = asyncio.Lock()
        self._poll_task: asyncio.Task[None] | None = None

    # Asking

    def find(self, spec: Any) -> Servable:
        """Return the version that a ModelSpec means; raise `StatusError`."""
        name = spec.name
        if not name:
            raise invalid_argument("ModelSpec has no name specified.")
        choice = spec.WhichOneof("version_choice")
        if choice is None:
            return self.latest(name)
        version = spec.version.value if choice == "version" else self.version_of_label(name, spec.version_label)
        return self.version(name, version)

    def latest(self, name: str) -> Servable:
        """Return the highest version of a model that is available."""
        best: Servable | None = None
        for slot in self._slots.get(name, {}).values():
            servable = slot.servable
            if (
                servable is not None
                and slot.state is State.AVAILABLE
                and (best is None or servable.version > best.version)
            ):
                best = servable
        if best is None:
            raise not_found(f"Servable not found for request: Latest({name})")
        return best

    def version(self, name: str, version: int) -> Servable:
        """Return one version of a model, if it is available."""
        slot = self._slots.get(name, {}).get(version)
        if slot is None or slot.servable is None or slot.state is not State.AVAILABLE:
            raise not_found(f"Servable not found for request: Specific({name}, {version})")
        return slot.servable

    def version_of_label(self, name: str, label: str) -> int:
        """Return the version that a label points to."""
        if self._labels is None:
            raise StatusError(Code.UNAVAILABLE, f"Model labels does not init yet.{label}")
        version = self._labels.get(name, {}).get(label)
        if version is None:
            raise invalid_argument(f"Unrecognized servable version label: {label}")
        return version

    # Configuring

    async def reload(self, config: Any) -> None:
        """Replace the config, and wait until each model that is new in it has a version.

        Raises `StatusError` where the config is refused, or where a new model has none that loads.
        """
        async with self._reloading:
            configs.check_transition(self._config, config)
            if config.WhichOneof("config") is None:
                log("I", "server_core.cc", "Taking no action for empty config.")
                return
            if config.WhichOneof("config") == "custom_model_config":
                raise configs.custom_config_error()
            configs.check_model_list(config)
            labels = self._checked_labels(config)
            first = self._config.WhichOneof("config") is None
            configs.check_platforms(config, self.options.platforms)
            self._config, self._labels = config, labels
            await self._apply(config, first=first)
            if any(model.HasField("logging_config") for model in config.model_config_list.config):
                raise invalid_argument("No request-logger-creator provided.")
            log("I", "server_core.cc", "Finished adding/updating models")

    def _checked_labels(self, config: Any) -> dict[str, dict[str, int]]:
        labels: dict[str, dict[str, int]] = {}
        for model in config.model_config_list.config:
            states = self.states.of(model.name)
            for label, version in sorted(model.version_labels.items(), key=lambda item: (item[1], item[0])):
                entry = states.get(version)
                available = entry is not None and entry.state is State.AVAILABLE
                known = (self._labels or {}).get(model.name, {}).get(label)
                tolerated = self.options.allow_labels_for_unavailable and known in (None, version)
                if not available and not tolerated:
                    raise failed_precondition(
                        f"Request to assign label to version {version} of model {model.name}, which is not currently "
                        "available for inference"
                    )
                labels.setdefault(model.name, {})[label] = version
        return labels

    async def _apply(self, config: Any, *, first: bool) -> None:
        log("I", "server_core.cc", "Adding/updating models.")
        before = {watched.name for watched in self._watched}
        self._watched = []
        for model in config.model_config_list.config:
            log("I", "server_core.cc", f" (Re-)adding model: {model.name}")
            self._watched.append(Watched(name=model.name, base_path=model.base_path, policy=model.model_version_policy))
        now = {watched.name for watched in self._watched}
        for name in before - now:
            self._aspire(name, {})
        waiting = asyncio.ensure_future(self.states.settled(sorted(now - before)))
        try:
            await asyncio.sleep(0)  # the wait begins before the first version changes
            if self.options.poll_s < 0:
                log("W", "servewright", "file_system_poll_wait_seconds is negative: no version is ever looked for")
            else:
                # What changes for the other models shows at the next look at the disk, as on the real server.
                await self.poll(only=None if self.options.poll_s == 0 else now - before)
            if first and self.options.poll_s > 0:
                self._poll_task = asyncio.create_task(self._poll_for_ever())
            found = await waiting
        finally:
            waiting.cancel()
        if reason := not_available("servable" if first else "model", found):
            raise StatusError(Code.UNKNOWN, reason)

    # Watching the disk

    async def poll(self, only: Set[str] | None = None) -> None:
        """Look once which versions are on disk, and start to load and unload what has changed.

        ``only`` names the models to look at; all of them unless told otherwise.
        """
        async with self._polling:
            watched = self._watched
            looked_at = [model for model in watched if only is None or model.name in only]
            try:
                found = await self._disk_workers.run(
                    lambda: {model.name: wanted_versions(model) for model in looked_at}
                )
            except StatusError as error:
                log(
                    "E",
                    "file_system_storage_path_source.cc",
                    f"FileSystemStoragePathSource encountered a filesystem access error: {error.message}",
                )
                return
            if watched is not self._watched:  # a reload came in between; its own poll follows
                return
            for name, versions in found.items():
                self._aspire(name, versions)

    async def _poll_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self.options.poll_s)
            await self.poll()

    def _aspire(self, name: str, versions: Mapping[int, str]) -> None:
        slots = self._slots.setdefault(name, {})
        for version, slot in list(slots.items()):
            if version in versions:
                continue
            slot.aspired = False
            if slot.state is State.END:
                del slots[version]
        for version, path in versions.items():
            if version in slots:
                slots[version].aspired = True
            else:
                slots[version] = _Slot(path)
                self.states.set(name, version, State.START)
        self._act(name)

    def _act(self, name: str) -> None:
        """Start every load and unload that is right now: a version goes only when one that is wanted can answer."""
        slots = self._slots.get(name, {})
        for version in sorted(slots, reverse=True):
            slot = slots[version]
            if slot.aspired and slot.state is State.START and slot.task is None:
                slot.task = asyncio.create_task(self._load(name, version, slot))
        aspired = [slot for slot in slots.values() if slot.aspired]
        if aspired and not any(slot.state is State.AVAILABLE for slot in aspired):
            return
        for version, slot in slots.items():
            if not slot.aspired and slot.state is State.AVAILABLE:
                slot.state = State.UNLOADING
                slot.task = asyncio.create_task(self._unload(name, version, slot))

    async def _load(self, name: str, version: int, slot: _Slot) -> None:
        identity = servable_id(name, version)
        slot.state = State.LOADING
        self.states.set(name, version, State.LOADING)
        log("I", "loader_harness.cc", f"Loading servable version {identity}")
        error: StatusError | None = None
        for attempt in range(self.options.max_load_retries + 1):
            if attempt:
                await asyncio.sleep(self.options.load_retry_interval_s)
                if not slot.aspired:
                    break
                log("I", "retrier.cc", f"Retrying of Loading servable: {identity} retry: {attempt}")
            try:
                slot.servable = await self._loader.load(name, version, slot.path)
                error = None
                break
            except Exception as failed:  # noqa: BLE001  (whatever a model does, the others go on)
                error = failed if isinstance(failed, StatusError) else StatusError(Code.INTERNAL, repr(failed))
                log("E", "retrier.cc", f"Loading servable: {identity} failed: {error}")
        slot.task = None
        if slot.servable is None:
            error = error or StatusError(Code.CANCELLED, f"Loading of {identity} was cancelled")
            log("I", "loader_harness.cc", f"Encountered an error for servable version {identity}: {error}")
            log("E", "aspired_versions_manager.cc", f"Servable {identity} cannot be loaded: {error}")
            self._end(name, version, slot, error)
        else:
            slot.state = State.AVAILABLE
            self.states.set(name, version, State.AVAILABLE)
            log("I", "loader_harness.cc", f"Successfully loaded servable version {identity}")
        self._act(name)

    async def _unload(self, name: str, version: int, slot: _Slot) -> None:
        identity = servable_id(name, version)
        self.states.set(name, version, State.UNLOADING)
        log("I", "loader_harness.cc", f"Quiescing servable version {identity}")
        servable, slot.servable = slot.servable, None
        if servable is not None:
            await servable.unload()
        log("I", "loader_harness.cc", f"Done unloading servable version {identity}")
        slot.task = None
        wanted_again = slot.aspired
        self._end(name, version, slot, None)
        if wanted_again:
            self._slots[name].pop(version, None)
            await self.poll()
        self._act(name)

    def _end(self, name: str, version: int, slot: _Slot, error: StatusError | None) -> None:
        slot.state = State.END
        self.states.set(name, version, State.END, error)
        if not slot.aspired:
            self._slots[name].pop(version, None)

    async def close(self) -> None:
        """Stop to watch and to load; memory is the system's to free."""
        tasks = [slot.task for slots in self._slots.values() for slot in slots.values() if slot.task]
        if self._poll_task:
            tasks.append(self._poll_task)
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task

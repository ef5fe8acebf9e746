"""The bench on a real server: started with a setting, loaded, and stopped; its death is an answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from servewright import launching, packaging, runs, specfile
from servewright.backend import Backend, Identity, Payload, Transport
from servewright.digest import Digest, combined, digest_of_file
from servewright.errors import LaunchError, ProbeError, ServewrightError
from servewright.fleet import Fleet
from servewright.launching import Choice
from servewright.load import requests
from servewright.load.measurement import Measurement
from servewright.load.running import StartMethod, measure
from servewright.load.watching import server_of
from servewright.load.workload import Closed, Pace, Workload, senders
from servewright.samples import Arrays, batchable
from servewright.server import RunningServer
from servewright.specfile import Document
from servewright.tuning import spec_text
from servewright.tuning.gain import half_width
from servewright.tuning.knobs import Demand, Tuning
from servewright.tuning.machine import machine
from servewright.tuning.search import Question, broken
from servewright.tuning.study import Goal, Load, Measured, Seen, ServiceTime, Settings

_TIMEOUT_S: Final = 10.0
_SERVICE_S: Final = 2.0
_SLOW_S: Final = 3 * _TIMEOUT_S
_FAILED: Final = 0.5  # the share of errors from which what was answered tells nothing
_SETTLING_IN: Final = Closed(concurrency=64)
_SETTLING_LASTS: Final = 6  # times as long as a measurement, at most
_ROUNDS, _NO_FASTER = 3, 1.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is tuned: a fleet of one, its spec's text, and how its server is started."""

    fleet: Fleet
    backend: Backend
    choice: Choice
    tuning: Tuning
    text: str
    transport: Transport = "http"
    data: Path | None = None
    image: str | None = None
    trust: bool = False

    @property
    def document(self) -> Document:
        """The spec."""
        return self.fleet.models[0]

    def files_digest(self) -> str:
        """Return what tells the files that the spec only names: the model's, its code, and the golden samples."""
        spec, backend = self.document.spec, self.backend.name
        source = spec.source(backend)
        named = [source.path, (source.code or "").partition(":")[0]] if source is not None else []
        named += [each.inputs for each in spec.golden]
        found: dict[str, Digest] = {}
        for name in filter(None, named):
            path = self.document.resolve(name)
            files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
            found |= {str(Path(name, file.relative_to(path))): digest_of_file(file) for file in files}
        return combined(found).sha256

    def keys(self, settings: Settings) -> dict[str, Any]:
        """Return the spec's keys for ``settings``; the sizes that it allows go on ending with the greatest batch."""
        keys = dict(self.tuning.keys(settings))
        allowed, size = self.document.spec.batching.allowed_sizes, keys.get("batching.max_size")
        if allowed and isinstance(size, int) and "batching.allowed_sizes" not in keys:
            keys["batching.allowed_sizes"] = [*(each for each in allowed if each < size), size]
        return keys

    def rewritten(self, settings: Settings | None) -> str:
        """Return the spec's text with ``settings``; as it is for none."""
        keys = self.keys(settings) if settings is not None else {}
        return spec_text.changed(self.text, keys, file=self.document.file)

    def with_settings(self, settings: Settings | None, *, backends: Sequence[str]) -> Fleet:
        """Return the fleet with ``settings``."""
        if settings is None:
            return self.fleet
        document = specfile.parse(
            self.rewritten(settings).encode(), folder=self.document.folder, file=self.document.file, backends=backends
        )
        return replace(self.fleet, models=(document,))


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """A model that a server serves with some settings, ready to be loaded."""

    document: Document
    server: RunningServer
    client: Any
    payloads: tuple[Payload, ...]
    headers: Callable[[], Mapping[str, str]]
    identity: Identity


@dataclass(slots=True, kw_only=True)
class LiveBench:
    """Answers questions by measuring; the server of the last question stays until another setting is asked for.

    Before anything is measured on it, a new server is loaded for ``settle_in_s``, and one that compiles itself as it
    runs again and again until it gets no faster: users meet servers that have run for days. ``bound`` says of what was
    measured `once` where the load generator was too slow. ``start_method`` is that of the load's processes. What was
    ``timed_before`` is not timed again.
    """

    subject: Subject
    goal: Goal
    backends: Sequence[str]
    each_s: float = 5.0
    warm_up_s: float = 1.0
    settle_in_s: float = 1.5
    start_method: StartMethod = "spawn"
    until: float | None = None
    identity: Identity | None = None
    on_identity: Callable[[Identity], None] = lambda _: None
    timed_before: Sequence[ServiceTime] = ()
    on_timed: Callable[[ServiceTime], None] = lambda _: None
    bound: list[str] = field(default_factory=list)
    _held: ExitStack = field(default_factory=ExitStack)
    _serving: Serving | None = None
    _settings: Settings | None = None

    def close(self) -> None:
        """Stop the server that is held."""
        self._serving = self._settings = None
        held, self._held = self._held, ExitStack()
        held.close()

    def over(self) -> bool:
        """Tell whether the time is spent."""
        return self.until is not None and time.monotonic() >= self.until

    def service_times(self, rows: Sequence[int]) -> list[ServiceTime]:
        """Measure requests of many rows alone, and one row on every core at once, on a server that batches nothing.

        Where so many rows take too long for one request, or the server does not take them, fewer are measured.
        """
        self.close()
        cores, subject = machine().cores, self.subject
        with self.running(subject.tuning.alone(subject.document.spec, Demand(waiting=1, cores=cores))) as serving:
            found: list[ServiceTime] = []
            for count in self._possible(rows):
                found += self._timed(serving, count, found)
            return [*found, self.timed(serving, rows[0], busy=cores)] if cores > 1 else found

    def _timed(self, serving: Serving, rows: int, known: Sequence[ServiceTime]) -> Sequence[ServiceTime]:
        """Measure requests of ``rows`` rows, or of half as many, and so on, down to those that are ``known``."""
        while known and rows > known[-1].rows:
            if rows * known[-1].ms / known[-1].rows <= 1e3 * _TIMEOUT_S / 2:
                try:
                    return [self.timed(serving, rows)]
                except ProbeError:
                    if not serving.server.alive():
                        raise
            rows //= 2
        return [] if known else [self.timed(serving, rows)]

    def timed(self, serving: Serving, rows: int, *, busy: int = 1) -> ServiceTime:
        """Measure requests of so many rows, ``busy`` at a time."""
        for known in self.timed_before:
            if (known.rows, known.busy) == (rows, busy):
                return known
        payload = self._payload(serving, rows)
        for seconds in (_SERVICE_S, _SLOW_S):  # a request that takes longer than the first has begun before it
            seen = self.loaded(serving, Closed(concurrency=busy), payloads=payload, seconds=seconds)
            if len(seen.latency) and not seen.errors:
                break
        found = _service_time(rows, busy, seen)
        self.on_timed(found)
        return found

    def _possible(self, rows: Sequence[int]) -> Sequence[int]:
        """Return ``rows``, or one of them for a model that takes no batches."""
        return rows if batchable(self.subject.document.spec.signature) else rows[:1]

    def measure(self, question: Question) -> Measured:
        """Load the server with the question's settings; one that fails under them is unsafe."""
        begin = time.monotonic()
        if self._settings != question.settings:
            self.close()  # what the last server does at its end is not this setting's fault
        try:
            if self._serving is None:
                self._serving = self._held.enter_context(self.running(question.settings))
                self._settings = question.settings
            seen = self.loaded(self._serving, question.load.pace)
            if not self._serving.server.alive():
                raise LaunchError("the server ended under load: " + self._serving.server.why_ended())
        except (LaunchError, ProbeError) as error:
            self._abandon()
            return Measured(
                rate=0.0, p50_ms=None, p90_ms=None, p99_ms=None, error_share=1.0, index=question.index,
                stage=question.stage, settings=question.settings, load=question.load, predicted=question.predicted,
                unsafe=str(error).splitlines()[0], seconds=round(time.monotonic() - begin, 2),
            )  # fmt: skip
        shown = seen_of(seen)
        return Measured(
            **shown.model_dump(), index=question.index, stage=question.stage, settings=question.settings,
            load=question.load, predicted=question.predicted, errors=dict(seen.errors), client_bound=seen.client_bound,
            broken=broken(self.goal, shown, question.load), seconds=round(time.monotonic() - begin, 2),
        )  # fmt: skip

    def once(self, serving: Serving, load: Load) -> Seen:
        """Return what users of a server see."""
        seen = self.loaded(serving, load.pace)
        if not serving.server.alive():
            raise LaunchError("the server ended under load: " + serving.server.why_ended())
        if seen.client_bound:
            self.bound.append(seen.client_bound)
        return seen_of(seen)

    def _abandon(self) -> None:
        """Stop a server that has failed; that it cannot even be stopped is no news of the setting."""
        try:
            self.close()
        except ServewrightError:
            self._serving = None

    @contextmanager
    def running(self, settings: Settings | None) -> Iterator[Serving]:
        """Start a server with ``settings``, the spec's own for none, for as long as the block lasts."""
        with self.serving(self.subject.with_settings(settings, backends=self.backends)) as (found,):
            yield found

    @contextmanager
    def serving(self, fleet: Fleet) -> Iterator[tuple[Serving, ...]]:
        """Start one server of all models of ``fleet``, each ready to be loaded, for as long as the block lasts."""
        subject, backend = self.subject, self.subject.backend
        with runs.running() as run:
            artifact = packaging.package(fleet, backend, run.folder / "artifact", packed=False, trust=subject.trust)
            server, client = launching.start(fleet, backend, artifact, subject.choice)
            try:
                self.identity = backend.identity(client)
                found = tuple(self._ready(document, server, client, self.identity) for document in fleet.models)
                self.on_identity(self.identity)
                self._settle_in(found)
                yield found
            finally:
                client.close()
                server.stop()

    def _ready(self, document: Document, server: RunningServer, client: Any, identity: Identity) -> Serving:
        inputs = requests.samples(document, file=self.subject.data)
        payloads, headers = self._prepared(document, client, inputs)
        return Serving(
            document=document, server=server, client=client, payloads=payloads, headers=headers, identity=identity
        )

    def _settle_in(self, models: Sequence[Serving]) -> None:
        """Load a server's first model until it gets no faster, the others half a round: what compiles is the server."""
        first, *others = models
        within_s = min(self.subject.tuning.settles_within_s, _SETTLING_LASTS * self.each_s)
        until_settled(lambda: self._settling(first, self.settle_in_s), within_s=within_s)
        for each in others:
            self._settling(each, self.settle_in_s / 2)

    def _settling(self, serving: Serving, seconds: float) -> float:
        return self.loaded(serving, _SETTLING_IN, seconds=seconds, warm_up_s=0.0).rate

    def _payload(self, serving: Serving, rows: int) -> tuple[Payload, ...]:
        inputs = [requests.stacked(serving.document, rows, file=self.subject.data)]
        found, _ = self._prepared(serving.document, serving.client, inputs)
        return found

    def _prepared(
        self, document: Document, client: Any, inputs: list[Arrays]
    ) -> tuple[tuple[Payload, ...], Callable[[], Mapping[str, str]]]:  # fmt: skip
        subject = self.subject
        return requests.prepared(document, subject.backend, client, subject.transport, inputs, file=subject.data)

    def loaded(
        self, serving: Serving, pace: Pace, *, payloads: tuple[Payload, ...] = (), seconds: float = 0.0,
        warm_up_s: float | None = None,
    ) -> Measurement:  # fmt: skip
        """Load a server: for ``seconds``, or until it is stable for none. Ctrl-C leaves no half measurement behind."""
        workload = Workload(
            endpoint=requests.endpoint(serving.server, self.subject.transport),
            payloads=payloads or serving.payloads, pace=pace, duration_s=seconds or self.each_s,
            warm_up_s=self.warm_up_s if warm_up_s is None else warm_up_s, timeout_s=_TIMEOUT_S,
            processes=senders(pace, machine().cores), settle=not seconds,
        )  # fmt: skip
        pid = getattr(serving.server.handle, "pid", None)
        found = measure(
            workload, headers=serving.headers, saturated=server_of(pid), start_method=self.start_method
        )  # fmt: skip
        if found.ended == "interrupted":
            raise KeyboardInterrupt
        return found


def until_settled(load: Callable[[], float], *, within_s: float) -> list[float]:
    """Load a server, once at least, until it gets no faster or the time is over; return the rates of all rounds."""
    rates, until = [load()], time.monotonic() + within_s
    while not settled(rates) and time.monotonic() < until:
        rates.append(load())
    return rates


def settled(rates: Sequence[float]) -> bool:
    """Tell whether a server got no faster from some rounds of its load to the last ones; noise is not growth."""
    before, last = rates[-2 * _ROUNDS : -_ROUNDS], rates[-_ROUNDS:]
    return len(before) == _ROUNDS and sum(last) <= _NO_FASTER * sum(before)


def seen_of(found: Measurement) -> Seen:
    """Return a measurement in a study's form."""

    def latency(share: float) -> float | None:
        value = found.percentile_ms(share)
        return round(value, 4) if value == value else None

    return Seen(
        rate=round(found.rate, 3), p50_ms=latency(0.5), p90_ms=latency(0.9), p99_ms=latency(0.99),
        p999_ms=latency(0.999), error_share=round(found.error_share, 6),
    )  # fmt: skip


def _service_time(rows: int, busy: int, found: Measurement) -> ServiceTime:
    """Return the median with an interval from the medians of the load's windows."""
    middle = found.percentile_ms(0.5)
    if middle != middle or found.error_share > _FAILED:
        errors = ", ".join(f"{count} times {name}" for name, count in found.errors.items()) or "none came"
        raise ProbeError(f"a request of {rows} rows got no answer within {_TIMEOUT_S:g} s ({errors}); try --transport")
    windows = np.array([point["p50_ms"] for point in found.timeline if point["p50_ms"] is not None] or [middle])
    half = half_width(float(windows.std(ddof=1)), len(windows)) if len(windows) > 1 else 0.0
    return ServiceTime(
        rows=rows, ms=round(middle, 4), low_ms=round(middle - half, 4), high_ms=round(middle + half, 4),
        requests=len(found.latency), busy=busy,
    )  # fmt: skip

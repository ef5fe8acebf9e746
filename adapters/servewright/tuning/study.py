"""A study: what was asked, measured, predicted and concluded; the content of ``study.json``.

Latencies are in milliseconds, rates in good answers per second,
shares from 0 to 1; settings are named as the server names them, `Setting.keys` as the spec does.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from servewright.errors import InputError
from servewright.load.arrivals import Arrivals
from servewright.load.saturation import Slo
from servewright.load.workload import Closed, Pace
from servewright.writing import write_texts

FORMAT: Final = 1
FILE: Final = "study.json"

Value: TypeAlias = int | float | str | tuple[int, ...]


class Record(BaseModel):
    """A part of a study: frozen, numbers finite; keys that a later version adds are passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


def _plain(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


Settings = dict[str, Annotated[Value, BeforeValidator(_plain)]]


class Machine(Record):
    """Where it was measured: ``cores`` are those that this process may use, ``memory`` in bytes."""

    cpu: str
    cores: int
    memory: int
    system: str
    python: str


class Server(Record):
    """What was measured, as the server says it; a stand-in proves only itself."""

    backend: str
    title: str
    name: str
    version: str
    stand_in: bool
    runtime: str


class Subject(Record):
    """Which model: ``spec`` is the path that was given, ``digest`` that of the spec's meaning."""

    name: str
    spec: str
    digest: str


class Load(Record):
    """What is sent: a closed loop of ``concurrency`` callers, or an open one at ``rate`` with Poisson arrivals."""

    concurrency: int | None = None
    rate: float | None = None

    @classmethod
    def of(cls, pace: Pace) -> Load:
        """Return the load that ``pace`` is."""
        return cls(concurrency=pace.concurrency) if isinstance(pace, Closed) else cls(rate=pace.rate)

    @property
    def pace(self) -> Pace:
        """What the load generator and the simulation take."""
        if self.concurrency is not None:
            return Closed(concurrency=self.concurrency)
        assert self.rate is not None
        return Arrivals(rate=self.rate, poisson=True, seed=5)

    def __str__(self) -> str:
        return f"{self.concurrency} callers" if self.concurrency is not None else f"{self.rate:g}/s"


class Goal(Record):
    """What is asked: the promises, the load, and how much may be measured.

    ``maximise``: ``rate`` finds the greatest rate within the promises, ``latency`` the smallest p99 at a rate that is
    asked. ``loads``: those under which settings are compared, least first. ``margin``: a setting that could win by less
    is not looked for.
    """

    maximise: Literal["rate", "latency"]
    latency_ms: dict[str, float]
    errors: float
    loads: tuple[Load, ...]
    budget: int
    time_s: float | None = None
    margin: float = 0.03
    seed: int = 0

    @property
    def slo(self) -> Slo:
        """The promises, as a measurement is held against them."""
        return Slo(latency_ms=tuple(self.latency_ms.items()), errors=self.errors)

    def __str__(self) -> str:
        what = "the greatest rate" if self.maximise == "rate" else "the smallest p99"
        promises = [f"{name} within {limit:g} ms" for name, limit in self.latency_ms.items()]
        errors = f"errors within {self.errors:.2%}" if self.errors else "no errors"
        return f"{what} under {self.loads_named}, with {', '.join([*promises, errors])}"

    @property
    def loads_named(self) -> str:
        """The loads, in words; a ladder by its ends."""
        if len(self.loads) > 3:
            return f"{self.loads[0]} to {self.loads[-1]}, in {len(self.loads)} steps"
        return ", ".join(map(str, self.loads))


class Knob(Record):
    """One setting that is tuned: the server's name, the spec's key, what is tried, and what the spec has now."""

    name: str
    key: str
    unit: str
    values: tuple[Annotated[Value, BeforeValidator(_plain)], ...]
    default: Annotated[Value, BeforeValidator(_plain)] | None
    left_out: str = ""


class Seen(Record):
    """What users saw, or would see, in one measurement; latencies are ``None`` where nothing was answered."""

    rate: float
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    p999_ms: float | None = None
    error_share: float = 0.0

    def percentile_ms(self, share: float) -> float:
        """Return one of the latencies, NaN where it is not known."""
        found = {0.5: self.p50_ms, 0.9: self.p90_ms, 0.99: self.p99_ms, 0.999: self.p999_ms}[share]
        return float("nan") if found is None else found


Stage = Literal["calibrate", "verify", "default"]


class Measured(Seen):
    """A measurement, in the order tried.

    ``unsafe`` says how the server failed under the setting, empty where it did not: then nothing else was seen.
    ``broken`` is the first promise that it breaks, ``predicted`` what the model said of it before, ``client_bound`` why
    the figures are the load generator's own.
    """

    index: int
    stage: Stage
    settings: Settings
    load: Load
    errors: dict[str, int] = Field(default_factory=dict)
    seconds: float = 0.0
    unsafe: str = ""
    broken: str = ""
    client_bound: str = ""
    predicted: Seen | None = None


class ServiceTime(Record):
    """How long a request of so many rows takes, with a 95 % interval of the mean; a calibration point.

    ``busy`` such requests were under way at once, each computed by a worker of its own.
    """

    rows: int
    ms: float
    low_ms: float
    high_ms: float
    requests: int = 0
    busy: int = 1


class Model(Record):
    """The simulation that was fitted: each fit's numbers by name, and how far off they are (a weighted log ratio)."""

    fits: tuple[dict[str, float], ...] = ()
    error: float
    rounds: int


class Predicted(Record):
    """The simulation's word on a setting under a load, corrected by what was measured near it."""

    settings: Settings
    load: Load
    seen: Seen
    holds: bool


class Predictions(Record):
    """The grid in short: how many settings, in how many seconds, and those that no other beats on rate and p99."""

    settings: int
    seconds: float
    frontier: tuple[Predicted, ...]
    best: tuple[Predicted, ...]


class Winner(Record):
    """What won: the setting, the spec's keys with their new values, and the measurement that says so."""

    settings: Settings
    keys: dict[str, Any]
    measurement: int


class Round(Record):
    """The default and the winner, one after the other; ``first`` is which of them went first."""

    index: int
    first: Literal["default", "tuned"]
    default: Seen
    tuned: Seen


class Comparison(Record):
    """The winner against the default in alternation, under ``load``.

    ``gain`` is the ratio of rates, or of p99 the other way round, as the geometric mean of the rounds, with its 95 %
    interval. ``default_broke`` and ``tuned_broke`` count the rounds in which a promise was broken. ``beats``: the
    winner `keeps_alone`, or kept the promises in at least half of the rounds and the whole interval lies above 1; the
    rate under an open loop is what is asked, and beats nobody. ``measurement``: that of the setting that was compared.
    """

    load: Load
    of: Literal["rate", "latency"]
    rounds: tuple[Round, ...]
    gain: float
    low: float
    high: float
    beats: bool
    default_broke: int = 0
    tuned_broke: int = 0
    measurement: int | None = None

    @property
    def tuned_fails(self) -> bool:
        """Whether the winner broke a promise in most rounds."""
        return 2 * self.tuned_broke > len(self.rounds)

    @property
    def keeps_alone(self) -> bool:
        """Whether the default broke a promise in most rounds, and the winner in a quarter of them at most."""
        return 2 * self.default_broke > len(self.rounds) and 4 * self.tuned_broke <= len(self.rounds)


class Diff(Record):
    """What the winner changes: unified diffs of the spec and of each rendered file, by path."""

    spec: str
    files: dict[str, str]


class Fleet(Record):
    """How many replicas of the winner a rate needs; ``simulated``, not measured.

    ``keeps``: the p99 that is simulated keeps its promise. Where none does, however many there are, these are the
    replicas that the rate and the head-room ask for.
    """

    rate: float
    head_room: float
    knee: float
    replicas: int
    each: float
    p99_ms: float | None
    keeps: bool = True
    simulated: Literal[True] = True


class Study(Record):
    """All of it: the content of ``study.json``.

    ``state``: ``complete``; ``spent`` where the budget or the time ended first; ``interrupted`` by Ctrl-C;
    ``nothing`` where no setting keeps the promises. ``conclusion`` is one sentence.
    """

    format: Literal[1] = 1
    state: Literal["complete", "spent", "interrupted", "nothing"]
    conclusion: str
    began: str
    ended: str
    machine: Machine
    versions: dict[str, str]
    server: Server
    subject: Subject
    goal: Goal
    knobs: tuple[Knob, ...]
    default: Settings
    service_times: tuple[ServiceTime, ...]
    model: Model | None
    predictions: Predictions | None
    measurements: tuple[Measured, ...]
    winner: Winner | None
    comparison: Comparison | None
    diff: Diff | None
    plan: Fleet | None = None
    warnings: tuple[str, ...] = ()

    @property
    def alone(self) -> tuple[ServiceTime, ...]:
        """How long requests take that are alone on the server, by their rows."""
        return tuple(sorted((each for each in self.service_times if each.busy == 1), key=lambda each: each.rows))

    def answers(self, each: Measured) -> bool:
        """Tell whether a measurement keeps every promise, under a load that was asked for; others only calibrate."""
        return not each.broken and not each.unsafe and each.load in self.goal.loads

    @property
    def best(self) -> Measured | None:
        """The measurement of the winner, or of what was compared; without either, the best that answers."""
        chosen = self.comparison.measurement if self.comparison is not None else None
        if self.winner is not None:
            chosen = self.winner.measurement
        if chosen is not None:
            return next((each for each in self.measurements if each.index == chosen), None)
        kept = [each for each in self.measurements if self.answers(each) and each.p99_ms is not None]
        if self.goal.maximise == "rate":
            return max(kept, key=lambda each: each.rate, default=None)
        return min(kept, key=lambda each: each.p99_ms or 0.0, default=None)


def load(path: Path) -> Study:
    """Read ``study.json``, or the one in the folder ``path``."""
    file = path / FILE if path.is_dir() else path
    try:
        return Study.model_validate_json(file.read_bytes())
    except FileNotFoundError as error:
        hint = "name a study; one that has not ended goes on with: servewright tune ... --resume"
        raise InputError(f"{file} does not exist; {hint}") from error
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}; check its permissions") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "its start"
        raise InputError(
            f"{file} is no study of format {FORMAT}: {place}: {first['msg']}; name a study.json"
        ) from error


def save(study: Study, path: Path) -> None:
    """Write ``study`` where `load` found it, in one step."""
    file = path / FILE if path.is_dir() else path
    write_texts({file.name: text(study)}, file.absolute().parent)


def text(study: Study) -> str:
    """Return ``study`` as the text of ``study.json``."""
    return json.dumps(study.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")

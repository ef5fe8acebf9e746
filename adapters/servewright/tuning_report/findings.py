"""What a report says of a study, whatever it is printed on: a verdict, figures, and sections of words and tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median
from typing import Final

from servewright import units
from servewright.load.measurement import PERCENTILES
from servewright.tuning.study import Comparison, Measured, Seen, Study
from servewright.tuning_report.numerals import (
    NOTHING,
    TIMES,
    bare,
    exact,
    ms,
    number,
    rate,
    setting,
    settings,
    share,
    span,
)

_SMALL: Final = 0.05  # the greatest gain that is worth no second look
_ENDED: Final = {
    "complete": "",
    "spent": "The budget or the time ended before the search was sure that nothing better is left.",
    "interrupted": "The study was interrupted: this is what it knew by then. Go on with: servewright tune ... --resume",
    "nothing": "No setting that was measured keeps the promises.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Cells below their columns; ``figures`` are the places of columns that hold numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    figures: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """A unified diff of a file."""

    title: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of the report; ``key`` names it for links, and for the charts that belong to it, of which is ``shown``."""

    key: str
    title: str
    says: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    patches: tuple[Patch, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A number that stands out, and what it is."""

    value: str
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """All that a report says. ``stand_in`` is empty for a real server, ``ended`` for a study that came to its end."""

    title: str
    verdict: str
    conclusion: str
    stand_in: str
    ended: str
    notes: tuple[str, ...]
    figures: tuple[Figure, ...]
    sections: tuple[Section, ...]
    made: str


def found(study: Study) -> Findings:
    """Return what there is to say of ``study``."""
    server = study.server
    of_stand_in = f"Measured on {server.name}, a stand-in of {server.title}. It proves only itself: measure again on "
    sections = (
        _compared(study), _changes(study), _frontier(study), _predicted(study), _tried(study), _calibrated(study),
        _planned(study), _asked(study), _made(study),
    )  # fmt: skip
    return Findings(
        title=f"{study.subject.name} on {server.title}",
        verdict=_verdict(study),
        conclusion="" if study.conclusion == study.state else study.conclusion,
        stand_in=f"{of_stand_in}the real server before you rely on a figure." if server.stand_in else "",
        ended=_ENDED[study.state],
        notes=tuple(each for each in study.warnings if not _said_already(study, each)),
        figures=tuple(_figures(study)),
        sections=tuple(section for section in sections if section is not None),
        made=f"servewright {study.versions.get('servewright', '')}".strip() + f", {_when(study.ended)}",
    )


def _said_already(study: Study, warning: str) -> bool:
    """Tell whether the head says what a warning does: which server it was, or that nothing beats the default."""
    beaten = study.comparison is not None and not study.comparison.beats
    told = study.server.stand_in and warning.startswith(f"measured on {study.server.name}, a stand-in")
    return told or (beaten and warning.startswith("nothing beats"))


def promised(study: Study) -> tuple[str, float | None]:
    """Return the latency that the report shows, by name, and the promise on it in milliseconds, if there is one."""
    for name, limit in study.goal.latency_ms.items():
        if name in PERCENTILES:
            return name, limit
    return "p99", None


def latency(seen: Seen, name: str) -> float | None:
    """Return one of the latencies in milliseconds; ``None`` where it is not known."""
    value = seen.percentile_ms(PERCENTILES[name])
    return None if value != value else value


def sides(comparison: Comparison, name: str) -> tuple[tuple[float, float | None], tuple[float, float | None]]:
    """Return the median rate and latency ``name`` of the default, and of the tuned setting."""

    def middle(seen: list[Seen]) -> tuple[float, float | None]:
        latencies = [value for each in seen if (value := latency(each, name)) is not None]
        return (median(each.rate for each in seen) if seen else 0.0, median(latencies) if latencies else None)

    return middle([each.default for each in comparison.rounds]), middle([each.tuned for each in comparison.rounds])


def called(study: Study) -> str:
    """Return what the default was compared with: a setting is tuned only if it won."""
    return "tuned" if study.winner is not None else "candidate"


def what_broke(study: Study, each: Measured) -> str:
    """Return what came of a measurement, in words."""
    if each.unsafe:
        return f"unsafe: {each.unsafe}"
    if each.client_bound:
        why, _, _ = each.client_bound.partition(";")  # what follows is advice for `load`
        return f"client-bound: {why}"
    if each.load not in study.goal.loads:
        return "calibrates, is no answer"
    return f"breaks {each.broken}" if each.broken else "keeps the promises"


def gained(comparison: Comparison) -> str:
    """Return what a gain is of: the ratio of rates, or of p99 the other way round."""
    return "the default's rate" if comparison.of == "rate" else "quicker at p99 than the default"


def _verdict(study: Study) -> str:
    comparison = study.comparison
    if comparison is not None and comparison.keeps_alone:
        rounds = f" in {len(comparison.rounds) - comparison.tuned_broke} of {len(comparison.rounds)} rounds"
        return f"Tuned: it keeps the promises{rounds if comparison.tuned_broke else ''}, which the default breaks"
    if comparison is not None and comparison.tuned_fails:
        return "Keep the default: the best candidate broke the promises beside it"
    if comparison is not None and comparison.beats:
        return f"Tuned: {number(comparison.gain)} times {gained(comparison)}"
    if comparison is not None:
        return "Keep the default: nothing beats it beyond noise"
    if study.state == "nothing":
        return "No setting keeps the promises"
    if (kept := study.best) is not None:
        what = rate(kept.rate) if study.goal.maximise == "rate" else f"a p99 of {ms(kept.p99_ms)}"
        return f"Best so far: {what}, not yet compared with the default"
    return "Nothing to recommend yet"


def _figures(study: Study) -> Iterable[Figure]:
    name, limit = promised(study)
    promise = f", promised {exact(limit)} ms" if limit is not None else ", nothing promised"
    if (compared := study.comparison) is not None:
        between = f"95 % interval {number(compared.low)} to {number(compared.high)}"
        yield Figure(value=f"{number(compared.gain)}{TIMES}", what=f"{gained(compared)}; {between}")
        before, after = sides(compared, name)
        label = called(study)
        yield Figure(value=rate(after[0]), what=f"{label}; the default serves {rate(before[0])}")
        yield Figure(value=ms(after[1]), what=f"{name}, {label}{promise}; the default's is {ms(before[1])}")
    elif (kept := study.best) is not None:
        yield Figure(value=rate(kept.rate), what=f"best measured, under {kept.load}")
        yield Figure(value=ms(latency(kept, name)), what=f"its {name}{promise}")
    count, alone = len(study.measurements), len(study.service_times)
    lasted = span(sum(each.seconds for each in study.measurements))
    spent = f"measurements in {lasted}, after {alone} of service times, of {study.goal.budget} allowed"
    yield Figure(value=f"{count}", what=spent)


def _when(text: str) -> str:
    try:
        return datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M %Z").strip()
    except ValueError:
        return text


def _compared(study: Study) -> Section:
    compared = study.comparison
    if compared is None:
        said = "The default and the tuned setting were not measured against each other, so no gain is claimed."
        return Section(key="compared", title="Tuned against default", says=(said,))
    count = len(compared.rounds)
    said = _who_won(study, compared)
    how = f"Measured in alternation, {count} rounds under {compared.load}; who went first changed each round."
    rows = tuple(
        (
            str(each.index + 1), "default" if each.first == "default" else called(study), bare(each.default.rate),
            bare(each.tuned.rate), bare(each.default.p99_ms), bare(each.tuned.p99_ms),
        )
        for each in compared.rounds
    )  # fmt: skip
    label = called(study)
    columns = ("round", "first", "default, /s", f"{label}, /s", "default p99, ms", f"{label} p99, ms")
    table = Table(title="The rounds", columns=columns, rows=rows, figures=frozenset({0, 2, 3, 4, 5}))
    return Section(key="compared", title="Tuned against default", says=(said, how), tables=(table,))


def _who_won(study: Study, compared: Comparison) -> str:
    default, tuned, count = compared.default_broke, compared.tuned_broke, len(compared.rounds)
    broke = f"The default broke a promise in {default} of {count} rounds, the {called(study)} setting in {tuned}."
    reached = f"{number(compared.gain)} times {gained(compared)}"
    between = f"{number(compared.low)} and {number(compared.high)}"
    if compared.keeps_alone or compared.tuned_fails:
        return f"{broke} It reached {reached}; what breaks promises is no gain."
    if compared.beats:
        said = f"{reached}, and with 95 % confidence between {between} times: all of the interval lies above 1."
    else:
        said = (
            f"The best candidate reached {reached}, but the 95 % interval, {number(compared.low)} to "
            f"{number(compared.high)}, is not all above 1. That is no proof of a gain, so nothing is changed."
        )
        if compared.high > 1 + max(study.goal.margin, _SMALL):
            said += (
                f" Nor does it rule out a gain of up to {number(compared.high)} times: the rounds differ from each "
                "other. Go on with --resume and more --rounds, or on a quieter machine."
            )
        elif not compared.default_broke:
            said += " What you have is as good as anything that was tried."
    return f"{said} {broke}" if compared.default_broke or compared.tuned_broke else said


def _changes(study: Study) -> Section | None:
    if study.winner is None:
        return None
    rows = []
    for name, value in study.winner.settings.items():
        before = setting(study.default[name]) if name in study.default else "not set"
        rows.append((name, before, setting(value), "" if before == setting(value) else "changed"))
    table = Table(
        title="Settings of the server", columns=("setting", "default", "tuned", ""), rows=tuple(rows),
        figures=frozenset({1, 2}),
    )  # fmt: skip
    keys = ", ".join(f"{key}: {value}" for key, value in study.winner.keys.items())
    patches: list[Patch] = []
    if study.diff is not None:
        if study.diff.spec.strip():
            patches.append(Patch(title=f"The spec, {study.subject.spec}", text=study.diff.spec))
        patches += [Patch(title=path, text=text) for path, text in study.diff.files.items() if text.strip()]
    says = (f"In the spec: {keys}",) if keys else ()
    return Section(key="changes", title="The change", says=says, tables=(table,), patches=tuple(patches))


def _frontier(study: Study) -> Section:
    name, limit = promised(study)
    says, shown = [], [f"Further right is more throughput, further down is less waiting ({name})."]
    if limit is not None:
        shown[0] += f" The line is the promise, {name} within {exact(limit)} ms; what lies above it breaks it."
    if predicted(study):
        shown[0] += " A thin line leads from a measurement to where it was predicted."
    simulated = study.predictions
    tables: tuple[Table, ...] = ()
    if simulated is None:
        says.append("The grid was not simulated: the study ended before.")
    else:
        says.append(f"{simulated.settings:,} settings were simulated in {span(simulated.seconds)}.")
        if simulated.frontier:
            says[0] += " By the simulation, corrected by what was measured, none beats these on both rate and latency."
            shown[0] += " The outlined marks are the simulated frontier."
        rows = tuple(
            (settings(each.settings), str(each.load), bare(each.seen.rate), bare(latency(each.seen, name)),
             "yes" if each.holds else "no")
            for each in simulated.frontier
        )  # fmt: skip
        columns = ("setting", "load", "rate, /s", f"{name}, ms", "keeps the promises")
        if rows:
            tables = (Table(title="The simulated frontier", columns=columns, rows=rows, figures=frozenset({2, 3})),)
    return Section(key="frontier", title="Throughput and latency", says=tuple(says), shown=tuple(shown), tables=tables)


def predicted(study: Study) -> list[tuple[Measured, Seen]]:
    """Return the measurements that were predicted before they were made."""
    return [(each, each.predicted) for each in study.measurements if each.predicted is not None and not each.unsafe]


def _predicted(study: Study) -> Section:
    pairs = predicted(study)
    if not pairs:
        said = "No measurement was predicted beforehand: the first ones fit the model, and no other followed."
        return Section(key="predicted", title="Predicted beside measured", says=(said,))
    rates = [abs(said.rate / each.rate - 1) for each, said in pairs if each.rate > 0]
    tails = [abs(said.p99_ms / each.p99_ms - 1) for each, said in pairs if each.p99_ms and said.p99_ms is not None]
    says = "Each prediction was written down before its measurement."
    if rates:
        says += f" Half of the rates are off by {share(median(rates))} or less"
        says += f", half of the p99 by {share(median(tails))} or less." if tails else "."
    rows = tuple(
        (str(each.index), settings(each.settings), bare(said.rate), bare(each.rate), bare(said.p99_ms),
         bare(each.p99_ms))
        for each, said in pairs
    )  # fmt: skip
    columns = ("#", "setting", "rate predicted, /s", "measured, /s", "p99 predicted, ms", "measured, ms")
    table = Table(title="Predictions", columns=columns, rows=rows, figures=frozenset({0, 2, 3, 4, 5}))
    return Section(key="predicted", title="Predicted beside measured", says=(says,), tables=(table,))


def _tried(study: Study) -> Section:
    if not study.measurements:
        return Section(key="tried", title="What was tried", says=("Nothing was measured.",))
    unsafe = [each for each in study.measurements if each.unsafe]
    names = list(dict.fromkeys(name for each in study.measurements for name in each.settings))
    says = ["In the order of the measurements. The first ones fit the simulation, which chose the later ones."]
    if unsafe:
        settings_ = "one setting" if len(unsafe) == 1 else f"{len(unsafe)} settings"
        says.append(f"The server failed under {settings_}: that is a result too. Do not run it so.")
    rows = tuple(
        (
            str(each.index), each.stage,
            *(setting(each.settings[name]) if name in each.settings else NOTHING for name in names),
            str(each.load), bare(None if each.unsafe else each.rate), bare(each.p50_ms), bare(each.p99_ms),
            share(each.error_share) if not each.unsafe else NOTHING, what_broke(study, each),
        )
        for each in study.measurements
    )  # fmt: skip
    columns = ("#", "stage", *names, "load", "rate, /s", "p50, ms", "p99, ms", "errors", "result")
    numeric = frozenset({0, *range(2, 2 + len(names)), *range(3 + len(names), 7 + len(names))})
    table = Table(title="All measurements", columns=columns, rows=rows, figures=numeric)
    return Section(key="tried", title="What was tried", says=tuple(says), tables=(table,))


def _calibrated(study: Study) -> Section:
    times = list(study.alone)
    if not times:
        said = "The service time was not calibrated: the study ended before."
        return Section(key="calibrated", title="Service time by batch size", says=(said,))
    says = ["How long one request of so many rows takes alone, with 95 % intervals."]
    first, last = times[0], times[-1]
    if last.rows > first.rows and first.ms > 0 and last.ms > 0:
        alone, together = first.ms / first.rows, last.ms / last.rows
        said = f"A row costs {ms(alone)} at {first.rows}, {ms(together)} at {last.rows}: "
        more = f"{number(alone / together)} times less" if alone > together else "batching saves nothing here"
        says.append(f"{said}{more}.")
    says += [
        f"With {each.busy} workers busy, each with one of {each.rows}, it takes {ms(each.ms)} ({ms(each.low_ms)} to "
        f"{ms(each.high_ms)})."
        for each in study.service_times
        if each.busy > 1
    ]
    rows = tuple(
        (str(each.rows), number(each.ms), number(each.low_ms), number(each.high_ms),
         number(each.ms / max(each.rows, 1)), f"{each.requests:,}")
        for each in times
    )  # fmt: skip
    columns = ("rows", "ms", "from", "to", "ms a row", "requests")
    table = Table(title="Calibration", columns=columns, rows=rows, figures=frozenset(range(6)))
    return Section(key="calibrated", title="Service time by batch size", says=tuple(says), tables=(table,))


def _planned(study: Study) -> Section | None:
    plan = study.plan
    if plan is None:
        return None
    said = (
        f"{exact(plan.rate)}/s with {exact(100 * plan.head_room)} % head-room needs {plan.replicas:,} replicas at "
        f"{rate(plan.each)} each; one holds {rate(plan.knee)} within the promises."
    )
    tail = f" A p99 of {ms(plan.p99_ms)} is to be expected." if plan.p99_ms is not None else ""
    if not plan.keeps:
        tail += " That breaks the promise, and by this simulation no number of replicas keeps it."
    how = "Simulated from one measured server, not measured on a fleet."
    return Section(key="planned", title="The plan", says=(said + tail, how))


def _asked(study: Study) -> Section:
    goal = study.goal
    aim = "the greatest rate within the promises" if goal.maximise == "rate" else "the smallest p99 at the asked rate"
    limits = ", ".join(f"{name} within {exact(limit)} ms" for name, limit in goal.latency_ms.items())
    promises = f"{limits + ', ' if limits else ''}errors at most {exact(100 * goal.errors)} %"
    time = f", {span(goal.time_s)}" if goal.time_s is not None else ""
    asked = Table(
        title="The goal",
        columns=("what", "asked"),
        rows=(
            ("goal", aim), ("promises", promises), ("load", goal.loads_named),
            ("limits", f"{goal.budget} measurements{time}"),
            ("gains not sought", f"below {exact(100 * goal.margin)} %"), ("seed", str(goal.seed)),
        ),
    )  # fmt: skip
    rows = tuple(
        (knob.name, knob.key, ", ".join(map(setting, knob.values)) or NOTHING, knob.unit or NOTHING,
         setting(knob.default), knob.left_out or NOTHING)
        for knob in study.knobs
    )  # fmt: skip
    knobs = Table(title="Settings", columns=("setting", "key", "values", "unit", "spec has", "left out"), rows=rows)
    return Section(key="asked", title="What was asked", tables=(asked, *((knobs,) if rows else ())))


def _made(study: Study) -> Section:
    server, machine = study.server, study.machine
    rows: list[tuple[str, str]] = [
        ("server", f"{server.name or server.title} {server.version}".strip()),
        ("kind", "a stand-in" if server.stand_in else "a real server"),
        ("runtime", server.runtime),
        ("processor", f"{machine.cpu}, {machine.cores} cores"),
        ("memory", _memory(machine.memory)),
        ("system", f"{machine.system}, Python {machine.python}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in study.versions.items()) or NOTHING),
        ("spec", study.subject.spec),
        ("digest", study.subject.digest),
        ("began", _when(study.began)),
        ("ended", _when(study.ended)),
    ]
    if study.model is not None:
        off = f"off by {number(study.model.error)} (weighted log ratio) after {study.model.rounds} rounds"
        rows.append(("simulation", "; ".join(filter(None, (_numbers(study.model.fits), off)))))
    table = Table(title="Machine and versions", columns=("what", "is"), rows=tuple(rows))
    return Section(key="made", title="Where it was measured", tables=(table,))


def _numbers(fits: Sequence[Mapping[str, float]]) -> str:
    """Return the numbers of a model by name, from the least that a fit has to the greatest."""
    found: dict[str, list[float]] = {}
    for values in fits:
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    ends = {name: dict.fromkeys([number(min(values)), number(max(values))]) for name, values in found.items()}
    return ", ".join(f"{name} {' to '.join(both)}" for name, both in ends.items())


def _memory(size: int) -> str:
    return f"{number(size / 2**30)} GiB" if size >= 2**30 else units.format_size(max(size, 0))

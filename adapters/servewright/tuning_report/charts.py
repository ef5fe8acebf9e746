"""What is drawn: each chart as marks, lines and ticks at places in a picture, ready to be written as SVG.

Places are in pixels of the picture, from its upper left. Every mark says its figures, for hovering and for readers of
screens; its shape tells what it is, so that no chart depends on colours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from servewright.tuning.study import Comparison, Measured, Seen, Study
from servewright.tuning_report import findings
from servewright.tuning_report.findings import latency, promised, what_broke
from servewright.tuning_report.numerals import TIMES, bare, exact, ms, number, rate, settings
from servewright.tuning_report.scale import Scale, axis

Shape = Literal["dot", "ring", "cross", "square", "diamond", "triangle"]

SHAPES: Final[dict[Shape, str]] = {
    "dot": "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0",
    "ring": "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0",
    "cross": "M-4.5 -4.5L4.5 4.5M-4.5 4.5L4.5 -4.5",
    "square": "M-5 -5H5V5H-5Z",
    "diamond": "M0 -7.5L7.5 0L0 7.5L-7.5 0Z",
    "triangle": "M0 -6.5L6.5 5H-6.5Z",
}
_LETTER: Final = 7.2  # how wide a letter is, at most, in the font of the ticks
_BOLD: Final = 7.8  # and in that of the labels
_TOP: Final = 30.0
_LITTLE: Final = 6.0  # where no title stands above
_BOTTOM: Final = 44.0
_RIGHT: Final = 16.0
_ROW: Final = 28.0


@dataclass(frozen=True, slots=True)
class Size:
    """How large a picture is: one for screens and print, one for phones."""

    name: Literal["wide", "narrow"]
    width: float
    height: float


SIZES: Final = (Size("wide", 720, 340), Size("narrow", 328, 300))


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A figure: its place, shape and kind (its colour), and what it says, a line each."""

    x: float
    y: float
    shape: Shape
    kind: str
    says: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """Words in the picture, above all marks."""

    x: float
    y: float
    text: str
    anchor: Literal["start", "middle", "end"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line through places."""

    points: tuple[tuple[float, float], ...]
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """A place on an axis, and what stands at it."""

    at: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A picture; ``legend`` explains its marks, ``says`` what it shows to who cannot see it."""

    key: str
    title: str
    says: str
    size: Size
    left: float
    right: float
    top: float
    bottom: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    x_title: str
    y_title: str
    lines: tuple[Line, ...]
    marks: tuple[Mark, ...]
    labels: tuple[Label, ...] = ()
    legend: tuple[tuple[Shape, str, str], ...] = ()

    @property
    def middle(self) -> float:
        """Where the horizontal axis has its middle."""
        return round((self.left + self.right) / 2, 2)


def drawn(study: Study) -> dict[str, list[list[Chart]]]:
    """Return the charts of each section by its key; each chart in every size."""
    makers: dict[str, Sequence[Callable[[Study, Size], Chart | None]]] = {
        "compared": (_gain, _rounds), "frontier": (_frontier,), "predicted": (_predicted_rate, _predicted_tail),
        "tried": (_tried,), "calibrated": (_calibrated,),
    }  # fmt: skip
    return {
        key: [
            charts for make in each if (charts := [chart for size in SIZES if (chart := make(study, size)) is not None])
        ]
        for key, each in makers.items()
    }


def _left(ticks: Iterable[str]) -> float:
    return 12.0 + _LETTER * max((len(text) for text in ticks), default=1)


def _clear(places: Iterable[Label], marks: Iterable[Mark], labels: Iterable[Label]) -> Label:
    """Return the place of a label where the least is in its way: marks, other labels, the axis's title at the top."""
    points, words = [(mark.x, mark.y) for mark in marks], list(labels)

    def hidden(label: Label) -> int:
        low, high = _sides(label)
        over = sum(low - 7 < x < high + 7 and label.y - 18 < y < label.y + 8 for x, y in points)
        for other in words:
            start, end = _sides(other)
            over += 4 * (low < end and start < high and abs(label.y - other.y) < 15)
        return over + 4 * (label.y < _TOP)

    return min(places, key=hidden)


def _sides(label: Label) -> tuple[float, float]:
    wide = _BOLD * len(label.text)
    low = label.x - wide * {"start": 0.0, "middle": 0.5, "end": 1.0}[label.anchor]
    return low, low + wide


def _beside(
    x: float, y: float, text: str, size: Size, marks: Iterable[Mark], labels: Iterable[Label]
) -> Label:  # fmt: skip
    """Return a label above a mark, below it or at its side, inside of the picture."""
    wide = _BOLD * len(text)
    places = []
    for up in (-12.0, 21.0):
        if wide / 2 <= x <= size.width - wide / 2:
            places.append(Label(x=x, y=y + up, text=text, anchor="middle"))
        elif x < size.width / 2:
            places.append(Label(x=x - 6, y=y + up, text=text, anchor="start"))
        else:
            places.append(Label(x=x + 8, y=y + up, text=text, anchor="end"))
    if x + 11 + wide <= size.width:
        places.append(Label(x=x + 11, y=y + 4, text=text, anchor="start"))
    if x - 11 - wide >= 0:
        places.append(Label(x=x - 11, y=y + 4, text=text, anchor="end"))
    return _clear(places, marks, labels)


def _along(
    left: float, right: float, y: float, text: str, marks: Iterable[Mark], labels: Iterable[Label]
) -> Label:  # fmt: skip
    """Return a label at one end of a level line, above or below it."""
    return _clear(
        (
            Label(x=left + 4, y=y - 7, text=text, anchor="start"),
            Label(x=right - 4, y=y - 7, text=text, anchor="end"),
            Label(x=left + 4, y=y + 17, text=text, anchor="start"),
            Label(x=right - 4, y=y + 17, text=text, anchor="end"),
        ),
        marks,
        labels,
    )


def _x_ticks(scale: Scale) -> tuple[Tick, ...]:
    """Return ticks that do not run into each other."""
    found: list[Tick] = []
    free = -1e9
    for value in scale.ticks:
        text, at = exact(value), scale(value)
        if at - _LETTER * len(text) / 2 > free:
            found.append(Tick(at=at, text=text))
            free = at + _LETTER * len(text) / 2 + 4
    return tuple(found)


def _y_ticks(scale: Scale) -> tuple[Tick, ...]:
    return tuple(Tick(at=scale(value), text=exact(value)) for value in scale.ticks)


def _titled(unit: str, scale: Scale) -> str:
    """Return an axis's title; a logarithmic one says so."""
    return f"{unit} (log)" if scale.log else unit


def _plane(
    size: Size, xs: Iterable[float], ys: Iterable[float], *, height: float | None = None
) -> tuple[Scale, Scale, float]:
    """Return the scales of both axes, and where the picture's plot begins on the left."""
    bottom = (height or size.height) - _BOTTOM
    count = 6 if size.name == "wide" else 4
    y = axis(ys, bottom, _TOP)
    left = _left(map(exact, y.ticks))
    return axis(xs, left, size.width - _RIGHT, count=count), y, left


def _kept(study: Study, seen: Measured) -> tuple[Shape, str]:
    if seen.client_bound:
        return "square", "doubtful"
    if seen.load not in study.goal.loads:
        return "ring", "calibrated"
    return ("cross", "broken") if seen.broken else ("dot", "kept")


def _said(study: Study, each: Measured, name: str) -> tuple[str, ...]:
    lines = [f"#{each.index}, {each.stage}: {rate(each.rate)}, {name} {ms(latency(each, name))}"]
    if each.predicted is not None:
        lines.append(f"predicted {rate(each.predicted.rate)}, {name} {ms(latency(each.predicted, name))}")
    return (*lines, settings(each.settings), f"under {each.load}: {what_broke(study, each)}")


def _points(seen: Iterable[Seen], name: str) -> list[tuple[float, float]]:
    return [(each.rate, value) for each in seen if (value := latency(each, name)) is not None]


def _frontier(study: Study, size: Size) -> Chart | None:
    name, limit = promised(study)
    measured = [each for each in study.measurements if not each.unsafe and latency(each, name) is not None]
    simulated = [] if study.predictions is None else list(study.predictions.frontier)
    compared = findings.sides(study.comparison, name) if study.comparison is not None else ()
    places = _points(measured, name) + _points((each.seen for each in simulated), name)
    places += _points((each.predicted for each in measured if each.predicted is not None), name)
    places += [(each, value) for each, value in compared if value is not None]
    if not places:
        return None
    x, y, left = _plane(
        size, (at for at, _ in places), [value for _, value in places] + ([1.08 * limit] if limit else [])
    )
    right = size.width - _RIGHT
    lines: list[Line] = []
    marks: list[Mark] = []
    named: list[tuple[float, float, str]] = []
    if limit is not None:
        lines.append(Line(points=((left, y(limit)), (right, y(limit))), kind="promise"))
    outline = sorted(_points((each.seen for each in simulated), name))
    if len(outline) > 1:
        lines.append(Line(points=tuple((x(at), y(value)) for at, value in outline), kind="simulated"))
    for guess in simulated:
        if (value := latency(guess.seen, name)) is not None:
            says = (f"simulated: {rate(guess.seen.rate)}, {name} {ms(value)}", settings(guess.settings))
            marks.append(Mark(x=x(guess.seen.rate), y=y(value), shape="ring", kind="simulated", says=says))
    best = study.best
    for each in measured:
        at_x, at_y = x(each.rate), y(latency(each, name) or 0.0)
        if each.predicted is not None and (foreseen := latency(each.predicted, name)) is not None:
            lines.append(Line(points=((x(each.predicted.rate), y(foreseen)), (at_x, at_y)), kind="apart"))
        shape, kind = _kept(study, each)
        marks.append(Mark(x=at_x, y=at_y, shape=shape, kind=kind, says=_said(study, each, name)))
        if not compared and best is not None and each.index == best.index:
            named.append((at_x, at_y, "best"))
    shapes: tuple[tuple[Shape, str], ...] = (("square", "default"), ("diamond", "tuned"))
    for label, (shape, kind), (at, tail) in zip(("default", findings.called(study)), shapes, compared, strict=False):
        if tail is not None:
            says = (f"{label}: {rate(at)}, {name} {ms(tail)}", "the median of the rounds of the comparison")
            marks.append(Mark(x=x(at), y=y(tail), shape=shape, kind=kind, says=says))
            named.append((x(at), y(tail), label))
    labels: list[Label] = []
    for at_x, at_y, label in named:
        labels.append(_beside(at_x, at_y, label, size, marks, labels))
    if limit is not None:
        labels.append(_along(left, right, y(limit), f"promise: {exact(limit)} ms", marks, labels))
    said = f"{len(measured)} measured settings by rate and {name}, with {len(simulated)} simulated ones."
    return Chart(
        key="frontier", title=f"{name} by rate", says=said, size=size, left=left, right=right, top=_TOP,
        bottom=size.height - _BOTTOM, x_ticks=_x_ticks(x), y_ticks=_y_ticks(y),
        x_title=_titled("good answers per second", x), y_title=_titled(f"{name}, ms", y),
        lines=tuple(lines),
        marks=tuple(sorted(marks, key=lambda mark: mark.x)), labels=tuple(labels),
        legend=_legend(marks, tuned=findings.called(study)),
    )  # fmt: skip


_MEANT: Final[dict[str, tuple[Shape, str]]] = {
    "kept": ("dot", "measured, keeps the promises"),
    "broken": ("cross", "measured, breaks a promise"),
    "doubtful": ("square", "measured, but bound by the client"),
    "calibrated": ("ring", "measured to calibrate, no answer"),
    "simulated": ("ring", "simulated"),
    "default": ("square", "default"),
    "tuned": ("diamond", "tuned"),
    "unsafe": ("triangle", "the server failed"),
}


def _legend(marks: Iterable[Mark], *, tuned: str = "tuned") -> tuple[tuple[Shape, str, str], ...]:
    used = {mark.kind for mark in marks}
    return tuple(
        (shape, kind, tuned if kind == "tuned" else text) for kind, (shape, text) in _MEANT.items() if kind in used
    )


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two figures of one row: what it was before, and after."""

    row: str
    before: float
    after: float
    says: tuple[str, ...]


def _rows(
    key: str, title: str, said: str, size: Size, pairs: Sequence[_Pair], unit: str,
    kinds: tuple[tuple[Shape, str], tuple[Shape, str]], names: tuple[str, str],
) -> Chart:  # fmt: skip
    """Return a chart of rows, each with two figures and the line between them."""
    height = _LITTLE + _ROW * len(pairs) + _BOTTOM
    left = _left(pair.row for pair in pairs)
    count = 6 if size.name == "wide" else 4
    x = axis((each for pair in pairs for each in (pair.before, pair.after)), left, size.width - _RIGHT, count=count)
    lines, marks, ticks = [], [], []
    for number_, pair in enumerate(pairs):
        y = _LITTLE + _ROW * (number_ + 0.5)
        ticks.append(Tick(at=y, text=pair.row))
        lines.append(Line(points=((x(pair.before), y), (x(pair.after), y)), kind="apart"))
        for value, (shape, kind) in zip((pair.before, pair.after), kinds, strict=True):
            marks.append(Mark(x=x(value), y=y, shape=shape, kind=kind, says=pair.says))
    legend = ((*kinds[0], names[0]), (*kinds[1], names[1]))
    return Chart(
        key=key, title=title, says=said, size=Size(size.name, size.width, height), left=left, right=size.width - _RIGHT,
        top=_LITTLE, bottom=height - _BOTTOM, x_ticks=_x_ticks(x), y_ticks=tuple(ticks),
        x_title=_titled(unit, x), y_title="", lines=tuple(lines), marks=tuple(marks), legend=legend,
    )  # fmt: skip


def _rounds(study: Study, size: Size) -> Chart | None:
    compared = study.comparison
    if compared is None:
        return None
    by_rate = compared.of == "rate"
    pairs = []
    for each in compared.rounds:
        before = each.default.rate if by_rate else each.default.p99_ms
        after = each.tuned.rate if by_rate else each.tuned.p99_ms
        if before is not None and after is not None:
            says = (
                f"round {each.index + 1}",
                f"default: {rate(each.default.rate)}, p99 {ms(each.default.p99_ms)}",
                f"{findings.called(study)}: {rate(each.tuned.rate)}, p99 {ms(each.tuned.p99_ms)}",
            )
            pairs.append(_Pair(f"round {each.index + 1}", before, after, says))
    if not pairs:
        return None
    kinds: tuple[tuple[Shape, str], tuple[Shape, str]] = (("square", "default"), ("diamond", "tuned"))
    unit = "good answers per second" if by_rate else "p99, ms"
    said = f"Default and tuned setting in {len(pairs)} rounds."
    label = findings.called(study)
    return _rows("rounds", f"Each round, {unit}", said, size, pairs, unit, kinds, ("default", label))


def _ratio(compared: Comparison, place: int) -> float | None:
    each = compared.rounds[place]
    before, after = each.default.rate, each.tuned.rate
    if compared.of == "latency":
        after, before = each.default.p99_ms or 0.0, each.tuned.p99_ms or 0.0
    return after / before if before > 0 and after > 0 else None


def _gain(study: Study, size: Size) -> Chart | None:
    compared = study.comparison
    if compared is None:
        return None
    ratios = [value for place in range(len(compared.rounds)) if (value := _ratio(compared, place)) is not None]
    height = _TOP + 60 + _BOTTOM
    left, right, y = 20.0, size.width - 24, _TOP + 20
    count = 6 if size.name == "wide" else 4
    x = axis([1.0, compared.gain, compared.low, compared.high, *ratios], left, right, zero=False, count=count)
    between = f"95 % interval {number(compared.low)} to {number(compared.high)}"
    marks = [
        Mark(x=x(value), y=y + 24, shape="ring", kind="simulated", says=(f"one round: {number(value)} times",))
        for value in ratios
    ]
    says = (f"{number(compared.gain)} times {findings.gained(compared)}", between)
    marks.append(
        Mark(x=x(compared.gain), y=y, shape="diamond", kind="tuned" if compared.beats else "default", says=says)
    )
    lines = (
        Line(points=((x(1.0), _TOP), (x(1.0), height - _BOTTOM)), kind="promise"),
        Line(points=((x(compared.low), y), (x(compared.high), y)), kind="interval"),
    )
    names: tuple[tuple[Shape, str, str], ...] = (
        (
            "diamond",
            "tuned" if compared.beats else "default",
            f"mean, {number(compared.gain)}{TIMES} with its 95 % interval",
        ),
        ("ring", "simulated", "one round"),
    )
    at = x(1.0)
    if at > size.width / 2:
        label = Label(x=at + 6, y=_TOP - 8, text="as the default", anchor="end")
    else:
        label = Label(x=at - 6, y=_TOP - 8, text="as the default", anchor="start")
    return Chart(
        key="gain", title="The gain", says=f"The gain is {number(compared.gain)}, {between}; 1 is the default.",
        size=Size(size.name, size.width, height), left=left, right=right, top=_TOP, bottom=height - _BOTTOM,
        x_ticks=tuple(Tick(at=tick.at, text=f"{tick.text}{TIMES}") for tick in _x_ticks(x)), y_ticks=(),
        x_title=f"times {findings.gained(compared)}", y_title="", lines=lines, marks=tuple(marks), labels=(label,),
        legend=names,
    )  # fmt: skip


def _predicted_rate(study: Study, size: Size) -> Chart | None:
    return _predicted(study, size, "rate", "good answers per second", lambda seen: seen.rate)


def _predicted_tail(study: Study, size: Size) -> Chart | None:
    return _predicted(study, size, "p99", "p99, ms", lambda seen: seen.p99_ms)


def _predicted(study: Study, size: Size, name: str, unit: str, figure: Callable[[Seen], float | None]) -> Chart | None:
    pairs = []
    for each, foreseen in findings.predicted(study):
        before, after = figure(foreseen), figure(each)
        if before is not None and after is not None:
            says = (f"#{each.index}: predicted {bare(before)}, measured {bare(after)}", unit, settings(each.settings))
            pairs.append(_Pair(f"#{each.index}", before, after, says))
    if not pairs:
        return None
    kinds: tuple[tuple[Shape, str], tuple[Shape, str]] = (("ring", "simulated"), ("dot", "kept"))
    said = f"What was predicted of {len(pairs)} measurements, and what was measured: {unit}."
    names = ("predicted", "measured")
    return _rows(f"predicted-{name}", f"Predicted and measured, {unit}", said, size, pairs, unit, kinds, names)


def _tried(study: Study, size: Size) -> Chart | None:
    if not study.measurements:
        return None
    by_rate = study.goal.maximise == "rate"
    value_of: Callable[[Measured], float | None] = lambda each: each.rate if by_rate else each.p99_ms  # noqa: E731
    known = [value for each in study.measurements if not each.unsafe and (value := value_of(each)) is not None]
    y = axis(known, size.height - _BOTTOM, _TOP)
    left, right = _left(map(exact, y.ticks)), size.width - _RIGHT
    count = len(study.measurements)
    wide = (right - left) / count
    marks, best, steps = [], None, []
    name, _ = promised(study)
    for place, each in enumerate(study.measurements):
        x = round(left + wide * (place + 0.5), 2)
        value = None if each.unsafe else value_of(each)
        if value is None:
            came = f"#{each.index}, {each.stage}: {what_broke(study, each)}"
            says = (came, settings(each.settings), f"under {each.load}")
            marks.append(Mark(x=x, y=size.height - _BOTTOM - 8, shape="triangle", kind="unsafe", says=says))
        else:
            shape, kind = _kept(study, each)
            marks.append(Mark(x=x, y=y(value), shape=shape, kind=kind, says=_said(study, each, name)))
            if study.answers(each) and (best is None or (value > best if by_rate else value < best)):
                if best is not None:
                    steps.append((x, y(best)))
                best = value
                steps.append((x, y(value)))
    lines, labels = [], []
    if best is not None:
        steps.append((right, y(best)))
        lines.append(Line(points=tuple(steps), kind="best"))
        labels.append(Label(x=right, y=y(best) - 9, text="best so far", anchor="end"))
    every = max(1, -(-count // (20 if size.name == "wide" else 8)))
    ticks = tuple(
        Tick(at=round(left + wide * (place + 0.5), 2), text=str(each.index))
        for place, each in enumerate(study.measurements)
        if place % every == 0
    )
    return Chart(
        key="tried", title="What was tried, in order", says=f"{count} measurements in the order of their making.",
        size=size, left=left, right=right, top=_TOP, bottom=size.height - _BOTTOM, x_ticks=ticks,
        y_ticks=_y_ticks(y), x_title="measurement",
        y_title=_titled("good answers per second" if by_rate else "p99, ms", y),
        lines=tuple(lines), marks=tuple(marks),
        labels=tuple(labels), legend=_legend(marks),
    )  # fmt: skip


def _calibrated(study: Study, size: Size) -> Chart | None:
    times = list(study.alone)
    if not times:
        return None
    highs = [max(each.ms, each.high_ms) for each in times]
    low, high = min(each.rows for each in times), max(each.rows for each in times)
    bottom, count = size.height - _BOTTOM, 6 if size.name == "wide" else 4
    # Linear on purpose: a straight line then is what batching costs, and its slope the price of a row.
    y = axis([0.0, max(highs)], bottom, _TOP)
    left = _left(map(exact, y.ticks))
    x = axis([0.0, max(high, low)], left, size.width - _RIGHT, count=count)
    lines = [Line(points=tuple((x(each.rows), y(each.ms)) for each in times), kind="fitted")] if len(times) > 1 else []
    marks: list[Mark] = []
    labels: list[Label] = []
    for each in times:
        at = x(each.rows)
        lines.append(Line(points=((at, y(each.low_ms)), (at, y(each.high_ms))), kind="interval"))
        rows = "1 row" if each.rows == 1 else f"{each.rows} rows"
        between = f"95 % interval {number(each.low_ms)} to {number(each.high_ms)} ms, {each.requests:,} requests"
        marks.append(Mark(x=at, y=y(each.ms), shape="dot", kind="kept", says=(f"{rows}: {ms(each.ms)}", between)))
        if each in (times[0], times[-1]):
            labels.append(_beside(at, y(max(each.ms, each.high_ms)), ms(each.ms), size, (), labels))
    return Chart(
        key="calibrated", title="Service time by batch size", says=f"The service time of {len(times)} batch sizes.",
        size=size, left=left, right=size.width - _RIGHT, top=_TOP, bottom=bottom, x_ticks=_x_ticks(x),
        y_ticks=_y_ticks(y), x_title="rows in one request",
        y_title="ms", lines=tuple(lines), marks=tuple(marks), labels=tuple(labels),
    )  # fmt: skip

"""The report of a study: what it says and draws, that nothing of a study can run in it, and how it is written."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from servewright.assets import asset_dir
from servewright.tuning import study as studies
from servewright.tuning.study import Study
from servewright.tuning_report import charts, findings, numerals, page, texts
from servewright.tuning_report.scale import axis

if TYPE_CHECKING:
    from conftest import Cli

EXAMPLE = Path(__file__).parent / "study.json"
VOID = {"meta", "link", "wbr"}


def document() -> dict[str, Any]:
    """Return a study with everything in it, as plain values."""
    found: dict[str, Any] = json.loads(EXAMPLE.read_text(encoding="utf-8"))
    return found


def changed(**keys: Any) -> Study:
    return Study.model_validate(document() | keys)


def kept() -> Study:
    """Return a study in which nothing beats the default."""
    comparison = document()["comparison"] | {"gain": 1.01, "low": 0.97, "high": 1.05, "beats": False}
    return changed(winner=None, diff=None, plan=None, comparison=comparison, conclusion="nothing beats the default")


def interrupted() -> Study:
    """Return a study that Ctrl-C ended after two measurements."""
    return changed(
        state="interrupted", conclusion="interrupted", winner=None, diff=None, plan=None, comparison=None,
        predictions=None, model=None, measurements=document()["measurements"][:2],
    )  # fmt: skip


def begun() -> Study:
    """Return a study that Ctrl-C ended before anything was measured."""
    return changed(
        state="interrupted", conclusion="interrupted", winner=None, diff=None, plan=None, comparison=None,
        predictions=None, model=None, measurements=[], service_times=[], knobs=[], versions={},
    )  # fmt: skip


def out_of_reach() -> Study:
    """Return a study without a setting that keeps the promises."""
    measured = [each | {"broken": "p99 99.0 ms > 50 ms"} for each in document()["measurements"] if not each["unsafe"]]
    return changed(
        state="nothing", conclusion="no setting that was measured keeps the promises", winner=None, diff=None,
        plan=None, comparison=None, measurements=measured,
    )  # fmt: skip


def at_a_rate() -> Study:
    """Return a study of the smallest p99 at a rate that is asked, on a real server, with one promise on p50."""
    load = {"concurrency": None, "rate": 200.0}
    goal = document()["goal"] | {"maximise": "latency", "loads": [load], "latency_ms": {"p50": 20.0}, "time_s": None}
    measured = [each | {"load": load} for each in document()["measurements"]]
    comparison = document()["comparison"] | {"of": "latency", "load": load}
    server = document()["server"] | {"stand_in": False}
    return changed(goal=goal, measurements=measured, comparison=comparison, server=server, warnings=[])


STUDIES = {
    "complete": lambda: changed(),
    "kept": kept,
    "interrupted": interrupted,
    "begun": begun,
    "out of reach": out_of_reach,
    "at a rate": at_a_rate,
}


class Outline(HTMLParser):
    """The elements of a page, the texts in them, and that each is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self._open[-1] if self._open else "", data))

    @property
    def text(self) -> str:
        return "".join(data for tag, data in self.texts if tag not in ("script", "style"))

    @property
    def shape(self) -> list[tuple[str, list[str]]]:
        """What a browser makes of the page, whatever the values are; a table's cell may or may not be a long one."""
        return [(tag, sorted(set(names) - ({"class"} if tag == "td" else set()))) for tag, names in self.elements]


@pytest.fixture(params=STUDIES)
def any_study(request: pytest.FixtureRequest) -> Study:
    """Every kind of study in turn."""
    return STUDIES[request.param]()


class TestPage:
    """The page for a browser."""

    def test_is_whole_html(self, any_study: Study) -> None:
        """Every element is closed, every section has a heading, and ids are unique."""
        outline = Outline(page.html(any_study))
        tags = [tag for tag, _ in outline.elements]
        ids = [names["id"] for _, names in outline.elements if "id" in names]
        assert tags.count("h1") == 1
        assert tags.count("h2") == tags.count("section") == len(findings.found(any_study).sections)
        assert len(ids) == len(set(ids))
        named = [names["aria-labelledby"] for _, names in outline.elements if "aria-labelledby" in names]
        linked = [str(names["href"]) for tag, names in outline.elements if tag == "a"]
        assert set(named) | {each.removeprefix("#") for each in linked} <= set(ids)

    def test_fetches_nothing(self, any_study: Study) -> None:
        """No element, no style and no script names anything outside of the page."""
        text = page.html(any_study)
        for tag, names in Outline(text).elements:
            for name in ("src", "srcset", "href", "action", "data", "poster", "xlink:href"):
                assert (names.get(name) or "#").startswith(("#", "data:,")), tag
        assert not re.search(r"url\(|@import|@font-face|https?:|fetch\(|XMLHttp|import\(|innerHTML|eval\(", text)

    def test_allows_its_own_style_and_script_alone(self) -> None:
        """The policy knows both by their digests; nothing else may run or load."""
        text = page.html(changed())
        outline = Outline(text)
        policy = next(
            str(names["content"])
            for _, names in outline.elements
            if names.get("http-equiv") == "Content-Security-Policy"
        )
        rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
        assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
        for tag in ("style", "script"):
            content = "".join(data for inside, data in outline.texts if inside == tag)
            digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
            assert rules[f"{tag}-src"] == f"'sha256-{digest}'"
        names = {name for _, each in outline.elements for name in each}
        assert not {name for name in names if name.startswith("on")} | ({"style"} & names)

    def test_is_the_same_every_time(self) -> None:
        """Same study, same bytes."""
        assert page.html(changed()) == page.html(changed())

    def test_draws_each_measurement(self) -> None:
        """The frontier shows what was measured, simulated and compared; the order shows failures too."""
        drawn = charts.drawn(changed())
        kinds = [mark.kind for mark in drawn["frontier"][0][0].marks]
        assert sorted(kinds) == ["broken", "default", "kept", "kept", *["simulated"] * 4, "tuned"]
        assert [mark.kind for mark in drawn["tried"][0][0].marks] == ["broken", "kept", "unsafe", "kept"]
        assert any(line.kind == "promise" for line in drawn["frontier"][0][0].lines)
        assert {label.text for label in drawn["frontier"][0][0].labels} == {"default", "tuned", "promise: 50 ms"}
        calibration = drawn["calibrated"][0][0]
        assert len(calibration.marks) == sum(line.kind == "interval" for line in calibration.lines) == 3

    def test_says_the_figures_of_each_mark(self) -> None:
        """What a hovering pointer shows, a reader of screens says."""
        marks = [names for tag, names in Outline(page.html(changed())).elements if "data-says" in names]
        assert marks
        for names in marks:
            assert str(names["data-says"]).replace("\n", "; ") == names["aria-label"]
            assert names["role"] == "img"

    def test_holds_the_change_as_it_is(self) -> None:
        """What is copied is the diff, to the letter."""
        diff = {"spec": "--- a\n+++ a (tuned)\n@@ -1 +1 @@\n-x: '<&>'\n+x: \"\u2028\"\n", "files": {}}
        outline = Outline(page.html(changed(diff=diff)))
        assert "".join(data for tag, data in outline.texts if tag == "span") == diff["spec"]

    def test_of_a_stand_in_says_so_first(self) -> None:
        """Nobody takes its figures for the real server's."""
        text = Outline(page.html(changed())).text
        assert text.index("a stand-in of TensorFlow Serving") < text.index("Tuned: 2.48 times")
        assert "stand-in" not in Outline(page.html(at_a_rate())).text

    def test_tells_how_well_the_numbers_of_the_model_are_known(self) -> None:
        """Fits that end elsewhere do not know; where all agree, one figure is enough."""
        model = {"fits": [{"fixed_s": 0.0002, "scale": 1.1}, {"fixed_s": 0.0003, "scale": 1.1}]}
        text = Outline(page.html(changed(model=document()["model"] | model))).text
        assert "fixed_s 0.0002 to 0.0003, scale 1.10; off by 0.06" in text

    @given(st.text(st.sampled_from("<>\"'&/=;:{}%#!-`\\ \t\n\x00\x1b\u202escriptonload"), min_size=1, max_size=40))
    @settings(max_examples=15)
    def test_runs_nothing_of_a_study(self, hostile: str) -> None:
        """Whatever texts a study holds, the page has the same elements and the same attributes."""
        assert Outline(page.html(_everywhere(f"x{hostile}"))).shape == Outline(page.html(_everywhere("x"))).shape

    def test_shows_a_script_as_text(self) -> None:
        """A model may be called after a script."""
        text = page.html(_everywhere("x<script>alert(1)</script>"))
        assert "<script>alert" not in text
        assert text.count("<script") == 1
        assert "x<script>alert(1)</script> on x<script>" in Outline(text).text


def _everywhere(text: str) -> Study:
    """Return a study that holds ``text`` wherever it can."""
    line = "".join(text.splitlines()) + "."
    values = document()
    values["conclusion"] = values["began"] = values["ended"] = text
    values["warnings"] = [text]
    values["machine"] |= {"cpu": text, "system": text, "python": text}
    values["server"] |= dict.fromkeys(("backend", "title", "name", "version", "runtime"), text)
    values["subject"] = dict.fromkeys(("name", "spec", "digest"), text)
    values["versions"] = {text: text}
    values["knobs"][0] |= {"name": text, "key": text, "unit": text, "values": [text], "left_out": text}
    values["default"] = {text: text}
    values["winner"] |= {"settings": {text: text}, "keys": {text: text}}
    values["model"]["values"] = {text: 1.0}
    values["diff"] = {"spec": line, "files": {text: line}}
    for each in (*values["predictions"]["frontier"], *values["measurements"]):
        each["settings"] = {text: text}
    values["measurements"][0] |= {"broken": text, "errors": {text: 1}}
    values["measurements"][1] |= {"client_bound": text}
    values["measurements"][2] |= {"unsafe": text}
    return Study.model_validate(values)


FIGURES = st.floats(0, 1e9) | st.integers(0, 5).map(float) | st.floats(0, 1e-6)


class TestCharts:
    """Where things are drawn."""

    @given(st.lists(st.tuples(FIGURES, FIGURES | st.none(), FIGURES, FIGURES), min_size=1, max_size=6), FIGURES)
    @example([(0.0, 0.0, 0.0, 5e-324)], 0.0)
    @settings(max_examples=25)
    def test_stay_inside_of_the_picture(
        self, figures: list[tuple[float, float | None, float, float]], promise: float
    ) -> None:
        """Whatever was measured, however far apart, is drawn, and nothing is drawn beyond the edges."""
        values = document()
        values["goal"]["latency_ms"] = {"p99": promise}
        first = values["measurements"][0]
        values["measurements"] = [
            first
            | {"index": index, "rate": rate, "p99_ms": tail, "predicted": first | {"rate": guess, "p99_ms": other}}
            for index, (rate, tail, guess, other) in enumerate(figures)
        ]
        values["service_times"] = [
            {"rows": 1 + index, "ms": rate, "low_ms": -1.0, "high_ms": guess}
            for index, (rate, _, guess, _) in enumerate(figures)
        ]
        values["winner"] = None
        for chart in _charts(Study.model_validate(values)):
            width, height = chart.size.width, chart.size.height
            places = [(mark.x, mark.y) for mark in chart.marks] + [each for line in chart.lines for each in line.points]
            assert all(0 <= x <= width and 0 <= y <= height for x, y in places), chart.key
            assert all(chart.left - 1 <= tick.at <= chart.right + 1 for tick in chart.x_ticks)
            assert len({tick.text for tick in chart.x_ticks}) == len(chart.x_ticks)

    def test_come_in_a_size_for_phones(self, any_study: Study) -> None:
        """Each picture is drawn twice, with the same marks."""
        for each in charts.drawn(any_study).values():
            for wide, narrow in each:
                assert narrow.size.width < 360 < wide.size.width
                assert [mark.says for mark in wide.marks] == [mark.says for mark in narrow.marks]

    def test_have_labels_that_hide_nothing(self) -> None:
        """The promise at the top and the default below it: their labels lie on neither, nor on each other."""
        values = document()
        values["goal"]["latency_ms"] = {"p99": 108.0}
        for chart in (sizes for sizes in charts.drawn(Study.model_validate(values))["frontier"][0]):
            boxes = [
                (label.x - 8 * len(label.text) * {"start": 0, "middle": 0.5, "end": 1}[label.anchor], label)
                for label in chart.labels
            ]
            for low, label in boxes:
                high = low + 8 * len(label.text)
                others = [(x, other) for x, other in boxes if other is not label]
                assert all(
                    high <= x or x + 8 * len(other.text) <= low or abs(label.y - other.y) >= 14 for x, other in others
                )
                assert not [mark for mark in chart.marks if low < mark.x < high and label.y - 10 < mark.y < label.y]
                assert label.y >= chart.top

    def test_tell_kinds_by_shape(self, any_study: Study) -> None:
        """Who sees no colours can tell what is what: within a chart, each kind has a shape of its own."""
        for chart in _charts(any_study):
            shapes = {(mark.kind, mark.shape) for mark in chart.marks}
            assert len({shape for _, shape in shapes}) == len(shapes) == len({kind for kind, _ in shapes})
            explained = {kind for _, kind, _ in chart.legend}
            assert len(shapes) == 1 or {kind for kind, _ in shapes} == explained

    @given(st.lists(FIGURES, min_size=1, max_size=8), st.booleans())
    def test_have_axes_that_go_one_way(self, values: list[float], zero: bool) -> None:
        """A larger figure is never drawn before a smaller one, and ticks lie on the axis."""
        scale = axis(values, 10, 110, zero=zero)
        places = [scale(value) for value in sorted(values)]
        assert places == sorted(places)
        assert all(10 <= place <= 110 for place in places)
        assert [scale(tick) for tick in scale.ticks] == sorted({scale(tick) for tick in scale.ticks})


def _charts(study: Study) -> Iterator[charts.Chart]:
    for each in charts.drawn(study).values():
        for sizes in each:
            yield from sizes


class TestFindings:
    """What is said."""

    def test_of_a_gain(self) -> None:
        """The gain comes with its interval, and both rates with it."""
        said = findings.found(changed())
        assert said.verdict == "Tuned: 2.48 times the default's rate"
        assert [figure.value for figure in said.figures] == [f"2.48{numerals.TIMES}", "3,385/s", "28.0 ms", "4"]
        assert "95 % interval 2.44 to 2.52" in said.figures[0].what

    def test_of_no_gain_is_advice(self) -> None:
        """Nothing beats the default: it says to keep it, and why; there is nothing to paste."""
        said = findings.found(kept())
        assert said.verdict == "Keep the default: nothing beats it beyond noise"
        assert "no proof of a gain" in said.sections[0].says[0]
        assert "as good as anything that was tried" in said.sections[0].says[0]
        assert "changes" not in [section.key for section in said.sections]

    def test_of_noise_do_not_claim_that_there_is_no_gain(self) -> None:
        """A wide interval proves neither; it says what would."""
        noisy = kept().model_dump()
        noisy["comparison"]["high"] = 6.77
        said = findings.found(Study.model_validate(noisy | {"warnings": ["nothing beats the default within noise"]}))
        assert "Nor does it rule out a gain of up to 6.77 times" in said.sections[0].says[0]
        assert said.notes == ()

    def test_of_a_part_says_what_is_missing(self) -> None:
        """An interrupted study claims no gain, and tells how to go on."""
        said = findings.found(interrupted())
        assert "--resume" in said.ended
        assert said.verdict == "Best so far: 3,102/s, not yet compared with the default"
        words = " ".join(text for section in said.sections for text in section.says)
        assert "no gain is claimed" in words
        assert "was not simulated" in words
        assert findings.found(begun()).verdict == "Nothing to recommend yet"

    def test_of_promises_out_of_reach(self) -> None:
        """That none is good enough is an answer."""
        assert findings.found(out_of_reach()).verdict == "No setting keeps the promises"

    def test_recommends_nothing_that_only_calibrated(self) -> None:
        """A load that was not asked for is no answer, however well it went."""
        values = interrupted().model_dump(mode="json")
        goal = values["goal"] | {"loads": [{"concurrency": None, "rate": 9.0}]}
        assert interrupted().best is not None
        assert changed(**values | {"goal": goal}).best is None

    def test_of_unsafe_settings(self) -> None:
        """A server that died under a setting is a result."""
        tried = next(section for section in findings.found(changed()).sections if section.key == "tried")
        assert "The server failed under one setting" in tried.says[1]
        assert tried.tables[0].rows[2][-1].startswith("unsafe: the server ended: killed by signal 9")

    def test_of_latency_at_a_rate(self) -> None:
        """The goal may be to wait less, and the promise on another percentile."""
        said = findings.found(at_a_rate())
        assert said.verdict == "Tuned: 2.48 times quicker at p99 than the default"
        assert said.figures[2].what.startswith("p50, tuned, promised 20 ms")

    @pytest.mark.parametrize(
        ("value", "shown"),
        [
            (0.0, "0"), (3434.4, "3,434"), (99.96, "100"), (27.84, "27.8"), (1.049, "1.05"), (0.0021, "0.0021"),
            (1e20, "1.00e+20"),
        ],
    )  # fmt: skip
    def test_have_figures_that_can_be_read(self, value: float, shown: str) -> None:
        """Three digits matter."""
        assert numerals.number(value) == shown

    def test_have_times_and_shares_that_can_be_read(self) -> None:
        """Units are always there."""
        assert [numerals.span(each) for each in (0.2, 59.6, 3600, 3725)] == ["0 s", "1 min", "1 h", "1 h 2 min 5 s"]
        assert [numerals.share(each) for each in (0, 0.001, 0.123, 1)] == ["0 %", "0.1 %", "12 %", "100 %"]


class TestTexts:
    """The same for terminals and in Markdown."""

    def test_say_what_the_page_says(self, any_study: Study) -> None:
        """No form leaves a section, a warning or a figure out."""
        said = findings.found(any_study)
        plain, marked = texts.terminal(any_study, 100), texts.markdown(any_study)
        for section in said.sections:
            assert section.title in plain
            assert f"## {section.title}" in marked
        for figure in said.figures:
            assert figure.value in plain
            assert figure.value in marked
        assert ("STAND-IN" in plain) == ("STAND-IN" in marked) == any_study.server.stand_in

    def test_draw_the_order_as_bars(self) -> None:
        """A terminal shows how the search went."""
        bars = [line for line in texts.terminal(changed()).splitlines() if "█" in line]
        assert [line.count("█") for line in bars] == [10, 25, 28]

    @given(st.text(min_size=1, max_size=30))
    @settings(max_examples=15)
    def test_let_nothing_of_a_study_out_of_its_place(self, hostile: str) -> None:
        """No text moves a cursor, ends a table's cell, or begins a heading or an element."""
        hostile = hostile.encode("utf-8", "replace").decode()
        tame, wild = _everywhere("x"), _everywhere(f"x{hostile}")
        plain, marked = texts.terminal(wild), texts.markdown(wild)
        for text in (plain, marked):
            assert all(each.isprintable() for each in text.replace("\n", ""))
        cells = [len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in marked.splitlines() if line.startswith("| ")]
        expected = [line.count("|") for line in texts.markdown(tame).splitlines() if line.startswith("| ")]
        assert cells == expected
        assert len(marked.splitlines()) == len(texts.markdown(tame).splitlines())

    def test_fence_off_fences(self) -> None:
        """A diff that holds a fence ends where it ends."""
        marked = texts.markdown(changed(diff={"spec": "+a: ````\n", "files": {}}))
        assert "`````diff\n+a: ````\n`````\n" in marked


class TestStyle:
    """The style sheet."""

    @pytest.mark.parametrize("scheme", ["light", "dark", "print"])
    def test_has_contrast(self, scheme: str) -> None:
        """All text reaches 4.5 to 1 on its ground (WCAG AA), and what is drawn 3 to 1."""
        style = (asset_dir("templates") / "report" / "style.css").read_text(encoding="utf-8")
        blocks = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
        colours = dict(re.findall(r"--([\w-]+): (#\w+);", blocks[("light", "dark", "print").index(scheme)]))
        for name in ("ink", "faint", "blue", "green", "red", "violet", "warm"):
            assert _contrast(colours[name], colours["paper"]) >= 4.5, name
        for ground in ("tint", "added", "removed"):
            assert _contrast(colours["ink"], colours[ground]) >= 4.5, ground
        assert _contrast(colours["warm"], colours["warm-tint"]) >= 4.5
        assert _contrast(colours["faint"], colours["tint"]) >= 4.5
        assert _contrast(colours["axis"], colours["paper"]) >= 3


def _contrast(one: str, other: str) -> float:
    """Return the contrast ratio of WCAG 2."""

    def luminance(colour: str) -> float:
        digits = colour[1:] if len(colour) == 7 else "".join(2 * each for each in colour[1:])
        parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
        red, green, blue = (each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


class TestCommand:
    """`servewright report`."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """Return a folder with a study."""
        (tmp_path / studies.FILE).write_bytes(EXAMPLE.read_bytes())
        return tmp_path

    def test_writes_the_page_beside_the_study(self, cli: Cli, folder: Path) -> None:
        """A folder or its file names the study; the page is named on stdout, and nothing else is left."""
        for named in (folder, folder / studies.FILE):
            assert cli("report", named) == (0, f"{folder / 'report.html'}\n", "")
            assert (folder / "report.html").read_text(encoding="utf-8") == page.html(changed())
        assert sorted(path.name for path in folder.iterdir()) == ["report.html", "study.json"]

    def test_writes_where_it_is_told(self, cli: Cli, folder: Path) -> None:
        """Each form goes to -o; folders are made."""
        for style, start in (("html", "<!doctype html>"), ("markdown", "# digits"), ("terminal", "digits on")):
            target = folder / "new" / style
            assert cli("report", folder, "--format", style, "-o", target)[0] == 0
            assert target.read_text(encoding="utf-8").lstrip().startswith(start)

    def test_prints_texts(self, cli: Cli, folder: Path) -> None:
        """Texts are for reading at once."""
        code, out, err = cli("report", folder, "--format", "markdown")
        assert (code, out, err) == (0, texts.markdown(changed()), "")
        assert cli("report", folder, "--format", "terminal")[1].startswith("digits on TensorFlow Serving\n")
        assert cli("report", folder, "-o", "-")[1].strip() == page.html(changed()).strip()

    def test_says_as_json_what_was_written(self, cli: Cli, folder: Path) -> None:
        """A program learns where the report is, and what came of the study."""
        found = json.loads(cli("report", folder, "--json")[1])
        assert found == {
            "ok": True, "file": str(folder / "report.html"), "format": "html", "state": "complete",
            "conclusion": changed().conclusion, "stand_in": True,
        }  # fmt: skip
        text = json.loads(cli("report", folder, "--format", "markdown", "--json")[1])
        assert (text["file"], text["text"]) == (None, texts.markdown(changed()))

    @pytest.mark.parametrize(
        ("content", "said"),
        [(None, "does not exist"), ("{", "its start"), ("[]", "no study"), ('{"format": 2}', "format"),
         (json.dumps(document())[:-1] + ', "conclusion": "\\ud800"}', "no study")],
    )  # fmt: skip
    def test_refuses_what_is_no_study(self, cli: Cli, tmp_path: Path, content: str | None, said: str) -> None:
        """Exit 2, with what is wrong; no report is written."""
        if content is not None:
            (tmp_path / studies.FILE).write_text(content)
        code, out, err = cli("report", tmp_path)
        assert (code, out) == (2, "")
        assert said in err
        assert not (tmp_path / "report.html").exists()

    def test_cannot_write_over_a_folder(self, cli: Cli, folder: Path) -> None:
        """A folder in the way is said."""
        (folder / "report.html").mkdir()
        code, _, err = cli("report", folder)
        assert code in (2, 4)
        assert "report.html" in err
        assert "Traceback" not in err

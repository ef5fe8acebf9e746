"""The report in a real browser: drawn, hovered, printed, on a phone, in the dark, and without a word to anybody."""

from __future__ import annotations

import base64
import json
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from integration.sandbox import REQUIRED
from servewright.tuning.study import Study
from servewright.tuning_report import charts, findings, page

EXAMPLE = Path(__file__).parents[1] / "tests" / "study.json"
HOSTILE = "x<script>window.ran=1</script><img src=http://127.0.0.1:1/x onerror='window.ran=1'>\"onload='window.ran=1'"
FLAGS = (
    "--headless",
    "--no-sandbox",  # where tests run as root
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


def absent(why: str) -> None:
    """Skip, or fail where SERVEWRIGHT_REQUIRE names the browser."""
    if "browser" in REQUIRED:
        pytest.fail(f"SERVEWRIGHT_REQUIRE names browser: {why}", pytrace=False)
    pytest.skip(why)


def study(**keys: Any) -> Study:
    return Study.model_validate(json.loads(EXAMPLE.read_text(encoding="utf-8")) | keys)


def long_study(count: int = 24) -> Study:
    """Return a study with many measurements, most of them predicted, and long names."""
    values = json.loads(EXAMPLE.read_text(encoding="utf-8"))
    first = values["measurements"][3]
    values["measurements"] = [
        first | {
            "index": index, "rate": 900.0 + 97 * (index * 7 % count), "p99_ms": 12.0 + 1.4 ** (index * 5 % 12),
            "stage": "verify" if index > 2 else "calibrate", "settings": {"a_rather_long_setting_of_a_server": index},
        }
        for index in range(count)
    ]  # fmt: skip
    values["subject"]["name"] = "a-model-with-a-name-that-does-not-end-" * 4
    return Study.model_validate(values)


STUDIES = {
    "complete": study,
    "long": long_study,
    "kept": lambda: study(winner=None, diff=None, comparison=study().comparison.model_dump() | {"beats": False}),  # type: ignore[union-attr]
    "begun": lambda: study(
        state="interrupted", winner=None, diff=None, plan=None, comparison=None, predictions=None, model=None,
        measurements=[], service_times=[], knobs=[],
    ),
    "hostile": lambda: study(
        conclusion=HOSTILE, warnings=[HOSTILE], subject={"name": HOSTILE, "spec": HOSTILE, "digest": HOSTILE},
        diff={"spec": f"+{HOSTILE}\n", "files": {HOSTILE: f"+{HOSTILE}\n"}},
        measurements=[
            each | {"settings": {HOSTILE: HOSTILE}}
            for each in json.loads(EXAMPLE.read_text(encoding="utf-8"))["measurements"]
        ],
    ),
}  # fmt: skip


class Site:
    """A web server for reports, which remembers what it was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []
        outer = self

        class Handler(SimpleHTTPRequestHandler):
            def log_request(self, code: object = "-", size: object = "-") -> None:
                outer.asked.append(self.path)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(timeout=10)


class Reader:
    """A browser that reads reports."""

    def __init__(self, driver: Any, site: Site) -> None:
        self.driver, self.site = driver, site

    def media(self, scheme: str = "light", kind: str = "screen") -> None:
        """Ask for light or dark, and for screen or print."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": kind, "features": features})

    def size(self, width: int, height: int = 800, *, mobile: bool = False) -> None:
        """Be a screen of so many pixels."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def open(self, found: Study, name: str = "report.html") -> None:
        """Show a report; what was said and asked before is forgotten."""
        (self.site.folder / name).write_text(page.html(found), encoding="utf-8")
        self.driver.get("about:blank")
        for kind in ("browser", "performance"):
            self.driver.get_log(kind)
        self.site.asked.clear()
        self.driver.get(f"http://127.0.0.1:{self.site.server.server_port}/{name}")

    def all(self, selector: str) -> list[Any]:
        """Return the elements of a selector."""
        found: list[Any] = self.driver.find_elements("css selector", selector)
        return found

    def js(self, program: str, *arguments: Any) -> Any:
        """Return what a program returns in the page."""
        return self.driver.execute_script(program, *arguments)

    def shown(self, selector: str) -> list[list[float]]:
        """Return the boxes (width and height in pixels) of what is rendered of a selector."""
        program = """return [...document.querySelectorAll(arguments[0])]
            .map(each => each.getBoundingClientRect()).filter(box => box.width > 0 && box.height > 0)
            .map(box => [box.width, box.height])"""
        found: list[list[float]] = self.js(program, selector)
        return found

    def complaints(self) -> list[str]:
        """Return what the console says."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Return the addresses that the page asked for, those that were refused included."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Start Chromium by the system's own driver; nothing is downloaded."""
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    path = shutil.which("chromedriver")
    if binary is None or path is None:
        absent("no Chromium with its driver; on Debian: apt-get install chromium chromium-driver")
    try:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service
    except ImportError:
        absent("selenium is not installed; run: pip install -e '.[dev]'")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for name in ("NO_PROXY", "no_proxy"):
            patch.setenv(name, "127.0.0.1,localhost")
        patch.setenv("TMPDIR", folder)
        patch.setenv("SE_OFFLINE", "true")
        for flag in (*FLAGS, f"--user-data-dir={folder}/profile"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options=options, service=Service(executable_path=path))
        try:
            driver.set_page_load_timeout(60)
            driver.set_script_timeout(30)
            yield driver
        finally:
            driver.quit()


@pytest.fixture
def reader(browser: Any, tmp_path: Path) -> Iterator[Reader]:
    """Give the browser a light screen of 1000 by 800 pixels, and a site of its own."""
    site = Site(tmp_path)
    found = Reader(browser, site)
    found.media()
    found.size(1000)
    try:
        yield found
    finally:
        site.close()


@pytest.fixture(params=STUDIES)
def any_study(request: pytest.FixtureRequest) -> Study:
    """Every kind of study in turn."""
    return STUDIES[request.param]()


class TestReport:
    """What a reader sees."""

    def test_is_drawn(self, reader: Reader, any_study: Study) -> None:
        """Every mark of every chart has a box with an extent, and there is one for each figure."""
        reader.open(any_study)
        drawn = {sizes[0].key: len(sizes[0].marks) for each in charts.drawn(any_study).values() for sizes in each}
        assert len(reader.shown("svg.chart")) == len(drawn)
        for key, count in drawn.items():
            boxes = reader.shown(f"svg.wide[data-chart='{key}'] .mark path")
            assert len(boxes) == count, key
            assert all(8 <= width <= 20 and 8 <= height <= 20 for width, height in boxes), key
        tables = sum(len(section.tables) for section in findings.found(any_study).sections)
        assert len(reader.shown("table")) == tables

    def test_says_nothing_to_anybody(self, reader: Reader, any_study: Study) -> None:
        """One request for the page itself; the console is silent; nothing of a study has run."""
        reader.open(any_study)
        assert reader.site.asked == ["/report.html"]
        address = f"http://127.0.0.1:{reader.site.server.server_port}/report.html"
        assert [each for each in reader.requests() if not each.startswith("data:")] == [address]
        assert reader.complaints() == []
        assert reader.js("return window.ran") is None
        assert reader.js("return performance.getEntriesByType('resource').length") == 0

    def test_opens_from_a_file(self, reader: Reader, tmp_path: Path) -> None:
        """No server is needed."""
        (tmp_path / "alone.html").write_text(page.html(study()), encoding="utf-8")
        reader.driver.get("about:blank")
        reader.complaints()
        reader.driver.get((tmp_path / "alone.html").as_uri())
        assert reader.shown("svg.wide[data-chart='frontier'] .mark path")
        assert reader.complaints() == []

    def test_lets_no_other_script_run(self, reader: Reader) -> None:
        """Even what gets into the page does not run there."""
        reader.open(study())
        reader.js(
            "const other = document.createElement('script'); other.textContent = 'window.ran = 1';"
            "document.body.append(other)"
        )
        assert reader.js("return window.ran") is None
        assert "Content Security Policy" in " ".join(reader.complaints())


class TestMarks:
    """Pointing at figures."""

    def test_say_their_figures_when_hovered(self, reader: Reader) -> None:
        """A pointer near a mark shows what it is; away from all marks, nothing is shown."""
        from selenium.webdriver import ActionChains

        reader.open(study())
        for mark in reader.all("svg.wide .mark"):
            reader.js("arguments[0].scrollIntoView({block: 'center'})", mark)
            ActionChains(reader.driver, duration=0).move_to_element(mark).perform()
            said = reader.js(
                """const tip = document.querySelector('.tip'), box = tip.getBoundingClientRect();
                return [tip.hidden, [...tip.children].map(each => each.textContent).join('\\n'),
                  box.left >= 0 && box.right <= innerWidth && box.top >= 0 && box.bottom <= innerHeight,
                  document.querySelector('.near').dataset.says]"""
            )
            assert said[0] is False
            assert said[2] is True, said[1]
            # Where marks lie on each other, the nearest speaks: one of those at the same place.
            assert said[1] == said[3]
            assert re.search(r"\d", said[1])
        assert reader.js("return document.querySelector('.tip').hidden") is False
        ActionChains(reader.driver, duration=0).move_to_element(reader.all("h1")[0]).perform()
        assert reader.js("return document.querySelector('.tip').hidden") is True

    def test_say_all_of_a_measurement(self, reader: Reader) -> None:
        """Rate, latency, prediction, settings, load and verdict."""
        from selenium.webdriver import ActionChains

        reader.open(study())
        mark = reader.all("svg.wide[data-chart='tried'] .mark")[3]
        reader.js("arguments[0].scrollIntoView({block: 'center'})", mark)
        ActionChains(reader.driver, duration=0).move_to_element(mark).perform()
        lines = [line.text for line in reader.all(".tip p")]
        assert lines == [
            "#3, verify: 3,434/s, p99 27.8 ms",
            "predicted 3,606/s, p99 26.4 ms",
            "max_batch_size 32, batch_timeout_micros 0, num_batch_threads 1",
            "under 64 callers: keeps the promises",
        ]

    def test_are_reached_with_the_keyboard(self, reader: Reader) -> None:
        """One stop of the Tab key for each chart, arrows between its marks, Escape to close."""
        from selenium.webdriver import ActionChains, Keys

        reader.open(study())
        chart = "svg.wide[data-chart='calibrated']"
        assert reader.js(f"return document.querySelectorAll(\"{chart} .mark[tabindex='0']\").length") == 1
        reader.js(f'document.querySelector("{chart} .mark").focus()')
        press = partial(lambda key: ActionChains(reader.driver, duration=0).send_keys(key).perform())
        said = "return document.querySelector('.tip').textContent"
        assert reader.js(said).startswith("1 row: 1.10 ms95 % interval 1.05 to 1.16 ms")
        press(Keys.ARROW_RIGHT)
        assert reader.js(said).startswith("16 rows: 2.90 ms")
        press(Keys.END)
        assert reader.js(said).startswith("64 rows: 8.10 ms")
        assert reader.js("return document.activeElement.getAttribute('aria-label')").startswith(
            "64 rows: 8.10 ms; 95 %"
        )
        press(Keys.ESCAPE)
        assert reader.js("return document.querySelector('.tip').hidden") is True

    def test_are_read_by_readers_of_screens(self, reader: Reader) -> None:
        """The browser's own tree of what is accessible names the charts, their marks and the tables."""
        reader.open(study())
        nodes = reader.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
        named = {
            (node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node.get("ignored")
        }
        names = {name for _, name in named}
        assert "The service time of 3 batch sizes." in names
        assert any(role in ("img", "image") and name.startswith("64 rows: 8.10 ms") for role, name in named)
        assert {"All measurements", "Calibration", "Machine and versions"} <= names


class TestMedia:
    """On a phone, in print, in the dark."""

    def test_fit_a_phone(self, reader: Reader, any_study: Study) -> None:
        """360 pixels: nothing scrolls sideways but wide tables in their own frames; charts are drawn for it."""
        reader.size(360, mobile=True)
        reader.open(any_study)
        assert reader.js("return [innerWidth, document.documentElement.scrollWidth]") == [360, 360]
        beyond = reader.js(
            """return [...document.querySelectorAll('body *')].filter(each => !each.closest('.scroll, pre, .skip'))
            .filter(each => each.getBoundingClientRect().right > 361).map(each => each.outerHTML.slice(0, 80))"""
        )
        assert beyond == []
        assert reader.shown("svg.chart.wide") == []
        drawn = [sizes for each in charts.drawn(any_study).values() for sizes in each]
        assert len(reader.shown("svg.chart.narrow")) == len(drawn)
        assert all(height >= 11 for _, height in reader.shown("svg.narrow text"))
        assert all(height >= 32 for _, height in reader.shown(".copy"))

    def test_differ_in_light_and_dark(self, reader: Reader) -> None:
        """The page follows the system; both are what they say."""
        seen = {}
        for scheme in ("light", "dark"):
            reader.media(scheme)
            reader.open(study())
            seen[scheme] = [
                sum(map(int, re.findall(r"\d+", text)[:3]))
                for text in reader.js(
                    """const of = (name, what) => getComputedStyle(document.querySelector(name))[what];
                    return [of('body', 'backgroundColor'), of('body', 'color'), of('.mark.kept path', 'fill'),
                      of('.chart text', 'fill')]"""
                )
            ]
        (paper, ink, mark, text), (night, glow, lamp, words) = seen["light"], seen["dark"]
        assert paper > 700 > 200 > ink
        assert night < 120 < 600 < glow
        assert mark < lamp
        assert text < words

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_have_everything_in_print(self, reader: Reader, any_study: Study, scheme: str) -> None:
        """Paper is white, everything is on it, as wide as it is; what can only be pressed is not."""
        reader.open(any_study)
        seen = {
            name: len(reader.shown(name)) for name in ("h2", "table", "pre", "svg.wide", "svg.wide .mark path", "dd")
        }
        reader.media(scheme, "print")
        reader.size(688)  # A4 between its margins
        assert {name: len(reader.shown(name)) for name in seen} == seen
        assert reader.shown(".copy") + reader.shown("nav") + reader.shown("svg.narrow") == []
        assert reader.js("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        cut = reader.js(
            """return [...document.querySelectorAll('.scroll, pre')].filter(each => each.scrollWidth > 689)
            .map(each => [each.id || each.ariaLabel, each.scrollWidth])"""
        )
        assert cut == []
        printed = base64.b64decode(reader.driver.execute_cdp_cmd("Page.printToPDF", {})["data"])
        assert printed.startswith(b"%PDF-")
        assert len(re.findall(rb"/Type\s*/Page\b", printed)) >= 2

    def test_reads_on_without_scripts(self, reader: Reader) -> None:
        """Figures and charts need none; a button that could do nothing is not there."""
        reader.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
        try:
            reader.open(study())
            assert reader.shown("svg.wide .mark path")
            assert len(reader.shown("table")) == sum(len(each.tables) for each in findings.found(study()).sections)
            assert reader.shown(".copy") == []
        finally:
            reader.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


class TestCopying:
    """The diff to paste."""

    def test_takes_the_diff_to_the_letter(self, reader: Reader) -> None:
        """What is pasted is what the study holds; the button says that it worked."""
        reader.open(study())
        origin = f"http://127.0.0.1:{reader.site.server.server_port}"
        permissions = ["clipboardReadWrite", "clipboardSanitizedWrite"]
        reader.driver.execute_cdp_cmd("Browser.grantPermissions", {"permissions": permissions, "origin": origin})
        button = reader.all(".copy")[0]
        reader.js("arguments[0].scrollIntoView({block: 'center'})", button)
        button.click()
        program = "const done = arguments[0]; navigator.clipboard.readText().then(done, error => done(String(error)))"
        diff = study().diff
        assert diff is not None
        assert reader.driver.execute_async_script(program) == diff.spec
        assert button.text == "Copied"

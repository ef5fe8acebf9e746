"""Java properties: read as the JVM reads them, written so that no string injects or loses anything."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from servewright import registry
from servewright.backend import Fate, Outcome, Site
from servewright.backends.torchserve import running
from servewright.backends.torchserve.properties import (
    Entry,
    escape_key,
    escape_value,
    parse,
    parse_lines,
    variables,
    whole_variable,
)
from servewright.errors import InputError, SpecError
from servewright.fleet import Fleet
from servewright.rendering import outcomes, render, site_of
from servewright.server import RunningServer

if TYPE_CHECKING:
    from conftest import Workshop

TORCHSERVE = registry.get("torchserve")

# What the JVM itself makes of each case: one per line of the input, as hexadecimal ISO-8859-1.
JUDGE = """
import java.io.*;
import java.util.*;

class Judge {
    public static void main(String[] ignored) throws IOException {
        BufferedReader cases = new BufferedReader(new InputStreamReader(System.in));
        for (String line = cases.readLine(); line != null; line = cases.readLine()) {
            byte[] bytes = HexFormat.of().parseHex(line);
            Properties read = new Properties();
            try {
                read.load(new ByteArrayInputStream(bytes));
            } catch (IllegalArgumentException error) {
                System.out.println("malformed");
                continue;
            }
            StringJoiner out = new StringJoiner(",");
            for (String key : new TreeSet<>(read.stringPropertyNames())) {
                out.add(hex(key) + "=" + hex(read.getProperty(key)));
            }
            System.out.println(out);
        }
    }

    static String hex(String text) {
        StringBuilder out = new StringBuilder();
        for (char unit : text.toCharArray()) {
            out.append(String.format("%04x", (int) unit));
        }
        return out.toString();
    }
}
"""
any_text = st.text(st.characters(exclude_categories=()), max_size=40)
nasty_text = st.text("\\ \t\f\r\n=:#!$u0041aé\0\x7f\u2028", max_size=12)


def judged(case: str) -> dict[str, str] | str:
    """Return what our reader makes of one case, in the judge's form."""
    try:
        return "".join(
            ",".join(
                f"{units(key)}={units(value)}"
                for key, value in sorted(parse(case).items(), key=lambda kv: units(kv[0]))
            )
        )
    except SpecError:
        return "malformed"


def units(text: str) -> str:
    """Return the UTF-16 code units of ``text`` in hexadecimal."""
    return text.encode("utf-16-be", "surrogatepass").hex()


@given(st.dictionaries(any_text | nasty_text, any_text | nasty_text, max_size=5), st.sampled_from(["=", " = ", ":"]))
def test_what_is_written_is_read_back(entries: dict[str, str], separator: str) -> None:
    """Any keys with any values survive, one line each, in plain ASCII."""
    entries = {key: value for key, value in entries.items() if not _has_pair(key + "|" + value)}
    text = "".join(f"{escape_key(key)}{separator}{escape_value(value)}\n" for key, value in entries.items())
    assert text.isascii()
    assert len(text.splitlines()) == len(entries)
    assert parse(text) == entries


def _has_pair(text: str) -> bool:
    # Two lone surrogates side by side are one character to Java; no str of a spec holds any.
    return any("\ud800" <= a <= "\udbff" and "\udc00" <= b <= "\udfff" for a, b in pairwise(text))


@given(nasty_text | any_text)
@example("\\u")
@example("a\\\\\\\n  b")
def test_any_text_is_read_or_refused(text: str) -> None:
    """Reading ends with entries or with our error, never with another."""
    try:
        lines = [entry.line for entry in parse_lines(text)]
    except SpecError as error:
        lines = [problem.line for problem in error.problems]
    assert all(1 <= line <= len(text) + 1 for line in lines)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=1\nb:2\nc 3\nd\n", {"a": "1", "b": "2", "c": "3", "d": ""}),
        ("  a \t=\f  1  \n", {"a": "1  "}),
        ("a == 1", {"a": "= 1"}),
        ("a : = 1", {"a": "= 1"}),
        ("# a=1\n  ! b=2\r\n\r\n\fc=3 # no comment", {"c": "3 # no comment"}),
        ("# goes on \\\na=1", {"a": "1"}),
        ("models={\\\n    'm': 1 \\\r\n  }\nb=2", {"models": "{'m': 1 }", "b": "2"}),
        ("a=1\\\n\nb=2", {"a": "1", "b": "2"}),
        ("a=1\\\\\nb=2", {"a": "1\\", "b": "2"}),
        ("a=1\\\n# b=2", {"a": "1# b=2"}),
        ("a=1\\", {"a": "1"}),
        ("a\\ b\\=c = \\u00e9\\t\\q\\uD83D\\ude00", {"a b=c": "\u00e9\tq\U0001f600"}),
        ("a=1\na=2", {"a": "2"}),
        ("=1", {"": "1"}),
        ("address=http://127.0.0.1:8080", {"address": "http://127.0.0.1:8080"}),
        ("a=1\u2028b=2\x0bc=3\x85", {"a": "1\u2028b=2\x0bc=3\x85"}),
    ],
)
def test_reading_follows_the_jvm(text: str, expected: dict[str, str]) -> None:
    """Separators, continuations, comments and escapes mean what they mean to the JVM."""
    assert parse(text) == expected


def test_entries_know_their_line() -> None:
    """A continued entry has the number of its first line, and a repeated key is there twice."""
    text = "# first\na=1\\\n  2\n\r\nb=3\na=4"
    assert parse_lines(text) == (
        Entry(key="a", value="12", line=2),
        Entry(key="b", value="3", line=5),
        Entry(key="a", value="4", line=6),
    )


@pytest.mark.parametrize("text", ["a=\\u12", "a=\\u12x4", "ok=1\n\\u=2", "a=\\u+123", "a=\\u 123"])
def test_a_malformed_escape_is_refused_with_its_line(text: str) -> None:
    """The error names the line; the JVM would not start with it."""
    with pytest.raises(SpecError, match="four hexadecimal digits") as caught:
        parse(text)
    assert caught.value.problems[0].line == text.count("\n") + 1


def test_urls_and_windows_paths_stay_readable() -> None:
    """A value is escaped only where it must be."""
    assert escape_value("http://127.0.0.1:8080") == "http://127.0.0.1:8080"
    assert escape_value("C:\\models") == "C:\\\\models"
    assert escape_value(" a ") == "\\u0020a\\u0020"
    assert escape_value("  ") == "\\u0020\\u0020"


def test_environment_references_are_found() -> None:
    """What TorchServe would replace is named: a value cannot protect itself from that."""
    assert variables("$$HOME$$/x:$$USER$$") == ("HOME", "USER")
    assert variables("costs $$ 5, or $5, $$X$$") == ()


def test_a_value_may_be_a_variable_of_the_environment() -> None:
    """Only where it is nothing else, by TorchServe's own pattern: a name of one letter is none."""
    assert whole_variable("$$KEYSTORE_PASS$$") == "KEYSTORE_PASS"
    for text in ("x$$HOME$$", "$$HOME$$x", "$$X$$", "$HOME$", ""):
        assert whole_variable(text) is None


def test_the_jvm_agrees(tmp_path: Path) -> None:
    """``java.util.Properties`` reads thousands of nasty texts exactly as we do."""
    if shutil.which("javac") is None or (java := shutil.which("java")) is None:
        pytest.skip("no JDK on PATH: a JRE cannot compile the judge")
    dice = random.Random(20260501)
    pieces = ["\\", "\\", "\n", "\r", "\r\n", " ", "\t", "\f", "=", ":", "#", "!", "a", "b", "u", "\\u0041", "\\uD83D"]
    pieces += ["é", "\x00", "\x0b", "\x85", "n", "0", "\\\n", "k=v\n"]
    cases = ["".join(dice.choices(pieces, k=dice.randrange(1, 16))) for _ in range(20_000)]
    alphabet = [*"\\ \t\f\r\n=:#!aé\0", "\u2028", "\U0001f600"]
    written = ["".join(dice.choices(alphabet, k=dice.randrange(8))) for _ in range(2_000)]
    cases += [f"{escape_key(key)}={escape_value(value)}\n" for key, value in pairwise(written)]
    (tmp_path / "Judge.java").write_text(JUDGE)
    sent = "".join(case.encode("iso-8859-1").hex() + "\n" for case in cases)
    judge = [java, "-Xmx256m", str(tmp_path / "Judge.java")]
    answers = subprocess.run(judge, input=sent, capture_output=True, text=True, check=True, timeout=120)
    verdicts = answers.stdout.split("\n")[:-1]
    assert len(verdicts) == len(cases)
    differences = [(case, verdict) for case, verdict in zip(cases, verdicts, strict=True) if judged(case) != verdict]
    assert not differences, json.dumps(differences[:5])


IMPORTED = {
    "inference_address": "http://127.0.0.1:8080", "metrics_address": None, "grpc_inference_port": "9000",
    "model_store": "/mnt/models/model-store", "load_models": "old.mar", "job_queue_size": "50", "models": "{}",
}  # fmt: skip
PLACE = ("_address", "_port", "model_store", "load_models")


class TestPlaces:
    """Where a server listens, and what it loads: as an imported config says, until somebody starts it."""

    @pytest.fixture
    def fleet(self, workshop: Workshop) -> Fleet:
        """Return a fleet whose files are here, with what was imported of the server's config."""
        return workshop.fleet(workshop.values(TORCHSERVE, torchserve={"config_properties": IMPORTED}))

    @pytest.fixture
    def site(self, tmp_path: Path) -> Site:
        """Return a site as the launcher of processes makes them."""
        ports = {name: 20_000 + number for number, name in enumerate(TORCHSERVE.home.ports)}
        folder = str(tmp_path)
        return replace(TORCHSERVE.home, models=folder, config=folder, run=folder, host="127.0.0.1", ports=ports)

    def test_are_rendered_to_files_as_they_were_imported(self, fleet: Fleet) -> None:
        """`render` gives back what was read."""
        found = parse(render(fleet, TORCHSERVE)["config.properties"])
        assert {name: found.get(name) for name in IMPORTED} == IMPORTED

    def test_of_a_process_are_the_launchers(self, fleet: Fleet, workshop: Workshop, site: Site) -> None:
        """The ports that are waited for are listened on, the models that were packed are loaded; the rest stays."""
        found = parse(render(fleet, TORCHSERVE, site)["config.properties"])
        plain = parse(render(workshop.fleet(workshop.values(TORCHSERVE)), TORCHSERVE, site)["config.properties"])
        assert {name: value for name, value in found.items() if name.endswith(PLACE)} == {
            name: value for name, value in plain.items() if name.endswith(PLACE)
        }
        assert (found["job_queue_size"], found["models"]) == ("50", "{}")
        assert TORCHSERVE.plan(fleet, site).site is site

    def test_of_a_container_that_were_imported_are_refused_before_it_starts(self, fleet: Fleet) -> None:
        """A container lives where files are rendered for, so its config is the imported one."""
        keys = "inference_address, metrics_address, grpc_inference_port, model_store, load_models"
        with pytest.raises(InputError, match=f"config_properties does not leave {keys} to .*--runtime process"):
            TORCHSERVE.plan(fleet, site_of(fleet, TORCHSERVE))
        assert TORCHSERVE.plan(fleet, TORCHSERVE.home).image == "pytorch/torchserve:0.12.0-cpu"

    def test_of_a_container_may_be_imported_where_they_are_its_own(self, workshop: Workshop) -> None:
        """The official image's config is as good as ours."""
        own = {"inference_address": "http://0.0.0.0:8080", "load_models": "all", "job_queue_size": "1000"}
        fleet = workshop.fleet(workshop.values(TORCHSERVE, torchserve={"config_properties": own}))
        assert TORCHSERVE.plan(fleet, site_of(fleet, TORCHSERVE)).argv[0] == "torchserve"

    def test_of_a_whole_text_are_refused_before_anything_starts(self, workshop: Workshop, site: Site) -> None:
        """A text that is kept as it is has no place for a launcher's words."""
        text = "inference_address=http://127.0.0.1:8080\n"
        fleet = workshop.fleet(workshop.values(TORCHSERVE, torchserve={"files": {"config.properties": text}}))
        assert render(fleet, TORCHSERVE)["config.properties"].startswith("inference_address=http://127.0.0.1:8080\n")
        for each in (site, site_of(fleet, TORCHSERVE)):
            with pytest.raises(InputError, match=r"files\.config\.properties does not leave .*torchserve\.properties"):
                TORCHSERVE.plan(fleet, each)


@pytest.mark.parametrize(
    ("own", "queue", "wanted"), [({}, None, 100), ({"job_queue_size": 50}, None, 50), ({"job_queue_size": 50}, 8, 8)]
)
def test_as_many_requests_wait_as_the_server_lets(
    own: dict[str, Any], queue: int | None, wanted: int, workshop: Workshop
) -> None:
    """A probe that sends more at once is turned away."""
    values = workshop.values(TORCHSERVE, torchserve={"properties": own}, batching={"max_size": 2, "queue": queue})
    spec = workshop.fleet(values).models[0].spec
    assert TORCHSERVE.concurrent(spec) == wanted


class TestSecrets:
    """What a spec may hold and no report shows."""

    @staticmethod
    def explained(workshop: Workshop, **own: Any) -> dict[str, Outcome]:
        fleet = workshop.fleet(workshop.values(TORCHSERVE, torchserve=own))
        found = {each.key: each for each in outcomes(fleet, TORCHSERVE)["digits"] if each.key.startswith("torchserve")}
        assert "hunter2" not in repr(found)
        return found

    def test_are_rendered_and_not_explained(self, workshop: Workshop) -> None:
        """`keystore_pass`, and all of the environment: the file and the process have the value, and `***` is shown."""
        own: dict[str, Any] = {"properties": {"keystore_pass": "hunter2"}, "environment": {"API_TOKEN": "hunter2"}}
        found = self.explained(workshop, **own)
        assert {(each.value, each.fate) for each in found.values()} == {("***", Fate.APPLIED)}
        fleet = workshop.fleet(workshop.values(TORCHSERVE, torchserve=own))
        assert parse(render(fleet, TORCHSERVE)["config.properties"])["keystore_pass"] == "hunter2"
        environment = TORCHSERVE.plan(fleet, TORCHSERVE.home).environment
        assert json.loads(json.dumps(dict(environment)))["API_TOKEN"] == "hunter2"

    @pytest.mark.parametrize(
        "own",
        [
            {"environment": {"TEMP": "hunter2"}},
            {"environment": {"A B": "hunter2"}},
            {"environment": {"A": "hunter2\0"}},
            {"environment": {"A": ["hunter2"]}},
            {"properties": {"keystore_pass": ["hunter2"]}},
            {"properties": {"keystore_pass": "hunter2$$HOME$$"}},
        ],
    )
    def test_are_not_in_refusals(self, workshop: Workshop, own: dict[str, Any]) -> None:
        """A refused value is not quoted either."""
        assert {each.fate for each in self.explained(workshop, **own).values()} == {Fate.REFUSED}

    def test_are_not_in_the_complaint_that_two_models_differ(self, workshop: Workshop) -> None:
        """The key and the other model say enough."""
        for key, name in (
            ("environment", "A"),
            ("properties", "keystore_pass"),
            ("config_properties", "keystore_pass"),
        ):
            one, two = (
                workshop.values(TORCHSERVE, name=f"m{number}", torchserve={key: {name: f"hunter2{number}"}})
                for number in range(2)
            )
            fleet = workshop.fleet(one, two)
            with pytest.raises(SpecError, match=rf"{key}\.{name}.*\*\*\* here, and \*\*\* in the spec") as caught:
                TORCHSERVE.plan(fleet, site_of(fleet, TORCHSERVE))
            assert "hunter2" not in str(caught.value)

    @pytest.mark.parametrize("key", ["properties", "config_properties"])
    def test_are_not_in_readings(self, workshop: Workshop, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
        """What was wanted of them is not told, whether in the spec's words or as imported."""
        monkeypatch.setattr(running, "_tokens", lambda _server, wanted: wanted)
        fleet = workshop.fleet(workshop.values(TORCHSERVE, torchserve={key: {"keystore_pass": "hunter2"}}))
        server = RunningServer(backend="torchserve", runtime="process", endpoints={}, site=site_of(fleet, TORCHSERVE))
        found = list(running._server_settings(server, fleet))
        assert "hunter2" not in repr(found)
        (secret,) = (each for each in found if getattr(each, "setting", "") == "keystore_pass")
        assert (secret.wanted, secret.found) == ("***", None)

    def test_may_be_left_to_the_environment(self, workshop: Workshop) -> None:
        """`$$NAME$$` is what `lint` recommends; of other keys it stays a surprise, and is refused."""
        own = {"properties": {"keystore_pass": "$$KEYSTORE_PASS$$"}}
        outcome = self.explained(workshop, **own)["torchserve.properties.keystore_pass"]
        assert (outcome.fate, outcome.value) == (Fate.APPLIED, "***")
        assert "KEYSTORE_PASS" in outcome.note
        fleet = workshop.fleet(workshop.values(TORCHSERVE, torchserve=own))
        assert parse(render(fleet, TORCHSERVE)["config.properties"])["keystore_pass"] == "$$KEYSTORE_PASS$$"
        other = self.explained(workshop, properties={"keystore": "$$KEYSTORE$$"})
        assert other["torchserve.properties.keystore"].fate is Fate.REFUSED

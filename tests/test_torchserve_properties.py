"""Java properties: read as the JVM reads them, written so that no string injects or loses anything."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from servewright.backends.torchserve.properties import (
    Entry,
    escape_key,
    escape_value,
    parse,
    parse_lines,
    variables,
)
from servewright.errors import SpecError

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

"""YAML texts: the values that YAML 1.2 gives them, the place of each, and what is refused."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from servewright import yamltext
from servewright.errors import SpecError
from servewright.yamltext import Place, dotted


def parse(text: str) -> Any:
    return yamltext.parse(text.encode(), file="spec.yaml").value


def refusal(content: bytes | str) -> str:
    with pytest.raises(SpecError) as caught:
        yamltext.parse(content.encode() if isinstance(content, str) else content, file="spec.yaml")
    return str(caught.value)


class TestValues:
    """What plain scalars mean."""

    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("no", "no"),
            ("Yes", "Yes"),
            ("on", "on"),
            ("1:30", "1:30"),
            ("2020-01-01", "2020-01-01"),
            ("1_000", "1_000"),
            ("true", True),
            ("False", False),
            ("~", None),
            ("null", None),
            ("", None),
            ("12", 12),
            ("-7", -7),
            ("+3", 3),
            ("012", 12),
            ("0x1F", 31),
            ("0o17", 15),
            ("1.5", 1.5),
            (".5", 0.5),
            ("1e3", 1000.0),
            ("1.", 1.0),
            ("5ms", "5ms"),
            ("'12'", "12"),
            ('"true"', "true"),
            ("|\n  12\n", "12\n"),
        ],
    )
    def test_are_those_of_yaml_1_2(self, text: str, value: object) -> None:
        """Words that YAML 1.1 takes for booleans, dates or base-60 numbers are texts; quoted scalars always are."""
        found = parse(f"key: {text}")["key"]
        assert found == value
        assert type(found) is type(value)

    def test_of_an_alias_are_those_of_its_anchor(self) -> None:
        """An alias stands for a value written before."""
        assert parse("a: &x {b: [1, 2]}\nc: *x\nd: [*x, *x]") == {
            "a": {"b": [1, 2]},
            "c": {"b": [1, 2]},
            "d": [{"b": [1, 2]}, {"b": [1, 2]}],
        }

    def test_that_are_alike_are_one_object(self) -> None:
        """What many models repeat is one value, and is checked once."""
        found = parse("a: {x: [1, two], y: {}}\nb: {'x': [1, 'two'], y: {}}\n")
        assert found["a"] is found["b"]

    @pytest.mark.parametrize(
        ("one", "two"),
        [
            ("[1]", "[true]"),
            ("[1]", "[1.0]"),
            ("[0]", "[false]"),
            ("[1]", "['1']"),
            ("{}", "[]"),
            ("{a: 1, b: 2}", "[a, b, 1, 2]"),
        ],
    )
    def test_that_are_merely_equal_stay_two(self, one: str, two: str) -> None:
        """1, 1.0 and true are equal to Python, and different to a spec."""
        found = parse(f"a: {one}\nb: {two}\n")
        assert json.dumps(found) == json.dumps({"a": parse(f"x: {one}")["x"], "b": parse(f"x: {two}")["x"]})
        assert found["a"] is not found["b"]

    def test_keep_the_order_of_their_keys(self) -> None:
        """Mappings with the same keys in another order are rendered in another order."""
        found = parse("a: {x: 1, y: 2}\nb: {y: 2, x: 1}\n")
        assert [list(found["a"]), list(found["b"])] == [["x", "y"], ["y", "x"]]

    def test_begin_after_a_byte_order_mark(self) -> None:
        """Editors on Windows write one."""
        assert yamltext.parse(b"\xef\xbb\xbfa: 1", file="x").value == {"a": 1}

    @given(
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers(-(10**30), 10**30)
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.text(),
            lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=20), inner, max_size=4),
            max_leaves=12,
        )
    )
    def test_survive_json(self, value: object) -> None:
        """Every JSON document that Python writes reads back as itself, whatever the texts in it."""
        text = json.dumps(value, ensure_ascii=False)
        if any(character in text for character in "\x7f\x80\ufffe\uffff") or not text.isprintable():
            text = yaml.safe_dump(value)  # JSON leaves characters bare that YAML wants escaped
            text = text.removesuffix("...\n")
        found = parse(text)
        assert found == value or (found == {} and value == {})

    @given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
    def test_of_any_bytes_are_plain_or_refused(self, content: bytes) -> None:
        """Whatever is in a file, reading it gives finite plain values or a `SpecError` with the file's name."""
        try:
            found = yamltext.parse(content, file="spec.yaml").value
        except SpecError as error:
            found = None
            assert_all_placed(error)
        assert_plain(found)


def assert_all_placed(error: SpecError) -> None:
    assert all(problem.file and problem.line >= 1 and problem.column >= 1 for problem in error.problems)


def assert_plain(value: object) -> None:
    if isinstance(value, dict):
        assert all(type(key) is str for key in value)
        for inner in value.values():
            assert_plain(inner)
    elif isinstance(value, list):
        for inner in value:
            assert_plain(inner)
    else:
        assert value is None or type(value) in (bool, int, float, str)
        assert not isinstance(value, float) or math.isfinite(value)


class TestPlaces:
    """Where values stand."""

    TREE = yamltext.parse(b"a:\n  b: [1,\n      {c: 2}]\nd: &x\n  e: 1\nf: *x\n", file="x")

    @pytest.mark.parametrize(
        ("path", "place"),
        [
            ((), (1, 1)),
            (("a",), (1, 1)),
            (("a", "b"), (2, 3)),
            (("a", "b", 0), (2, 7)),
            (("a", "b", 1, "c"), (3, 8)),
            (("d", "e"), (5, 3)),
            (("f",), (6, 1)),
        ],
    )
    def test_are_those_of_keys_and_items(self, path: yamltext.Path_, place: tuple[int, int]) -> None:
        """A mapping's value is placed at its key: the value itself may begin lines below."""
        assert self.TREE.place(path) == Place(*place)

    @pytest.mark.parametrize(
        ("path", "place"),
        [(("a", "nothing"), (1, 1)), (("a", "b", 7, "x"), (2, 3)), (("f", "e"), (6, 1)), (("g",), (1, 1))],
    )
    def test_of_what_is_absent_are_the_nearest_around_it(self, path: yamltext.Path_, place: tuple[int, int]) -> None:
        """A missing key is reported where it should have been."""
        assert self.TREE.place(path) == Place(*place)

    def test_come_in_the_order_of_the_text(self) -> None:
        """Every value has one, and what an alias stands for has its own."""
        assert list(self.TREE.places) == [
            (), ("a",), ("a", "b"), ("a", "b", 0), ("a", "b", 1), ("a", "b", 1, "c"), ("d",), ("d", "e"), ("f",)
        ]  # fmt: skip
        assert len(self.TREE.places) == 9

    def test_of_values_that_are_alike_are_two(self) -> None:
        """One object may stand in many places."""
        tree = yamltext.parse(b"- {a: [1]}\n- {a: [1]}\n", file="x")
        assert tree.value[0] is tree.value[1]
        assert (tree.place((0, "a", 0)), tree.place((1, "a", 0))) == (Place(1, 8), Place(2, 8))

    def test_below_a_path_stay_those_of_the_file(self) -> None:
        """A part of a tree still says where it stands in the whole."""
        part = self.TREE.below(("a", "b"))
        assert part.value == [1, {"c": 2}]
        assert part.place((1, "c")) == Place(3, 8)

    def test_are_printed_with_dots_and_brackets(self) -> None:
        """Keys that are no words are quoted, so that a path is always one line."""
        assert dotted(("golden", 0, "inputs")) == "golden[0].inputs"
        assert "\n" not in dotted(("a\nb", "c"))
        assert dotted(("a", "b\x1b[31m")) == r"a.'b\x1b[31m'"
        assert len(dotted(("x" * 10_000,))) < 80


class TestRefusals:
    """What cannot be read, and where it says so."""

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"", "spec.yaml:1:1: the file is empty; see: servewright init --help"),
            (b"# only a comment\n", "the file is empty"),
            (b"a: 1\nb: \xe9\n", "spec.yaml:2:4: not UTF-8 text; save it as UTF-8"),
            ("a: 1".encode("utf-16"), "spec.yaml:1:1: not UTF-8 text"),
            (b"a: 1\nb: x\x00y\n", "spec.yaml:2:5: the character U+0000 cannot stand in YAML"),
            (b"a: \x1b[31m", "spec.yaml:1:4: the character U+001B"),
            (
                b"a:\n\tb: 1\n",
                "found character that cannot start any token; indent with spaces: YAML takes no tabs",
            ),
            (b"a: @x", "put the value in quotes"),
            (b"a: [1, 2", "spec.yaml:2:1: while parsing a flow sequence"),
            (b"a: b: c", "spec.yaml:1:5: mapping values are not allowed"),
            (b"a: 1\n---\nb: 2\n", "spec.yaml:2:1: a second document begins here; write one file for each"),
            (b"a: 1\na: 2\n", "spec.yaml:2:1: a: 'a' stands twice; remove one of the two"),
            (b"x:\n  - {b: 1, c: 2, b: 3}\n", "spec.yaml:2:18: x[0].b: 'b' stands twice"),
            (b"? [a, b]\n: 1\n", "spec.yaml:1:3: a key that is not text"),
            (b"a: !!python/object/apply:os.system [echo]\n", "spec.yaml:1:4: a: the tag"),
            (b"a: !!binary aGk=\n", "the tag 'tag:yaml.org,2002:binary' is not allowed; remove it"),
            (b"a: !local 1\n", "the tag '!local' is not allowed"),
            (b"a: *b\n", "spec.yaml:1:4: a: the alias *b stands before its anchor, or in it"),
            (b"a: &a [*a]\n", "the alias *a stands before its anchor, or in it"),
            (b"a: .inf\n", "a: '.inf' is no number that a server could use"),
            (b"a: [-.INF, .NaN]\n", "a[1]: '.NaN' is no number"),
            (b"a: 1e999\n", "'1e999' is no number that a server could use"),
            (b"a: " + b"9" * 41, "has too many digits; write at most 40"),
            (b'a: "\\ud83d"', "found invalid Unicode character escape code; write the character itself"),
            (b"a: " + b"x" * (32 * 2**20), "33554435 bytes is too large; a spec has a few KiB"),
        ],
    )
    def test_say_where_and_what_to_do(self, content: bytes, said: str) -> None:
        """Each flaw names file, line, column, the reason and a remedy."""
        assert said in refusal(content)

    def test_come_all_at_once(self) -> None:
        """Two flaws of one file are two problems, in its order."""
        found = refusal("a: .nan\nb: !!set {}\nc: 1\nc: 2\n").splitlines()
        assert [line.split(":")[1] for line in found] == ["1", "2", "4"]

    @pytest.mark.parametrize(
        "content",
        [b"[" * 100_000, b"{a: " * 100_000, b"- " * 100_000, b"".join(b" " * i + b"a:\n" for i in range(2000))],
        ids=["lists", "mappings", "blocks", "indented"],
    )
    def test_of_deep_texts_leave_the_process_alive(self, content: bytes) -> None:
        """The composer of libyaml recurses in C and crashes on such a text; this reader does not get that far."""
        assert "nested too deeply" in refusal(content)

    def test_of_alias_bombs_come_before_they_go_off(self) -> None:
        """Nine aliases to nine aliases, nine levels deep, are 387 million values in a kilobyte."""
        levels = [f"l{level}: &l{level} [{', '.join([f'*l{level - 1}'] * 9)}]" for level in range(1, 10)]
        assert "aliases that multiply" in refusal("\n".join(["l0: &l0 [x, x, x, x, x, x, x, x, x]", *levels]))

"""Specs with new values for some keys."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servewright import yamltext
from servewright.errors import InputError
from servewright.tuning import spec_text

KEYS = {"batching.max_size": 32, "batching.max_delay": "5ms", "workers": 2, "batching.allowed_sizes": [8, 32]}
TEXTS = (
    "servewright: 1\nname: x\n",
    "servewright: 1\nbatching: {max_size: 4, queue: 100} # here\nworkers: 1   # one\n# end\n",
    "servewright: 1\nbatching:\n  # sizes\n  max_size: 4  # rows\n  allowed_sizes:\n  - 2\n  # two\n  - 4\nname: x\n",
    "servewright: 1\nbatching: {}\nworkers: 4",
    "servewright: 1\nbatching:\nname: x\n",
    "batching: {allowed_sizes: [1, 4], max_size: 4, max_delay: '1ms'}\nservewright: 1\n",
    'batching: {max_size: 4,\n  queue: 8}  # two lines\nservewright: 1\n',
    '{\n  "servewright": 1,\n  "batching": {"max_size": 4}\n}\n',
    "servewright: 1\nbatching:\n    max_delay: 1ms\n    max_size: 4\n\nworkers: 3\n",
    "servewright: 1\nbatching:  # none {yet}\n  queue: 64\nname: x\n",
    "servewright: 1\nbatching: &b {queue: 64}  # {b}\nname: x\n",
    "servewright: 1\nbatching: {max_size: 4,  # }\n  queue: 8}\nname: x\n",
    "---\nservewright: 1\nname: x\n...\n",
)  # fmt: skip


class TestSpecText:
    """A spec with new values for some keys."""

    @pytest.mark.parametrize("text", TEXTS)
    def test_means_the_new_values_and_keeps_the_rest(self, text: str) -> None:
        """Every comment and every other line stay as they were."""
        found = spec_text.changed(text, KEYS, file="x.yaml")
        values = yamltext.parse(found.encode(), file="x.yaml").value
        assert values == spec_text.expected(yamltext.parse(text.encode(), file="x.yaml").value, KEYS)
        assert values["batching"]["max_size"] == 32
        for line in text.splitlines():
            if "#" in line:
                assert line[line.index("#") :] in found
            elif line.startswith(("servewright", "name")):
                assert line in found.splitlines()

    def test_keeps_the_ends_of_lines(self) -> None:
        """A spec from Windows stays one."""
        text = "servewright: 1\r\nbatching:\r\n  max_size: 4 # rows\r\n"
        found = spec_text.changed(text, {"batching.max_size": 8, "workers": 2}, file="x")
        assert found == "servewright: 1\r\nbatching:\r\n  max_size: 8 # rows\r\nworkers: 2\r\n"

    def test_says_what_to_write_where_it_cannot(self) -> None:
        """A layout beyond its reach is left alone."""
        for batching in ("&b {max_size: 4}\nother: *b\n", "\n  {queue: 8}\n"):
            with pytest.raises(InputError, match=r"by hand: batching\.max_size: 32"):
                spec_text.changed(f"servewright: 1\nbatching: {batching}", KEYS, file="x.yaml")

    @given(
        st.dictionaries(
            st.sampled_from(["max_size", "max_delay", "queue", "threads"]), st.integers(1, 99), max_size=4
        ),
        st.booleans(), st.booleans(),
    )  # fmt: skip
    def test_is_right_or_refused(self, batching: dict[str, int], flow: bool, comment: bool) -> None:
        """Whatever is there, the text means what is wanted."""
        note = "  # why" if comment else ""
        if flow or not batching:
            body = f"batching: {json.dumps(batching)}{note}\n"
        else:
            body = f"batching:{note}\n" + "".join(f"  {name}: {value}{note}\n" for name, value in batching.items())
        text = f"servewright: 1\n{body}name: x{note}\n"
        found = spec_text.changed(text, KEYS, file="x.yaml")
        wanted = spec_text.expected(yamltext.parse(text.encode(), file="x.yaml").value, KEYS)
        assert yamltext.parse(found.encode(), file="x.yaml").value == wanted
        assert found.count("# why") == text.count("# why")

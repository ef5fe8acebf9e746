"""Studies on disk: a journal that no kill can hurt, and a file that says it all."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servewright.errors import InputError
from servewright.tuning import study
from servewright.tuning.journal import NAME, Journal
from servewright.tuning.machine import machine, versions
from servewright.tuning_report import page

EXAMPLE = Path(__file__).parent / "study.json"


def example() -> study.Study:
    """Return a small study with everything in it."""
    return study.load(EXAMPLE)


class TestFile:
    """``study.json``."""

    def test_is_read_as_it_was_written(self, tmp_path: Path) -> None:
        """Nothing is lost on the way to the disk and back."""
        (tmp_path / study.FILE).write_text(study.text(example()))
        assert study.load(tmp_path) == study.load(tmp_path / study.FILE) == example()
        assert study.text(example()) == EXAMPLE.read_text(encoding="utf-8")

    def test_of_another_content_is_refused(self, tmp_path: Path) -> None:
        """A file that is no study is named, with what is wrong in it."""
        file = tmp_path / "other.json"
        for content, said in ((b"{", "its start"), (b"{}", "state"), (b"\xff", "no study")):
            file.write_bytes(content)
            with pytest.raises(InputError, match=said):
                study.load(file)
        with pytest.raises(InputError, match="does not exist"):
            study.load(tmp_path / "absent.json")

    def test_of_an_earlier_version_has_fewer_fits(self) -> None:
        """Its report is still written; only what asks the model needs them."""
        document = json.loads(study.text(example()))
        document["model"] = {"values": {"fixed_s": 0.0002}, "error": 0.06, "rounds": 12}
        found = study.Study.model_validate(document)
        assert found.model is not None
        assert found.model.fits == ()
        assert ">off by 0.06" in page.html(found)

    def test_of_a_later_version_may_say_more(self, tmp_path: Path) -> None:
        """Keys that are not known are passed over."""
        document = json.loads(study.text(example())) | {"mood": "good"}
        (tmp_path / study.FILE).write_text(json.dumps(document))
        assert study.load(tmp_path) == example()


class TestJournal:
    """``journal.jsonl``."""

    @given(st.lists(st.dictionaries(st.text(), st.integers() | st.text())), st.data())
    def test_torn_anywhere_keeps_every_whole_line(self, facts: list[dict[str, object]], data: st.DataObject) -> None:
        """Cut at any byte, it is resumed with the facts before, and goes on as if nothing had been."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / NAME
            journal = Journal.create(path, {"goal": "x"})
            for fact in facts:
                journal.append("fact", {"fact": fact})
            content = path.read_bytes()
            first = content.index(b"\n") + 1
            cut = data.draw(st.integers(first, len(content)))
            path.write_bytes(content[:cut])
            resumed = Journal.resume(path)
            whole = content[:cut].count(b"\n") - 1
            assert [fact["fact"] for fact in resumed.all("fact")] == facts[:whole]
            for fact in facts[whole:]:
                resumed.append("fact", {"fact": fact})
            assert path.read_bytes() == content

    def test_is_begun_again_where_its_first_line_was_torn(self, tmp_path: Path) -> None:
        """A kill before anything was known leaves nothing in the way."""
        path = tmp_path / NAME
        path.write_text('{"kind": "stu')
        Journal.create(path, {})
        assert Journal.resume(path).head == {"kind": "study", "format": 1}

    def test_is_not_written_over(self, tmp_path: Path) -> None:
        """A study that is there must be resumed, or another folder named."""
        Journal.create(tmp_path / NAME, {})
        with pytest.raises(InputError, match="--resume"):
            Journal.create(tmp_path / NAME, {})

    def test_of_another_content_is_refused(self, tmp_path: Path) -> None:
        """A line changed by hand, another format, and an absent file are each said."""
        path = tmp_path / NAME
        with pytest.raises(InputError, match="does not exist"):
            Journal.resume(path)
        for content in ("", "{\n", "[]\n", '{"kind": "fact"}\n', '{"kind": "study", "format": 9}\n'):
            path.write_text(content)
            with pytest.raises(InputError, match="journal"):
                Journal.resume(path)


def test_a_machine_describes_itself() -> None:
    """A report can say where it was measured."""
    found = machine()
    assert found.cores >= 1
    assert found.memory > 2**20
    assert versions(("numpy", "not-a-package")).keys() == {"servewright", "numpy"}

"""Every rule finds what it is for, at the right place, and nothing in its good twin."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from servewright.linting import page, walking
from servewright.linting.walking import Wishes

_FOLDER = Path(__file__).parent / "lint"
_MARK = "§"
# Rules on the form of an archive have hostile archives of their own, in test_lint_archives.py.
_ELSEWHERE = {"MAR020", "MAR021", "MAR022", "MAR023", "MAR024", "MAR025", "MAR026", "GEN001"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A rule's bad and good twin as the file of cases gives them."""

    rule: str
    given: dict[str, Any]
    wrapper: str

    def wishes(self, *, fix: bool = False) -> Wishes:
        """Return for which release the case is, and whether to fix."""
        return Wishes(targets=self.given.get("releases", {}), fix=fix)

    def write(self, folder: Path, twin: str) -> tuple[Path, str, int]:
        """Write one twin, and return its path, its text with the mark, and the member that has the mark."""
        for name, text in {**self.given.get("beside", {}), **self.given.get("good_beside", {})}.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        content = self.given[twin]
        name = str(self.given["good_file"] if twin == "good" and "good_file" in self.given else self.given["file"])
        target = folder / name
        if isinstance(content, dict):
            with zipfile.ZipFile(target, "w") as archive:
                for name, text in content.items():
                    archive.writestr(name, text.replace(_MARK, ""))
            marked = next(((name, text) for name, text in content.items() if _MARK in text), ("", ""))
            return target, marked[1], len(marked[0])
        text = content.replace("{here}", str(folder))
        if self.wrapper:
            text = self.wrapper.replace("{}", text)
        target.write_text(text.replace(_MARK, ""), newline="")
        return target, text, 0


def _cases() -> Iterator[Case]:
    for path in sorted(_FOLDER.glob("*.yaml")):
        document = yaml.safe_load(path.read_text())
        for given in document["cases"]:
            wrapper = document["wrappers"][given["wrap"]] if "wrap" in given else ""
            yield Case(rule=given["rule"], given=given, wrapper=wrapper)


CASES = list(_cases())


def _place(text: str) -> tuple[int, int]:
    before = text.partition(_MARK)[0]
    return before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
class TestRule:
    """A rule."""

    def test_finds_the_bad_at_its_place(self, case: Case, tmp_path: Path) -> None:
        """The finding has the line and the column of the mark, and says what happens and what to do."""
        path, text, _ = case.write(tmp_path, "bad")
        everything = walking.lint([path], case.wishes()).findings
        found = [finding for finding in everything if finding.rule == case.rule]
        assert found, [finding.rule for finding in everything]
        if _MARK in text:
            line, column = _place(text)
            # Properties have their places by the line: the JVM's reader knows no columns.
            at = [(finding.line, finding.column) for finding in found]
            assert (line, column) in at, (at, (line, column))
        assert all(finding.what and finding.remedy and finding.reference for finding in found)

    def test_finds_nothing_in_the_good(self, case: Case, tmp_path: Path) -> None:
        """The same rule is silent on what is right."""
        path, _, _ = case.write(tmp_path, "good")
        assert case.rule not in [finding.rule for finding in walking.lint([path], case.wishes()).findings]

    def test_fixes_what_it_says_it_can(self, case: Case, tmp_path: Path) -> None:
        """--fix makes exactly the change that the case names, and the rule is silent afterwards."""
        if "fixed" not in case.given:
            path, _, _ = case.write(tmp_path, "bad")
            found = walking.lint([path], case.wishes()).findings
            assert not any(finding.edit for finding in found if finding.rule == case.rule)
            return
        path, _, _ = case.write(tmp_path, "bad")
        result = walking.lint([path], case.wishes(fix=True))
        wanted = case.given["fixed"].replace("{here}", str(tmp_path))
        assert path.read_text() == (case.wrapper.replace("{}", wanted) if case.wrapper else wanted)
        assert case.rule not in [finding.rule for finding in result.findings]
        assert result.fixed == {str(path): 1}


def test_every_rule_has_a_case() -> None:
    """No rule is without a bad and a good twin, and no case without a rule."""
    assert {case.rule for case in CASES} | _ELSEWHERE == set(walking.rules())


def test_there_are_at_least_sixty_rules() -> None:
    """The linter knows sixty rules and more, of each family."""
    rules = walking.rules()
    assert len(rules) >= 60
    assert {rule.rstrip("0123456789") for rule in rules} == {"GEN", "MAR", "RUN", "TFS", "TS"}


def test_every_rule_is_worded_in_full() -> None:
    """What happens and what to do are one sentence each, without a full stop, and there is a reference."""
    for rule in walking.rules().values():
        for text in (rule.title, rule.happens, rule.do):
            assert text, rule.id
            assert not text.endswith("."), rule.id
        assert rule.reference or rule.id.startswith(("GEN", "RUN001")), rule.id


def test_the_pages_are_in_step() -> None:
    """The pages in docs are what the rules and the cases make."""
    docs = Path(__file__).parents[1] / "docs"
    made = page.pages(walking.rules(), page.examples(_FOLDER))
    assert {name: (docs / name).read_text(encoding="utf-8") for name in made} == made
    assert {path.name for path in (docs / "rules").iterdir()} == {Path(name).name for name in made} - {"lint.md"}

"""The pages of the rules, made from the rules and from the cases that the tests hold them against."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import yaml

from servewright.linting.rule import Rule

_FAMILIES: Final = {
    "GEN": "Every file",
    "MAR": "Model archives, manifests and handlers",
    "RUN": "Commands, Dockerfiles, Compose and Kubernetes files",
    "TFS": "TensorFlow Serving's files",
    "TS": "TorchServe's files",
}
_HEAD: Final = """\
# The rules of `servewright lint`

An **error** means that the server will not load it (or that it must not be loaded), a **warning** that it loads and
something is ignored, wrong or unsafe, a **note** that it is worth knowing. Ids never change their meaning.

Silence a finding with a comment on its line or above it, `# servewright: ignore=TFS012`, or in a whole file with
`# servewright: ignore-file=TFS012,TS003`; or leave a rule out with `--ignore TFS012`. Manifests are JSON and hold no
comments: use `--ignore` there.

This page, and those with an example of each rule, are made by
`python -m servewright.linting.page tests/lint docs`; a test keeps them in step.
"""
_MARK: Final = "§"  # by which the cases say where a finding has its place
_FENCE: Final = "````"


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """What a rule finds something in, and what it does not; texts by the names of their files."""

    bad: Mapping[str, str]
    good: Mapping[str, str]
    release: str = ""


def examples(folder: Path) -> Mapping[str, Example]:
    """Read the cases of the tests, by rule."""
    found = {}
    for path in sorted(folder.glob("*.yaml")):
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        for case in document["cases"]:
            wrapper = document["wrappers"][case["wrap"]] if "wrap" in case else "{}"
            found[case["rule"]] = Example(
                bad=_texts(case["bad"], case["file"], wrapper) | case.get("beside", {}),
                good=_texts(case["good"], case.get("good_file", case["file"]), wrapper) | case.get("good_beside", {}),
                release=" ".join(f"--{name} {release}" for name, release in case.get("releases", {}).items()),
            )
    return found


def _texts(given: str | Mapping[str, str], file: str, wrapper: str) -> dict[str, str]:
    named = {f"{file}!/{name}": text for name, text in given.items()} if isinstance(given, Mapping) else {file: given}
    shown = {name: wrapper.replace("{}", text) for name, text in named.items()}
    return {name: text.replace(_MARK, "").replace("{here}", "/srv") for name, text in shown.items()}


def family_page(family: str, rules: Mapping[str, Rule], cases: Mapping[str, Example]) -> str:
    """Return the page of one family: each rule with its example."""
    parts = [f"# {family}: {_FAMILIES[family]}\n\nAll rules at a glance: [lint.md](../lint.md).\n"]
    for rule in rules.values():
        if rule.id.rstrip("0123456789") != family:
            continue
        parts.append(f"## {rule.id}\n\n**{_text(rule.title)}** ({rule.severity}): {_text(rule.happens)}.\n")
        parts.append(f"What to do: {_text(rule.do)}. Known from: {rule.reference}.\n")
        case = cases.get(rule.id)
        if case is None:
            parts.append("Files of this kind are made by tests/test_lint_archives.py and tests/test_lint_reports.py.\n")
            continue
        for label, texts in (("Found in", case.bad), ("Not in", case.good)):
            for name, text in texts.items():
                release = f" with `{case.release}`" if case.release else ""
                parts.append(f"{label} `{name}`{release}:\n\n{_FENCE}\n{_shown(text)}\n{_FENCE}\n")
    return "\n".join(parts)


def _shown(text: str) -> str:
    """Return a text as a page can hold it: blanks at the ends of lines and odd characters made visible."""
    lines = text.rstrip("\n").replace("\r", "\\r").split("\n")
    return "\n".join(line.rstrip() + "·" * (len(line) - len(line.rstrip())) for line in lines)


def _text(text: str) -> str:
    return text.replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")


def write(cases: Path, docs: Path) -> None:
    """Write every page below ``docs``."""
    from servewright.linting.walking import rules

    for name, text in pages(rules(), examples(cases)).items():
        target = docs / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")


def pages(rules: Mapping[str, Rule], cases: Mapping[str, Example]) -> Mapping[str, str]:
    """Return every page by its name below ``docs``."""
    return {"lint.md": page(rules)} | {f"rules/{name}.md": family_page(name, rules, cases) for name in _FAMILIES}


def page(rules: Mapping[str, Rule]) -> str:
    """Return the page: a table for each family of rules."""
    parts = [_HEAD]
    for family, title in _FAMILIES.items():
        parts.append(
            f"\n## {family}: {title}\n\n| rule | | what | what happens | what to do | reference |\n|---|---|---|---|---|---|"
        )
        parts += [
            "| "
            + " | ".join(
                _cell(text)
                for text in (
                    _link(rule.id, family),
                    str(rule.severity),
                    rule.title,
                    rule.happens,
                    rule.do,
                    rule.reference,
                )
            )
            + " |"
            for rule in rules.values()
            if rule.id.rstrip("0123456789") == family
        ]
    return "\n".join(parts) + "\n"


def _link(rule: str, family: str) -> str:
    return f"[{rule}](rules/{family}.md#{rule.lower()})"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))

"""The page of the rules, made from the rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

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

This page is made by `python -m servewright.linting.page`; a test keeps it in step.
"""


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
                _cell(text) for text in (rule.id, str(rule.severity), rule.title, rule.happens, rule.do, rule.reference)
            )
            + " |"
            for rule in rules.values()
            if rule.id.rstrip("0123456789") == family
        ]
    return "\n".join(parts) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    from servewright.linting.walking import rules

    print(page(rules()), end="")  # noqa: T201

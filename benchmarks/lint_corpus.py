"""Lint a corpus of real configs, and print the page of counts per rule (``docs/lint-corpus.md``).

The corpus is a folder with ``INDEX.tsv`` (kind, repository, path, verdict, note, file); SERVEWRIGHT_CORPUS names it.
"""

from __future__ import annotations

import csv
import os
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from servewright.linting import walking
from servewright.linting.finding import Severity


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A file of the corpus: the index's kind and verdict, and what we found, by itself and as the index's kind."""

    kind: str
    file: str
    verdict: str
    note: str
    recognised: str
    result: walking.Result

    @property
    def errors(self) -> list[str]:
        """The ids of the errors."""
        return [finding.rule for finding in self.result.findings if finding.severity is Severity.ERROR]


def rows(corpus: Path) -> list[Row]:
    """Lint every file of the index: once as it is recognised, once as the index says."""
    found = []
    with (corpus / "INDEX.tsv").open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            path = corpus / line["file"]
            recognised = next(iter(walking.lint([path]).kinds.values()), "")
            result = walking.lint([path], walking.Wishes(kind=line["kind"]))
            found.append(
                Row(
                    kind=line["kind"], file=line["file"], verdict=line["verdict"], note=line["note"],
                    recognised=recognised, result=result,
                )
            )  # fmt: skip
    return found


def page(found: list[Row]) -> str:
    """Return the page: counts per kind and per rule, and where we judge otherwise than the index."""
    kinds = sorted({row.kind for row in found})
    lines = [
        "# What `servewright lint` finds in real configs",
        "",
        f"{len(found)} files from public repositories. Made by `python benchmarks/lint_corpus.py CORPUS`; counts are",
        "files in which a rule found something (and findings in all).",
        "",
        "| kind of file | files | recognised by content | with errors | with warnings | with notes alone | nothing |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in kinds:
        own = [row for row in found if row.kind == kind]
        worst = Counter(str(row.result.worst() or "nothing") for row in own)
        known = sum(row.recognised == kind for row in own)
        lines.append(
            f"| {kind} | {len(own)} | {known} "
            + "".join(f"| {worst[level]} " for level in ("error", "warning", "note", "nothing"))
            + "|"
        )
    lines += [
        "",
        "| rule | severity | what | " + " | ".join(kinds) + " | findings |",
        "|---|---|---|" + "---|" * (len(kinds) + 1),
    ]
    findings = Counter(finding.rule for row in found for finding in row.result.findings)
    files = Counter((rule, row.kind) for row in found for rule in {finding.rule for finding in row.result.findings})
    for rule in walking.rules().values():
        if findings[rule.id]:
            cells = " | ".join(str(files[rule.id, kind] or "") for kind in kinds)
            lines.append(f"| {rule.id} | {rule.severity} | {rule.title} | {cells} | {findings[rule.id]} |")
    lines += ["", "## Where we judge otherwise than the corpus's index", "",
              "The index calls a file bad, partial or good. Ours is bad where there is an error,",
              "that is where the server does not load it.",
              "Keys that TorchServe ignores are warnings of ours, for it starts with them.", ""]  # fmt: skip
    lines += ["| index | errors of ours | file | the index's reason |", "|---|---|---|---|"]
    for row in found:
        if (row.verdict == "bad") != bool(row.errors):
            reason = row.note.replace("|", "/")
            reason = reason if len(reason) <= 160 else reason[:157] + "..."
            lines.append(f"| {row.verdict} | {', '.join(sorted(set(row.errors))) or 'none'} | {row.file} | {reason} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the page, or write it to the second argument."""
    corpus = Path(sys.argv[1] if len(sys.argv) > 1 else os.environ["SERVEWRIGHT_CORPUS"])
    text = page(rows(corpus))
    if len(sys.argv) > 2:
        Path(sys.argv[2]).write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()

"""Results, and the table and the list of differences that are printed of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one line: ``equal``, ``differs`` or ``left out``, and why."""

    group: str
    id: str
    verdict: str
    why: str = ""


def equal(group: str, line: str) -> Result:
    """Return that a line's answer was the recorded one."""
    return Result(group, line, "equal")


def differs(group: str, line: str, why: str) -> Result:
    """Return that it was another one."""
    return Result(group, line, "differs", why)


def left_out(group: str, line: str, why: str) -> Result:
    """Return that a line is not counted, such as a crash of the real server."""
    return Result(group, line, "left out", why)


def table(results: Iterable[Result]) -> str:
    """Return a table with one row a group."""
    results = list(results)
    rows = [f"{'group':<10} {'lines':>6} {'equal':>6} {'differ':>7} {'left out':>9} {'equal %':>8}"]
    for group in dict.fromkeys(result.group for result in results):
        own = [result for result in results if result.group == group]
        good = sum(result.verdict == "equal" for result in own)
        bad = sum(result.verdict == "differs" for result in own)
        share = f"{100 * good / (good + bad):.1f}" if good + bad else "-"
        rows.append(f"{group:<10} {len(own):>6} {good:>6} {bad:>7} {len(own) - good - bad:>9} {share:>8}")
    return "\n".join(rows)


def listing(results: Iterable[Result], *, left_out_too: bool = False) -> str:
    """Return every line that differs, with what differs."""
    return "\n".join(
        f"{result.verdict}: {result.id}: {result.why}"
        for result in results
        if result.verdict == "differs" or (left_out_too and result.verdict == "left out")
    )

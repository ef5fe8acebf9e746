"""`servewright lint`."""

from __future__ import annotations

from pathlib import Path

import click

from servewright.cli import printing
from servewright.cli.options import PATH


@click.command(
    "lint",
    epilog="Examples: servewright lint serving/ --fail-on warning; "
    "servewright lint config.properties --format github; servewright lint . --format sarif > lint.sarif",
)
@click.argument("paths", type=PATH, nargs=-1)
@click.option(
    "--fail-on", type=click.Choice(["error", "warning", "note", "never"]), default="error", show_default=True,
    help="The mildest finding that makes the exit code 1.",
)  # fmt: skip
@click.option("--tfserving", default="2.17", show_default=True, help="The release of TensorFlow Serving.")
@click.option("--torchserve", default="0.12", show_default=True, help="The release of TorchServe.")
@click.option(
    "--format", "style", type=click.Choice(["text", "json", "sarif", "github"]), default="text", show_default=True,
    help="How to print the findings.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@click.option("--ignore", multiple=True, metavar="RULE", help="Leave this rule out; may be given several times.")
@click.option("--kind", default="", help="Check the files as this kind, whatever they look like; see --kinds.")
@click.option("--fix", is_flag=True, help="Make the changes that are safe, and tell what remains.")
@click.option("--allow-none", is_flag=True, help="Exit 0 where no file is of a model server; for hooks.")
@click.option("--rules", "list_rules", is_flag=True, help="List every rule, and check nothing.")
@click.option("--kinds", "list_kinds", is_flag=True, help="List the kinds of files, and check nothing.")
def command(
    *,
    paths: tuple[Path, ...],
    fail_on: str,
    tfserving: str,
    torchserve: str,
    style: str,
    as_json: bool,
    ignore: tuple[str, ...],
    kind: str,
    fix: bool,
    allow_none: bool,
    list_rules: bool,
    list_kinds: bool,
) -> None:
    """Check files and folders, and what they name, against what the servers really read.

    Exit 0: nothing as bad as --fail-on. Exit 1: something is. Exit 2: the arguments, or no file of a server.
    """
    from servewright.linting import reports, walking
    from servewright.linting.finding import Severity

    known = walking.rules()
    if list_rules:
        printing.table(("rule", "severity", "what"), [(rule.id, rule.severity, rule.title) for rule in known.values()])
        return
    if list_kinds:
        printing.table(("kind", "what"), sorted(walking.kinds().items()))
        return
    if not paths:
        raise click.UsageError("name the files or folders to check")
    targets = {"tfserving": tfserving, "torchserve": torchserve}
    for name, release in targets.items():
        releases = walking.linters()[name].releases
        if release not in releases:
            raise click.UsageError(f"--{name} {release} is not known; choose from {', '.join(releases)}")
    if strange := [rule for rule in ignore if rule.upper() not in known]:
        raise click.UsageError(f"no rule {strange[0]}; list them with --rules")
    wishes = walking.Wishes(targets=targets, ignore=frozenset(rule.upper() for rule in ignore), kind=kind, fix=fix)
    result = walking.lint(paths, wishes)
    text = reports.printed(result, "json" if as_json else style, known)
    if text:
        printing.line(text)
    if not result.kinds and not result.findings and not allow_none:
        raise click.UsageError("no file of a model server among them; give --kind to check one as such")
    worst = result.worst()
    if worst is not None and fail_on != "never" and worst.weight >= Severity(fail_on).weight:
        raise SystemExit(1)

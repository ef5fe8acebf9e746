"""`servewright doctor`."""

from __future__ import annotations

import click

from servewright.cli import printing
from servewright.cli.options import json_option


@click.command("doctor", epilog="Example: servewright doctor")
@json_option
def command(*, as_json: bool) -> None:
    """Say what this machine can run, and how to get what is missing."""
    from dataclasses import asdict

    from servewright.doctor import examine
    from servewright.errors import ExitCode, UnavailableError

    findings = examine()
    usable = any(finding.ok and finding.kind == "runtime" for finding in findings)
    if as_json:
        printing.as_json({"ok": usable, "findings": [asdict(finding) for finding in findings]})
        raise SystemExit(int(ExitCode.OK if usable else ExitCode.UNAVAILABLE))
    printing.table(
        ("what", "state", "detail"),
        [(finding.what, "ok" if finding.ok else "missing", finding.detail) for finding in findings],
    )
    if not usable:
        raise UnavailableError("this machine can run neither server; install one of the extras above")

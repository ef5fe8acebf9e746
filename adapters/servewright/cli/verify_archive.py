"""`servewright verify-archive`."""

from __future__ import annotations

from pathlib import Path

import click

from servewright.cli import printing
from servewright.cli.options import PATH


@click.command(
    "verify-archive",
    epilog="Examples: servewright verify-archive model-store/*.mar --json; "
    "servewright verify-archive dist/ --signature dist.sig --public-key key.pub",
)
@click.argument("archives", type=PATH, nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
@click.option("--strict", is_flag=True, help="Count warnings, such as pickles that run code, as failures.")
@click.option("--signature", type=PATH, help="Prove the one ARCHIVE or folder to be what this file signs, too.")
@click.option("--public-key", type=PATH, help="The key of the signature: EC in PEM.")
def command(
    *, archives: tuple[Path, ...], as_json: bool, strict: bool, signature: Path | None, public_key: Path | None
) -> None:
    """Prove ARCHIVES safe to unpack and complete: names, links, bombs, records, manifest, handler, weights.

    Every byte is read and none is unpacked or run. Of a folder, everything that lint knows is checked. Exit 0: safe.
    Exit 1: not, or not what was signed. Exit 2: no such file.
    """
    if (signature is None) != (public_key is None):
        raise click.UsageError("--signature and --public-key go together: the key is who is trusted")
    if signature is not None and len(archives) != 1:
        raise click.UsageError("a signature is of one file or folder: name that alone")
    from servewright.linting import reports, walking
    from servewright.linting.finding import Severity

    signed = None
    if signature is not None and public_key is not None:
        from servewright import signing

        signed = signing.verify(archives[0], signature, public_key)
    result = walking.lint(archives, walking.Wishes(kind="mar"))
    if signed is None and not result.kinds and not result.findings:
        raise click.UsageError("no archive and no file of a model server among them")
    if as_json:
        told = {"signature": {"files": signed.files, "key": signed.key}} if signed else {}
        printing.as_json(reports.as_json(result) | told)
    else:
        if signed:
            printing.line(f"{archives[0]}: what was signed: {signed.files} files by the key {signed.key}")
        printing.line(reports.as_text(result))
    worst = result.worst()
    if worst is not None and worst.weight >= (Severity.WARNING if strict else Severity.ERROR).weight:
        raise SystemExit(1)

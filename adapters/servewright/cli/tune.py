"""`servewright tune`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from servewright.cli import printing
from servewright.cli.options import (
    CALLERS,
    PATH,
    Share,
    backend_option,
    image_option,
    json_option,
    require_real_option,
    runtime_option,
    spec_argument,
    trust_option,
)

if TYPE_CHECKING:
    from servewright.tuning.study import Measured, Study


@click.command(
    "tune",
    epilog="Examples: servewright tune digits.yaml -b torchserve --slo p99=50ms,errors=0.1%; "
    "servewright tune digits.yaml -b tfserving --max-throughput --slo p99=20ms -o study; "
    "servewright tune digits.yaml -b tfserving -o study --resume --budget 20",
)
@spec_argument
@backend_option
@runtime_option
@image_option
@click.option("--slo", help="Promises, such as p99=50ms,errors=0.1% (default: the spec's).")
@click.option("--rate", help="Requests per second that come, such as 200/s: the smallest p99 at that rate.")
@click.option(
    "--concurrency", type=CALLERS,
    help="Callers in a closed loop: the greatest rate (default 64, unless the spec has slo.rate).",
)  # fmt: skip
@click.option("--max-throughput", is_flag=True, help="The greatest rate of an open loop within the --slo.")
@click.option(
    "--budget", type=click.IntRange(7), default=14, show_default=True,
    help="How many measurements, at most; six of them calibrate.",
)  # fmt: skip
@click.option("--time", "time_limit", default="10m", show_default=True, help="How long to search, at most.")
@click.option("--each", default="5s", show_default=True, help="How long one measurement takes, at most.")
@click.option("--rounds", type=click.IntRange(2), default=4, show_default=True, help="Rounds against the default.")
@click.option("--margin", type=Share(0, 1), default=0.03, show_default=True, help="Gains not sought.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Of what is left to chance.")
@click.option("--transport", type=click.Choice(["http", "grpc"]), default="http", show_default=True)
@click.option("--data", type=PATH, help="What to send: an .npz of the signature's inputs.")
@click.option(
    "--resume", is_flag=True, help="Go on with the study in -o and its goal; more --budget and --rounds are welcome."
)
@click.option("--force", is_flag=True, help="Replace a tuned spec that another study wrote.")
@click.option("-o", "--output", type=PATH, help="The study's folder (default: NAME-BACKEND-study).")
@require_real_option
@trust_option
@json_option
def command(spec: Path, **options: Any) -> None:
    """Find the batching settings that serve SPEC best, on its real server, and write them.

    The tuned spec goes beside SPEC, as NAME.tuned.yaml, or NAME.BACKEND.tuned.yaml where SPEC has models for both
    servers; the study and the configs go to -o. Nothing is changed where nothing beats the default. Exit code 1:
    nothing that was measured keeps the promises.
    """
    from servewright.cli.tuning import run

    run(spec, **options)


def progress(found: Measured) -> None:
    """Say on stderr what was measured."""
    settings = _words(found.settings)
    if found.unsafe:
        printing.stage(f"{found.stage}: {settings}: unsafe: {found.unsafe}")
        return
    verdict = f", {found.broken}" if found.broken else ""
    printing.stage(f"{found.stage}: {settings}: {found.rate:.0f}/s, p99 {found.p99_ms or 0:.1f} ms{verdict}")


def _words(settings: Mapping[str, object]) -> str:
    return " ".join(f"{name}={value}" for name, value in settings.items())


def shown(found: Study, folder: Path, tuned: Path | None) -> None:
    """Print a study's end."""
    rows = [
        (
            each.index, each.stage, _words(each.settings), str(each.load),
            f"{each.rate:.0f}/s", "-" if each.p99_ms is None else f"{each.p99_ms:.1f}",
            each.unsafe or ("calibrates" if each.load not in found.goal.loads else each.broken or "ok"),
        )
        for each in found.measurements
    ]  # fmt: skip
    printing.table(("#", "stage", "settings", "load", "rate", "p99 ms", "verdict"), rows)
    for warning in found.warnings:
        printing.line(f"note {warning}")
    if found.diff is not None:
        printing.line(found.diff.spec.rstrip("\n"))
    printing.line(found.conclusion)
    printing.line(f"study {folder / 'study.json'}" + (f", spec {tuned}" if tuned else ""))

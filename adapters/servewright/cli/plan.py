"""`servewright plan`."""

from __future__ import annotations

from pathlib import Path

import click

from servewright.cli import printing
from servewright.cli.options import PATH, Share, json_option
from servewright.errors import ServewrightError


@click.command(
    "plan",
    epilog="Examples: servewright plan digits-torchserve-study --rate 20k/s; "
    "servewright plan study.json --rate 5000/s --head-room 0.5 --json",
)
@click.argument("study", type=PATH)
@click.option("--rate", required=True, help="Requests per second that the fleet shall serve, such as 20k/s.")
@click.option(
    "--head-room", type=Share(0, 0.95), default=0.3, show_default=True,
    help="The share of each replica's rate that stays free.",
)  # fmt: skip
@json_option
def command(study: Path, *, rate: str, head_room: float, as_json: bool) -> None:
    """Say how many replicas of what STUDY found a rate needs, and their p99; simulated, not measured.

    The study keeps the plan, for `servewright report`.
    """
    from servewright import registry
    from servewright.cli.tuning import rate_of
    from servewright.tuning import planning, tuner
    from servewright.tuning import study as studies

    found = studies.load(study)
    tuning = tuner.tuning_of(registry.get(found.server.backend))
    fleet = planning.plan(found, tuning.scheduler, rate=rate_of(rate), head_room=head_room)
    try:
        studies.save(found.model_copy(update={"plan": fleet}), study)
    except ServewrightError as error:
        printing.stage(f"the study does not keep this plan: {error}")
    settings, _ = planning.planned_with(found)
    if as_json:
        head = {"ok": True, "stand_in": found.server.stand_in, "settings": settings}
        printing.as_json(head | fleet.model_dump(mode="json"))
        return
    tail = f"p99 {fleet.p99_ms:.1f} ms" if fleet.p99_ms is not None else "p99 unknown"
    printing.line(f"replicas  {fleet.replicas} for {fleet.rate:.10g}/s, {fleet.head_room:.0%} of each free")
    least = "at least " if found.goal.maximise == "latency" else ""  # more than the rate that was asked was never tried
    printing.line(f"each      {fleet.each:.10g}/s of {least}{fleet.knee:.10g}/s measured, {tail} (simulated)")
    printing.line("with      " + " ".join(f"{name}={value}" for name, value in settings.items()))
    if not fleet.keeps:
        limit = found.goal.latency_ms["p99"]
        printing.line(f"note      a p99 of {limit:g} ms is promised: by this simulation no number of replicas keeps it")
    if found.winner is None:
        why = "nothing beat the default" if found.comparison is not None else "they were not compared with the default"
        printing.line(f"note      no tuned spec has these settings: {why}, and they measured best")
    if found.server.stand_in:
        printing.line("note      measured on a stand-in: the real server's figures differ")

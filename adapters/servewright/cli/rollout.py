"""`servewright rollout`."""

from __future__ import annotations

from pathlib import Path

import click

from servewright.cli.options import PATH, backend_option, json_option, trust_option


@click.command(
    "rollout",
    epilog="Examples: servewright rollout digits.yaml --live digits; "
    "servewright rollout digits.yaml --live http://host:8501,grpc=host:8500,config=/etc/models.pbtxt,store=/models "
    "--dry-run; servewright rollout --status; servewright rollout --resume",
)
@click.argument("spec", type=PATH, required=False)
@backend_option
@click.option(
    "--live", "lives", multiple=True, metavar="NAME|URL,KEY=VALUE...",
    help="A server: its name if `up` started it, or its addresses (http=, grpc=, management=) and what belongs to it: "
    "store=FOLDER, config=FILE, via=grpc|file, key_file=FILE. Several are taken one after another.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print the plan, and touch no server.")
@click.option(
    "--canary", type=click.Choice(["model", "label"]), default="model", show_default=True,
    help="TF Serving: what the canary is asked for by. A label is safe only where every client names a label or a "
    "version: the others get the highest version as soon as it is loaded.",
)  # fmt: skip
@click.option("--canary-name", default="canary", show_default=True, help="The label, or what the model's name ends in.")
@click.option("--replace-all", is_flag=True, help="TF Serving: drop all other models; needed where no config is known.")
@click.option("--timeout", default="120s", show_default=True, help="How long one step may take.")
@click.option("--drain", default="5s", show_default=True, help="How long an old version must be idle before it goes.")
@click.option(
    "--resume", is_flag=False, flag_value="", metavar="[ID]", help="Go on with a rollout that was killed (the newest)."
)
@click.option(
    "--status", is_flag=False, flag_value="", metavar="[ID]", help="Say how a rollout stands (the newest), and stop."
)
@json_option
@trust_option
def command(
    *,
    spec: Path | None,
    backend: str | None,
    lives: tuple[str, ...],
    dry_run: bool,
    canary: str,
    canary_name: str,
    replace_all: bool,
    timeout: str,
    drain: str,
    resume: str | None,
    status: str | None,
    as_json: bool,
    trust: bool,
) -> None:
    """Move running servers to the version of SPEC: canary, probe, promote, retire; back where anything fails."""
    from servewright.cli import rolling

    patience_s = rolling.seconds(timeout, "--timeout")
    if status is not None:
        rolling.tell(status or None, as_json=as_json)
        return
    if resume is not None:
        if spec is not None or lives or dry_run:
            raise click.UsageError("--resume goes on with what was planned: leave SPEC, --live and --dry-run out")
        rolling.resume(resume or None, patience_s=patience_s, as_json=as_json)
        return
    if spec is None or not lives:
        raise click.UsageError("say what goes where: SPEC and --live, or --resume")
    wishes = rolling.Wishes(
        backend=backend,
        naming=canary,
        label=canary_name,
        replace_all=replace_all,
        drain_s=rolling.seconds(drain, "--drain"),
        trust=trust,
        patience_s=patience_s,
        dry_run=dry_run,
        as_json=as_json,
    )
    rolling.roll_out(spec, lives, wishes)

"""`servewright load`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from servewright.cli import printing
from servewright.cli.options import ADDRESS, CALLERS, PATH, backend_option, json_option

if TYPE_CHECKING:
    from servewright.load.measurement import Measurement, Window
    from servewright.load.saturation import Trial


@click.command(
    "load",
    epilog="Examples: servewright load digits.yaml --rate 200/s; "
    "servewright load digits.yaml --find-max --slo p99=50ms; "
    "servewright load http://127.0.0.1:8080/predictions/digits --data image.bin --rate 50/s",
)
@click.argument("target", metavar="SPEC|URL")
@backend_option
@click.option("--name", help="A server that `up` started (default: the spec's name).")
@click.option("--http", type=ADDRESS, help="host:port of the HTTP API of a server that runs elsewhere.")
@click.option("--grpc", type=ADDRESS, help="host:port of its gRPC API.")
@click.option("--key-file", type=PATH, help="TorchServe's key_file.json of that server.")
@click.option("--transport", type=click.Choice(["http", "grpc"]), default="http", show_default=True)
@click.option("--rate", help="Requests per second that are meant to leave, such as 200/s (an open loop).")
@click.option("--poisson", is_flag=True, help="Random arrivals at that rate, instead of evenly spaced ones.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Of the random arrivals.")
@click.option("--concurrency", type=CALLERS, help="Callers that wait for each answer (a closed loop).")
@click.option("--duration", default="30s", show_default=True, help="How long to measure, at most.")
@click.option("--warm-up", default="2s", show_default=True, help="How long to send before that.")
@click.option("--timeout", default="30s", show_default=True, help="How long an answer may take.")
@click.option(
    "--settle/--no-settle", default=True, show_default=True,
    help="Stop when three windows in a row, each a sixth of the duration, agree: rate, p50 and p90 within 10 % of "
    "their mean; p99 within 50 %, since it scatters by itself where so few requests are above it.",
)  # fmt: skip
@click.option(
    "--processes", type=click.IntRange(1),
    help="How many processes send: at most 8 per processor (default: by the load)."
)  # fmt: skip
@click.option("--data", type=PATH, help="What to send: an .npz of the signature's inputs, or for a URL any file.")
@click.option("--header", "headers", multiple=True, help="Name: value, sent with every request.")
@click.option("--find-max", is_flag=True, help="Find the highest rate within the --slo.")
@click.option("--slo", help="Promises, such as p99=50ms,errors=0.1% (default: no errors).")
@click.option("--allow-client-bound", is_flag=True, help="Print numbers that are the client's own, marked as such.")
@json_option
def command(target: str, **options: Any) -> None:
    """Send load to a server that runs, and say what its users see.

    SPEC: a server of ours that `up` started, or one at --http and --grpc. URL: POST --data to any HTTP server.
    """
    from servewright.cli.loading import run

    run(target, **options)


def progress(window: Window) -> None:
    """Say on stderr how a load goes."""
    latency = window.latency
    if not len(latency):
        if window.errors:
            printing.stage(f"no answer, {window.errors.total()} errors")
        return
    printing.stage(
        f"{window.rate:.1f}/s, p50 {latency.percentile(0.5) / 1e6:.2f} ms, p99 {latency.percentile(0.99) / 1e6:.2f} ms"
        + (f", {window.errors.total()} errors" if window.errors else "")
    )


def shown(found: Measurement) -> None:
    """Print a measurement."""
    document = found.as_json()
    asked = f"{found.asked:g}/s asked" if found.asked is not None else f"{found.concurrency} callers in a closed loop"
    printing.line(f"rate      {found.rate:.1f}/s ({asked})")
    latencies = document["latency_ms"]
    known = ", ".join(f"{name} {value} ms" for name, value in latencies.items() if value is not None)
    printing.line(f"latency   {known or '-'}")
    errors = ", ".join(f"{kind}: {count}" for kind, count in found.errors.items()) or "none"
    printing.line(f"errors    {errors}" + (f" ({found.error_share:.2%} of requests)" if found.errors else ""))
    printing.line(f"ended     {found.ended} after {found.seconds:.1f} s")
    if found.asked is None:
        printing.line("note      a closed loop sends less while the server is slow: it hides what waiting users see")
    if found.client_bound:
        printing.line(f"CLIENT-BOUND {found.client_bound}")


def shown_trials(best: Trial[Measurement] | None, trials: list[Trial[Measurement]], *, whole: bool) -> None:
    """Print a search for the highest rate, also one that was ended early."""
    for trial in trials:
        verdict = trial.broken or "ok"
        p99 = trial.seen.percentile_ms(0.99)
        printing.line(f"{trial.asked:9.1f}/s  reached {trial.seen.rate:9.1f}/s  p99 {p99:8.2f} ms  {verdict}")
    so_far = "" if whole else " so far"
    if best is None:
        printing.line(f"no rate keeps the promises{so_far}")
    else:
        printing.line(f"highest rate within the promises{so_far}: {best.asked:.1f}/s")

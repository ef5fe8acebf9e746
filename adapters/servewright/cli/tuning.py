"""From the options of `servewright tune` to a study, and from that to an exit code."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from servewright import units
from servewright.cli import printing
from servewright.errors import ExitCode, InputError


def run(spec: Path, **options: Any) -> None:
    """Carry out what the options say, print it, and exit as it went."""
    if sum(map(bool, (options["rate"], options["concurrency"], options["max_throughput"]))) > 1:
        raise click.UsageError("--rate, --concurrency and --max-throughput are three goals; give one of them")
    from servewright import pipeline, registry
    from servewright.cli.tune import progress, shown
    from servewright.tuning import study, tuner
    from servewright.tuning.live import Subject
    from servewright.tuning_report import page
    from servewright.writing import write_texts

    fleet = pipeline.load(spec)
    if len(fleet.models) != 1:
        raise InputError(f"{spec} has {len(fleet.models)} models; tune the spec of one")
    if Path(fleet.models[0].file).resolve() != spec.resolve():
        raise InputError(f"{spec} is a fleet; tune the spec of its model, {fleet.models[0].file}")
    if fleet.models[0].at:
        raise InputError(f"{spec} is a fleet; write its model into a file of its own, and tune that")
    backend = pipeline.backend_for(fleet, options["backend"])
    tuning = tuner.tuning_of(backend)
    ask = _ask(fleet.models[0].spec, options)
    pipeline.check(fleet, backend, trust=options["trust"])
    pipeline.sweep()
    subject = Subject(
        fleet=fleet, backend=backend, choice=pipeline.choice_for(fleet, backend, options["runtime"], options["image"]),
        tuning=tuning, text=spec.read_bytes().decode("utf-8-sig"), transport=options["transport"], data=options["data"],
        image=options["image"], trust=options["trust"],
    )  # fmt: skip
    beside = spec.absolute().parent
    if not os.access(beside, os.W_OK):
        raise InputError(f"{beside} cannot be written, and the tuned spec goes there; copy the spec to another folder")
    folder = options["output"] or Path(f"{fleet.name}-{backend.name}-study")
    found = tuner.tune(
        subject, ask, folder, backends=registry.names(), resume=options["resume"], given=_given(),
        force=options["force"],
        on_stage=printing.stage, on_measured=progress,
    )  # fmt: skip
    write_texts({"report.html": page.html(found)}, folder)
    written = found.winner is not None and found.state != "interrupted"
    wrote = tuner.tuned_path(subject) if written else None
    if options["as_json"]:
        printing.as_json({"ok": found.state not in ("nothing", "interrupted"), "study": str(folder / study.FILE)}
                         | found.model_dump(mode="json"))  # fmt: skip
    else:
        shown(found, folder, wrote)
    if found.state == "interrupted":
        printing.stage(f"interrupted; go on with: {resuming(spec, backend.name, folder, options)}")
        raise SystemExit(int(ExitCode.INTERRUPTED))
    if found.state == "nothing":
        raise SystemExit(int(ExitCode.CHECK_FAILED))


def resuming(spec: Path, backend: str, folder: Path, options: dict[str, Any]) -> str:
    """Return the command that goes on with a study: what it is about must be said again, its goal need not."""
    words = ["servewright", "tune", str(spec), "-b", backend, "-o", str(folder), "--resume"]
    given = _given()
    for name in ("runtime", "image", "transport", "data"):
        if name in given:
            words += [f"--{name}", str(options[name])]
    return shlex.join([*words, *(f"--{name}" for name in ("trust", "force") if options[name])])


def _given() -> frozenset[str]:
    """Return the options that the command line names, as it names them."""
    context = click.get_current_context()
    return frozenset(
        {"time_limit": "time"}.get(parameter, parameter).replace("_", "-")
        for parameter in context.params
        if context.get_parameter_source(parameter) is ParameterSource.COMMANDLINE
    )


def _ask(spec: Any, options: dict[str, Any]) -> Any:
    from servewright.load.saturation import Slo, parse_slo
    from servewright.tuning.tuner import Ask

    if options["slo"]:
        slo = parse_slo(options["slo"])
    else:
        own = {name: getattr(spec.slo, name) for name in ("p50", "p90", "p99")}
        latency = tuple((name, limit / 1000) for name, limit in own.items() if limit is not None)
        slo = Slo(latency_ms=latency, errors=spec.slo.errors or 0.0)
    if options["max_throughput"] and not slo.latency_ms and not options["resume"]:  # a study has its own promise
        raise click.UsageError("--max-throughput needs a promise to stop at, such as --slo p99=50ms")
    chosen = options["concurrency"] or options["max_throughput"]
    rate = rate_of(options["rate"]) if options["rate"] else None if chosen else spec.slo.rate
    if rate and not options["rate"]:
        printing.stage(f"--rate {rate:g}/s is the spec's slo.rate; --concurrency looks for the greatest rate instead")
    return Ask(
        slo=slo, rate=rate, concurrency=options["concurrency"], most=options["max_throughput"],
        budget=options["budget"], time_s=_seconds(options["time_limit"], "--time"),
        each_s=_seconds(options["each"], "--each"), rounds=options["rounds"], margin=options["margin"],
        seed=options["seed"], require_real=options["require_real"],
    )  # fmt: skip


def rate_of(text: str) -> float:
    """Read ``--rate``: 200/s, or a bare number."""
    try:
        rate = float(text) if text.replace(".", "", 1).isdecimal() else units.parse_rate_per_s(text)
    except units.UnitError as error:
        raise InputError(f"--rate: {error}") from error
    if rate <= 0:
        raise InputError(f"--rate: {text} sends nothing; give a positive one")
    return rate


def _seconds(text: str, name: str) -> float:
    try:
        seconds = units.parse_duration_us(text) / 1e6
    except units.UnitError as error:
        raise InputError(f"{name}: {error}") from error
    if seconds <= 0:
        raise InputError(f"{name}: {text} is no time; give a positive one")
    return seconds

"""From the options of `servewright load` to a workload, and from what it shows to an exit code."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from servewright import units
from servewright.cli import printing
from servewright.errors import CheckFailedError, ExitCode, InputError, ProbeError, ServewrightError

if TYPE_CHECKING:
    from servewright.backend import Payload
    from servewright.load.measurement import Measurement
    from servewright.load.workload import Endpoint, Pace

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_PRINTABLE = re.compile(r"[\t\x20-\x7e\xa0-\xff]*")
_NOT_IN_A_TARGET = re.compile(r"[^\x21-\x7e]")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Aim:
    """Where to send, what, with which headers; ``pid`` where the server runs on this machine."""

    endpoint: Endpoint
    payloads: tuple[Payload, ...]
    headers: Callable[[], Mapping[str, str]]
    pid: int | None = None


def run(target: str, **options: Any) -> None:
    """Carry out what the options say, print it, and exit as it went."""
    if options["slo"] and not options["find_max"]:
        raise click.UsageError("--slo is what --find-max looks for; give both")
    if options["find_max"] == bool(options["rate"] or options["concurrency"]):
        raise click.UsageError("say how much: --rate, --concurrency, or --find-max with --slo")
    if options["rate"] and options["concurrency"]:
        raise click.UsageError("--rate is an open loop and --concurrency a closed one; give one of them")
    if options["poisson"] and options["concurrency"]:
        raise click.UsageError("--poisson is how requests of an open loop come; leave it out with --concurrency")
    extra = _headers(options["headers"])
    if "://" in target:
        of_a_spec = [name for name in ("backend", "name", "http", "grpc", "key_file") if options[name]]
        if of_a_spec:
            option = "--" + of_a_spec[0].replace("_", "-")
            raise click.UsageError(f"{option} goes with a SPEC; a URL says where to send, and --header with what key")
        if options["transport"] != "http":
            raise click.UsageError("a URL is loaded over HTTP; for gRPC give a SPEC, with --grpc for where it runs")
        _measure(_anywhere(target, options["data"], extra), options)
        return
    from servewright import pipeline

    fleet = pipeline.load(Path(target))
    if len(fleet.models) != 1:
        raise InputError(f"{target} has {len(fleet.models)} models; load the spec of one, with --name {fleet.name}")
    server, name = _server(fleet.name, options)
    backend = pipeline.backend_for(fleet, options["backend"] or name)
    client = backend.connect(server)
    try:
        from servewright.load import requests

        document = fleet.models[0]
        inputs = requests.samples(document, file=options["data"])
        payloads, credentials = requests.prepared(
            document, backend, client, options["transport"], inputs, file=options["data"]
        )
        aim = _Aim(
            endpoint=requests.endpoint(server, options["transport"]),
            payloads=payloads,
            headers=lambda: {**{name.lower(): value for name, value in credentials().items()}, **extra},
            pid=getattr(server.handle, "pid", None),
        )
        _measure(aim, options)
    finally:
        client.close()


def _server(name: str, options: Mapping[str, Any]) -> tuple[Any, str | None]:
    from servewright import state
    from servewright.server import RunningServer

    given = {transport: options[transport] for transport in ("http", "grpc") if options[transport]}
    if given and options["name"]:
        raise click.UsageError("--name is a server of `up`, --http and --grpc one that is anywhere; give one of them")
    if not given:
        if options["key_file"]:
            raise click.UsageError("--key-file goes with --http or --grpc; a server of `up` has its own")
        record = state.running(options["name"] or name)
        if options["backend"] not in (None, record.backend):
            raise InputError(f"{record.name} is a {record.backend} server; leave out -b, or give another --name")
        return record.server(), record.backend
    if options["key_file"]:
        given["key_file"] = str(options["key_file"])
    return RunningServer(backend=options["backend"] or "", runtime="remote", endpoints=given), None


def _anywhere(url: str, data: Path | None, headers: Mapping[str, str]) -> _Aim:
    from servewright.backend import Payload
    from servewright.load.workload import Endpoint

    if "@" in url.partition("://")[2].partition("/")[0]:  # before any text that repeats the URL
        raise InputError("a name or password in a URL is not sent; give it with --header 'Authorization: ...'")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        host.encode("idna")
    except ValueError as error:
        raise InputError(f"{url} is no http or https URL: {error}") from error
    if parts.scheme not in ("http", "https") or not host:
        raise InputError(f"{url} is no http or https URL")
    if _NOT_IN_A_TARGET.search(parts.path + parts.query):
        raise InputError(f"{url} has characters that no URL may have; write them as %20 and so on")
    if data is None:
        raise click.UsageError("a URL needs --data, the file to send as each request's body")
    try:
        body = data.read_bytes()
    except OSError as error:
        raise InputError(f"{data} cannot be sent to {url}: {error.strerror or error}") from error
    host = f"[{host}]" if ":" in host else host
    secure = parts.scheme == "https"
    address = f"{host}:{port or (443 if secure else 80)}"
    kind = {".json": "application/json"}.get(data.suffix, "application/octet-stream")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return _Aim(
        endpoint=Endpoint(transport="http", address=address, secure=secure),
        payloads=(Payload(target=path, body=body, headers={"Content-Type": kind}),),
        headers=lambda: headers,
    )


def _measure(aim: _Aim, options: Mapping[str, Any]) -> None:
    from servewright import processors
    from servewright.cli.load import progress, shown, shown_trials
    from servewright.load.arrivals import Arrivals
    from servewright.load.running import measure
    from servewright.load.saturation import Trial, best_of, find_max, parse_slo
    from servewright.load.watching import server_of
    from servewright.load.workload import Closed, Workload, senders

    def once(pace: Pace) -> Measurement:
        workload = Workload(
            endpoint=aim.endpoint, payloads=aim.payloads, pace=pace, duration_s=_seconds(options, "duration"),
            warm_up_s=_seconds(options, "warm_up"), timeout_s=_seconds(options, "timeout"), settle=options["settle"],
            processes=options["processes"] or senders(pace, processors.usable()),
        )  # fmt: skip
        found = measure(workload, headers=aim.headers, saturated=server_of(aim.pid), on_window=progress)
        if found.ended == "interrupted" and options["find_max"]:
            raise KeyboardInterrupt
        if found.client_bound and options["find_max"] and not options["allow_client_bound"]:
            raise CheckFailedError(f"client-bound: {found.client_bound}, or --allow-client-bound")
        if not len(found.latency) and not found.errors and found.ended != "interrupted":
            raise ProbeError("nothing that was sent in the measured time was answered in it; give a longer --duration")
        return found

    def arrivals(rate: float) -> Arrivals:
        return Arrivals(rate=rate, poisson=options["poisson"], seed=options["seed"])

    if options["find_max"]:
        slo = parse_slo(options["slo"] or "errors=0%")
        trials: list[Trial[Measurement]] = []

        def tell(*, whole: bool, error: ServewrightError | None = None) -> None:
            best = best_of(trials)
            if options["as_json"]:
                tried = [{"asked": trial.asked, "broken": trial.broken, **trial.seen.as_json()} for trial in trials]
                head = {"ok": whole and best is not None, "complete": whole, "rate": best.asked if best else None}
                why = {"error": {"kind": type(error).__name__, "message": str(error)}} if error is not None else {}
                printing.as_json(head | why | {"trials": tried})
            else:
                shown_trials(best, trials, whole=whole)

        try:
            best, _ = find_max(
                lambda rate: once(arrivals(rate)), slo, poisson=options["poisson"], on_trial=trials.append
            )
        except KeyboardInterrupt:
            if trials:
                tell(whole=False)
            raise
        except ServewrightError as error:
            if trials:
                tell(whole=False, error=error)
            if not trials or not options["as_json"]:
                raise
            for line in str(error).splitlines():  # its document is printed: there is one
                printing.stage(line)
            raise SystemExit(int(error.exit_code)) from error
        tell(whole=True)
        if best is None:
            raise SystemExit(int(ExitCode.CHECK_FAILED))
        return
    found = once(arrivals(_rate(options["rate"])) if options["rate"] else Closed(concurrency=options["concurrency"]))
    bound = bool(found.client_bound) and not options["allow_client_bound"]
    if bound and found.ended != "interrupted":
        raise CheckFailedError(f"client-bound: {found.client_bound}; --allow-client-bound prints the numbers")
    if options["as_json"]:
        printing.as_json(found.as_json())
    else:
        shown(found)
    if found.ended == "interrupted":
        raise SystemExit(int(ExitCode.INTERRUPTED))
    if not found.rate:
        printing.stage("no request got a good answer")
        raise SystemExit(int(ExitCode.SERVER_FAILED))


def _rate(text: str) -> float:
    try:
        return float(text) if text.replace(".", "", 1).isdecimal() else units.parse_rate_per_s(text)
    except units.UnitError as error:
        raise InputError(f"--rate: {error}") from error


def _seconds(options: Mapping[str, Any], name: str) -> float:
    try:
        return units.parse_duration_us(options[name]) / 1e6
    except units.UnitError as error:
        raise InputError(f"--{name.replace('_', '-')}: {error}") from error


def _headers(given: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for text in given:
        name, colon, value = (part.strip() for part in text.partition(":"))
        # What does not say its name may be all secret.
        if not colon or not _NAME.fullmatch(name):
            raise InputError("a --header is not of the form 'Name: value', its name of letters, digits and dashes")
        if not _PRINTABLE.fullmatch(value):
            raise InputError(f"--header {name}: its value has characters that no header may have")
        found[name.lower()] = value
    return found

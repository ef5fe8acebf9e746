"""Start-up lines: whether a server serves, ends or waits, and what it says; and changes on a running one."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from integration.conformance import grpc_group, rest_group
from integration.conformance.recordings import Line, Recordings
from integration.conformance.results import Result, differs, equal, left_out
from integration.conformance.servers import Place, Server, place, started

_WAIT_S = 3.0  # how long a server that waits is watched
_START_S = 30.0


def check(recordings: Recordings, line: Line) -> Iterator[Result]:
    """Start a server as it was started, and compare."""
    raw = line.raw
    with place(recordings.models) as where:
        for name, text in raw.get("files", {}).items():
            (where.work / name).write_text(where.fill(text), encoding="utf-8")
        for source, target in raw.get("copy", ()):
            _copy(where, source, target)
        with started(where, raw["flags"]) as server:
            if "steps" in raw:
                why = _steps(server, raw)
                yield differs("startup", line.id, why) if why else equal("startup", line.id)
            else:
                yield _result(server, line)


def _copy(where: Place, source: str, target: str) -> None:
    source, target = where.fill(source), where.fill(target)
    beside = f"{where.work}/.copying"
    try:
        shutil.copytree(source, beside)
    except NotADirectoryError:
        shutil.copy(source, beside)
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    shutil.move(beside, target)


def _result(server: Server, line: Line) -> Result:
    expect, where = line.expect, server.place
    result = expect["result"]
    ports = {"grpc": where.grpc_port, "rest": where.rest_port}
    if result == "exits":
        return _exits(server, line)
    if result == "hangs":
        ended = _ended_within(server, _WAIT_S)
        if ended is not None:
            return differs("startup", line.id, f"ended with {ended}: {server.text()[-200:]!r}; the real one waits")
        opened = [name for name, port in ports.items() if server.port_open(port)]
        return differs("startup", line.id, f"{opened} open") if opened else equal("startup", line.id)
    wanted = set(expect.get("open_ports", ports))
    if result == "partly serving":
        wanted = {name for name in ports if name in expect["note"].split(": ")[-1]}
    if not server.wait_for_ports([ports[name] for name in wanted], _START_S):
        return differs("startup", line.id, f"not serving {sorted(wanted)}: {server.text()[-300:]!r}")
    time.sleep(0.3 if wanted != set(ports) else 0)
    found = {name for name, port in ports.items() if server.port_open(port)}
    if found != wanted:
        return differs("startup", line.id, f"{sorted(found)} open instead of {sorted(wanted)}")
    return _asked(server, line)


def _asked(server: Server, line: Line) -> Result:
    expect = line.expect
    for path, status in expect.get("metrics_paths", {}).items():
        found = rest_group.ask(server, {"method": "GET", "path": path}).status
        if found != status:
            return differs("startup", line.id, f"{path}: {found} instead of {status}")
    if "status" in expect:
        asker = grpc_group.Asker(server)
        raw = {"method": "GetModelStatus", "request": {"model_spec": {"name": "m"}}}
        states = [entry["state"] for entry in expect["status"]["response"]["model_version_status"]]
        why = grpc_group.compare(grpc_group.ask_until(asker, raw, states), expect["status"], asker)
        asker.close()
        if why:
            return differs("startup", line.id, why)
    return equal("startup", line.id)


def _ended_within(server: Server, seconds: float) -> int | None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.exit_code() is None:
        time.sleep(0.05)
    return server.exit_code()


def _exits(server: Server, line: Line) -> Result:
    expect = line.expect
    code = _ended_within(server, _START_S)
    crash = str(expect["exit_code"]).startswith("signal")
    if code is None:
        return differs("startup", line.id, "still running; the real one ends")
    if crash:
        good = code == 255 and "Error: " in server.text()
        why = "the real server crashes; here: " + (server.text().strip().splitlines() or ["nothing"])[-1]
        return left_out("startup", line.id, why) if good else differs("startup", line.id, f"exit {code}, {why}")
    if code != expect["exit_code"]:
        return differs(
            "startup", line.id, f"exit code {code} instead of {expect['exit_code']}: {server.text()[-300:]!r}"
        )
    wanted = server.place.fill(expect.get("error_text", ""))
    if wanted not in server.text():
        return differs("startup", line.id, f"{server.text()[-400:]!r} instead of {wanted!r}")
    return equal("startup", line.id)


def _steps(server: Server, raw: Mapping[str, Any]) -> str:
    """Carry out the steps; return what differs, or nothing."""
    where = server.place
    if raw["start"] == "serving" and not server.wait_for_ports([where.grpc_port, where.rest_port], _START_S):
        return f"not serving: {server.text()[-300:]!r}"
    asker = grpc_group.Asker(server)
    try:
        for number, step in enumerate(raw["steps"]):
            why = _step(server, asker, step)
            if why:
                return f"step {number}: {why}"
    finally:
        asker.close()
    return ""


def _step(server: Server, asker: grpc_group.Asker, step: Mapping[str, Any]) -> str:
    where = server.place
    if "copy" in step:
        _copy(where, *step["copy"])
    elif "remove" in step:
        shutil.rmtree(where.fill(step["remove"]))
    elif "write" in step:
        name, text = step["write"]
        (where.work / name).write_text(where.fill(text), encoding="utf-8")
    elif "sleep_s" in step:
        time.sleep(step["sleep_s"])
    elif "ports" in step:
        found = {
            "grpc_port_open": server.port_open(where.grpc_port),
            "rest_port_open": server.port_open(where.rest_port),
        }
        return "" if found == step["expect"] else f"{found} instead of {step['expect']}"
    elif "ask" in step:
        answer = grpc_group.ask_until(asker, step["ask"], step.get("until_states"))
        return grpc_group.compare(answer, step["expect"], asker)
    else:
        return f"unknown step {step}"
    return ""

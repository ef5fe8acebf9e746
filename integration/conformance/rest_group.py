"""REST lines: bytes to a socket, and what comes back."""

from __future__ import annotations

import base64
import contextlib
import http.client
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from integration.conformance.equality import read_json, same_json, same_text
from integration.conformance.recordings import Line
from integration.conformance.results import Result, differs, equal, left_out
from integration.conformance.servers import Place, Server

_NO_ANSWER = "(no answer"
_SERIES = re.compile(r"([A-Za-z0-9_:]+)(\{.*\}) \S+")
_LIMIT = re.compile(r',?le="([^"]*)"\}$')


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer; status 0 means that there was none."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def ask(server: Server, raw: Mapping[str, Any], *, timeout_s: float = 10.0) -> Answer:
    """Send the recorded request as it was."""
    body: bytes | None = None
    if "body_b64" in raw:
        body = base64.b64decode(raw["body_b64"])
    elif raw.get("body") is not None:
        body = server.place.fill(raw["body"]).encode("utf-8", "surrogateescape")
    headers = dict(raw.get("headers") or {})
    chunked = any(name.lower() == "transfer-encoding" for name in headers)
    waits = any(name.lower() == "expect" for name in headers)
    if body is not None and not chunked:
        headers["Content-Length"] = str(len(body))
    if chunked and body is not None:
        body = f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
    lines = [f"{raw['method']} {raw['path']} HTTP/1.1", f"Host: {server.host}:{server.place.rest_port}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    head = ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape")
    try:
        with socket.create_connection((server.host, server.place.rest_port), timeout=timeout_s) as connection:
            connection.sendall(head if waits else head + (body or b""))
            if waits:
                connection.settimeout(1)
                with contextlib.suppress(TimeoutError):
                    connection.recv(25, socket.MSG_PEEK)
                connection.settimeout(timeout_s)
                connection.sendall(body or b"")
            response = http.client.HTTPResponse(connection, method=raw["method"])
            response.begin()
            answer = response.read()
            return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, answer)
    except (OSError, http.client.HTTPException):
        return Answer(0, {}, b"")


def check(server: Server, line: Line, *, partial: bool) -> Result:
    """Ask what a line asked, and compare; ``partial`` recordings were not asked everything that metrics count."""
    expect = line.expect
    if expect.get("http_status") is None:
        return left_out("rest", line.id, "the real server did not answer")
    answer = ask(server, line.raw)
    return _compared(line, answer, server.place, partial=partial)


def _compared(line: Line, answer: Answer, place: Place, *, partial: bool) -> Result:
    expect = line.expect
    if answer.status != expect["http_status"]:
        text = answer.body[:200].decode(errors="replace")
        return differs("rest", line.id, f"status {answer.status} instead of {expect['http_status']}: {text!r}")
    for name, value in (expect.get("headers") or {}).items():
        if answer.headers.get(name.lower()) != value:
            return differs("rest", line.id, f"{name}: {answer.headers.get(name.lower())!r} instead of {value!r}")
    if "prometheus" in expect:
        wrong = compare_metrics(expect["prometheus"], answer.body.decode(errors="replace"), place, partial=partial)
        return differs("rest", line.id, wrong) if wrong else equal("rest", line.id)
    if "body_b64" in expect:
        same = answer.body == base64.b64decode(expect["body_b64"])
        return equal("rest", line.id) if same else differs("rest", line.id, f"body {answer.body[:200]!r}")
    wanted = place.fill(expect.get("text") or "")
    ours = answer.body.decode("utf-8", "surrogateescape")
    if not _same_body(ours, wanted, expect, line.raw.get("approx")):
        return differs("rest", line.id, f"{ours[:400]!r} instead of {wanted[:400]!r}")
    return equal("rest", line.id)


def _same_body(ours: str, wanted: str, expect: Mapping[str, Any], approx: float | None) -> bool:
    if expect["http_status"] < 400:
        try:
            return same_json(read_json(ours), read_json(wanted), approx)
        except ValueError:
            pass
    return same_text(ours, wanted)


def read_metrics(text: str) -> dict[str, tuple[str, dict[str, set[str]]]]:
    """Return each metric's type, and the label sets of each of its series (bucket limits apart)."""
    found: dict[str, tuple[str, dict[str, set[str]]]] = {}
    current = ""
    for row in text.splitlines():
        if row.startswith("# TYPE "):
            current, kind = row[7:].rsplit(" ", 1)
            found[current] = (kind, {})
        elif (series := _SERIES.fullmatch(row)) and current:
            labels = _LIMIT.sub("}", series[2]) if series[1].endswith("_bucket") else series[2]
            found[current][1].setdefault(series[1], set()).add(labels)
    return found


def compare_metrics(expected: Mapping[str, Any], text: str, place: Place, *, partial: bool) -> str:
    """Return what differs in names, types and label sets of the metrics of serving, or nothing."""
    ours = {name: entry for name, entry in read_metrics(text).items() if name.startswith(":tensorflow:serving:")}
    theirs = {name: entry for name, entry in expected.items() if name.startswith(":tensorflow:serving:")}
    if ours.keys() != theirs.keys():
        return f"metrics {sorted(ours.keys() ^ theirs.keys())}"
    for name, entry in theirs.items():
        kind, series = ours[name]
        if kind != entry["type"]:
            return f"{name} is a {kind} instead of a {entry['type']}"
        wanted = {key: {place.fill(labels) for labels in values} for key, values in entry.get("series", {}).items()}
        for key in wanted.keys() | series.keys():
            missing = wanted.get(key, set()) - series.get(key, set())
            extra = series.get(key, set()) - wanted.get(key, set())
            if extra or (missing and not partial):
                return f"{key}: extra {sorted(extra)}, missing {sorted(missing)}"
    return ""

"""Reports: what was checked, what came of it, and on which server; for people and for machines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from servewright.backend import Identity
from servewright.errors import ExitCode


class Status(StrEnum):
    """What came of a check."""

    PASS = "pass"  # noqa: S105  (a word, not a password)
    FAIL = "fail"
    UNVERIFIABLE = "unverifiable"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was checked."""

    name: str
    status: Status
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What `verify` and `probe` found."""

    backend: str
    runtime: str
    server: Identity
    checks: tuple[Check, ...]
    timings_s: Mapping[str, float] = field(default_factory=dict)
    artifacts: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    strict: bool = False

    @property
    def ok(self) -> bool:
        """Whether nothing failed, and with ``strict`` nothing was left open."""
        bad = {Status.FAIL, Status.UNVERIFIABLE} if self.strict else {Status.FAIL}
        return not any(check.status in bad for check in self.checks)

    @property
    def exit_code(self) -> ExitCode:
        """What a command that ends with this report exits with."""
        return ExitCode.OK if self.ok else ExitCode.CHECK_FAILED

    def as_json(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return {
            "ok": self.ok,
            "backend": self.backend,
            "runtime": self.runtime,
            "server": {"name": self.server.name, "version": self.server.version, "stand_in": self.server.stand_in},
            "checks": [
                {"name": check.name, "status": str(check.status), "detail": check.detail} for check in self.checks
            ],
            "timings_s": {name: round(seconds, 3) for name, seconds in self.timings_s.items()},
            "artifacts": dict(self.artifacts),
            "notes": list(self.notes),
        }

    @property
    def headline(self) -> str:
        """The result in one line."""
        count = {status: sum(check.status is status for check in self.checks) for status in Status}
        counts = f"{count[Status.PASS]} passed, {count[Status.FAIL]} failed, {count[Status.UNVERIFIABLE]} unverifiable"
        stand_in = " (stand-in)" if self.server.stand_in else ""
        return f"{self.server.name} {self.server.version}{stand_in}, runtime {self.runtime}: {counts}"

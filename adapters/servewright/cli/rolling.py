"""What `rollout` and `rollback` share: the journal is found or begun, the servers are moved, the result is printed."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from servewright.cli import printing
from servewright.errors import InputError, ServewrightError

if TYPE_CHECKING:
    from servewright.backend import Backend
    from servewright.fleet import Fleet
    from servewright.reporting import Check
    from servewright.rollout.carrying import Carrier, Listener
    from servewright.rollout.journal import Journal, Word
    from servewright.rollout.live import Live
    from servewright.rollout.plan import Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """How `rollout` goes about it; times are in seconds."""

    backend: str | None
    naming: str
    label: str
    replace_all: bool
    drain_s: float
    trust: bool
    patience_s: float
    dry_run: bool
    as_json: bool


def seconds(text: str, option: str) -> float:
    """Return a duration that was given on the command line, in seconds."""
    from servewright import units

    try:
        return units.parse_duration_us(text) / 1e6
    except units.UnitError as error:
        raise InputError(f"{option}: {error}") from error


def roll_out(spec: Path, lives: Iterable[str], wishes: Wishes) -> None:
    """Plan a rollout, print it, and carry it out."""
    from servewright import pipeline, runs
    from servewright.rollout import carrying, journal
    from servewright.rollout.live import parse

    fleet = pipeline.load(spec)
    backend = pipeline.backend_for(fleet, wishes.backend)
    options = carrying.rolling_of(backend).options
    named = [parse(text, options) for text in lives]
    runs.sweep()
    with journal.claimed(named):
        _roll_out(fleet, backend, spec, named, wishes)


def _roll_out(fleet: Fleet, backend: Backend, spec: Path, named: Sequence[Live], wishes: Wishes) -> None:
    from servewright import pipeline, runs
    from servewright.rollout import carrying, journal
    from servewright.rollout.plan import Aim

    run = runs.begin()
    opened = journal.root() / f"{run.name}.open"
    try:
        artifact = pipeline.package(fleet, backend, run.folder / "artifact", trust=wishes.trust)
        aims = [
            (live, Aim(
                fleet=fleet, artifact=artifact.root, options=live.options,
                naming=cast("Literal['model', 'label']", wishes.naming), label=wishes.label,
                replace_all=wishes.replace_all, drain_s=wishes.drain_s, earlier=journal.earlier_at(live),
            ))
            for live in named
        ]  # fmt: skip
        servers = tuple((live, steps) for live, steps in carrying.prepare(backend, aims) if steps)
        if not wishes.as_json:
            _print_plan(servers)
        if wishes.dry_run or not servers:
            if wishes.as_json:
                printing.as_json({"ok": True, "state": "planned" if servers else "nothing to do", **_plan(servers)})
            elif not servers:
                printing.line("nothing to do: every server has it already")
            return
        journal.root().mkdir(parents=True, exist_ok=True, mode=0o700)
        # The packaged models outlive this command, should it be killed: whoever goes on needs them.
        run.keep_for(opened)
        opened.touch()
        try:
            begun = journal.create(
                fleet.name, backend.name, servers, spec=str(spec.absolute()), digest=fleet.digest,
                run=str(run.folder), open=str(opened),
            )  # fmt: skip
        except BaseException:
            opened.unlink(missing_ok=True)  # else the packaged models would stay for nobody
            raise
        with _finishing(begun), _told(begun, as_json=wishes.as_json) as listener:
            carrier = carrying.Carrier(begun, backend, patience_s=wishes.patience_s, listener=listener)
            carrier.forward(fleet)
    finally:
        run.close()


def resume(wanted: str | None, *, patience_s: float, as_json: bool) -> None:
    """Go on with a rollout that was killed."""
    from servewright import pipeline
    from servewright.rollout import journal

    found = journal.find(wanted, to_resume=True)
    fleet = pipeline.load(Path(found.head["spec"]))
    if fleet.digest != found.head["digest"]:
        raise InputError(
            f"{found.head['spec']} was changed since rollout {found.id} began; take it back with: "
            f"servewright rollback {found.id}, and roll out again"
        )
    with _held(found, to_resume=True) as now, _told(now, as_json=as_json) as listener:
        _carrier(now, patience_s, listener).forward(fleet)


def roll_back(wanted: str | None, *, patience_s: float, as_json: bool) -> None:
    """Take a rollout back."""
    from servewright.rollout import journal

    found = journal.find(wanted, to_resume=False)
    with _held(found, to_resume=False) as now, _told(now, as_json=as_json) as listener:
        journal.check_latest(now)
        _carrier(now, patience_s, listener).back()


def tell(wanted: str | None, *, as_json: bool) -> None:
    """Print how a rollout stands by its journal, and where its servers themselves show that they are."""
    from servewright import registry
    from servewright.rollout import journal
    from servewright.rollout.carrying import Carrier, Listener

    found = next((each for each in journal.journals() if wanted in (None, each.id, each.fleet)), None)
    if found is None:
        raise InputError(f"no journal in {journal.root()}{f' of {wanted}' if wanted else ''}; nothing was rolled out")
    carrier = Carrier(found, registry.get(found.backend), patience_s=0.0, listener=Listener())
    servers = []
    for number, server in enumerate(found.servers):
        try:
            shown = carrier.where(number)
        except ServewrightError as error:
            shown = f"it does not tell: {error}"
        servers.append({"live": server.live.said, "state": str(server), "shows": shown})
    if as_json:
        printing.as_json({"ok": not found.is_open, "id": found.id, "state": found.state, "servers": servers})
        return
    for each in servers:
        printing.line(f"{each['live']}: {each['state']}; the server shows: {each['shows']}")
    printing.line(f"rollout {found.id}: {found.state}")


@contextmanager
def _held(found: Journal, *, to_resume: bool) -> Iterator[Journal]:
    """Yield a rollout as it is once nobody else is at its servers."""
    from servewright.rollout import journal

    with journal.claimed(server.live for server in found.servers):
        now = journal.find(found.id, to_resume=to_resume)
        with _finishing(now):
            yield now


def _carrier(found: Journal, patience_s: float, listener: Listener) -> Carrier:
    from servewright import registry
    from servewright.rollout.carrying import Carrier

    return Carrier(found, registry.get(found.backend), patience_s=patience_s, listener=listener)


@contextmanager
def _finishing(found: Journal) -> Iterator[None]:
    """Remove the packaged models once no server is half-way any more."""
    try:
        yield
    finally:
        if not found.is_open:
            shutil.rmtree(found.head["run"], ignore_errors=True)
            Path(found.head["open"]).unlink(missing_ok=True)


@contextmanager
def _told(found: Journal, *, as_json: bool) -> Iterator[Listener]:
    """Yield what prints steps and checks as they come, and print the result at the end."""
    from servewright.rollout.carrying import Listener
    from servewright.rollout.journal import Word
    from servewright.rollout.plan import PROBE

    checks: list[Check] = []

    def on_check(check: Check) -> None:
        checks.append(check)
        if not as_json:
            printing.check(check)

    def on_step(server: int, step: Step, word: Word) -> None:
        if word is Word.BEGIN or (word is Word.UNDO and step.kind != PROBE):  # a probe leaves nothing to take back
            back = "take back: " if word is Word.UNDO else ""
            printing.stage(f"{found.servers[server].live.said}: {step.phase}: {back}{step.title}")

    error: BaseException | None = None
    try:
        yield Listener(on_step=on_step, on_check=on_check)
    except BaseException as failed:
        error = failed
        raise
    finally:
        if not as_json:
            for server in found.servers:
                printing.line(f"{server.live.said}: {server}")
            printing.line(f"rollout {found.id}: {found.state}")
        elif error is None:  # an error is printed as JSON by the command line itself
            printing.as_json(
                {
                    "ok": True,
                    "id": found.id,
                    "state": found.state,
                    "servers": [{"live": server.live.said, "state": str(server)} for server in found.servers],
                    "checks": [
                        {"name": check.name, "status": str(check.status), "detail": check.detail} for check in checks
                    ],
                }
            )


def _plan(servers: Iterable[tuple[Live, tuple[Step, ...]]]) -> dict[str, Any]:
    return {"servers": [{"live": live.said, "steps": [_shown(step) for step in steps]} for live, steps in servers]}


def _shown(step: Step) -> Mapping[str, Any]:
    return {"phase": str(step.phase), "kind": step.kind, "title": step.title, "answers": step.answers}


def _print_plan(servers: Iterable[tuple[Live, tuple[Step, ...]]]) -> None:
    """Print what will be done, and which versions may answer meanwhile."""
    for live, steps in servers:
        printing.line(f"plan for {live.said}:")
        for number, step in enumerate(steps, 1):
            printing.line(f"{number:3} {step.phase:<8} {step.title}")
            if number == 1 or step.answers != steps[number - 2].answers:
                answers = (f"{asked}: {' or '.join(versions)}" for asked, versions in step.answers.items())
                printing.line(f"{'':13}answers: " + "; ".join(answers))

"""A whole study on a real server: search, compare with the default, and write what came of it."""

from __future__ import annotations

import difflib
import hashlib
import json
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from servewright.backend import Identity
from servewright.errors import (
    CheckFailedError,
    InputError,
    LaunchError,
    ProbeError,
    ServewrightError,
    SpecError,
    UnavailableError,
)
from servewright.load import requests
from servewright.load.saturation import Slo
from servewright.rendering import check, render
from servewright.spec import ModelSource
from servewright.tuning import gain, recalling, study
from servewright.tuning.journal import NAME as JOURNAL
from servewright.tuning.journal import Journal
from servewright.tuning.knobs import Demand, Tuning, grid
from servewright.tuning.live import LiveBench, Serving, Subject
from servewright.tuning.machine import machine, versions
from servewright.tuning.search import Found, Question, search
from servewright.tuning.study import Comparison, Goal, Knob, Load, Measured, Settings, Study, Winner
from servewright.writing import write_texts

Listener = Callable[[str], None]

_CALLERS: Final = 64
_STRONG: Final = 3
_DELAY: Final = "batching.max_delay"  # every backend renders it by itself
_WIDE: Final = 1.5  # the ends of a gain's interval, one over the other: more rounds would tell more
_TUNED_ON: Final = "# Tuned on a stand-in"
# Of what a closed loop reaches: the rates of open loops that are compared for the greatest within the promises.
_LADDER: Final = tuple(round(0.3 * 1.13**step, 4) for step in range(12))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a user asks of a study.

    One of ``rate``, ``concurrency`` and ``most`` (the greatest rate of an open loop) is what the server shall be good
    at. ``budget`` counts measurements before the comparison, ``rounds`` those in it; one takes ``each_s`` at most.
    ``require_real`` ends the study as soon as a server says that it is a stand-in.
    """

    slo: Slo
    rate: float | None = None
    concurrency: int | None = None
    most: bool = False
    budget: int = 14
    time_s: float | None = None
    each_s: float = 5.0
    rounds: int = gain.ROUNDS
    margin: float = 0.03
    seed: int = 0
    require_real: bool = False


def tuning_of(subject: Any) -> Tuning:
    """Return a backend's declaration of its knobs; `UnavailableError` where it has none."""
    if subject.tuning is None:
        raise UnavailableError(f"{subject.title} cannot be tuned yet; its backend declares no knobs")
    found: Tuning = subject.tuning()
    return found


def tune(
    subject: Subject,
    ask: Ask,
    folder: Path,
    *,
    backends: Sequence[str],
    resume: bool = False,
    given: Collection[str] = (),
    force: bool = False,
    on_stage: Listener = lambda _: None,
    on_measured: Callable[[Measured], None] = lambda _: None,
) -> Study:
    """Tune, and write ``study.json``, and the tuned spec and configs where something beats the default.

    Ctrl-C writes what there is; a killed study goes on with ``resume``, as it was begun: then options ``given`` must
    not say otherwise, but may give it more measurements, rounds and time. A tuned spec that this study did not write
    is replaced with ``force`` alone.
    """
    spec_file = Path(subject.document.file)
    goal = _goal(ask)
    identity = {
        "goal": goal.model_dump(mode="json"), "most": ask.most, "each_s": ask.each_s, "rounds": ask.rounds,
        "backend": subject.backend.name, "runtime": subject.choice.runtime, "digest": subject.document.digest,
        "transport": subject.transport, "data": _digest(subject.data), "image": subject.image, "began": study.now(),
        "files": subject.files_digest(), "cores": machine().cores,
    }  # fmt: skip
    path = folder / JOURNAL
    if resume:
        journal = Journal.resume(path)
        recalling.check(journal)
        _same(journal, identity, path)
        ask, goal = _as_begun(journal, ask, goal, given)
        _replaceable(subject, [fact["spec"] for fact in journal.all("written")], force=force)
    else:
        _replaceable(subject, [], force=force)
        requests.samples(subject.document, file=subject.data)  # what cannot be sent is to begin no study
        journal = Journal.create(path, identity)
    try:
        return _Tuner(subject, ask, goal, journal, folder, spec_file, backends, on_stage, on_measured).run()
    except ServewrightError:
        if not resume:
            journal.forget()
        raise


def _same(journal: Journal, identity: dict[str, Any], path: Path) -> None:
    """Refuse to mix two studies in one journal."""
    changed = {
        "digest": "the spec has changed", "data": "other --data was sent",
        "files": "the model's files or the golden samples have changed",
    }  # fmt: skip
    for key in ("backend", "runtime", "digest", "transport", "data", "image", "files", "cores"):
        if journal.head.get(key) != identity[key]:
            what = changed.get(key) or f"{key} was {journal.head.get(key) or 'not given'}"
            raise InputError(f"{path} is of another study: {what}; begin a new one with another -o")


def _replaceable(subject: Subject, written: Collection[str], *, force: bool) -> None:
    """Refuse a tuned spec that is there, unless it is what was ``written``, or is to go: somebody may rely on it."""
    path = tuned_path(subject)
    try:
        mine = force or not path.exists() or _sha256(path.read_bytes()) in written
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}; move it away") from error
    if not mine:
        raise InputError(f"{path} is not of this study; --force replaces it if something beats the default")


def tuned_path(subject: Subject) -> Path:
    """Return where a study writes the tuned spec: beside the old one, where its paths start."""
    return Path(subject.document.file).absolute().with_name(tuned_name(subject))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _digest(data: Path | None) -> str | None:
    """Return what tells one file of requests from another; the path may change."""
    try:
        return _sha256(data.read_bytes()) if data is not None else None
    except OSError as error:
        raise InputError(f"{data} cannot be read: {error.strerror or error}; correct --data") from error


def _as_begun(journal: Journal, ask: Ask, goal: Goal, given: Collection[str]) -> tuple[Ask, Goal]:
    """Return what the study goes on with: as it began, with the measurements, rounds and time that it is given since.

    An option that is ``given`` and says otherwise is an `InputError`.
    """
    head, path = journal.head, journal.path
    begun = Goal.model_validate(head["goal"])
    before = replace(ask, most=bool(head["most"]), each_s=head.get("each_s", ask.each_s))
    load = (begun.maximise, begun.loads, before.most), (goal.maximise, goal.loads, ask.most)
    options = {
        "slo": (begun.slo, goal.slo), "rate": load, "concurrency": load, "max-throughput": load,
        "margin": (begun.margin, goal.margin), "seed": (begun.seed, goal.seed), "each": (before.each_s, ask.each_s),
    }  # fmt: skip
    for name, (was, now) in options.items():
        if name in given and was != now:
            raise InputError(f"{path} began with another --{name}; leave it out, or begin a new study with another -o")
    had = {"budget": begun.budget, "rounds": head.get("rounds", ask.rounds)}
    for fact in journal.all("more"):
        had = {name: int(fact[name]) for name in had}
    wanted = {"budget": goal.budget, "rounds": ask.rounds}
    more = {name: wanted[name] if name in given else count for name, count in had.items()}
    for name, count in had.items():
        if more[name] < count:
            raise InputError(f"{path} has {count} for its --{name}; leave it out, or give more")
    if more != had:
        journal.append("more", more)
    time_s = ask.time_s if "time" in given else begun.time_s
    return replace(before, time_s=time_s, rounds=more["rounds"]), begun.model_copy(
        update={"budget": more["budget"], "time_s": time_s}
    )


def budgets(journal: Journal) -> list[int]:
    """Return the budgets that a study had, the last being that which it has."""
    return [int(journal.head["goal"]["budget"]), *(int(fact["budget"]) for fact in journal.all("more"))]


def _goal(ask: Ask) -> Goal:
    loads: tuple[Load, ...] = (Load(concurrency=ask.concurrency or _CALLERS),)
    if ask.rate is not None:
        loads = (Load(rate=ask.rate),)
    maximise: Literal["rate", "latency"] = "rate" if ask.rate is None else "latency"
    return Goal(
        maximise=maximise, latency_ms=dict(ask.slo.latency_ms), errors=ask.slo.errors, loads=loads, budget=ask.budget,
        time_s=ask.time_s, margin=ask.margin, seed=ask.seed,
    )  # fmt: skip


class _Tuner:
    """One study under way."""

    def __init__(
        self, subject: Subject, ask: Ask, goal: Goal, journal: Journal, folder: Path, spec_file: Path,
        backends: Sequence[str], on_stage: Listener, on_measured: Callable[[Measured], None],
    ) -> None:  # fmt: skip
        self.subject, self.ask, self.goal, self.journal = subject, ask, goal, journal
        self.folder, self.spec_file, self.backends = folder, spec_file, backends
        self.on_stage, self.on_measured = on_stage, on_measured
        self.machine = machine()
        until = time.monotonic() + ask.time_s if ask.time_s else None
        self.bench = LiveBench(
            subject=subject, goal=goal, backends=backends, each_s=ask.each_s, until=until, on_identity=self._identified,
            timed_before=recalling.timed(journal), on_timed=partial(recalling.keep_timed, journal),
        )  # fmt: skip
        self.interrupted, self.failed, self.left_out = False, "", ""

    def run(self) -> Study:
        try:
            return self._run()
        finally:
            self.bench.close()

    def _run(self) -> Study:
        spec = self.subject.document.spec
        found, comparison = Found(), None
        recalled = recalling.Recalling(self.bench, self.journal, on_new=self.on_measured)
        demand = Demand.of(self.goal.loads, self.machine.cores, self.subject.transport)
        knobs: tuple[Knob, ...] = ()
        for fact in self.journal.all("server"):
            self._must_be_real(study.Server.model_validate(fact["server"]))
        try:
            if self.ask.most:
                self._ladder()
                demand = Demand.of(self.goal.loads, self.machine.cores, self.subject.transport)
                demand = replace(demand, waiting=min(demand.waiting, 4 * _CALLERS))
            knobs = tuple(self.subject.tuning.knobs(spec, demand))
            settings = self._grid(knobs, demand)
            self.on_stage(f"look for {self.goal}")
            self.on_stage(f"calibrate, then search {len(settings)} settings with {self.goal.budget} measurements")
            earlier = budgets(self.journal)[:-1]
            found = search(settings, self.goal, self.subject.tuning.scheduler, recalled, earlier=earlier)
            self.bench.close()
            if found.state == "interrupted":
                raise KeyboardInterrupt
            comparison = self._confirmed(found)
        except KeyboardInterrupt:
            self.interrupted = True
            comparison = self._as_known(found, recalled)
        return self._concluded(found, comparison, knobs, demand)

    def _as_known(self, found: Found, recalled: recalling.Recalling) -> Comparison | None:
        """Fill in what the journal knows and an interrupted search did not ask for again; return the best's rounds."""
        found.service_times = tuple(recalling.service_times(self.journal))
        found.measurements[:] = recalled.known
        kept = gain.kept(found, self.goal)
        found.best = kept[0] if kept else None
        return gain.confirmed(found, self.goal, self._known_rounds, proven=self._known_rounds)

    def _identified(self, said: Identity) -> None:
        """Keep what the server says that it is, from the first one that runs; `InputError` for another one since."""
        self._must_be_real(said)
        facts = self.journal.all("server")
        backend = self.subject.backend
        server = study.Server(
            backend=backend.name, title=backend.title, name=said.name, version=said.version,
            stand_in=said.stand_in, runtime=self.subject.choice.runtime,
        )  # fmt: skip
        if not facts:
            self.journal.append("server", {"server": server.model_dump(mode="json")})
        elif (before := study.Server.model_validate(facts[0]["server"])) != server:
            raise InputError(
                f"{self.journal.path} is of {before.name} {before.version}, and this is {server.name} "
                f"{server.version}; begin a new study with another -o"
            )

    def _must_be_real(self, said: Identity | study.Server) -> None:
        if self.ask.require_real and said.stand_in:
            raise CheckFailedError(f"{said.name} is a stand-in; give --runtime docker or process")

    def _grid(self, knobs: Sequence[Knob], demand: Demand) -> list[Settings]:
        settings, left_out = accepted(self.subject, grid(self.subject.tuning, knobs, demand), backends=self.backends)
        if left_out:
            self.left_out = f"some settings are left out, which rendering refuses: {left_out}"
            self.on_stage(self.left_out)
        return settings

    def _ladder(self) -> None:
        """Choose the rates to compare settings at, from what a closed loop reaches."""
        facts = self.journal.all("ladder")
        if facts:
            top = float(facts[0]["top"])
        else:
            self.on_stage("find the range of rates")
            load, why, top = Load(concurrency=_CALLERS), "no answers", 0.0
            for settings in self._strong():
                asked = Question(index=-1, stage="calibrate", settings=settings, load=load)
                seen = self.bench.measure(asked)
                why, top = seen.unsafe or why, seen.rate
                if top > 0:
                    break
            else:
                raise UnavailableError(f"no range of rates found: {why}; see how the server starts: servewright up")
            self.journal.append("ladder", {"top": top})
        loads = tuple(Load(rate=float(f"{top * step:.3g}")) for step in _LADDER)
        self.goal = self.goal.model_copy(update={"loads": loads})
        self.bench.goal = self.goal

    def _strong(self) -> list[Settings]:
        """Return a few settings that use every core, with batches that so many callers fill twice, strongest first."""
        demand = Demand(waiting=_CALLERS, cores=self.machine.cores, transport=self.subject.transport)
        knobs = self.subject.tuning.knobs(self.subject.document.spec, demand)
        settings = self._grid(knobs, demand)
        policy = self.subject.tuning.scheduler.policy(settings)
        cores = np.minimum(policy.workers * policy.threads, demand.cores)
        size = np.where(policy.size <= _CALLERS // 2, policy.size, 0)
        order = np.lexsort((-policy.delay, policy.workers, size, cores))[::-1]
        return [settings[index] for index in order[:_STRONG].tolist()]

    def _confirmed(self, found: Found) -> Comparison | None:
        """Compare the best with the default; where it fails beside it, what comes next takes its place."""

        def compare(best: Measured) -> Comparison | None:
            comparison = self._compared(best)
            if comparison is not None and comparison.tuned_fails:
                self.on_stage(f"{_named(best.settings)} under {best.load} breaks a promise beside the default")
            return comparison

        first = found.best
        try:
            comparison = gain.confirmed(found, self.goal, compare, proven=self._known_rounds)
        except (LaunchError, ProbeError) as error:
            self.failed = f"not compared with the default, a server failed: {str(error).splitlines()[0]}"
            return None
        if first is not None and found.best != first:
            self.failed = f"{_named(first.settings)} measured better under {first.load}, but not beside the default"
        return comparison

    def _known_rounds(self, best: Measured) -> Comparison | None:
        """Return what the rounds that are known say of a measurement; nothing where there are fewer than two."""
        known = recalling.rounds(self.journal, best)
        return self._weighed(best, known) if len(known) > 1 else None

    def _weighed(self, best: Measured, rounds: Sequence[study.Round]) -> Comparison:
        return gain.compared(rounds, best.load, self.goal).model_copy(update={"measurement": best.index})

    def _compared(self, best: Measured) -> Comparison | None:
        """Measure the winner and the default in alternation, both servers running."""
        if self.ask.rounds < 2:
            return None
        known = recalling.rounds(self.journal, best)
        if len(known) < self.ask.rounds:
            self.on_stage(f"compare with the default, {self.ask.rounds} rounds")
            with ExitStack() as held:
                sides: dict[str, Serving] = {
                    "default": held.enter_context(self.bench.running(None)),
                    "tuned": held.enter_context(self.bench.running(best.settings)),
                }
                known = gain.alternate(
                    lambda side: self.bench.once(sides[side], best.load), known, rounds=self.ask.rounds,
                    on_round=lambda found: recalling.keep(self.journal, best, found),
                )  # fmt: skip
        return self._weighed(best, known)

    def _concluded(self, found: Found, comparison: Comparison | None, knobs: tuple[Knob, ...], demand: Demand) -> Study:
        best, subject = found.best, self.subject
        wins = best is not None and comparison is not None and comparison.beats
        winner, diff, warnings = None, None, list(self._warnings(found, comparison))
        if best is not None and wins:
            winner = Winner(settings=best.settings, keys=subject.keys(best.settings), measurement=best.index)
            diff = self._diff(best.settings)
        state = "interrupted" if self.interrupted else found.state
        default = subject.tuning.default(subject.document.spec, demand)
        result = Study.model_validate(
            {
                "state": state, "conclusion": conclusion(state, found, comparison, self.goal),
                "began": self.journal.head["began"], "ended": study.now(), "machine": self.machine,
                "versions": versions(), "server": self._server(),
                "subject": study.Subject(
                    name=subject.document.spec.name, spec=str(self.spec_file), digest=subject.document.digest
                ),
                "goal": self.goal, "knobs": knobs, "default": default, "service_times": found.service_times,
                "model": found.model, "predictions": found.predictions, "measurements": tuple(found.measurements),
                "winner": winner, "comparison": comparison, "diff": diff, "warnings": tuple(warnings),
            }
        )  # fmt: skip
        study.save(result, self.folder)
        if self.interrupted:
            return result
        if winner is not None:
            self._write(winner)
        else:
            self._take_back()
        return result

    def _server(self) -> study.Server:
        for fact in self.journal.all("server"):
            return study.Server.model_validate(fact["server"])
        backend = self.subject.backend
        return study.Server(
            backend=backend.name, title=backend.title, name="", version="", stand_in=False,
            runtime=self.subject.choice.runtime,
        )  # fmt: skip

    def _warnings(self, found: Found, comparison: Comparison | None) -> list[str]:
        warnings = []
        if self._server().stand_in:
            warnings.append(
                f"measured on {self._server().name}, a stand-in of {self.subject.backend.title}: the figures are its "
                "own; measure again on the real server"
                + ("; a tuned spec in JSON has no place to say so" if _is_json(self.subject.text) else "")
            )
        bound = [*(each.client_bound for each in found.measurements if each.client_bound), *self.bench.bound]
        if bound:
            count = _counted(len(bound), "measurement")
            why, _, _ = bound[0].partition(";")
            warnings.append(f"{count} may be the load generator's own: {why}")
        unsafe = [each for each in found.measurements if each.unsafe]
        if unsafe:
            warnings.append(f"the server failed under {_counted(len(unsafe), 'setting')}: {unsafe[0].unsafe}")
        warnings += [each for each in (self.left_out, self.failed) if each]
        if comparison is not None:
            warnings += [unkept] if (unkept := not_kept(comparison)) else []
            if not comparison.beats and not comparison.tuned_fails:
                warnings.append("nothing beats the default within noise: nothing is changed")
        return warnings

    def _diff(self, settings: Settings) -> study.Diff:
        old, new = self.subject.text, self.subject.rewritten(settings)
        name = self.spec_file.name
        before = render(self.subject.fleet, self.subject.backend)
        after = render(self.subject.with_settings(settings, backends=self.backends), self.subject.backend)
        files = {
            path: _unified(before.get(path, ""), after.get(path, ""), path)
            for path in sorted(before | after)
            if before.get(path) != after.get(path)
        }
        return study.Diff(spec=_unified(old, new, name), files=files)

    def _write(self, winner: Winner) -> None:
        """Write the tuned spec beside the old one, and the configs into the study's folder."""
        lines = self.subject.rewritten(winner.settings).splitlines(keepends=True)
        text = "".join(line for line in lines if not line.startswith(_TUNED_ON))
        if self._server().stand_in and not _is_json(text):
            text = f"{_TUNED_ON} of {self.subject.backend.title}: measure again on the real server.\n{text}"
        configs = render(self.subject.with_settings(winner.settings, backends=self.backends), self.subject.backend)
        written = {"spec": _sha256(text.encode()), "configs": sorted(configs)}
        if self.journal.all("written")[-1:] != [{"kind": "written", **written}]:
            self.journal.append("written", written)  # before the files: after a kill they must be known as its own
        path = tuned_path(self.subject)
        write_texts({path.name: text}, path.parent)
        write_texts({f"config/{path}": content for path, content in configs.items()}, self.folder)

    def _take_back(self) -> None:
        """Remove what this study wrote of a winner that is none any more, unless somebody has changed it since."""
        for fact in self.journal.all("written")[-1:]:
            spec = tuned_path(self.subject)
            with suppress(OSError):
                if _sha256(spec.read_bytes()) == fact["spec"]:
                    spec.unlink()
                    self.on_stage(f"{spec} is removed: what it says no longer beats the default")
            for path in fact["configs"]:
                (self.folder / "config" / path).unlink(missing_ok=True)


def accepted(subject: Subject, settings: Sequence[Settings], *, backends: Sequence[str]) -> tuple[list[Settings], str]:
    """Return the settings that rendering accepts beside what else the spec says, and why it refuses others.

    A spec may cap the batch, and may lay files over all that is tuned. `InputError` where nothing is left to tune.
    """
    found: list[Settings] = []
    refused: SpecError | None = None
    for each in settings:
        try:
            check(subject.with_settings(each, backends=backends), subject.backend)
        except SpecError as error:
            refused = error
        else:
            found.append(each)
    if refused and not found:
        raise refused
    every = [(subject.keys(each), each) for each in found]
    last = every[-1][0]
    by_delay = {keys[_DELAY]: each for keys, each in every if keys | {_DELAY: last[_DELAY]} == last}
    texts = [render(subject.with_settings(each, backends=backends), subject.backend) for each in by_delay.values()]
    if len(texts) > 1 and all(each == texts[0] for each in texts):
        raise InputError(f"{subject.document.file} lays files over what is tuned; remove them, and tune again")
    return found, str(refused).splitlines()[0] if refused else ""


def not_kept(comparison: Comparison) -> str:
    """Return in how many rounds of a comparison the tuned setting broke a promise; nothing where it never did.

    One measurement may keep by luck what the next ones break, most of all near the knee.
    """
    if not comparison.tuned_broke:
        return ""
    rounds = _counted(len(comparison.rounds), "round")
    return (
        f"the tuned setting broke a promise in {comparison.tuned_broke} of {rounds} of the comparison: to "
        "leave it room, tune with a tighter --slo"
    )


def _first_broken(goal: Goal, load: Load, rounds: Sequence[study.Seen]) -> str:
    """Return the first promise that was broken in any of ``rounds``."""
    return next(filter(None, (goal.slo.broken_by(seen, asked=load.rate) for seen in rounds)), "")


def _named(settings: Settings) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def tuned_name(subject: Subject) -> str:
    """Return the name of a tuned spec; one with models for several servers has a tuned spec for each of them."""
    document, file = subject.document, Path(subject.document.file)
    several = not isinstance(document.spec.model, ModelSource) and len(document.spec.model) > 1
    return f"{file.stem}{'.' + subject.backend.name if several else ''}.tuned{file.suffix or '.yaml'}"


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _unified(old: str, new: str, name: str) -> str:
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), name, f"{name} (tuned)", lineterm="", n=2)
    return "\n".join(lines) + "\n"


def conclusion(state: str, found: Found, comparison: Comparison | None, goal: Goal) -> str:
    """Return what came of a search, in one sentence: the winner and its gain, or what came nearest."""
    best = found.best
    if best is None and state == "interrupted":
        return state
    if best is None:
        missed = [each for each in found.measurements if each.load in goal.loads and each.p99_ms is not None]
        nearest = min(missed, key=lambda each: (each.error_share > goal.errors, each.p99_ms or 0.0), default=None)
        came = f"; nearest came {_named(nearest.settings)} under {nearest.load}: {nearest.broken}" if nearest else ""
        advice = "ask for less" + ("" if found.hopeless else ", or try more with --budget and --time")
        return f"no setting that was measured keeps the promises{came}; {advice}"
    said = _named(best.settings)
    p99 = f"{best.p99_ms:.1f} ms" if best.p99_ms is not None else "unknown"
    if comparison is None:
        return f"best measured: {said} with {best.rate:.0f}/s at a p99 of {p99}; not compared with the default"
    what = "rate" if comparison.of == "rate" else "speed at p99"
    load = comparison.load
    figures = f"{comparison.gain:.2f} times the default's {what} ({comparison.low:.2f} to {comparison.high:.2f})"
    rounds = f"{len(comparison.rounds)} rounds"
    if comparison.keeps_alone:
        good = len(comparison.rounds) - comparison.tuned_broke
        kept = f" in {good} of {rounds}" if comparison.tuned_broke else ""
        why = _first_broken(goal, load, [each.default for each in comparison.rounds])
        broke = f"which the default breaks in {comparison.default_broke} of {rounds} ({why})"
        return f"{said}: keeps the promises{kept} under {comparison.load}, {broke}; {figures}"
    if comparison.beats:
        return f"{said}: {figures} under {comparison.load}"
    if comparison.tuned_fails:
        why = _first_broken(goal, load, [each.tuned for each in comparison.rounds])
        broke = f"broke a promise in {comparison.tuned_broke} of {rounds}"
        return f"nothing is changed: the best that was measured, {said}, {broke} beside the default ({why}); {figures}"
    if comparison.of == "rate" and load.rate is not None and 2 * comparison.default_broke <= len(comparison.rounds):
        return f"nothing beats the default: it keeps the promises under {load} too, as does the best, {said}"
    unsure = comparison.high > max(1.0, _WIDE * comparison.low)
    more = f"; {rounds} tell little of it: go on with --resume and more --rounds" if unsure else ""
    return f"nothing beats the default within noise; best was {said}: {figures} under {comparison.load}{more}"

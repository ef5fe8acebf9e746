"""Carrying a rollout out: step by step, each noted before it is begun, and back again where one fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servewright import probing
from servewright.backend import TRANSPORTS, Backend, Transport
from servewright.errors import CheckFailedError, InputError, LaunchError, ServewrightError, UnavailableError
from servewright.fleet import Fleet
from servewright.reporting import Check, Status
from servewright.rollout import publishing
from servewright.rollout.journal import Condition, Journal, Progress, Word
from servewright.rollout.live import Live
from servewright.rollout.plan import PROBE, PUBLISH, Aim, Place, Rolling, Step

# A canary is probed while the server has other work: no more at once than a small batch or two.
_MOST_AT_ONCE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """What is told while a rollout goes on: the server's number with the step and the word, and every check."""

    on_step: Callable[[int, Step, Word], None] = lambda _server, _step, _word: None
    on_check: Callable[[Check], None] = lambda _: None


def rolling_of(backend: Backend) -> Rolling:
    """Return how live servers of ``backend`` are moved."""
    if backend.rolling is None:
        raise UnavailableError(f"{backend.title} cannot be rolled out yet; replace its servers one by one")
    return backend.rolling()


def prepare(backend: Backend, aims: Sequence[tuple[Live, Aim]]) -> tuple[tuple[Live, tuple[Step, ...]], ...]:
    """Check every server, and return each with its steps; none where it serves the new versions already.

    Nothing is touched. Raises what the first server lacks.
    """
    rolling = rolling_of(backend)
    found: list[tuple[Live, tuple[Step, ...]]] = []
    for live, aim in aims:
        if any(live.shares_an_address_with(other) for other, _ in found):
            raise InputError(f"--live {live.said} names a server twice; name each once")
        server = live.server(backend.name)
        client = backend.connect(server)
        try:
            found.append((live, rolling.prepare(aim, server, client)))
        finally:
            client.close()
    return tuple(_published_once(found))


def _published_once(
    servers: Sequence[tuple[Live, tuple[Step, ...]]],
) -> Iterator[tuple[Live, tuple[Step, ...]]]:
    """Leave a version that several servers find in one store to the first of them, which then also takes it away."""
    everyone = [step.values["target"] for _, steps in servers for step in steps if step.kind == PUBLISH]
    owned: set[str] = set()
    for live, steps in servers:
        kept = []
        for step in steps:
            target = step.values["target"] if step.kind == PUBLISH else None
            if target and everyone.count(target) > 1 and (why := step.values.get("alone")):
                raise InputError(f"{live.said}: several servers look into {Path(target).parent}; {why}")
            if target not in owned:
                kept.append(step)
            if target:
                owned.add(target)
        yield live, tuple(kept)


class Carrier:
    """Moves the servers of one journalled rollout, forward or back."""

    def __init__(self, journal: Journal, backend: Backend, *, patience_s: float, listener: Listener) -> None:
        self.journal, self.backend = journal, backend
        self._rolling = rolling_of(backend)
        self._patience_s, self._listener = patience_s, listener

    def forward(self, fleet: Fleet) -> None:
        """Carry out what is left on every server, one after another.

        Where a step fails, or the user interrupts, that server goes back to what it was, later ones are not touched,
        and the error is raised again with a note of it. Servers that were going back go on to do so.
        """
        for number, server in enumerate(self.journal.servers):
            if server.condition is Condition.PROMOTED:
                continue
            if server.condition is Condition.GOING_BACK:
                self._restore(number)
                why = self.journal.failure or "the rollout was interrupted"
                raise CheckFailedError(f"{server.live.said} was going back, and is as it was before; {why}")
            try:
                with self._connected(server) as client:
                    self._carry_out(number, server, client, fleet)
            except BaseException as error:
                self._fail(number, error)
                raise

    def _carry_out(self, number: int, server: Progress, client: Any, fleet: Fleet) -> None:
        for index in range(server.done + 1, len(server.steps)):
            step = server.steps[index]
            self._note(Word.BEGIN, number, index)
            if step.kind == PUBLISH:
                publishing.publish(Path(step.values["source"]), Path(step.values["target"]))
            elif step.kind == PROBE:
                self._probe(step, client, server, fleet)
            else:
                self._rolling.carry_out(step, client, self._patience_s)
            self._note(Word.DONE, number, index)
        self.journal.note(Word.PROMOTED, number)

    def _probe(self, step: Step, client: Any, server: Progress, fleet: Fleet) -> None:
        document = next(each for each in fleet.models if each.spec.name == step.model)
        transports: list[Transport] = [each for each in TRANSPORTS if each in server.live.endpoints]
        canary, spec = self._rolling.canary(step, client, document)
        failed = []
        for check in probing.model_checks(
            spec, self.backend, canary, None, transports=transports, most_at_once=_MOST_AT_ONCE
        ):
            self._listener.on_check(check)
            if check.status is Status.FAIL:
                failed.append(f"{check.name}: {check.detail}")
        if failed:
            raise CheckFailedError(f"the canary of {step.model} failed: " + "; ".join(failed))

    def _fail(self, number: int, error: BaseException) -> None:
        """Take one server back after ``error``, and tell in it what came of that."""
        server = self.journal.servers[number]
        if server.condition is Condition.UNTOUCHED:
            return
        self.journal.note(Word.FAILED, number, reason=str(error) or type(error).__name__)
        try:
            self._restore(number)
        except ServewrightError as second:
            raise LaunchError(
                f"{error or type(error).__name__}; and {server.live.said} could not be taken back: {second}; it is "
                f"{server}; try again with: servewright rollback {self.journal.id}"
            ) from error
        error.add_note(f"{server.live.said} is as it was before")
        if len(self.journal.servers) > 1:
            error.add_note(f"the servers: {self.journal.state}")

    def back(self) -> None:
        """Take every server back to what it was, the last one first."""
        for number in reversed(range(len(self.journal.servers))):
            if self.journal.servers[number].condition not in (Condition.UNTOUCHED, Condition.RESTORED):
                self._restore(number)

    def _restore(self, number: int) -> None:
        server = self.journal.servers[number]
        with self._connected(server) as client:
            for index in reversed(range(server.begun + 1)):
                step = server.steps[index]
                self._note(Word.UNDO, number, index)
                if step.kind == PUBLISH:
                    publishing.withdraw(Path(step.values["target"]))
                elif step.kind != PROBE:
                    self._rolling.undo(step, client, self._patience_s)
                self._note(Word.UNDONE, number, index)
        self.journal.note(Word.RESTORED, number)

    def where(self, number: int) -> str:
        """Return what the server itself shows: how far along the steps it is."""
        server = self.journal.servers[number]
        with self._connected(server) as client:
            own = [step for step in server.steps if step.kind not in (PUBLISH, PROBE)]
            places = [self._rolling.observe(step, client) for step in own]
        if places[-1] is Place.AFTER:
            return str(Condition.PROMOTED)
        reached = [step for step, place in zip(own, places, strict=True) if place is Place.AFTER]
        if reached:
            return f"after: {reached[-1].title}"
        return "between two steps" if Place.BETWEEN in places[:1] else str(Condition.RESTORED)

    @contextmanager
    def _connected(self, server: Progress) -> Iterator[Any]:
        client = self.backend.connect(server.live.server(self.backend.name))
        try:
            yield client
        finally:
            with suppress(ServewrightError):
                client.close()

    def _note(self, word: Word, number: int, index: int) -> None:
        self.journal.note(word, number, index)
        self._listener.on_step(number, self.journal.servers[number].steps[index], word)

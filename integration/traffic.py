"""Traffic that goes on while a server changes: every request with when it was sent and what came of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from servewright.errors import ServewrightError
from servewright.rollout.journal import Word
from servewright.rollout.plan import Step

Ask = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Sent:
    """One request: how it asked, when it left and its answer came, and the version that answered, or why none did."""

    asked: str
    left: float
    back: float
    version: str
    error: str = ""


@dataclass
class Traffic:
    """Callers that ask in different ways, each at its own pace, until the block ends.

    ``asks`` are by the way of asking; each returns the number of the version that answered. ``rate`` is in requests
    per second over all of them together.
    """

    asks: Mapping[str, Sequence[Ask]]
    rate: float
    sent: list[Sent] = field(default_factory=list)

    def __enter__(self) -> Traffic:
        self._ended = threading.Event()
        callers = [(asked, ask) for asked, asks in self.asks.items() for ask in asks]
        every = len(callers) / self.rate
        self._began = time.monotonic()
        self._threads = [
            threading.Thread(target=self._call, args=(asked, ask, every, number * every / len(callers)), daemon=True)
            for number, (asked, ask) in enumerate(callers)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def _call(self, asked: str, ask: Ask, every: float, after: float) -> None:
        due = time.monotonic() + after
        while not self._ended.wait(max(0.0, due - time.monotonic())):
            left = time.monotonic()
            try:
                version, error = f"{ask():g}", ""
            except ServewrightError as failed:
                version, error = "", f"{type(failed).__name__}: {failed}"
            self.sent.append(Sent(asked, left, time.monotonic(), version, error))
            due += every

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(30)
        seconds = time.monotonic() - self._began
        print(f"asked {len(self.sent) / seconds:.0f} times a second for {seconds:.1f} s, {len(self.failures)} failed")

    @property
    def failures(self) -> list[Sent]:
        """The requests that got no answer."""
        return [each for each in self.sent if each.error]

    def versions(self, asked: str) -> list[str]:
        """Return the versions that answered one way of asking, each once, in the order of their first answer."""
        return list(
            dict.fromkeys(each.version for each in sorted(self.sent, key=lambda one: one.back) if each.asked == asked)
        )


@dataclass
class Timeline:
    """When each step of a rollout began, as its listener is told."""

    moments: list[tuple[float, Step]] = field(default_factory=list)

    def on_step(self, _server: int, step: Step, word: Word) -> None:
        """Take a word in; it comes before the step is begun, or taken back."""
        if word in (Word.BEGIN, Word.UNDO):
            self.moments.append((time.monotonic(), step))

    def allowed(self, sent: Sent) -> set[str]:
        """Return the versions that the plan lets answer a request, of all steps that it may have met."""
        starts = [moment for moment, _ in self.moments]
        # Before the first step, the state that this one leaves; a step lasts until the next one begins.
        met = [
            step
            for (start, step), end in zip(self.moments, [*starts[1:], float("inf")], strict=True)
            if sent.left <= end and sent.back >= start
        ] or [self.moments[0][1]]
        return {version for step in met for version in step.answers.get(sent.asked, ())}

    def strangers(self, sent: Sequence[Sent]) -> list[Sent]:
        """Return the answers of versions that the plan did not allow then."""
        return [each for each in sent if not each.error and each.version not in self.allowed(each)]

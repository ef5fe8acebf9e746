"""A bench that remembers: what a journal holds is answered from it, and what is new is written before it is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from servewright.tuning.journal import Journal
from servewright.tuning.search import Bench, Question
from servewright.tuning.study import Measured, Round, ServiceTime


class Recalling:
    """Answers from ``journal`` as long as the same questions come in the same order, then from ``bench``."""

    def __init__(self, bench: Bench, journal: Journal, *, on_new: Callable[[Measured], None] = lambda _: None) -> None:
        self._bench, self._journal, self._on_new = bench, journal, on_new
        self._known = [Measured.model_validate(fact["measured"]) for fact in journal.all("measured")]
        self.told: list[Measured] = []  # every answer so far, also one that an interrupted search did not hear of

    def service_times(self, rows: Sequence[int]) -> Sequence[ServiceTime]:
        """Return the service times, measured once."""
        for fact in self._journal.all("service_times"):
            return [ServiceTime.model_validate(each) for each in fact["found"]]
        found = self._bench.service_times(rows)
        self._journal.append("service_times", {"found": [each.model_dump(mode="json") for each in found]})
        return found

    def measure(self, question: Question) -> Measured:
        """Return the answer that is known, or a new one."""
        if question.index < len(self._known):
            known = self._known[question.index]
            if (known.settings, known.load) == (question.settings, question.load):
                self.told.append(known)
                return known
            # Another version of the model asks otherwise from here on.
            del self._known[question.index :]
        found = self._bench.measure(question)
        self._journal.append("measured", {"measured": found.model_dump(mode="json")})
        self.told.append(found)
        self._on_new(found)
        return found

    def over(self) -> bool:
        """Tell whether the time is spent; what is known costs none."""
        return self._bench.over()


def rounds(journal: Journal) -> list[Round]:
    """Return the rounds of a comparison that a journal holds."""
    return [Round.model_validate(fact["round"]) for fact in journal.all("round")]

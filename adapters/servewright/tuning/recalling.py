"""A bench that remembers: what a journal holds is answered from it, and what is new is written before it is told."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from servewright.errors import InputError
from servewright.tuning.journal import Journal
from servewright.tuning.search import Bench, Question
from servewright.tuning.study import Goal, Measured, Round, Server, ServiceTime

# What each kind of fact of a study holds.
_PARTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "study": {"goal": Goal, "most": bool, "began": str},
    "server": {"server": Server},
    "ladder": {"top": float},
    "service_time": {"found": ServiceTime},
    "service_times": {"found": list[ServiceTime]},
    "measured": {"measured": Measured},
    "round": {"round": Round},
    "more": {"budget": int, "rounds": int},
    "written": {"spec": str, "configs": list[str]},
}


def check(journal: Journal) -> None:
    """Refuse a journal of which a fact lacks a part, or has another in its place: `InputError` with its line."""
    for number, fact in enumerate(journal.facts, 1):
        for name, kind in _PARTS.get(fact["kind"], {}).items():
            try:
                TypeAdapter(kind).validate_python(fact.get(name))
            except ValidationError as error:
                first = error.errors()[0]
                place = ".".join(map(str, (name, *first["loc"])))
                raise InputError(
                    f"{journal.path}:{number}: {place}: {first['msg']}; the journal was changed by hand, or is of "
                    "another version: begin a new study with another -o"
                ) from error


class Recalling:
    """Answers from ``journal`` as long as the same questions come in the same order, then from ``bench``.

    ``known`` is every measurement of the study, also those that an interrupted search did not ask for again.
    """

    def __init__(self, bench: Bench, journal: Journal, *, on_new: Callable[[Measured], None] = lambda _: None) -> None:
        self._bench, self._journal, self._on_new = bench, journal, on_new
        self._told = 0
        self.known: list[Measured] = []
        for fact in journal.all("measured"):
            measured = Measured.model_validate(fact["measured"])
            self.known[measured.index :] = [measured]  # what came after was of a search that asked otherwise

    def service_times(self, rows: Sequence[int]) -> Sequence[ServiceTime]:
        """Return the service times, measured once."""
        if known := service_times(self._journal):
            return known
        found = self._bench.service_times(rows)
        self._journal.append("service_times", {"found": [each.model_dump(mode="json") for each in found]})
        return found

    def measure(self, question: Question) -> Measured:
        """Return the answer that is known, or a new one."""
        self._told = question.index + 1
        if question.index < len(self.known):
            known = self.known[question.index]
            if (known.settings, known.load) == (question.settings, question.load):
                return known
            # Another version of the model asks otherwise from here on.
            del self.known[question.index :]
        found = self._bench.measure(question)
        self._journal.append("measured", {"measured": found.model_dump(mode="json")})
        self.known.append(found)
        self._on_new(found)
        return found

    def over(self) -> bool:
        """Tell whether the time is spent; what is known costs none."""
        return self._told >= len(self.known) and self._bench.over()


def service_times(journal: Journal) -> list[ServiceTime]:
    """Return the service times of a study, none where not all of them are known yet."""
    for fact in journal.all("service_times"):
        return [ServiceTime.model_validate(each) for each in fact["found"]]
    return []


def timed(journal: Journal) -> list[ServiceTime]:
    """Return each service time that is known, also of a calibration that did not end."""
    return [ServiceTime.model_validate(fact["found"]) for fact in journal.all("service_time")]


def keep_timed(journal: Journal, found: ServiceTime) -> None:
    """Keep one service time."""
    journal.append("service_time", {"found": found.model_dump(mode="json")})


def keep(journal: Journal, best: Measured, found: Round) -> None:
    """Keep a round of the comparison of ``best`` with the default."""
    about = {"settings": best.settings, "load": best.load.model_dump(mode="json")}
    journal.append("round", about | {"round": found.model_dump(mode="json")})


def rounds(journal: Journal, best: Measured) -> list[Round]:
    """Return the rounds in which ``best`` was compared; a study that went on may hold those of another winner too."""
    about = json.loads(json.dumps({"settings": best.settings, "load": best.load.model_dump(mode="json")}))
    facts = [fact for fact in journal.all("round") if {name: fact.get(name) for name in about} == about]
    found: list[Round] = []
    for fact in facts:
        each = Round.model_validate(fact["round"])
        found[each.index :] = [each]
    return found

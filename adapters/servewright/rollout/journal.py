"""A rollout's journal: what was meant, and how far it came, so that another process can go on or take it back.

One file per rollout, a line of JSON per fact, each on the disk before what it announces is done. A line that a kill
tore is cut off when the journal is opened again. Locks on the servers' addresses, which end with their holder, keep
two commands from one server.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import quote

from platformdirs import user_state_path

from servewright.errors import InputError, PackagingError
from servewright.rollout.live import Live
from servewright.rollout.plan import Earlier, Step

FORMAT = 1
VARIABLE = "SERVEWRIGHT_ROLLOUTS"


class Word(StrEnum):
    """What a line of the journal says; the first one is always `PLAN`."""

    PLAN = "plan"
    BEGIN = "begin"
    DONE = "done"
    UNDO = "undo"
    UNDONE = "undone"
    PROMOTED = "promoted"
    RESTORED = "restored"
    FAILED = "failed"


class Condition(StrEnum):
    """What became of a server, as the journal tells it."""

    UNTOUCHED = "untouched"
    UNDER_WAY = "under way"
    PROMOTED = "promoted"
    GOING_BACK = "going back"
    RESTORED = "as before"


class Progress:
    """How far one server of a rollout has come.

    ``begun`` is the last step that was begun and not undone, -1 for none; ``done`` the last that was done.
    """

    def __init__(self, live: Live, steps: tuple[Step, ...]) -> None:
        self.live, self.steps = live, steps
        self.condition = Condition.UNTOUCHED
        self.begun = self.done = -1

    def note(self, word: Word, step: int) -> None:
        """Take a line of the journal in."""
        match word:
            case Word.BEGIN:
                self.condition, self.begun = Condition.UNDER_WAY, step
            case Word.DONE:
                self.done = step
            case Word.UNDO:
                self.condition = Condition.GOING_BACK
            case Word.UNDONE:
                self.begun = self.done = step - 1
            case Word.PROMOTED:
                self.condition = Condition.PROMOTED
            case Word.RESTORED:
                self.condition, self.begun, self.done = Condition.RESTORED, -1, -1
            case _:
                pass

    @property
    def is_open(self) -> bool:
        """Whether the server is neither where it was nor where it shall be."""
        return self.condition in (Condition.UNDER_WAY, Condition.GOING_BACK)

    def __str__(self) -> str:
        if not self.is_open:
            return str(self.condition)
        step = self.steps[max(0, self.begun)]
        return f"{self.condition}, at step {self.begun + 1} of {len(self.steps)} ({step.phase}: {step.title})"


class Journal:
    """One rollout; what `note` returned from is on the disk."""

    def __init__(self, path: Path, head: Mapping[str, Any]) -> None:
        self.path, self.head = path, head
        self.servers = tuple(
            Progress(Live.from_json(each["live"]), tuple(map(Step.from_json, each["steps"])))
            for each in head["servers"]
        )
        self.failure = ""

    @property
    def id(self) -> str:
        """What the rollout is called."""
        return self.path.stem

    @property
    def fleet(self) -> str:
        """The name of the fleet that is rolled out."""
        return str(self.head["fleet"])

    @property
    def backend(self) -> str:
        """The name of the backend."""
        return str(self.head["backend"])

    @property
    def is_open(self) -> bool:
        """Whether any server is neither where it was nor where it shall be."""
        return any(server.is_open for server in self.servers)

    @property
    def state(self) -> str:
        """The state of the whole in a word: that of all servers, or how many are in which."""
        states = [server.condition for server in self.servers]
        if len(set(states)) == 1:
            return str(states[0])
        return ", ".join(f"{states.count(each)} {each}" for each in Condition if each in states)

    def note(self, word: Word, server: int = 0, step: int = 0, **more: object) -> None:
        """Write one line, and have it on the disk."""
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        _append(self.path, {"word": word, "server": server, "step": step, "at": at, **more})
        self._take(word, server, step, more)

    def _take(self, word: Word, server: int, step: int, more: Mapping[str, object]) -> None:
        if word is Word.FAILED:
            self.failure = str(more.get("reason", ""))
        elif word is Word.BEGIN:
            self.failure = ""
        self.servers[server].note(word, step)


def root() -> Path:
    """Return the folder of the journals."""
    override = os.environ.get(VARIABLE)
    return Path(override) if override else user_state_path("servewright", appauthor=False) / "rollouts"


@contextmanager
def claimed(lives: Iterable[Live]) -> Iterator[None]:
    """Keep every other rollout of this user away from servers; `InputError` where one is with them already."""
    addresses = sorted({address for live in lives for address in live.endpoints.values()})
    with ExitStack() as held:
        folder = root() / "locks"
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for address in addresses:
                lock = os.open(folder / quote(address, safe=""), os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
                held.callback(os.close, lock)
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                "another command rolls something out there, or back, at this moment; wait for it"
            ) from error
        except OSError as error:
            raise PackagingError(
                f"cannot write {folder}: {error.strerror or error}; choose another {VARIABLE}"
            ) from error
        yield


def create(fleet: str, backend: str, servers: tuple[tuple[Live, tuple[Step, ...]], ...], **more: object) -> Journal:
    """Begin the journal of a rollout."""
    head = {
        "word": Word.PLAN, "format": FORMAT, "fleet": fleet, "backend": backend,
        "servers": [{"live": live.as_json(), "steps": [step.as_json() for step in steps]} for live, steps in servers],
        **more,
    }  # fmt: skip
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    path = root() / f"{fleet}-{stamp}-{secrets.token_hex(2)}.jsonl"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise PackagingError(f"cannot write {path}: {error.strerror or error}; choose another {VARIABLE}") from error
    _append(path, head)
    return Journal(path, json.loads(json.dumps(head)))


def load(path: Path) -> Journal:
    """Read a journal; a torn last line is cut off, and one that was never whole is an `InputError`."""
    try:
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        lines = [json.loads(line) for line in content[:whole].splitlines()]
        if not lines or lines[0]["word"] != Word.PLAN or lines[0]["format"] != FORMAT:
            raise InputError(f"{path} is no journal of a rollout of this version; remove it, or use its version")
        journal = Journal(path, lines[0])
        for line in lines[1:]:
            more = {key: value for key, value in line.items() if key not in ("word", "server", "step", "at")}
            journal._take(Word(line["word"]), line["server"], line["step"], more)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}; check its permissions") from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(f"{path} is no journal of a rollout: {error!r}; was it changed by hand?") from error
    return journal


def _append(path: Path, line: Mapping[str, object]) -> None:
    """Write a line and have it on the disk; the torn end of an earlier one goes first."""
    data = json.dumps(line).encode() + b"\n"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            end = os.lseek(descriptor, 0, os.SEEK_END)
            while end and os.pread(descriptor, 1, end - 1) != b"\n":
                end -= 1
            os.ftruncate(descriptor, end)
            while data:
                written = os.pwrite(descriptor, data, end)
                data, end = data[written:], end + written
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise PackagingError(f"cannot write {path}: {error.strerror or error}; make room there") from error


def journals() -> Iterator[Journal]:
    """Yield every readable journal, the newest first."""
    folder = root()
    paths = sorted(folder.glob("*.jsonl"), key=_made, reverse=True) if folder.is_dir() else []
    for path in paths:
        if path.stat().st_size and b"\n" in path.read_bytes():  # else: killed before anything was done
            yield load(path)


def _made(path: Path) -> str:
    """Return when a rollout was begun, as its name says: a later line makes an older file no newer."""
    return path.stem.rsplit("-", 2)[1] if path.stem.count("-") >= 2 else ""


def find(wanted: str | None, *, to_resume: bool) -> Journal:
    """Return the newest rollout, or that of a fleet, or the one with an id, if it can be resumed, or taken back.

    An older one is not guessed: whoever repeats a rollback does not mean the rollout before.
    """
    known = [journal for journal in journals() if wanted in (None, journal.id, journal.fleet)]
    if known and (_can_be_resumed(known[0]) if to_resume else _can_be_taken_back(known[0])):
        return known[0]
    what = "to resume" if to_resume else "to take back"
    states = "; ".join(f"{journal.id} is {journal.state}" for journal in known[:3]) or f"no journal in {root()}"
    more = "; name an older one by its id" if len(known) > 1 else ""
    raise InputError(f"there is no rollout {what}{f' of {wanted}' if wanted else ''}: {states}{more}")


def _can_be_resumed(journal: Journal) -> bool:
    """Tell whether a rollout is half-way, or was killed between two servers or before the first."""
    conditions = {server.condition for server in journal.servers}
    return journal.is_open or (Condition.UNTOUCHED in conditions and Condition.RESTORED not in conditions)


def _can_be_taken_back(journal: Journal) -> bool:
    return not {server.condition for server in journal.servers} <= {Condition.UNTOUCHED, Condition.RESTORED}


def check_latest(journal: Journal) -> None:
    """Raise `InputError` where a later rollout went to a server of ``journal``: that one goes back first."""
    for later in journals():
        if later.id == journal.id:
            return
        shared = [
            each.live.said
            for each in later.servers
            if each.condition not in (Condition.UNTOUCHED, Condition.RESTORED)
            and any(each.live.shares_an_address_with(server.live) for server in journal.servers)
        ]
        if shared:
            raise InputError(
                f"rollout {later.id} went to {shared[0]} later; take that back first: servewright rollback {later.id}"
            )


def earlier_at(live: Live) -> Earlier | None:
    """Return the last rollout that went to a server; one that is still open is an `InputError`."""
    for journal in journals():
        for server in journal.servers:
            if not server.live.shares_an_address_with(live):
                continue
            if server.is_open:
                raise InputError(
                    f"rollout {journal.id} of {journal.fleet} is {server} on {live.said}; finish it first: "
                    f"servewright rollout --resume {journal.id}, or: servewright rollback {journal.id}"
                )
            if server.condition is not Condition.UNTOUCHED:
                return Earlier(steps=server.steps, promoted=server.condition is Condition.PROMOTED)
    return None

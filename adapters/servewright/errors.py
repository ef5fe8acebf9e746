"""Everything this package raises on purpose.

ServewrightError                exit 4 unless a subclass says otherwise
├── InputError                  exit 2: what was given cannot be used
│   ├── SpecError               one or many problems in a spec, each with its place
│   ├── UnknownBackendError
│   └── ModelFileError          a model file that is missing, broken or of another format
│       └── UntrustedPickleError    reading it would run a stranger's code
├── CheckFailedError            exit 1: a difference or a finding
├── UnavailableError            exit 3: nothing on this machine can do it
│   └── MissingExtraError       a package of an extra is not installed
├── SystemCallError             exit 4: no space, no permission, no such folder
├── PackagingError              exit 4: an artifact could not be written
├── LaunchError                 exit 4: the server did not start, or died
│   └── PortTakenError          another program has the port
├── LoadError                   exit 4: a process of our own load failed, not the server
└── ProbeError                  exit 4: a running server could not be talked to
    ├── ProbeTimeoutError       no answer in time
    └── ServerAnswerError       the server answered with an error
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum


class ExitCode(IntEnum):
    """What every command of the program exits with."""

    OK = 0
    CHECK_FAILED = 1
    BAD_INPUT = 2
    UNAVAILABLE = 3
    SERVER_FAILED = 4
    INTERRUPTED = 130
    TERMINATED = 143


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong in an input, where it is, and what to do about it.

    ``line`` and ``column`` count from 1; 0 means that the place is not known.
    """

    reason: str
    remedy: str = ""
    path: str = ""
    file: str = ""
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        place = self.file
        if place and self.line:
            place += f":{self.line}:{self.column}"
        text = ": ".join(part for part in (place, self.path, self.reason) if part)
        return f"{text}; {self.remedy}" if self.remedy else text


class ServewrightError(Exception):
    """The root of every error that this package raises on purpose."""

    exit_code: ExitCode = ExitCode.SERVER_FAILED


class InputError(ServewrightError):
    """What was given cannot be used."""

    exit_code = ExitCode.BAD_INPUT


class SpecError(InputError):
    """A spec that cannot be used; carries every problem found, not only the first."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class UnknownBackendError(InputError):
    """No backend of that name is installed."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        self.name, self.known = name, sorted(known)
        super().__init__(f"no backend {name!r}; choose from {', '.join(self.known)}")


class ModelFileError(InputError):
    """A model file that is missing, broken, or of another format than was said."""


class UntrustedPickleError(ModelFileError):
    """Reading the file would run code that its author put into it."""


class CheckFailedError(ServewrightError):
    """A check failed, or two things that should be equal differ."""

    exit_code = ExitCode.CHECK_FAILED


class UnavailableError(ServewrightError):
    """Nothing on this machine can do what was asked; the text says what to install."""

    exit_code = ExitCode.UNAVAILABLE


class MissingExtraError(UnavailableError):
    """A package that an extra brings is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        self.package, self.extra = package, extra
        super().__init__(f"{purpose} needs {package}; run: pip install 'servewright[{extra}]'")


class SystemCallError(ServewrightError):
    """The system refused something that no other error of ours is about: no space, no permission, no such folder."""

    def __init__(self, error: OSError) -> None:
        place = f": {error.filename}" if error.filename is not None else ""
        what = (error.strerror or type(error).__name__).lower()
        super().__init__(f"the system says {what}{place}; see to the disk's space and the folder's permissions")


class PackagingError(ServewrightError):
    """An artifact could not be written."""


class LaunchError(ServewrightError):
    """The server did not start, or died; ``log_tail`` holds its last lines."""

    def __init__(self, message: str, *, log_tail: Sequence[str] = ()) -> None:
        self.log_tail = tuple(log_tail)
        lines = "".join(f"\n  | {line}" for line in self.log_tail)
        super().__init__(message + (f"\nlast lines of the server's log:{lines}" if lines else ""))


class PortTakenError(LaunchError):
    """Another program has the port."""


class LoadError(ServewrightError):
    """A process that sends a load failed; nothing is known of the server."""


class ProbeError(ServewrightError):
    """A running server could not be talked to."""


class ProbeTimeoutError(ProbeError):
    """No answer in time."""


class ServerAnswerError(ProbeError):
    """The server answered a request with an error.

    ``status`` is the HTTP status or the gRPC code's name, ``message`` the server's own text.
    """

    def __init__(self, status: int | str, message: str, *, where: str = "") -> None:
        self.status, self.message = status, message
        super().__init__(f"{where + ': ' if where else ''}{status}: {message}")

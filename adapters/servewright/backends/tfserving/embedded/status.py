"""What went wrong, in TensorFlow's terms: a code and a text, as gRPC, REST and the log show them."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from servewright.errors import ServewrightError


class Code(IntEnum):
    """The codes that TensorFlow and gRPC share."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


HTTP_STATUS: Final = {
    Code.OK: 200,
    Code.CANCELLED: 499,
    Code.INVALID_ARGUMENT: 400,
    Code.FAILED_PRECONDITION: 400,
    Code.OUT_OF_RANGE: 400,
    Code.UNAUTHENTICATED: 401,
    Code.PERMISSION_DENIED: 403,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.ABORTED: 409,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.UNKNOWN: 500,
    Code.INTERNAL: 500,
    Code.DATA_LOSS: 500,
    Code.UNIMPLEMENTED: 501,
    Code.UNAVAILABLE: 503,
    Code.DEADLINE_EXCEEDED: 504,
}

_LONGEST_DETAILS = 1024


class StatusError(ServewrightError):
    """A request, a load or a start that failed; ``str()`` is ``CODE: text`` as TensorFlow prints it."""

    def __init__(self, code: Code, message: str) -> None:
        self.code, self.message = code, message
        super().__init__(f"{code.name}: {message}")

    @property
    def details(self) -> str:
        """The text as gRPC answers carry it: cut after 1024 characters."""
        if len(self.message) <= _LONGEST_DETAILS:
            return self.message
        return self.message[:_LONGEST_DETAILS] + "...TRUNCATED"


def invalid_argument(message: str) -> StatusError:
    """Return an error for something in a request or a file that is wrong."""
    return StatusError(Code.INVALID_ARGUMENT, message)


def failed_precondition(message: str) -> StatusError:
    """Return an error for something that the state of the server or the model does not allow."""
    return StatusError(Code.FAILED_PRECONDITION, message)


def not_found(message: str) -> StatusError:
    """Return an error for something that is not there."""
    return StatusError(Code.NOT_FOUND, message)

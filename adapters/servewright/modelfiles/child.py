"""A process of our own that imports a framework and holds one model, so that neither can hurt us.

It costs us no import, a crash in it is an error here, and it ends when its input ends, however we end.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from servewright.errors import InputError, MissingExtraError, ModelFileError, ServewrightError, UntrustedPickleError
from servewright.modelfiles import frames
from servewright.modelfiles.frames import Array

_TAIL_BYTES = 64 * 1024
_END_S = 5.0
_KINDS: dict[str, type[ServewrightError]] = {
    "model": ModelFileError,
    "untrusted": UntrustedPickleError,
    "input": InputError,
}


class Child:
    """A running child that knows one format, named after its module here. One call at a time."""

    def __init__(self, format: str, *, subject: Path | str = "", timeout_s: float = 300.0) -> None:  # noqa: A002
        self._subject, self._timeout_s = str(subject or format), timeout_s
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the child)
        package_root = str(Path(__file__).resolve().parents[2])
        search = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
        # -P: a file called json.py in the user's folder must not become ours.
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-P", "-m", "servewright.modelfiles.worker", format],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "PYTHONPATH": search},
            start_new_session=True,  # a Ctrl-C is ours to handle; the child ends with its input
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout

    def call(
        self,
        operation: str,
        values: Mapping[str, Any],
        arrays: Mapping[str, Array] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> tuple[dict[str, Any], dict[str, Array]]:
        """Run ``operation`` in the child and return its answer.

        Raises what the child raised, and `ModelFileError` where it crashed or took longer than the timeout.
        """
        limit = self._timeout_s if timeout_s is None else timeout_s
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            self._process.kill()

        watchdog = threading.Timer(limit, expire)
        watchdog.daemon = True
        watchdog.start()
        try:
            frames.write(self._in, {"operation": operation, **values}, arrays)
            answer, results = frames.read(self._out)
        except (EOFError, OSError) as error:
            if expired.is_set():
                self._process.wait()
                raise ModelFileError(f"{self._subject}: no answer in {limit:g} s; give it more time") from error
            raise ModelFileError(f"{self._subject}: {self._obituary()}") from error
        except TypeError as error:  # nothing was sent
            raise InputError(f"{error}; give numbers or text") from error
        except BaseException:
            self._process.kill()  # its answer would be taken for that to the next call
            self._process.wait()
            raise
        finally:
            watchdog.cancel()
        if "error" in answer:
            raise _ours(answer["error"])
        return answer, results

    @property
    def alive(self) -> bool:
        """Whether it still answers."""
        return not self._errors.closed and self._process.poll() is None

    def kill(self) -> None:
        """End the child at once, whatever it is doing."""
        if not self._errors.closed:
            self._process.kill()
            self.close()

    def close(self) -> None:
        """End the child; closing a closed one does nothing."""
        if self._errors.closed:
            return
        with contextlib.suppress(OSError):  # it is gone already, with our last words unread
            self._in.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._out.close()
        self._errors.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.kill()  # nobody waits for its answer any more

    def _obituary(self) -> str:
        code = self._process.wait()
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - _TAIL_BYTES))
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        said = f": {lines[-1]}" if lines else ""
        return f"the process that ran the model died ({how}){said}"


def _ours(error: Mapping[str, str]) -> ServewrightError:
    if error["kind"] == "missing":
        return MissingExtraError(error["package"], error["extra"], error["purpose"])
    return _KINDS[error["kind"]](error["message"])

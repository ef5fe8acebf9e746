"""Local server processes: started from a plan, watched, and stopped with everything they started."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import psutil

from servewright import process_trees
from servewright.errors import LaunchError, ProbeError, ProbeTimeoutError

T = TypeVar("T")

# How long a server whose parent was killed may take to stop by itself.
_ORPHAN_GRACE_S = 10.0
_TAIL_BYTES = 64 * 1024
_LOWEST_PORT = 10_000
_IANA_FIRST_GIVEN_PORT = 49_152
_PORT_TRIES = 100
# Popen objects of servers that are meant to outlive us: one that is dropped while its process runs warns.
_detached: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True, slots=True)
class ProcessPlan:
    """What to run: the program and its arguments, additions to the environment, where, and the file for its output."""

    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)  # may hold secrets
    workdir: Path
    log: Path


class ServerProcess:
    """A server that was started, and all that it started in turn.

    ``pid`` with ``created``, as `process_trees.created` tells it, names the process until the machine boots anew: the
    system reuses numbers.
    """

    def __init__(
        self,
        pid: int,
        created: float,
        log: Path,
        *,
        child: subprocess.Popen[bytes] | None = None,
        guard: subprocess.Popen[bytes] | None = None,
        scratch: tuple[Path, ...] = (),
    ) -> None:
        self.pid, self.created, self.log = pid, created, log
        self._child, self._guard, self._scratch = child, guard, scratch

    def alive(self) -> bool:
        """Tell whether the process runs."""
        if self._child is not None:
            return self._child.poll() is None
        return process_trees.is_alive(self.pid, self.created)

    @property
    def exit_code(self) -> int | None:
        """The exit code, negative for a signal; None while it runs, or where another process is its parent."""
        return None if self._child is None else self._child.poll()

    def members(self) -> tuple[int, ...]:
        """Return the process numbers of all that runs of it."""
        return tuple(sorted(process.pid for process in process_trees.members(self.pid, self.created)))

    def log_tail(self, lines: int = 20) -> tuple[str, ...]:
        """Return the last lines of its output."""
        return log_tail(self.log, lines)

    def record(self) -> dict[str, Any]:
        """Return what a later command needs to find it."""
        return {"pid": self.pid, "created": self.created, "boot": process_trees.boot()}

    def why_ended(self) -> str:
        """Return how it ended, as far as its parent knows; empty while it runs."""
        code = self.exit_code
        if code is None:
            return ""
        return f"it was killed by signal {-code}" if code < 0 else f"it exited with code {code}"

    def command_line(self) -> tuple[str, ...]:
        """Return the arguments of the server's process, as the system has them; none where it has ended."""
        try:
            return tuple(psutil.Process(self.pid).cmdline())
        except psutil.Error:
            return ()

    def environment(self, pid: int) -> Mapping[str, str]:
        """Return the environment of a process of the server; empty where it cannot be read."""
        try:
            return psutil.Process(pid).environ()
        except (psutil.Error, ValueError):
            return {}

    def listeners(self) -> dict[int, str]:
        """Return the addresses on which it listens, by port."""
        found: dict[int, str] = {}
        for pid in self.members():
            try:
                sockets = psutil.Process(pid).net_connections(kind="tcp")
            except psutil.Error:
                continue
            # A JVM listens on IPv4 addresses in their IPv6 form.
            listening = [socket for socket in sockets if socket.status == psutil.CONN_LISTEN]
            found |= {socket.laddr.port: socket.laddr.ip.removeprefix("::ffff:") for socket in listening}
        return found

    def file(self, path: str) -> Path:
        """Return the file that the server sees at ``path``, which may start at its working folder."""
        try:
            return Path(psutil.Process(self.pid).cwd()) / path
        except psutil.Error:
            return self.log.parent / path

    def release(self) -> None:
        """Let it outlive us: `stop` alone ends it from now on."""
        if self._guard is not None:
            self._guard.kill()
            self._guard.communicate()
            self._guard = None
        if self._child is not None and self._child not in _detached:
            _detached.append(self._child)

    def stop(self, grace_s: float = 10.0) -> None:
        """Ask it to stop, kill after ``grace_s`` what still runs, and remove its scratch folders.

        Stopping what has stopped does nothing. Raises `LaunchError` where a process cannot even be killed.
        """
        survivors = process_trees.end(self.pid, self.created, grace_s=grace_s)
        for path in self._scratch:
            shutil.rmtree(path, ignore_errors=True)
        if self._guard is not None:
            self._guard.kill()
            self._guard.communicate()
        if survivors:
            raise LaunchError(f"cannot end process {', '.join(map(str, survivors))}; end it by hand")
        if self._child is not None:
            self._child.wait()

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def start(plan: ProcessPlan, *, detached: bool = False, scratch: tuple[Path, ...] = ()) -> ServerProcess:
    """Start ``plan`` in a session of its own; it ends with us, however we end, unless ``detached``.

    ``scratch`` names folders that are removed when it has ended; a detached one's are removed by `stop` alone.
    Raises `LaunchError` where the system refuses.
    """
    if not plan.argv:
        raise LaunchError("nothing to start: the command is empty")
    try:
        with plan.log.open("ab") as log:
            child = subprocess.Popen(  # noqa: S603  (an argument list, never a shell)
                plan.argv,
                env={**os.environ, **plan.environment},
                cwd=plan.workdir,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    except (OSError, ValueError) as error:  # ValueError: a NUL in an argument
        raise LaunchError(f"cannot start {plan.argv[0]!r} in {plan.workdir}: {error}") from error
    # Until we wait for it, the number is its own, even if it has already ended.
    try:
        created = process_trees.created(psutil.Process(child.pid))
        if detached:
            _detached.append(child)
            return ServerProcess(child.pid, created, plan.log, child=child, scratch=scratch)
        guard = _start_guard(child.pid, created, scratch)
    except BaseException:
        process_trees.end(child.pid, process_trees.created(psutil.Process(child.pid)), grace_s=0.0)
        child.wait()
        raise
    return ServerProcess(child.pid, created, plan.log, child=child, guard=guard, scratch=scratch)


def attach(pid: int, created: float, log: Path, *, boot: str, scratch: tuple[Path, ...] = ()) -> ServerProcess:
    """Return the server that an earlier run started detached, whether or not it still runs.

    ``pid``, ``created`` and ``boot`` are those of its `record`.
    """
    same = boot == process_trees.boot()
    return ServerProcess(pid, created if same else process_trees.OF_ANOTHER_BOOT, log, scratch=scratch)


def _start_guard(pid: int, created: float, scratch: tuple[Path, ...]) -> subprocess.Popen[bytes]:
    # PR_SET_PDEATHSIG would be cheaper, but it is Linux's alone, fires when the starting *thread* ends, and reaches
    # the leader only: the JVM below torchserve's wrapper would live on.
    script = [sys.executable, "-P", process_trees.__file__]
    arguments = [str(pid), repr(created), str(_ORPHAN_GRACE_S), *map(str, scratch)]
    return subprocess.Popen(  # noqa: S603
        script + arguments,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def log_tail(path: Path, lines: int = 20) -> tuple[str, ...]:
    """Return the last lines of a text file, without reading all of it; none where there is no file."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _TAIL_BYTES))
            found = file.read(_TAIL_BYTES).decode(errors="replace").splitlines()
    except OSError:
        return ()
    return tuple(found[-lines:]) if lines > 0 else ()


@contextmanager
def reserve_ports(count: int, *, host: str = "127.0.0.1") -> Iterator[tuple[int, ...]]:
    """Hold ``count`` free ports of the loopback interface; nobody else is given them before the block ends."""
    with ExitStack() as held:
        yield tuple(_bind_free_port(held.enter_context(socket.socket()), host) for _ in range(count))


def _bind_free_port(holder: socket.socket, host: str) -> int:
    # Below the ports that the system gives to connections: between our release and the server's bind lie seconds,
    # in which any program's connection could be given a port from there.
    first = _first_given_port()
    for _ in range(_PORT_TRIES if first > _LOWEST_PORT else 0):
        try:
            holder.bind((host, _LOWEST_PORT + secrets.randbelow(first - _LOWEST_PORT)))
            break
        except OSError:
            continue
    else:
        holder.bind((host, 0))
    return int(holder.getsockname()[1])


def _first_given_port() -> int:
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return _IANA_FIRST_GIVEN_PORT


def free_ports(count: int) -> tuple[int, ...]:
    """Return ``count`` ports of the loopback interface that nobody has at this moment."""
    with reserve_ports(count) as ports:
        return ports


def port_is_free(port: int, *, host: str = "127.0.0.1") -> bool:
    """Tell whether a server could listen on ``port`` now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do: the remains of closed connections are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


class Clock(Protocol):
    """The time, in seconds from any fixed moment, and a way to let it pass."""

    def now(self) -> float:
        """Return the time; it never goes back."""
        ...

    def sleep(self, seconds: float) -> None:
        """Let ``seconds`` pass."""
        ...


class SystemClock:
    """The machine's own time."""

    def now(self) -> float:
        """Return the time; it never goes back."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Let ``seconds`` pass."""
        time.sleep(seconds)


SYSTEM_CLOCK = SystemClock()


def wait_until(
    condition: Callable[[], T | None],
    *,
    within_s: float,
    every_s: float = 0.1,
    what: str,
    clock: Clock = SYSTEM_CLOCK,
) -> T:
    """Return the first answer of ``condition`` that is neither None nor False.

    A `ProbeError` of the condition counts as "not yet"; any other error ends the wait. Raises `ProbeTimeoutError`,
    with ``what`` was awaited and the last reason against it, after ``within_s``.
    """
    start_s = clock.now()
    while True:
        reason: ProbeError | None = None
        try:
            answer = condition()
            if answer is not None and answer is not False:
                return answer
        except ProbeError as error:
            reason = error
        waited_s = clock.now() - start_s
        if waited_s >= within_s:
            because = f" ({reason})" if reason else ""
            raise ProbeTimeoutError(f"{what}: not after {waited_s:.1f} s{because}") from reason
        clock.sleep(min(every_s, within_s - waited_s))

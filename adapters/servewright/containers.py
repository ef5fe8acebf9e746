"""A container that runs a server: watched, looked into from outside, and ended with all that it left."""

from __future__ import annotations

import ipaddress
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servewright import engine, processes, units
from servewright.engine import Engine
from servewright.errors import LaunchError

# What the engine's answer may lag behind the container's last words.
_LAST_WORDS_S = 2.0
_LAST_LINES = 5
_LISTENING = "0A"
# How each line of the watch begins (`docker_runtime.WATCH`), and what it says where the kernel ended a process of the
# container: the engine's own word for it can be lost between two events.
_WORD = "servewright: "
_OUT_OF_MEMORY = "out of memory"
# The kernel's counts, version 2 and version 1: lines such as "oom_kill 1".
_MEMORY_EVENTS = ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control")
# Down from PID 1, through the init and the watch (`docker_runtime.WATCH`), to the server's own arguments.
_ARGUMENTS = (
    'p=1; for _ in $(seq "$1"); do set -- $(cat "/proc/$p/task/$p/children"); p=$1; done; cat "/proc/$p/cmdline"'
)

# Processes that are meant to outlive us: one that is dropped while it runs warns.
_detached: list[subprocess.Popen[bytes]] = []


class Container:
    """One container by its id; ``log`` is the file that its output is streamed to."""

    def __init__(self, where: Engine, identity: str, log: Path) -> None:
        self.engine, self.id, self.log = where, identity, log
        self._lease: Any = None
        self._follower: threading.Thread | None = None

    def lease(self) -> None:
        """Tie the container, which has not started yet, to this process: when we end, however that is, it ends."""
        with engine.translated("take the lease of the container"):
            self._lease = self.engine.api.attach_socket(self.id, params={"stdin": 1, "stream": 1})

    def release(self) -> None:
        """Let the container outlive this process."""
        if self._lease is not None:
            with engine.translated("release the container"):
                self._lease._sock.sendall(b"stay\n")  # the SDK's file-like object only reads
            self._close_lease()

    def follow(self, *, detached: bool) -> None:
        """Stream the output to `log` from now on; ``detached``: by a process that outlives this one."""
        if detached:
            follower = subprocess.Popen(  # noqa: S603
                [sys.executable, "-P", "-m", __name__, self.id, str(self.log)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            _detached.append(follower)
            return
        again = engine.another_connection(self.engine)
        self._follower = threading.Thread(target=stream_log, args=(again, self.id, self.log), daemon=True)
        self._follower.start()

    def record(self) -> dict[str, Any]:
        """Return what a later command needs to find it."""
        return {"container": self.id}

    def state(self) -> Mapping[str, Any]:
        """Return what the engine says of it; `LaunchError` where the engine has none of that id, or is gone."""
        return self.inspect()["State"]  # type: ignore[no-any-return]

    def inspect(self) -> Mapping[str, Any]:
        """Return all that the engine knows of it."""
        with engine.translated("look at the container"):
            return self.engine.api.inspect_container(self.id)  # type: ignore[no-any-return]

    @property
    def pid(self) -> int | None:
        """The number of its first process on this machine; ``None`` where that cannot be seen from here.

        An engine in a virtual machine has numbers of its own, under which there may be somebody else's process here:
        the kernel must say that the process is of this container.
        """
        try:
            pid = int(self.state()["Pid"])
            groups = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8", errors="replace")
        except (LaunchError, OSError):
            return None
        return pid if self.id in groups else None

    def alive(self) -> bool:
        """Tell whether it runs; an engine that does not answer is a `LaunchError`."""
        try:
            return bool(self.state()["Running"])
        except LaunchError as error:
            if engine.is_absent(error):
                return False
            raise

    def why_ended(self) -> str:
        """Return what ended it, as far as the engine knows; empty while it runs well."""
        try:
            found = self.inspect()
        except LaunchError as error:
            return "the container was removed" if engine.is_absent(error) else str(error)
        state = found["State"]
        said = "" if state["Running"] else self._last_word()
        if state.get("OOMKilled") or said == _OUT_OF_MEMORY or (state["Running"] and self._wanted_memory()):
            limit = found["HostConfig"].get("Memory")
            allowed = f", of which it may have {units.format_size(limit)}" if limit else ""
            return f"out of memory{allowed}: see limits.memory"
        if state["Running"]:
            return ""
        code = state.get("ExitCode")
        by = f", killed by signal {code - 128}" if isinstance(code, int) and 128 < code < 160 else ""
        if said:
            return f"{said}; the container exited with code {code}"
        return f"the container exited with code {code}{by}" + (f": {state['Error']}" if state.get("Error") else "")

    def _wanted_memory(self) -> bool:
        """Tell whether the kernel ended a process of it, while it runs, for want of memory."""
        counts = self._run("sh", "-c", f"cat {' '.join(_MEMORY_EVENTS)} 2>/dev/null; true") or b""
        return any(line.startswith(b"oom_kill ") and line != b"oom_kill 0" for line in counts.splitlines())

    def _last_word(self) -> str:
        """Return the last that the watch said; empty where it said nothing."""
        lines: Sequence[str] = ()
        with suppress(LaunchError):
            lines = self._printed(_LAST_LINES)
        return next((line.removeprefix(_WORD) for line in reversed(lines) if line.startswith(_WORD)), "")

    def log_tail(self, lines: int = 20) -> Sequence[str]:
        """Return the last lines that it printed."""
        with suppress(LaunchError):
            if not self.alive():
                return self._printed(lines)  # all of it, whereas who streams it to the file may still be on the way
        return processes.log_tail(self.log, lines)

    def _printed(self, lines: int) -> tuple[str, ...]:
        """Return the last lines of its output as the engine has them."""
        with engine.translated("read the container's last lines"):
            printed: bytes = self.engine.api.logs(self.id, tail=lines)
        return tuple(printed.decode(errors="replace").splitlines())

    def stop(self, grace_s: float = 10.0) -> None:
        """Ask it to stop, kill it after ``grace_s``, and remove it with its anonymous volumes."""
        try:
            with engine.translated("stop the container"):
                if grace_s > 0:
                    with _gone():
                        self.engine.api.stop(self.id, timeout=max(1, round(grace_s)))
                with _gone():
                    self.engine.api.remove_container(self.id, force=True, v=True)
        finally:
            self._close_lease()
            if self._follower is not None:
                self._follower.join(_LAST_WORDS_S)

    def command_line(self) -> tuple[str, ...]:
        """Return the arguments of the server's process, as the system has them; none where it cannot be asked."""
        try:
            found = self.inspect()
        except LaunchError:
            return ()
        # A watched container has a standard input (`docker_runtime.body`).
        depth = bool(found["HostConfig"].get("Init")) + bool(found["Config"].get("OpenStdin"))
        answer = self._run("sh", "-c", _ARGUMENTS, "-", str(depth))
        return tuple(answer.decode(errors="replace").rstrip("\0").split("\0")) if answer else ()

    def file(self, path: str) -> ContainerFile:
        """Return the file that the server sees at ``path``, which may start at its working folder."""
        return ContainerFile(self, path)

    def environment(self, pid: int) -> Mapping[str, str]:
        """Return the environment of the process that the server calls ``pid``; empty where it cannot be asked."""
        answer = self._run("cat", f"/proc/{pid}/environ") or b""
        words = (word.partition("=") for word in answer.decode(errors="replace").split("\0"))
        return {name: value for name, sign, value in words if sign}

    def listeners(self) -> dict[int, str]:
        """Return the addresses that are listened on in the container, by port; none where it cannot be asked."""
        answer = self._run("sh", "-c", "cat /proc/net/tcp /proc/net/tcp6 2>/dev/null; true") or b""
        return dict(_listeners(answer.decode(errors="replace")))

    def read(self, path: str) -> bytes:
        """Return the content of a file; what lies on tmpfs can be read from within alone. `OSError` where it fails."""
        content = self._run("cat", path)
        if content is None:
            raise FileNotFoundError(f"{path} cannot be read in the container")
        return content

    def _run(self, *command: str) -> bytes | None:
        """Return what ``command`` prints in the container, or ``None`` where it fails."""
        api = self.engine.api
        try:
            with engine.translated(f"run {command[0]} in the container"):
                started = api.exec_create(self.id, list(command), stderr=False)["Id"]
                printed: bytes = api.exec_start(started)
                return printed if api.exec_inspect(started)["ExitCode"] == 0 else None
        except LaunchError:
            return None

    def _close_lease(self) -> None:
        if self._lease is not None:
            with suppress(OSError):
                self._lease._sock.close()
                self._lease.close()
            self._lease = None


@dataclass(frozen=True, slots=True)
class ContainerFile:
    """A file inside a container."""

    container: Container
    path: str

    def read_bytes(self) -> bytes:
        """Return its content; `OSError` where there is none."""
        return self.container.read(self.path)

    def __str__(self) -> str:
        return f"{self.path} in container {self.container.id[:12]}"


class _gone:  # noqa: N801  (used as a with-statement, like a function)
    """What has gone needs no stopping, and what is being removed already, none either."""

    def __enter__(self) -> None:
        return

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        from docker.errors import APIError

        return isinstance(error, APIError) and error.response is not None and error.response.status_code in (404, 409)


def _listeners(table: str) -> list[tuple[int, str]]:
    """Read the kernel's tables of sockets: addresses are words of 32 bits in the machine's byte order."""
    found = []
    for line in table.splitlines():
        words = line.split()
        if len(words) < 4 or words[3] != _LISTENING:
            continue
        address, _, port = words[1].partition(":")
        raw = b"".join(bytes.fromhex(address[at : at + 8])[:: -1 if sys.byteorder == "little" else 1]
                       for at in range(0, len(address), 8))  # fmt: skip
        ip = ipaddress.ip_address(raw)
        mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
        # A JVM that listens on all IPv4 addresses does so on all of IPv6, which takes both.
        found.append((int(port, 16), str(mapped or ("0.0.0.0" if ip.is_unspecified else ip))))  # noqa: S104
    return found


def stream_log(where: Engine, identity: str, path: Path) -> None:
    """Write the container's output to ``path`` until it ends."""
    reading = engine.translated("read the container's log")
    with suppress(LaunchError, OSError, ValueError), path.open("ab", buffering=0) as file, reading:
        for chunk in where.api.logs(identity, stream=True, follow=True, stdout=True, stderr=True):
            file.write(chunk)


if __name__ == "__main__":
    stream_log(engine.connect(), sys.argv[1], Path(sys.argv[2]))

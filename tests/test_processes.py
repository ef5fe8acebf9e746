"""Local server processes: what starts must stop, with all that it started, and nothing else."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from servewright import process_trees
from servewright.errors import LaunchError, ProbeError, ProbeTimeoutError
from servewright.processes import (
    ProcessPlan,
    ServerProcess,
    attach,
    free_ports,
    log_tail,
    port_is_free,
    reserve_ports,
    start,
    wait_until,
)

# A wrapper, what it wraps, and a worker of that: the shape of a model server's command. Each says its number;
# the inner two die of SIGTERM only if told to.
TREE = """
import os, signal, subprocess, sys, time
depth, stubborn = int(sys.argv[1]), sys.argv[2] == "stubborn"
if stubborn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.write(1, b"pid %d\\n" % os.getpid())  # in one piece, whatever PYTHONUNBUFFERED says
if depth:
    subprocess.Popen([sys.executable, __file__, str(depth - 1), sys.argv[2]])
while True:
    time.sleep(60)
"""


@pytest.fixture
def plan(tmp_path: Path) -> Callable[..., ProcessPlan]:
    """Return how to run a Python program given as text."""

    def make(source: str, *arguments: str, **environment: str) -> ProcessPlan:
        script = tmp_path / "program.py"
        script.write_text(textwrap.dedent(source))
        argv = (sys.executable, str(script), *arguments)
        return ProcessPlan(argv, environment, tmp_path, tmp_path / "server.log")

    return make


def said_pids(server: ServerProcess, count: int) -> list[int]:
    """Wait until ``count`` processes have said their number, and return the numbers."""

    def read() -> list[int] | None:
        found = [int(line.split()[1]) for line in server.log_tail(100) if line.startswith("pid ")]
        return found if len(found) == count else None

    return wait_until(read, within_s=20, every_s=0.02, what=f"{count} processes")


def gone(pid: int) -> bool:
    """Tell whether no process of that number runs."""
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


class TestStart:
    """What a started program sees, and what cannot be started."""

    def test_gives_the_program_its_arguments_environment_and_folder(self, plan: Callable[..., ProcessPlan]) -> None:
        """The program sees the argument as written (no shell), the added variable and the folder."""
        source = "import json, os, sys; print(json.dumps([sys.argv[1], os.environ['EXTRA'], os.getcwd()]))"
        what = plan(source, "a b; $HOME", EXTRA="yes")
        with start(what) as server:
            wait_until(lambda: not server.alive(), within_s=20, what="the end")
            assert json.loads(server.log_tail()[0]) == ["a b; $HOME", "yes", str(what.workdir)]
            assert server.exit_code == 0

    def test_keeps_output_and_errors_in_the_log(self, plan: Callable[..., ProcessPlan]) -> None:
        """Both streams are in the log, and standard input is empty."""
        what = plan("import sys; print('out', repr(sys.stdin.read()), flush=True); sys.exit('err')")
        with start(what) as server:
            wait_until(lambda: server.exit_code, within_s=20, what="the end")
            assert server.log_tail() == ("out ''", "err")
            assert server.log_tail(1) == ("err",)

    @pytest.mark.parametrize(
        "change",
        [
            {"argv": ()},
            {"argv": ("/no/such/program",)},
            {"argv": ("nul\0byte",)},
            {"workdir": Path("/no/such/folder")},
            {"log": Path("/no/such/folder/log")},
        ],
        ids=str,
    )
    def test_what_cannot_be_started_is_a_launch_error(
        self, plan: Callable[..., ProcessPlan], change: dict[str, object]
    ) -> None:
        """A program, folder or log file that cannot be used is an error of ours."""
        good = plan("pass")
        fields = {"argv": good.argv, "environment": {}, "workdir": good.workdir, "log": good.log} | change
        with pytest.raises(LaunchError):
            start(ProcessPlan(**fields))  # type: ignore[arg-type]

    def test_the_plan_does_not_show_its_environment(self, plan: Callable[..., ProcessPlan]) -> None:
        """What may be a secret is not in the text of the plan."""
        assert "hush" not in repr(plan("pass", TOKEN="hush"))


class TestStop:
    """A stop ends the tree, and only the tree."""

    @pytest.mark.parametrize("manners", ["polite", "stubborn"])
    def test_ends_the_whole_tree(self, plan: Callable[..., ProcessPlan], manners: str) -> None:
        """Nothing of the tree runs after a stop, whether or not it obeys SIGTERM."""
        server = start(plan(TREE, "2", manners))
        pids = said_pids(server, 3)
        assert set(pids) == set(server.members())
        server.stop(grace_s=0.5 if manners == "stubborn" else 20)
        assert all(map(gone, pids))
        assert not server.alive()
        assert server.exit_code == -(signal.SIGKILL if manners == "stubborn" else signal.SIGTERM)

    def test_ends_what_a_dead_leader_left(self, plan: Callable[..., ProcessPlan]) -> None:
        """Processes that outlive the one that was started are found by their session."""
        server = start(plan(TREE, "2", "polite"))
        pids = said_pids(server, 3)
        psutil.Process(server.pid).kill()
        wait_until(lambda: not server.alive(), within_s=20, what="the leader's end")
        assert len(server.members()) == 2
        server.stop()
        assert all(map(gone, pids))

    def test_lets_a_parent_stop_its_own_workers(self, plan: Callable[..., ProcessPlan], tmp_path: Path) -> None:
        """SIGTERM goes to the wrapper and to what it wraps; deeper processes hear of it from their parent."""
        source = """
            import signal, subprocess, sys, time
            from pathlib import Path
            depth = int(sys.argv[1])
            def on_term(*_):
                Path(f"asked-{depth}").touch()
                sys.exit()
            signal.signal(signal.SIGTERM, on_term)
            if depth:
                child = subprocess.Popen([sys.executable, __file__, str(depth - 1)])
            print("pid", depth, flush=True)
            try:
                while True:
                    time.sleep(60)
            finally:
                if depth == 1:
                    child.kill(), child.wait()
        """
        server = start(plan(source, "2"))
        said_pids(server, 3)
        server.stop(grace_s=20)
        assert sorted(path.name for path in tmp_path.glob("asked-*")) == ["asked-1", "asked-2"]

    @pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process ends with its first thread")
    def test_ends_threads_that_outlive_the_first(self, plan: Callable[..., ProcessPlan]) -> None:
        """A process whose first thread has ended is a zombie that still holds its port; a stop ends that too."""
        source = """
            import ctypes, socket, threading, time
            listener = socket.create_server(("127.0.0.1", 0))
            print("pid", listener.getsockname()[1], flush=True)
            threading.Thread(target=time.sleep, args=(30,)).start()
            ctypes.CDLL(None).pthread_exit(None)
        """
        server = start(plan(source))
        (port,) = said_pids(server, 1)
        leader = psutil.Process(server.pid)
        wait_until(lambda: leader.status() == psutil.STATUS_ZOMBIE, within_s=20, what="the first thread's end")
        assert not port_is_free(port)
        server.stop()
        assert server.exit_code == -signal.SIGTERM
        assert port_is_free(port)

    def test_is_idempotent_and_removes_scratch(self, plan: Callable[..., ProcessPlan], tmp_path: Path) -> None:
        """Scratch folders go with the server, and a second stop does nothing."""
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        (scratch / "file").touch()
        server = start(plan(TREE, "0", "polite"), scratch=(scratch,))
        server.stop()
        server.stop()
        assert not scratch.exists()

    def test_never_touches_a_process_that_got_the_number_later(self, plan: Callable[..., ProcessPlan]) -> None:
        """A process with the right number and another creation time is somebody else's."""
        with start(plan(TREE, "0", "polite")) as other:
            said_pids(other, 1)
            stale = attach(other.pid, other.created - 3600, other.log, boot=process_trees.boot())
            assert not stale.alive()
            stale.stop(grace_s=0)
            assert other.alive()

    def test_never_touches_a_session_of_a_later_boot(self, plan: Callable[..., ProcessPlan]) -> None:
        """After a boot the same number, at the same age, is somebody else's, and so is its session."""
        with start(plan(TREE, "0", "polite")) as other:
            said_pids(other, 1)
            stale = attach(other.pid, other.created, other.log, boot="another boot")
            assert not stale.alive()
            assert stale.members() == ()
            stale.stop(grace_s=0)
            assert other.alive()

    @pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the time of creation was noted once and for all")
    def test_knows_a_process_after_the_clock_was_set(
        self, plan: Callable[..., ProcessPlan], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Setting the clock moves the moment of the boot, and by it what psutil says of every process."""
        with start(plan(TREE, "0", "polite")) as server:
            said_pids(server, 1)
            booted = psutil.boot_time()
            monkeypatch.setattr("psutil._pslinux.boot_time", lambda: booted + 3600.0)
            later = attach(**server.record(), log=server.log)
            assert psutil.boot_time() == booted + 3600.0
            assert later.alive()
            later.stop()
            assert not later.alive()
            assert server.exit_code is not None


class TestLifetime:
    """How long a server lives, as told by its parent."""

    PARENT = """
        import os, sys, time
        from pathlib import Path
        from servewright.processes import ProcessPlan, start
        here = Path(sys.argv[1])
        plan = ProcessPlan((sys.executable, str(here / "tree.py"), "1", "polite"), {}, here, here / "tree.log")
        server = start(plan, detached=sys.argv[2] == "detached", scratch=(here / "scratch",))
        print(server.pid, repr(server.created), flush=True)
        sys.stdin.read()
    """

    def parent(self, folder: Path, kind: str) -> tuple[subprocess.Popen[bytes], ServerProcess]:
        (folder / "tree.py").write_text(TREE)
        (folder / "parent.py").write_text(textwrap.dedent(self.PARENT))
        (folder / "scratch").mkdir()
        command = [sys.executable, str(folder / "parent.py"), str(folder), kind]
        parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert parent.stdout is not None
        pid, created = parent.stdout.readline().split()
        return parent, attach(int(pid), float(created), folder / "tree.log", boot=process_trees.boot())

    def test_a_server_ends_with_a_killed_parent(self, tmp_path: Path) -> None:
        """Even SIGKILL of the parent leaves no process and no scratch folder behind."""
        parent, server = self.parent(tmp_path, "attached")
        try:
            pids = said_pids(server, 2)
            parent.kill()
            wait_until(lambda: all(map(gone, pids)), within_s=30, what="the end of the tree")
            wait_until(lambda: not (tmp_path / "scratch").exists(), within_s=20, what="the removal")
        finally:
            parent.kill()
            parent.communicate()
            server.stop(grace_s=0)

    def test_a_detached_server_outlives_its_parent(self, tmp_path: Path) -> None:
        """A detached server runs on, and is stopped later by its number and creation time."""
        parent, server = self.parent(tmp_path, "detached")
        try:
            pids = said_pids(server, 2)
            parent.communicate()
            assert server.alive()
            assert server.exit_code is None
            server.stop()
            assert all(map(gone, pids))
            assert not server.alive()
        finally:
            parent.kill()
            parent.communicate()
            server.stop(grace_s=0)


class TestLogTail:
    """The end of a log."""

    def test_of_a_missing_file_is_empty(self, tmp_path: Path) -> None:
        """No file, no lines."""
        assert log_tail(tmp_path / "missing") == ()

    def test_reads_the_end_of_a_large_file_of_any_bytes(self, tmp_path: Path) -> None:
        """The last lines come from the end, and bytes that are no text do no harm."""
        path = tmp_path / "log"
        path.write_bytes(b"x" * 1_000_000 + b"\nlast but \xff one\nlast\n")
        assert log_tail(path, 2) == ("last but \N{REPLACEMENT CHARACTER} one", "last")
        assert log_tail(path, 0) == ()


class TestPorts:
    """Ports for servers that bind them later."""

    def test_are_distinct_and_held_while_reserved(self) -> None:
        """Reserved ports differ and nobody can listen on them before the block ends."""
        with reserve_ports(5) as ports:
            assert len(set(ports)) == 5
            for port in ports:
                with socket.socket() as other, pytest.raises(OSError, match="in use"):
                    other.bind(("127.0.0.1", port))
        assert all(map(port_is_free, ports))

    def test_are_none_that_a_connection_may_be_given(self) -> None:
        """A server that takes seconds to bind still finds its port free of the connections made meanwhile."""
        limits = Path("/proc/sys/net/ipv4/ip_local_port_range")
        if not limits.exists():
            pytest.skip("the system does not say which ports it gives away")
        first = int(limits.read_text().split()[0])
        if first <= 10_000:
            pytest.skip("nearly all ports are given away here")
        assert max(free_ports(50)) < first

    def test_a_port_that_is_listened_on_is_not_free(self) -> None:
        """A listener is seen."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            assert not port_is_free(listener.getsockname()[1])

    def test_free_ports_can_be_listened_on(self) -> None:
        """What is called free is free."""
        (port,) = free_ports(1)
        socket.create_server(("127.0.0.1", port)).close()


class FakeClock:
    """A clock that moves only when somebody sleeps."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def now(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.seconds += seconds


class TestWaitUntil:
    """Waiting with a deadline, a reason and somebody's clock."""

    def test_returns_the_first_answer(self) -> None:
        """None and False are not answers; anything else is, even zero."""
        clock, answers = FakeClock(), iter([None, False, 0, 1])
        assert wait_until(lambda: next(answers), within_s=9, every_s=2, what="x", clock=clock) == 0
        assert clock.seconds == 1004.0

    def test_gives_up_at_the_deadline_with_the_reason(self) -> None:
        """The error says what was awaited, for how long, and the last reason against it; it is chained."""
        clock = FakeClock()

        def condition() -> None:
            raise ProbeError("connection refused")

        with pytest.raises(ProbeTimeoutError, match=r"the server: not after 3\.0 s \(connection refused\)") as caught:
            wait_until(condition, within_s=3, every_s=2, what="the server", clock=clock)
        assert isinstance(caught.value.__cause__, ProbeError)
        assert clock.seconds == 1003.0

    def test_asks_at_least_once(self) -> None:
        """Even with no time at all, what is so already is seen."""
        assert wait_until(lambda: "yes", within_s=0, what="x", clock=FakeClock()) == "yes"

    def test_other_errors_end_the_wait_at_once(self) -> None:
        """A server that died is not waited for."""
        clock = FakeClock()

        def condition() -> None:
            raise LaunchError("it died")

        with pytest.raises(LaunchError, match="it died"):
            wait_until(condition, within_s=60, what="x", clock=clock)
        assert clock.seconds == 1000.0


def test_interrupting_the_block_stops_the_server(plan: Callable[..., ProcessPlan]) -> None:
    """Ctrl-C inside the with block leaves nothing running."""
    pids: list[int] = []

    def serve_until_interrupted() -> None:
        with start(plan(TREE, "1", "polite")) as server:
            pids.extend(said_pids(server, 2))
            os.kill(os.getpid(), signal.SIGINT)
            wait_until(lambda: None, within_s=20, what="the interrupt")

    with pytest.raises(KeyboardInterrupt):
        serve_until_interrupted()
    assert pids
    assert all(map(gone, pids))

"""What a container's first process is to this machine; all else about containers takes an engine."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from servewright.containers import Container
from servewright.engine import Address, Engine

pytest.importorskip("docker")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux alone says whose a process is")


def container(identity: str, pid: int) -> Container:
    """Return a container of an engine that says that its first process has that number."""
    api = SimpleNamespace(inspect_container=lambda _: {"State": {"Pid": pid}})
    address = Address("unix:///nowhere", "a test")
    engine = Engine(api=api, address=address, version="27.0.1", cpus=2, memory=1 << 30, security=())
    return Container(engine, identity, Path(os.devnull))


def test_its_process_is_known_where_the_kernel_says_so() -> None:
    """The process belongs to a group that bears the container's name."""
    mine = Path("/proc/self/cgroup").read_text(encoding="ascii").split()[-1]
    assert container(mine, os.getpid()).pid == os.getpid()


@pytest.mark.parametrize("pid", [0, os.getpid(), 2**22 + 1], ids=["none", "ours", "nobody's"])
def test_a_number_that_is_another_process_here_is_none(pid: int) -> None:
    """An engine in a virtual machine counts by itself, and a container that has ended has no process."""
    assert container("4f" * 32, pid).pid is None

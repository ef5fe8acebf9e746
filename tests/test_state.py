"""Servers that outlive their command: noted whole, found by name, and given back where a start fails."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from servewright import process_trees, state
from servewright.errors import InputError

if TYPE_CHECKING:
    from conftest import Cli, Workshop
    from servewright.backend import Backend


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVEWRIGHT_STATE", str(tmp_path / "state"))


def record(name: str, **changes: Any) -> state.Record:
    """Return the note of a server that has never run."""
    values = {
        "name": name,
        "backend": "torchserve",
        "runtime": "process",
        "endpoints": {"http": "127.0.0.1:1"},
        "spec": "/specs/x.yaml",
        "run": str(state.root().parent / "run"),
        "log": str(state.root().parent / "log"),
        "stand_in": False,
        "models": ("digits",),
        "pid": 2**22 + 1,
        "created": 1.0,
        "boot": process_trees.boot(),
        "site": {"models": "/m", "config": "/c", "run": "/r", "host": "127.0.0.1", "ports": {"http": 1}},
    }
    known = state.Record.__dataclass_fields__
    return state.Record(**{key: value for key, value in (values | changes).items() if key in known})


def noted(name: str, **changes: Any) -> state.Record:
    """Note a server as `up` does."""
    with state.claimed(name) as folder:
        state.write(folder, record(name, **changes))
    return state.find(name)


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[psutil.Process]:
    """Run a program that does nothing, as a server of its own session."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True) as process:
        yield psutil.Process(process.pid)
        process.kill()


class TestRecords:
    """What is kept of a server."""

    def test_survive_being_written(self) -> None:
        """Every field reads back, tuples as tuples."""
        assert noted("one") == record("one")
        assert json.loads((state.root() / "one" / state.FILE).read_text())["name"] == "one"

    def test_are_listed_by_name(self) -> None:
        """However they were started."""
        for name in ("b", "a", "c"):
            noted(name)
        assert [each.name for each in state.records()] == ["a", "b", "c"]

    def test_are_none_where_nothing_was_started(self) -> None:
        """A machine that never served has no folder, and that is no error."""
        assert state.records() == []
        assert not state.root().exists()

    @pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"name": "one"}', '{"name": "other"}', "\0"], ids=repr)
    def test_that_cannot_be_read_are_passed_over(self, text: str) -> None:
        """A note of another version, or a broken one, hides no other."""
        noted("two")
        (state.root() / "one").mkdir()
        (state.root() / "one" / state.FILE).write_text(text)
        assert [each.name for each in state.records()] == ["two"]

    def test_are_not_taken_from_a_folder_of_another_name(self) -> None:
        """A name is a folder: a note that says another would lead `down` astray."""
        noted("one")
        lying = asdict(record("one")) | {"name": "../../elsewhere"}
        (state.root() / "one" / state.FILE).write_text(json.dumps(lying))
        assert state.records() == []

    def test_lie_where_others_cannot_read(self) -> None:
        """Keys of a server may be below."""
        noted("one")
        assert (state.root() / "one").stat().st_mode & 0o077 == 0
        assert state.root().stat().st_mode & 0o077 == 0


def _fail_in(folder: Path) -> None:
    """Do what a start does, and fail as one does."""
    (folder / "artifact").mkdir()
    raise FileExistsError


class TestClaiming:
    """Taking a name."""

    def test_gives_it_back_where_the_start_fails(self) -> None:
        """Nothing is left of a start that failed, and the name is free."""
        with pytest.raises(FileExistsError), state.claimed("one") as folder:
            _fail_in(folder)
        assert list(state.root().iterdir()) == []
        noted("one")

    def test_is_refused_while_a_server_of_that_name_runs(self, sleeper: psutil.Process) -> None:
        """The remedy ends it, or takes another name."""
        noted("one", pid=sleeper.pid, created=process_trees.created(sleeper))
        with pytest.raises(
            InputError, match="a server called 'one' runs already; choose --name, or: servewright down one"
        ):
            noted("one")

    def test_removes_nothing_that_others_put_there(self) -> None:
        """The folder may be somebody's home: only what was made for a server is swept."""
        mine = state.root() / "thesis"
        mine.mkdir(parents=True)
        (mine / "chapter").write_text("1")
        (state.root() / "left").mkdir()
        with state.claimed("killed") as folder:
            shutil.copytree(folder, state.root() / "half")  # as a killed start leaves it
        assert (state.root() / "half").is_dir()
        state.sweep()
        assert [each.name for each in state.root().iterdir()] == ["thesis"]
        assert (mine / "chapter").exists()

    def test_ending_an_old_server_spares_a_new_one_of_its_name(self) -> None:
        """Another command may have taken the name while the old server ended."""
        old = noted("one", spec="/old")
        new = noted("one", spec="/new")
        state.end(old)
        assert state.records() == [new]
        state.end(new)
        assert state.records() == []

    def test_takes_the_name_of_a_dead_server(self) -> None:
        """A server that died needs no `down`."""
        noted("one", spec="/old")
        assert noted("one", spec="/new").spec == "/new"

    def test_is_refused_while_another_start_is_under_way(self) -> None:
        """Two commands that start one name do not get into each other's way."""
        with state.claimed("one"), pytest.raises(InputError, match="'one'"), state.claimed("one"):
            pass

    @pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "a b", "-x", "a\nb", "x" * 129])
    def test_refuses_names_that_are_none(self, name: str) -> None:
        """A name is a folder and a word for the command line."""
        with pytest.raises(InputError, match="is not a name for a server; use letters, digits"), state.claimed(name):
            pass

    def test_takes_what_a_killed_start_left(self, tmp_path: Path) -> None:
        """Whoever died between taking a name and noting a server does not keep the name."""
        program = (
            "import os, signal; from servewright import state\n"
            "with state.claimed('one') as folder:\n    (folder / 'artifact').mkdir()\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        done = subprocess.run([sys.executable, "-c", program], check=False)
        assert done.returncode == -signal.SIGKILL
        assert (state.root() / "one" / "artifact").is_dir()
        noted("one")
        assert not (state.root() / "one" / "artifact").exists()

    def test_says_where_a_note_of_another_version_lies(self) -> None:
        """What cannot be read cannot be ended by name; the folder is the remedy."""
        noted("one")
        (state.root() / "one" / state.FILE).write_text("{}")
        with pytest.raises(InputError, match="is not of this version; end that server and remove"):
            noted("one")


class TestCommands:
    """`ps`, `logs` and `down` over notes."""

    def test_list_servers_and_how_they_are(self, cli: Cli, sleeper: psutil.Process) -> None:
        """A dead server is listed until it is ended."""
        noted("alive", pid=sleeper.pid, created=process_trees.created(sleeper))
        noted("gone")
        _, table, _ = cli("ps")
        states = {line.split()[0]: line.split()[1] for line in table.splitlines()[1:]}
        assert states == {"alive": "running", "gone": "dead"}
        _, text, _ = cli("ps", "--json")
        assert {each["name"]: each["state"] for each in json.loads(text)} == states

    def test_end_servers(self, cli: Cli, sleeper: psutil.Process) -> None:
        """The process, its run folder and the note of it go."""
        (state.root().parent / "run").mkdir(parents=True)
        noted("one", pid=sleeper.pid, created=process_trees.created(sleeper))
        assert cli("down", "one") == (0, "one ended\n", "")
        assert not sleeper.is_running() or sleeper.status() == psutil.STATUS_ZOMBIE
        assert not (state.root() / "one").exists()
        assert not (state.root().parent / "run").exists()
        assert cli("down", "one")[0] == 2

    def test_end_none_of_another_process(self, cli: Cli, sleeper: psutil.Process) -> None:
        """A process id that was given to another program since is not ours to end."""
        noted("one", pid=sleeper.pid, created=process_trees.created(sleeper) - 1000)
        assert cli("down", "one")[0] == 0
        assert sleeper.is_running()
        assert sleeper.status() != psutil.STATUS_ZOMBIE

    def test_end_all(self, cli: Cli) -> None:
        """`--all` needs no names, and says where there is none."""
        for name in ("a", "b"):
            noted(name)
        assert cli("down", "--all")[:2] == (0, "a ended\nb ended\n")
        assert cli("down", "--all")[:2] == (0, "no server runs\n")

    def test_end_the_others_where_one_cannot_be(self, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
        """A server in a container needs the engine; those that sort after it do not."""
        noted("a", container="0123456789ab", runtime="docker")
        noted("b")
        monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
        code, out, err = cli("down", "--all")
        assert (code, out) == (3, "b ended\n")
        assert "a was not ended: " in err
        document = json.loads(cli("down", "--all", "--json")[1])
        assert not document["ok"]
        assert [record.name for record in state.records()] == ["a"]

    def test_say_in_one_line_what_the_system_refuses(
        self, cli: Cli, workshop: Workshop, backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A state folder that cannot be made is no failed check, and gets no traceback."""
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("SERVEWRIGHT_STATE", str(tmp_path / "file" / "state"))
        code, out, err = cli("up", workshop.write(workshop.values(backend)), "-b", backend.name)
        assert (code, out) == (4, "")
        assert "the system says not a directory" in err
        assert "Traceback" not in err

    def test_print_the_end_of_a_log(self, cli: Cli) -> None:
        """As many lines as are asked for."""
        log = state.root().parent / "log"
        log.write_text("".join(f"line {number}\n" for number in range(9)))
        noted("one")
        assert cli("logs", "one", "-n", "2")[:2] == (0, "line 7\nline 8\n")
        assert json.loads(cli("logs", "one", "-n", "1", "--json")[1])["lines"] == ["line 8"]


def test_lies_below_the_users_state_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each user has servers of his own, unless told where to keep them."""
    monkeypatch.delenv("SERVEWRIGHT_STATE")
    monkeypatch.setenv("XDG_STATE_HOME", "/somewhere")
    assert state.root().name == "servers"
    assert "servewright" in str(state.root())

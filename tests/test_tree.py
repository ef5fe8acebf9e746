"""Artifact directories: hard links where they can be, replaced in one step, whole or not there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from servewright import staging, tree
from servewright.errors import InputError, PackagingError
from servewright.members import Members
from servewright.staging import scratch_directory
from servewright.tree import assemble_tree, copy_tree

CONTENT = bytes(range(256)) * 10_000
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Give a file to pack."""
    path = tmp_path / "source.bin"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Give an empty directory to write to."""
    path = tmp_path / "out"
    path.mkdir()
    return path


@pytest.fixture(params=[assemble_tree, copy_tree], ids=["linked", "copied"])
def assemble(request: pytest.FixtureRequest) -> Callable[[Path, Members], None]:
    """Give both ways to assemble a directory in turn."""
    return request.param  # type: ignore[no-any-return]


def content_of(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def names_in(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


class TestAssembling:
    """A directory is assembled."""

    def test_holds_exactly_the_members(
        self, out: Path, source: Path, assemble: Callable[[Path, Members], None]
    ) -> None:
        """Files and bytes get their places, and nothing else is there."""
        assemble(out / "t", {"a/b/c": b"1", "a/w": source, "w": source, "empty": b""})
        assert content_of(out / "t") == {"a/b/c": b"1", "a/w": CONTENT, "w": CONTENT, "empty": b""}
        assert names_in(out) == ["t"]

    def test_links_files_of_the_same_file_system(self, out: Path, source: Path) -> None:
        """A linked file is its source under a second name: it costs no space."""
        assemble_tree(out / "t", {"w": source})
        assert (out / "t" / "w").samefile(source)

    def test_links_what_a_symbolic_link_points_to(self, out: Path, source: Path, tmp_path: Path) -> None:
        """A source that is a symbolic link, as in a model hub's cache, becomes a real file."""
        (tmp_path / "link").symlink_to(source)
        assemble_tree(out / "t", {"w": tmp_path / "link"})
        assert not (out / "t" / "w").is_symlink()
        assert (out / "t" / "w").samefile(source)

    def test_copies_make_files_of_their_own(self, out: Path, source: Path) -> None:
        """A copied file does not change when its source is written to."""
        copy_tree(out / "t", {"w": source})
        with source.open("r+b") as file:
            file.write(b"changed")
        assert (out / "t" / "w").read_bytes() == CONTENT

    def test_copies_from_another_file_system(self, source: Path) -> None:
        """Where no link can be made, the file is copied."""
        memory = Path("/dev/shm")
        if not memory.is_dir() or memory.stat().st_dev == source.stat().st_dev:
            pytest.skip("there is no second file system")
        with tempfile.TemporaryDirectory(dir=memory) as directory:
            assemble_tree(Path(directory, "t"), {"w": source})
            assert Path(directory, "t", "w").read_bytes() == CONTENT

    def test_copies_without_the_kernels_help(self, out: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A system that cannot copy inside the kernel copies in user space."""
        monkeypatch.delattr(os, "copy_file_range", raising=False)
        copy_tree(out / "t", {"w": source})
        assert (out / "t" / "w").read_bytes() == CONTENT

    def test_leaves_the_source_untouched(
        self, out: Path, source: Path, assemble: Callable[[Path, Members], None]
    ) -> None:
        """A read-only source in a read-only directory is enough, and neither changes."""
        source.chmod(0o444)
        before = source.stat()
        assemble(out / "t", {"w": source})
        shutil.rmtree(out / "t")
        after = source.stat()
        assert source.read_bytes() == CONTENT
        assert (before.st_mtime_ns, before.st_mode, before.st_nlink) == (
            after.st_mtime_ns,
            after.st_mode,
            after.st_nlink,
        )

    @settings(max_examples=40)
    @given(
        st.dictionaries(
            st.lists(st.sampled_from(["a", "b", "ß", "x.y"]), min_size=1, max_size=4).map("/".join),
            st.binary(max_size=20),
            max_size=6,
        )
    )
    def test_any_members_are_found_again(self, members: dict[str, bytes]) -> None:
        """Either the names are refused, or exactly the members are there."""
        with tempfile.TemporaryDirectory() as directory:
            target = Path(directory, "t")
            try:
                assemble_tree(target, members)
            except InputError:
                assert names_in(target.parent) == []
            else:
                assert content_of(target) == members


class TestRefusal:
    """What cannot be assembled is refused, and nothing is left."""

    @pytest.mark.parametrize("name", ["../x", "/x", "a\\b", "a/../../b"])
    def test_unsafe_names(self, out: Path, name: str) -> None:
        """A name that leads out of the target is an input error."""
        with pytest.raises(InputError, match="member name"):
            assemble_tree(out / "t", {name: b""})
        assert names_in(out) == []

    def test_missing_source(self, out: Path, tmp_path: Path) -> None:
        """A source that is not there is an input error."""
        with pytest.raises(InputError, match="does not exist"):
            assemble_tree(out / "t", {"a": b"", "b": tmp_path / "missing"})
        assert names_in(out) == []

    def test_source_inside_the_directory_to_be_replaced(self, out: Path, source: Path) -> None:
        """A directory is not replaced when that would remove a source, or a link to one."""
        (out / "t").mkdir()
        (out / "t" / "w").write_bytes(CONTENT)
        (out / "t" / "link").symlink_to(source)
        (out / "outside").symlink_to(out / "t" / "w")
        for name in ("t/w", "t/link", "outside"):
            with pytest.raises(InputError, match="would be replaced"):
                assemble_tree(out / "t", {"w": out / name})
        assert names_in(out / "t") == ["link", "w"]

    def test_target_that_is_a_file(self, out: Path) -> None:
        """A file is never replaced by a directory."""
        (out / "t").write_bytes(b"mine")
        with pytest.raises(PackagingError, match="a file is there"):
            assemble_tree(out / "t", {"a": b""})
        assert (out / "t").read_bytes() == b"mine"
        assert names_in(out) == ["t"]

    def test_target_below_a_file(self, out: Path) -> None:
        """A target whose parent is a file is an error that says so."""
        (out / "f").write_bytes(b"mine")
        with pytest.raises(PackagingError, match="a file is there"):
            assemble_tree(out / "f" / "t", {"a": b""})

    def test_source_that_changes_meanwhile(self, out: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A source written to while it is copied is refused, and the older directory stays."""
        copy_tree(out / "t", {"old": b""})
        copy = tree._copy_content

        def copy_and_change(*args: int) -> int:
            count = copy(*args)
            source.write_bytes(b"short")
            return count

        monkeypatch.setattr(tree, "_copy_content", copy_and_change)
        with pytest.raises(PackagingError, match="changed while it was packed"):
            copy_tree(out / "t", {"w": source})
        assert names_in(out / "t") == ["old"]
        assert names_in(out) == ["t"]


class TestReplacing:
    """An older directory is replaced."""

    def test_leaves_nothing_of_it(self, out: Path, assemble: Callable[[Path, Members], None]) -> None:
        """Files that are no longer members are gone, and nothing lies beside the new one."""
        assemble(out / "t", {"old/deep": b"", "both": b"1"})
        assemble(out / "t", {"new": b"", "both": b"2"})
        assert content_of(out / "t") == {"new": b"", "both": b"2"}
        assert names_in(out) == ["t"]

    def test_works_in_two_steps_where_it_must(self, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A system that cannot exchange directories renames twice, with the same result."""
        monkeypatch.setattr(staging, "_exchange", staging._exchange_in_two_steps)
        assemble_tree(out / "t", {"old": b""})
        assemble_tree(out / "t", {"new": b""})
        assert names_in(out / "t") == ["new"]
        assert names_in(out) == ["t"]

    @pytest.mark.skipif(sys.platform != "linux", reason="looks at the exchange of Linux")
    def test_never_leaves_the_name_without_a_directory(self, out: Path) -> None:
        """Four writers replace it, and at every moment a reader finds one of theirs, complete."""
        assemble_tree(out / "t", {"a": b"0", "b": b"0"})
        errors: list[BaseException] = []

        def write(mark: bytes) -> None:
            try:
                for _ in range(10):
                    assemble_tree(out / "t", {"a": mark, "b": mark})
            except BaseException as error:  # noqa: BLE001  (reported by the test's own thread)
                errors.append(error)

        writers = [threading.Thread(target=write, args=(mark,)) for mark in (b"1", b"2", b"3", b"4")]
        for writer in writers:
            writer.start()
        looks = 0
        while any(writer.is_alive() for writer in writers):
            assert (out / "t").is_dir()
            looks += 1
        for writer in writers:
            writer.join()
        assert errors == []
        assert looks > 0
        found = content_of(out / "t")
        assert found["a"] == found["b"]
        assert names_in(out) == ["t"]

    def test_goes_by_the_current_directorys_name_too(self, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The target may be ``.``, which has no name to put a part beside."""
        (out / "here").mkdir()
        monkeypatch.chdir(out / "here")
        assemble_tree(Path(), {"a": b"1"})
        assert content_of(out / "here") == {"a": b"1"}
        assert names_in(out) == ["here"]


class TestKill:
    """A writer that is killed leaves nothing that looks finished."""

    PROGRAM = """
import sys
from pathlib import Path
from servewright import staging, tree
moment, target, source = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
def stop(original, at):
    calls = iter(range(1000))
    def stopped(*args):
        if next(calls) == at:
            print("here", flush=True)
            sys.stdin.read()
        return original(*args)
    return stopped
if moment.isdigit():
    tree._write = stop(tree._write, int(moment))
else:
    module = {"_move_in": staging, "_copy_content": tree, "sync_directory": staging}[moment]
    setattr(module, moment, stop(getattr(module, moment), 0))
tree.copy_tree(target, {"a": b"1", "d/b": b"2", "d/w": source, "z": b"3"})
"""

    @pytest.mark.parametrize("moment", ["0", "1", "2", "_copy_content", "_move_in", "sync_directory"])
    def test_the_old_or_the_new_is_whole_and_the_rest_is_swept(self, out: Path, source: Path, moment: str) -> None:
        """Whenever it is killed, one whole directory has the name, and the next writer removes the remains."""
        assemble_tree(out / "t", {"old": b""})
        writer = subprocess.Popen(
            [sys.executable, "-c", self.PROGRAM, moment, out / "t", source],
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        with writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"here\n"
            writer.kill()
        new = {"a": b"1", "d/b": b"2", "d/w": CONTENT, "z": b"3"}
        assert content_of(out / "t") == (new if moment == "sync_directory" else {"old": b""})
        remains = [name for name in names_in(out) if name != "t"]
        assert [name[:3] + name[-5:] for name in remains] == [".t..part"]
        assemble_tree(out / "t", {"next": b""})
        assert names_in(out) == ["t"]
        assert names_in(out / "t") == ["next"]


class TestScratch:
    """A scratch directory is a place for what is made on the way."""

    def test_vanishes_and_does_not_disturb_the_target(self, out: Path) -> None:
        """It lies beside the target, lives through the target's writing, and is gone at the end."""
        with scratch_directory(out / "t") as scratch:
            (scratch / "weights").write_bytes(CONTENT)
            assemble_tree(out / "t", {"w": scratch / "weights"})
            assert (scratch / "weights").samefile(out / "t" / "w")
        assert names_in(out) == ["t"]

    def test_vanishes_with_the_directories_made_for_it(self, out: Path) -> None:
        """When its user fails, the parents that were made for it go too."""
        with pytest.raises(KeyError), scratch_directory(out / "x" / "y" / "t"):
            raise KeyError
        assert names_in(out) == []

"""Archives: written whole or not at all, the same bytes everywhere, and proved safe before they are unpacked."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from servewright import archive, zip_format
from servewright.archive import write_zip
from servewright.archive_check import Limits, check_archive
from servewright.digest import read_digest
from servewright.errors import InputError, PackagingError

WEIGHTS = bytes(range(256)) * 20_000  # 5 MB: several chunks
SAFE_NAMES = st.lists(
    st.text("abcXYZ019-_. äß漢", min_size=1, max_size=8).filter(lambda part: part not in (".", "..")),
    min_size=1,
    max_size=3,
).map("/".join)
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Give a file of several chunks."""
    path = tmp_path / "weights.bin"
    path.write_bytes(WEIGHTS)
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Give an empty directory to write to."""
    path = tmp_path / "out"
    path.mkdir()
    return path


@contextmanager
def without_privileges() -> Iterator[Path]:
    """Yield a directory in which permissions count, also when the tests run as root."""
    home = Path(tempfile.mkdtemp())
    home.chmod(0o755)
    root = os.geteuid() == 0
    if root:
        os.chown(home, 65534, 65534)
        os.setegid(65534)
        os.seteuid(65534)
    try:
        yield home
    finally:
        if root:
            os.seteuid(0)
            os.setegid(0)
        shutil.rmtree(home)


def names_in(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def rewrite(path: Path) -> None:
    path.write_bytes(WEIGHTS[::-1])
    os.utime(path, ns=(1, 1))


def run(program: str, *args: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        [sys.executable, "-c", program, *args], env=ENVIRONMENT, text=True, capture_output=True, timeout=60, **options
    )


class TestWriting:
    """An archive is written."""

    def test_keeps_names_and_contents(self, out: Path, weights: Path) -> None:
        """What another zip reader finds is what was given: files and bytes, empty ones too."""
        write_zip(out / "a.zip", {"b/c.txt": b"text", "weights.bin": weights, "empty": b""})
        with zipfile.ZipFile(out / "a.zip") as read:
            assert read.testzip() is None
            assert {name: read.read(name) for name in read.namelist()} == {
                "b/c.txt": b"text",
                "empty": b"",
                "weights.bin": WEIGHTS,
            }

    def test_stores_with_one_date_and_mode_in_name_order(self, out: Path, weights: Path) -> None:
        """Nothing of the source but its content gets into the archive."""
        weights.chmod(0o755)
        write_zip(out / "a.zip", {"z": b"", "weights.bin": weights, "a": b""})
        with zipfile.ZipFile(out / "a.zip") as read:
            assert read.namelist() == ["a", "weights.bin", "z"]
            seen = {(info.date_time, info.external_attr >> 16, info.compress_type) for info in read.infolist()}
        assert seen == {((1980, 1, 1, 0, 0, 0), stat.S_IFREG | 0o644, zipfile.ZIP_STORED)}

    def test_returns_the_digest_of_what_lies_on_the_disk(self, out: Path, weights: Path) -> None:
        """The digest taken on the way equals the one of the finished file."""
        digest = write_zip(out / "a.zip", {"weights.bin": weights, "x": b"1"})
        assert digest == read_digest(out / "a.zip")

    def test_replaces_an_older_archive(self, out: Path) -> None:
        """A file of that name is replaced, and nothing is left beside it."""
        write_zip(out / "a.zip", {"old": b"old"})
        write_zip(out / "a.zip", {"new": b"new"})
        assert zipfile.ZipFile(out / "a.zip").namelist() == ["new"]
        assert names_in(out) == ["a.zip"]

    def test_makes_the_directories_it_needs(self, out: Path) -> None:
        """Missing directories above the target are made."""
        write_zip(out / "x" / "y" / "a.zip", {"a": b""})
        assert (out / "x" / "y" / "a.zip").is_file()

    @settings(max_examples=60)
    @given(st.dictionaries(SAFE_NAMES, st.binary(max_size=200), max_size=6))
    def test_any_names_and_contents_are_read_back(self, members: dict[str, bytes]) -> None:
        """Either the names are refused, or another reader finds exactly what was given and no finding is made."""
        with tempfile.TemporaryDirectory() as directory:
            target = Path(directory, "a.zip")
            try:
                write_zip(target, members)
            except InputError:
                assert names_in(target.parent) == []
                return
            with zipfile.ZipFile(target) as read:
                assert {name: read.read(name) for name in read.namelist()} == members
            assert check_archive(target) == ()

    def test_of_nothing_is_an_empty_archive(self, out: Path) -> None:
        """No members make an archive without members."""
        write_zip(out / "a.zip", {})
        assert zipfile.ZipFile(out / "a.zip").namelist() == []
        assert check_archive(out / "a.zip") == ()


class TestDeterminism:
    """The same members are the same bytes."""

    def test_holds_for_every_machine(self, out: Path) -> None:
        """The bytes are pinned: another Python, zlib or system may not change them."""
        digest = write_zip(out / "a.zip", {"MAR-INF/MANIFEST.json": b"{}", "weights.bin": b"\0" * 1000, "ß": b"1"})
        assert digest.sha256 == "026e35675b9e5092e25cf6d407c1aa531ec7fa92e008e8b14ada9631f6bb9b3a"

    def test_holds_under_another_umask_zone_directory_and_order(self, out: Path, weights: Path) -> None:
        """Neither clock nor environment, nor the order of the members, nor the source's dates or mode get in."""
        program = (
            "import os, sys; from pathlib import Path; from servewright.archive import write_zip\n"
            "os.umask(int(sys.argv[3], 8)); source = Path(sys.argv[2])\n"
            "names = ['x/1', 'x/2', 'a', 'M'] if sys.argv[3] == '077' else ['a', 'M', 'x/2', 'x/1']\n"
            "print(write_zip(Path(sys.argv[1]), {name: source for name in names}).sha256)"
        )
        copy = out / "copy.bin"
        copy.write_bytes(WEIGHTS)
        copy.chmod(0o700)
        os.utime(copy, (1, 1))
        first = run(program, out / "1.zip", weights, "077", cwd="/")
        ENVIRONMENT["TZ"] = "Asia/Kathmandu"
        second = run(program, out / "2.zip", copy, "022", cwd=out)
        del ENVIRONMENT["TZ"]
        assert (first.stderr, second.stderr) == ("", "")
        assert (out / "1.zip").read_bytes() == (out / "2.zip").read_bytes()
        assert first.stdout == second.stdout


class TestNames:
    """Unsafe names are refused."""

    @pytest.mark.parametrize(
        ("names", "reason"),
        [
            (["../x"], "leaves the artifact"),
            (["a/../../x"], "leaves the artifact"),
            (["/etc/passwd"], "absolute"),
            (["C:/x"], "drive letter"),
            (["c:x"], "drive letter"),
            (["a\\b"], "backslash"),
            (["a\0b"], "control character"),
            (["a\nb"], "control character"),
            (["a\udc80"], "broken"),
            ([""], "empty"),
            (["a//b"], "component"),
            (["./a"], "component"),
            (["a/"], "component"),
            (["x" * 256], "too long"),
            (["Readme", "README"], "ignores case"),
            (["caf\N{LATIN SMALL LETTER E WITH ACUTE}", "cafe\N{COMBINING ACUTE ACCENT}"], "ignores case"),
            (["a", "a/b"], "'a' is a file"),
            (["A", "a/b/c"], "'A' is a file"),
        ],
    )
    def test_are_an_input_error_that_names_them(self, out: Path, names: list[str], reason: str) -> None:
        """Every unsafe name is refused before anything is written."""
        with pytest.raises(InputError, match=reason):
            write_zip(out / "a.zip", dict.fromkeys(names, b""))
        assert names_in(out) == []

    def test_are_reported_all_at_once(self, out: Path) -> None:
        """One error names every bad name and every bad source."""
        with pytest.raises(InputError) as raised:
            write_zip(out / "a.zip", {"../x": b"", "/y": b"", "z": out / "missing"})
        assert len(str(raised.value).splitlines()) == 3


class TestSources:
    """A source that cannot be packed is refused."""

    @pytest.mark.parametrize(
        ("make", "reason"),
        [
            (lambda path: None, "does not exist"),
            (lambda path: path.mkdir(), "is a directory"),
            (os.mkfifo, "not a regular file"),
            (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
            (lambda path: path.symlink_to(path), "cannot be read"),
        ],
        ids=["missing", "directory", "pipe", "device", "ring"],
    )
    def test_is_an_input_error(self, out: Path, tmp_path: Path, make: Callable[[Path], object], reason: str) -> None:
        """What is no readable file is refused before anything is written, and never waited for."""
        make(tmp_path / "source")
        with pytest.raises(InputError, match=reason):
            write_zip(out / "a.zip", {"a": tmp_path / "source"})
        assert names_in(out) == []

    def test_without_permission_is_an_input_error(self) -> None:
        """A file that may not be read is named."""
        with without_privileges() as home:
            (home / "secret").write_bytes(b"")
            (home / "secret").chmod(0)
            with pytest.raises(InputError, match="Permission denied"):
                write_zip(home / "a.zip", {"a": home / "secret"})
            assert names_in(home) == ["secret"]

    @pytest.mark.parametrize(
        "change",
        [
            lambda path: os.truncate(path, 100),
            grow,
            rewrite,
        ],
        ids=["cut", "grown", "rewritten"],
    )
    def test_that_changes_meanwhile_is_a_packaging_error(
        self, out: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], object]
    ) -> None:
        """A source written to while it is packed is refused, and an older archive stays."""
        write_zip(out / "a.zip", {"old": b"old"})
        write, changed = archive._write_at, []

        def write_and_change(*args: object) -> int:
            if not changed:
                changed.append(change(weights))
            return write(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(archive, "_write_at", write_and_change)
        with pytest.raises(PackagingError, match="changed while it was packed"):
            write_zip(out / "a.zip", {"weights.bin": weights})
        assert zipfile.ZipFile(out / "a.zip").namelist() == ["old"]
        assert names_in(out) == ["a.zip"]

    def test_that_is_replaced_before_it_is_read_is_a_packaging_error(
        self, out: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A new file renamed over the source is not mixed up with the one that packing began with."""
        layout = archive._layout

        def replace_first(*args: object) -> object:
            weights.with_suffix(".new").write_bytes(WEIGHTS)
            weights.with_suffix(".new").replace(weights)
            return layout(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(archive, "_layout", replace_first)
        with pytest.raises(PackagingError, match="changed while it was packed"):
            write_zip(out / "a.zip", {"weights.bin": weights})
        assert names_in(out) == []


class TestTrouble:
    """When the disk does not take it, the error says why and nothing is left."""

    def test_full_disk(self, out: Path, weights: Path) -> None:
        """A file system without room is named as the cause."""
        program = (
            "import sys; from pathlib import Path; from servewright.archive import write_zip\n"
            "from servewright.errors import PackagingError\n"
            "target = Path(sys.argv[1])\n"
            "try: write_zip(target / 'sub' / 'a.zip', {'w': Path(sys.argv[2])})\n"
            "except PackagingError as error: print(error, list(target.iterdir()))"
        )
        mount = f'mount -t tmpfs -o size=1m none "{out}" && exec "$0" "$@"'
        namespace = ["unshare", "--mount", "--map-root-user", "sh", "-c"]
        if not shutil.which("unshare") or subprocess.run([*namespace, mount, "true"], capture_output=True).returncode:
            pytest.skip("this system does not let a test mount a small disk")
        command = [*namespace, mount, sys.executable, "-c", program, out, weights]
        done = subprocess.run(command, env=ENVIRONMENT, text=True, capture_output=True, timeout=60)
        assert done.stderr == ""
        assert "the disk has no room for it (1 MiB free without it)" in done.stdout
        assert done.stdout.endswith("[]\n")

    def test_file_too_large(self, out: Path, weights: Path) -> None:
        """A process that may not write so much is told so."""
        program = (
            "import resource, sys; from pathlib import Path; from servewright.archive import write_zip\n"
            "from servewright.errors import PackagingError\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))\n"
            "try: write_zip(Path(sys.argv[1]), {'w': Path(sys.argv[2])})\n"
            "except PackagingError as error: print(error)"
        )
        done = run(program, out / "a.zip", weights)
        assert "larger than the file system or the process's limit" in done.stdout
        assert names_in(out) == []

    def test_read_only_directory(self) -> None:
        """A directory that may not be written to is named as the cause."""
        with without_privileges() as home:
            (home / "out").mkdir()
            (home / "out").chmod(0o555)
            with pytest.raises(PackagingError, match=r"cannot write .*out/a\.zip: no permission"):
                write_zip(home / "out" / "a.zip", {"a": b""})
            with pytest.raises(PackagingError, match=r"cannot write .*: no permission"):
                write_zip(home / "out" / "deeper" / "a.zip", {"a": b""})
            assert names_in(home / "out") == []

    def test_directory_of_that_name(self, out: Path) -> None:
        """A directory is never replaced by an archive."""
        (out / "a.zip").mkdir()
        with pytest.raises(PackagingError, match="a directory of that name"):
            write_zip(out / "a.zip", {"a": b""})
        assert names_in(out) == ["a.zip"]

    def test_failing_flush(self, out: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """An error that the disk reports only when it is flushed is not swallowed."""

        def fail(_: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(PackagingError, match="Input/output error"):
            write_zip(out / "x" / "a.zip", {"w": weights})
        assert names_in(out) == []


class TestKill:
    """A writer that is killed leaves nothing that looks finished."""

    PROGRAM = """
import sys
from pathlib import Path
from servewright import archive
moment, target, source = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
def stop(original, at):
    calls = iter(range(1000))
    def stopped(*args):
        if next(calls) == at:
            print("here", flush=True)
            sys.stdin.read()
        return original(*args)
    return stopped
if moment == "rename":
    Path.replace = stop(Path.replace, 0)
else:
    archive._write_at = stop(archive._write_at, int(moment))
archive.write_zip(target, {"weights.bin": source, "a": b"1", "b": b"2"})
"""

    # Contents first (a, b, five chunks), then three headers, the directory, the rename.
    @pytest.mark.parametrize("moment", ["0", "2", "5", "7", "8", "10", "rename"])
    def test_the_older_archive_stays_and_the_rest_is_swept(self, out: Path, weights: Path, moment: str) -> None:
        """Whenever it is killed, the old file is whole, and the next writer removes the remains."""
        write_zip(out / "a.zip", {"old": b"old"})
        writer = subprocess.Popen(
            [sys.executable, "-c", self.PROGRAM, moment, out / "a.zip", weights],
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        with writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"here\n"
            writer.kill()
        assert zipfile.ZipFile(out / "a.zip").namelist() == ["old"]
        remains = [name for name in names_in(out) if name != "a.zip"]
        assert len(remains) == 1
        assert remains[0].startswith(".a.zip.")
        assert remains[0].endswith(".part")
        write_zip(out / "a.zip", {"new": b"new"})
        assert names_in(out) == ["a.zip"]


class TestTwoAtOnce:
    """Writers of one target do not disturb each other."""

    def test_every_reader_sees_a_whole_archive(self, out: Path) -> None:
        """With four writers at work, whatever is read is one of theirs, whole; nothing is left beside it."""
        write_zip(out / "a.zip", {"w": b"start"})
        errors: list[BaseException] = []

        def write(mark: bytes) -> None:
            try:
                for _ in range(8):
                    write_zip(out / "a.zip", {"w": mark * 300_000})
            except BaseException as error:  # noqa: BLE001  (reported by the test's own thread)
                errors.append(error)

        writers = [threading.Thread(target=write, args=(mark,)) for mark in (b"1", b"2", b"3", b"4")]
        for writer in writers:
            writer.start()
        while any(writer.is_alive() for writer in writers):
            with zipfile.ZipFile(out / "a.zip") as read:
                assert len(set(read.read("w"))) <= len(set(b"start"))
        for writer in writers:
            writer.join()
        assert errors == []
        assert names_in(out) == ["a.zip"]

    def test_a_living_writers_part_is_left_alone(self, out: Path, weights: Path) -> None:
        """A second writer that comes and goes in the middle of the first does not touch its part."""
        writer = subprocess.Popen(
            [sys.executable, "-c", TestKill.PROGRAM, "5", out / "a.zip", weights],
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        with writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"here\n"
            write_zip(out / "a.zip", {"second": b""})
            assert len(names_in(out)) == 2
            writer.communicate(b"")
        assert writer.returncode == 0
        assert zipfile.ZipFile(out / "a.zip").namelist() == ["a", "b", "weights.bin"]
        assert names_in(out) == ["a.zip"]


JAVA = """
import java.io.*; import java.nio.file.*; import java.util.zip.*;
class Read {
    public static void main(String[] args) throws Exception {
        try (ZipInputStream in = new ZipInputStream(Files.newInputStream(Path.of(args[0])))) {
            for (ZipEntry e; (e = in.getNextEntry()) != null;)
                System.out.println(e.getName() + " " + in.readAllBytes().length);
        }
        try (ZipFile zip = new ZipFile(args[0])) { System.out.println(zip.size()); }
    }
}
"""


class TestZip64:
    """Sizes, offsets and counts beyond the short records go into long ones."""

    @pytest.fixture
    def low_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let the long records begin at 50 bytes and 3 members, so that small files use them."""
        monkeypatch.setattr(zip_format, "ZIP64_FROM", 50)
        monkeypatch.setattr(zip_format, "ZIP64_FROM_MEMBERS", 3)

    MEMBERS = {"a": b"1", "b": b"2" * 49, "c": b"3" * 50, "d": b"4" * 51}  # noqa: RUF012

    @pytest.mark.usefixtures("low_limit")
    def test_are_read_by_python_and_by_our_own_check(self, out: Path) -> None:
        """Forced long records are read back by zipfile, and proved safe."""
        write_zip(out / "a.zip", self.MEMBERS)
        with zipfile.ZipFile(out / "a.zip") as read:
            assert read.testzip() is None
            assert {name: read.read(name) for name in read.namelist()} == self.MEMBERS
        assert check_archive(out / "a.zip") == ()

    @pytest.mark.usefixtures("low_limit")
    @pytest.mark.skipif(not shutil.which("javac"), reason="needs a JDK")
    def test_are_read_by_java(self, out: Path) -> None:
        """Java reads them in both of its ways; TorchServe unpacks in the sequential one."""
        write_zip(out / "a.zip", self.MEMBERS | {"Ümläut.txt": b""})
        (out / "Read.java").write_text(JAVA)
        done = subprocess.run(["java", "Read.java", "a.zip"], cwd=out, text=True, capture_output=True, timeout=120)
        assert done.stderr == ""
        assert done.stdout.splitlines()[0:4] == ["a 1", "b 49", "c 50", "d 51"]
        assert done.stdout.splitlines()[-1] == "5"

    def test_many_members(self, out: Path) -> None:
        """More members than a short record can count are read back."""
        members = {f"{number:05}": b"" for number in range(65_536)}
        write_zip(out / "a.zip", members)
        assert zipfile.ZipFile(out / "a.zip").namelist() == list(members)
        assert check_archive(out / "a.zip", Limits(members=65_536)) == ()


class TestCheck:
    """An archive is proved safe before anybody unpacks it."""

    def test_finds_nothing_in_an_ordinary_archive(self, out: Path) -> None:
        """Deflated members, directories and streamed ones are allowed: other tools write them."""
        with zipfile.ZipFile(out / "a.zip", "w", zipfile.ZIP_DEFLATED) as write:
            write.mkdir("MAR-INF")
            write.writestr("MAR-INF/MANIFEST.json", "{}")
            with write.open("weights.bin", "w") as member:
                member.write(WEIGHTS)
        assert check_archive(out / "a.zip") == ()

    @pytest.mark.parametrize(
        ("name", "rule"),
        [
            ("/etc/passwd", "absolute path"),
            ("../../x", "parent path"),
            ("C:/x", "drive letter"),
            ("a/../../b", "parent path"),
            ("..\\x", "backslash"),
        ],
    )
    def test_finds_unsafe_names(self, out: Path, name: str, rule: str) -> None:
        """Names that lead out of the target are found."""
        with zipfile.ZipFile(out / "a.zip", "w") as write:
            write.writestr(zipfile.ZipInfo(name), "x")
        assert [(finding.rule, finding.member) for finding in check_archive(out / "a.zip")] == [(rule, name)]

    @pytest.mark.filterwarnings("ignore:Duplicate name")
    @pytest.mark.parametrize(
        ("names", "rule"),
        [(["a", "a"], "duplicate"), (["a", "A"], "collision"), (["a", "a/b"], "shadowed"), (["a", "a/"], "shadowed")],
    )
    def test_finds_names_in_each_others_way(self, out: Path, names: list[str], rule: str) -> None:
        """Members that would overwrite each other, somewhere, are found."""
        with zipfile.ZipFile(out / "a.zip", "w") as write:
            for name in names:
                write.writestr(name, "")
        assert rule in {finding.rule for finding in check_archive(out / "a.zip")}

    @pytest.mark.parametrize(
        ("mode", "rule"), [(stat.S_IFLNK, "link"), (stat.S_IFCHR, "device"), (stat.S_IFIFO, "device")]
    )
    def test_finds_links_and_devices(self, out: Path, mode: int, rule: str) -> None:
        """What is no file or directory is found."""
        info = zipfile.ZipInfo("x")
        info.external_attr = (mode | 0o777) << 16
        with zipfile.ZipFile(out / "a.zip", "w") as write:
            write.writestr(info, "/etc/passwd")
        assert [finding.rule for finding in check_archive(out / "a.zip")] == [rule]

    def test_finds_bombs(self, out: Path) -> None:
        """Too many members, too much content, and too much of it for the archive's size are found, unread."""
        with zipfile.ZipFile(out / "a.zip", "w", zipfile.ZIP_DEFLATED) as write:
            write.writestr("zeros", bytes(4_000_000))
            write.writestr("more", b"")
        rules = {
            finding.rule
            for limits in (Limits(members=1), Limits(content=1_000_000), Limits(ratio_from=1_000_000))
            for finding in check_archive(out / "a.zip", limits)
        }
        assert rules == {"count bomb", "size bomb", "ratio bomb"}

    @pytest.mark.parametrize(
        ("forge", "rule"),
        [
            (lambda data: data + b"tail", "trailing data"),
            (lambda data: b"#!/bin/sh\n" + data, "hidden data"),
            (lambda data: data.replace(b"first", b"other", 1), "mismatch"),
            (lambda data: data.replace(b"CONTENT", b"content"), "content"),
            (lambda data: data[:-30], "no zip"),
            (lambda data: b"", "no zip"),
            (lambda data: b"\x1f\x8b" + data[:60], "no zip"),
        ],
        ids=["tail", "prefix", "other-name", "other-content", "cut", "empty", "other-format"],
    )
    def test_finds_forgeries(self, out: Path, forge: Callable[[bytes], bytes], rule: str) -> None:
        """Bytes that two readers would take differently, and damage, are found."""
        write_zip(out / "a.zip", {"first": b"CONTENT", "second": b"2"})
        (out / "a.zip").write_bytes(forge((out / "a.zip").read_bytes()))
        assert [finding.rule for finding in check_archive(out / "a.zip")] == [rule]

    def test_finds_encryption(self, out: Path) -> None:
        """A member that needs a password is found."""
        write_zip(out / "a.zip", {"a": b""})
        data = bytearray((out / "a.zip").read_bytes())
        data[6] |= 1
        data[data.index(zip_format.CENTRAL_SIGNATURE) + 8] |= 1
        (out / "a.zip").write_bytes(data)
        assert [finding.rule for finding in check_archive(out / "a.zip")] == ["encryption"]

    def test_finds_overlapping_members(self, out: Path) -> None:
        """Two members that share their content, as the densest bombs do, are found."""
        with zipfile.ZipFile(out / "a.zip", "w") as write:
            write.writestr("a", b"1")
            write.writestr("b", b"1")
            write.filelist[1].header_offset = write.filelist[0].header_offset
        assert "overlap" in {finding.rule for finding in check_archive(out / "a.zip")}

    def test_finds_members_larger_than_they_claim(self, out: Path) -> None:
        """A deflated member is unpacked no further than the size in the directory."""
        with zipfile.ZipFile(out / "a.zip", "w", zipfile.ZIP_DEFLATED) as write:
            write.writestr("zeros", bytes(10_000_000))
            size = write.filelist[0].file_size = 10
        data = (out / "a.zip").read_bytes().replace((10_000_000).to_bytes(4, "little"), size.to_bytes(4, "little"))
        (out / "a.zip").write_bytes(data)
        assert [str(finding) for finding in check_archive(out / "a.zip")] == [
            "zeros: unpacks to more than the 10 bytes that it claims"
        ]

    def test_refuses_what_is_no_file(self, out: Path) -> None:
        """A missing file or a directory is an input error, a finding would hide it."""
        for path in (out, out / "missing"):
            with pytest.raises(InputError):
                check_archive(path)

    @settings(max_examples=200)
    @given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=4))
    @example([(138, 32), (253, 32)])
    def test_survives_any_damage(self, damage: list[tuple[int, int]]) -> None:
        """Whatever bytes are changed, the check ends with an answer, and finds every change that unpacking shows."""
        with tempfile.TemporaryDirectory() as directory:
            target = Path(directory, "a.zip")
            with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as write:
                write.writestr("first", b"CONTENT" * 9)
                write.writestr("second/third", b"2")
            whole = target.read_bytes()
            data = bytearray(whole)
            for place, byte in damage:
                data[place % len(data)] = byte
            target.write_bytes(data)
            if check_archive(target) == ():
                with zipfile.ZipFile(target) as read:
                    assert read.testzip() is None
                    names = [info.orig_filename for info in read.infolist()]
                assert len(names) == 2
                for name, was in zip(names, (b"first", b"second/third"), strict=True):
                    # No sum covers a name: who changes both of its places alike renames the file.
                    places = (whole.index(was), whole.rindex(was))
                    copies = {bytes(data[place : place + len(was)]) for place in places}
                    assert {name.encode("cp437")} == copies or {name.encode()} == copies

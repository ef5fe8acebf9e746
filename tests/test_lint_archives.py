"""Hostile archives are refused by rule, and no byte of them is written anywhere."""

from __future__ import annotations

import functools
import io
import os
import random
import stat
import struct
import sys
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import pytest

from servewright import cli, launching
from servewright.archive_check import refuse_unsafe
from servewright.backend import Artifact
from servewright.errors import InputError
from servewright.linting import walking
from servewright.linting.finding import Finding
from servewright.linting.walking import Wishes

_MANIFEST = b'{"model": {"modelName": "m", "modelVersion": "1.0", "handler": "image_classifier"}}'
Members = list[tuple[str | zipfile.ZipInfo, bytes]]


def _zip(members: Members, method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("MAR-INF/MANIFEST.json", _MANIFEST)
        for name, content in members:
            if not isinstance(name, str):
                name.compress_type = method
            with pytest.warns(UserWarning, match="Duplicate name") if _twice(archive, name) else nullcontext():
                archive.writestr(name, content)
    return buffer.getvalue()


def _twice(archive: zipfile.ZipFile, name: str | zipfile.ZipInfo) -> bool:
    return (name if isinstance(name, str) else name.filename) in archive.NameToInfo


def _raw(name: str) -> zipfile.ZipInfo:
    """Return an entry whose name zipfile does not tidy up."""
    info = zipfile.ZipInfo("x")
    info.filename = name
    return info


def _mode(kind: int) -> Members:
    info = zipfile.ZipInfo("link")
    info.create_system = 3
    info.external_attr = (kind | 0o777) << 16
    return [(info, b"/etc/passwd")]


def _patched(old: bytes, new: bytes, *, last: bool = False) -> Callable[[], bytes]:
    def make() -> bytes:
        content = _zip([("weights.pt", b"weights" * 10)])
        at = content.rindex(old) if last else content.index(old)
        return content[:at] + new + content[at + len(old) :]

    return make


def _central(offset: int, value: bytes) -> Callable[[], bytes]:
    """Change bytes of the last member's record in the directory."""

    def make() -> bytes:
        content = bytearray(_zip([("weights.pt", b"weights" * 10)]))
        at = content.rindex(b"PK\1\2") + offset
        content[at : at + len(value)] = value
        return bytes(content)

    return make


def _local(offset: int, value: bytes) -> Callable[[], bytes]:
    """Change bytes of the record in front of the last member."""

    def make() -> bytes:
        content = bytearray(_zip([("weights.pt", b"weights" * 10)]))
        at = content.rindex(b"PK\3\4") + offset
        content[at : at + len(value)] = value
        return bytes(content)

    return make


@functools.cache
def _ratio_bomb() -> bytes:
    return _zip([("weights.pt", b"\0" * (80 << 20))], zipfile.ZIP_DEFLATED)


def _claimed_size() -> bytes:
    content = bytearray(_zip([("weights.pt", zlib.compress(b"x"))]))
    at = content.rindex(b"PK\1\2")
    content[at + 24 : at + 28] = struct.pack("<L", 0xFFFF_FFFE)
    return bytes(content)


def _gap() -> bytes:
    """Put bytes between the last member and the directory, and correct the end record for them."""
    content = _zip([("weights.pt", b"weights")])
    at, extra = content.index(b"PK\1\2"), b"#!/bin/sh\nevil\n" * 4
    moved = bytearray(content[:at] + extra + content[at:])
    end = moved.rindex(b"PK\5\6")
    moved[end + 16 : end + 20] = struct.pack("<L", at + len(extra))
    return bytes(moved)


def _foreign_link() -> bytes:
    """Make a link in an archive that claims to come from MS-DOS: nobody should read those bits, and some do."""
    content = bytearray(_zip(_mode(stat.S_IFLNK)))
    content[content.rindex(b"PK\1\2") + 5] = 0
    return bytes(content)


def _second_name() -> bytes:
    """Give a name in the field by which Info-ZIP's programs go, beside the one that all others read."""
    info = zipfile.ZipInfo("weights.pt")
    name = b"../evil.py"
    info.extra = struct.pack("<HHBL", 0x7075, 5 + len(name), 1, zlib.crc32(b"weights.pt")) + name
    return _zip([(info, b"x")])


def _overlapping() -> bytes:
    """Two members of the directory that share one content: the bomb that needs no nesting."""
    content = _zip([("weights.pt", b"weights" * 10)])
    at, end = content.rindex(b"PK\1\2"), content.rindex(b"PK\5\6")
    again = bytearray(content[at:end].replace(b"weights.pt", b"other_w.pt"))
    tail = bytearray(content[end:])
    size = struct.unpack_from("<L", tail, 12)[0] + len(again)
    tail[8:16] = struct.pack("<2HL", 3, 3, size)
    return content[:end] + bytes(again) + bytes(tail)


def _two_ends() -> bytes:
    """Put a second directory behind the first: which one counts depends on where a program begins to look."""
    first, second = _zip([("a.py", b"1")]), _zip([("b.py", b"2")])
    return first + second


def _names(*names: str) -> Callable[[], bytes]:
    return lambda: _zip([(_raw(name), b"x") for name in names])


HOSTILE: dict[str, tuple[str, Callable[[], bytes]]] = {
    "absolute": ("MAR021", _names("/etc/cron.d/x")),
    "absolute twice": ("MAR021", _names("//server/share")),
    "parent": ("MAR021", _names("../evil.py")),
    "parent inside": ("MAR021", _names("a/../../evil.py")),
    "parent at the end": ("MAR021", _names("a/..")),
    "drive": ("MAR021", _names("C:/windows/x")),
    "drive relative": ("MAR021", _names("C:x")),
    "backslash": ("MAR021", _names("..\\evil.py")),
    "backslash inside": ("MAR021", _names("a\\b.py")),
    "nul": ("MAR021", _names("a\0.py")),
    "newline": ("MAR021", _names("a\n.py")),
    "escape": ("MAR021", _names("\x1b[2J.py")),
    "empty component": ("MAR021", _names("a//b")),
    "dot component": ("MAR021", _names("a/./b")),
    "dot": ("MAR021", _names("./b")),
    "long name": ("MAR021", _names("a" * 300)),
    "long path": ("MAR021", _names("/".join(["a" * 200] * 30))),
    "symbolic link": ("MAR022", lambda: _zip(_mode(stat.S_IFLNK))),
    "character device": ("MAR022", lambda: _zip(_mode(stat.S_IFCHR))),
    "block device": ("MAR022", lambda: _zip(_mode(stat.S_IFBLK))),
    "pipe": ("MAR022", lambda: _zip(_mode(stat.S_IFIFO))),
    "socket": ("MAR022", lambda: _zip(_mode(stat.S_IFSOCK))),
    "duplicate": ("MAR023", lambda: _zip([("a.py", b"1"), ("a.py", b"2")])),
    "second manifest": ("MAR023", lambda: _zip([("MAR-INF/MANIFEST.json", b"{}")])),
    "case": ("MAR023", _names("Handler.py", "handler.py")),
    "case of a folder": ("MAR023", _names("mar-inf/MANIFEST.json")),
    "composed letters": ("MAR023", _names("caf\u00e9.py", "cafe\u0301.py")),
    "file as folder": ("MAR023", _names("a", "a/b")),
    "folder as file": ("MAR023", _names("a/", "a")),
    "ratio bomb": ("MAR024", _ratio_bomb),
    "count bomb": ("MAR024", lambda: _zip([(f"{n}", b"") for n in range(10_001)])),
    "encrypted": ("MAR025", _central(8, b"\1\0")),
    "another method": ("MAR025", _central(10, b"\x0c\0")),
    "bzip2": ("MAR020", lambda: _zip([("a", b"x" * 99)], zipfile.ZIP_BZIP2)),
    "lzma": ("MAR020", lambda: _zip([("a", b"x" * 99)], zipfile.ZIP_LZMA)),
    "trailing data": ("MAR026", lambda: _zip([]) + b"MZ" * 50),
    "leading data": ("MAR026", lambda: b"#!/bin/sh\n" + _zip([])),
    "data between": ("MAR026", _gap),
    "another name in front": ("MAR026", _patched(b"weights.pt", b"evil_ab.py")),
    "another size in front": ("MAR026", _local(22, b"\1\0\0\0")),
    "another checksum": ("MAR026", _central(16, b"\0\0\0\0")),
    "another method in front": ("MAR026", _local(8, b"\x08\0")),
    "size that is not there": ("MAR024", _claimed_size),
    "overlap": ("MAR026", _central(42, b"\0\0\0\0")),
    "changed content": ("MAR026", _patched(b"weightsweights", b"weightzweights")),
    "cut off": ("MAR020", lambda: _zip([("weights.pt", b"x" * 999)])[:600]),
    "no zip": ("MAR020", lambda: b"\x1f\x8b" + b"x" * 99),
    "empty": ("MAR020", lambda: b""),
    "broken directory": ("MAR020", _central(0, b"PKxx")),
    "link of another system": ("MAR022", _foreign_link),
    "name for other programs": ("MAR026", _second_name),
    "shared content": ("MAR026", _overlapping),
    "two archives in one": ("MAR026", _two_ends),
    "version of the future": ("MAR020", _central(6, b"\x63\0")),
}


_writes: list[str] | None = None
_CHANGES = ("os.mkdir", "os.rename", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.remove", "shutil.",
            "tempfile.", "subprocess.", "os.exec", "os.fork", "os.posix_spawn", "os.system", "mmap.")  # fmt: skip


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _writes is None:
        return
    if event == "open" and isinstance(flags := arguments[2], int):
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND):
            _writes.append(f"open {arguments[0]}")
    elif event.startswith(_CHANGES):
        _writes.append(f"{event} {arguments}")


# The interpreter's own record of what is opened and made. A hook cannot be taken off again, so it has a switch.
sys.addaudithook(_watch)


@contextmanager
def _watched() -> Iterator[list[str]]:
    """Collect every file that this process opens for writing or makes, and every process that it starts."""
    global _writes
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    _writes = []
    try:
        yield _writes
    finally:
        _writes, sys.dont_write_bytecode = None, before


@pytest.fixture
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Write the hostile archive of the test."""
    path = tmp_path / "model.mar"
    path.write_bytes(HOSTILE[request.param][1]())
    return path


def test_there_are_forty() -> None:
    """There are hostile archives of each rule, forty and more."""
    assert len(HOSTILE) >= 40
    assert {rule for rule, _ in HOSTILE.values()} == {f"MAR02{number}" for number in range(7)}


def test_the_watch_sees_an_extraction(tmp_path: Path) -> None:
    """What the tests below count as writing is what unpacking does: they could fail."""
    path = tmp_path / "sound.mar"
    path.write_bytes(_zip([("net.pt", b"x")]))
    with _watched() as writes, zipfile.ZipFile(path) as sound:
        sound.extractall(tmp_path / "out")
    assert [write for write in writes if write.endswith("out/net.pt")]
    assert [write for write in writes if write.startswith("os.mkdir")]


@pytest.mark.parametrize(
    ("archive", "rule"), [(name, rule) for name, (rule, _) in HOSTILE.items()], indirect=["archive"]
)
class TestHostileArchive:
    """A hostile archive."""

    def test_is_refused_and_nothing_is_written(self, archive: Path, rule: str) -> None:
        """The rule is found, and until then nothing was opened for writing, made or started by this process."""
        before = sorted(archive.parent.iterdir())
        walking.rules()  # what is read once is read now
        with _watched() as writes:
            found = [finding.rule for finding in walking.lint([archive], Wishes(kind="mar")).findings]
        assert rule in found
        # Nothing else is looked at: what cannot be unpacked safely is not read any further.
        assert all(other.startswith("MAR02") for other in found)
        assert writes == []
        assert sorted(archive.parent.iterdir()) == before

    def test_is_refused_before_a_server_is_started(self, archive: Path, rule: str) -> None:
        """In an artifact's folder of models it ends a launch before anything is written or a runtime is asked."""
        (archive.parent / "models").mkdir()
        archive.rename(archive.parent / "models" / "model.mar")
        artifact = Artifact(root=archive.parent, digest="")
        nothing = cast("Any", None)  # no fleet, no backend, no runtime: whatever is asked for one would fail otherwise
        with _watched() as writes, pytest.raises(InputError, match=r"model\.mar"):
            launching.start(nothing, nothing, artifact, nothing)
        assert writes == []


def test_what_is_safe_may_be_launched(tmp_path: Path) -> None:
    """Sound archives, folders that are unpacked already and other files are nothing to refuse."""
    (tmp_path / "sound.mar").write_bytes(_zip([("net.pt", b"x")]))
    (tmp_path / "folder.mar").mkdir()
    (tmp_path / "readme").write_text("nothing to unpack")
    refuse_unsafe(tmp_path)
    refuse_unsafe(tmp_path / "nowhere")


def test_an_archive_of_another_name_is_told_by_its_bytes(tmp_path: Path) -> None:
    """No ending hides an archive."""
    (tmp_path / "weights").write_bytes(HOSTILE["parent"][1]())
    with pytest.raises(InputError, match="leaves the artifact"):
        refuse_unsafe(tmp_path)


def test_verify_archive_exits_one_and_names_the_rule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command refuses the hostile, takes the sound, and says what it cannot read."""
    hostile, sound = tmp_path / "hostile.mar", tmp_path / "sound.mar"
    hostile.write_bytes(HOSTILE["parent"][1]())
    sound.write_bytes(_zip([("net.pt", b"no pickle, but named as weights")]))
    assert cli.run(["verify-archive", str(hostile)]) == 1
    assert "MAR021" in capsys.readouterr().out
    assert cli.run(["verify-archive", str(sound)]) == 0
    assert cli.run(["verify-archive", "--strict", str(sound)]) == 1
    assert "MAR036" in capsys.readouterr().out
    assert cli.run(["verify-archive", str(tmp_path / "none.mar")]) == 2
    (tmp_path / "nothing").mkdir()
    assert cli.run(["verify-archive", str(tmp_path / "nothing")]) == 2


_EVIL = b"cposix\nsystem\n(S'true'\ntR."


def _torch_zip(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"archive/{name}.pkl", content)
    return buffer.getvalue()


_TENSOR = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n."
# What torch wrote before 1.6: a number, a version, the machine, the object, the keys, and then the numbers themselves.
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + b"\x80\x02M\xe9\x03." + b"\x80\x02}."
_KEYS = b"\x80\x02]." + b"\0\1" * 99


class TestHandler:
    """What a handler opens."""

    @pytest.mark.parametrize(
        "line",
        [
            "open('labels.json')",
            "open(os.path.join(context.system_properties['model_dir'], 'labels.json'))",
            "open(os.path.join(folder, 'labels.json'), encoding='utf-8')",
            "open(os.path.join(folder, 'data', 'labels.json'))",
            "(Path(folder) / 'labels.json').read_text()",
            "(Path(folder) / 'data' / 'labels.json').open()",
            "open(f'{folder}/labels.json')",
            "open(folder + '/labels.json')",
            "torch.load('labels.json')",
            "Path('labels.json').read_text()",
        ],
    )
    def test_must_be_in_the_archive(self, tmp_path: Path, line: str) -> None:
        """However the name is put together, the finding is on its line; with the file there is none."""
        head = "import os, torch\nfrom pathlib import Path\ndef handle(data, context):\n"
        body = f"    folder = context.system_properties.get('model_dir')\n    {line}\n    return [1 for _ in data]\n"
        found = self._opened(tmp_path, head + body)
        assert [(finding.line, "labels.json" in finding.what) for finding in found] == [(5, True)]
        assert self._opened(tmp_path, head + body, ("labels.json", b"{}"), ("data/labels.json", b"{}")) == []

    @pytest.mark.parametrize(
        "line",
        [
            "path = os.path.join(folder, 'a.json'); found = os.path.isfile(path) and open(path)",
            "found = os.path.exists(os.path.join(folder, 'a.json'))",
            "found = (Path(folder) / 'a.json').exists()",
            "open(os.path.join(folder, 'a.log'), 'w')",
            "(Path(folder) / 'a.log').write_text('x')",
            "open('/etc/hostname')",
            "open(os.path.join(folder, name))",
            "open(os.path.join(other, 'a.json'))",
        ],
    )
    def test_need_not_be_where_it_is_asked_for_or_made(self, tmp_path: Path, line: str) -> None:
        """Optional files, files that are written and files elsewhere are not missed."""
        head = "import os\nfrom pathlib import Path\ndef handle(data, context):\n"
        body = f"    folder = context.system_properties.get('model_dir')\n    {line}\n    return [1 for _ in data]\n"
        assert self._opened(tmp_path, head + body) == []

    @staticmethod
    def _opened(folder: Path, text: str, *members: tuple[str, bytes]) -> list[Finding]:
        path = folder / "m.mar"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("MAR-INF/MANIFEST.json", '{"model": {"modelName": "m", "handler": "h.py"}}')
            archive.writestr("h.py", text)
            for name, content in members:
                archive.writestr(name, content)
        return [finding for finding in walking.lint([path]).findings if finding.rule == "MAR040"]


class TestWeights:
    """Weights in an archive, walked and never read."""

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("weights.pt", _EVIL),
            ("weights.pt", _TENSOR + _EVIL),
            ("weights.pt", _torch_zip(data=_EVIL)),
            # Words of TorchScript in a pickle do not make it TorchScript.
            ("weights.pt", b"S'/code/ archive/constants.pkl'\n0" + _EVIL),
            ("weights.pt", _torch_zip(data=_EVIL, other_constants=b"N.")),
            ("weights.pt", _LEGACY + _EVIL + _KEYS),
            # No name hides one that is a pickle by its first bytes.
            ("vocabulary.txt", b"\x80\x04" + _EVIL),
            ("net.onnx", b"\x80\x02" + _EVIL),
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    def test_that_run_code_are_reported(self, tmp_path: Path, name: str, content: bytes, method: int) -> None:
        """What reading them would import is named, however the member is packed."""
        path = tmp_path / "m.mar"
        path.write_bytes(_zip([(name, content)], method))
        (found,) = [finding for finding in walking.lint([path]).findings if finding.rule == "MAR036"]
        assert found.file == f"{path}!/{name}"
        assert "posix.system" in found.what

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("weights.pt", _TENSOR),
            ("weights.pt", _torch_zip(data=_TENSOR)),
            # TorchScript: torch.load hands it to its reader in C++.
            ("weights.pt", _torch_zip(data=b"c__torch__\nNet\n.", constants=b"N.")),
            ("weights.pt", _LEGACY + _TENSOR + _KEYS),
            ("vocabulary.txt", b"the of and"),
            ("picture.bin", b"\x80\x02\xff\xff and so on"),
            ("tokens.zip", _torch_zip()),
        ],
    )  # fmt: skip
    def test_that_only_rebuild_tensors_are_not(self, tmp_path: Path, name: str, content: bytes) -> None:
        """Tensors, TorchScript and what is no pickle are nothing to report."""
        path = tmp_path / "m.mar"
        path.write_bytes(_zip([(name, content)]))
        assert "MAR036" not in [finding.rule for finding in walking.lint([path]).findings]

    def test_of_any_size_are_walked_where_they_lie(self, tmp_path: Path) -> None:
        """What lies in front of the last pickle costs no memory."""
        path = tmp_path / "m.mar"
        with (
            zipfile.ZipFile(path, "w") as archive,
            archive.open("weights.pt", "w") as member,
            zipfile.ZipFile(member, "w") as inner,  # type: ignore[arg-type]
        ):
            inner.writestr("archive/data/0", bytes(64 << 20))
            inner.writestr("archive/data.pkl", _EVIL)
        tracemalloc.start()
        try:
            found = [finding.rule for finding in walking.lint([path]).findings]
            assert tracemalloc.get_traced_memory()[1] < 16 << 20
        finally:
            tracemalloc.stop()
        assert "MAR036" in found


def test_any_damage_is_a_finding_or_nothing(tmp_path: Path) -> None:
    """An archive with any bytes changed gives findings of ours, never a traceback."""
    content = _zip(
        [("h.py", b"def handle(data, context): return list(data)"), ("w.pkl", b"ccollections\nOrderedDict\n(tR.")]
    )
    chance = random.Random(7)
    path = tmp_path / "m.mar"
    for _ in range(300):
        changed = bytearray(content)
        for _ in range(chance.randint(1, 4)):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        path.write_bytes(changed[: chance.randint(1, len(changed))] if chance.random() < 0.2 else changed)
        for finding in walking.lint([path]).findings:
            assert finding.rule.startswith(("MAR", "GEN", "TS"))

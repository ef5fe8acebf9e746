"""Manifests: the digest of every file, the same text for the same content, and what differs from it found."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servewright import digest
from servewright.digest import Digest, combined, digest_of_bytes, digest_of_file, read_digest
from servewright.errors import InputError
from servewright.manifest import FILE, Manifest, load_manifest, manifest_of, verify
from servewright.members import Members
from servewright.tree import assemble_tree, copy_tree

MEMBERS: dict[str, Path | bytes] = {"models/m/1/w.bin": b"weights", "config/flags": b"--x"}
NAMES = st.lists(st.text("abß-_.", min_size=1, max_size=5).filter(lambda part: part.strip(".")), min_size=1).map(
    "/".join
)


def made_of(members: Members, *, spec_digest: str = "s") -> Manifest:
    return manifest_of(members, backend="b", spec_digest=spec_digest, tool_version="0.1.0")


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """Give an artifact on disk."""
    assemble_tree(tmp_path / "artifact", MEMBERS | {FILE: made_of(MEMBERS).to_json().encode()})
    return tmp_path / "artifact"


class TestText:
    """A manifest is written and read."""

    def test_names_every_file_with_its_digest(self) -> None:
        """SHA-256 and size of every member stand in the text, beside what the artifact was made from."""
        document = json.loads(made_of({"a": b"abc"}).to_json())
        assert document == {
            "servewright_manifest": 1,
            "tool_version": "0.1.0",
            "backend": "b",
            "spec_digest": "s",
            "model_digest": digest_of_bytes(b"").sha256,
            "files": {"a": {"sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", "size": 3}},
        }

    def test_is_the_same_in_whatever_order_the_members_come(self) -> None:
        """The order of the members does not show."""
        assert made_of(MEMBERS).to_json() == made_of(dict(reversed(MEMBERS.items()))).to_json()

    @given(
        st.dictionaries(
            NAMES, st.builds(Digest, st.from_regex(r"[0-9a-f]{64}", fullmatch=True), st.integers(0)), max_size=5
        )
    )
    def test_is_read_back(self, files: dict[str, Digest]) -> None:
        """What was written is read back, or refused for its file names."""
        manifest = Manifest(backend="ß", tool_version="1", spec_digest="2", model_digest="3", files=files)
        try:
            assert Manifest.from_json(manifest.to_json()) == manifest
        except InputError as error:
            refusal = str(error)
            assert "file name" in refusal

    @pytest.mark.parametrize(
        "change",
        [
            lambda document: document.pop("files"),
            lambda document: document.update(servewright_manifest=2),
            lambda document: document.update(backend=3),
            lambda document: document.update(files=[]),
            lambda document: document["files"].update({"../x": {"sha256": "0" * 64, "size": 0}}),
            lambda document: document["files"].update({"x": {"sha256": "short", "size": 0}}),
            lambda document: document["files"].update({"x": {"sha256": "0" * 64, "size": -1}}),
        ],
    )
    def test_that_makes_no_sense_is_an_input_error(self, change: Callable[[dict[str, object]], object]) -> None:
        """A manifest with a part missing, of another version, or with a path that escapes, is refused."""
        document = json.loads(made_of(MEMBERS).to_json())
        change(document)
        with pytest.raises(InputError, match="is no manifest"):
            Manifest.from_json(json.dumps(document))

    @pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"a": 1, "a": 2}', "[" * 100_000, "3"])
    def test_that_is_none_is_an_input_error(self, text: str) -> None:
        """Other JSON, and what is no JSON, is refused."""
        with pytest.raises(InputError, match="is no manifest"):
            Manifest.from_json(text)

    def test_digest_stands_for_the_whole_artifact(self) -> None:
        """Another content or another spec gives another digest."""
        digests = {
            made_of(MEMBERS).digest,
            made_of(MEMBERS, spec_digest="t").digest,
            made_of(MEMBERS | {"config/flags": b"--y"}).digest,
            made_of(MEMBERS | {"models/m/1/w.bin": b"other"}).digest,
        }
        assert len(digests) == 4

    def test_model_digest_covers_the_models_alone(self) -> None:
        """Another configuration of the same models has the same model digest."""
        same = made_of(MEMBERS | {"config/flags": b"--y"})
        other = made_of(MEMBERS | {"models/m/1/w.bin": b"other"})
        assert same.model_digest == made_of(MEMBERS).model_digest != other.model_digest


class TestVerifying:
    """An artifact is held against its manifest."""

    def test_finds_nothing_in_what_was_just_written(self, artifact: Path) -> None:
        """A fresh artifact has no differences."""
        assert verify(artifact) == ()

    @pytest.mark.parametrize(
        ("change", "difference"),
        [
            (lambda root: (root / "config/flags").unlink(), ("config/flags", "missing")),
            (lambda root: (root / "config/flags").write_bytes(b"--y"), ("config/flags", "changed")),
            (lambda root: (root / "config/flags").write_bytes(b"--xyz"), ("config/flags", "changed")),
            (lambda root: (root / "config/more").write_bytes(b""), ("config/more", "added")),
            (lambda root: (root / "config/link").symlink_to("/"), ("config/link", "added")),
            (lambda root: os.mkfifo(root / "pipe"), ("pipe", "added")),
        ],
        ids=["missing", "same-size", "other-size", "added", "link", "pipe"],
    )
    def test_finds_every_change(
        self, artifact: Path, change: Callable[[Path], object], difference: tuple[str, str]
    ) -> None:
        """A file that is gone, changed or new is found, also when it changed within one tick of the clock."""
        change(artifact)
        assert [(found.file, found.kind) for found in verify(artifact)] == [difference]

    def test_does_not_follow_a_link_in_a_files_place(self, artifact: Path, tmp_path: Path) -> None:
        """A link with the right content behind it is still a difference: what it shows can change."""
        (artifact / "config/flags").rename(tmp_path / "flags")
        (artifact / "config/flags").symlink_to(tmp_path / "flags")
        assert [str(found) for found in verify(artifact)] == ["config/flags: is not a regular file"]

    def test_of_something_else_is_an_input_error(self, tmp_path: Path) -> None:
        """A directory without a manifest, or with a strange one, is no artifact."""
        with pytest.raises(InputError, match=r"is .* an artifact"):
            verify(tmp_path)
        (tmp_path / FILE).write_bytes(b"\xff")
        with pytest.raises(InputError, match="not UTF-8"):
            load_manifest(tmp_path)
        (tmp_path / FILE).unlink()
        os.mkfifo(tmp_path / FILE)
        with pytest.raises(InputError, match="not a file"):
            load_manifest(tmp_path)


class TestDigests:
    """Files are digested."""

    @pytest.fixture
    def settled(self, tmp_path: Path) -> Path:
        """Give a file that was last changed long ago."""
        path = tmp_path / "file"
        path.write_bytes(b"content" * 1_000_000)
        os.utime(path, (1_000_000, 1_000_000))
        return path

    @pytest.fixture
    def reads(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """Give the list of the reads made from now on."""
        seen: list[int] = []
        read = digest._read

        def count(descriptor: int) -> Digest:
            seen.append(descriptor)
            return read(descriptor)

        monkeypatch.setattr(digest, "_read", count)
        return seen

    def test_are_those_of_the_bytes(self, settled: Path) -> None:
        """A streamed digest equals the one of the content in memory."""
        assert digest_of_file(settled) == read_digest(settled) == digest_of_bytes(settled.read_bytes())

    def test_are_taken_once(self, settled: Path, tmp_path: Path, reads: list[int]) -> None:
        """A file that has not changed is not read again, under the name of a hard link neither."""
        digest_of_file(settled)
        assemble_tree(tmp_path / "t", {"linked": settled})
        assert digest_of_file(tmp_path / "t" / "linked") == digest_of_file(settled)
        assert len(reads) == 1

    def test_are_taken_again_after_a_change(self, settled: Path, reads: list[int]) -> None:
        """A changed file is read again."""
        before = digest_of_file(settled)
        settled.write_bytes(b"CONTENT" * 1_000_000)
        assert digest_of_file(settled) != before
        assert len(reads) == 2

    def test_of_a_file_just_written_are_not_remembered(self, tmp_path: Path) -> None:
        """Two contents of one size within one tick of the clock have two digests."""
        path = tmp_path / "file"
        seen = set()
        for byte in range(20):
            path.write_bytes(bytes([byte]))
            seen.add(digest_of_file(path).sha256)
        assert len(seen) == 20

    def test_of_an_archive_are_known_from_writing_it(self, tmp_path: Path, reads: list[int]) -> None:
        """What `write_zip` wrote is not read again for the manifest."""
        from servewright.archive import write_zip

        written = write_zip(tmp_path / "a.zip", {"a": b"1"})
        assert digest_of_file(tmp_path / "a.zip") == written
        assert reads == []

    def test_of_a_missing_file_are_an_input_error(self, tmp_path: Path) -> None:
        """A file that cannot be read is named."""
        with pytest.raises(InputError, match="missing cannot be read"):
            digest_of_file(tmp_path / "missing")

    @given(
        st.dictionaries(NAMES, st.binary(max_size=5), max_size=4),
        st.dictionaries(NAMES, st.binary(max_size=5), max_size=4),
    )
    def test_combine_without_regard_to_order_and_to_nothing_else(
        self, first: dict[str, bytes], second: dict[str, bytes]
    ) -> None:
        """The combined digest is equal exactly when names and contents are."""
        both = [
            combined({name: digest_of_bytes(content) for name, content in files.items()}) for files in (first, second)
        ]
        backwards = combined({name: digest_of_bytes(content) for name, content in reversed(first.items())})
        assert both[0] == backwards
        assert (both[0] == both[1]) == (first == second)


def test_a_copied_artifact_verifies_too(tmp_path: Path) -> None:
    """The manifest says nothing of how files came to their places."""
    copy_tree(tmp_path / "artifact", MEMBERS | {FILE: made_of(MEMBERS).to_json().encode()})
    assert verify(tmp_path / "artifact") == ()

"""Signatures prove that a folder or an archive is what was signed: no file changed, gone or new, and by that key."""

from __future__ import annotations

import base64
import json
import socket
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from servewright import cli
from servewright.errors import CheckFailedError, InputError

pytest.importorskip("model_signing")

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from servewright import signing

_PEM = serialization.Encoding.PEM


@dataclass(frozen=True, slots=True)
class Keys:
    """A pair of keys in files."""

    private: Path
    public: Path


def _keys(folder: Path, name: str, *, password: bytes = b"", curve: ec.EllipticCurve | None = None) -> Keys:
    key = ec.generate_private_key(curve or ec.SECP256R1())
    lock = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    keys = Keys(folder / f"{name}.pem", folder / f"{name}.pub")
    keys.private.write_bytes(key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, lock))
    public = key.public_key().public_bytes(_PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    keys.public.write_bytes(public)
    return keys


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    """Make a pair of keys."""
    return _keys(tmp_path, "key")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Write a small artifact."""
    folder = tmp_path / "dist"
    (folder / "models").mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    with zipfile.ZipFile(folder / "models" / "m.mar", "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", '{"model": {"modelName": "m", "handler": "image_classifier"}}')
    return folder


@pytest.fixture
def signature(model: Path, keys: Keys) -> Path:
    """Sign the artifact."""
    path = model.parent / "dist.sig"
    signing.sign(model, path, keys.private)
    return path


class TestSignature:
    """A signature."""

    def test_proves_what_was_signed(self, model: Path, signature: Path, keys: Keys) -> None:
        """Untouched, the folder is what was signed, wherever it was moved to."""
        moved = model.rename(model.parent / "elsewhere")
        signed = signing.verify(moved, signature, keys.public)
        assert signed.files == 2
        assert len(signed.key) == 64

    @pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
    def test_may_be_of_a_longer_key(self, model: Path, tmp_path: Path, curve: ec.EllipticCurve) -> None:
        """The curves of the format work."""
        keys = _keys(tmp_path, "long", curve=curve)
        assert signing.sign(model, tmp_path / "sig", keys.private) == signing.verify(
            model, tmp_path / "sig", keys.public
        )

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ("changed", "models/m.mar"),
            ("missing", "models/m.mar"),
            ("added", "models/evil.py"),
            ("added for git", ".gitattributes"),
            ("renamed", "models/n.mar"),
            ("linked", "link"),
        ],
    )
    def test_is_refused_after_a_change(self, model: Path, signature: Path, keys: Keys, change: str, said: str) -> None:
        """A file that is changed, gone, new, renamed or a link is named."""
        archive = model / "models" / "m.mar"
        if change == "changed":
            content = bytearray(archive.read_bytes())
            content[len(content) // 2] ^= 1
            archive.write_bytes(content)
        elif change == "missing":
            archive.unlink()
        elif change == "added":
            (model / "models" / "evil.py").write_text("import os")
        elif change == "added for git":
            (model / ".gitattributes").write_text("* filter=evil")
        elif change == "renamed":
            archive.rename(model / "models" / "n.mar")
        else:
            (model / "models" / "link").symlink_to("/etc/passwd")
        with pytest.raises(CheckFailedError, match=said):
            signing.verify(model, signature, keys.public)

    def test_of_another_key_is_refused(self, model: Path, signature: Path, tmp_path: Path) -> None:
        """Anybody can sign; whose key it is decides."""
        with pytest.raises(CheckFailedError, match="Key mismatch"):
            signing.verify(model, signature, _keys(tmp_path, "other").public)

    def test_that_claims_another_key_is_refused(self, model: Path, keys: Keys, tmp_path: Path) -> None:
        """A signature by another key that only says it is by this one is none."""
        other = _keys(tmp_path, "other")
        path = tmp_path / "sig"
        wanted = signing.sign(model, path, keys.private).key
        signing.sign(model, path, other.private)
        bundle = json.loads(path.read_text())
        bundle["verificationMaterial"]["publicKey"]["hint"] = wanted
        path.write_text(json.dumps(bundle))
        with pytest.raises(CheckFailedError):
            signing.verify(model, path, keys.public)

    def test_with_an_edited_list_is_refused(self, model: Path, signature: Path, keys: Keys) -> None:
        """The list of files is what is signed."""
        bundle = json.loads(signature.read_text())
        statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
        del statement["predicate"]["resources"][0]
        bundle["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
        signature.write_text(json.dumps(bundle))
        (model / "manifest.json").unlink()
        with pytest.raises(CheckFailedError):
            signing.verify(model, signature, keys.public)

    @pytest.mark.parametrize(
        "content", ["", "{}", "[]", "null", '{"verificationMaterial": {}}', "\0", '"' + "[" * 5000]
    )
    def test_that_is_none_is_refused(self, model: Path, keys: Keys, tmp_path: Path, content: str) -> None:
        """Whatever stands in the file, it is a refusal and no traceback."""
        path = tmp_path / "sig"
        path.write_text(content)
        with pytest.raises(CheckFailedError):
            signing.verify(model, path, keys.public)

    def test_may_lie_in_the_folder(self, model: Path, keys: Keys) -> None:
        """It leaves itself out, and nothing else."""
        path = model / "model.sig"
        signing.sign(model, path, keys.private)
        assert signing.verify(model, path, keys.public).files == 2
        (model / "other.sig").write_text("x")
        with pytest.raises(CheckFailedError, match=r"other\.sig"):
            signing.verify(model, path, keys.public)

    def test_of_one_archive(self, model: Path, keys: Keys, tmp_path: Path) -> None:
        """A single file is signed as well as a folder."""
        archive = model / "models" / "m.mar"
        signing.sign(archive, tmp_path / "m.sig", keys.private)
        assert signing.verify(archive, tmp_path / "m.sig", keys.public).files == 1
        archive.write_bytes(archive.read_bytes() + b"x")
        with pytest.raises(CheckFailedError):
            signing.verify(archive, tmp_path / "m.sig", keys.public)

    def test_needs_no_network(self, model: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
        """With a key of one's own, nothing is asked of anybody."""

        def refuse(*_: object, **__: object) -> socket.socket:
            raise AssertionError("a socket was opened")

        monkeypatch.setattr(socket, "socket", refuse)
        signing.sign(model, model.parent / "sig", keys.private)
        signing.verify(model, model.parent / "sig", keys.public)

    def test_is_read_by_the_format_s_own_program(self, model: Path, signature: Path, keys: Keys) -> None:
        """The library alone, without any of our code, verifies it."""
        import model_signing

        verifier = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=keys.public)
        verifier.verify(model, signature)


class TestSigning:
    """Signing."""

    def test_refuses_what_the_format_leaves_out(self, model: Path, keys: Keys) -> None:
        """What git keeps would not be covered, so they are not silently left out."""
        (model / ".gitignore").write_text("x")
        with pytest.raises(InputError, match=r"\.gitignore"):
            signing.sign(model, model.parent / "sig", keys.private)
        assert not (model.parent / "sig").exists()

    def test_refuses_links(self, model: Path, keys: Keys) -> None:
        """A link's target is nobody's promise."""
        (model / "link").symlink_to("/etc/hostname")
        with pytest.raises(InputError, match="link"):
            signing.sign(model, model.parent / "sig", keys.private)

    def test_refuses_keys_of_another_kind(self, model: Path, tmp_path: Path) -> None:
        """RSA, a text and nothing at all are no keys of the format."""
        path = tmp_path / "rsa.pem"
        key = rsa.generate_private_key(65537, 2048)
        path.write_bytes(key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
        for wrong in (path, model / "manifest.json", tmp_path / "nowhere", tmp_path):
            with pytest.raises(InputError):
                signing.sign(model, tmp_path / "sig", wrong)
        assert not (tmp_path / "sig").exists()

    def test_takes_a_key_with_a_password(
        self, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The password comes from a variable of the environment, and a wrong one is told."""
        keys = _keys(tmp_path, "locked", password=b"secret")
        words = ["sign", str(model), "--key", str(keys.private), "--password-env", "KEY_PASSWORD"]
        assert cli.run(words) == 2
        monkeypatch.setenv("KEY_PASSWORD", "wrong")
        assert cli.run(words) == 2
        assert "cannot sign" in capsys.readouterr().err
        monkeypatch.setenv("KEY_PASSWORD", "secret")
        assert cli.run(words) == 0
        signing.verify(model, tmp_path / "dist.sig", keys.public)


class TestCommand:
    """The commands."""

    def test_sign_and_verify(self, model: Path, keys: Keys, capsys: pytest.CaptureFixture[str]) -> None:
        """One signs, the other proves; a changed file makes the exit code 1."""
        assert cli.run(["sign", str(model), "--key", str(keys.private), "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        words = ["verify-archive", str(model), "--signature", told["signature"], "--public-key", str(keys.public)]
        assert cli.run(words) == 0
        assert "2 files by the key" in capsys.readouterr().out
        assert cli.run([*words, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["signature"] == {"files": 2, "key": told["key"]}
        (model / "manifest.json").write_text("{ }")
        assert cli.run(words) == 1
        assert "manifest.json" in capsys.readouterr().err

    def test_takes_both_or_none(self, model: Path, signature: Path, keys: Keys) -> None:
        """A signature without a key, a key without a signature, and a signature of two things prove nothing."""
        assert cli.run(["verify-archive", str(model), "--signature", str(signature)]) == 2
        assert cli.run(["verify-archive", str(model), "--public-key", str(keys.public)]) == 2
        both = ["--signature", str(signature), "--public-key", str(keys.public)]
        assert cli.run(["verify-archive", str(model), str(model), *both]) == 2
        assert cli.run(["verify-archive", str(model / "nowhere"), *both]) == 2

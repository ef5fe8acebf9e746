"""Sign what is shipped, and verify it, in the OpenSSF model-signing format, with a key of one's own.

The format is a Sigstore bundle around an in-toto statement that lists every file with its SHA-256. Sigstore's service,
its identities and its log are left out: neither signing nor verifying touches the network. The package
`model-signing` makes and reads the format (extra ``signing``); this is its one home here.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from servewright.errors import CheckFailedError, InputError, MissingExtraError
from servewright.staging import staged_file

_LARGEST_SIGNATURE: Final = 64 << 20
_GIT: Final = (".git", ".gitattributes", ".github", ".gitignore")
_TOLD: Final = 5  # files in one line of an error


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """What a signature covers: how many files, and the SHA-256 of the public key in PEM that it names."""

    files: int
    key: str


def sign(target: Path, signature: Path, private_key: Path, *, password: str | None = None) -> Signed:
    """Sign the file or every file of the folder ``target`` into the new file ``signature``.

    ``private_key`` is an elliptic curve key (P-256, P-384 or P-521) in PEM. A signature inside the folder leaves itself
    out. Raises InputError for what cannot be read, links and keys of another kind; MissingExtraError without the extra.
    """
    library = _library()
    _readable(target, "file or folder")
    _readable(private_key, "private key")
    if target.is_dir() and (left := sorted(name for name in _files(target, signature) if name.split("/")[0] in _GIT)):
        raise InputError(f"{target} holds {left[0]}, which the format leaves out of every signature; remove it first")
    inside = [signature.resolve().relative_to(target.resolve())] if _holds(target, signature) else []
    hashed = library.hashing.Config().set_ignored_paths(paths=inside)
    with tempfile.TemporaryDirectory(prefix="servewright-sign-") as folder:
        made = Path(folder) / "signature"
        try:
            with _quiet():
                # The library says text, and hands it to a function that takes bytes.
                secret: Any = password.encode() if password else None
                config = library.signing.Config().use_elliptic_key_signer(private_key=private_key, password=secret)
        except Exception as error:
            raise InputError(f"{private_key} cannot sign: {_said(error)}; it must be an EC key in PEM") from error
        try:
            with _quiet():
                config.set_hashing_config(hashed).sign(target, made)
        except (OSError, ValueError) as error:
            raise InputError(f"{target} cannot be signed: {_said(error)}") from error
        content = made.read_bytes()
    with staged_file(signature) as descriptor:
        os.write(descriptor, content)
    return _signed(json.loads(content))


def verify(target: Path, signature: Path, public_key: Path) -> Signed:
    """Prove that ``target`` is what was signed: every file, no other, none changed.

    Raises CheckFailedError where it is not, or the signature is not by this key; InputError for what cannot be read.
    """
    verifying = _library().verifying
    _readable(target, "file or folder")
    _readable(public_key, "public key")
    _readable(signature, "signature")
    if signature.stat().st_size > _LARGEST_SIGNATURE:
        raise InputError(f"{signature} has more than {_LARGEST_SIGNATURE} bytes: it is no signature")
    try:
        with _quiet():
            config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except Exception as error:
        raise InputError(f"{public_key} cannot verify: {_said(error)}; it must be an EC public key in PEM") from error
    try:
        with _quiet():
            config.verify(target, signature)
        bundle = json.loads(signature.read_bytes())
        named = _names(bundle)
    except Exception as error:
        raise CheckFailedError(f"{target} is not what {signature} was made of: {_said(error)}") from error
    # What the signature itself says to leave out is not proved by it.
    if extra := sorted(_files(target, signature) - named) if target.is_dir() else []:
        more = f" and {len(extra) - _TOLD} more" if len(extra) > _TOLD else ""
        raise CheckFailedError(f"{target} holds what {signature} does not cover: {', '.join(extra[:_TOLD])}{more}")
    return _signed(bundle)


def _library() -> Any:
    try:
        import model_signing
    except ImportError as error:
        raise MissingExtraError("model-signing", "signing", "signing and verifying signatures") from error
    return model_signing


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the library prints out of our own output."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def _readable(path: Path, what: str) -> None:
    if not path.exists():
        raise InputError(f"{path} does not exist; name a {what}")
    if path.is_dir() and "folder" not in what:
        raise InputError(f"{path} is a folder; name a {what}")


def _holds(folder: Path, path: Path) -> bool:
    return folder.is_dir() and path.resolve().is_relative_to(folder.resolve())


def _files(folder: Path, signature: Path) -> set[str]:
    """Return the names of all that is no folder below ``folder``, the signature itself left out."""
    own = signature.resolve()
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if (path.is_symlink() or not path.is_dir()) and path.resolve() != own
    }


def _statement(bundle: Any) -> Any:
    return json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))


def _names(bundle: Any) -> set[str]:
    """Return the files that a signature lists; parts of a large file count as that file."""
    predicate = _statement(bundle)["predicate"]
    names = [str(resource["name"]) for resource in predicate["resources"]]
    parts = predicate["serialization"]["method"] == "shards"
    return {name.rsplit(":", 2)[0] if parts else name for name in names}


def _signed(bundle: Any) -> Signed:
    return Signed(files=len(_names(bundle)), key=str(bundle["verificationMaterial"]["publicKey"]["hint"]))


def _said(error: Exception) -> str:
    """Return what an error of the library says; some say nothing but what they are."""
    return " ".join(str(error).split()) or type(error).__name__

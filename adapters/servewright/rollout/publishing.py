"""Publishing: a packaged version is put where a server looks for its models, whole or not at all, and taken away."""

from __future__ import annotations

import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

from servewright.digest import CHUNK, read_digest
from servewright.errors import InputError, PackagingError
from servewright.staging import staged_file, sync_directory, writing
from servewright.tree import copy_tree


def publish(source: Path, target: Path) -> None:
    """Copy the file or folder ``source`` to ``target``; nothing happens where it is there already.

    Raises `InputError` where something else bears that name, `PackagingError` where the disk does not take it.
    """
    if target.exists():
        if source.exists() and not same(source, target):
            raise InputError(f"{target} holds another model; give the spec a new version, or move that away")
        return
    if not source.exists():
        raise PackagingError(f"{source} is gone, and {target} was not written yet; roll back, and roll out again")
    if source.is_dir():
        copy_tree(target, {path.relative_to(source).as_posix(): path for path in _files(source)})
        return
    with staged_file(target) as descriptor, source.open("rb") as file:
        while chunk := memoryview(file.read(CHUNK)):
            while chunk:
                chunk = chunk[os.write(descriptor, chunk) :]
        os.fsync(descriptor)


def withdraw(target: Path) -> None:
    """Remove what was published: in one step for whoever looks, and nothing happens where it is gone."""
    aside = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")  # a name that a later writer sweeps
    with writing(target):
        try:
            target.rename(aside)
        except FileNotFoundError:
            return
        sync_directory(target.parent)
        if aside.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            with suppress(FileNotFoundError):
                aside.unlink()


def same(one: Path, other: Path) -> bool:
    """Tell whether two files, or two folders, hold the same."""
    if one.is_dir() != other.is_dir():
        return False
    if not one.is_dir():
        return read_digest(one) == read_digest(other)
    here = {path.relative_to(one): path for path in _files(one)}
    there = {path.relative_to(other): path for path in _files(other)}
    return here.keys() == there.keys() and all(read_digest(here[name]) == read_digest(there[name]) for name in here)


def check_writable(folder: Path) -> None:
    """Raise `InputError` where nothing can be put into ``folder``."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder of this machine; name the server's model store with store=FOLDER")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"nothing can be written to {folder}; the new version has to be put there: change its rights")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())

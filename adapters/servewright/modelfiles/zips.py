"""Zip archives read strictly, so that what is checked here is what the framework reads.

Python finds an archive behind foreign bytes and before others, even one that another holds: a file that was cut off
may end in the directory of an archive inside it.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_END = b"PK\x05\x06"
_END_BYTES = 22


@contextmanager
def opened(source: Path | IO[bytes]) -> Iterator[zipfile.ZipFile]:
    """Open an archive that fills its file and holds no name twice; raise `zipfile.BadZipFile` for any other."""
    with zipfile.ZipFile(source) as archive:
        entries = archive.infolist()
        assert archive.fp is not None
        size = archive.fp.seek(0, os.SEEK_END)
        end = _END_BYTES + len(archive.comment)
        archive.fp.seek(max(0, size - end))
        if archive.fp.read(len(_END)) != _END or (entries and min(entry.header_offset for entry in entries) != 0):
            raise zipfile.BadZipFile("its directory is not that of the whole file")
        names = [entry.filename for entry in entries]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise zipfile.BadZipFile(f"it holds {twice!r} twice")
        yield archive


def root(archive: zipfile.ZipFile) -> str:
    """Return the folder that holds everything in an archive of torch's, with its slash, or nothing."""
    names = archive.namelist()
    roots = {name.partition("/")[0] for name in names}
    return f"{roots.pop()}/" if len(roots) == 1 and all("/" in name for name in names) else ""

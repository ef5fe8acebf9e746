"""What the parts of a spec are made of: names, versions, paths and lists, each with its remedy where it is wrong."""

from __future__ import annotations

import re
import unicodedata
from pathlib import PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, WithJsonSchema

from servewright.complaints import NUMBER, TEXT, complaint, refusing, refusing_before, shown


class Part(BaseModel):
    """A piece of a spec: frozen, and no key is ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def path_inside(text: str) -> str:
    """Refuse a relative path that leaves the spec's folder; an absolute path says openly where it leads."""
    if not text:
        raise complaint("an empty path", "name a file")
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text):
        raise complaint(f"{shown(text)} has a control character in it", "rename the file")
    if "://" in text:
        raise complaint(
            f"{shown(text)} is a URL, and only local files can be read so far",
            "download it first and give the file's path",
        )
    path = PurePosixPath(text)
    depth = 0
    for part in path.parts:
        depth += -1 if part == ".." else 1
        if depth < (1 if path.is_absolute() else 0):
            raise complaint(
                f"{shown(text)} leaves the folder of the spec",
                "move the file beside the spec, or give its absolute path",
            )
    return text


FilePath = Annotated[str, AfterValidator(path_inside), Field(min_length=1, max_length=4096)]


def formed(pattern: str, reason: str, remedy: str, *, at_most: int = 128) -> tuple[AfterValidator, WithJsonSchema]:
    """Return what refuses a text that is not all of ``pattern`` or too long, and says so in the JSON Schema."""
    form = re.compile(pattern)
    wrong = refusing(lambda text: len(text) > at_most or not form.fullmatch(text), reason, remedy)
    return wrong, WithJsonSchema(
        {"type": "string", "pattern": f"^(?:{pattern})$", "maxLength": at_most, "description": remedy}
    )


_WORD = "[A-Za-z0-9][A-Za-z0-9_.-]*"
_WORD_REMEDY = "use letters, digits, '_', '-' and '.', a letter or digit first"
ModelName = Annotated[str, *formed(_WORD, "is not a name that every server takes", _WORD_REMEDY)]
Positive = Annotated[int, Field(ge=1, le=2**31 - 1)]
VersionNumber = Annotated[int, Field(ge=1, le=2**63 - 1)]
VersionText = Annotated[str, *formed(_WORD, "is not a version", _WORD_REMEDY, at_most=64)]
Version = Annotated[
    Annotated[VersionNumber, Tag(NUMBER)] | Annotated[VersionText, Tag(TEXT)],
    Discriminator(lambda version: TEXT if isinstance(version, str) else NUMBER),
    refusing_before(
        lambda version: isinstance(version, bool) or not isinstance(version, int | str),
        "is not a version", 'write a whole number, or a text in quotes, such as "1.0"',
    ),
]  # fmt: skip
Release = Annotated[str, *formed(r"[0-9]+(\.[0-9]+){0,3}", "is not a release", 'write it as "2.17"', at_most=32)]
LabelName = Annotated[str, *formed(r"[^/:\s]+", "is not a label", "use no blanks, '/' or ':'")]


def _sequence(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


AsTuple = BeforeValidator(_sequence)

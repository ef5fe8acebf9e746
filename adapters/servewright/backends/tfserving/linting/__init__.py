"""What the linter knows of TensorFlow Serving."""

from __future__ import annotations

from servewright.backends.tfserving import flags
from servewright.backends.tfserving.linting import commands, rules, texts
from servewright.linting.linter import Linter


def linter() -> Linter:
    """Return the rules, the kinds of files and the judge of commands."""
    return Linter(
        rules=(*rules.RULES, *commands.RULES), kinds=texts.KINDS, command=commands.check, releases=flags.TARGETS
    )

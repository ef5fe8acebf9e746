"""What the linter knows of TorchServe."""

from __future__ import annotations

from servewright.backends.torchserve.linting import (
    archive,
    archive_rules,
    commands,
    handler,
    manifest,
    model_config,
    properties,
    releases,
    rules,
)
from servewright.linting.linter import Linter


def linter() -> Linter:
    """Return the rules, the kinds of files and the judge of commands."""
    return Linter(
        rules=(*rules.RULES, *archive_rules.RULES, *commands.RULES),
        kinds=(manifest.KIND, *model_config.KINDS, handler.KIND, properties.KIND),
        binaries=(archive.KIND,),
        command=commands.check,
        releases=releases.RELEASES,
    )

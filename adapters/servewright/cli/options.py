"""Options that several commands share."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import click

# What cannot be read is said where it is read, with its reason.
PATH: Any = click.Path(path_type=Path, readable=False)


class _Address(click.ParamType[str]):
    """Where a server listens: ``host:port``."""

    name = "host:port"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+):[0-9]{1,5}", value):
            self.fail(f"{value!r} is not host:port", param, ctx)
        return str(value)


class Share(click.FloatRange):
    """A number within bounds; NaN is within none, though no comparison says so."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number; a usage error says what is wrong with it."""
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value!r} is no number", param, ctx)
        return number


ADDRESS = _Address()
CALLERS = click.IntRange(1, 100_000)

spec_argument = click.argument("spec", type=PATH)
backend_option = click.option(
    "-b", "--backend", help="The server: tfserving or torchserve; needed where the spec fits both."
)
environment_option = click.option(
    "--env", "environment", help="One of the fleet file's environments: what it says is laid over the rest."
)
shard_option = click.option("--shard", help="One of the servers that share the fleet's models.")
runtime_option = click.option(
    "-r",
    "--runtime",
    default="auto",
    show_default=True,
    help="How to run it: docker, process, embedded, or the first that works.",
)
image_option = click.option(
    "--image", help="For runtime docker: the image, by tag or digest (default: the server's official one)."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
strict_option = click.option("--strict", is_flag=True, help="Count checks that could not be made as failures.")
require_real_option = click.option("--require-real", is_flag=True, help="Fail on a stand-in of the server.")
trust_option = click.option(
    "--trust", is_flag=True, help="Run code that the model's file holds. Only for files whose author you know."
)

"""``python -m servewright.backends.tfserving.embedded``: the command line of ``tensorflow_model_server``."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from importlib import metadata

from servewright.backends.tfserving.embedded import EMULATED_VERSION, PRODUCT
from servewright.backends.tfserving.embedded.flags import FlagValueError, parse, usage
from servewright.backends.tfserving.embedded.log import log, say

_FAILED = 255


def main(argv: Sequence[str]) -> int:
    """Run the server and return its exit code."""
    try:
        line = parse(argv)
    except FlagValueError as error:
        if str(error) != "--help":
            log("E", "command_line_flags.cc", str(error))
        say(usage())
        return _FAILED
    if line.flags.version:
        say(f"TensorFlow ModelServer: {EMULATED_VERSION} ({PRODUCT}, a stand-in)")
        say(f"TensorFlow Library: {_library_version()}")
        return 0
    if line.unknown:
        say(f"unknown argument: {line.unknown[0]}\n{usage()}")
    from servewright.errors import MissingExtraError, ServewrightError

    try:
        from servewright.backends.tfserving.embedded.server import serve
    except ModuleNotFoundError as error:
        say(str(MissingExtraError(error.name or "a package", "tensorflow", "the embedded server")))
        return int(MissingExtraError.exit_code)
    try:
        asyncio.run(serve(line))
    except ServewrightError as error:
        say(f"Failed to start server. Error: {error}")
        return _FAILED
    return 0


def _library_version() -> str:
    try:
        return metadata.version("tensorflow")
    except metadata.PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # TensorFlow's threads may still run a model: leaving through the interpreter would wait for them.
    os._exit(code)

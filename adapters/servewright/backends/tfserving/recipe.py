"""What an image of the embedded TensorFlow Serving is made of: PyPI has no other server to put into one."""

from __future__ import annotations

from servewright.assets import asset_dir
from servewright.backend import Recipe, Site
from servewright.backends.tfserving import keys, running, texts
from servewright.fleet import Fleet
from servewright.requirements import pinned

# tensorflow-serving-api is left out: the server has its own messages.
_PACKAGES = ("tensorflow", "grpcio", "numpy", "orjson", "protobuf")
_PACKAGES_FOLDER = "/opt/server/lib/python*/site-packages"
_PROGRAM = f'#!/bin/sh\nexec /opt/server/bin/python -m {running.EMBEDDED} "$@"\n'


def recipe(fleet: Fleet | None, site: Site) -> Recipe:
    """Return what an image for ``fleet`` is made of, or one for any models that are mounted."""
    argv: tuple[str, ...] = (
        running.BINARY,
        f"--port={site.ports['grpc']}",
        f"--rest_api_port={site.ports['http']}",
        f"--model_config_file={site.config}/{texts.MODEL_CONFIG}",
    )
    return Recipe(
        title="servewright's stand-in for tensorflow_model_server",
        requirements=pinned(_PACKAGES),
        argv=running.plan(fleet, site).argv if fleet else argv,
        files={
            f"bin/{running.BINARY}": _PROGRAM.encode(),
            "healthcheck.py": (asset_dir("templates") / keys.NAME / "healthcheck.py").read_bytes(),
        },
        environment={
            "PATH": "/opt/servewright/bin:/opt/server/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            # By itself it listens on loopback, which in a container would be nobody's.
            "SERVEWRIGHT_EMBEDDED_BIND": site.host,
        },
        # The server loads TensorFlow's C library and none of its Python: headers and a compiler serve nobody here, and
        # compiling what is never imported would take longer than all the rest.
        steps=(f"rm -rf {_PACKAGES_FOLDER}/tensorflow/include {_PACKAGES_FOLDER}/clang",),
        uncompiled=("tensorflow", "keras", "pygments", "rich", "markdown", "setuptools", "pip"),
        own_code=True,
    )

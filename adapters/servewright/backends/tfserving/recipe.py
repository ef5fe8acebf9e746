"""What an image of the embedded TensorFlow Serving is made of: PyPI has no other server to put into one."""

from __future__ import annotations

from servewright.assets import asset_dir
from servewright.backend import Recipe, Site
from servewright.backends.tfserving import keys, running, texts
from servewright.fleet import Fleet
from servewright.requirements import pinned

# tensorflow-serving-api is left out: the server has its own messages.
_PACKAGES = ("tensorflow", "grpcio", "numpy", "orjson", "protobuf")
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
            running.BINARY: _PROGRAM.encode(),
            "healthcheck.py": (asset_dir("templates") / keys.NAME / "healthcheck.py").read_bytes(),
        },
        environment={
            "PATH": "/opt/server/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            # By itself it listens on loopback, which in a container would be nobody's.
            "SERVEWRIGHT_EMBEDDED_BIND": site.host,
        },
        steps=(f"install -m 755 /build/{running.BINARY} /opt/server/bin/",),
        own_code=True,
    )

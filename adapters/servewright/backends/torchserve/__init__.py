"""TorchServe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from servewright.assets import asset_dir
from servewright.backend import Backend, Capability, Site, Support
from servewright.backends.torchserve import keys, packing, payloads, recipe, running, settings, texts

if TYPE_CHECKING:
    from servewright.importing import Importer
    from servewright.linting.linter import Linter
    from servewright.rollout.plan import Rolling
    from servewright.tuning.knobs import Tuning


def _lint() -> Linter:
    """Return what the linter knows of this server; its checks are imported when they are asked for."""
    from servewright.backends.torchserve.linting import linter

    return linter()


def _tuning() -> Tuning:
    """Return what can be tuned; numpy is imported when it is asked for."""
    from servewright.backends.torchserve.knobs import TUNING

    return TUNING


def _rolling() -> Rolling:
    """Return how live servers are moved; imported when a rollout asks."""
    from servewright.backends.torchserve import rollout

    return rollout.rolling()


def _importing() -> Importer:
    """Return how configs, and what a live server tells, become specs."""
    from servewright.backends.torchserve.importing import IMPORTER

    return IMPORTER


BACKEND = Backend(
    name=keys.NAME,
    title="TorchServe",
    templates=asset_dir("templates") / keys.NAME,
    formats=("torchscript", "state_dict", "exported_program", "onnx"),
    targets=keys.TARGETS,
    runtimes=("docker", "process", "embedded"),
    options=lambda: settings.Options,
    home=Site(
        models="/home/model-server/model-store",
        config="/home/model-server/config",
        run="/home/model-server/run",
        host="0.0.0.0",  # noqa: S104  (inside a container, of which loopback alone is published)
        ports={"http": 8080, "management": 8081, "metrics": 8082, "grpc": 7070, "grpc_management": 7071},
    ),
    image="pytorch/torchserve",
    capabilities={
        "versions": Capability(Support.FULL),
        "labels": Capability(Support.UNSUPPORTED, "a model has one default version instead"),
        "handlers": Capability(Support.FULL),
        "live batching changes": Capability(Support.UNSUPPORTED, "a version is registered anew to change them"),
        "read back batching": Capability(Support.FULL),
    },
    explain=keys.explain,
    filters=texts.FILTERS,
    views=texts.views,
    parse=texts.parse,
    members=packing.members,
    plan=running.plan,
    program=running.program,
    connect=running.connect,
    ready=running.ready,
    identity=running.identity,
    signature=running.signature,
    read_back=running.read_back,
    concurrent=keys.queue,
    payloads=payloads.payloads,
    credentials=payloads.credentials,
    recipe=recipe.recipe,
    lint=_lint,
    importing=_importing,
    survey=running.survey,
    rolling=_rolling,
    tuning=_tuning,
)

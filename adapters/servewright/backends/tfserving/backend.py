"""TensorFlow Serving."""

from __future__ import annotations

from typing import TYPE_CHECKING

from servewright.assets import asset_dir
from servewright.backend import Backend, Capability, Site, Support
from servewright.backends.tfserving import flags, keys, packing, payloads, recipe, running, settings, texts

if TYPE_CHECKING:
    from servewright.importing import Importer
    from servewright.linting.linter import Linter
    from servewright.rollout.plan import Rolling
    from servewright.tuning.knobs import Tuning


def _lint() -> Linter:
    """Return what the linter knows of this server; its checks are imported when they are asked for."""
    from servewright.backends.tfserving.linting import linter

    return linter()


def _rolling() -> Rolling:
    """Return how live servers are moved; imported when a rollout asks."""
    from servewright.backends.tfserving import rollout

    return rollout.rolling()


def _tuning() -> Tuning:
    """Return what can be tuned; numpy is imported when it is asked for."""
    from servewright.backends.tfserving.knobs import TUNING

    return TUNING


def _importing() -> Importer:
    """Return how configs become specs."""
    from servewright.backends.tfserving.importing import IMPORTER

    return IMPORTER


BACKEND = Backend(
    name=keys.NAME,
    title="TensorFlow Serving",
    templates=asset_dir("templates") / keys.NAME,
    formats=("saved_model", "keras"),
    targets=flags.TARGETS,
    runtimes=("docker", "process", "embedded"),
    options=lambda: settings.Options,
    home=Site(models="/models", config="/config", run="/tmp", host="0.0.0.0", ports={"grpc": 8500, "http": 8501}),  # noqa: S104, S108  (inside a container, of which loopback alone is published)
    image="tensorflow/serving",
    capabilities={
        "versions": Capability(Support.FULL),
        "labels": Capability(Support.FULL),
        "handlers": Capability(Support.UNSUPPORTED, "the server runs the model's graph and nothing else"),
        "live batching changes": Capability(Support.UNSUPPORTED, "batching parameters are read at start only"),
        "read back batching": Capability(Support.UNSUPPORTED, "no call tells them; the process's own flags are read"),
    },
    explain=keys.explain,
    filters={"pbtxt": texts.pbtxt_string},
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
    concurrent=keys.in_flight,
    most_rows=keys.most_rows,
    called=texts.served_name,
    unable=keys.unable,
    asking=running.asking,
    payloads=payloads.payloads,
    recipe=recipe.recipe,
    lint=_lint,
    importing=_importing,
    survey=running.survey,
    tuning=_tuning,
    rolling=_rolling,
)

"""The demonstration from end to end: train, write specs, verify, send the whole test split, compare."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from servewright import launching, pipeline, writing
from servewright.backend import TRANSPORTS, Backend
from servewright.demo import digits as data
from servewright.fleet import Fleet
from servewright.reporting import Report

EXTRA = """
batching: {max_size: 16, max_delay: 2ms, queue: 256}
golden: [{inputs: golden/in.npz, outputs: golden/out.npz}]
slo: {p99: 50ms}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """The test split sent to one server over one transport; latencies in milliseconds, one picture a request."""

    backend: str
    server: str
    transport: str
    pictures: int
    accuracy: float
    accuracy_in_process: float
    p50_ms: float
    p99_ms: float

    @property
    def equal(self) -> bool:
        """Whether the served model is as good as the model in process, picture for picture."""
        return self.accuracy == self.accuracy_in_process


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A model in a folder, and its own scores for the test split, in process."""

    folder: Path
    model: Path
    scores: NDArray[np.float32]


def run(folder: Path, *, say: Callable[[str], None], show: Callable[[Report], None]) -> Iterator[Served]:
    """Yield what each server gives over each transport; ``folder`` receives the models, specs and samples."""
    split = data.load_digits()
    say(f"{len(split.train_images)} pictures to train on, {len(split.test_images)} to test with (UCI digits)")
    for train in (_torch, _keras):
        trained = train(folder, split, say)
        spec = _spec(trained, split)
        say(f"servewright init {trained.model} wrote {spec}")
        yield from _served(spec, trained, split, say, show)


def _torch(folder: Path, split: data.Digits, say: Callable[[str], None]) -> Trained:
    from servewright.demo import torch_training

    say("train the network in torch")
    home = _fresh(folder / "torch")
    net = torch_training.train(split)
    model = torch_training.write_torchscript(net, home, split.test_images)
    return Trained(folder=home, model=model, scores=torch_training.scores(net, split.test_images))


def _keras(folder: Path, split: data.Digits, say: Callable[[str], None]) -> Trained:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow greets in capitals
    from servewright.demo import keras_training

    say("train the same network in Keras")
    home = _fresh(folder / "keras")
    model = keras_training.train(split)
    saved = keras_training.write_saved_model(model, home)
    return Trained(folder=home, model=saved, scores=keras_training.scores(model, split.test_images))


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _spec(trained: Trained, split: data.Digits) -> Path:
    """Write the spec that `init` proposes, with batching and golden data added."""
    data.write_samples(trained.folder, split.test_images[:16], trained.scores[:16])
    example = trained.folder / "golden" / "in.npz"
    text, _ = pipeline.initial(
        [trained.model], name="digits", folder=trained.folder, example=example, code=None, format=None, trust=False
    )
    # TorchScript tells no names: `init` numbers its outputs, and we know better.
    text = text.replace("name: output,", "name: scores,") + EXTRA
    writing.write_texts({"digits.yaml": text}, trained.folder)
    return trained.folder / "digits.yaml"


def _served(
    spec: Path, trained: Trained, split: data.Digits, say: Callable[[str], None], show: Callable[[Report], None]
) -> Iterator[Served]:
    fleet = pipeline.load(spec)
    backend = pipeline.backend_for(fleet, None)
    say(f"servewright verify {spec}")
    report = pipeline.verify(fleet, backend, pipeline.Wishes())
    show(report)
    say(f"send the {len(split.test_images)} test pictures to {backend.title}, one by one")
    choice = launching.choose(backend, "auto")
    artifact = pipeline.package(fleet, backend, trained.folder / "artifact")
    server, client = launching.start(fleet, backend, artifact, choice)
    try:
        own = data.accuracy(trained.scores, split.test_labels)
        for transport in TRANSPORTS:
            scores, latencies_ms = _scores(client, fleet, split.test_images, transport)
            yield Served(
                backend=backend.name,
                server=_name(backend, client),
                transport=transport,
                pictures=len(scores),
                accuracy=data.accuracy(scores, split.test_labels),
                accuracy_in_process=own,
                p50_ms=float(np.percentile(latencies_ms, 50)),
                p99_ms=float(np.percentile(latencies_ms, 99)),
            )
    finally:
        client.close()
        server.stop()


def _name(backend: Backend, client: Any) -> str:
    identity = backend.identity(client)
    return f"{identity.name}{' (stand-in)' if identity.stand_in else ''}"


def _scores(
    client: Any, fleet: Fleet, images: NDArray[np.float32], transport: str
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return the served scores, and how long each request took."""
    name = fleet.models[0].spec.name
    found, latencies_ms = [], []
    for index in range(len(images)):
        start = time.perf_counter()
        outputs = client.predict(name, {"image": images[index : index + 1]}, transport=transport)
        latencies_ms.append((time.perf_counter() - start) * 1000)
        found.append(outputs["scores"])
    return np.concatenate(found), np.array(latencies_ms)

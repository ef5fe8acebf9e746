"""What a model repository of TensorFlow Serving is made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from servewright.backend import Build, Content
from servewright.backends.tfserving import keys, texts
from servewright.errors import Problem, SpecError
from servewright.fleet import Fleet
from servewright.spec import ModelSpec, Signature
from servewright.specfile import Document


def members(fleet: Fleet, rendered: Mapping[str, str], build: Build) -> dict[str, Content]:
    """Return the content of ``models/``; a Keras model is exported into the build's folder first."""
    problems = [problem for document in fleet.models for problem in _absent_versions(document)]
    if problems:
        raise SpecError(problems)
    found: dict[str, Content] = {}
    for document in fleet.models:
        found |= _model(document, rendered, build)
    return found


def _absent_versions(document: Document) -> Iterator[Problem]:
    """Yield a problem for each label of a version that the artifact will not hold: its server would never know it."""
    spec = document.spec
    for label, version in spec.versions.labels.items():
        if version != spec.version:
            yield document.problem(
                ("versions", "labels", label),
                f"label {label!r} names version {version}, and only {spec.version} is packaged",
                f"point it at {spec.version}; render alone writes configs for versions that a fleet already has",
            )


def _model(document: Document, rendered: Mapping[str, str], build: Build) -> Mapping[str, Content]:
    from servewright.backends.tfserving.repository import version_members

    spec = document.spec
    assert isinstance(spec.version, int)  # keys.explain refuses the spec otherwise
    return version_members(
        spec.name,
        spec.version,
        _saved_model(document, build),
        warmup=_warmup(document) if keys.options(spec).warmup else None,
        batching=rendered.get(f"{spec.name}/{texts.PER_MODEL}"),
    )


def _saved_model(document: Document, build: Build) -> Path:
    spec = document.spec
    source = spec.source(keys.NAME)
    assert source is not None  # keys.explain refuses the spec otherwise
    path = document.resolve(source.path)
    if source.format == "saved_model":
        return path
    from servewright.modelfiles.keras import export_saved_model

    target = build.folder / f"{spec.name}.saved_model"
    return export_saved_model(path, target, signature_name=spec.signature.name, trust=build.trust)


def made_up_fits(signature: Signature) -> bool:
    """Tell whether made-up inputs are likely to be ones that a model takes."""
    return all(
        tensor.dtype != "string" and tensor.shape is not None and None not in tensor.shape[1:]
        for tensor in signature.inputs
    )


def warmup_sizes(spec: ModelSpec) -> tuple[int, ...]:
    """Return the batch sizes to warm up: every allowed one, else one row and a full batch."""
    return spec.batching.allowed_sizes or tuple(sorted({1, spec.batching.max_size}))


def _warmup(document: Document) -> bytes | None:
    """Return one recorded request per batch size; the server runs them before it says AVAILABLE.

    A model that refuses one does not load. What is made up fits numbers of a known shape: not texts, which may be
    pictures in truth, and not open axes, which may have to be wider. Such models are warmed up with golden data alone.
    """
    from servewright.backends.tfserving.warmup import warmup_records
    from servewright.samples import batchable, fitting, load_npz, made_up

    spec = document.spec
    if not batchable(spec.signature):
        return None
    if spec.golden:
        golden = spec.golden[0].inputs
        sample = fitting(load_npz(document.resolve(golden)), spec.signature.inputs, what=f"golden {golden}")
    elif not made_up_fits(spec.signature):
        return None
    else:
        sample = made_up(spec.signature, 1, seed=0)
    return warmup_records(spec.signature, spec.name, warmup_sizes(spec), sample)

"""What every backend promises: stated once, held by whoever is found."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pytest

from servewright import registry
from servewright.backend import Artifact, Backend, Build, Fate, LaunchPlan, Outcome, Program, Support
from servewright.errors import SpecError, UnavailableError
from servewright.packaging import package
from servewright.rendering import outcomes, render
from servewright.spec import FORMATS, ModelSpec

if TYPE_CHECKING:
    from conftest import Workshop


def given_keys(spec: ModelSpec, backend: Backend) -> Iterator[str]:
    """Yield the dotted path of each value that a spec's author wrote and that concerns ``backend``."""
    for key in spec.model_fields_set - {"servewright", "options", "model", "target"}:
        yield from _leaves(getattr(spec, key), key)
    yield f"target.{backend.name}"
    for key, value in spec.options.get(backend.name, {}).items():
        yield from _leaves(value, f"{backend.name}.{key}")


def _leaves(value: object, path: str) -> Iterator[str]:
    if hasattr(value, "model_fields_set"):
        for key in value.model_fields_set:
            yield from _leaves(getattr(value, key), f"{path}.{key}")
    elif isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}")
    else:
        yield path


def covers(row: Outcome, key: str) -> bool:
    return key == row.key or key.startswith(f"{row.key}.")


class TestBackend:
    """A backend as a value."""

    def test_is_a_frozen_value_under_its_folders_name(self, backend: Backend) -> None:
        """Nobody can change a backend, and it is called as it is found."""
        assert registry.get(backend.name) is backend
        with pytest.raises(dataclasses.FrozenInstanceError):
            backend.name = "other"  # type: ignore[misc]

    def test_serves_formats_that_specs_know(self, backend: Backend) -> None:
        """A format that no spec can name would never be served."""
        assert backend.formats
        assert set(backend.formats) <= set(FORMATS)

    def test_gives_a_reason_for_what_it_cannot(self, backend: Backend) -> None:
        """The answers "the server cannot" and "not written yet" come with their reason."""
        assert backend.capabilities
        for capability in backend.capabilities.values():
            assert capability.support is Support.FULL or capability.reason

    def test_names_the_same_capabilities_as_every_other(self, backend: Backend) -> None:
        """A capability that one backend is silent about is neither there nor missing."""
        known = {name for each in registry.names() for name in registry.get(each).capabilities}
        assert set(backend.capabilities) == known

    def test_has_templates(self, backend: Backend) -> None:
        """The folder that it points at is there, also in a wheel."""
        assert list(backend.templates.glob("*.j2"))

    def test_knows_its_home(self, backend: Backend) -> None:
        """Its container has absolute folders, and ports for both transports."""
        assert all(folder.startswith("/") for folder in (backend.home.models, backend.home.config, backend.home.run))
        assert {"http", "grpc"} <= set(backend.home.ports)
        assert len(set(backend.home.ports.values())) == len(backend.home.ports)

    def test_refuses_options_that_it_does_not_know(self, workshop: Workshop, backend: Backend) -> None:
        """A misspelt setting of its own is refused at its place, with the nearest that it knows."""
        first = next(iter(backend.options().model_fields))
        fleet = workshop.fleet(workshop.values(backend, **{backend.name: {first + "x": {}}}))
        with pytest.raises(
            SpecError, match=rf"{backend.name}\.{first}x: unknown key '{first}x'; did you mean '{first}'\?"
        ):
            render(fleet, backend)


class TestExplaining:
    """What becomes of each key."""

    def test_accounts_for_every_key_of_a_rich_spec(self, workshop: Workshop, backend: Backend) -> None:
        """No key that somebody wrote is passed over in silence."""
        spec = workshop.document(workshop.rich_values(backend)).spec
        rows = outcomes(workshop.fleet(workshop.rich_values(backend)), backend)["digits"]
        assert [key for key in given_keys(spec, backend) if not any(covers(row, key) for row in rows)] == []

    @pytest.mark.parametrize(
        "handler",
        [
            {
                "use": "tensor",
                "dtype": "bfloat16",
                "compile": True,
                "labels": "labels.txt",
                "top_k": 3,
                "softmax": False,
            },
            {"use": "vision", "top_k": 2, "image": {"mode": "L", "size": [8, 8], "mean": [0.5], "std": [0.5]}},
            {"use": "text", "text": {"tokenizer": "labels.txt", "max_length": 9}},
            {"use": "mine.py", "script": True},
        ],
        ids=lambda handler: handler["use"],
    )
    def test_accounts_for_every_key_of_a_handler(
        self, workshop: Workshop, backend: Backend, handler: dict[str, Any]
    ) -> None:
        """Applied or not, each option of a handler is in the table."""
        for file in ("labels.txt", "mine.py"):
            (workshop.folder / file).write_text("")
        fleet = workshop.fleet(workshop.values(backend, handler=handler))
        rows = outcomes(fleet, backend)["digits"]
        keys = [key for key in given_keys(fleet.models[0].spec, backend) if key.startswith("handler")]
        assert [key for key in keys if not any(covers(row, key) for row in rows)] == []

    def test_accounts_for_every_setting_of_the_server(self, workshop: Workshop, backend: Backend) -> None:
        """A fleet's own settings are in the table too."""
        server = {
            "threads": 64,
            "bind": "loopback",
            "tokens": True,
            "model_api": False,
            "metrics": True,
            "poll": 1_000_000,
            "ports": {"grpc": 9001, "http": 9002},
        }
        fleet = workshop.fleet(workshop.values(backend), **(server | {"poll": "1s"}))
        keys = {row.key for row in outcomes(fleet, backend)["digits"]}
        assert {f"server.{name}" for name in server} <= keys

    def test_says_how_why_and_what_to_do(self, workshop: Workshop, backend: Backend) -> None:
        """Applied keys name the server's setting; others have a note; refused ones a remedy."""
        for row in outcomes(workshop.fleet(workshop.rich_values(backend)), backend)["digits"]:
            assert row.setting or row.note, row
            assert row.fate is not Fate.REFUSED, row
            assert row.fate is not Fate.NOT_APPLICABLE or (row.note and not row.setting), row

    def test_shows_values_as_they_were_written(self, workshop: Workshop, backend: Backend) -> None:
        """A duration is printed with its unit, not as microseconds."""
        rows = outcomes(workshop.fleet(workshop.rich_values(backend)), backend)["digits"]
        assert {row.value for row in rows if row.key == "batching.max_delay"} == {"5ms"}

    @pytest.mark.parametrize(
        ("changes", "key"),
        [
            ({"model": {"other": ...}}, "model"),
            ({"target": "0.0.1"}, "target"),
            ({"limits": {"response_timeout": "1.0005s"}}, "limits.response_timeout"),
        ],
        ids=["model of another backend", "release that never was", "timeout too fine"],
    )
    def test_refuses_what_no_server_does(
        self, workshop: Workshop, backend: Backend, changes: dict[str, Any], key: str
    ) -> None:
        """A refusal is an error with a remedy, and renders nothing."""
        others = [registry.get(name) for name in registry.names() if name != backend.name]
        if "target" in changes:
            changes = {"target": {backend.name: changes["target"]}}
        if "model" in changes:
            changes = {"model": {others[0].name: workshop.source(others[0].formats[0])}}
        fleet = workshop.fleet(workshop.values(backend, **changes))
        rows = [row for row in outcomes(fleet, backend)["digits"] if row.fate is Fate.REFUSED]
        assert rows
        assert all(row.key.startswith(key) and row.note and row.remedy for row in rows)
        with pytest.raises(SpecError):
            render(fleet, backend)


class TestPackaging:
    """Artifacts."""

    def test_holds_models_and_configs(self, workshop: Workshop, backend: Backend) -> None:
        """An artifact is what a server needs: the configs that were rendered, and models."""
        fleet = workshop.fleet(workshop.values(backend))
        artifact = package(fleet, backend, workshop.folder / "out")
        found = {path.relative_to(artifact.config).as_posix() for path in artifact.config.rglob("*") if path.is_file()}
        assert found == set(render(fleet, backend))
        assert any(artifact.models.iterdir())

    def test_gives_members_below_models(self, workshop: Workshop, backend: Backend) -> None:
        """A backend says what goes to the models' folder, and nothing else."""
        fleet = workshop.fleet(workshop.values(backend))
        members = backend.members(fleet, render(fleet, backend), Build(folder=workshop.folder))
        assert members
        assert all(path.startswith("models/") for path in members)


class TestPlanning:
    """How a server is started."""

    def test_is_data(self, workshop: Workshop, backend: Backend) -> None:
        """A plan can be printed and compared, and is the same for the same fleet."""
        fleet = workshop.fleet(workshop.rich_values(backend))
        plan = backend.plan(fleet, backend.home)
        assert isinstance(plan, LaunchPlan)
        assert plan == backend.plan(fleet, backend.home)
        assert plan.backend == backend.name
        assert plan.memory == 2 * 2**30
        assert plan.cpus == 2
        assert plan.ready_within_s >= 90

    def test_starts_with_a_plain_program(self, workshop: Workshop, backend: Backend) -> None:
        """A runtime finds the program: the plan names no path of this machine."""
        plan = backend.plan(workshop.fleet(workshop.values(backend)), backend.home)
        assert "/" not in plan.argv[0]
        assert all("\n" not in word for word in plan.argv)

    def test_names_its_image_by_release(self, workshop: Workshop, backend: Backend) -> None:
        """The image is the official one, of the release that the spec is for."""
        for release in backend.targets:
            values = workshop.values(backend, target={backend.name: release})
            repository, _, tag = backend.plan(workshop.fleet(values), backend.home).image.rpartition(":")
            assert repository == backend.image
            assert re.match(rf"{re.escape(release)}\.\d+", tag), "tags of whole releases alone never change"

    def test_finds_a_program_or_says_what_to_install(self, backend: Backend) -> None:
        """On any machine, each runtime on it works or says how to get it."""
        for runtime in backend.runtimes:
            if runtime != "docker":
                assert self._program_or_remedy(backend, runtime)

    @staticmethod
    def _program_or_remedy(backend: Backend, runtime: str) -> bool:
        try:
            found = backend.program(runtime)
        except UnavailableError as error:
            return "install" in str(error)
        return isinstance(found, Program) and bool(found.argv)


def test_a_flag_of_the_spec_beats_the_plans_own(workshop: Workshop) -> None:
    """Loads that fail are not retried, unless a spec asks for it: a flag given twice would lose one silently."""
    backend = registry.get("tfserving")
    for flags, wanted in (({}, "0"), ({"max_num_load_retries": 3}, "3")):
        fleet = workshop.fleet(workshop.values(backend, tfserving={"flags": flags}))
        words = [word for word in backend.plan(fleet, backend.home).argv if word.startswith("--max_num_load_retries")]
        assert words == [f"--max_num_load_retries={wanted}"]


def test_models_of_one_server_share_its_environment(workshop: Workshop) -> None:
    """Two specs that set one variable differently are refused: one of them would lose."""
    backend = registry.get("torchserve")
    one, two = (workshop.values(backend, name=f"m{text}", torchserve={"environment": {"A": text}}) for text in "xy")
    with pytest.raises(SpecError, match="one server has one value: make them equal"):
        backend.plan(workshop.fleet(one, two), backend.home)
    assert backend.plan(workshop.fleet(one, one | {"name": "other"}), backend.home).environment["A"] == "x"


def test_concurrency_is_bounded_by_the_queue(workshop: Workshop, backend: Backend) -> None:
    """No more requests are sent at once than the server takes in."""
    small = workshop.document(workshop.values(backend, batching={"max_size": 2, "max_delay": "1ms", "queue": 2})).spec
    large = workshop.document(workshop.values(backend, batching={"max_size": 2, "max_delay": "1ms", "queue": 200})).spec
    assert 2 <= backend.concurrent(small) < backend.concurrent(large)


def test_artifacts_know_their_folders(workshop: Workshop) -> None:
    """Models and configs lie below an artifact's root."""
    artifact = Artifact(root=workshop.folder, digest="sha256:0")
    assert (artifact.models, artifact.config) == (workshop.folder / "models", workshop.folder / "config")

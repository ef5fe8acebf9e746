"""What each backend declares to be tuned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from servewright import pipeline, registry
from servewright.backend import Backend, Transport
from servewright.errors import InputError
from servewright.rendering import render
from servewright.tuning import spec_text, tuner
from servewright.tuning.knobs import Demand, grid
from tuning_toys import subject_of

if TYPE_CHECKING:
    from conftest import Workshop


class TestKnobs:
    """What each backend declares."""

    def test_lead_to_specs_that_render(self, backend: Backend, workshop: Workshop) -> None:
        """Every setting of a grid is a spec that the renderer takes, and changes what is rendered."""
        assert backend.tuning is not None
        tuning = backend.tuning()
        path = workshop.write(workshop.values(backend))
        text = path.read_text()
        from servewright import pipeline, specfile

        fleet = pipeline.load(path)
        demand = Demand(waiting=64, cores=2)
        knobs = tuning.knobs(fleet.models[0].spec, demand)
        settings = grid(tuning, knobs, demand)
        assert len(settings) >= 30
        seen = set()
        for each in settings[:: len(settings) // 8]:
            changed = spec_text.changed(text, tuning.keys(each), file=str(path)).encode()
            document = specfile.parse(changed, folder=path.parent, file=str(path), backends=registry.names())
            seen.add(str(render(type(fleet)(name=fleet.name, models=(document,)), backend)))
        assert len(seen) > 4
        tuning.scheduler.policy(settings)

    def test_go_with_the_sizes_that_a_spec_allows(self, backend: Backend, workshop: Workshop) -> None:
        """They end with the greatest batch, whatever that is, or rendering refuses it."""
        batching = {"max_size": 32, "max_delay": "5ms", "allowed_sizes": [8, 16, 32]}
        subject = subject_of(workshop.write(workshop.values(backend) | {"batching": batching}), backend)
        demand, spec = Demand(waiting=64, cores=2), subject.document.spec
        every = grid(subject.tuning, subject.tuning.knobs(spec, demand), demand)
        alone = subject.tuning.alone(spec, demand)
        found, left_out = tuner.accepted(subject, [*every, alone], backends=registry.names())
        assert (len(found), left_out) == (len(every) + 1, "")
        for each in (every[0], every[-1], alone):
            batching = subject.with_settings(each, backends=registry.names()).models[0].spec.batching
            assert not batching.allowed_sizes or batching.allowed_sizes[-1] == batching.max_size

    @pytest.mark.parametrize(
        ("options", "least", "greatest"),
        [({"flags": {"grpc_max_threads": 32}}, 2, 16),
         ({"batching": {"enable_large_batch_splitting": True, "max_execution_batch_size": 32}}, 32, 64),
         ({"batching": {"pad_variable_length_inputs": True}}, 2, 64)],
    )  # fmt: skip
    def test_go_with_what_else_a_spec_says(
        self, options: dict[str, Any], least: int, greatest: int, workshop: Workshop
    ) -> None:
        """What rendering refuses beside it is not tried; batches are timed alone also where batching cannot be off."""
        backend = registry.get("tfserving")
        subject = subject_of(workshop.write(workshop.values(backend) | {"tfserving": options}), backend)
        demand, spec = Demand(waiting=64, cores=2), subject.document.spec
        every = grid(subject.tuning, subject.tuning.knobs(spec, demand), demand)
        found, left_out = tuner.accepted(subject, every, backends=registry.names())
        sizes = sorted({int(str(each["max_batch_size"])) for each in found})
        assert (sizes[0], sizes[-1]) == (least, greatest)
        assert bool(left_out) == (len(found) < len(every))
        alone = subject.tuning.alone(spec, demand)
        assert tuner.accepted(subject, [alone], backends=registry.names()) == ([alone], "")

    @pytest.mark.parametrize(("transport", "capped"), [("grpc", 39), ("http", None)])
    def test_tell_how_many_requests_the_server_takes(
        self, transport: Transport, capped: int | None, workshop: Workshop
    ) -> None:
        """A batch is simulated as what the spec's own flags let in, over the transport that is asked."""
        backend = registry.get("tfserving")
        values = workshop.values(backend) | {"tfserving": {"flags": {"grpc_max_threads": 40}}}
        subject = subject_of(workshop.write(values), backend)
        demand = Demand(waiting=64, cores=2, transport=transport)
        every = grid(subject.tuning, subject.tuning.knobs(subject.document.spec, demand), demand)
        assert {each.get("server_threads") for each in every} == {capped}
        assert set(subject.tuning.scheduler.policy(every).admitted.tolist()) == ({capped} if capped else {1 << 40})
        assert '"grpc_max_threads": 40' in subject.rewritten(every[-1])
        assert "server_threads" not in subject.rewritten(every[-1])

    def test_of_one_caller_are_accepted(self, backend: Backend, workshop: Workshop) -> None:
        """Without batches no delay is written, and that is no file laid over it."""
        subject = subject_of(workshop.write(workshop.values(backend)), backend)
        demand = Demand(waiting=1, cores=2)
        every = grid(subject.tuning, subject.tuning.knobs(subject.document.spec, demand), demand)
        assert tuner.accepted(subject, every, backends=registry.names()) == (every, "")

    def test_that_do_nothing_are_refused(self, workshop: Workshop) -> None:
        """A spec whose batching parameters are a text of their own cannot be tuned, and says so."""
        backend = registry.get("tfserving")
        text = "max_batch_size { value: 8 }\n"
        values = workshop.values(backend) | {"tfserving": {"files": {"batching_parameters.pbtxt": text}}}
        subject = subject_of(workshop.write(values), backend)
        demand = Demand(waiting=64, cores=1)
        every = grid(subject.tuning, subject.tuning.knobs(subject.document.spec, demand), demand)
        with pytest.raises(InputError, match="lays files over"):
            tuner.accepted(subject, every, backends=registry.names())

    @pytest.mark.parametrize(
        ("waiting", "why"), [(8, "no more than 8 requests"), (5000, "larger ones are never tried")]
    )
    def test_say_what_bounds_the_batch(self, waiting: int, why: str, backend: Backend, workshop: Workshop) -> None:
        """The load, or what is tried at all."""
        spec = pipeline.load(workshop.write(workshop.values(backend))).models[0].spec
        demand = Demand(waiting=waiting, cores=4)
        size = next(each for each in tuner.tuning_of(backend).knobs(spec, demand) if each.key == "batching.max_size")
        assert why in size.left_out

    def test_are_bounded_by_the_load(self, backend: Backend, workshop: Workshop) -> None:
        """A batch that the callers can never fill is not tried, and each knob says what it leaves out."""
        assert backend.tuning is not None
        from servewright import pipeline

        spec = pipeline.load(workshop.write(workshop.values(backend))).models[0].spec
        tuning = backend.tuning()
        for waiting in (1, 8, 64):
            knobs = tuning.knobs(spec, Demand(waiting=waiting, cores=2))
            sizes = next(knob.values for knob in knobs if knob.key == "batching.max_size")
            assert max(size for size in sizes if isinstance(size, int)) == waiting
            assert all(knob.values or knob.left_out for knob in knobs)

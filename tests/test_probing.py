"""Probing without a server: comparing, samples, and what each check makes of an answer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from servewright import registry
from servewright.backend import Identity, Reading
from servewright.comparing import Tolerance, difference, misfit, stranger
from servewright.errors import InputError, MissingExtraError, ModelFileError, ServerAnswerError, UnavailableError
from servewright.probing import batching_by_value, identity_check, probe, tolerance
from servewright.reporting import Check, Status
from servewright.samples import batchable, different, fits, fitting, load_npz, made_up, np_dtype, shown
from servewright.server import RunningServer
from servewright.spec import DTYPES, Signature, TensorSpec

if TYPE_CHECKING:
    from conftest import Workshop

CLOSE = Tolerance(rtol=1e-4, atol=1e-5)
NUMBERS = [dtype for dtype in DTYPES if dtype not in ("string", "bfloat16")]


def array(*values: Any, dtype: str = "float32") -> Any:
    return np.array(values, dtype)


def signature(dtype: str = "float32", shape: tuple[int | None, ...] | None = (None, 3)) -> Signature:
    tensors = (TensorSpec(name="x", dtype=dtype, shape=shape),)  # type: ignore[arg-type]
    return Signature(inputs=tensors, outputs=tensors)


class TestDifference:
    """The first difference between two answers, in words."""

    @pytest.mark.parametrize(
        ("found", "wanted", "said"),
        [
            (array(1.0), array(1.0), ""),
            (array(1.00005), array(1.0), ""),
            (array(1.001), array(1.0), "y[0] is 1.00"),
            (array(np.nan), array(np.nan), ""),
            (array(np.nan), array(1.0), "y[0] is nan instead of 1.0"),
            (array(np.inf), array(np.inf), ""),
            (array(np.inf), array(-np.inf), "y[0] is inf instead of -inf"),
            (array(1, dtype="int64"), array(2, dtype="int64"), "y[0] is 1 instead of 2"),
            (array(True, dtype="bool"), array(False, dtype="bool"), "y[0] is True instead of False"),
            (array(b"a", dtype="object"), array(b"b", dtype="object"), "y[0] is b'a' instead of b'b'"),
            (array(1j, dtype="complex64"), array(1.00001j, dtype="complex64"), ""),
            (array(1.0, 2.0), array(1.0), "y has shape [2] instead of [1]"),
            (array(1, dtype="int32"), array(1, dtype="int64"), "y is int32 instead of int64"),
            (array(), array(), ""),
            (np.float32(1.0).reshape(()), np.float32(2.0).reshape(()), "y[] is 1.0 instead of 2.0"),
        ],
        ids=str,
    )
    def test_says_what_where_and_how_many(self, found: Any, wanted: Any, said: str) -> None:
        """Shapes and dtypes come before values; floats have a tolerance, everything else has none."""
        text = difference({"y": found}, {"y": wanted}, CLOSE)
        assert text.startswith(said)
        assert bool(text) == bool(said)

    def test_counts_the_values_that_differ(self) -> None:
        """One wrong value of a thousand is another thing than a thousand."""
        wanted = np.zeros((10, 100), np.float32)
        found = wanted.copy()
        found[3, 7] = found[9, 99] = 1
        assert difference({"y": found}, {"y": wanted}, CLOSE) == (
            "y[3, 7] is 1.0 instead of 0.0 (2 of 1000 values differ by more than rtol 0.0001, atol 1e-05)"
        )

    def test_names_outputs_that_are_not_there(self) -> None:
        """An answer of other names is told by its names."""
        assert difference({"a": array(1)}, {"b": array(1)}, CLOSE) == "outputs ['a'] instead of ['b']"

    def test_compares_bfloat16(self) -> None:
        """A dtype that numpy does not have itself is compared by value."""
        bfloat16 = np_dtype("bfloat16")
        one, two = (np.array([value], np.float32).astype(bfloat16) for value in (1.0, 1.5))
        assert difference({"y": one}, {"y": one}, CLOSE) == ""
        assert difference({"y": one}, {"y": two}, CLOSE).startswith("y[0] is 1.0 instead of 1.5")

    @given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=9), st.floats(0, 0.5))
    def test_is_none_just_inside_the_tolerance(self, values: list[float], rtol: float) -> None:
        """The rule is atol + rtol * |wanted|, and nothing more."""
        wanted = np.array(values, np.float64)
        within = Tolerance(rtol=rtol, atol=1e-3)
        assert difference({"y": wanted + 0.999e-3}, {"y": wanted}, within) == ""
        assert difference({"y": wanted + 1.001e-3 + rtol * np.abs(wanted) * 1.001}, {"y": wanted}, within)


class TestMisfit:
    """How an answer breaks its signature."""

    @pytest.mark.parametrize(
        ("outputs", "said"),
        [
            ({"x": np.zeros((2, 3), np.float32)}, ""),
            ({"y": np.zeros((2, 3), np.float32)}, "outputs ['y'] instead of ['x']"),
            ({"x": np.zeros((2, 3), np.float64)}, "x is float64 instead of float32"),
            ({"x": np.zeros((2, 4), np.float32)}, "x has shape [2, 4] instead of [any, 3]"),
            ({"x": np.zeros(3, np.float32)}, "x has shape [3] instead of [any, 3]"),
            ({"x": np.array([[b"a"] * 3], object)}, "x is string instead of float32"),
        ],
    )
    def test_is_told_by_name_dtype_and_shape(self, outputs: Any, said: str) -> None:
        """What a signature promises is checked of every answer."""
        assert misfit(outputs, signature()) == said

    def test_prints_shapes_as_people_say_them(self) -> None:
        """Any size is a word."""
        assert (shown(None), shown(()), shown((None, 3))) == ("any", "[]", "[any, 3]")
        assert fits((1, 2), None)
        assert fits((), ())
        assert not fits((2,), (3,))


class TestStranger:
    """Whose answer it is."""

    def test_is_who_is_nearer(self) -> None:
        """An answer nearer to a neighbour's than to its own has been mixed up."""
        answers = [{"y": array(float(index))} for index in range(4)]
        assert stranger({"y": array(2.1)}, 1, answers) == 2
        assert stranger({"y": array(1.1)}, 1, answers) is None

    def test_is_nobody_among_equals(self) -> None:
        """Equal answers cannot be told apart, and are not."""
        answers = [{"y": array(1.0)}, {"y": array(1.0)}]
        assert stranger({"y": array(1.0)}, 1, answers) is None

    def test_is_found_in_texts_and_not_by_shape(self) -> None:
        """Texts are near where they are equal; an answer of another shape is nobody's."""
        answers = [{"y": array(b"a", b"b", dtype="object")}, {"y": array(b"c", b"d", dtype="object")}]
        assert stranger({"y": array(b"c", b"d", dtype="object")}, 0, answers) == 1
        assert stranger({"y": array(b"c", dtype="object")}, 0, answers) is None


class TestSamples:
    """Inputs to send."""

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_made_up_fit_every_dtype(self, dtype: str) -> None:
        """Whatever a signature takes, there is something to send; the same for the same seed."""
        shape = (None, 2, None)
        found = made_up(signature(dtype, shape), 3, seed=1)["x"]
        assert found.shape == (3, 2, 5)
        assert found.dtype == np_dtype(dtype)
        assert (found == made_up(signature(dtype, shape), 3, seed=1)["x"]).all()
        assert (found != made_up(signature(dtype, shape), 3, seed=2)["x"]).any()

    @pytest.mark.parametrize(
        ("shape", "made"), [(None, (3,)), ((), ()), ((2, 3), (2, 3)), ((None,), (3,)), ((None, 0), (3, 0))]
    )
    def test_made_up_fit_every_shape(self, shape: Any, made: tuple[int, ...]) -> None:
        """Unknown rank, scalars, fixed batches and empty axes are all filled."""
        assert made_up(signature(shape=shape), 3, seed=1)["x"].shape == made

    @pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != "bool"])
    @pytest.mark.parametrize("rows", [1, 3])
    def test_different_differ(self, dtype: str, rows: int) -> None:
        """Requests that are sent together must not be alike: their answers could be exchanged unseen."""
        wide = signature(dtype, (None, 16))
        for known in (None, made_up(wide, rows, seed=500)):
            drawn = different(wide, known, 20, seed=1)
            assert all(request["x"].shape == (1, 16) and request["x"].dtype == np_dtype(dtype) for request in drawn)
            assert len({request["x"].tobytes() if dtype != "string" else str(request["x"]) for request in drawn}) == 20

    def test_different_are_fewer_where_there_are_no_more(self) -> None:
        """Of one boolean there are two values; of nothing, one."""
        assert len(different(signature("bool", (None, 1)), None, 20, seed=1)) == 2
        assert len(different(signature(shape=(None, 0)), None, 20, seed=1)) == 1

    def test_different_begin_with_the_rows_that_are_known(self) -> None:
        """Real data comes first, and what is mixed stays within it."""
        known = {"x": np.array([[0, 0], [10, 20]], np.float32)}
        drawn = [request["x"][0] for request in different(signature(shape=(None, 2)), known, 9, seed=1)]
        assert (np.array(drawn[:2]) == known["x"]).all()
        assert all((row >= 0).all() and (row <= (10, 20)).all() for row in drawn)

    def test_batchable_are_signatures_that_grow(self) -> None:
        """Every input and output must have the batch for its first axis."""
        assert batchable(signature())
        assert batchable(signature(shape=None))
        assert not batchable(signature(shape=(2, 3)))
        assert not batchable(signature(shape=()))


class TestFitting:
    """Recorded arrays and the signature."""

    def test_takes_texts_and_bfloat16_as_numpy_saves_them(self, tmp_path: Path) -> None:
        """Neither has a form of its own in an .npz: texts come as str or bytes, bfloat16 as float32 or two bytes."""
        narrow = np.array([[1.0, 2.0]], np.float32).astype(np_dtype("bfloat16"))
        np.savez(
            tmp_path / "a.npz", text=np.array([["ä"]]), raw=np.array([[b"a"]]), wide=narrow.astype("f4"), narrow=narrow
        )
        tensors = tuple(
            TensorSpec(name=name, dtype=dtype, shape=(None, None))  # type: ignore[arg-type]
            for name, dtype in (("text", "string"), ("raw", "string"), ("wide", "bfloat16"), ("narrow", "bfloat16"))
        )
        found = fitting(load_npz(tmp_path / "a.npz"), tensors, what="a")
        assert found["text"].tolist() == [["ä".encode()]]
        assert found["raw"].tolist() == [[b"a"]]
        assert found["wide"].dtype == found["narrow"].dtype == narrow.dtype
        assert (found["narrow"] == narrow).all()

    @pytest.mark.parametrize("dtype", NUMBERS)
    def test_takes_every_other_dtype_as_it_is(self, dtype: str) -> None:
        """An array of another dtype is not cast: the recording would say something else."""
        tensors = signature(dtype).inputs
        assert fitting({"x": np.zeros((1, 3), dtype)}, tensors, what="a")["x"].dtype == dtype
        other = "int8" if dtype != "int8" else "int16"
        with pytest.raises(InputError, match=f"a: x is {other}, the signature says {dtype}; convert the file"):
            fitting({"x": np.zeros((1, 3), other)}, tensors, what="a")


# -- the checks, over a model that is a function ---------------------------------------------------------------

Function = Callable[[Mapping[str, Any]], dict[str, Any]]


def double(inputs: Mapping[str, Any]) -> dict[str, Any]:
    flat = inputs["image"].reshape(len(inputs["image"]), -1)
    return {"scores": (flat[:, :10] * 2).astype(np.float32)}


class Served:
    """A client whose server is a function; ``http`` and ``grpc`` may behave differently."""

    def __init__(self, http: Function = double, grpc: Function | None = None) -> None:
        self.by = {"http": http, "grpc": grpc or http}
        self.asked: list[tuple[int, dict[str, Any]]] = []

    def predict(
        self, model: str, inputs: Mapping[str, Any], *, transport: str = "http", timeout_s: float = 30, **named: Any
    ) -> Any:
        """Return what the function makes of the inputs."""
        assert model == "digits"
        self.asked.append((len(inputs["image"]), named))
        return self.by[transport](inputs)


@contextmanager
def original(_: object) -> Iterator[Any]:
    yield type("Model", (), {"predict": staticmethod(double)})


def checks(workshop: Workshop, client: Served, reference_of: Any = original, **changes: Any) -> dict[str, Check]:
    """Return the checks of a small spec over ``client``, by name."""
    backend, endpoints = changes.pop("backend", BACKEND), changes.pop("endpoints", BOTH)
    fleet = workshop.fleet(workshop.values(TORCHSERVE, **changes))
    server = RunningServer(backend="x", runtime="none", endpoints=endpoints)
    found = list(probe(fleet, backend, server, client, reference_of=reference_of))
    assert len({check.name for check in found}) == len(found)
    return {check.name: check for check in found}


BOTH = {"http": "127.0.0.1:1", "grpc": "127.0.0.1:2"}
TORCHSERVE = registry.get("torchserve")
BACKEND = replace(
    TORCHSERVE,
    identity=lambda _: Identity(name="Function", version="1", stand_in=True),
    read_back=lambda *_: [],
    signature=lambda _, spec: spec.signature,
    concurrent=lambda _: 16,
)


class TestChecks:
    """What comes of each check."""

    def test_all_pass_where_all_is_right(self, workshop: Workshop) -> None:
        """Metadata, goldens, outputs, parity, repetition and batching, over both transports."""
        image = np.arange(2 * 64, dtype=np.float32).reshape(2, 1, 8, 8)
        np.savez(workshop.folder / "in.npz", image=image)
        np.savez(workshop.folder / "out.npz", **double({"image": image}))
        found = checks(workshop, Served(), golden=[{"inputs": "in.npz", "outputs": "out.npz"}])
        assert {check.status for check in found.values()} == {Status.PASS}
        assert list(found) == [
            "server",
            "metadata",
            "golden[0] over http",
            "golden[0] over grpc",
            "outputs over http",
            "outputs over grpc",
            "parity over http",
            "parity over grpc",
            "repeatable",
            "batching by value over http",
            "batching by value over grpc",
        ]
        assert found["golden[0] over http"].detail == "2 rows as recorded"
        assert found["batching by value over grpc"].detail == "16 different requests at once, each its own answer"

    def test_ask_only_where_there_is_an_address(self, workshop: Workshop) -> None:
        """Many fleets expose one transport; the other is said to be unproved."""
        client = Served(grpc=lambda _: pytest.fail("nobody gave an address of gRPC"))
        found = checks(workshop, client, endpoints={"http": "127.0.0.1:1"})
        unproved = found.pop("answers over grpc")
        assert (unproved.status, unproved.detail) == (Status.UNVERIFIABLE, "no address was given: --grpc")
        assert {check.status for check in found.values()} == {Status.PASS}
        assert not any("grpc" in name for name in found)

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "uint16", "complex64"])
    def test_leave_out_a_transport_that_cannot_carry_the_model(self, dtype: str, workshop: Workshop) -> None:
        """TensorFlow Serving's REST API answers 501 for such tensors, however right the model is."""
        tfserving = registry.get("tfserving")
        scores = {"name": "scores", "dtype": dtype, "shape": [None, 10]}
        spec = workshop.fleet(
            workshop.values(tfserving, signature={"inputs": workshop.SIGNATURE["inputs"], "outputs": [scores]})
        ).models[0].spec  # fmt: skip
        assert tfserving.unable(spec, "http") == f"the server's REST API takes and gives no {dtype}"
        assert tfserving.unable(spec, "grpc") == ""
        backend = replace(BACKEND, unable=lambda _, transport: "it has no word for it" if transport == "http" else "")
        found = checks(workshop, Served(lambda _: pytest.fail("it cannot be asked"), double), backend=backend)
        assert found.pop("answers over http").status is Status.UNVERIFIABLE
        assert {check.status for check in found.values()} == {Status.PASS}
        assert "repeatable" in found

    def test_asks_as_the_spec_says(self, workshop: Workshop) -> None:
        """For the signature that it names, and for no more rows at once than TensorFlow Serving takes."""
        image = np.arange(40 * 64, dtype=np.float32).reshape(40, 1, 8, 8)
        np.savez(workshop.folder / "in.npz", image=image)
        np.savez(workshop.folder / "out.npz", **double({"image": image}))
        tfserving = registry.get("tfserving")
        backend = replace(
            tfserving, identity=BACKEND.identity, read_back=BACKEND.read_back, signature=BACKEND.signature
        )
        values = workshop.values(
            tfserving, signature=workshop.SIGNATURE | {"name": "predict"}, batching={"max_size": 16},
            golden=[{"inputs": "in.npz", "outputs": "out.npz"}],
        )  # fmt: skip
        client, server = Served(), RunningServer(backend="x", runtime="none", endpoints=BOTH)
        found = list(probe(workshop.fleet(values), backend, server, client, reference_of=None))
        assert {check.status for check in found} == {Status.PASS}
        assert [rows for rows, _ in client.asked[:3]] == [16, 16, 8]
        assert max(rows for rows, _ in client.asked) == 16
        assert all(named == {"signature": "predict"} for _, named in client.asked)

    def test_fails_on_the_transport_that_is_wrong(self, workshop: Workshop) -> None:
        """A codec that loses precision on one transport does not spoil the other's checks."""
        lossy = Served(grpc=lambda inputs: {"scores": np.round(double(inputs)["scores"], 1)})
        found = checks(workshop, lossy)
        assert found["parity over http"].status is Status.PASS
        assert found["parity over grpc"].status is Status.FAIL
        assert "values differ by more than rtol" in found["parity over grpc"].detail

    def test_fails_where_the_golden_output_is_another(self, workshop: Workshop) -> None:
        """A recording that no longer holds is a failure with the first value that differs."""
        np.savez(workshop.folder / "in.npz", image=np.ones((1, 1, 8, 8), np.float32))
        np.savez(workshop.folder / "out.npz", scores=np.full((1, 10), 2.5, np.float32))
        found = checks(workshop, Served(), golden=[{"inputs": "in.npz", "outputs": "out.npz", "rtol": 0.01}])
        assert found["golden[0] over http"].status is Status.FAIL
        assert found["golden[0] over http"].detail.startswith("scores[0, 0] is 2.0 instead of 2.5 (10 of 10 values")

    def test_fails_where_answers_change(self, workshop: Workshop) -> None:
        """Dropout that was left on shows when the same request is sent twice."""
        random = np.random.default_rng(0)
        noisy = Served(lambda inputs: {"scores": double(inputs)["scores"] + random.normal(size=10).astype(np.float32)})
        found = checks(workshop, noisy)
        assert found["repeatable"].status is Status.FAIL
        assert "is dropout or another training-only layer on?" in found["repeatable"].detail

    def test_fails_where_a_batch_mixes_its_requests_up(self, workshop: Workshop) -> None:
        """Each concurrent request must get its own answer, and not its neighbour's."""
        found = checks(workshop, Served(Exchanging()), reference_of=None)
        assert found["batching by value over http"].status is Status.FAIL
        assert "differs from itself alone" in found["batching by value over http"].detail

    def test_cannot_batch_without_a_batch_axis(self, workshop: Workshop) -> None:
        """A signature of fixed shape is said to be unverifiable, and does not fail."""
        spec = workshop.document(workshop.values(TORCHSERVE)).spec
        fixed = spec.model_copy(update={"signature": signature(shape=(1, 3))})
        found = batching_by_value(fixed, BACKEND, Served(), None, "http")
        assert (found.status, found.detail) == (Status.UNVERIFIABLE, "the signature has no batch axis")

    @pytest.mark.parametrize(
        ("error", "status"),
        [
            (ServerAnswerError(500, "boom"), Status.FAIL),
            (MissingExtraError("grpcio", "grpc", "gRPC"), Status.UNVERIFIABLE),
        ],
    )
    def test_turn_errors_into_results(self, workshop: Workshop, error: Exception, status: Status) -> None:
        """A server's error fails the check that met it; a package that is missing here leaves it open."""

        def fail(_: object) -> Any:
            raise error

        found = checks(workshop, Served(grpc=fail))
        for name in ("outputs over grpc", "parity over grpc", "batching by value over grpc"):
            assert (found[name].status, found[name].detail) == (status, str(error))
        assert found["parity over http"].status is Status.PASS

    @pytest.mark.parametrize(
        ("error", "status"),
        [(UnavailableError("no torch"), Status.UNVERIFIABLE), (ModelFileError("broken"), Status.FAIL)],
    )
    def test_of_parity_need_the_original(self, workshop: Workshop, error: Exception, status: Status) -> None:
        """Where the original cannot be run here parity stays open; where it is broken, it fails."""

        @contextmanager
        def broken(_: object) -> Iterator[Any]:
            raise error
            yield

        found = checks(workshop, Served(), reference_of=broken)
        assert found["parity"].status is status
        assert str(error) in found["parity"].detail
        assert "parity" not in checks(workshop, Served(), reference_of=None)

    def test_of_metadata_compare_what_the_server_tells(self, workshop: Workshop) -> None:
        """Another signature fails with both; a server that tells none leaves it open, with its reason."""
        other = replace(BACKEND, signature=lambda *_: signature())
        found = checks(workshop, Served(), backend=other)["metadata"]
        assert found.status is Status.FAIL
        assert found.detail == "inputs are x: float32 [any, 3], the spec says image: float32 [any, 1, 8, 8]"
        silent = replace(BACKEND, signature=lambda *_: "no call tells one")
        assert checks(workshop, Served(), backend=silent)["metadata"] == Check(
            "metadata", Status.UNVERIFIABLE, "no call tells one"
        )

    def test_of_settings_compare_what_was_wanted_and_found(self, workshop: Workshop) -> None:
        """A setting that differs fails with both values and where it was read; one that cannot be read says why."""
        readings = [
            Reading(setting="batch", wanted=8, found=8, source="API"),
            Reading(setting="delay", wanted=5, found=100, source="API"),
            Reading(setting="threads", wanted=2, found=None, source="no call tells it"),
            Reading(setting="name", wanted="x", found="", source="API"),
        ]
        found = checks(workshop, Served(), backend=replace(BACKEND, read_back=lambda *_: readings))
        assert found["setting batch"] == Check("setting batch", Status.PASS, "8 (API)")
        assert found["setting delay"] == Check(
            "setting delay", Status.FAIL, "the server has 100, the spec says 5 (API)"
        )
        assert found["setting threads"].status is Status.UNVERIFIABLE
        assert found["setting threads"].detail == "wanted 2; no call tells it"
        assert found["setting name"].detail.startswith("the server has ''")

    def test_of_many_models_carry_their_names(self, workshop: Workshop) -> None:
        """In a fleet, each check says whose it is."""
        first, second = (workshop.values(TORCHSERVE, name=name) for name in ("digits", "other"))
        client = Served()
        client.predict = lambda _model, inputs, **_: double(inputs)  # type: ignore[method-assign]
        server = RunningServer(backend="x", runtime="none", endpoints=BOTH)
        found = probe(workshop.fleet(first, second), BACKEND, server, client, reference_of=original)
        names = [check.name for check in found]
        assert "digits: metadata" in names
        assert "other: metadata" in names


class Exchanging:
    """A server that gives the second of two concurrent requests the first one's answer."""

    def __init__(self) -> None:
        self._lock, self._waiting, self._last = threading.Lock(), 0, {"scores": np.zeros((1, 10), np.float32)}

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Answer one request."""
        own = double(inputs)
        with self._lock:
            self._waiting += 1
            alone = self._waiting == 1
        # Long enough for others to come while they are sent together, and for nobody when they are not.
        threading.Event().wait(0.01)
        with self._lock:
            self._waiting -= 1
            found, self._last = (own if alone else self._last), own
        return found


class TestIdentity:
    """What answers."""

    @pytest.mark.parametrize(
        ("stand_in", "require_real", "status"),
        [(False, True, Status.PASS), (True, False, Status.PASS), (True, True, Status.FAIL)],
    )
    def test_of_a_stand_in_fails_where_a_real_server_is_required(
        self, stand_in: bool, require_real: bool, status: Status
    ) -> None:
        """A stand-in proves only itself, and says so."""
        found = identity_check(Identity(name="S", version="1", stand_in=stand_in), require_real=require_real)
        assert found.status is status
        assert ("a stand-in: it proves only itself" in found.detail) is stand_in


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, Tolerance()),
        ({"handler": {"dtype": "bfloat16"}}, Tolerance(rtol=5e-2, atol=1e-2)),
        (
            {"golden": [{"inputs": "in.npz", "outputs": "out.npz", "rtol": 0.5, "atol": 0.25}]},
            Tolerance(rtol=0.5, atol=0.25),
        ),
    ],
)
def test_tolerance_is_the_specs(workshop: Workshop, changes: dict[str, Any], wanted: Tolerance) -> None:
    """The first golden says how close is close; a handler that computes in less is given more."""
    for name in ("in.npz", "out.npz"):
        workshop.arrays(name, rows=1)
    assert tolerance(workshop.document(workshop.values(TORCHSERVE, **changes)).spec) == wanted

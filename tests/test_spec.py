"""Specs: one that exists makes sense; quantities carry units, and print as they are read."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from servewright import units
from servewright.complaints import described
from servewright.quantities import Duration, Rate, Share, Size
from servewright.spec import DTYPES, FORMATS, Limits, ModelSource, ModelSpec, Signature, Specific, TensorSpec

SIGNATURE = {
    "inputs": [{"name": "x", "dtype": "float32", "shape": [None, 4]}],
    "outputs": [{"name": "y", "dtype": "float32", "shape": [None]}],
}


def values(**changes: Any) -> dict[str, Any]:
    model = {"path": "model.pt", "format": "torchscript"}
    return {"name": "m", "model": model, "signature": SIGNATURE} | changes


def spec(**changes: Any) -> ModelSpec:
    return ModelSpec.model_validate(values(**changes))


def complaints(**changes: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        spec(**changes)
    return "\n".join(
        f"{'.'.join(map(str, path))}: {reason}; {remedy}" for path, reason, remedy in described(caught.value, ModelSpec)
    )


class TestModelSpec:
    """What a spec holds."""

    def test_has_a_default_for_all_but_name_model_and_signature(self) -> None:
        """The smallest spec says what is served; everything else has a value that serves it plainly."""
        found = spec()
        assert (found.version, found.workers, found.device, found.batching.max_size) == (1, 1, "cpu", 1)
        assert {name for name, field in ModelSpec.model_fields.items() if field.is_required()} == {
            "name",
            "model",
            "signature",
        }

    def test_is_frozen(self) -> None:
        """Nobody downstream can change a spec, or a part of one."""
        with pytest.raises(ValidationError, match="frozen"):
            spec().name = "other"  # type: ignore[misc]
        with pytest.raises(ValidationError, match="frozen"):
            spec().batching.max_size = 2  # type: ignore[misc]

    def test_reads_back_from_its_own_json(self) -> None:
        """What a spec prints is a spec again, and the same one."""
        full = spec(
            version="1.0",
            batching={"max_size": 8, "max_delay": "1500us", "allowed_sizes": [4, 8], "queue": 9, "threads": 2},
            versions={"policy": {"specific": [1, 2]}, "labels": {"all": 1, "latest": 2}},
            limits={"memory": "2GiB", "request": 1000, "response_timeout": "1.5s", "cpus": 0.5},
            golden=[{"inputs": "a.npz", "outputs": "b.npz"}],
            slo={"p99": "50ms", "rate": "12k/m", "errors": "0.1%"},
            target={"x": "1.2"},
            handler={"use": "text", "text": {"tokenizer": "t.json"}},
        )
        again = ModelSpec.model_validate(full.model_dump(mode="json"))
        assert again == full
        assert again.batching.max_delay == 1500

    def test_gives_the_source_for_each_backend(self) -> None:
        """One model is every backend's; of several, each backend gets its own or none."""
        assert spec().source("anything") == ModelSource(path="model.pt", format="torchscript")
        several = spec(model={"a": {"path": "a.onnx", "format": "onnx"}})
        assert several.source("a") is not None
        assert several.source("b") is None

    @pytest.mark.parametrize("label", ["one", "all", "latest", "specific", "each"])
    def test_has_labels_of_any_word(self, label: str) -> None:
        """A wrong version is reported at its label, also where the label is a word of ours."""
        assert complaints(versions={"labels": {label: 0}}).startswith(f"versions.labels.{label}: 0 is too small")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"name": "a b"}, "name: 'a b' is not a name that every server takes; use letters, digits"),
    ({"name": ""}, "name: '' is not a name"),
    ({"name": "ä"}, "name: 'ä' is not a name"),
    ({"name": "m\n"}, r"name: 'm\n' is not a name"),
    ({"name": "x" * 129}, "is not a name"),
    ({"name": 7}, 'name: 7 is not a text; put it in quotes: "7"'),
    ({"version": 0}, "version: 0 is too small; write at least 1"),
    ({"version": -1}, "version: -1 is too small"),
    ({"version": 2**63}, "version: 9223372036854775808 is too large"),
    ({"version": 1.0}, 'version: 1.0 is not a version; write a whole number, or a text in quotes, such as "1.0"'),
    ({"version": True}, "version: True is not a version"),
    ({"version": "../x"}, "version: '../x' is not a version"),
    ({"model": []}, "model: [] is not a mapping; write key: value pairs"),
    ({"model": {}}, "model: {} is empty"),
    ({"model": {"path": "x"}}, "model.format: is missing; add it"),
    ({"model": {"pat": "x", "format": "onnx"}}, "model.pat: unknown key 'pat'; did you mean 'path'?"),
    (
        {"model": {"path": "x", "format": "tensorflow"}},
        "model.format: 'tensorflow' is not allowed; choose from saved_model",
    ),
    (
        {"model": {"path": "x", "format": "state_dict"}},
        "model: a state_dict holds weights only; name the network's class",
    ),
    ({"model": {"path": "x", "format": "onnx", "code": "n.py:N"}}, "model: code has no use for format onnx"),
    (
        {"model": {"path": "x", "format": "state_dict", "code": "net"}},
        "model: 'net' does not name a class; write file.py:ClassName",
    ),
    ({"model": {"path": "x", "format": "state_dict", "code": "../n.py:N"}}, "leaves the folder of the spec"),
    ({"model": {"path": "../x", "format": "onnx"}}, "model.path: '../x' leaves the folder of the spec; move the file"),
    ({"model": {"path": "a/../../x", "format": "onnx"}}, "leaves the folder"),
    ({"model": {"path": "/../x", "format": "onnx"}}, "leaves the folder"),
    ({"model": {"path": "", "format": "onnx"}}, "model.path: an empty path; name a file"),
    (
        {"model": {"path": "a\0b", "format": "onnx"}},
        r"model.path: 'a\x00b' has a control character in it; rename the file",
    ),
    ({"model": {"path": "a\nb", "format": "onnx"}}, r"'a\nb' has a control character"),
    ({"model": {"path": "s3://b/x", "format": "onnx"}}, "'s3://b/x' is a URL, and only local files can be read so far"),
    ({"signature": {"inputs": [], "outputs": []}}, "signature.inputs: [] is empty; write at least 1"),
    ({"workers": 0}, "workers: 0 is too small; write at least 1"),
    ({"workers": 10**6}, "workers: 1000000 is too large; write at most 1024"),
    ({"workers": "2"}, "workers: '2' is not a whole number"),
    ({"workers": 1.5}, "workers: 1.5 is not a whole number"),
    ({"workers": True}, "workers: True is not a whole number"),
    ({"device": "cuda:0"}, "device: 'cuda:0' is not a device; write cpu, gpu or gpu:0"),
    ({"batchin": {}}, "batchin: unknown key 'batchin'; did you mean 'batching'?"),
    ({"batching": {"max_size": 0}}, "batching.max_size: 0 is too small"),
    ({"batching": {"max_size": 10**30}}, "is too large; write at most 1048576"),
    ({"batching": {"max_delay": 5}}, "batching.max_delay: '5' has no unit; write a unit: 5ms, 2s"),
    ({"batching": {"max_delay": "5 mss"}}, "batching.max_delay: '5 mss' has an unknown unit 'mss'"),
    ({"batching": {"max_delay": "5 MS"}}, "did you mean 'ms'?"),
    ({"batching": {"max_delay": "-1ms"}}, "'-1ms' is negative"),
    ({"batching": {"max_delay": "1.5us"}}, "'1.5us' is not a whole number of microseconds"),
    ({"batching": {"max_delay": None}}, "batching.max_delay: None is not a quantity; write it with its unit: 5ms"),
    (
        {"batching": {"max_size": 2, "max_delay": "25h"}},
        "90000000000 microseconds is more than a day; write at most 24h",
    ),
    ({"batching": {"max_delay": "5ms"}}, "batching: a delay without batching does nothing; set max_size above 1"),
    (
        {"batching": {"max_size": 8, "allowed_sizes": [8, 4]}},
        "batching: allowed_sizes [8, 4] do not increase; sort them",
    ),
    ({"batching": {"max_size": 8, "allowed_sizes": [4, 4, 8]}}, "do not increase"),
    (
        {"batching": {"max_size": 8, "allowed_sizes": [4]}},
        "batching: the last of allowed_sizes is 4, but max_size is 8",
    ),
    ({"batching": {"max_size": 8, "queue": 4}}, "batching: a queue of 4 can never fill a batch of 8"),
    (
        {"versions": {"policy": "newest"}},
        "versions.policy: 'newest' is not a policy; write all, {latest: 2} or {specific: [1, 2]}",
    ),
    ({"versions": {"policy": {"latest": 0}}}, "versions.policy.latest: 0 is too small"),
    ({"versions": {"policy": {"specific": []}}}, "versions.policy.specific: [] is empty"),
    ({"versions": {"policy": {"specific": [1, 1]}}}, "versions.policy.specific: (1, 1) lists a version twice"),
    (
        {"versions": {"policy": {"specific": [1]}, "labels": {"a": 2}}},
        "versions: label 'a' names version 2, which the policy does not serve",
    ),
    ({"versions": {"labels": {"a b": 1}}}, "versions.labels.a b: 'a b' is not a label; use no blanks"),
    ({"limits": {"memory": "2 Gb"}}, "limits.memory: '2 Gb' has an unknown unit 'Gb'; did you mean 'GB'?"),
    ({"limits": {"memory": 0}}, "limits.memory: a limit of zero lets nothing through"),
    ({"limits": {"cpus": 0}}, "limits.cpus: 0 is too small; write more than 0"),
    ({"limits": {"cpus": float("nan")}}, "limits.cpus: nan is not a finite number"),
    (
        {"golden": [{"inputs": "a.npz", "outputs": "b.npz", "rtol": 1}]},
        "golden.0.rtol: 1 is too large; write less than 1.0",
    ),
    ({"golden": {"inputs": "a.npz", "outputs": "b.npz"}}, "is not a list; write a list: [...]"),
    ({"slo": {"rate": 200}}, "slo.rate: '200' is not a rate; write a rate: 200/s"),
    ({"slo": {"errors": "101%"}}, "slo.errors: '101%' is not a share; write a percentage: 0.1%"),
    ({"target": {"x": 2.17}}, 'target.x: 2.17 is not a text; put it in quotes: "2.17"'),
    ({"target": {"x": "latest"}}, "target.x: 'latest' is not a release; write it as \"2.17\""),
    ({"handler": {"use": "visoin"}}, "handler.use: no handler 'visoin'; did you mean 'vision'?"),
    ({"handler": {"use": "../mine.py"}}, "handler.use: '../mine.py' leaves the folder"),
    ({"handler": {"use": "text"}}, "handler: the text handler needs a tokenizer; add text:"),
    ({"handler": {"image": {}}}, "handler: the tensor handler takes no image; remove it, or say use: vision"),
    ({"handler": {"use": "vision", "image": {"std": [0]}}}, "handler.image.std.0: 0 is too small"),
    (
        {"handler": {"use": "vision", "image": {"mode": "L", "mean": [1, 2]}}},
        "handler.image: mean has 2 values; write one for each channel",
    ),
    ({"handler": {"compile": "yes"}}, "handler.compile: 'yes' is neither true nor false"),
    ({"servewright": 2}, "servewright: 2 is not allowed; choose from 1"),
]


@pytest.mark.parametrize(("changes", "said"), REFUSED, ids=[said[:60] for _, said in REFUSED])
def test_nonsense_is_refused_with_a_remedy(changes: dict[str, Any], said: str) -> None:
    """Every flaw names its key, the value, the reason, and what to write instead."""
    found = complaints(**changes)
    assert said in found
    assert all(line.rpartition("; ")[2] for line in found.splitlines()), "every complaint has a remedy"


class TestSignature:
    """Tensors and their shapes."""

    @pytest.mark.parametrize("shape", [None, [], [None], [None, 1, 8], [3, 0]])
    def test_takes_any_shape(self, shape: list[int | None] | None) -> None:
        """Unknown rank, scalars, any sizes and empty tensors are all shapes."""
        found = TensorSpec.model_validate({"name": "x", "dtype": "int8", "shape": shape})
        assert found.shape == (None if shape is None else tuple(shape))

    @pytest.mark.parametrize(
        ("tensor", "said"),
        [
            ({"shape": [-1, 3]}, "has a negative size; write null for any size"),
            ({"shape": [1.5]}, "1.5 is not a whole number"),
            ({"shape": ["a"]}, "'a' is not a whole number"),
            ({"shape": [float("nan")]}, "nan is not a whole number"),
            ({"shape": 3}, "3 is not a list"),
            ({"shape": [2**41]}, "is too large"),
            ({"dtype": "float"}, "'float' is not allowed; did you mean 'float"),
            ({"dtype": "double"}, "'double' is not allowed"),
            ({"dtype": None}, "None is not allowed"),
            ({"name": ""}, "'' is too short"),
        ],
    )
    def test_says_what_is_wrong_with_a_tensor(self, tensor: dict[str, Any], said: str) -> None:
        """Shapes of other tools (-1 for any size) and their names of dtypes are refused with what to write."""
        wrong = {"name": "x", "dtype": "float32", "shape": [None]} | tensor
        assert said in complaints(signature=SIGNATURE | {"inputs": [wrong]})

    def test_has_no_name_twice(self) -> None:
        """Two tensors of one name could not be told apart."""
        twice = SIGNATURE["inputs"] * 2
        assert "signature.inputs: 'x' is listed twice; give every tensor a name of its own" in complaints(
            signature=SIGNATURE | {"inputs": twice}
        )

    def test_keeps_the_order(self) -> None:
        """Models without names take their tensors by position."""
        tensors = [{"name": name, "dtype": "bool", "shape": None} for name in "zay"]
        found = Signature.model_validate({"inputs": tensors, "outputs": tensors})
        assert [tensor.name for tensor in found.inputs] == ["z", "a", "y"]


@pytest.mark.parametrize(
    ("kind", "parse", "texts"),
    [
        (
            Duration,
            units.parse_duration_us,
            ["5ms", "1.5s", " 250 us ", "2m", "1h", "0", ".5ms", "+1s", "1_000ms", "90min"],
        ),
        (Size, units.parse_size_bytes, ["2GiB", "64MiB", "500MB", "1024", "1 kB", "0", "3B"]),
        (Rate, units.parse_rate_per_s, ["200/s", "12k/m", "1.5M/h", "3 / min"]),
        (Share, lambda text: float(text.strip(" %")) / 100, ["0.1%", "100%", "0 %", "99.9%"]),
    ],
)
def test_quantities_read_their_units(kind: Any, parse: Any, texts: list[str]) -> None:
    """A quantity in a spec means what its text means, and is a plain number in Python."""
    adapter = TypeAdapter(kind)
    for text in texts:
        assert adapter.validate_python(text) == pytest.approx(parse(text), rel=1e-15)


class TestQuantitiesPrint:
    """The text that stands for a number in a digest, or in a spec that is written."""

    @given(st.integers(0, 24 * 3600 * 10**6))
    def test_durations_as_they_are_read(self, us: int) -> None:
        """A duration survives being printed."""
        assert self._again(Duration, us) == us

    @given(st.integers(0, 2**63 - 1))
    def test_sizes_as_they_are_read(self, size: int) -> None:
        """A size survives being printed."""
        assert self._again(Size, size) == size

    @given(st.just(0.0) | st.floats(1e-9, 1e15))
    def test_rates_as_they_are_read(self, rate: float) -> None:
        """A rate survives being printed, however many digits it has; there is no exponent in its text."""
        assert self._again(Rate, rate) == pytest.approx(rate, rel=1e-12)

    @given(st.integers(0, 100_000))
    def test_shares_as_they_are_read(self, thousandths: int) -> None:
        """A share survives being printed."""
        share = thousandths / 100_000
        assert self._again(Share, share) == pytest.approx(share, rel=1e-12)

    @staticmethod
    def _again(kind: Any, value: float) -> Any:
        adapter = TypeAdapter(kind)
        return adapter.validate_python(adapter.dump_python(value, mode="json"))


def test_names_of_dtypes_and_formats_are_listed_once() -> None:
    """Other modules take these lists for the whole truth."""
    assert len(set(DTYPES)) == len(DTYPES) == 16
    assert len(set(FORMATS)) == len(FORMATS) == 6
    assert Specific.model_validate({"specific": [3, 1]}).specific == (3, 1)
    assert Limits().memory is None

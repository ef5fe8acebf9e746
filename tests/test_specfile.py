"""Spec files: every problem at once, each with its place; fleets of them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from servewright import fleetfile, registry, specfile
from servewright.errors import InputError, Problem, SpecError
from servewright.fleet import Fleet
from servewright.spec import ModelSpec

if TYPE_CHECKING:
    from conftest import Workshop

TEXT = """\
servewright: 1
name: digits
model: {path: model_torchscript, format: torchscript}
signature:
  inputs:
    - {name: image, dtype: float32, shape: [null, 4]}
  outputs:
    - {name: scores, dtype: float32, shape: [null, 2]}
"""


def problems(workshop: Workshop, content: Any) -> tuple[Problem, ...]:
    with pytest.raises(SpecError) as caught:
        workshop.document(content)
    return caught.value.problems


def places(workshop: Workshop, content: Any) -> list[tuple[int, int, str]]:
    return [(problem.line, problem.column, problem.path) for problem in problems(workshop, content)]


class TestProblems:
    """What is wrong with a spec, and where."""

    def test_come_all_at_once_in_the_order_of_the_file(self, workshop: Workshop) -> None:
        """A spec with flaws of every sort, in its text and in its meaning, is corrected in one go."""
        text = TEXT.replace("null, 4", "-1, 4") + (
            "wrkers: 2\nbatching:\n  max_size: 4\n  queue: two\n  max_delay: 5\n"
            "versions: {labels: {stable: 0}}\nhandler: 1\n"
        )
        assert places(workshop, text) == [
            (6, 37, "signature.inputs[0].shape"),
            (9, 1, "wrkers"),
            (12, 3, "batching.queue"),
            (13, 3, "batching.max_delay"),
            (14, 21, "versions.labels.stable"),
            (15, 1, "handler"),
        ]

    def test_print_file_line_column_path_reason_and_remedy(self, workshop: Workshop) -> None:
        """The line is what compilers print, so that editors jump to it."""
        workshop.model("torchscript")
        (found,) = problems(workshop, TEXT + "batching: {max_sise: 3}\n")
        file = workshop.folder / "spec.yaml"
        assert str(found) == f"{file}:9:12: batching.max_sise: unknown key 'max_sise'; did you mean 'max_size'?"

    @pytest.mark.parametrize(
        ("added", "remedy"),
        [
            ("nam: x", "did you mean 'name'?"),
            ("tfservin: {}", "did you mean 'tfserving'?"),
            ("limits: {memori: 2GiB}", "did you mean 'memory'?"),
            ("threads: {intra-op: 2}", "did you mean 'intra_op'?"),
            ("golden: [{input: a.npz, outputs: a.npz}]", "did you mean 'inputs'?"),
            ("handler: {image: {sise: [1, 2]}, use: vision}", "did you mean 'size'?"),
            ("versions: {policy: {latest: 1, specifics: [1]}}", "did you mean"),
            ("slo: {zzz: 1}", "choose from errors, p50, p90, p99, rate"),
            ("options: {}", "name the backend itself: tfserving, torchserve"),
            ("target: {tfservng: '2.17'}", "did you mean 'tfserving'?"),
        ],
    )
    def test_of_a_misspelt_key_name_the_nearest(self, workshop: Workshop, added: str, remedy: str) -> None:
        """At every depth, the remedy comes from the keys that are allowed there."""
        workshop.model("torchscript")
        found = [problem for problem in problems(workshop, TEXT + added) if "is missing" not in problem.reason]
        assert found
        assert remedy in found[0].remedy

    def test_stand_at_the_nearest_place_where_a_key_is_missing(self, workshop: Workshop) -> None:
        """What is not there is reported where it should have been."""
        text = TEXT.replace("servewright: 1\n", "").replace(", dtype: float32, shape: [null, 4]", "")
        found = {path: (line, column) for line, column, path in places(workshop, text)}
        assert found == {
            "servewright": (1, 1),
            "signature.inputs[0].dtype": (5, 7),
            "signature.inputs[0].shape": (5, 7),
        }

    @pytest.mark.parametrize("text", ["[1, 2]", "digits", "3", "- a: 1"])
    def test_of_what_is_no_mapping(self, workshop: Workshop, text: str) -> None:
        """A spec is a mapping, and says so."""
        (found,) = problems(workshop, text)
        assert (found.line, found.column, found.reason) == (1, 1, "a spec is a mapping")
        assert found.remedy == "start with: servewright: 1"

    def test_of_unknown_backends_name_the_known_ones(self, workshop: Workshop) -> None:
        """A model for a backend that is not installed would never be served."""
        values = workshop.values(registry.get("torchserve"), model={"tensorrt": workshop.source("onnx")})
        (found,) = problems(workshop, values)
        assert found.path == "model.tensorrt"
        assert str(found).endswith("no backend 'tensorrt'; choose from tfserving, torchserve")

    @pytest.mark.parametrize("name", registry.names())
    @pytest.mark.parametrize("value", ["text", 3, [1]])
    def test_of_options_that_are_no_mapping(self, workshop: Workshop, name: str, value: object) -> None:
        """A backend's own settings are key and value; an empty key is none at all."""
        workshop.model("torchscript")
        (found,) = problems(workshop, f"{TEXT}{name}: {value!r}\n")
        assert (found.path, found.line) == (name, 9)
        assert workshop.document(f"{TEXT}{name}:\n").spec.options == {}


class TestFiles:
    """The files that a spec names."""

    def test_that_are_missing_are_all_named(self, workshop: Workshop) -> None:
        """Each is reported at the key that names it, with where it was looked for."""
        text = TEXT + (
            "requirements: req.txt\nfiles: [vocab.txt]\ngolden: [{inputs: in.npz, outputs: out.npz}]\n"
            "handler: {use: mine.py, labels: labels.txt}\n"
        )
        found = problems(workshop, text)
        assert [problem.path for problem in found] == [
            "model.path",
            "handler.use",
            "handler.labels",
            "requirements",
            "files[0]",
            "golden[0].inputs",
            "golden[0].outputs",
        ]
        assert all("does not exist" in problem.reason for problem in found)
        assert str(workshop.folder / "vocab.txt") in found[4].remedy

    @pytest.mark.parametrize(
        ("make", "said"),
        [
            (lambda path: path.mkdir(), "is a folder; name a file"),
            (lambda path: path.touch(), "is empty: zero bytes; write or download the model again"),
            (lambda path: os.mkfifo(path), "is neither a file nor a folder; name a file"),
            (lambda path: path.symlink_to(path), "does not exist"),
            (lambda path: path.symlink_to("nowhere"), "does not exist"),
        ],
        ids=["folder", "empty", "pipe", "ring", "dangling"],
    )
    def test_that_are_no_model_are_refused(self, workshop: Workshop, make: Any, said: str) -> None:
        """A model is a file with something in it; a named pipe is not waited for."""
        make(workshop.folder / "model_torchscript")
        (found,) = problems(workshop, TEXT)
        assert said in str(found)

    def test_may_lie_anywhere_below_or_at_an_absolute_path(self, workshop: Workshop) -> None:
        """Relative paths start at the spec, not at the working directory."""
        workshop.model("torchscript")
        elsewhere = workshop.folder / "deep"
        elsewhere.mkdir()
        absolute = TEXT.replace("model_torchscript", str(workshop.folder / "model_torchscript"))
        document = specfile.parse(absolute.encode(), folder=elsewhere, backends=registry.names())
        assert document.resolve("x") == elsewhere / "x"

    def test_with_the_longest_names_are_refused_without_a_traceback(self, workshop: Workshop) -> None:
        """The system's own limit on names is a problem like any other."""
        (found,) = problems(workshop, TEXT.replace("model_torchscript", "m" * 300))
        assert "cannot be read: File name too long" in found.reason


class TestDocument:
    """A spec and its places."""

    def test_digest_is_of_the_meaning(self, workshop: Workshop) -> None:
        """Comments, order and spelling do not change it; a value does."""
        workshop.model("torchscript")
        first = workshop.document(TEXT + "batching: {max_size: 4, max_delay: 1500us}\n")
        respelt = (
            "# of the digits\n" + "\n".join(sorted(TEXT.splitlines()[:3])) + "\n" + "\n".join(TEXT.splitlines()[3:])
        )
        second = workshop.document(respelt + "\nbatching: {max_delay: 1.5ms, max_size: 4}\n")
        third = workshop.document(TEXT + "batching: {max_size: 4, max_delay: 2ms}\n")
        assert first.digest == second.digest != third.digest
        assert first.digest.startswith("sha256:")

    def test_places_keys_that_hold_dots(self, workshop: Workshop) -> None:
        """A label may be called v1.2; its place is its own, and not that of its parents."""
        workshop.model("torchscript")
        document = workshop.document(TEXT + "versions:\n  labels:\n    v1.2: 1\n")
        assert document.problem("versions.labels.v1.2", "r").line == 11
        assert document.problem("versions.nothing", "r").line == 9

    def test_knows_no_place_without_a_text(self, workshop: Workshop) -> None:
        """A spec that was made in Python has none, and its problems say none."""
        workshop.model("torchscript")
        spec = ModelSpec.model_validate(workshop.document(TEXT).spec.model_dump(mode="json"))
        document = specfile.Document(spec=spec, folder=workshop.folder)
        assert str(document.problem("name", "is wrong", "mend it")) == "name: is wrong; mend it"


class TestFleets:
    """Several specs, one server."""

    def load(self, workshop: Workshop, text: str) -> Fleet:
        return fleetfile.load(workshop.write(text, "fleet.yaml"), backends=registry.names())

    def test_of_one_are_specs(self, workshop: Workshop) -> None:
        """A spec file is a fleet of its one model."""
        workshop.model("torchscript")
        fleet = fleetfile.load(workshop.write(TEXT), backends=registry.names())
        assert (fleet.name, len(fleet.models), fleet.server.tokens) == ("digits", 1, True)

    def test_hold_specs_and_names_of_specs(self, workshop: Workshop) -> None:
        """A model is written in the fleet file, or in a file of its own."""
        workshop.model("torchscript")
        workshop.write(TEXT)
        inline = TEXT.replace("servewright: 1\n", "").replace("digits", "other").replace("\n", "\n    ").strip()
        text = f"servewright: 1\nfleet: both\nserver: {{threads: 8}}\nmodels:\n  - spec.yaml\n  - {inline}\n"
        fleet = self.load(workshop, text)
        assert [document.spec.name for document in fleet.models] == ["digits", "other"]
        assert fleet.server.threads == 8
        assert fleet.models[1].problem("model.path", "r").line == 7
        assert fleet.models[0].problem("model.path", "r").line == 3

    def test_report_the_problems_of_every_model(self, workshop: Workshop) -> None:
        """Problems of the fleet, of specs in it and of specs beside it come together."""
        workshop.model("torchscript")
        workshop.write(TEXT + "workers: 0\n")
        text = "servewright: 1\nfleet: b\nserver: {thread: 8}\nmodels:\n"
        text += "  - spec.yaml\n  - {name: x}\n  - nope.yaml\n  - 7\n"
        with pytest.raises(SpecError) as caught:
            self.load(workshop, text)
        found = [(problem.line, problem.path) for problem in caught.value.problems]
        assert found == [
            (3, "server.thread"),
            (9, "workers"),
            (6, "models[1].model"),
            (6, "models[1].signature"),
            (7, "models[2]"),
            (8, "models[3]"),
        ]

    def test_have_no_name_twice(self, workshop: Workshop) -> None:
        """The second of two models of one name is reported at its place."""
        workshop.model("torchscript")
        workshop.write(TEXT)
        with pytest.raises(SpecError, match=r"fleet.yaml:5:5: models\[1\]: the model 'digits' is listed twice"):
            self.load(workshop, "servewright: 1\nfleet: b\nmodels:\n  - spec.yaml\n  - spec.yaml\n")

    @pytest.mark.parametrize("text", ["servewright: 1\nfleet: b\n", "servewright: 1\nfleet: b\nmodels: []\n"])
    def test_have_a_model(self, workshop: Workshop, text: str) -> None:
        """A server of nothing is none."""
        with pytest.raises(SpecError, match="models: "):
            self.load(workshop, text)

    def test_digest_covers_models_and_server(self, workshop: Workshop) -> None:
        """Another setting of the server is another fleet."""
        values = workshop.values(registry.get("torchserve"))
        assert workshop.fleet(values).digest == workshop.fleet(values).digest
        assert workshop.fleet(values).digest != workshop.fleet(values, threads=8).digest


class TestReading:
    """The file itself."""

    def test_says_how_to_write_one_that_is_missing(self, workshop: Workshop) -> None:
        """The remedy is the command that writes a spec."""
        with pytest.raises(InputError, match=r"nope.yaml does not exist; write one with: servewright init MODEL -o"):
            specfile.load(workshop.folder / "nope.yaml", backends=())

    def test_says_what_is_no_file(self, workshop: Workshop) -> None:
        """Folders, pipes and impossible names are refused in words."""
        os.mkfifo(workshop.folder / "pipe")
        for name, said in ((".", "is a folder"), ("pipe", "is not a regular file"), ("a\0b", "is not a path")):
            with pytest.raises(InputError, match=said):
                specfile.load(workshop.folder / name, backends=())

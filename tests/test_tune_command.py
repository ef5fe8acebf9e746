"""`servewright tune`, as far as it goes without a server."""

from __future__ import annotations

import hashlib
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from servewright import pipeline, registry
from servewright.backend import Backend
from servewright.cli import tune, tuning
from servewright.tuning import study, tuner
from servewright.tuning.journal import NAME, Journal
from servewright.tuning.machine import machine
from tuning_toys import goal, subject_of

if TYPE_CHECKING:
    from conftest import Cli, Workshop

STAND_IN = {
    "backend": "any", "title": "x", "name": "a stand-in", "version": "1", "runtime": "embedded", "stand_in": True
}  # fmt: skip


class TestCommand:
    """`servewright tune`, as far as it goes without a server."""

    def test_names_a_tuned_spec_by_its_server_where_there_are_two(self, workshop: Workshop) -> None:
        """Tuning one does not overwrite what was found for the other."""
        backends = [registry.get(name) for name in ("torchserve", "tfserving")]
        values = workshop.values(backends[0])
        spec = workshop.write(values)
        assert tuner.tuned_name(subject_of(spec, backends[0])) == f"{spec.stem}.tuned{spec.suffix}"
        models = {each.name: workshop.values(each)["model"] for each in backends}
        both = workshop.write(values | {"model": models})
        names = [tuner.tuned_name(subject_of(both, each)) for each in backends]
        assert names == [f"{both.stem}.{each.name}.tuned{both.suffix}" for each in backends]

    def test_replaces_no_spec_of_another_study(self, backend: Backend, workshop: Workshop, cli: Cli) -> None:
        """A tuned spec may be in use, or changed by hand; one that this study wrote is its own."""
        spec, folder = workshop.write(workshop.values(backend)), workshop.folder / "study"
        tuned = tuner.tuned_path(subject_of(spec, backend))
        tuned.write_text("# by hand\n")
        words = ("tune", spec, "-b", backend.name, "-o", folder)
        code, _, err = cli(*words)
        assert (code, f"{tuned} is not of this study; --force" in err, folder.exists()) == (2, True, False), err
        journal = Journal.create(folder / NAME, self.head(spec, backend))
        journal.append("server", {"server": STAND_IN})  # so --require-real ends it before anything is started
        again = (*words, "--resume", "--require-real")
        code, _, err = cli(*again)
        assert (code, "is not of this study" in err) == (2, True), err
        code, _, err = cli(*again, "--force")
        assert (code, "is a stand-in" in err) == (1, True), err
        journal.append("written", {"spec": hashlib.sha256(tuned.read_bytes()).hexdigest(), "configs": []})
        code, _, err = cli(*again)
        assert (code, "is a stand-in" in err) == (1, True), err
        assert tuned.read_text() == "# by hand\n"

    def test_says_how_to_go_on(self, tmp_path: Path) -> None:
        """With what a study must be told again, and what it may replace."""
        spec = tmp_path / "a spec.yaml"
        spec.touch()
        words = [str(spec), "--transport", "grpc", "--slo", "p99=5ms", "--force"]
        with tune.command.make_context("tune", words) as context:
            said = tuning.resuming(spec, "tfserving", Path("study"), context.params)
        assert shlex.split(said)[1:] == [
            "tune", str(spec), "-b", "tfserving", "-o", "study", "--resume", "--transport", "grpc", "--force"
        ]  # fmt: skip

    def test_refuses_what_makes_no_sense(self, backend: Backend, workshop: Workshop, cli: Cli) -> None:
        """Goals that contradict each other, odd promises, and a study that is not there end with exit code 2."""
        spec = workshop.write(workshop.values(backend))
        for words, said in (
            (("--rate", "5/s", "--concurrency", "4"), "give one of them"),
            (("--max-throughput",), "needs a promise"),
            (("--slo", "p98=5ms"), "--slo"),
            (("--time", "soon"), "--time"),
            (("--each", "0s"), "--each"),
            (("--budget", "6"), "budget"),
            (("--margin", "nan"), "no number"),
            (("--seed", "-1"), "--seed"),
            (("--concurrency", "1000000000"), "--concurrency"),
            (("--runtime", "nowhere"), "no runtime"),
        ):
            code, _, err = cli("tune", spec, "-b", backend.name, "-o", workshop.folder / "study", *words)
            assert (code, said in err) == (2, True), err
        assert not (workshop.folder / "study").exists()

    def test_refuses_a_journal_of_another_content(self, backend: Backend, workshop: Workshop, cli: Cli) -> None:
        """What a fact lacks is said with its line, before anything is started."""
        spec = workshop.write(workshop.values(backend))
        for number, (kind, fact, place) in enumerate(
            (
                ("measured", {}, "measured"), ("measured", {"measured": {}}, "measured.rate"), ("ladder", {}, "top"),
                ("service_times", {"found": [{"rows": 1}]}, "found.0.ms"), ("more", {"budget": 9}, "rounds"),
            )
        ):  # fmt: skip
            folder = workshop.folder / f"study-{number}"
            Journal.create(folder / NAME, self.head(spec, backend)).append(kind, fact)
            code, _, err = cli("tune", spec, "-b", backend.name, "-o", folder, "--resume")
            assert (code, f"{NAME}:2: {place}: " in err, "another -o" in err) == (2, True, True), err

    def test_knows_a_model_by_its_files(self, backend: Backend, workshop: Workshop) -> None:
        """The spec only names them, and they may have been written anew."""
        subject = subject_of(workshop.write(workshop.values(backend)), backend)
        before = subject.files_digest()
        source = subject.document.spec.source(backend.name)
        assert source is not None
        model = subject.document.resolve(source.path)
        file = next(each for each in model.rglob("*") if each.is_file()) if model.is_dir() else model
        file.write_bytes(file.read_bytes() + b"more")
        assert subject.files_digest() != before

    def test_refuses_fleets(self, backend: Backend, workshop: Workshop, cli: Cli) -> None:
        """Tuned keys go to the spec of a model, which must have a file of its own."""
        values = workshop.values(backend)
        spec = workshop.write(values)
        for model, said in ((spec.name, f"tune the spec of its model, {spec}"), (values, "a file of its own")):
            fleet = workshop.folder / "fleet.yaml"
            fleet.write_text(json.dumps({"servewright": 1, "fleet": "all", "models": [model]}))
            code, _, err = cli("tune", fleet, "-b", backend.name, "-o", workshop.folder / "study")
            assert (code, "is a fleet" in err, said in err) == (2, True, True), err

    def test_begins_no_study_that_cannot_be_measured(self, backend: Backend, workshop: Workshop, cli: Cli) -> None:
        """The corrected command needs no other -o."""
        spec, study_folder = workshop.write(workshop.values(backend)), workshop.folder / "study"
        np.savez(workshop.folder / "wrong.npz", other=np.zeros((4, 2), np.float32))
        words = ("tune", spec, "-b", backend.name, "-o", study_folder)
        code, _, err = cli(*words, "--data", workshop.folder / "wrong.npz")
        assert (code, "the signature names" in err) == (2, True), err
        assert not study_folder.exists()
        journal = Journal.create(study_folder / NAME, {})
        journal.append("server", {})
        journal.forget()
        assert not journal.path.exists()
        journal = Journal.create(study_folder / NAME, {})
        journal.append("service_times", {"found": []})
        journal.forget()
        assert journal.path.exists()

    @staticmethod
    def head(spec: Path, backend: Backend) -> dict[str, Any]:
        """Return the first line of a journal of a study of ``spec`` that nothing was measured for yet."""
        fleet = pipeline.load(spec)
        return {
            "goal": goal(budget=9).model_dump(mode="json"), "most": False, "each_s": 5.0, "rounds": 4,
            "backend": backend.name, "runtime": pipeline.choice_for(fleet, backend, "auto", None).runtime,
            "transport": "http", "digest": fleet.models[0].digest, "began": study.now(), "cores": machine().cores,
            "files": subject_of(spec, backend).files_digest(),
        }  # fmt: skip

    def test_goes_on_as_it_began(self, backend: Backend, workshop: Workshop, cli: Cli) -> None:
        """Options that a study did not begin with are refused with --resume, not passed over."""
        spec = workshop.write(workshop.values(backend))
        head = self.head(spec, backend)
        journal = Journal.create(workshop.folder / "study" / NAME, head)
        for words, said in (
            (("--budget", "8"), "has 9 for its --budget"),
            (("--rounds", "3"), "has 4 for its --rounds"),
            (("--rate", "5/s"), "began with another --rate"),
            (("--slo", "p99=1ms"), "began with another --slo"),
        ):
            code, _, err = cli("tune", spec, "-b", backend.name, "-o", workshop.folder / "study", "--resume", *words)
            assert (code, said in err) == (2, True), err
        assert journal.path.exists()
        journal.append("server", {"server": STAND_IN})
        more = ("tune", spec, "-b", backend.name, "-o", workshop.folder / "study", "--resume", "--require-real")
        for words in (("--budget", "12"), ("--rounds", "6"), ("--time", "1h"), ("--budget", "12"), ()):
            code, _, err = cli(*more, *words)
            assert (code, "is a stand-in" in err) == (1, True), err
        for key, value, said in (
            ("files", "x", "the model's files or the golden samples"),
            ("cores", 999, "cores was 999"),
        ):
            Journal.create(workshop.folder / key / NAME, head | {key: value})
            code, _, err = cli("tune", spec, "-b", backend.name, "-o", workshop.folder / key, "--resume")
            assert (code, said in err) == (2, True), err
        code, _, err = cli(*more, "--max-throughput")  # the promise is the study's
        assert (code, "began with another --max-throughput" in err) == (2, True), err
        given = [(each["budget"], each["rounds"]) for each in Journal.resume(journal.path).all("more")]
        assert given == [(12, 4), (12, 6)]
        (workshop.folder / "other.npz").write_bytes(b"other")
        data = ("--data", workshop.folder / "other.npz")
        words = ("tune", spec, "-b", backend.name, "-o", workshop.folder / "study", "--resume")
        code, _, err = cli(*words, *data)
        assert (code, "other --data was sent" in err) == (2, True), err

"""Rollouts without a server: what a journal survives, what names a server, and the order of a plan's states."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servewright import pipeline, registry
from servewright.backends.tfserving import rollout as tfserving
from servewright.errors import InputError, PackagingError
from servewright.rollout import carrying, journal, publishing
from servewright.rollout.journal import Condition, Word
from servewright.rollout.live import Live, parse
from servewright.rollout.plan import PROBE, PUBLISH, Aim, Phase, Step

if TYPE_CHECKING:
    from conftest import Cli, Workshop

HERE = Live(said="here", endpoints={"grpc": "127.0.0.1:1"})
THERE = Live(said="there", endpoints={"grpc": "127.0.0.1:2"})
STEPS = tuple(Step(phase=Phase.CANARY, kind="some", title=f"step {n}", model="m", values={"n": n}) for n in range(3))
OPTIONS = ("store", "config")


@pytest.fixture(autouse=True)
def journals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep journals among the test's own files."""
    monkeypatch.setenv("SERVEWRIGHT_ROLLOUTS", str(tmp_path / "rollouts"))
    monkeypatch.setenv("SERVEWRIGHT_STATE", str(tmp_path / "state"))
    return tmp_path / "rollouts"


def begun(*lives: Live, fleet: str = "fleet") -> journal.Journal:
    return journal.create(fleet, "tfserving", tuple((live, STEPS) for live in lives or (HERE,)))


class TestJournal:
    """What another process learns of a rollout."""

    def test_tells_how_far_each_server_is(self) -> None:
        """Begun, done, taken back and finished, for every server by itself."""
        found = begun(HERE, THERE)
        for word, step in ((Word.BEGIN, 0), (Word.DONE, 0), (Word.BEGIN, 1)):
            found.note(word, 0, step)
        again = journal.load(found.path)
        assert (again.servers[0].begun, again.servers[0].done) == (1, 0)
        assert [server.condition for server in again.servers] == [Condition.UNDER_WAY, Condition.UNTOUCHED]
        assert again.state == "1 untouched, 1 under way"
        assert "at step 2 of 3 (canary: step 1)" in str(again.servers[0])
        again.note(Word.UNDO, 0, 1)
        again.note(Word.UNDONE, 0, 1)
        assert journal.load(found.path).servers[0].begun == 0
        again.note(Word.RESTORED, 0)
        assert journal.load(found.path).state == "1 untouched, 1 as before"
        assert journal.load(found.path).servers[0].steps == STEPS

    @given(cut=st.integers(min_value=1, max_value=60))
    def test_survives_a_torn_line(self, cut: int) -> None:
        """A kill in the middle of a line costs that line, and the next one follows the last whole one."""
        found = begun()
        found.note(Word.BEGIN, 0, 0)
        whole = found.path.read_bytes()
        found.note(Word.DONE, 0, 0)
        last = len(found.path.read_bytes()) - len(whole)
        os.truncate(found.path, len(whole) + last - min(cut, last))
        torn = journal.load(found.path)
        assert (torn.servers[0].begun, torn.servers[0].done) == (0, -1)
        torn.note(Word.DONE, 0, 0)
        assert journal.load(found.path).servers[0].done == 0
        assert [json.loads(line)["word"] for line in found.path.read_text().splitlines()] == ["plan", "begin", "done"]

    def test_that_was_never_whole_counts_for_nothing(self, journals: Path) -> None:
        """A rollout that was killed before its plan was written has done nothing."""
        path = begun().path
        os.truncate(path, 20)
        assert list(journal.journals()) == []

    def test_changed_by_hand_is_an_error_that_names_it(self) -> None:
        """Nothing is guessed."""
        found = begun()
        with found.path.open("a") as file:
            file.write('{"word": "nonsense"}\n')
        with pytest.raises(InputError, match="was it changed by hand"):
            journal.load(found.path)

    def test_keeps_two_commands_from_one_server(self) -> None:
        """The lock is on its addresses, and ends with its holder."""
        with journal.claimed([HERE]):
            with pytest.raises(InputError, match="another command"), journal.claimed([THERE, HERE]):
                pass
            with journal.claimed([THERE]):
                pass
        with journal.claimed([HERE, THERE]):
            pass

    def test_is_found_by_what_can_be_done_with_it(self) -> None:
        """What is half-way can be resumed; what did something can be taken back; the newest comes first."""
        with pytest.raises(InputError, match="no rollout to resume"):
            journal.find(None, to_resume=True)
        found = begun()
        assert journal.find("fleet", to_resume=True).id == found.id
        with pytest.raises(InputError, match="is untouched"):
            journal.find("fleet", to_resume=False)
        found.note(Word.BEGIN, 0, 0)
        assert journal.find(found.id, to_resume=False).id == found.id
        found.note(Word.PROMOTED, 0)
        assert journal.find(None, to_resume=False).id == found.id
        with pytest.raises(InputError, match="is promoted"):
            journal.find(None, to_resume=True)

    def test_is_the_newest_or_none(self) -> None:
        """A rollback that is repeated does not take the rollout before back; that one is named, and has an id."""
        old = begun()
        old.note(Word.BEGIN, 0, 0)
        old.note(Word.PROMOTED, 0)
        new = begun()
        with pytest.raises(InputError, match=f"{new.id} is untouched; {old.id} is promoted; name an older one"):
            journal.find(None, to_resume=False)
        assert journal.find(old.id, to_resume=False).id == old.id

    def test_bars_a_server_that_is_half_way(self) -> None:
        """Nothing new is begun on a server before the open rollout is finished."""
        assert journal.earlier_at(HERE) is None
        found = begun()
        found.note(Word.BEGIN, 0, 0)
        with pytest.raises(InputError, match=f"rollout --resume {found.id}"):
            journal.earlier_at(HERE)
        assert journal.earlier_at(THERE) is None
        found.note(Word.PROMOTED, 0)
        earlier = journal.earlier_at(HERE)
        assert earlier is not None
        assert (earlier.steps, earlier.promoted) == (STEPS, True)

    def test_goes_back_after_later_ones(self) -> None:
        """An older rollout of the same server waits until the newer one was taken back."""
        old, new = begun(), begun(THERE, HERE)
        for found in (old, new):
            found.note(Word.BEGIN, 0, 0)
            found.note(Word.PROMOTED, 0)
        journal.check_latest(old)  # the newer one has only reached another server
        new.note(Word.PROMOTED, 1)
        with pytest.raises(InputError, match=f"rollback {new.id}"):
            journal.check_latest(old)
        new.note(Word.RESTORED, 1)
        journal.check_latest(old)


class TestLive:
    """How servers are named."""

    @pytest.mark.parametrize(
        ("text", "endpoints", "options"),
        [
            ("http://h:1", {"http": "h:1"}, {}),
            ("http://h:1/,grpc://h:2", {"http": "h:1", "grpc": "h:2"}, {}),
            ("grpc=[::1]:2,store=/a=b,config=c", {"grpc": "[::1]:2"}, {"store": "/a=b", "config": "c"}),
        ],
    )
    def test_are_read(self, text: str, endpoints: Mapping[str, str], options: Mapping[str, str]) -> None:
        """Addresses and what belongs to a server, in one text."""
        found = parse(text, OPTIONS)
        assert (found.endpoints, found.options) == (endpoints, options)
        assert Live.from_json(json.loads(json.dumps(found.as_json()))) == found

    @pytest.mark.parametrize("text", ["", "http://", "http=x", "store=/a", "htp=h:1", "grpc=h:1,store=", "https://h:1"])
    def test_that_say_nothing_known_are_refused(self, text: str) -> None:
        """With what can be said."""
        with pytest.raises(InputError, match=r"host:port"):
            parse(text, OPTIONS)

    @given(st.text(max_size=30))
    def test_are_read_or_refused(self, text: str) -> None:
        """Any text is a server, or an error of ours."""
        with suppress(InputError):
            assert parse(text, OPTIONS).endpoints


class TestPublishing:
    """A version comes to a store whole, and goes again."""

    @pytest.mark.parametrize("folder", [True, False])
    def test_comes_and_goes(self, tmp_path: Path, folder: bool) -> None:
        """Twice does no harm, in either direction; files of others stay."""
        source, store = tmp_path / "source", tmp_path / "store"
        store.mkdir()
        (store / "1").mkdir()
        if folder:
            (source / "variables").mkdir(parents=True)
            (source / "variables" / "data").write_bytes(b"weights")
        else:
            source.write_bytes(b"weights")
        for _ in range(2):
            publishing.publish(source, store / "2")
        assert publishing.same(source, store / "2")
        for _ in range(2):
            publishing.withdraw(store / "2")
        assert [path.name for path in store.iterdir()] == ["1"]

    def test_replaces_nothing(self, tmp_path: Path) -> None:
        """Another model of that version stays what it is; a source that is gone is said to be."""
        (tmp_path / "new").write_bytes(b"new")
        (tmp_path / "old").write_bytes(b"old")
        with pytest.raises(InputError, match="holds another model"):
            publishing.publish(tmp_path / "new", tmp_path / "old")
        assert (tmp_path / "old").read_bytes() == b"old"
        with pytest.raises(PackagingError, match="is gone"):
            publishing.publish(tmp_path / "absent", tmp_path / "target")


class FakeTfServing:
    """The answers of a server that serves what it is told to; it takes no config."""

    def __init__(self, versions: Mapping[str, list[int]], labels: Mapping[str, int]) -> None:
        self.versions, self.known = versions, labels

    def status(self, model: str) -> list[Any]:
        return [
            SimpleNamespace(version=each, state="AVAILABLE", error_message="") for each in self.versions.get(model, [])
        ]

    def version_of_label(self, model: str, label: str) -> int | None:
        return self.known.get(label)

    def reload(self, config: str, **_: Any) -> None:
        from servewright.errors import ServerAnswerError

        assert not config, "planning may not change the server"
        raise ServerAnswerError("INVALID_ARGUMENT", "not supported by HandleReloadConfigRequest")


class TestPlanForTfServing:
    """The states that a server is led through; the rules are the server's."""

    def plan(
        self,
        workshop: Workshop,
        policy: str,
        labels: Mapping[str, int],
        old: list[int],
        *,
        known: Mapping[str, int] | None = None,
        options: Mapping[str, str] | None = None,
        **aim: Any,
    ) -> Any:
        backend = registry.get("tfserving")
        path = workshop.write(workshop.values(backend, name="times", version=9))
        base = workshop.folder / "base" / "times"
        for version in old:
            (base / str(version)).mkdir(parents=True, exist_ok=True)
        if policy == "pinned":
            policy = f"model_version_policy {{ specific {{ versions: {old} }} }}"
        names = " ".join(f'version_labels {{ key: "{label}" value: {version} }}' for label, version in labels.items())
        config = workshop.folder / "models.pbtxt"
        config.write_text(
            f'model_config_list {{ config {{ name: "times" base_path: "{base}" model_platform: "tensorflow" '
            f'{policy} {names} }} config {{ name: "other" base_path: "/m/other" model_platform: "tensorflow" }} }}'
        )
        server = SimpleNamespace(endpoints={"grpc": "h:1"}, site=None, runtime="remote")
        said = {"config": str(config), **(options or {})}
        fleet = pipeline.load(path)
        client = FakeTfServing({"times": old, "other": [1]}, labels if known is None else known)
        return tfserving.prepare(
            Aim(fleet=fleet, artifact=workshop.folder, options=said, **aim),
            server,
            client,  # type: ignore[arg-type]
        )

    @pytest.mark.parametrize("naming", ["model", "label"])
    @pytest.mark.parametrize("policy", ["", "model_version_policy { latest { num_versions: 2 } }", "pinned"])
    @pytest.mark.parametrize("labels", [{}, {"stable": 3}, {"stable": 3, "canary": 2}])
    def test_keeps_the_servers_rules(
        self, workshop: Workshop, naming: Any, policy: str, labels: dict[str, int]
    ) -> None:
        """Labels only on versions that are there; nothing new on disk before it is pinned; others always the old."""
        old = [2, 3]
        steps = self.plan(workshop, policy, labels, old, naming=naming)
        own = [step for step in steps if step.kind == tfserving.CONFIG]
        kinds = [step.kind for step in steps]
        assert kinds.index(PUBLISH) < kinds.index(PROBE)
        for step in own:
            state, to = tfserving.State(**step.values["before"]), tfserving.State(**step.values["after"])
            # A reload's labels must be on what is available when it comes, on the way back too.
            assert set(to.labels("times").values()) <= set(state.serves["times"])
            assert set(state.labels("times").values()) <= set(to.serves["times"])
            assert [model.name for model in to.message.model_config_list.config][:2] == ["times", "other"]
        for one, following in pairwise(own):
            assert one.values["after"] == following.values["before"]
        at = kinds.index(PUBLISH)
        pinned = tfserving.State(**next(step for step in steps[at:] if step.kind == tfserving.CONFIG).values["before"])
        assert list(pinned.message.model_config_list.config[0].model_version_policy.specific.versions) == old
        for step in steps:
            if step.phase in (Phase.PREPARE, Phase.CANARY, Phase.PROBE):
                assert step.answers.get("times label stable", ("3",)) == ("3",)
                if naming == "model":
                    assert step.answers["times"] == ("3",)
        final = tfserving.State(**own[-1].values["after"])
        assert 9 in final.serves["times"]
        assert all(version in final.serves["times"] for version in final.labels("times").values())
        assert final.serves.get("times-canary", ()) == ()

    def test_of_two_models_goes_phase_by_phase(self, workshop: Workshop) -> None:
        """Both are probed before either is promoted; one that is there already is left alone."""
        backend = registry.get("tfserving")
        names = {"one": 1, "two": 1, "three": 9}
        fleet = workshop.fleet(*(workshop.values(backend, name=name, version=9) for name in names))
        entries = ""
        for name, version in names.items():
            (workshop.folder / "base" / name / str(version)).mkdir(parents=True)
            base = workshop.folder / "base" / name
            entries += f'config {{ name: "{name}" base_path: "{base}" model_platform: "tensorflow" }} '
        config = workshop.folder / "models.pbtxt"
        config.write_text(f"model_config_list {{ {entries} }}")
        steps = tfserving.prepare(
            Aim(fleet=fleet, artifact=workshop.folder, options={"config": str(config)}),
            SimpleNamespace(endpoints={"grpc": "h:1"}, site=None, runtime="remote"),  # type: ignore[arg-type]
            FakeTfServing({name: [version] for name, version in names.items()}, {}),  # type: ignore[arg-type]
        )
        phases = [step.phase for step in steps]
        assert phases == sorted(phases, key=list(Phase).index)
        assert [step.values["target"].rpartition("base/")[2] for step in steps if step.kind == PUBLISH] == [
            "one/9", "two/9",
        ]  # fmt: skip
        assert [step.model for step in steps if step.kind == PROBE] == ["one", "two"]
        final = tfserving.State(**steps[-1].values["after"])
        assert final.serves == {"one": (9,), "two": (9,), "three": (9,), "one-canary": (), "two-canary": ()}
        assert [model.name for model in final.message.model_config_list.config] == list(names)

    def test_refuses_a_version_that_the_policy_would_not_serve(self, workshop: Workshop) -> None:
        """A higher one on disk would win: nothing would be rolled out."""
        (workshop.folder / "base" / "times" / "12").mkdir(parents=True)
        with pytest.raises(InputError, match="the policy serves 12 and not 9"):
            self.plan(workshop, "", {}, [3])

    def test_replaces_what_it_does_not_know_only_when_told(self, workshop: Workshop) -> None:
        """Without a config that agrees, all other models go, or nothing is done."""
        with pytest.raises(InputError, match=r"label gone of times is on 3.*--replace-all"):
            self.plan(workshop, "", {"gone": 3}, [3], known={})
        store = workshop.folder / "base"
        steps = self.plan(workshop, "", {"gone": 3}, [3], known={}, replace_all=True, options={"store": str(store)})
        for step in steps:
            if step.kind == tfserving.CONFIG:
                models = tfserving.State(**step.values["after"]).message.model_config_list.config
                assert {model.name for model in models} <= {"times", "times-canary"}
                assert {model.base_path for model in models} == {str(store / "times")}

    def test_of_servers_with_one_store(self, workshop: Workshop) -> None:
        """The first one publishes; where the policy is not pinned, another would load the version before its turn."""
        steps = self.plan(workshop, "pinned", {}, [3])
        first, second = carrying._published_once([(HERE, steps), (THERE, steps)])
        assert [step.kind for step in first[1]].count(PUBLISH) == 1
        assert [step.kind for step in second[1]].count(PUBLISH) == 0
        loose = self.plan(workshop, "", {}, [3])
        with pytest.raises(InputError, match="would load version 9 before their turn"):
            list(carrying._published_once([(HERE, loose), (THERE, loose)]))

    def test_has_nothing_to_do_where_all_is_there(self, workshop: Workshop) -> None:
        """The same command twice is no error."""
        assert self.plan(workshop, "", {}, [9]) == ()


class TestCommands:
    """What the command line refuses."""

    @pytest.mark.parametrize(
        ("words", "complaint"),
        [
            (["rollout"], "SPEC and --live, or --resume"),
            (["rollout", "spec.yaml"], "SPEC and --live"),
            (["rollout", "spec.yaml", "--live", "t", "--resume"], "leave SPEC"),
            (["rollout", "--resume"], "there is no rollout to resume"),
            (["rollback"], "there is no rollout to take back"),
            (["rollback", "nobody"], "to take back of nobody"),
            (["rollout", "--status"], "nothing was rolled out"),
            (["rollout", "--resume", "--timeout", "soon"], "--timeout"),
        ],
    )
    def test_is_said_in_a_line(self, cli: Cli, words: list[str], complaint: str) -> None:
        """Exit code 2, and what to do."""
        code, _, errors = cli(*words)
        assert code == 2
        assert complaint in errors

    def test_tell_how_a_rollout_stands(self, cli: Cli) -> None:
        """By the journal, and that the server itself does not answer."""
        state = tfserving.State(config="", serves={"m": (1,)}).as_json()
        values = {"way": {"via": "grpc"}, "before": state, "after": state}
        steps = tuple(
            Step(phase=Phase.PREPARE, kind=tfserving.CONFIG, title=f"step {n}", model="m", values=values)
            for n in range(3)
        )
        found = journal.create("fleet", "tfserving", ((HERE, steps),))
        found.note(Word.BEGIN, 0, 1)
        code, output, _ = cli("rollout", "--status", "fleet", "--json")
        told = json.loads(output)
        assert (code, told["id"], told["ok"]) == (0, found.id, False)
        assert "at step 2 of 3" in told["servers"][0]["state"]
        assert "does not tell" in told["servers"][0]["shows"]

    def test_a_server_that_is_not_there(self, cli: Cli, workshop: Workshop) -> None:
        """Nothing is written where no server answers."""
        path = workshop.write(workshop.values(registry.get("tfserving"), name="times"))
        code, _, errors = cli("rollout", path, "--live", "grpc=127.0.0.1:9", "--timeout", "1s")
        assert code in (3, 4), errors
        assert list(journal.journals()) == []

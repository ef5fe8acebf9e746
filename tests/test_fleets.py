"""Fleets of many models: patterns, defaults, overrides, environments, and several servers that share them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servewright import fleetfile, pipeline, placing, registry
from servewright.errors import InputError, SpecError
from servewright.fleet import Fleet
from servewright.patches import holdable, patch_between, patched, same

if TYPE_CHECKING:
    from conftest import Cli, Workshop
    from servewright.backend import Backend

SIGNATURE = (
    "{inputs: [{name: x, dtype: float32, shape: [null, 4]}], outputs: [{name: y, dtype: float32, shape: [null]}]}"
)
TFSERVING = "{path: model_saved_model, format: saved_model}"
DEFAULTS = f"""\
defaults:
  model: {{torchserve: {{path: model_torchscript, format: torchscript}}, tfserving: {TFSERVING}}}
  signature: {SIGNATURE}
  batching: {{max_size: 8, max_delay: 2ms}}
"""


def load(workshop: Workshop, text: str, environment: str | None = None) -> Fleet:
    """Read a fleet file whose models are hollow."""
    workshop.model("torchscript")
    workshop.model("saved_model")
    path = workshop.write("servewright: 1\nfleet: shop\n" + text, "fleet.yaml")
    return fleetfile.load(path, backends=registry.names(), environment=environment)


def problems(workshop: Workshop, text: str, environment: str | None = None) -> list[tuple[int, str, str]]:
    with pytest.raises(SpecError) as caught:
        load(workshop, text, environment)
    return [(problem.line, problem.path, problem.reason) for problem in caught.value.problems]


def names(fleet: Fleet) -> list[str]:
    return [document.spec.name for document in fleet.models]


class TestDefaults:
    """What a fleet file says once for all of its models."""

    def test_lie_under_every_spec(self, workshop: Workshop) -> None:
        """A model's own words come first; what it does not say, the defaults do."""
        fleet = load(workshop, DEFAULTS + "models: [{name: a}, {name: b, batching: {max_size: 16}, workers: 3}]\n")
        one, two = (document.spec for document in fleet.models)
        assert (one.batching.max_size, one.batching.max_delay, one.workers) == (8, 2000, 1)
        assert (two.batching.max_size, two.batching.max_delay, two.workers) == (16, 2000, 3)

    def test_hold_for_specs_in_files_too(self, workshop: Workshop) -> None:
        """A spec file of a fleet needs only what is its own; its paths start from its own folder."""
        (workshop.folder / "specs").mkdir()
        (workshop.folder / "specs" / "a.yaml").write_text(
            "servewright: 1\nname: a\nmodel: {path: m.pt, format: torchscript}\n"
        )
        (workshop.folder / "specs" / "m.pt").write_bytes(b"x")
        fleet = load(workshop, f"defaults: {{signature: {SIGNATURE}}}\nmodels: [specs/a.yaml]\n")
        assert fleet.models[0].folder.name == "specs"
        assert fleet.models[0].spec.signature.inputs[0].name == "x"

    def test_are_taken_away_by_null(self, workshop: Workshop) -> None:
        """A model that wants the server's own default says null."""
        fleet = load(workshop, DEFAULTS + "models: [{name: a, batching: null}]\n")
        assert fleet.models[0].spec.batching.max_size == 1

    def test_are_replaced_where_a_policy_is_another(self, workshop: Workshop) -> None:
        """Specific takes the place of latest; the two are not mixed."""
        text = (
            DEFAULTS + "  versions: {policy: {latest: 3}}\nmodels: [{name: a, versions: {policy: {specific: [1]}}}]\n"
        )
        assert load(workshop, text).models[0].spec.versions.model_dump()["policy"] == {"specific": (1,)}

    def test_are_blamed_for_what_is_wrong_in_them(self, workshop: Workshop) -> None:
        """A problem in the defaults is told once, at its place, however many models share it."""
        text = (
            DEFAULTS.replace("max_delay: 2ms", "max_delay: 2")
            + "models: [{name: a}, {name: b}, {name: c, workers: 0}]\n"
        )
        assert [(line, path) for line, path, _ in problems(workshop, text)] == [
            (6, "defaults.batching.max_delay"),
            (7, "models[2].workers"),
        ]

    def test_may_be_one_value_under_two_keys(self, workshop: Workshop) -> None:
        """Mappings that are alike are checked as what their keys say that they are."""
        text = DEFAULTS + "  threads: &none {}\n  limits: *none\nmodels: [{name: a}, {name: b, slo: {}, threads: {}}]\n"
        assert [document.spec.limits.memory for document in load(workshop, text).models] == [None, None]

    def test_change_nothing_in_what_a_spec_means(self, workshop: Workshop) -> None:
        """A fleet with defaults and one that repeats them are the same fleet."""
        short = load(workshop, DEFAULTS + "models: [{name: a}, {name: b}]\n")
        own = DEFAULTS.removeprefix("defaults:\n").replace("\n  ", "\n    ").strip()
        long = load(workshop, f"models:\n  - name: a\n    {own}\n  - name: b\n    {own}\n")
        assert short.digest == long.digest


class TestModelsThatAreAlike:
    """What every model of a fleet repeats."""

    def test_share_what_they_repeat(self, workshop: Workshop) -> None:
        """It is checked once, and held once."""
        own = DEFAULTS.removeprefix("defaults:\n").replace("\n  ", "\n    ").strip()
        one, two = (
            each.spec for each in load(workshop, f"models:\n  - name: a\n    {own}\n  - name: b\n    {own}\n").models
        )
        assert one.signature is two.signature
        assert one.batching is two.batching

    def test_are_each_blamed_for_what_they_repeat(self, workshop: Workshop) -> None:
        """A wrong value and a missing file have as many places as models that name them."""
        text = (
            "models:\n"
            f"- {{name: a, model: {{path: gone.pt, format: torchscript}}, signature: {SIGNATURE}}}\n"
            f"- {{name: b, model: {{path: gone.pt, format: torchscript}}, signature: {SIGNATURE}}}\n"
            f"- {{name: c, model: {TFSERVING}, signature: {SIGNATURE}, batching: {{queue: 0}}}}\n"
            f"- {{name: d, model: {TFSERVING}, signature: {SIGNATURE}, batching: {{queue: 0}}}}\n"
        )
        assert [(line, path) for line, path, _ in problems(workshop, text)] == [
            (4, "models[0].model.path"),
            (5, "models[1].model.path"),
            (6, "models[2].batching.queue"),
            (7, "models[3].batching.queue"),
        ]


class TestPatterns:
    """Models named by patterns of files."""

    def test_take_files_in_the_order_of_their_names(self, workshop: Workshop) -> None:
        """A pattern is as good as the list of its files; what is named beside it is not taken twice."""
        (workshop.folder / "specs").mkdir()
        for name in ("c", "a", "b"):
            path = f"{workshop.folder}/model_torchscript"
            text = (
                f"servewright: 1\nname: {name}\nmodel: {{path: {path}, format: torchscript}}\nsignature: {SIGNATURE}\n"
            )
            (workshop.folder / "specs" / f"{name}.yaml").write_text(text)
        assert names(load(workshop, "models: [specs/c.yaml, specs/*.yaml]\n")) == ["c", "a", "b"]
        assert names(load(workshop, "models: ['**/*.yaml']\n")) == ["a", "b", "c"]
        assert names(load(workshop, f"models: ['{workshop.folder}/specs/[ab].yaml']\n")) == ["a", "b"]

    @pytest.mark.parametrize("pattern", ["nothing/*.yaml", "**x/**y", "/nowhere/*.yaml"])
    def test_that_match_nothing_are_problems(self, workshop: Workshop, pattern: str) -> None:
        """A typing error in a pattern must not make a fleet smaller."""
        found = problems(workshop, f"models: ['{pattern}']\n")
        assert found == [(3, "models[0]", f"{pattern!r} matches no file")]


class TestOverrides:
    """What a fleet file says over its specs."""

    def test_win_over_the_spec_in_their_order(self, workshop: Workshop) -> None:
        """The last that matches wins; others are untouched."""
        text = DEFAULTS + (
            "models: [{name: bert-a, workers: 2}, {name: bert-b}, {name: cnn}]\n"
            "overrides:\n  - {match: 'bert-*', set: {workers: 4}}\n  - {match: '*-b', set: {workers: 8}}\n"
        )
        assert [document.spec.workers for document in load(workshop, text).models] == [4, 8, 1]

    def test_are_blamed_for_what_is_wrong_in_them(self, workshop: Workshop) -> None:
        """The place is the override's, not the spec's."""
        text = DEFAULTS + "models: [{name: a, workers: 2}]\noverrides:\n  - {match: a, set: {workers: 0}}\n"
        assert problems(workshop, text) == [(9, "overrides[0].set.workers", "0 is too small")]

    def test_that_match_nothing_or_rename_are_problems(self, workshop: Workshop) -> None:
        """An override without a model is a typing error; a name is what overrides go by."""
        text = DEFAULTS + "models: [{name: a}]\noverrides: [{match: 'b*', set: {workers: 2}}]\n"
        assert problems(workshop, text) == [(8, "overrides[0].match", "matches no model")]
        text = DEFAULTS + "models: [{name: a}]\noverrides: [{match: a, set: {name: b}}]\n"
        assert problems(workshop, text) == [(8, "overrides[0].set.name", "a name cannot be overridden")]


class TestEnvironments:
    """One fleet, several places where it runs."""

    TEXT = DEFAULTS + (
        "server: {threads: 64, tokens: true}\n"
        "models: [{name: a}, {name: b, workers: 2}]\n"
        "overrides: [{match: b, set: {limits: {memory: 1GiB}}}]\n"
        "environments:\n"
        "  prod:\n    server: {threads: 128}\n    defaults: {workers: 4}\n"
        "    overrides: [{match: b, set: {limits: {memory: 4GiB}}}]\n"
        "  test: {only: [a], server: {tokens: false}}\n"
        "  wrong: {server: {threads: 1}, overrides: [{match: z, set: {workers: 1}}]}\n"
        "  empty: {only: [z]}\n"
    )

    def test_are_laid_over_the_rest(self, workshop: Workshop) -> None:
        """Server, defaults and overrides: what the environment says wins over what the file says."""
        plain, prod = load(workshop, self.TEXT), load(workshop, self.TEXT, "prod")
        assert (plain.server.threads, prod.server.threads, prod.server.tokens) == (64, 128, True)
        assert [document.spec.workers for document in plain.models] == [1, 2]
        assert [document.spec.workers for document in prod.models] == [4, 2]
        assert [fleet.models[1].spec.limits.memory for fleet in (plain, prod)] == [2**30, 4 * 2**30]

    def test_may_take_fewer_models(self, workshop: Workshop) -> None:
        """A test server need not serve all."""
        fleet = load(workshop, self.TEXT, "test")
        assert (names(fleet), fleet.server.tokens, fleet.server.threads) == (["a"], False, 64)

    def test_are_checked_when_they_are_asked_for(self, workshop: Workshop) -> None:
        """Problems name the environment's own lines; an unknown name gets the nearest."""
        assert problems(workshop, self.TEXT, "wrong")[0][1:] == ("environments.wrong.server.threads", "1 is too small")
        assert problems(workshop, self.TEXT, "empty")[0][1:] == ("environments.empty.only", "no model is left")
        with pytest.raises(SpecError, match=r"environments: no environment 'prd'; did you mean 'prod'\?"):
            load(workshop, self.TEXT, "prd")

    def test_stand_in_fleet_files_only(self, workshop: Workshop) -> None:
        """A single spec has none."""
        spec = workshop.write(
            f"servewright: 1\nname: a\nmodel: {workshop.source('torchscript')}\nsignature: {SIGNATURE}\n"
        )
        with pytest.raises(InputError, match="only fleet files have environments; leave out --env prod"):
            fleetfile.load(spec, backends=registry.names(), environment="prod")


class TestShards:
    """Several servers that share a fleet's models."""

    MODELS = (
        "models: ["
        + ", ".join(
            f"{{name: m{number}, limits: {{memory: {size}GiB}}}}" for number, size in enumerate((4, 1, 3, 2, 2))
        )
        + "]\n"
    )

    def placed(self, workshop: Workshop, shards: str) -> dict[str, list[str]]:
        fleet = load(workshop, DEFAULTS + self.MODELS + f"shards: {shards}\n")
        return {name: names(own) for name, own in placing.placed(fleet, "torchserve").items()}

    def test_get_models_by_memory(self, workshop: Workshop) -> None:
        """The largest first, each to the server with the most room left."""
        found = self.placed(workshop, "{east: {memory: 8GiB}, west: {memory: 6GiB}}")
        assert found == {"east": ["m0", "m1", "m3"], "west": ["m2", "m4"]}

    def test_get_the_models_that_they_name(self, workshop: Workshop) -> None:
        """A pin is kept, and its memory counted."""
        found = self.placed(workshop, "{east: {memory: 8GiB, models: [m1]}, west: {memory: 8GiB, models: ['m[03]']}}")
        assert found == {"east": ["m1", "m2", "m4"], "west": ["m0", "m3"]}

    def test_share_evenly_where_nobody_tells_memory(self, workshop: Workshop) -> None:
        """Without limits the models are spread by their number."""
        assert sorted(map(len, self.placed(workshop, "{a: {}, b: {}}").values())) == [2, 3]

    @pytest.mark.parametrize(
        ("shards", "said"),
        [
            ("{a: {memory: 4GiB}, b: {memory: 5GiB}}", "it needs .*, and no shard has more than .* left; add a shard"),
            ("{a: {memory: 1GiB, models: [m0]}, b: {memory: 20GiB}}", r"shards.a: .* must be there need 3GiB more"),
            ("{a: {memory: 1GiB}, b: {}}", r"shards.b.memory: it tells no memory, and others do"),
        ],
    )  # fmt: skip
    def test_never_get_more_than_they_hold(self, workshop: Workshop, shards: str, said: str) -> None:
        """A model without a place is an error, not a server that dies later."""
        with pytest.raises(SpecError, match=said):
            self.placed(workshop, shards)

    def test_get_a_container_that_holds_their_models(self, workshop: Workshop, backend: Backend) -> None:
        """A server may take what its models may take together: as much as was counted when they were placed."""
        text = "models: [{name: a, limits: {memory: 4GiB, cpus: 2}}, {name: b, limits: {memory: 3GiB, cpus: 0.5}}]\n"
        fleet = load(workshop, DEFAULTS + text)
        plan = backend.plan(fleet, backend.home)
        assert plan.memory == sum(placing.memory_of(each, backend.name) or 0 for each in fleet.models) == 7 * 2**30
        assert plan.cpus == 2.5
        unlimited = backend.plan(load(workshop, DEFAULTS + "models: [{name: a}, {name: b}]\n"), backend.home)
        assert (unlimited.memory, unlimited.cpus) == (None, None)

    def test_want_to_know_what_a_model_needs(self, workshop: Workshop) -> None:
        """Where the spec does not tell, the size of the files counts."""
        fleet = load(workshop, DEFAULTS + "models: [{name: a}]\nshards: {x: {memory: 1GiB}}\n")
        size = (workshop.folder / "model_torchscript").stat().st_size
        assert placing.memory_of(fleet.models[0], "torchserve") == size > 0
        assert list(placing.placed(fleet, "torchserve")) == ["x"]

    def test_have_settings_of_their_own(self, workshop: Workshop) -> None:
        """A shard's server settings are laid over the fleet's."""
        text = (
            DEFAULTS
            + "server: {threads: 64, metrics: false}\nmodels: [{name: a}]\nshards: {x: {server: {threads: 32}}}\n"
        )
        fleet = placing.shard_of(load(workshop, text), "torchserve", "x")
        assert (fleet.name, fleet.server.threads, fleet.server.metrics) == ("shop-x", 32, False)

    def test_are_rendered_into_folders(self, workshop: Workshop, backend: Backend) -> None:
        """Each server gets a folder; none is rendered as if it served all."""
        fleet = load(workshop, DEFAULTS + self.MODELS + "shards: {a: {memory: 6GiB}, b: {memory: 7GiB}}\n")
        texts = pipeline.render_all(fleet, backend)
        assert {path.partition("/")[0] for path in texts} == {"a", "b"}
        for name, own in placing.placed(fleet, backend.name).items():
            assert pipeline.render(own, backend) == {
                path.removeprefix(f"{name}/"): text for path, text in texts.items() if path.startswith(f"{name}/")
            }
        with pytest.raises(InputError, match="is shared by several servers; choose one with --shard: a, b"):
            placing.shard_of(fleet, backend.name, None)
        with pytest.raises(InputError, match="no shard 'c' with models; choose from a, b"):
            placing.shard_of(fleet, backend.name, "c")

    @given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=30), count=st.integers(1, 5))
    def test_hold_every_model_once(self, sizes: list[int], count: int) -> None:
        """Whatever is placed is placed whole, within the memory, and the same way every time."""
        from servewright.fleet import Shard
        from servewright.spec import ModelSpec
        from servewright.specfile import Document

        signature = {"inputs": [{"name": "x", "dtype": "int8", "shape": [1]}]}
        signature |= {"outputs": signature["inputs"]}
        documents = [
            Document(
                spec=ModelSpec.model_validate(
                    {"name": f"m{number}", "model": {"path": "m", "format": "onnx"}, "signature": signature,
                     "limits": {"memory": f"{size}MB"}}
                ),
                folder=Path(),
            )
            for number, size in enumerate(sizes)
        ]  # fmt: skip
        room = (sum(sizes) // count + max(sizes)) * 10**6
        shards = tuple(Shard(name=f"s{number}", memory=room) for number in range(count))
        fleet = Fleet(name="f", models=tuple(documents), shards=shards)
        found = placing.placed(fleet, "torchserve")
        assert sorted(name for own in found.values() for name in names(own)) == sorted(names(fleet))
        for own in found.values():
            assert sum(document.spec.limits.memory or 0 for document in own.models) <= room
        assert {name: names(own) for name, own in placing.placed(fleet, "torchserve").items()} == {
            name: names(own) for name, own in found.items()
        }


class TestCommands:
    """Fleets on the command line."""

    def test_render_an_environment_and_a_shard(self, workshop: Workshop, cli: Cli) -> None:
        """--env and --shard choose; without --shard every server is rendered."""
        load(
            workshop,
            DEFAULTS + "models: [{name: a}, {name: b}]\nshards: {x: {models: [a]}, y: {}}\n"
            "environments: {prod: {defaults: {batching: {max_size: 32}}}}\n",
        )
        spec = str(workshop.folder / "fleet.yaml")
        _, out, _ = cli("render", spec, "-b", "tfserving", "--env", "prod", "--json")
        files = json.loads(out)["files"]
        assert "x/model_config.pbtxt" in files
        assert "value: 32" in files["y/batching_parameters.pbtxt"]
        _, out, _ = cli("render", spec, "-b", "tfserving", "--shard", "x", "--json")
        files = json.loads(out)["files"]
        assert files["model_config.pbtxt"].count("config {") == 1
        assert "value: 8" in files["batching_parameters.pbtxt"]

    @pytest.mark.parametrize("command", [("package", "-o", "out"), ("verify",), ("up",)])
    def test_that_start_one_server_ask_which(self, workshop: Workshop, cli: Cli, command: tuple[str, ...]) -> None:
        """Nothing is packaged or started for several servers at once."""
        load(workshop, DEFAULTS + "models: [{name: a}]\nshards: {x: {}, y: {}}\n")
        code, _, err = cli(command[0], str(workshop.folder / "fleet.yaml"), "-b", "tfserving", *command[1:])
        assert code == 2
        assert "choose one with --shard: x, y" in err


VALUES = st.recursive(
    st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "a", 1.0, 0.0]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
MAPPINGS = st.dictionaries(st.sampled_from("abc"), VALUES, max_size=3)


class TestPatches:
    """JSON Merge Patch."""

    @given(before=MAPPINGS, after=MAPPINGS)
    def test_between_two_values_make_one_of_the_other(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        """What a patch cannot hold is null alone."""
        assert holdable(after)
        patch = patch_between(before, after)
        assert same(patched(before, patch), after)
        assert bool(patch) is not same(before, after)

    @pytest.mark.parametrize(
        ("target", "patch", "result"),
        [
            ({"a": "b"}, {"a": "c"}, {"a": "c"}),
            ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
            ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
            ({"a": ["b"]}, {"a": [1]}, {"a": [1]}),
            ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
            ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
            ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ],
    )
    def test_are_those_of_the_standard(self, target: Any, patch: Any, result: Any) -> None:
        """The examples of RFC 7386."""
        assert patched(target, patch) == result

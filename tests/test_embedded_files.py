"""The embedded server reads flags, config files and version folders as the real one does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servewright.backends.tfserving import protos
from servewright.backends.tfserving.embedded import config
from servewright.backends.tfserving.embedded.disk import Watched, version_number, wanted_versions
from servewright.backends.tfserving.embedded.flags import FlagValueError, parse
from servewright.backends.tfserving.embedded.listening import channel_arguments
from servewright.backends.tfserving.embedded.settings import read_settings
from servewright.backends.tfserving.embedded.status import Code, StatusError


class TestFlags:
    """Words are flags only as ``--name=value``."""

    def test_the_last_of_a_flag_wins(self) -> None:
        """A later value replaces an earlier one."""
        line = parse(["--port=1", "--port=2", "--model_base_path=a=b", "--enable_batching"])
        assert (line.flags.port, line.flags.model_base_path, line.flags.enable_batching) == (2, "a=b", True)

    @pytest.mark.parametrize(
        "word", ["--no_such=1", "-port=1", "port=1", "--rest-api-port=1", "--port", "--model_name"]
    )
    def test_other_words_are_unknown(self, word: str) -> None:
        """They are told, and the server goes on without them."""
        assert parse([word]).unknown == (word,)

    @pytest.mark.parametrize(
        "word", ["--port=abc", "--port=", "--port=1x", "--enable_batching=yes", "--versions", "--help"]
    )
    def test_wrong_values_are_refused(self, word: str) -> None:
        """A known flag with a value that it cannot have ends the server."""
        with pytest.raises(FlagValueError):
            parse([word])

    @pytest.mark.parametrize(
        ("text", "value"), [("true", True), ("1", True), ("TRUE", True), ("false", False), ("0", False)]
    )
    def test_booleans_have_two_spellings(self, text: str, value: bool) -> None:
        """Words and digits, in any case."""
        assert parse([f"--enable_model_warmup={text}"]).flags.enable_model_warmup is value

    def test_flags_of_later_releases_are_unknown(self) -> None:
        """The server that is stood in for does not know them."""
        assert parse(["--enable_serialization_as_tensor_content=true"]).unknown

    def test_flags_without_effect_are_named(self) -> None:
        """What is understood and not honoured is told, not swallowed."""
        assert parse(["--enable_profiler=false", "--port=1"]).without_effect == ("--enable_profiler=false",)

    @given(st.lists(st.text(max_size=30)))
    def test_nothing_else_is_raised(self, words: list[str]) -> None:
        """Whatever is on the command line is a flag, unknown, or refused."""
        try:
            line = parse(words)
        except FlagValueError:
            return
        assert len(line.unknown) <= len(words)


def settings(tmp_path: Path, *words: str, **files: str) -> Any:
    """Return the settings for flags in which ``{}`` stands for the folder of ``files``."""
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return read_settings(parse([word.replace("{}", str(tmp_path)) for word in words]).flags)


class TestSettings:
    """Start-up mistakes are told in the real server's words, before TensorFlow is loaded."""

    @pytest.mark.parametrize(
        ("words", "complaint"),
        [
            (["--port=0"], "At least one of server_options.grpc_port or server_options.grpc_socket_path must be set."),
            (["--model_name=m"], "Both server_options.model_base_path and server_options.model_config_file are empty!"),
            (["--model_config_file={}/no"], "{}/no; No such file or directory"),
            (["--model_config_file={}"], "{}; Is a directory"),
            (["--model_config_file={}/empty"], "{}/empty; Invalid argument"),
            (["--model_config_file={}/odd"], "Invalid protobuf file: '{}/odd'"),
            (
                ["--model_base_path=/m", "--batching_parameters_file={}/empty"],
                "server_options.batching_parameters_file is set",
            ),
            (["--model_base_path=/m", "--use_alts_credentials", "--ssl_config_file=x"], "Either use_alts_credentials"),
            (["--model_base_path=/m", "--grpc_max_threads=0"], "grpc_max_threads must be positive; was 0"),
            (["--model_base_path=/m", "--tensorflow_session_config_file={}/odd"], "Invalid protobuf file: '{}/odd'"),
            (["--model_base_path=/m", "--platform_config_file={}/odd"], "Invalid protobuf file: '{}/odd'"),
            (
                ["--model_base_path=/m"]
                + [f"--tensorflow_{name}_parallelism=1" for name in ("session", "intra_op", "inter_op")],
                "Either configure server_options.tensorflow_session_parallelism",
            ),
        ],
    )
    def test_mistakes_have_their_words(self, tmp_path: Path, words: list[str], complaint: str) -> None:
        """Each mistake is told as the real server tells it."""
        with pytest.raises(StatusError) as error:
            settings(tmp_path, *words, empty="", odd="foo: 1\n")
        assert error.value.message.startswith(complaint.replace("{}", str(tmp_path)))

    def test_thread_flags_overwrite_the_session_config(self, tmp_path: Path) -> None:
        """As on the real server, also where the flags are 0."""
        text = "intra_op_parallelism_threads: 7 allow_soft_placement: true"
        found = settings(tmp_path, "--model_base_path=/m", "--tensorflow_session_config_file={}/s", s=text)
        session = protos.ConfigProto.FromString(found.load.session_config)
        assert (session.intra_op_parallelism_threads, session.allow_soft_placement) == (0, True)
        both = settings(tmp_path, "--model_base_path=/m", "--tensorflow_session_parallelism=3")
        assert protos.ConfigProto.FromString(both.load.session_config).inter_op_parallelism_threads == 3

    def test_a_platform_file_replaces_the_flags(self, tmp_path: Path) -> None:
        """Its tags and batching count, and a file without TensorFlow leaves no platform."""
        text = (
            'platform_configs { key: "tensorflow" value { source_adapter_config { '
            "[type.googleapis.com/tensorflow.serving.SavedModelBundleSourceAdapterConfig] { legacy_config { "
            'saved_model_tags: "a" batching_parameters { max_batch_size { value: 3 } } } } } } }'
        )
        found = settings(tmp_path, "--model_base_path=/m", "--platform_config_file={}/p", p=text)
        assert (found.load.tags, found.load.batching.max_batch_size.value) == (("a",), 3)
        assert (
            settings(tmp_path, "--model_base_path=/m", "--platform_config_file={}/q", q="# none\n").platforms == set()
        )

    def test_channel_arguments_are_pairs(self) -> None:
        """Whole numbers are numbers; a pair without a value is refused."""
        assert channel_arguments("a=1,b=x") == [("a", 1), ("b", "x")]
        with pytest.raises(StatusError, match="no key=value"):
            channel_arguments("a=1,b")


def listed(*models: dict[str, Any]) -> Any:
    """Return a config of these models."""
    return protos.ModelServerConfig(model_config_list={"config": models})


class TestConfig:
    """Configs that cannot be are refused."""

    @pytest.mark.parametrize(
        ("models", "complaint"),
        [
            ([{"name": "m", "base_path": "/a"}] * 2, "Illegal to list model m multiple times in config list"),
            ([{"name": "m", "base_path": "a"}], "Expected model m to have an absolute path or URI; got base_path()=a"),
            ([{"name": "m"}], "Expected model m to have an absolute path or URI; got base_path()="),
        ],
    )
    def test_lists(self, models: list[dict[str, str]], complaint: str) -> None:
        """One model of a name, with an absolute path."""
        with pytest.raises(StatusError) as error:
            config.check_model_list(listed(*models))
        assert error.value.message == complaint

    @pytest.mark.parametrize(
        ("fields", "complaint"),
        [
            ({}, "Illegal setting neither"),
            ({"model_type": 1, "model_platform": "tensorflow"}, "Illegal setting both"),
            ({"model_type": 2}, "ModelServerConfig::model_type choice 2 not supported."),
            ({"model_platform": "TensorFlow"}, "Model m requests unsupported platform TensorFlow"),
        ],
    )
    def test_platforms(self, fields: dict[str, Any], complaint: str) -> None:
        """TensorFlow, written one way."""
        with pytest.raises(StatusError, match=complaint):
            config.check_platforms(listed({"name": "m", **fields}), frozenset({"tensorflow"}))
        config.check_platforms(listed({"name": "m", "model_type": 1}), frozenset({"tensorflow"}))

    def test_a_running_server_keeps_its_kind_of_config(self) -> None:
        """From a list of models one can go to another list, and a model keeps its platform."""
        one = listed({"name": "m", "model_platform": "tensorflow"})
        config.check_transition(protos.ModelServerConfig(), one)
        config.check_transition(one, one)
        with pytest.raises(StatusError, match="Cannot transition"):
            config.check_transition(one, protos.ModelServerConfig())
        with pytest.raises(StatusError, match="platform was tensorflow and new platform requested is other"):
            config.check_transition(one, listed({"name": "m", "model_platform": "other"}))


class TestVersions:
    """Folders are versions if their names are numbers, and policies choose among them."""

    @pytest.mark.parametrize(
        ("name", "version"),
        [
            ("1", 1),
            ("00000123", 123),
            (" 12", 12),
            ("-3", -3),
            ("+10", None),
            ("v8", None),
            ("9.0", None),
            ("1e2", None),
            ("", None),
            (str(1 << 63), None),
            ("٣", None),
        ],
    )
    def test_names(self, name: str, version: int | None) -> None:
        """Blanks, zeros and a minus sign are allowed, nothing else."""
        assert version_number(name) == version

    @pytest.mark.parametrize(
        ("policy", "versions"),
        [
            ({}, {7}),
            ({"latest": {"num_versions": 0}}, {7}),
            ({"latest": {"num_versions": 2}}, {7, 3}),
            ({"all": {}}, {7, 3, 1}),
            ({"specific": {"versions": [1, 3]}}, {1, 3}),
            ({"specific": {"versions": [1, 9]}}, {1}),
            ({"specific": {}}, set()),
        ],
    )
    def test_policies(self, tmp_path: Path, policy: dict[str, Any], versions: set[int]) -> None:
        """The newest, all of them, or those that are named and there."""
        for name in ("1", "003", "7", "x"):
            (tmp_path / name).mkdir()
        rule = protos.FileSystemStoragePathSourceConfig.ServableVersionPolicy(**policy)
        found = wanted_versions(Watched(name="m", base_path=str(tmp_path), policy=rule))
        assert found.keys() == versions
        assert all(Path(path).is_dir() for path in found.values())

    @pytest.mark.parametrize("path", ["/no/such/folder", "nosuchfs://bucket/m"])
    def test_a_base_path_that_is_not_there_stops_the_look(self, path: str) -> None:
        """The text names the model and the reason."""
        rule = protos.FileSystemStoragePathSourceConfig.ServableVersionPolicy()
        with pytest.raises(StatusError, match=f"Could not find base path {path} for servable m with error") as error:
            wanted_versions(Watched(name="m", base_path=path, policy=rule))
        assert error.value.code is Code.INVALID_ARGUMENT

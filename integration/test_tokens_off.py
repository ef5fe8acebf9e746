"""A real TorchServe as a fleet has it: without tokens, and with a config that was another server's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from integration.conftest import Models, Need
from servewright.cli import run
from servewright.processes import free_ports

Left = Callable[[], list[str]]
SECRETS = """torchserve:
  properties: {keystore_pass: hunter2-keystore}
  environment: {API_TOKEN: hunter2-token}
"""


def verified(fleet: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, dict], str]:
    """Return the exit code of `verify`, its checks by name, and all that it printed and wrote."""
    report = fleet.parent / "report.json"
    code = run(["verify", str(fleet), "-b", "torchserve", "--runtime", "process", "--no-parity", "--json", str(report)])
    printed = capsys.readouterr()
    said = printed.out + printed.err
    assert report.exists(), said
    text = report.read_text()
    assert "checks" in json.loads(text), said + text
    return code, {check["name"]: check for check in json.loads(text)["checks"]}, said + text


@pytest.mark.parametrize("tokens", [False, True])
def test_a_fleet_chooses_whether_tokens_are_wanted(
    tokens: bool, models: Models, tmp_path: Path, need: Need, left_behind: Left, capsys: pytest.CaptureFixture[str]
) -> None:
    """Either server becomes ready and answers over both transports; and no secret of the spec is told."""
    need("torchserve", "process")
    models.spec(tmp_path / "digits.yaml", "torchscript", extra=SECRETS)
    fleet = tmp_path / "fleet.yaml"
    said = str(tokens).lower()
    fleet.write_text(f"servewright: 1\nfleet: digits\nserver: {{tokens: {said}}}\nmodels: [digits.yaml]\n")
    code, checks, everything = verified(fleet, capsys)
    assert code == 0, everything
    setting = checks["setting disable_token_authorization"]
    assert setting["status"] == "pass"
    assert {checks[f"golden[0] over {transport}"]["status"] for transport in ("http", "grpc")} == {"pass"}
    assert "***" in everything
    assert "hunter2" not in everything
    assert left_behind() == []


def test_an_imported_fleet_is_started_where_the_launcher_waits(
    models: Models, tmp_path: Path, need: Need, left_behind: Left, capsys: pytest.CaptureFixture[str]
) -> None:
    """A config of another server is imported, its model gets a path and a signature, and `verify` passes."""
    need("torchserve", "process")
    http, other = free_ports(2)  # the first becomes the fleet's own
    (tmp_path / "config.properties").write_text(
        f"inference_address=http://127.0.0.1:{http}\nmanagement_address=https://127.0.0.1:{other}\n"
        "model_store=/mnt/models/model-store\nload_models=digits.mar\njob_queue_size=200\n"
        "disable_token_authorization=true\n"
    )
    assert run(["import", str(tmp_path / "config.properties"), "-o", str(tmp_path / "fleet")]) == 0
    fleet, spec = tmp_path / "fleet" / "fleet.yaml", tmp_path / "fleet" / "specs" / "digits.yaml"
    assert "inference_address" in fleet.read_text() + spec.read_text()
    models.spec(spec, "torchscript")
    code, checks, everything = verified(fleet, capsys)
    assert code == 0, everything
    wanted = {"inference_address", "management_address", "model_store", "load_models", "disable_token_authorization"}
    assert {checks[f"setting {name}"]["status"] for name in wanted} == {"pass"}
    assert left_behind() == []

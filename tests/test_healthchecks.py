"""What tells an engine whether the server in an image is well: programs that ask the server itself, and nobody else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from servewright.assets import asset_dir

Answers = dict[str, object]
Serve = Callable[[Answers], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Return what starts a server of fixed answers by path, and gives its address."""
    running: list[ThreadingHTTPServer] = []

    def start(answers: Answers) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                found = answers.get(self.path)
                self.send_response(404 if found is None else 200)
                self.end_headers()
                self.wfile.write(json.dumps(found).encode())

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        running.append(server)
        return f"127.0.0.1:{server.server_address[1]}"

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def check(backend: str, folder: Path, address: str) -> subprocess.CompletedProcess[str]:
    """Run a health check against another address and folder than an image's, where a proxy is set that nobody is."""
    script = (asset_dir("templates") / backend / "healthcheck.py").read_text()
    script = script.replace("/config/", f"{folder}/").replace("127.0.0.1:8501", address)
    script = script.replace("127.0.0.1:8081", address)
    nobody = dict.fromkeys(("HTTP_PROXY", "http_proxy", "ALL_PROXY"), "http://127.0.0.1:1")
    environment = {name: value for name, value in os.environ.items() if name.lower() != "no_proxy"} | nobody
    command = [sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)


@pytest.mark.parametrize(("state", "code"), [("AVAILABLE", 0), ("LOADING", 1)])
@pytest.mark.parametrize(
    "config",
    [
        "model_config_list { config { name: 'my model' base_path: '/m' } }",
        '# name: "gone"\nmodel_config_list {\n  config {\n    base_path: "/m" name: "my model"\n  }\n}',
    ],
)
def test_tensorflow_serving_is_well_where_its_models_are(
    config: str, state: str, code: int, serve: Serve, tmp_path: Path
) -> None:
    """In whatever layout the config names them; no proxy of the environment is asked."""
    (tmp_path / "model_config.pbtxt").write_text(config)
    address = serve({"/v1/models/my%20model": {"model_version_status": [{"state": state}]}})
    done = check("tfserving", tmp_path, address)
    assert done.returncode == code, done.stderr


@pytest.mark.parametrize(("ready", "code"), [("READY", 0), ("UNLOADED", 1)])
def test_torchserve_is_well_where_its_workers_are(ready: str, code: int, serve: Serve, tmp_path: Path) -> None:
    """Those of every model, also beyond the first hundred; its key goes to no proxy."""
    (tmp_path / "key_file.json").write_text(
        json.dumps({"management": {"key": "secret", "expiration time": "2999-01-01T00:00:00Z"}, "API": {"key": "x"}})
    )

    def version(name: str, status: str) -> list[dict[str, object]]:
        return [{"modelName": name, "minWorkers": 1, "workers": [{"status": status}]}]

    address = serve(
        {
            "/models?limit=100": {"models": [{"modelName": "one"}], "nextPageToken": "100"},
            "/models?limit=100&next_page_token=100": {"models": [{"modelName": "two/b"}]},
            "/models/one/all": version("one", "READY"),
            "/models/two%2Fb/all": version("two/b", ready),
        }
    )
    done = check("torchserve", tmp_path, address)
    assert done.returncode == code, done.stderr
    assert ("two/b: 0 of 1 workers are ready" in done.stderr) is (code == 1)

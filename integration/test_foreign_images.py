"""Images of other makers: their entrypoints are stepped around, and a limit that one cannot live with is relaxed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from integration.conftest import MakeImage, Models
from integration.sandbox import Sandbox, server_pid
from servewright import processes
from servewright.containers import Container

FORMATS = {"torchserve": "torchscript", "tfserving": "saved_model"}
PROGRAM = "tensorflow_model_server"

# How the official images begin: a shell that stays PID 1 and passes no signal on; one that never ends at all. And a
# volume, of which each container gets one that somebody has to remove.
OFFICIAL = {
    "tfserving": """#!/bin/sh
tensorflow_model_server --port=8500 --rest_api_port=8501 --model_base_path=/models/model "$@"
""",
    "torchserve": """#!/bin/sh
if [ "$1" = serve ]; then
  shift
  torchserve --start --ts-config /home/model-server/config.properties --disable-token-auth
else
  eval "$@"
fi
tail -f /dev/null
""",
}


def up(box: Sandbox, spec: Path, backend: str, image: str, *more: str) -> dict[str, Any]:
    """Keep a server of ``image`` up, and return what `up` says of it."""
    words = ("up", str(spec), "--backend", backend, "--runtime", "docker", "--image", image, "--name", "served")
    record: dict[str, Any] = box.json(*words, *more, "--json")
    return record


@pytest.mark.parametrize("backend", FORMATS)
def test_an_entrypoint_that_hides_its_server(
    backend: str, models: Models, tmp_path: Path, box: Sandbox, make_image: MakeImage
) -> None:
    """As the official images begin, a stop is a kill and a dead server a container that runs; with us, neither."""
    image = make_image(
        backend,
        'COPY entrypoint.sh /usr/local/bin/\nVOLUME /data\nENTRYPOINT ["/usr/local/bin/entrypoint.sh"]\nCMD ["serve"]',
        **{"entrypoint.sh": OFFICIAL[backend]},
    )
    assert box.engine is not None
    api = box.engine.api
    if backend == "torchserve":
        # The trap is one: what it was to run has ended, and the container has not.
        bare = api.create_container(image, command=["echo", "ended"], labels={"servewright.run": str(box.folder)})
        api.start(bare["Id"])
        processes.wait_until(lambda: b"ended" in api.logs(bare["Id"]), within_s=30, what="the command has ended")
        assert api.inspect_container(bare["Id"])["State"]["Running"]
        api.remove_container(bare["Id"], force=True, v=True)
    spec = models.spec(tmp_path / "digits.yaml", FORMATS[backend])
    record = up(box, spec, backend, image)
    assert record["ok"], record
    api.stop(record["container"], timeout=60)
    state = api.inspect_container(record["container"])["State"]
    assert (state["OOMKilled"], state["ExitCode"] != 137) == (False, True), "a stop was a kill a minute later"
    # A name whose server has ended is free; what is left of that one goes first.
    record = up(box, spec, backend, image)
    container = Container(box.engine, record["container"], Path(record["log"]))
    killing = api.exec_create(container.id, ["sh", "-c", f"kill -KILL {server_pid(container)}"])
    api.exec_start(killing["Id"])
    processes.wait_until(lambda: not box.running(), within_s=30, what="the container ends with its server")
    assert [found["state"] for found in box.json("ps", "--json")] == ["dead"]
    assert box.run("down", "--all").returncode == 0
    assert box.volumes, "no container was seen with a volume"
    assert box.left() == []


def wrapper(program: str, first: str) -> dict[str, str]:
    """Return a program that runs ``first`` and then becomes the image's own ``program``."""
    return {program: f'#!/bin/sh\n{first} || exit 1\nPATH=${{PATH#*:}}\nexec {PROGRAM} "$@"\n'}


def relaxed(record: dict[str, Any]) -> list[str]:
    """Return what was relaxed, without the reasons."""
    notes = [note for note in record["notes"] if note.startswith("relaxed: ")]
    return [note.removeprefix("relaxed: ").partition(" (")[0] for note in notes]


def test_an_image_that_writes_to_its_root(models: Models, tmp_path: Path, box: Sandbox, make_image: MakeImage) -> None:
    """It gets a root that can be written, then its own user: step by step, with reasons, and nothing else."""
    image = make_image(
        "tfserving",
        f"USER root\nCOPY {PROGRAM} /opt/before/\nENV PATH=/opt/before:$PATH",
        **wrapper(PROGRAM, "touch /written"),
    )
    record = up(box, models.spec(tmp_path / "digits.yaml", "saved_model"), "tfserving", image)
    assert record["ok"], record
    assert relaxed(record) == ["the root may be written", "the image's own user"]
    assert all("touch: " in note for note in record["notes"] if note.startswith("relaxed: "))
    assert box.engine is not None
    found = box.engine.api.inspect_container(record["container"])
    host = found["HostConfig"]
    assert (host["ReadonlyRootfs"], found["Config"]["User"]) == (False, "root")
    assert (host["CapDrop"], host["SecurityOpt"], host["Privileged"]) == (["ALL"], ["no-new-privileges"], False)
    assert host["PidsLimit"]
    assert host["Memory"]


def test_an_image_of_root_runs_as_nobody(models: Models, tmp_path: Path, box: Sandbox, make_image: MakeImage) -> None:
    """As the official image of TensorFlow Serving says no user, root serves it; with us nobody does, unrelaxed."""
    image = make_image("tfserving", "USER root")
    record = up(box, models.spec(tmp_path / "digits.yaml", "saved_model"), "tfserving", image)
    assert record["ok"], record
    assert relaxed(record) == []
    assert box.engine is not None
    user = box.engine.api.inspect_container(record["container"])["Config"]["User"]
    assert user.partition(":")[0] not in ("", "0", "root")


def test_an_image_that_names_its_user(models: Models, tmp_path: Path, box: Sandbox, make_image: MakeImage) -> None:
    """As TorchServe's official one does, which has no folder for runs either: the server can write to its own."""
    image = make_image(
        "torchserve",
        "USER root\nRUN echo 'named:x:1234:1235::/home/model-server:/bin/sh' >>/etc/passwd"
        " && rm -rf /home/model-server/run\nUSER named",
    )
    record = up(box, models.spec(tmp_path / "digits.yaml", "torchscript"), "torchserve", image)
    assert record["ok"], record
    assert relaxed(record) == []
    assert box.engine is not None
    container = Container(box.engine, record["container"], Path(record["log"]))
    status = container.file(f"/proc/{server_pid(container)}/status").read_bytes().decode()
    assert "Uid:\t1234\t" in status
    assert "Gid:\t1235\t" in status


def test_an_image_without_a_shell(models: Models, tmp_path: Path, box: Sandbox, make_image: MakeImage) -> None:
    """It is started without the watch, and the record says so; it still ends with `down`."""
    # No shell but under a name that is none of the image's own.
    image = make_image(
        "tfserving",
        "USER root\nRUN cp /bin/sh /bin/kept-shell && rm /bin/sh\n"
        f"COPY {PROGRAM} /opt/before/\nENV PATH=/opt/before:$PATH",
        **{PROGRAM: "#!/bin/kept-shell\nPATH=${PATH#*:}\n"
           f'program=$(command -v {PROGRAM})\nread -r first <"$program"\n'
           'case $first in "#!"*) exec /bin/kept-shell "$program" "$@";; esac\nexec "$program" "$@"\n'},
    )  # fmt: skip
    record = up(box, models.spec(tmp_path / "digits.yaml", "saved_model"), "tfserving", image)
    assert record["ok"], record
    assert relaxed(record) == ["no watch inside the container: it has no shell"]
    assert box.run("down", "--all").returncode == 0
    assert box.left() == []

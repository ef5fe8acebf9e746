"""Runtime ``docker``: a plan carried out in a container, which ends with its owner.

What ends a container whose owner was killed is the container itself. Its standard input is a lease: the engine closes
it with the owner's connection, and a few lines of shell, which started the server, end it. They know the deadline too.
"""

from __future__ import annotations

import io
import os
import shutil
import stat
import tarfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from servewright import __version__, engine, hardening, runs, state, units
from servewright.backend import Artifact, LaunchPlan, Site
from servewright.containers import Container
from servewright.engine import Engine, Image, Progress
from servewright.errors import InputError, LaunchError, PortTakenError, ProbeTimeoutError, UnavailableError
from servewright.hardening import Hardening
from servewright.processes import wait_until
from servewright.server import RunningServer

NAME = "docker"
LOG = "server.log"
RUN, OWNER, DEADLINE, VERSION = (f"servewright.{name}" for name in ("run", "owner", "deadline", "version"))
DEADLINE_VARIABLE = "SERVEWRIGHT_DEADLINE"
_NEVER = "none"
# A command that takes longer than this is one that nobody waits for.
_DEADLINE_S = 12 * 3600
# How long past its deadline a container of another machine or user is given to end by itself.
_DEADLINE_GRACE_S = 60.0
_PORTS_WITHIN_S = 5.0
_TAKEN = ("port is already allocated", "address already in use")

# The arguments: the deadline in seconds or 0, whether standard input is a lease, and the server's command.
# TERM goes to what the command started too: torchserve is a wrapper that does not pass it on, and its end would take
# the JVM with it. A lease that says "stay" is one that is given back. Its words are read by `Container.why_ended`.
WATCH = """
deadline=$1 leased=$2; shift 2
exec 3<&0
"$@" </dev/null 3<&- &
server=$!
kids=
stop() {
  kids="$kids $(cat "/proc/$server/task/$server/children" 2>/dev/null)"
  kill -TERM "$server" $kids 2>/dev/null
}
trap stop TERM INT
end() { echo "servewright: $1" >&2; kill -TERM $$; sleep 10; kill -KILL $$; }
if [ "$leased" = 1 ]; then
  { read -r word <&3 && [ "$word" = stay ] || end "the command that started this is gone"; } &
fi
if [ "$deadline" != 0 ]; then { sleep "$deadline"; end "the deadline of $deadline s has come"; } & fi
exec 3<&-
while :; do
  wait "$server"; code=$?
  kill -0 "$server" 2>/dev/null || break
done
for kid in $kids; do
  while kill -0 "$kid" 2>/dev/null; do sleep 0.05; done
done
cat /sys/fs/cgroup/memory.events /sys/fs/cgroup/memory/memory.oom_control 2>/dev/null | while read -r name count; do
  [ "$name" != oom_kill ] || [ "$count" = 0 ] || echo "servewright: out of memory" >&2
done
exit "$code"
""".strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class DockerLauncher:
    """Starts plans in containers of one image; ``hardening`` is ``None`` until an image asked for milder limits."""

    engine: Engine = field(repr=False)
    image: Image
    hardening: Hardening | None = None

    @property
    def note(self) -> str:
        """What a report says of it."""
        return f"image {self.image.name} ({self.image.digest or self.image.id}) on Docker Engine {self.engine.version}"

    def site(self, home: Site, artifact: Artifact, run: Path, *, fixed: Mapping[str, int]) -> Site:
        """Return where the server will live: where its usual image has it."""
        del run, fixed
        return replace(home, packed=artifact.packed)

    def start(
        self, plan: LaunchPlan, artifact: Artifact, run: Path, *, fixed: Mapping[str, int], detached: bool
    ) -> RunningServer:
        """Start ``plan`` with the rendered configuration in ``run/config``; its output goes to ``run/server.log``."""
        limits, marks = self._limits(plan), labels(run, _deadline_s(detached=detached))
        with _failing_start(plan):
            user = limits.user or numbers_of(self.engine, self.image, marks)
        request = body(
            plan, self.image, limits, mounts=_mounts(plan.site, artifact, run, limits), fixed=fixed, labels=marks,
            user=user,
        )  # fmt: skip
        with _failing_start(plan):
            created = self.engine.api.create_container_from_config(request, name=run.name)["Id"]
        container = Container(self.engine, created, run / LOG)
        try:
            if limits.watched:
                container.lease()
            with _failing_start(plan):
                self.engine.api.start(created)
            container.follow(detached=detached)
            ports = _published(container, plan.site.ports)
        except BaseException:
            container.stop(0.0)
            raise
        return RunningServer(
            backend=plan.backend,
            runtime=NAME,
            endpoints={name: f"127.0.0.1:{port}" for name, port in ports.items()},
            site=plan.site,
            folder=run,
            handle=container,
            image=self.image.facts(),
            notes=(self.note, *(f"relaxed: {why}" for why in limits.relaxed)),
        )

    def again(self, plan: LaunchPlan, error: LaunchError) -> DockerLauncher | None:
        """Return a milder launcher, where ``error`` says that the image or the engine cannot live with a limit."""
        milder = hardening.relax(self._limits(plan), str(error))
        return replace(self, hardening=milder) if milder else None

    def _limits(self, plan: LaunchPlan) -> Hardening:
        return self.hardening or hardening.strictest(
            image_user=self.image.user,
            own_user=f"{os.getuid()}:{os.getgid()}" if os.getuid() != 0 and not self.engine.rootless else None,
            memory=plan.memory,
            cpus=plan.cpus,
            machine_memory=self.engine.memory,
            machine_cpus=self.engine.cpus,
            selinux=self.engine.selinux,
        )


def find(name: str, *, pull: bool, progress: Progress) -> DockerLauncher:
    """Return what starts servers from the image ``name``; `UnavailableError` where no engine or image can be had."""
    found = engine.connect()
    sweep(found)
    return DockerLauncher(engine=found, image=engine.image(found, name, pull=pull, progress=progress))


def body(
    plan: LaunchPlan,
    image: Image,
    limits: Hardening,
    *,
    mounts: Mapping[str, Path],
    fixed: Mapping[str, int],
    labels: Mapping[str, str],
    user: str,
) -> dict[str, Any]:
    """Return the request that makes the container, in the words of the Engine's API.

    ``user`` is whose its writable folders are, as a number and maybe a group's. ``mounts`` maps a folder inside to
    one of this machine, ``fixed`` a port's name to its number outside. The image's entrypoint is stepped around:
    neither official one lets a signal through to its server.
    """
    site = plan.site
    deadline = labels[DEADLINE]
    lifetime = 0 if deadline == _NEVER else max(1, round(float(deadline) - time.time()))
    watch = ("sh", "-c", WATCH, "servewright", str(lifetime), "1") if limits.watched else ()
    scratch = {"/tmp", site.run, *(f"{site.run}/{folder}" for folder in plan.folders)}  # noqa: S108  (inside)
    host: dict[str, Any] = limits.host_config() | {
        "Mounts": [
            {"Type": "bind", "Source": str(source), "Target": target, "ReadOnly": True}
            for target, source in mounts.items()
        ],
        # exec: the JVM and PyTorch unpack native libraries there.
        "Tmpfs": dict.fromkeys(sorted(scratch), f"rw,exec,nosuid,nodev,mode=1777{_owned(user)}"),
        "PortBindings": {
            f"{port}/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(fixed.get(name, ""))}]
            for name, port in site.ports.items()
        },
    }
    if plan.gpu:
        host["DeviceRequests"] = [{"Driver": "", "Count": -1, "Capabilities": [["gpu"]]}]
    # A user that the image does not know has no name and no home, and Python libraries ask for both.
    environment = {"HOME": site.run, "USER": "servewright", "LOGNAME": "servewright"} | dict(plan.environment)
    return {
        "Image": image.id,
        "Entrypoint": [*watch, plan.argv[0]] if not watch else list(watch),
        "Cmd": list(plan.argv[1:]) if not watch else list(plan.argv),
        "Env": [f"{name}={value}" for name, value in sorted(environment.items())],
        "WorkingDir": site.run,
        "Labels": dict(labels),
        "ExposedPorts": {f"{port}/tcp": {} for port in site.ports.values()},
        "OpenStdin": limits.watched,
        "StdinOnce": limits.watched,
        "HostConfig": host,
    } | ({"User": limits.user} if limits.user else {})  # fmt: skip


def numbers_of(where: Engine, image: Image, labels: Mapping[str, str]) -> str:
    """Return the user of ``image`` as a number, and its group's, also where the image names it.

    Who that is stands in a file of the image, which a container that never starts gives away.
    """
    from docker.errors import NotFound

    name, _, group = image.user.partition(":")
    if not name or name.isdecimal():
        return image.user
    made = where.api.create_container_from_config({"Image": image.id, "Cmd": ["true"], "Labels": dict(labels)})["Id"]
    try:
        stream, _ = where.api.get_archive(made, "/etc/passwd")
        with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as archive:
            file = archive.extractfile("passwd")
            lines = file.read().decode(errors="replace").splitlines() if file is not None else []
    except (NotFound, tarfile.TarError, KeyError):
        return image.user
    finally:
        where.api.remove_container(made, v=True, force=True)
    known = {fields[0]: fields for line in lines if len(fields := line.split(":")) >= 4}
    if name not in known:
        return image.user
    _, _, uid, gid, *_ = known[name]
    return f"{uid}:{group if group.isdecimal() else gid}"


def _owned(user: str) -> str:
    """Return the options that give a tmpfs to ``user``: runc gives one the mode of the folder that it covers."""
    uid, _, gid = user.partition(":")
    return f",uid={uid},gid={gid if gid.isdecimal() else uid}" if uid.isdecimal() else ""


def labels(run: Path, deadline_s: float | None) -> dict[str, str]:
    """Return the labels of what belongs to ``run``: whose it is, and until when."""
    deadline = _NEVER if deadline_s is None else f"{time.time() + deadline_s:.0f}"
    return {VERSION: __version__, RUN: str(run), OWNER: owner(), DEADLINE: deadline}


def owner() -> str:
    """Return whose runs can be judged from here: this boot, this view of the disk, this user."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        view = str(Path("/proc/self/ns/mnt").stat().st_ino)
    except OSError:  # macOS, where the engine's machine is another one and all processes share the disk
        boot, view = "local", "0"
    return f"{boot}:{view}:{os.getuid()}"


def sweep(where: Engine) -> list[str]:
    """Remove the containers that killed runs left, and return their ids.

    Servers that `up` keeps stay, also where somebody has emptied the folder for temporary files.
    """
    kept = {record.container for record in state.records()}
    swept = []
    for found in listed(where):
        if found["Id"] not in kept and _is_dead(found["Labels"]):
            with suppress(LaunchError):
                Container(where, found["Id"], Path(os.devnull)).stop(0.0)
                swept.append(str(found["Id"]))
    return swept


def sweep_here() -> None:
    """Sweep the engine of this machine; `UnavailableError` where there is none."""
    sweep(engine.connect())


def listed(where: Engine) -> list[dict[str, Any]]:
    """Return every container of ours, running or not, as the engine lists them."""
    with engine.translated("list the containers"):
        return where.api.containers(all=True, filters={"label": RUN})  # type: ignore[no-any-return]


def _is_dead(found: Mapping[str, str]) -> bool:
    if found.get(OWNER) == owner():
        return not runs.is_alive(Path(found[RUN]))
    deadline = found.get(DEADLINE, _NEVER)
    return deadline != _NEVER and time.time() > float(deadline) + _DEADLINE_GRACE_S


def _deadline_s(*, detached: bool) -> float | None:
    """Return after how many seconds a container ends by itself, or ``None`` for never."""
    wanted = os.environ.get(DEADLINE_VARIABLE)
    if wanted is None:
        return None if detached else _DEADLINE_S
    try:
        return units.parse_duration_us(wanted) / 1e6
    except units.UnitError as error:
        raise InputError(f"{DEADLINE_VARIABLE}: {error.reason}; {error.remedy}") from error


def _mounts(site: Site, artifact: Artifact, run: Path, limits: Hardening) -> dict[str, Path]:
    """Return what the container sees, readable for its user."""
    config = run / "config"
    # Its parent is ours alone; what is mounted need not be.
    for path in (config, *config.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    models = artifact.models.absolute()
    if not _readable(models, limits.user):
        copied = run / "models"
        if not copied.exists():
            shutil.copytree(models, copied)
            for path in (copied, *copied.rglob("*")):
                path.chmod(0o755 if path.is_dir() else 0o644)
        models = copied
    return {site.models: models, site.config: config}


def _readable(folder: Path, user: str | None) -> bool:
    """Tell whether ``user`` can read all of ``folder`` once it is mounted: then its parents do not matter."""
    uid = user.partition(":")[0] if user else ""
    for path in (folder, *folder.rglob("*")):
        found = path.stat()
        wanted = 0o5 if stat.S_ISDIR(found.st_mode) else 0o4
        if str(found.st_uid) == uid:
            wanted <<= 6
        if found.st_mode & wanted != wanted:
            return False
    return True


def _published(container: Container, ports: Mapping[str, int]) -> dict[str, int]:
    """Return the ports of this machine by name; the system's choice shows a moment after the start."""

    def chosen() -> dict[str, int] | None:
        found = container.inspect()
        bound = found["NetworkSettings"]["Ports"] or {}
        if all(bound.get(f"{port}/tcp") for port in ports.values()):
            return {name: int(bound[f"{port}/tcp"][0]["HostPort"]) for name, port in ports.items()}
        if not found["State"]["Running"]:
            raise LaunchError(f"the server ended at once: {container.why_ended()}", log_tail=container.log_tail())
        return None

    try:
        return wait_until(chosen, within_s=_PORTS_WITHIN_S, every_s=0.02, what="the ports are published")
    except ProbeTimeoutError as error:
        raise LaunchError(str(error), log_tail=container.log_tail()) from error


@contextmanager
def _failing_start(plan: LaunchPlan) -> Iterator[None]:
    """Say what an engine's refusal to start means."""
    try:
        with engine.translated("start the container"):
            yield
    except LaunchError as error:
        text = str(error)
        if any(taken in text for taken in _TAKEN):
            raise PortTakenError(f"{text}; stop what listens there, or leave the port out of the spec") from error
        if "could not select device driver" in text:
            raise UnavailableError(
                f"the Docker Engine knows no GPU ({text}); install nvidia-container-toolkit, or set device: cpu"
            ) from error
        if f'"{plan.argv[0]}": executable file not found' in text:
            raise InputError(f"the image has no program {plan.argv[0]!r}; choose an image of {plan.backend}") from error
        raise

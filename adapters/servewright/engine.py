"""The Docker Engine: where it is, its images, and its errors as ours. The one home of the Docker SDK."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from servewright.errors import LaunchError, MissingExtraError, ServewrightError, UnavailableError

# 1.40 is Docker 19.03: device requests and the limits that we set came with it.
OLDEST_API = (1, 40)
OTHERWISE = "name another with --image, or use another runtime: --runtime process"
_TIMEOUT_S = 60

# Called with the share that is done, from 0 to 1, and what is being done.
Progress = Callable[[float, str], None]


@dataclass(frozen=True, slots=True)
class Address:
    """Where an engine listens, how that was found, and what its TLS needs, if any."""

    url: str
    source: str
    tls: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """An engine that answers; ``address`` leads another process to it."""

    api: Any  # docker.APIClient: its published types leave out half of it
    address: Address
    version: str
    cpus: int
    memory: int
    security: tuple[str, ...]

    @property
    def rootless(self) -> bool:
        """Whether the engine itself runs without root."""
        return any("rootless" in option for option in self.security)

    @property
    def selinux(self) -> bool:
        """Whether files that are mounted need a label before a container may read them."""
        return any("selinux" in option for option in self.security)


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image that the engine has; ``digest`` is the registry's, empty for one that was built here."""

    name: str
    id: str
    digest: str
    user: str

    def facts(self) -> dict[str, str]:
        """Return what a report says of it."""
        found = {"image": self.name, "image_id": self.id}
        return found | ({"image_digest": self.digest} if self.digest else {})


def address() -> Address:
    """Return where the engine is: DOCKER_HOST, the current context, or the first socket of the usual ones."""
    if host := os.environ.get("DOCKER_HOST"):
        return Address(host, "DOCKER_HOST")
    if context := _context():
        return context
    sockets = list(_usual_sockets())
    for path in sockets:
        if path.exists():
            return Address(f"unix://{path}", str(path))
    looked = ", ".join(map(str, sockets))
    raise UnavailableError(f"no Docker Engine: DOCKER_HOST is not set, and there is no socket at {looked}")


def _usual_sockets() -> Iterator[Path]:
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    yield Path("/var/run/docker.sock")
    if runtime:
        yield Path(runtime) / "docker.sock"
    yield Path.home() / ".docker" / "run" / "docker.sock"
    if runtime:
        yield Path(runtime) / "podman" / "podman.sock"
    yield Path("/run/podman/podman.sock")


def _context() -> Address | None:
    """Return where the context in use leads; ``None`` for the one that is called default, which has no address.

    The SDK's own reader finds no context where there is no config.json, which `docker context create` does not write.
    """
    folder = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")
    name = os.environ.get("DOCKER_CONTEXT") or str(_json(folder / "config.json").get("currentContext") or "")
    if name in ("", "default"):
        return None
    identity = hashlib.sha256(name.encode()).hexdigest()
    found = _json(folder / "contexts" / "meta" / identity / "meta.json")
    if not found:
        raise UnavailableError(f"there is no Docker context {name!r} in {folder}; see: docker context ls")
    endpoint = (found.get("Endpoints") or {}).get("docker") or {}
    if not endpoint.get("Host"):
        raise UnavailableError(f"the Docker context {name!r} names no engine; see: docker context inspect {name}")
    pems = folder / "contexts" / "tls" / identity / "docker"
    return Address(str(endpoint["Host"]), f"the Docker context {name}", _tls(pems, endpoint) if pems.is_dir() else None)


def _json(path: Path) -> dict[str, Any]:
    """Return a JSON object; an empty one where there is no file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UnavailableError(f"Docker's {path} cannot be read: {error}") from error
    return found if isinstance(found, dict) else {}


def _tls(pems: Path, endpoint: Mapping[str, Any]) -> Any:
    from docker.errors import TLSParameterError
    from docker.tls import TLSConfig

    cert, key, ca = (pems / f"{name}.pem" for name in ("cert", "key", "ca"))
    try:
        return TLSConfig(
            client_cert=(str(cert), str(key)) if cert.is_file() and key.is_file() else None,
            ca_cert=str(ca) if ca.is_file() else None,
            verify=not endpoint.get("SkipTLSVerify"),
        )
    except TLSParameterError as error:
        raise UnavailableError(f"the keys in {pems} cannot be used: {error}") from error


def connect() -> Engine:
    """Return the engine of this machine; `UnavailableError` says why there is none that can be used."""
    return connect_to(address())


def connect_to(where: Address) -> Engine:
    """Return the engine at ``where``."""
    parts = urlsplit(where.url)
    if parts.scheme in ("tcp", "http", "https", "ssh") and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        raise UnavailableError(
            f"the Docker Engine of {where.source} is on another machine ({where.url}): what it publishes on its "
            "loopback cannot be reached from here; run servewright there, or use another runtime"
        )
    try:
        import docker
        import docker.errors
    except ImportError as error:
        raise MissingExtraError("docker", "docker", "runtime docker") from error
    if parts.scheme == "unix":
        _check_socket(where, parts.path)
    try:
        api = docker.APIClient(timeout=_TIMEOUT_S, version="auto", **_parameters(where))
        told = api.version()
        info = api.info()
    except docker.errors.DockerException as error:
        raise UnavailableError(_unreachable(where, error)) from error
    except (OSError, ValueError) as error:  # requests' own errors are OSErrors
        raise UnavailableError(_unreachable(where, error)) from error
    if _release(str(told.get("ApiVersion", "0"))) < OLDEST_API:
        raise UnavailableError(
            f"the Docker Engine at {where.url} is too old: version {told.get('Version')}, API {told.get('ApiVersion')}"
            "; 19.03 (API 1.40) is needed"
        )
    if info.get("OSType", "linux") != "linux":
        raise UnavailableError(f"the Docker Engine at {where.url} runs {info['OSType']} containers; switch it to Linux")
    return Engine(
        api=api,
        address=where,
        version=str(told.get("Version", "?")),
        cpus=int(info.get("NCPU") or 1),
        memory=int(info.get("MemTotal") or 0),
        security=tuple(info.get("SecurityOptions") or ()),
    )


def _check_socket(where: Address, path: str) -> None:
    """Raise `UnavailableError` where nobody listens; the SDK would leave its own attempt open."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError as error:
            raise UnavailableError(_unreachable(where, error)) from error


def _parameters(where: Address) -> Mapping[str, Any]:
    if where.source != "DOCKER_HOST":
        return {"base_url": where.url, "tls": where.tls or False}
    from docker.utils import kwargs_from_env

    # With DOCKER_TLS_VERIFY and DOCKER_CERT_PATH, as the docker command reads them.
    return kwargs_from_env()


def _unreachable(where: Address, error: Exception) -> str:
    text = str(error)
    if "Permission denied" in text or "PermissionError" in text:
        return (
            f"no permission for the Docker Engine at {where.url}; add this user to its group: usermod -aG docker $USER"
        )
    if "below" in text and "no longer supported" in text:
        return f"the Docker Engine at {where.url} is too old; 19.03 (API 1.40) is needed"
    return (
        f"no Docker Engine answers at {where.url} ({where.source}): {_innermost(error)}; start it, or see DOCKER_HOST"
    )


def _innermost(error: BaseException) -> str:
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return str(error) or type(error).__name__


def _release(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())


@contextmanager
def translated(doing: str, *, error_type: type[ServewrightError] = LaunchError) -> Iterator[None]:
    """Turn the SDK's errors into ours: what was being done, and what the engine said."""
    from docker.errors import APIError, DockerException

    try:
        yield
    except APIError as error:
        raise error_type(f"{doing}: {error.explanation or error}") from error
    except (DockerException, OSError) as error:
        raise error_type(f"{doing}: the Docker Engine does not answer any more ({_innermost(error)})") from error


def is_absent(error: BaseException) -> bool:
    """Tell whether ``error``, one of ours, says that the engine has no such thing."""
    from docker.errors import NotFound

    return isinstance(error.__cause__, NotFound)


def local_image(engine: Engine, name: str) -> Image | None:
    """Return the image called ``name`` (a tag, a digest or an id), or ``None`` where the engine does not have it."""
    try:
        with translated(f"look at image {name}"):
            found = engine.api.inspect_image(name)
    except LaunchError as error:
        if is_absent(error):
            return None
        raise
    digests = found.get("RepoDigests") or []
    own = [digest for digest in digests if digest.partition("@")[0] == _repository_and_tag(name)[0]]
    return Image(
        name=name,
        id=str(found["Id"]),
        digest=str((own or digests or [""])[0]),
        user=str((found.get("Config") or {}).get("User") or ""),
    )


def image(engine: Engine, name: str, *, pull: bool, progress: Progress) -> Image:
    """Return the image called ``name``, pulled where it is not there and ``pull`` allows it."""
    found = local_image(engine, name)
    if found is not None:
        return found
    if not pull:
        raise UnavailableError(f"image {name} is not here; pull it: docker pull {name}")
    try:
        _pull(engine, name, progress)
    except LaunchError as error:
        raise UnavailableError(f"{error}; {OTHERWISE}") from error
    found = local_image(engine, name)
    if found is None:
        raise UnavailableError(f"image {name} is neither here nor can it be pulled; {OTHERWISE}")
    return found


def _pull(engine: Engine, name: str, progress: Progress) -> None:
    """Pull ``name``; the share that is done is that of the bytes that are known so far."""
    repository, tag = _repository_and_tag(name)
    done: dict[str, int] = {}
    total: dict[str, int] = {}
    doing = f"image {name} is not here and cannot be pulled"
    with translated(doing):
        for event in engine.api.pull(repository, tag=tag, stream=True, decode=True):
            if "error" in event:
                raise LaunchError(f"{doing}: {event['error']}")
            detail, layer = event.get("progressDetail") or {}, str(event.get("id", ""))
            if detail.get("total") and event.get("status") == "Downloading":
                total[layer], done[layer] = detail["total"], detail.get("current", 0)
            elif layer in total and event.get("status") in ("Download complete", "Pull complete"):
                done[layer] = total[layer]
            if total:
                progress(sum(done.values()) / sum(total.values()), f"pull {name}")


def _repository_and_tag(name: str) -> tuple[str, str]:
    """Split ``name``; the tag is a digest where it has one, and ``latest`` where it has neither."""
    base, at, digest = name.partition("@")
    repository, colon, tag = base.rpartition(":")
    if not colon or "/" in tag:  # the colon of a registry's port
        repository, tag = base, "latest"
    return repository, digest if at else tag


def another_connection(engine: Engine) -> Engine:
    """Return ``engine`` over connections of their own, for another thread."""
    import docker

    api = docker.APIClient(timeout=_TIMEOUT_S, version=engine.api._version, **_parameters(engine.address))
    return replace(engine, api=api)

"""Rolling a running TensorFlow Serving from one version to the next.

A step of the server's is a pair of states, each a whole config and what it serves: the server takes nothing smaller.
Facts that shape the order of the states:

- Requests that name neither version nor label get the highest version that is AVAILABLE. So a canary is by default a
  model of its own name; as a label it is for fleets of which every client names a label or a version.
- A version that lies in a base path is loaded at once where the policy is ``latest`` or ``all``. So the policy is
  pinned to the versions that are served before a new one is put there, and set free last.
- A label may be put on a version that is AVAILABLE, and on no other. So versions come before labels, and labels go
  before versions.
- A reload waits for models that are new in it, and further reloads wait for that one. So the canary's model first
  serves the old version, which is known to load: a version that fails never blocks the way back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from servewright.backends.tfserving.rollout.canary import canary
from servewright.backends.tfserving.rollout.carrying import carry_out, observe, undo
from servewright.backends.tfserving.rollout.change import change_of
from servewright.backends.tfserving.rollout.config_file import config_file
from servewright.backends.tfserving.rollout.current import current_state
from servewright.backends.tfserving.rollout.plan import Plan
from servewright.backends.tfserving.rollout.state import CONFIG, State
from servewright.errors import InputError, ServerAnswerError
from servewright.rollout.plan import Aim, Rolling, Step
from servewright.rollout.publishing import check_writable

if TYPE_CHECKING:
    from servewright.backends.tfserving.client import Client
    from servewright.server import RunningServer

__all__ = ["CONFIG", "State", "prepare", "rolling"]

OPTIONS = {
    "store": "the folder of this machine that holds the models' base paths, as the server sees it or mounted elsewhere",
    "config": "the server's model config file",
    "via": "grpc (a reload request, the default) or file (the config file, which the server polls)",
}
_VIAS = ("grpc", "file")


def rolling() -> Rolling:
    """Return how live servers are moved."""
    return Rolling(
        options=OPTIONS, prepare=prepare, carry_out=carry_out, undo=undo, observe=observe, canary=canary,
    )  # fmt: skip


def prepare(aim: Aim, server: RunningServer, client: Client) -> tuple[Step, ...]:
    """Return the steps for one server; `InputError` names what it lacks."""
    via = aim.options.get("via", "grpc")
    if via not in _VIAS:
        raise InputError(f"via={via} is no way to a server; choose from {', '.join(_VIAS)}")
    if via == "grpc":
        _check_reloads(server, client)
    file = config_file(aim, server, via)
    current = current_state(aim, client, file)
    changes = [change for document in aim.fleet.models if (change := change_of(aim, client, current, document.spec))]
    if not changes:
        return ()
    for change in changes:
        check_writable(change.folder)
    plan = Plan(aim=aim, changes=changes, way={"via": via, "file": str(file) if via == "file" else ""})
    return tuple(plan.steps(current))


def _check_reloads(server: RunningServer, client: Client) -> None:
    """Ask for a reload that every server refuses by itself: whether it gets that far is what must be known."""
    if "grpc" not in server.endpoints:
        raise InputError("a reload goes over gRPC: say grpc=host:port, or via=file where the server polls its config")
    try:
        client.reload("", timeout_s=10.0)
    except ServerAnswerError as error:
        if "HandleReloadConfigRequest" not in error.message:
            raise InputError(
                f"the server takes no reload: {error}; allow ModelService.HandleReloadConfigRequest there, or use "
                "via=file where the server polls its config"
            ) from error

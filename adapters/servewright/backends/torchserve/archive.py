"""What lies where in a model archive of TorchServe (``.mar``), or in the directory that stands for one.

TorchServe looks for every file that its manifest names in the archive's root, and puts that root on ``PYTHONPATH``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from servewright.errors import InputError

MANIFEST = "MAR-INF/MANIFEST.json"
MODEL_CONFIG = "model-config.yaml"
REQUIREMENTS = "requirements.txt"


def mar_members(
    *,
    manifest_json: str,
    model_config_yaml: str,
    model_file: Path,
    extra: Mapping[str, Path | bytes],
    handler: Path,
    requirements: Path | None,
    code: Path | None,
) -> dict[str, Path | bytes]:
    """Return the members of a model archive; ``extra`` names its files itself, the others keep their base names.

    Write them with `servewright.archive.write_zip` for a file, or `servewright.tree.assemble_tree` for a directory.
    Raises InputError where two different files would bear one name.
    """
    parts: list[tuple[str, str, Path | bytes]] = [
        (MANIFEST, "the archive's manifest", manifest_json.encode()),
        (MODEL_CONFIG, "the rendered model config", model_config_yaml.encode()),
        (model_file.name, "the model", model_file),
        (handler.name, "the handler", handler),
    ]
    if code is not None:
        parts.append((code.name, "the model's code", code))
    if requirements is not None:
        parts.append((REQUIREMENTS, "the requirements", requirements))
    parts += [(name, "an extra file", content) for name, content in extra.items()]

    members: dict[str, Path | bytes] = {}
    roles: dict[str, str] = {}
    clashes = []
    for name, role, content in parts:
        if name in members and not _same(members[name], content):
            clashes.append(
                f"two files would be called {name!r} in the archive: {roles[name]}{_place(members[name])} and "
                f"{role}{_place(content)}; rename one"
            )
        elif name.startswith("MAR-INF/") and name != MANIFEST:
            clashes.append(f"{role} would be called {name!r}, and MAR-INF is TorchServe's own; rename it")
        else:
            members[name], roles[name] = content, role
    if clashes:
        raise InputError("\n".join(clashes))
    return members


def _same(first: Path | bytes, second: Path | bytes) -> bool:
    """Tell whether both are one file, named twice: labels, say, that are also among the extra files."""
    if isinstance(first, Path) and isinstance(second, Path):
        return first.resolve() == second.resolve()
    return first == second


def _place(content: Path | bytes) -> str:
    return f" ({content})" if isinstance(content, Path) else ""

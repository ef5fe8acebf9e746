"""What a model store of TorchServe is made of."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

from servewright.assets import asset_dir
from servewright.backend import Archive, Build, Content
from servewright.backends.torchserve import keys, texts
from servewright.errors import SpecError
from servewright.fleet import Fleet
from servewright.specfile import Document


def members(fleet: Fleet, rendered: Mapping[str, str], build: Build) -> dict[str, Content]:
    """Return the content of ``models/``: an archive for each model, or a folder of the same files."""
    found: dict[str, Content] = {}
    for document in fleet.models:
        name = document.spec.name
        archive = archive_members(document, rendered)
        if build.packed:
            found[f"models/{name}.mar"] = Archive(archive)
        else:
            found |= {f"models/{name}/{path}": content for path, content in archive.items()}
    return found


def archive_members(document: Document, rendered: Mapping[str, str]) -> Mapping[str, Path | bytes]:
    """Return the files of one model's archive, all in its root but for the manifest."""
    from servewright.backends.torchserve.archive import mar_members
    from servewright.modelfiles.onnx import external_files

    spec = document.spec
    source = spec.source(keys.NAME)
    assert source is not None  # keys.explain refuses the spec otherwise
    own = spec.handler.use.endswith(".py")
    handler = document.resolve(spec.handler.use) if own else asset_dir("handlers") / texts.handler_file(spec)
    # The vision and text handlers import the tensor handler, which is a file beside them; handlers of users may too.
    tensor = asset_dir("handlers") / "servewright_tensor.py"
    extra: dict[str, Path | bytes] = {tensor.name: tensor} if not own or _imports(handler, tensor.stem) else {}
    model = document.resolve(source.path)
    if source.format == "onnx":  # weights of more than 2 GB, and torch's exporter by default, lie beside the graph
        extra |= {name: model.parent / name for name in external_files(model)}
    for file in (*spec.files, spec.handler.labels, spec.handler.text.tokenizer if spec.handler.text else None):
        if file:
            for name, path in _files(document.resolve(file)).items():
                if extra.setdefault(name, path) != path:
                    reason = f"two files would be called {name!r} in the archive: {extra[name]!r} and {path!r}"
                    raise SpecError([document.problem("files", reason, "rename one")])
    return mar_members(
        manifest_json=rendered[f"{spec.name}/{texts.MANIFEST}"],
        model_config_yaml=rendered[f"{spec.name}/{texts.MODEL_CONFIG}"],
        model_file=model,
        extra=extra,
        handler=handler,
        requirements=document.resolve(spec.requirements) if spec.requirements else None,
        code=document.resolve(source.code.partition(":")[0]) if source.code else None,
    )


def _imports(handler: Path, module: str) -> bool:
    """Tell whether a handler's source imports ``module``; one that does not even parse imports nothing."""
    try:
        tree = ast.parse(handler.read_bytes())
    except (SyntaxError, ValueError):
        return False
    return any(
        module in [alias.name for alias in node.names] if isinstance(node, ast.Import) else node.module == module
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    )


def _files(path: Path) -> dict[str, Path | bytes]:
    """Return a file, or every file below a folder, by its name in the archive."""
    if not path.is_dir():
        return {path.name: path}
    return {
        f"{path.name}/{file.relative_to(path).as_posix()}": file for file in sorted(path.rglob("*")) if file.is_file()
    }

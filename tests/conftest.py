"""What several test modules share: small real models of every format, each group written once, when first asked for."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

_NEEDED = {"torch": "torch", "tensorflow": "tensorflow", "keras": "keras", "onnx": "onnx"}


class ModelShelf:
    """Folders of models by group; see ``models.py`` for what is in them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __getitem__(self, group: str) -> Path:
        """Return the folder of ``group``, writing it first where that was not done yet."""
        needed = _NEEDED.get(group)
        if needed and importlib.util.find_spec(needed) is None:
            pytest.skip(f"needs {needed}")
        target = self._folder / group
        if not target.is_dir():
            beside = Path(tempfile.mkdtemp(dir=self._folder))
            beside.chmod(0o755)
            command = [sys.executable, "-W", "ignore", str(Path(__file__).parent / "models.py"), group, str(beside)]
            done = subprocess.run(
                command, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr[-3000:]
            try:
                beside.rename(target)
            except OSError:  # another worker was quicker
                assert target.is_dir()
        return target

    def truth(self, group: str) -> Any:
        """Return what the framework itself said of the models of ``group``."""
        return json.loads((self[group] / "truth.json").read_text())


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> ModelShelf:
    """Small real models, shared between the workers of a run."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "models"
    folder.mkdir(exist_ok=True)
    return ModelShelf(folder)

"""Exit 0 where every model that the TensorFlow Serving in this container shall serve has an AVAILABLE version."""

import json
import re
import sys
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import urlopen

REST = "http://127.0.0.1:8501"
CONFIG = Path("/config/model_config.pbtxt")
# One model in a config of ours: its name comes first (templates/tfserving/model_config.pbtxt.j2).
NAME = re.compile(r'^\s*name:\s*"([A-Za-z0-9_.-]+)"', re.MULTILINE)


def complaint() -> str:
    """Return what is wrong, or an empty text."""
    for name in NAME.findall(CONFIG.read_text(encoding="utf-8")):
        with urlopen(f"{REST}/v1/models/{quote(name)}", timeout=5) as answer:  # noqa: S310  (the URL is ours)
            versions = json.load(answer)["model_version_status"]
        if not any(version["state"] == "AVAILABLE" for version in versions):
            return f"{name}: {', '.join(version['state'] for version in versions) or 'no version'}"
    return ""


if __name__ == "__main__":
    try:
        sys.exit(complaint() or None)  # an empty text would be exit code 1
    except (URLError, HTTPError, OSError, ValueError, KeyError) as error:
        sys.exit(f"{type(error).__name__}: {error}")

"""Exit 0 where every model that the TensorFlow Serving in this container shall serve has an AVAILABLE version."""

import json
import re
import sys
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import ProxyHandler, build_opener

REST = "http://127.0.0.1:8501"
CONFIG = Path("/config/model_config.pbtxt")
DIRECT = build_opener(ProxyHandler({}))  # no proxy of the environment is to answer for the server
# A model's name in any config, also one that was not rendered by us; its comments are taken away before.
NAME = re.compile(r"""\bname\s*:\s*(["'])(.*?)\1""")
COMMENT = re.compile(r"^\s*#.*$", re.MULTILINE)


def complaint() -> str:
    """Return what is wrong, or an empty text."""
    names = [name for _, name in NAME.findall(COMMENT.sub("", CONFIG.read_text(encoding="utf-8")))]
    if not names:
        return f"{CONFIG} names no model"
    for name in names:
        with DIRECT.open(f"{REST}/v1/models/{quote(name, safe='')}", timeout=5) as answer:
            versions = json.load(answer)["model_version_status"]
        if not any(version["state"] == "AVAILABLE" for version in versions):
            return f"{name}: {', '.join(version['state'] for version in versions) or 'no version'}"
    return ""


if __name__ == "__main__":
    try:
        sys.exit(complaint() or None)  # an empty text would be exit code 1
    except (URLError, HTTPError, OSError, ValueError, KeyError) as error:
        sys.exit(f"{type(error).__name__}: {error}")

"""Exit 0 where every model of the TorchServe in this container has its workers.

`/ping` alone would not do: it needs a token, calls a server healthy whose workers cannot load their model, and never
looks at them again. The tokens are the server's own, in its working folder; one that has expired is renewed, as it is
of no use to anybody any more.
"""

import json
import sys
from datetime import datetime
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import ProxyHandler, Request, build_opener

MANAGEMENT = "http://127.0.0.1:8081"
KEY_FILE = Path("key_file.json")
DIRECT = build_opener(ProxyHandler({}))  # no proxy of the environment is to see the token, or answer for the server


def get(path: str, key: str | None) -> bytes:
    """Return the management API's answer."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with DIRECT.open(Request(MANAGEMENT + path, headers=headers), timeout=5) as answer:  # noqa: S310  (the URL is ours)
        return bytes(answer.read())


def management_key() -> str | None:
    """Return a key that is valid now; none where the server wants none."""
    if not KEY_FILE.exists():
        return None
    keys = json.loads(KEY_FILE.read_text(encoding="utf-8"))
    expires = datetime.fromisoformat(keys["management"]["expiration time"])
    if expires.timestamp() <= datetime.now(tz=expires.tzinfo).timestamp():
        get("/token?type=management", keys["API"]["key"])
        keys = json.loads(KEY_FILE.read_text(encoding="utf-8"))
    return str(keys["management"]["key"])


def complaint() -> str:
    """Return what is wrong, or an empty text."""
    key = management_key()
    for name in models(key):
        for version in json.loads(get(f"/models/{quote(name, safe='')}/all", key)):
            ready = sum(worker["status"] == "READY" for worker in version["workers"])
            if ready < version["minWorkers"]:
                return f"{version['modelName']}: {ready} of {version['minWorkers']} workers are ready"
    return ""


def models(key: str | None) -> list[str]:
    """Return every model's name, page by page."""
    found: list[str] = []
    page = ""
    while True:
        answer = json.loads(get(f"/models?limit=100{page}", key))
        found += [model["modelName"] for model in answer["models"]]
        if not answer.get("nextPageToken"):
            return found
        page = f"&next_page_token={quote(str(answer['nextPageToken']))}"


if __name__ == "__main__":
    try:
        sys.exit(complaint() or None)  # an empty text would be exit code 1
    except (URLError, HTTPError, OSError, ValueError, KeyError) as error:
        sys.exit(f"{type(error).__name__}: {error}")

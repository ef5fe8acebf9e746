"""HTTP for every backend: the one home of urllib3, with its errors translated at this border."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import urllib3

from servewright.errors import ProbeError, ProbeTimeoutError


@dataclass(frozen=True, slots=True)
class Response:
    """An answer as it came; header names are lower case."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    def json(self) -> Any:
        """Return the body as JSON; a body that is not JSON is a `ProbeError`."""
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise ProbeError(f"expected JSON, got {self.body[:200]!r}") from error

    @property
    def text(self) -> str:
        """The body as text, whatever its bytes."""
        return self.body.decode(errors="replace")


class HttpConnection:
    """A pool of connections to one server; safe to share between threads.

    ``headers`` are sent with every request. Nothing is retried and no redirect followed: a probe must see
    what the server did.
    """

    def __init__(self, url: str, *, headers: Mapping[str, str] | None = None, connections: int = 64) -> None:
        self.url = url.rstrip("/")
        self._headers = dict(headers or {})
        with _our_errors(self.url):
            self._pool = urllib3.connectionpool.connection_from_url(
                self.url, maxsize=connections, block=True, retries=False
            )

    def request(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 30.0,
    ) -> Response:
        """Send one request and return the answer, whatever its status."""
        with _our_errors(self.url + path):
            answer = self._pool.request(
                method,
                path,
                body=body,
                headers=self._headers | dict(headers or {}),
                timeout=timeout_s,
                pool_timeout=timeout_s,
                redirect=False,
            )
            lowered = {name.lower(): value for name, value in answer.headers.items()}
            return Response(answer.status, answer.data, lowered)

    def get(self, path: str, *, headers: Mapping[str, str] | None = None, timeout_s: float = 30.0) -> Response:
        """Return the answer to a GET."""
        return self.request("GET", path, headers=headers, timeout_s=timeout_s)

    def close(self) -> None:
        """Close every connection of the pool."""
        self._pool.close()

    def __enter__(self) -> HttpConnection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def _our_errors(url: str) -> Iterator[None]:
    try:
        yield
    except urllib3.exceptions.TimeoutError as error:
        raise ProbeTimeoutError(f"{url}: no answer in time") from error
    except urllib3.exceptions.HTTPError as error:
        raise ProbeError(f"{url}: {error}") from error

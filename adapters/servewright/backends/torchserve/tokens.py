"""TorchServe's token authorization: the keys of its ``key_file.json``, renewed before they expire.

The server writes the file into its working directory and lets a key live for an hour. Renewing answers nothing:
the new key is in the file, and the old one is refused from then on, for every client of the server.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal

from servewright.errors import ProbeError
from servewright.processes import wait_until
from servewright.server import Readable

Kind = Literal["inference", "management"]

_MARGIN_S = 60.0
# The server writes in place: a reader may find half a file, for a moment.
_SETTLES_WITHIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Token:
    """A key and when it expires, in seconds since 1970."""

    key: str = field(repr=False)
    expires: float


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a key file holds; ``api_key`` never expires and renews the others."""

    inference: Token
    management: Token
    api_key: str = field(repr=False)

    @classmethod
    def read(cls, path: Readable) -> Tokens:
        """Return the tokens in the file at ``path``; `ProbeError` where there are none."""
        try:
            content = json.loads(path.read_bytes())
            tokens = {
                kind: Token(content[kind]["key"], datetime.fromisoformat(content[kind]["expiration time"]).timestamp())
                for kind in ("inference", "management")
            }
            return cls(tokens["inference"], tokens["management"], content["API"]["key"])
        except OSError as error:
            raise ProbeError(f"cannot read TorchServe's tokens: {error}") from error
        except (ValueError, TypeError, KeyError) as error:
            # Not chained: the cause's text may quote the file, keys and all.
            raise ProbeError(f"{path}: not a key file of TorchServe ({type(error).__name__})") from None


class KeyFile:
    """The keys of one running server, valid whenever they are asked for; safe to share between threads.

    ``renew`` asks the server for a new key of a kind, with the API key. ``guessed``: there may be no file, as the
    server may want no tokens; the file is then looked for once, and again when the server has refused a request.
    """

    def __init__(
        self,
        path: Readable,
        renew: Callable[[Kind, str], None],
        *,
        guessed: bool = False,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.path = path
        self._renew, self._now = renew, now
        self._unsure, self._missing = guessed, False
        self._lock = threading.Lock()
        self._tokens: Tokens | None = None
        self._stamp = 0
        self._margin_s: dict[Kind, float] = {}

    def key(self, kind: Kind) -> str | None:
        """Return a key that is valid now and for a while, renewed first where it is not; or none, of no file."""
        with self._lock:
            if self._is_missing():
                return None
            token = self._token(kind, self._current())
            if self._stale(kind, token):
                token = self._token(kind, self._read())  # another client may have renewed it
            if self._stale(kind, token):
                self._renew(kind, self._read().api_key)
                token = self._token(kind, self._read())
            return token.key

    def replace(self, kind: Kind, refused: str | None) -> bool:
        """Look for another key than ``refused``, in the file and then from the server; tell whether there is one.

        Without a key refused, it is the file that was missing: the server may write it only now.
        """
        with self._lock:
            try:
                if self._token(kind, self._read()).key == refused:
                    self._renew(kind, self._read().api_key)
                return self._token(kind, self._read()).key != refused
            except ProbeError:
                return False

    def _is_missing(self) -> bool:
        # Looked for once only: inside a container, every look is a command.
        if self._unsure and not self._missing:
            try:
                self.path.read_bytes()
                self._unsure = False
            except FileNotFoundError:
                self._missing = True
            except OSError:
                self._unsure = False  # it is there, and reading it will say what is wrong
        return self._missing

    def _current(self) -> Tokens:
        """Return the tokens that are known, unless another client has renewed one since, as far as that shows."""
        return self._tokens if self._tokens is not None and self._stamp == self._changed() else self._read()

    def _changed(self) -> int:
        """Return when the file changed, in nanoseconds; always the same for one inside a container."""
        try:
            return self.path.stat().st_mtime_ns if isinstance(self.path, Path) else self._stamp
        except OSError:
            return self._stamp

    def _read(self) -> Tokens:
        self._stamp = self._changed()
        self._tokens = wait_until(
            lambda: Tokens.read(self.path), within_s=_SETTLES_WITHIN_S, every_s=0.05, what="the key file is readable"
        )
        self._unsure = self._missing = False
        return self._tokens

    def _token(self, kind: Kind, tokens: Tokens) -> Token:
        token = tokens.inference if kind == "inference" else tokens.management
        # A server may let its keys live for seconds only (token_expiration_min).
        life_s = token.expires - self._now()
        self._margin_s[kind] = max(self._margin_s.get(kind, 0.0), min(_MARGIN_S, life_s / 4))
        return token

    def _stale(self, kind: Kind, token: Token) -> bool:
        return token.expires - self._now() <= self._margin_s[kind]

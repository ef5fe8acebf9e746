"""The pytest plugin: real model servers for a user's own tests.

```python
def test_digits(serving):
    server = serving("digits.yaml", backend="torchserve", runtime="docker")
    assert server.predict({"image": x})["scores"].shape == (1, 10)
```
Every pytest of an environment with servewright in it loads this module: until a test asks for a server, nothing else
of the package is imported.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Generator, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import pytest

if TYPE_CHECKING:
    from servewright.errors import ServewrightError, UnavailableError
    from servewright.serving import Served

Scope = Literal["session", "function"]

_MARKER = "serving"
_KEYS = ("spec", "backend", "runtime", "image", "trust", "scope")
_AUTO, _DOCKER = "auto", "docker"
_LOG_LINES = 50
# How a worker of pytest-xdist tells the process that prints the summary.
_OUTPUT = "servewright_kept"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A server as a test asks for it; ``digest`` is that of what the spec says at this moment."""

    spec: Path
    digest: str
    backend: str | None = None
    runtime: str
    image: str | None = None
    trust: bool = False


@dataclass(slots=True)
class ServerLog:
    """What a server that a test used has printed; ``said`` holds the last of it once the server has been stopped."""

    served: Served
    said: str | None = None

    def section(self) -> tuple[str, str]:
        """Return a title and the last lines, for a test's report."""
        served = self.served
        return f"Server log: {served.name} ({served.backend}, {served.runtime})", self.said or self.read()

    def read(self) -> str:
        """Return the last lines, and how the server ended where it has."""
        from servewright.errors import ServewrightError

        try:
            lines = [*self.served.log_tail(_LOG_LINES)]
            if not self.served.alive():
                lines.append(f"(the server has ended: {self.served.server.why_ended() or 'nobody knows why'})")
        except ServewrightError as error:
            lines = [f"(the log cannot be read: {error})"]
        return "\n".join(lines)

    def keep(self) -> None:
        """Read for the last time: its file goes with the server."""
        self.said = self.read()


class Servers:
    """The servers of a session; every worker of pytest-xdist has a session, and so servers, of its own."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._running: dict[Wish, tuple[Served, ExitStack]] = {}
        self._failed: dict[Wish, ServewrightError] = {}
        self.required = _required(config)
        # Of servers that fixtures of the whole session asked for: any test may use those.
        self.logs: list[ServerLog] = []

    def runtime(self, asked: str | None, image: str | None) -> str:
        """Return the runtime to take: the command line's, else the test's, else the ini file's."""
        found = self._config.getoption("serving_runtime") or asked or self._config.getini("serving_runtime") or _AUTO
        return _DOCKER if image and found == _AUTO else str(found)

    def shared(self, wish: Wish) -> Served:
        """Return the server that the session has for ``wish``, started where there is none or where it has died.

        One that did not start is not tried again: each try could take minutes.
        """
        from servewright.errors import ServewrightError

        if wish in self._failed:
            raise self._failed[wish]
        if wish in self._running:
            found, ending = self._running[wish]
            if found.alive():
                return found
            del self._running[wish]
            ending.close()
        with ExitStack() as ending:
            try:
                found = ending.enter_context(self.start(wish))
            except ServewrightError as error:
                self._failed[wish] = error
                raise
            self._running[wish] = found, ending.pop_all()
        return found

    def start(self, wish: Wish) -> AbstractContextManager[Served]:
        """Return a server for as long as a block lasts, or longer with ``--serving-keep``."""
        from servewright import serving

        wanted = {key: value for key, value in asdict(wish).items() if key not in ("spec", "digest")}
        if not self._config.getoption("serving_keep"):
            return serving.serve(wish.spec, **wanted)
        worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
        stem = re.sub(r"[^A-Za-z0-9_.-]", "-", wish.spec.stem)[:60]
        return self._kept(serving.kept(wish.spec, f"pytest-{stem}-{worker}-{secrets.token_hex(3)}", **wanted))

    @contextmanager
    def _kept(self, starting: AbstractContextManager[Served]) -> Iterator[Served]:
        with starting as found:
            _note_kept(self._config, [found.name])
            yield found

    def refuse(self, runtime: str, error: UnavailableError) -> NoReturn:
        """Skip the test, or fail it where the runtime is required."""
        __tracebackhide__ = True
        reason = " ".join(str(error).split())
        if runtime in self.required:
            pytest.fail(f"servewright: runtime {runtime} is required: {reason}", pytrace=False)
        pytest.skip(f"servewright: runtime {runtime}: {reason}")

    def close(self) -> None:
        """Stop all that the session shares, the last one first."""
        with ExitStack() as all_of_them:
            for _, ending in self._running.values():
                all_of_them.push(ending)
            self._running.clear()


class Serving:
    """What the fixtures give: called with a spec, it returns a server that is ready."""

    def __init__(
        self, servers: Servers, *, folder: Path, root: Path, logs: list[ServerLog], own: ExitStack | None = None
    ) -> None:
        self._servers, self._folder, self._root, self._logs, self._own = servers, folder, root, logs, own
        self.marked: Mapping[str, Any] = {}

    def __call__(
        self,
        spec: Path | str | None = None,
        *,
        backend: str | None = None,
        runtime: str | None = None,
        image: str | None = None,
        trust: bool | None = None,
        scope: Scope | None = None,
    ) -> Served:
        """Return a running server of ``spec``; what is left out is as the test's marker says.

        ``spec`` is looked for in the test's folder, and in those above it up to pytest's root. All who ask for the
        same share one server, unless ``scope="function"``: then it is this test's alone and ends with it. Where the
        runtime is absent the test is skipped, or fails where ``--serving-require`` names the runtime.
        """
        __tracebackhide__ = True
        from servewright.errors import ServewrightError, UnavailableError

        given = zip(_KEYS, (spec, backend, runtime, image, trust, scope), strict=True)
        asked = {**self.marked, **{key: value for key, value in given if value is not None}}
        runtime = self._servers.runtime(asked.get("runtime"), asked.get("image"))
        try:
            return self._server(asked, runtime)
        except UnavailableError as error:
            self._servers.refuse(runtime, error)
        except ServewrightError as error:
            # The test's line and the message; the way through this package says nothing to whoever reads a report.
            raise error.with_traceback(None)  # noqa: B904

    def _server(self, asked: Mapping[str, Any], runtime: str) -> Served:
        from servewright import pipeline

        spec = self._found(asked.get("spec"))
        wish = Wish(
            spec=spec,
            digest=pipeline.load(spec).digest,
            backend=asked.get("backend"),
            runtime=runtime,
            image=asked.get("image"),
            trust=bool(asked.get("trust")),
        )
        if not self._is_own(asked.get("scope", "session")):
            log = ServerLog(self._servers.shared(wish))
        else:
            assert self._own is not None
            log = ServerLog(self._own.enter_context(self._servers.start(wish)))
            self._own.callback(log.keep)
        if all(log.served is not other.served for other in self._logs):
            self._logs.append(log)
        return log.served

    def _is_own(self, scope: str) -> bool:
        from servewright.errors import InputError

        known = ("session", "function") if self._own is not None else ("session",)
        if scope not in known:
            raise InputError(f"scope {scope!r} is none of {', '.join(known)}")
        return scope == "function"

    def _found(self, spec: Path | str | None) -> Path:
        from servewright.errors import InputError

        if spec is None:
            raise InputError(
                'which server? name a spec: serving("digits.yaml"), or @pytest.mark.serving("digits.yaml")'
            )
        above = [parent for parent in self._folder.parents if parent.is_relative_to(self._root)]
        folders = dict.fromkeys([self._folder, *above, self._root])
        for folder in folders:
            if (folder / spec).is_file():
                return folder / spec
        raise InputError(f"no spec {str(spec)!r} in {', '.join(map(str, folders))}")


@pytest.fixture(scope="session")
def _serving_servers(pytestconfig: pytest.Config) -> Iterator[Servers]:
    """Keep what the session shares, and stop it at the end."""
    servers = pytestconfig.stash[_SERVERS] = Servers(pytestconfig)
    try:
        yield servers
    finally:
        servers.close()


@pytest.fixture
def serving(request: pytest.FixtureRequest, _serving_servers: Servers) -> Iterator[Serving]:
    """Start real model servers: ``serving("digits.yaml", backend="torchserve", runtime="docker").predict(...)``."""
    logs = request.node.stash.setdefault(_LOGS, [])
    with ExitStack() as own:
        found = Serving(_serving_servers, folder=request.path.parent, root=request.config.rootpath, logs=logs, own=own)
        found.marked = _marked(request.node)
        yield found


@pytest.fixture(scope="session")
def session_serving(pytestconfig: pytest.Config, _serving_servers: Servers) -> Serving:
    """Do as ``serving``, for fixtures of your own with a wider scope; specs are looked for in pytest's root."""
    root = pytestconfig.rootpath
    return Serving(_serving_servers, folder=root, root=root, logs=_serving_servers.logs)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Say which options there are."""
    group = parser.getgroup("servewright", "model servers (servewright)")
    group.addoption(
        "--serving-runtime",
        metavar="RUNTIME",
        help="run every server by this runtime, whatever tests say: docker, process, embedded, or auto",
    )
    group.addoption(
        "--serving-keep",
        action="store_true",
        help="leave the servers running; `servewright ps`, `logs` and `down` find them",
    )
    group.addoption(
        "--serving-require",
        action="append",
        default=[],
        metavar="RUNTIMES",
        help="fail, and do not skip, where one of these runtimes is absent, such as docker,process",
    )
    parser.addini("serving_runtime", "the runtime of servers for which a test names none (default: auto)", default="")
    parser.addini("serving_require", "runtimes whose absence is a failure and no skip", type="args", default=[])


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known, also to ``--strict-markers``."""
    config.addinivalue_line(
        "markers",
        f"{_MARKER}(spec, *, backend, runtime, image, trust, scope): what calls of the fixture `serving` leave out",
    )


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, None]:
    """Attach what its servers printed to the report of a test that failed."""
    outcome = yield
    report: pytest.TestReport = outcome.get_result()
    if report.failed:
        report.sections += [log.section() for log in _logs_of(item)]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Name the servers that were left running."""
    if names := config.stash.get(_KEPT, []):
        terminalreporter.section("servers left running")
        terminalreporter.line(f"servewright down {' '.join(sorted(names))}")


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over what a worker of pytest-xdist left running."""
    _note_kept(node.config, getattr(node, "workeroutput", {}).get(_OUTPUT, []))


_SERVERS = pytest.StashKey[Servers]()
_LOGS = pytest.StashKey[list[ServerLog]]()
_KEPT = pytest.StashKey[list[str]]()


def _logs_of(item: pytest.Item) -> list[ServerLog]:
    found = [*item.stash.get(_LOGS, ())]
    servers = item.config.stash.get(_SERVERS, None)
    # The names of all fixtures that a test needs, and that these need in turn.
    if servers is not None and "session_serving" in getattr(item, "fixturenames", ()):
        found += servers.logs
    return found


def _note_kept(config: pytest.Config, names: list[str]) -> None:
    config.stash.setdefault(_KEPT, []).extend(names)
    output: dict[str, Any] | None = getattr(config, "workeroutput", None)
    if output is not None:
        output.setdefault(_OUTPUT, []).extend(names)


def _marked(item: pytest.Item) -> dict[str, Any]:
    """Return what the markers of a test say together; the nearest wins."""
    found: dict[str, Any] = {}
    for mark in item.iter_markers(_MARKER):
        named = {**dict(zip(_KEYS, mark.args[:1], strict=False)), **mark.kwargs}
        if len(mark.args) > 1 or not named.keys() <= set(_KEYS):
            pytest.fail(
                f"@pytest.mark.{_MARKER} takes a spec, and by name {', '.join(_KEYS[1:])}: {mark}", pytrace=False
            )
        found = named | found
    return found


def _required(config: pytest.Config) -> frozenset[str]:
    """Return the runtimes that must be there; a misspelt one would require nothing."""
    asked: list[str] = config.getoption("serving_require") + config.getini("serving_require")
    found = frozenset(name for words in asked for name in words.replace(",", " ").split())
    if found:
        from servewright import registry

        known = {_AUTO} | {runtime for name in registry.names() for runtime in registry.get(name).runtimes}
        if not found <= known:
            pytest.fail(
                f"serving-require: {', '.join(found - known)} is none of {', '.join(sorted(known))}", pytrace=False
            )
    return found

"""Command lines as they stand in shell scripts, Dockerfiles, Compose and Kubernetes files; every word with its place."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Final

from servewright.linting.sources import Source
from servewright.linting.yamlplaces import Node, PlacedYamlError, documents

_SEPARATORS: Final = frozenset("\n;&|()")
_SHELLS: Final = frozenset({"sh", "bash", "ash", "dash", "zsh"})
# Options of `docker run` that stand alone; every other takes the next word unless it holds a `=`.
_ALONE: Final = frozenset(
    {"-d", "-i", "-t", "-it", "-ti", "-dit", "-itd", "-td", "-dt", "-P", "--rm", "--detach", "--interactive", "--tty",
     "--init", "--privileged", "--read-only", "--publish-all", "--no-healthcheck", "--oom-kill-disable"}
)  # fmt: skip
_INSTRUCTION: Final = re.compile(r"[ \t]*([A-Za-z]+)[ \t]+")


@dataclass(frozen=True, slots=True)
class Word:
    """A word and the character at which it starts."""

    text: str
    at: int

    @property
    def program(self) -> str:
        """The last part of the path that it may be."""
        return self.text.rpartition("/")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Invocation:
    """How something is started: words, environment, image and published ports; ``origin`` names the kind of file.

    ``mounts`` are pairs of a path in the container and the path on this machine, as written.
    """

    source: Source
    origin: str
    words: tuple[Word, ...]
    environment: Mapping[str, Word] = field(default_factory=dict)
    image: Word | None = None
    ports: tuple[Word, ...] = ()
    mounts: tuple[tuple[str, str], ...] = ()
    stays: bool = False

    @property
    def image_name(self) -> str:
        """The image without its tag and digest."""
        if self.image is None:
            return ""
        name = self.image.text.partition("@")[0]
        head, colon, tag = name.rpartition(":")
        return head if colon and "/" not in tag else name

    @property
    def tag(self) -> str:
        """The image's tag or digest; empty where it has none."""
        if self.image is None:
            return ""
        return self.image.text[len(self.image_name) :].lstrip(":@")

    @property
    def at(self) -> int:
        """Where it begins."""
        return self.words[0].at if self.words else self.image.at if self.image else 0

    def position(self, *programs: str) -> int:
        """Return the index of the first word that is one of ``programs``, or -1."""
        return next((at for at, word in enumerate(self.words) if word.program in programs), -1)

    def local(self, path: str) -> str:
        """Return where ``path`` of the container lies on this machine, as far as the mounts tell."""
        for inside, outside in sorted(self.mounts, key=lambda mount: -len(mount[0])):
            inner = inside.rstrip("/")
            if path == inner or path.startswith(inner + "/"):
                return outside.rstrip("/") + path[len(inner) :]
        return path


def split(text: str, start: int = 0) -> list[list[Word]]:
    """Return the simple commands of a shell text, each as its words; ``start`` is where the text stands."""
    commands: list[list[Word]] = [[]]
    letters: list[str] | None = None
    begin = at = 0
    quote = ""
    while at < len(text):
        char = text[at]
        if quote:
            if char == quote:
                quote = ""
            elif char == "\\" and quote == '"' and at + 1 < len(text):
                at += 1
                if text[at] != "\n":
                    letters = (letters or []) + [text[at]]
            else:
                assert letters is not None
                letters.append(char)
        elif char == "\\" and text[at + 1 : at + 2] in ("\n", "\r"):
            at += 2 if text[at + 1 : at + 3] == "\r\n" else 1
        elif char in " \t\r" or char in _SEPARATORS:
            if letters is not None:
                commands[-1].append(Word("".join(letters), start + begin))
                letters = None
            if char in _SEPARATORS and commands[-1]:
                commands.append([])
        elif char == "#" and letters is None:
            while at + 1 < len(text) and text[at + 1] != "\n":
                at += 1
        else:
            if letters is None:
                letters, begin = [], at
            if char in "'\"":
                quote = char
            elif char == "\\" and at + 1 < len(text):
                at += 1
                letters.append(text[at])
            else:
                letters.append(char)
        at += 1
    if letters is not None:
        commands[-1].append(Word("".join(letters), start + begin))
    return [words for words in commands if words]


def shell(source: Source) -> Iterator[Invocation]:
    """Yield every command of a shell script, those of ``docker run`` with their image and ports."""
    commands = split(source.text)
    for words in commands:
        yield from _expanded(Invocation(source=source, origin="shell", words=tuple(words)))


def _expanded(invocation: Invocation) -> Iterator[Invocation]:
    """Look through ``docker run``, ``sh -c`` and assignments in front of a command."""
    words = list(invocation.words)
    environment = dict(invocation.environment)
    while words and (found := re.match(r"([A-Za-z_]\w*)=", words[0].text)):
        environment[found[1]] = Word(words[0].text[found.end() :], words[0].at)
        words = words[1:]
    while words and words[0].program in ("exec", "sudo", "nohup", "env", "time", "$", "tini", "dumb-init", "--"):
        words = words[1:]
    plain = _with(invocation, words, environment)
    if len(words) > 2 and words[0].program in _SHELLS:
        flag = next((at for at, word in enumerate(words[1:], 1) if word.text.startswith("-") and "c" in word.text), 0)
        if flag and flag + 1 < len(words):
            script = words[flag + 1]
            commands = split(script.text, script.at + 1)
            stays = any(command[0].program in ("tail", "sleep", "wait") for command in commands)
            for command in commands:
                yield from _expanded(_with(plain, command, environment, stays=stays))
            return
    if len(words) > 2 and words[0].program in ("docker", "podman", "nvidia-docker") and words[1].text == "run":
        yield _docker_run(plain, words[2:])
        return
    yield plain


def _with(
    invocation: Invocation, words: Sequence[Word], environment: Mapping[str, Word], *, stays: bool = False
) -> Invocation:
    return Invocation(
        source=invocation.source, origin=invocation.origin, words=tuple(words), environment=environment,
        image=invocation.image, ports=invocation.ports, mounts=invocation.mounts, stays=stays or invocation.stays,
    )  # fmt: skip


def _docker_run(invocation: Invocation, words: Sequence[Word]) -> Invocation:
    environment, ports, mounts = dict(invocation.environment), [], []
    at = 0
    entrypoint: list[Word] = []
    while at < len(words) and words[at].text.startswith("-"):
        word = words[at]
        name, sign, value = word.text.partition("=")
        argument = Word(value, word.at + len(name) + 1)
        if not sign and name not in _ALONE:
            at += 1
            argument = words[at] if at < len(words) else Word("", word.at)
        if name in ("-e", "--env"):
            key, _, text = argument.text.partition("=")
            environment[key] = Word(text, argument.at)
        elif name in ("-p", "--publish"):
            ports.append(argument)
        elif name == "--entrypoint":
            entrypoint = [argument]
        elif name in ("-v", "--volume", "--mount"):
            mounts += _mount(argument.text)
        at += 1
    rest = list(words[at:])
    image = rest.pop(0) if rest else None
    return Invocation(
        source=invocation.source, origin="docker run", words=tuple(entrypoint + rest), environment=environment,
        image=image, ports=tuple(ports), mounts=tuple(mounts),
    )  # fmt: skip


def _mount(text: str) -> list[tuple[str, str]]:
    if "target=" in text or "dst=" in text or "destination=" in text:
        fields: dict[str, str] = {}
        for part in text.split(","):
            name, _, value = part.partition("=")
            fields[name] = value
        target = fields.get("target") or fields.get("dst") or fields.get("destination") or ""
        return [(target, fields.get("source") or fields.get("src") or "")]
    parts = text.split(":")
    return [(parts[1], parts[0])] if len(parts) > 1 else []


def dockerfile(source: Source) -> Iterator[Invocation]:
    """Yield what the last stage of a Dockerfile starts."""
    image: Word | None = None
    environment: dict[str, Word] = {}
    mounts: list[tuple[str, str]] = []
    entrypoint: list[Word] | None = None
    command: list[Word] = []
    for name, text, at in _instructions(source.text):
        if name == "FROM":
            words = [word for words in split(text, at) for word in words if not word.text.startswith("--")]
            image, environment, mounts, entrypoint, command = (words[0] if words else None), {}, [], None, []
        elif name == "ENV":
            environment |= _environment(text, at)
        elif name in ("COPY", "ADD"):
            words = [word for words in split(text, at) for word in words if not word.text.startswith("--")]
            for word in words[:-1]:
                target = words[-1].text
                inside = target + word.program if target.endswith("/") and "." in word.program else target
                mounts.append((inside, word.text))
        elif name == "ENTRYPOINT":
            entrypoint, command = _run_words(text, at), []
        elif name == "CMD":
            command = _run_words(text, at)
    if image is None and entrypoint is None and not command:
        return
    start = Invocation(
        source=source, origin="dockerfile", words=tuple((entrypoint or []) + command), environment=environment,
        image=image, mounts=tuple(mounts),
    )  # fmt: skip
    yield from _expanded(start)


def _instructions(text: str) -> Iterator[tuple[str, str, int]]:
    """Yield the name of each instruction, its text without comments between its lines, and where that starts."""
    at = 0
    while at < len(text):
        end = _line_end(text, at)
        line = text[at:end]
        if not line.strip() or line.lstrip().startswith("#"):
            at = end + 1
            continue
        stop = end
        while text[at:stop].rstrip().endswith("\\") and stop < len(text):
            following = _line_end(text, stop + 1)
            while text[stop + 1 : following].lstrip().startswith("#") and following < len(text):
                following = _line_end(text, following + 1)
            stop = following
        found = _INSTRUCTION.match(text, at, stop)
        if found:
            # Comments between the lines become blanks, so that every word keeps its place.
            body = re.sub(r"(?m)^[ \t]*#.*$", lambda comment: " " * len(comment[0]), text[found.end() : stop])
            body = re.sub(r"\n[ ]+(?=\n)", lambda blank: " " * len(blank[0]), body)
            yield found[1].upper(), body, found.end()
        at = stop + 1


def _line_end(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end


def _run_words(text: str, at: int) -> list[Word]:
    stripped = text.strip()
    if stripped.startswith("["):
        try:
            words = json.loads(re.sub(r"\\\r?\n", "  ", stripped))
        except ValueError:
            words = None
        if isinstance(words, list) and all(isinstance(word, str) for word in words):
            place, found = 0, []
            for word in words:
                quoted = json.dumps(word)
                here = text.find(quoted, place)
                place = here + len(quoted) if here >= 0 else place
                found.append(Word(word, at + max(here, 0) + 1))
            return found
    offset = len(text) - len(text.lstrip())
    return [Word("sh", at + offset), Word("-c", at + offset), Word(text[offset:], at + offset - 1)]


def _environment(text: str, at: int) -> dict[str, Word]:
    words = [word for words in split(text, at) for word in words]
    if words and "=" not in words[0].text:
        return {words[0].text: Word(" ".join(word.text for word in words[1:]), words[0].at)}
    return {name: Word(value, word.at) for word in words for name, sign, value in [word.text.partition("=")] if sign}


def manifests(source: Source) -> Iterator[Invocation]:
    """Yield what Compose services and Kubernetes containers start; raise `PlacedYamlError` for broken YAML."""
    for document in documents(source.text):
        services = document.get("services")
        for _, service in services.pairs if services else []:
            yield from _expanded(_compose(source, service))
        for node in document.walk():
            for key in ("containers", "initContainers"):
                containers = node.get(key)
                for container in containers.items if containers else []:
                    if container.kind == "map":
                        yield from _expanded(_container(source, container))


def _compose(source: Source, service: Node) -> Invocation:
    environment: dict[str, Word] = {}
    if (given := service.get("environment")) is not None:
        for name, value in given.pairs:
            environment[name.text] = Word(value.text, _offset(source, name))
        for item in given.items:
            key, _, text = item.text.partition("=")
            environment[key] = Word(text, _offset(source, item))
    ports = []
    for item in _items(service.get("ports")):
        published = item.get("published")
        if item.kind == "scalar":
            ports.append(Word(item.text, _offset(source, item)))
        elif published is not None:
            host, target = item.get("host_ip"), item.get("target")
            text = ":".join(part.text for part in (host, published, target) if part is not None)
            ports.append(Word(text, _offset(source, item)))
    mounts = []
    for item in _items(service.get("volumes")):
        if item.kind == "scalar":
            mounts += _mount(item.text)
        elif (origin := item.get("source")) and (target := item.get("target")):
            mounts.append((target.text, origin.text))
    entrypoint, command = _words(source, service.get("entrypoint")), _words(source, service.get("command"))
    return Invocation(
        source=source, origin="compose", words=tuple(entrypoint + command), environment=environment,
        image=_word(source, service.get("image")), ports=tuple(ports), mounts=tuple(mounts),
    )  # fmt: skip


def _container(source: Source, container: Node) -> Invocation:
    environment = {
        name.text: Word(value.text if value is not None else "", _offset(source, name))
        for item in _items(container.get("env"))
        if (name := item.get("name")) is not None
        for value in [item.get("value")]
    }
    words = [
        Word(item.text, _offset(source, item))
        for key in ("command", "args")
        for item in _items(container.get(key))
        if item.kind == "scalar"
    ]
    return Invocation(
        source=source, origin="kubernetes", words=tuple(words), environment=environment,
        image=_word(source, container.get("image")),
    )  # fmt: skip


def _items(node: Node | None) -> list[Node]:
    if node is None:
        return []
    return node.items if node.kind == "list" else [node]


def _words(source: Source, node: Node | None) -> list[Word]:
    if node is None or node.kind == "map":
        return []
    if node.kind == "list":
        return [Word(item.text, _offset(source, item)) for item in node.scalars()]
    return [word for words in split(node.text, _offset(source, node)) for word in words]


def _word(source: Source, node: Node | None) -> Word | None:
    return Word(node.text, _offset(source, node)) if node is not None and node.kind == "scalar" else None


def _offset(source: Source, node: Node) -> int:
    return source.offset(node.line, node.column) + (1 if node.style in ("'", '"') else 0)


def is_dockerfile(source: Source) -> bool:
    """Tell whether a text is a Dockerfile: by its name, or by a FROM before anything else."""
    name = source.filename.lower()
    if name.startswith(("dockerfile", "containerfile")) or name.endswith(".dockerfile"):
        return True
    return bool(re.match(r"(?:[ \t]*(?:#.*)?\r?\n|ARG .*\n)*FROM[ \t]+\S+", source.text)) and source.suffix in (
        "",
        ".txt",
    )


def is_manifest(source: Source) -> bool:
    """Tell whether a text is a Compose or a Kubernetes file."""
    if source.suffix not in (".yaml", ".yml"):
        return False
    return bool(re.search(r"(?m)^(services\s*:|apiVersion\s*:)", source.text))


def is_shell(source: Source) -> bool:
    """Tell whether a text is a shell script, or a plain file of commands."""
    if source.suffix in (".sh", ".bash") or source.text.startswith("#!"):
        return "python" not in source.text.partition("\n")[0]
    return source.suffix in (".txt", "", ".cmd") and PurePosixPath(source.filename).name.lower() not in ("license",)


def invocations(source: Source) -> Iterator[Invocation]:
    """Yield every command that ``source`` starts, whatever kind of file it is."""
    if is_dockerfile(source):
        yield from dockerfile(source)
    elif is_manifest(source):
        yield from manifests(source)
    elif is_shell(source):
        yield from shell(source)


__all__ = ["Invocation", "PlacedYamlError", "Word", "invocations", "split"]

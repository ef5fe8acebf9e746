"""``python -m integration.conformance [GROUP...] [--only TEXT]``: replay, compare, print."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator

from integration.conformance import batching_group, grpc_group, rest_group, startup_group
from integration.conformance.recordings import GROUPS, Line, NoRecordingsError, Recordings, load
from integration.conformance.results import Result, differs, listing, table
from integration.conformance.servers import ADDRESS, Server, known_address, place, started, write_setup

_NEEDED_PERCENT = 97


def main() -> int:
    """Run the groups that are asked for; return 0 if enough lines of each are equal."""
    parser = argparse.ArgumentParser(prog="python -m integration.conformance", description=__doc__)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=", ".join(GROUPS))
    parser.add_argument("--only", default="", help="only lines whose id contains this text")
    parser.add_argument("--setup", default="main", help="the setup of the server at the address of the environment")
    parser.add_argument("--left-out", action="store_true", help="list what is left out, too")
    arguments = parser.parse_args()
    try:
        recordings = load()
    except NoRecordingsError as error:
        _say(f"conformance: {error}")
        return 3
    began = time.monotonic()
    results: list[Result] = []
    for result in replay(recordings, arguments.groups or list(GROUPS), arguments.only, arguments.setup):
        results.append(result)
        if result.verdict == "differs":
            _say(listing([result]))
    _say()
    _say(table(results))
    if arguments.left_out:
        _say(listing([result for result in results if result.verdict == "left out"], left_out_too=True))
    _say(f"{time.monotonic() - began:.0f} s")
    return 0 if all(_share(results, group) >= _NEEDED_PERCENT for group in {result.group for result in results}) else 1


def _say(text: str = "") -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _share(results: list[Result], group: str) -> float:
    own = [result.verdict for result in results if result.group == group]
    good, bad = own.count("equal"), own.count("differs")
    return 100 * good / (good + bad) if good + bad else 100


def replay(recordings: Recordings, groups: list[str], only: str, known_setup: str) -> Iterator[Result]:
    """Yield what becomes of every line, on a server that runs already or on one for each setup."""
    lines = {group: [line for line in recordings.groups.get(group, ()) if only in line.id] for group in groups}
    known = known_address(recordings.models)
    if known is not None:
        _say(f"asking the server at {ADDRESS} as setup {known_setup!r}; other setups cannot be asked")
        yield from ask_server(
            known, {group: [ln for ln in own if ln.setup == known_setup] for group, own in lines.items()}
        )
        return
    asked = [line for group in ("grpc", "rest", "batching") for line in lines.get(group, ())]
    for setup in dict.fromkeys(line.setup for line in asked):
        own = {group: [line for line in lines.get(group, ()) if line.setup == setup] for group in lines}
        yield from _on_setup(recordings, setup, own)
    for line in lines.get("startup", ()):
        yield from startup_group.check(recordings, line)


def _on_setup(recordings: Recordings, setup: str, lines: dict[str, list[Line]]) -> Iterator[Result]:
    sequences = dict.fromkeys(line.raw["sequence"] for line in lines.get("grpc", ()) if "sequence" in line.raw)
    for sequence in sequences:
        steps = [line for line in lines["grpc"] if line.raw.get("sequence") == sequence]
        steps.sort(key=lambda line: line.raw["step"])
        with place(recordings.models) as where:
            write_setup(where, recordings.setups[setup])
            with started(where, recordings.setups[setup]["flags"]) as server:
                if not server.wait_for_ports([where.grpc_port, where.rest_port], 30):
                    yield from (differs("grpc", line.id, f"no server: {server.text()[-300:]}") for line in steps)
                    continue
                asker = grpc_group.Asker(server)
                yield from grpc_group.check_sequence(asker, steps)
                asker.close()
    rest = {group: [line for line in own if "sequence" not in line.raw] for group, own in lines.items()}
    if not any(rest.values()):
        return
    with place(recordings.models) as where:
        write_setup(where, recordings.setups[setup])
        with started(where, recordings.setups[setup]["flags"]) as server:
            if not server.wait_for_ports([where.grpc_port, where.rest_port], 30):
                for group, own in rest.items():
                    yield from (differs(group, line.id, f"no server: {server.text()[-300:]}") for line in own)
                return
            yield from ask_server(server, rest)


def ask_server(server: Server, lines: dict[str, list[Line]]) -> Iterator[Result]:
    """Ask one server all lines of its setup."""
    asker = grpc_group.Asker(server)
    # As it was recorded: what counts all others comes last.
    last = [line for line in lines.get("rest", ()) if "/zz-" in line.id]
    for line in lines.get("rest", ()):
        if line not in last:
            yield rest_group.check(server, line, partial=True)
    for line in lines.get("grpc", ()):
        yield grpc_group.check(asker, line)
    for line in last:
        yield rest_group.check(server, line, partial=True)
    for line in lines.get("batching", ()):
        yield batching_group.check(asker, line)
    asker.close()


if __name__ == "__main__":
    sys.exit(main())

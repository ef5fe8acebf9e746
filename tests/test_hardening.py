"""What a container may do: as little as possible, and one step more where something says that it needs it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servewright import hardening
from servewright.hardening import Hardening

# What an engine, an init, or a server's last lines really said, and what is then given away.
SAID = {
    'OCI runtime create failed: exec: "sh": executable file not found in $PATH: unknown': "watched",
    "[FATAL tini (6)] exec sh failed: No such file or directory": "watched",
    'exec: "docker-init": executable file not found in $PATH': "init",
    "unable to set pids limit: open pids.max: no such file or directory": "pids",
    "NanoCPUs can not be set, as your kernel does not support CPU CFS scheduler": "cpus",
    "Your kernel does not support swap limit capabilities or the cgroup is not mounted": "memory",
    "touch: cannot touch '/written': Read-only file system": "read_only",
    "OSError: [Errno 30] EROFS: '/opt/x'": "read_only",
    "mkdir: cannot create directory '/var/x': Permission denied": "user",
    "unable to find user nobody: no matching entries in passwd file": "user",
    "sudo: effective uid is not 0, is sudo installed setuid root?": "no_new_privileges",
}
GIVEN_AWAY = {"pids": None, "cpus": None, "memory": None, "user": None}


def strictest(**changes: object) -> Hardening:
    """Return the limits to start with on a machine of 4 CPUs and 8 GiB."""
    given = {
        "image_user": "",
        "own_user": None,
        "memory": None,
        "cpus": None,
        "machine_memory": 8 * 2**30,
        "machine_cpus": 4,
        "selinux": False,
    }
    return hardening.strictest(**(given | changes))  # type: ignore[arg-type]


class TestStrictest:
    """What is asked for first."""

    def test_gives_nothing_away(self) -> None:
        """No root, no capabilities, no new privileges, no writing, and limits of all that can be limited."""
        found = strictest()
        config = found.host_config()
        assert found.relaxed == ()
        assert found.user == hardening.NOBODY
        assert (config["ReadonlyRootfs"], config["CapDrop"], config["Init"]) == (True, ["ALL"], True)
        assert config["SecurityOpt"] == ["no-new-privileges"]
        assert config["Memory"] == config["MemorySwap"] < 8 * 2**30
        assert config["NanoCpus"] == 4_000_000_000
        assert 0 < config["PidsLimit"] < 100_000
        assert "Privileged" not in config

    @pytest.mark.parametrize(
        ("image_user", "own_user", "expected"),
        [
            ("", None, hardening.NOBODY),
            ("root", "1000:1000", "1000:1000"),
            ("0:0", None, hardening.NOBODY),
            ("model-server", "1000:1000", None),
            ("1000:1000", None, None),
        ],
    )
    def test_nobody_is_root(self, image_user: str, own_user: str | None, expected: str | None) -> None:
        """An image's own user stays, unless that is root."""
        assert strictest(image_user=image_user, own_user=own_user).user == expected

    def test_no_more_cpus_than_there_are(self) -> None:
        """An engine refuses more; the spec of a larger machine works here too."""
        assert strictest(cpus=64.0).cpus == 4

    def test_selinux_labels_are_said(self) -> None:
        """Where files need labels to be read, that is the first relaxation, and it is said."""
        found = strictest(selinux=True)
        assert found.host_config()["SecurityOpt"] == ["no-new-privileges", "label=disable"]
        assert len(found.relaxed) == 1


class TestRelax:
    """One step milder, as something said."""

    @pytest.mark.parametrize("said", SAID)
    def test_gives_away_what_was_asked_for_alone(self, said: str) -> None:
        """One value changes, and the reason is the line that asked for it."""
        before = strictest()
        after = hardening.relax(before, f"first line\n{said}\nlast line")
        assert after is not None
        names = [name for name in Hardening.__dataclass_fields__ if getattr(before, name) != getattr(after, name)]
        assert sorted(names) == sorted([SAID[said], "relaxed"])
        assert getattr(after, SAID[said]) is GIVEN_AWAY.get(SAID[said], False)
        assert said in after.relaxed[0]

    def test_capabilities_go_after_the_user(self) -> None:
        """What is not permitted may be for want of a user; capabilities are kept away for longer."""
        said = "chown: Operation not permitted"
        first = hardening.relax(strictest(), said)
        assert first is not None
        assert (first.user, first.no_capabilities) == (None, True)
        second = hardening.relax(first, said)
        assert second is not None
        assert not second.no_capabilities
        assert hardening.relax(second, said) is None

    @given(st.lists(st.sampled_from(sorted(SAID)), max_size=20))
    def test_ends(self, said: list[str]) -> None:
        """Whatever is said, and however often: each step gives away something new, so the steps end."""
        found: Hardening | None = strictest()
        steps = 0
        for line in itertools.chain(said, said):
            assert found is not None
            milder = hardening.relax(found, line)
            steps += milder is not None
            found = milder or found
        assert found is not None
        assert len(found.relaxed) == steps <= len(Hardening.__dataclass_fields__)

    @given(st.text())
    def test_says_nothing_to_what_it_does_not_know(self, said: str) -> None:
        """A server that fails for a reason of its own is not given more."""
        known = ("denied", "permitted", "read-only", "eperm", "eacces", "erofs", "pid", "cpu", "memory", "init", "exec")
        if not any(word in said.lower() for word in known):
            assert hardening.relax(strictest(), said) is None

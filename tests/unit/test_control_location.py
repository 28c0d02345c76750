"""The control sockets are where only root and their user can put anything; in the abstract namespace otherwise."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from netsvc.control import location
from netsvc.control.location import (
    abstract_config_name,
    abstract_pid_name,
    bases,
    config_keys,
    is_granted,
    pid_key,
    prepare_directories,
    read_pid,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="commands need Linux")
only_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make directories of other users")

BOB = 4001


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands in for /run/netsvc, which is not there yet."""
    monkeypatch.setattr(location, "SYSTEM_BASE", str(tmp_path / "run"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    return tmp_path / "run"


class TestNames:
    def test_of_a_file_are_readable_and_differ(self, tmp_path: Path) -> None:
        assert config_keys("/etc/netsvc/netsvc.toml")[0] == "config-etc-netsvc-netsvc.toml"
        paths = ["/a/b", "/a-b", "/a/b-", "/a\\x2db", "/a b", "/a@b", "/é", "/a/.b", f"/{'x' * 200}", f"/{'x' * 201}"]
        keys = [config_keys(path)[0] for path in paths]
        assert len(set(keys)) == len(paths)
        for key in keys:
            assert re.fullmatch(r"config-[\w.\\-]{1,50}", key, re.ASCII)

    def test_of_a_file_behind_a_link_are_two(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to("real")
        link, real = config_keys(f"{tmp_path}/link/n.toml")
        assert [real] == config_keys(f"{tmp_path}/real/n.toml")
        assert link != real

    def test_of_a_process_have_its_pid_and_the_namespace_of_it(self) -> None:
        assert pid_key(7) == f"pid-7-{os.stat('/proc/self/ns/pid').st_ino}"
        assert abstract_pid_name(7) == f"\0netsvc-{pid_key(7)}"
        assert abstract_config_name("config-x") == f"\0netsvc-config-x-{os.stat('/proc/self/ns/pid').st_ino}"
        for name in (f"@netsvc-{pid_key(7)}", f"/run/netsvc/user-0/{pid_key(7)}", f"/{pid_key(7)}"):
            assert read_pid(name) == 7
        for name in (pid_key(7), "@pid-7-1", "/x/pid-0-1", "/x/pid-7", "/x/pid-7-", "/x/pid-7-1 ", "/x/apid-7-1"):
            assert read_pid(name) == 0


class TestTheDirectory:
    def test_is_the_first_that_can_be_had(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
        assert bases(7, "/state") == ["/run/netsvc", "/run/user/7/netsvc", "/state/control"]
        monkeypatch.setenv("XDG_RUNTIME_DIR", "/x")
        assert bases(7) == ["/run/netsvc", "/x/netsvc", "/run/user/7/netsvc"]
        monkeypatch.setenv("XDG_RUNTIME_DIR", "relative")
        assert bases(7) == ["/run/netsvc", "/run/user/7/netsvc"]
        # With su, root has the environment of a user.
        monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
        assert bases(0) == ["/run/netsvc"]

    def test_is_none_where_there_is_none(self, system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(location, "bases", lambda user, state=None: [str(system / "none/base")])
        assert list(prepare_directories("/etc/n.toml")) == []

    def test_may_be_in_the_state_directory(self, system: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(location, "SYSTEM_BASE", str(tmp_path / "none/run"))
        (tmp_path / "state").mkdir()
        [made] = prepare_directories("/etc/n.toml", str(tmp_path / "state"))
        assert made == f"{tmp_path}/state/control/config-etc-n.toml"
        assert os.stat(made).st_mode & 0o777 == 0o700

    def test_is_none_that_another_user_can_change(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(location, "bases", lambda user, state=None: [str(tmp_path / "base")])
        (tmp_path / "base").mkdir()
        (tmp_path / "base").chmod(0o777)
        assert list(prepare_directories(None)) == []
        (tmp_path / "base").chmod(0o755)
        assert list(prepare_directories(None)) == [f"{tmp_path}/base/user-{os.geteuid()}"]
        (tmp_path / "link").symlink_to("base")
        monkeypatch.setattr(location, "bases", lambda user, state=None: [str(tmp_path / "link")])
        assert list(prepare_directories(None)) == []


@only_root
class TestRoot:
    def test_makes_one_for_the_user_that_the_process_becomes(self, system: Path) -> None:
        before = os.umask(0o077)
        try:
            [made] = prepare_directories("/etc/n.toml", None, BOB, BOB)
        finally:
            os.umask(before)
        assert made == f"{system}/config-etc-n.toml"
        assert (system.stat().st_uid, system.stat().st_mode & 0o777) == (0, 0o755)
        status = os.stat(made)
        assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (BOB, BOB, 0o700)
        assert is_granted(f"{made}/control", BOB)
        for user in (0, BOB + 1):
            assert not is_granted(f"{made}/control", user)
        # The next start is as root: then root alone is trusted.
        assert list(prepare_directories("/etc/n.toml")) == [made]
        assert not is_granted(f"{made}/control", BOB)

    def test_trusts_no_user_but_in_its_own_directory(self, system: Path, tmp_path: Path) -> None:
        system.mkdir()
        for place in (tmp_path / "other/config-x", system / "deep/config-x"):
            place.mkdir(parents=True)
            os.chown(place, BOB, BOB)
            assert not is_granted(str(place / "control"), BOB)
        place = system / "config-x"
        place.mkdir()
        os.chown(place, BOB, BOB)
        assert is_granted(str(place / "control"), BOB)
        system.chmod(0o777)
        assert not is_granted(str(place / "control"), BOB)
        system.chmod(0o755)
        os.chown(system, BOB, BOB)
        assert not is_granted(str(place / "control"), BOB)
        assert not is_granted("\0netsvc-config-x-1", BOB)
        assert not is_granted(str(system / "none/control"), BOB)

    def test_uses_no_base_of_another_user(self, system: Path) -> None:
        system.mkdir()
        os.chown(system, BOB, BOB)
        assert list(prepare_directories("/etc/n.toml")) == []

    def test_gives_away_nothing_in_the_state_directory_of_a_user(
        self, system: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(location, "SYSTEM_BASE", str(tmp_path / "none/run"))
        (tmp_path / "state").mkdir()
        (tmp_path / "victim").mkdir()
        os.chown(tmp_path / "state", BOB, BOB)
        (tmp_path / "state/control").symlink_to(tmp_path / "victim")
        os.lchown(tmp_path / "state/control", BOB, BOB)
        assert list(prepare_directories("/etc/n.toml", str(tmp_path / "state"), BOB, BOB)) == []
        assert os.listdir(tmp_path / "victim") == []
        assert (tmp_path / "victim").stat().st_uid == 0

"""Root opens nothing, and gives nothing away, that another user has put into the way of a path."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from netsvc.base.files import read_file, write_atomic
from netsvc.base.paths import make_directory, open_directory, open_path, parent_directory
from netsvc.listen.sockets import bind_unix
from netsvc.log.file import LogFile

#: Two users that are not root, whether or not the system knows them.
BOB, CAROL = 4001, 4002

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make files of other users")


@pytest.fixture(autouse=True)
def nothing_stays_open(tmp_path: Path) -> Iterator[None]:
    yield
    descriptors = [entry for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    assert [path for path in map(os.readlink, descriptors) if path == "/" or path.startswith(str(tmp_path))] == []


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The directory of bob, and beside it one of root with a file of root."""
    (tmp_path / "root").mkdir()
    (tmp_path / "root/secret").write_text("secret")
    (tmp_path / "home").mkdir()
    os.chown(tmp_path / "home", BOB, BOB)
    return tmp_path / "home"


def link(path: Path, target: Path | str, owner: int = BOB) -> Path:
    path.symlink_to(target)
    os.lchown(path, owner, owner)
    return path


def opened(path: Path | str, flags: int = os.O_RDONLY) -> str:
    descriptor = open_path(path, flags)
    try:
        assert not os.get_inheritable(descriptor)
        return os.readlink(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def refused(work: Callable[[], Any]) -> None:
    with pytest.raises(OSError, match=rf"\buser {BOB}\b.*\buser 0\b"):
        work()


class TestAnyUser:
    def test_opens_what_the_kernel_would(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "a/b").mkdir(parents=True)
        (tmp_path / "a/file").touch()
        (tmp_path / "to_b").symlink_to("a/b")
        (tmp_path / "absolute").symlink_to(tmp_path / "to_b")
        monkeypatch.chdir(tmp_path / "a")
        descriptor = os.open("file", os.O_RDONLY)
        for path in (
            "file",
            "../a//file",
            "./b/.",
            "b/",
            ".",
            "/",
            f"{tmp_path}/to_b/../file",
            f"{tmp_path}/absolute/",
            f"/dev/fd/{descriptor}",
            "/proc/self/cwd/file",
        ):
            assert opened(path) == os.path.realpath(path), path
        os.close(descriptor)

    @pytest.mark.parametrize(
        ("path", "number"),
        [
            ("", errno.ENOENT),
            ("none", errno.ENOENT),
            ("none/file", errno.ENOENT),
            ("file/x", errno.ENOTDIR),
            ("file/", errno.ENOTDIR),
            ("loop", errno.ELOOP),
            ("dangling", errno.ENOENT),
        ],
    )
    def test_fails_as_the_kernel_does(
        self, path: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path("file").touch()
        Path("loop").symlink_to("loop")
        Path("dangling").symlink_to("none")
        with pytest.raises(OSError, match=r"\w") as raised:
            open_path(path, os.O_RDONLY)
        assert raised.value.errno == number

    def test_makes_a_file_where_a_link_leads(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to("made")
        assert opened(tmp_path / "link", os.O_WRONLY | os.O_CREAT) == str(tmp_path / "made")

    def test_makes_directories_with_their_parents_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        for path in (tmp_path / "a/b", "a/b/", "c/d/e", "."):
            make_directory(path)
        assert (tmp_path / "a/b").stat().st_mode & 0o777 == 0o700
        assert (tmp_path / "c/d/e").is_dir()

    def test_takes_a_directory_that_another_process_makes_at_the_same_time(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make = os.mkdir

        def twice(*words: Any, **names: Any) -> None:
            make(*words, **names)
            make(*words, **names)

        monkeypatch.setattr(os, "mkdir", twice)
        make_directory(tmp_path / "a/b")
        assert (tmp_path / "a/b").is_dir()

    def test_works_in_the_directory_that_was_opened(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        with parent_directory(tmp_path / "a/file") as (directory, name):
            (tmp_path / "a").rename(tmp_path / "b")
            os.close(os.open(name, os.O_CREAT, dir_fd=directory))
        assert (tmp_path / "b/file").exists()


@only_root
class TestRoot:
    def test_follows_a_link_of_another_user_only_to_what_this_user_owns(self, home: Path) -> None:
        own = home / "own"
        own.mkdir()
        (own / "file").write_text("bob's")
        for path in (own, own / "file"):
            os.chown(path, BOB, BOB)
        assert opened(link(home / "current", "own") / "file") == str(own / "file")
        assert opened(link(home / "a", "own/file")) == str(own / "file")
        refused(lambda: opened(link(home / "b", "../root/secret")))
        refused(lambda: opened(link(home / "c", home.parent / "root") / "secret"))
        refused(lambda: open_directory(home / "c"))
        # A link of root that leads through one of bob.
        refused(lambda: opened(link(home.parent / "d", "home/c/secret", 0)))
        assert opened(link(home / "e", "../root/secret", 0)) == str(home.parent / "root/secret")

    def test_follows_no_link_of_one_user_to_what_is_of_another(self, home: Path) -> None:
        (home / "file").touch()
        os.chown(home / "file", CAROL, CAROL)
        with pytest.raises(OSError, match=rf"\buser {BOB}\b.*\buser {CAROL}\b"):
            opened(link(home / "a", "file"))

    def test_makes_and_appends_nothing_where_such_a_link_leads(self, home: Path) -> None:
        link(home / "log", home.parent / "root/secret")
        link(home / "new", home.parent / "root/new")
        for name in ("log", "new"):
            refused(lambda name=name: LogFile(str(home / name), str))  # type: ignore[misc]
        link(home / "directory", home.parent / "root")
        refused(lambda: LogFile(str(home / "directory/log"), str))
        refused(lambda: write_atomic(home / "directory/pid", "1"))
        refused(lambda: read_file(home / "directory/secret", 100))
        refused(lambda: make_directory(home / "directory/state", BOB, BOB))
        assert os.listdir(home.parent / "root") == ["secret"]
        assert (home.parent / "root/secret").read_text() == "secret"

    def test_gives_the_directory_that_it_made(self, home: Path) -> None:
        make_directory(home / "a/state", BOB, CAROL)
        status = (home / "a/state").stat()
        assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (BOB, CAROL, 0o700)
        assert (home / "a").stat().st_uid == 0
        make_directory(home / "a", BOB, BOB)
        assert (home / "a").stat().st_uid == 0

    @pytest.mark.parametrize("target", ["link", "directory"])
    def test_gives_nothing_that_another_user_puts_in_its_place(
        self, target: str, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        place = home / "state"
        victim = home.parent / "root"
        make = os.mkdir

        def exchanged(*words: Any, **names: Any) -> None:
            make(*words, **names)
            place.rename(home / "mine")
            if target == "link":
                link(place, victim)
            else:
                victim.rename(place)

        monkeypatch.setattr(os, "mkdir", exchanged)
        with pytest.raises(OSError, match=r"\w"):
            make_directory(place, BOB, BOB)
        assert (place if target == "directory" else victim).stat().st_uid == 0

    def test_sets_the_mode_of_a_unix_socket_and_of_nothing_else(
        self, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delattr(os, "chmod")
        before = os.umask(0o022)
        try:
            for mode in (0o666, 0o600, 0o660):
                with socket.socket(socket.AF_UNIX) as bound:
                    bind_unix(bound, str(home / f"socket{mode}"), mode)
                assert (home / f"socket{mode}").stat().st_mode & 0o777 == mode
        finally:
            assert os.umask(before) == 0o022

    def test_binds_no_unix_socket_where_such_a_link_leads(self, home: Path) -> None:
        link(home / "directory", home.parent / "root")
        with socket.socket(socket.AF_UNIX) as bound:
            refused(lambda: bind_unix(bound, str(home / "directory/socket"), 0o600))
            assert os.listdir(home.parent / "root") == ["secret"]
            bind_unix(bound, f"\0netsvc-test-{os.getpid()}", 0o600)

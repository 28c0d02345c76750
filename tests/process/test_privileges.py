"""Started as root: ports are bound as root, and then the process is somebody else, in another root directory."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from netsvc.base.errors import StartError
from netsvc.server.process import prepare_shedding, root_warnings
from tests.builders.activated import Manager, activated
from tests.builders.facts import states
from tests.builders.processes import Server, connect, datagrams, read_exactly
from tests.builders.several import anybody_may_run_python, children

NOBODY, NOGROUP = 65534, 65534
SHED = ("--uid", str(NOBODY), "--gid", str(NOGROUP))
WARNING = "running as root: "

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def users(directory: Path, text: str) -> Path:
    """Write what /proc/self/uid_map would have."""
    file = directory / "uid_map"
    file.write_text(text)
    return file


class TestTheWarning:
    def test_names_the_cure(self, tmp_path: Path) -> None:
        [line] = root_warnings({"uid": None}, 0, users(tmp_path, "         0          0 4294967295\n"))
        assert "running as root" in line
        assert "twistd --uid USER --gid GROUP" in line

    def test_is_given_where_the_system_does_not_tell_of_user_namespaces(self, tmp_path: Path) -> None:
        assert root_warnings({}, 0, tmp_path / "none")

    def test_is_not_for_others_nor_for_who_will_be_another(self, tmp_path: Path) -> None:
        whole = users(tmp_path, "0 0 4294967295\n")
        assert root_warnings({}, 1000, whole) == []
        assert root_warnings({"uid": 1000}, 0, whole) == []
        assert root_warnings({"uid": 0}, 0, whole) != []

    def test_is_not_for_whoever_is_root_in_a_user_namespace_alone(self, tmp_path: Path) -> None:
        assert root_warnings({}, 0, users(tmp_path, "0 1000 1\n1 100000 65536\n")) == []


def privileged_port() -> int:
    """Find one below 1024 that is free for streams and datagrams."""
    for port in range(1023, 600, -1):
        with socket.socket() as stream, socket.socket(type=socket.SOCK_DGRAM) as datagram, suppress(OSError):
            stream.bind(("127.0.0.1", port))
            datagram.bind(("127.0.0.1", port))
            return port
    raise AssertionError("every port is in use")


def make_jail(place: Path) -> Path:
    """Make a directory that can be the root of somebody else."""
    for above in (place, *place.parents[:2]):
        above.chmod(0o711)
    jail = place / "jail"
    (jail / "dev").mkdir(parents=True)
    os.mknod(jail / "dev/null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    (jail / "etc").mkdir()
    (jail / "etc/passwd").write_text(f"somebody:x:{NOBODY}:{NOGROUP}::/:/bin/false\n")
    return jail


@only_root
class TestARootDirectoryThatOthersCanChange:
    @pytest.mark.parametrize("name", [".", "etc", "etc/passwd", "etc/group", "etc/nsswitch.conf", "lib"])
    @pytest.mark.parametrize("way", ["owned", "writable"])
    def test_is_refused_with_the_cure(self, name: str, way: str, tmp_path: Path) -> None:
        jail = make_jail(tmp_path)
        options = {"chroot": str(jail), "uid": NOBODY, "gid": NOGROUP}
        prepare_shedding(options)
        place = jail / name
        if not place.exists():
            place.touch()
        if way == "owned":
            os.chown(place, NOBODY, 0)
        else:
            place.chmod(0o664)
        with pytest.raises(StartError, match=f"--chroot {jail}: {os.path.realpath(place)} can be changed") as raised:
            prepare_shedding(options)
        # Whoever stays root gets no groups from there.
        prepare_shedding({**options, "uid": None})
        subprocess.run(["sh", "-c", str(raised.value).partition("; ")[2]], check=True)
        prepare_shedding(options)

    def test_is_refused_if_its_parent_can_be_changed_but_not_in_a_sticky_one(self, tmp_path: Path) -> None:
        jail = make_jail(tmp_path)
        options = {"chroot": str(jail), "uid": NOBODY, "gid": NOGROUP}
        tmp_path.chmod(0o1777)
        prepare_shedding(options)
        tmp_path.chmod(0o777)
        with pytest.raises(StartError, match=f"{tmp_path} can be changed"):
            prepare_shedding(options)


def identity(pid: int, name: str) -> list[int]:
    [line] = re.findall(rf"^{name}:(.*)$", Path(f"/proc/{pid}/status").read_text(), re.M)
    return [int(word) for word in line.split()]


@only_root
@pytest.mark.slow
class TestAProcessThatRootStarted:
    @pytest.mark.parametrize("workers", ["1", "2"])
    def test_binds_privileged_ports_and_then_is_another_user_with_no_other_groups(self, workers: str) -> None:
        if workers != "1" and not anybody_may_run_python():
            pytest.skip("needs an interpreter and a checkout that anybody may read")
        port = privileged_port()
        words = ["--workers", workers, "--tcp", f"127.0.0.1:{port}", "--udp", f"127.0.0.1:{port}"]
        with Server.twistd(*words, before=SHED) as server:
            for pid in (server.process.pid, *children(server.process.pid)):
                assert identity(pid, "Uid") == [NOBODY] * 4
                assert identity(pid, "Gid") == [NOGROUP] * 4
                assert set(identity(pid, "Groups")) <= {NOGROUP}
                assert not any(
                    int(word, 16)
                    for word in re.findall(r"^Cap(?:Prm|Eff):\s+(\S+)", Path(f"/proc/{pid}/status").read_text(), re.M)
                )
            with connect(port) as stream, datagrams(port) as peer:
                stream.sendall(b"hello")
                assert read_exactly(stream, 5) == b"hello"
                peer.send(b"hello")
                assert peer.recv(100) == b"hello"
            assert WARNING not in server.log

    def test_is_warned_once_if_it_stays_root(self) -> None:
        with Server.twistd("--tcp", "127.0.0.1:0") as server:
            assert server.log.count(WARNING) == 1

    def test_is_warned_once_however_many_workers_there_are(self) -> None:
        with Server.twistd("--workers", "2", "--tcp", "127.0.0.1:0") as server:
            assert server.log.count(WARNING) == 1

    def test_sees_no_more_than_its_root_directory(self, tmp_path: Path) -> None:
        jail = make_jail(tmp_path)
        (jail / "public").mkdir()
        (jail / "public/hello.txt").write_text("in the jail")
        words = ["--files", "127.0.0.1:0", "--files-root", "/public"]
        with Server.twistd(*words, before=["--chroot", str(jail), *SHED]) as server:
            pid = server.process.pid
            assert os.readlink(f"/proc/{pid}/root") == str(jail)
            assert identity(pid, "Uid") == [NOBODY] * 4
            with connect(server.port("files classic")) as stream:
                stream.sendall(b"hello.txt\n")
                assert read_exactly(stream, 11) == b"in the jail"
            with connect(server.port("files classic")) as stream:
                stream.sendall(b"../../../../etc/passwd\n")
                assert stream.recv(100) == b""

    def test_is_heard_by_systemd_from_another_root_and_as_another_user(self, tmp_path: Path) -> None:
        jail = make_jail(tmp_path)
        with Manager(tmp_path) as manager:
            environment = {"NOTIFY_SOCKET": str(manager.path)}
            before = ["--chroot", str(jail), *SHED]
            with activated([], "--tcp", "127.0.0.1:0", before=before, environment=environment) as server:
                manager.hear("READY=1")
                server.wait_for("ready$")
                server.process.send_signal(signal.SIGTERM)
                manager.hear("STOPPING=1")

    def test_says_what_its_root_directory_lacks(self, tmp_path: Path) -> None:
        server = activated([], "--tcp", "127.0.0.1:0", before=["--chroot", f"{tmp_path}/", *SHED])
        assert server.wait() == 1
        assert server.stderr.splitlines() == [
            f"netsvc: --chroot {tmp_path}: there is no {tmp_path}/dev/null; make one: mkdir -p {tmp_path}/dev && "
            f"mknod -m 666 {tmp_path}/dev/null c 1 3",
            f"netsvc: --chroot {tmp_path}: {tmp_path}/etc/passwd does not list the user {NOBODY} of --uid; "
            f"mkdir -p {tmp_path}/etc && getent passwd {NOBODY} >> {tmp_path}/etc/passwd",
        ]
        for line in server.stderr.splitlines():
            subprocess.run(["sh", "-c", re.split("make one: |--uid; ", line)[1]], check=True)
        with Server.twistd("--tcp", "127.0.0.1:0", before=["--chroot", f"{tmp_path}/", *SHED]):
            pass

    def test_says_that_there_is_no_such_user(self) -> None:
        server = activated([], "--tcp", "127.0.0.1:0", before=["--uid", "654321"])
        assert server.wait() == 1
        [line] = server.stderr.splitlines()
        assert states(line, "netsvc: --uid 654321: ", "getent passwd")

    def test_says_that_python_is_not_there_for_workers_in_another_root(self, tmp_path: Path) -> None:
        before = ["--chroot", str(make_jail(tmp_path))]
        server = activated([], "--workers", "2", "--tcp", "127.0.0.1:0", before=before)
        assert server.wait() == 1
        assert re.search(r"may not run \S*python\S*, .*root", server.stderr)

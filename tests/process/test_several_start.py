"""How several worker processes are started, and what keeps them from it."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import socket
import ssl
import sys
from pathlib import Path

import pytest

from tests.builders.certificates import write_certificate
from tests.builders.facts import unlike
from tests.builders.processes import PATIENCE, ROOT, TWISTD, Server, connect, datagrams, read_exactly, run, twistd
from tests.builders.several import anybody_may_run_python, ask, children, make, start, until_all_answer

#: Real processes, many of them.
pytestmark = pytest.mark.slow


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Make a directory with the service, to work in."""
    return make(tmp_path)


def test_a_port_in_use_is_an_error_line_and_so_is_that_of_another_netsvc_with_workers() -> None:
    with Server.twistd("--workers", "2", "--tcp", "0", "--udp", "0") as server:
        stream, datagram = server.port("echo tcp"), server.port("echo udp")
        for workers in ("1", "2"):
            ended = twistd(
                "-n", "--pidfile=", "netsvc", "--workers", workers, "--tcp", f"{stream}", "--udp", f"{datagram}"
            )
            assert ended.returncode == 1
            assert not unlike(
                ended.stderr.splitlines(),
                ("netsvc: echo tcp ", f" {stream}: ", f"port {stream} is in use"),
                ("netsvc: echo udp ", f" {datagram}: ", f"port {datagram} is in use"),
            )
        with connect(stream) as connection:
            connection.sendall(b"hello")
            assert read_exactly(connection, 5) == b"hello"


def test_every_mistake_has_its_line_and_nothing_starts(tmp_path: Path) -> None:
    words = ["--tcp", f"unix:{tmp_path}/sock", "--udp", f"unixgram:{tmp_path}/gram", "--reply", "192.0.2.1:9"]
    words += ["--files", "0", "--files-root", f"{tmp_path}/missing"]
    ended = twistd("-n", f"--pidfile={tmp_path}/pid", "netsvc", "--workers", "2", *words)
    assert ended.returncode == 1
    assert not unlike(
        ended.stderr.splitlines(),
        ("netsvc: files root ", f"{tmp_path}/missing: ", "no such directory; "),
        ("netsvc: reply tcp ", " 192.0.2.1:9: ", "; ", "127.0.0.1"),
    )
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_cannot_start_stops_the_start_in_one_line(place: Path) -> None:
    (place / "broken").touch()
    words = [TWISTD, "-n", f"--pidfile={place}/pid", "netsvc", "--workers", "3", "--who", f"unix:{place}/sock"]
    ended = run(*words, cwd=place, env={"PYTHONPATH": f"{ROOT}:{place}"})
    assert ended.returncode == 1
    assert not unlike(ended.stderr.splitlines(), ("netsvc: worker ", "the file broken is there"))
    assert "Traceback" not in ended.stdout
    assert not (place / "sock").exists()
    assert not (place / "pid").exists()


@pytest.mark.parametrize("service", ["chat", "lonely"])
def test_a_service_that_may_not_be_divided_is_named(place: Path, service: str) -> None:
    words = [TWISTD, "-n", "--pidfile=", "netsvc", "--workers", "2", "--tcp", "0", f"--{service}", "0"]
    ended = run(*words, cwd=place, env={"PYTHONPATH": f"{ROOT}:{place}"})
    assert ended.returncode == 1
    assert not unlike(
        ended.stderr.splitlines(), ("netsvc: --workers 2: ", f"{service} ", "parallel=True; ", "--workers")
    )


def test_keys_that_only_root_may_read_serve_workers_of_another_user_and_those_that_replace_them(tmp_path: Path) -> None:
    if not anybody_may_run_python():
        pytest.skip("needs root, and an interpreter and a checkout that anybody may read")
    key, certificate = write_certificate(tmp_path, "localhost")
    key.chmod(0o600)
    address = f"ssl:0:privateKey={key}:certKey={certificate}:interface=127.0.0.1"
    shed = ["--uid", "65534", "--gid", "65534"]
    with Server.twistd("--workers", "2", "--tcp", address, "--tcp", f"haproxy:{address}", before=shed) as server:
        context = ssl.create_default_context(cafile=str(certificate))

        def echoes(number: int) -> None:
            with context.wrap_socket(connect(server.port("echo tcp", number)), server_hostname="localhost") as stream:
                stream.sendall(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" if number else b"")
                stream.sendall(b"hello")
                assert stream.recv(5) == b"hello"

        for pid in children(server.process.pid):
            assert re.search(r"^Uid:\s+65534\s+65534", Path(f"/proc/{pid}/status").read_text(), re.M)
        key.unlink()
        for number in [0] * 10 + [1]:
            echoes(number)
        os.kill(children(server.process.pid)[0], signal.SIGKILL)
        server.wait_for(r"\) is ready$")
        for number in [0] * 10 + [1]:
            echoes(number)


_AS_SYSTEMD = """\
import os, sys
for place, number in enumerate(sys.argv.pop(1).split(',')):
    os.dup2(int(number), 3 + place)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_systemd_hands_over_streams_and_datagrams_to_all_workers(place: Path) -> None:
    stream, datagram, unix = socket.socket(), socket.socket(type=socket.SOCK_DGRAM), socket.socket(socket.AF_UNIX)
    with stream, datagram, unix:
        for bound in (stream, datagram):
            bound.bind(("127.0.0.1", 0))
        unix.bind(str(place / "sock"))
        (place / "sock").chmod(0o640)
        for bound in (stream, unix):
            bound.listen()
        high = [fcntl.fcntl(each.fileno(), fcntl.F_DUPFD, 40) for each in (stream, datagram, unix)]
        command = [sys.executable, "-c", _AS_SYSTEMD, ",".join(map(str, high)), TWISTD, "-n", "--pidfile=", "netsvc"]
        command += ["--workers", "2", "--who", "haproxy:systemd:domain=INET:index=0"]
        command += ["--who-udp", "systemd:domain=INET:name=datagrams", "--who", "systemd:domain=UNIX:name=unix"]
        environment = {"LISTEN_FDS": "3", "LISTEN_FDNAMES": "streams:datagrams:unix", "PYTHONPATH": f"{ROOT}:{place}"}
        server = Server(command, cwd=place, env=environment, pass_fds=high)
        for number in high:
            os.close(number)
        with server:
            server.wait_for("ready$")
            workers = set(children(server.process.pid))
            with connect(stream.getsockname()[1]) as connection:
                connection.sendall(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n")
                assert ask(connection) in workers

            def ask_datagram() -> int:
                with datagrams(datagram.getsockname()[1]) as peer:
                    return ask(peer)

            until_all_answer(workers, ask_datagram)
            with socket.socket(socket.AF_UNIX) as peer:
                peer.settimeout(PATIENCE)
                peer.connect(str(place / "sock"))
                assert ask(peer) in workers
        # The file is that of systemd.
        assert (place / "sock").stat().st_mode & 0o777 == 0o640


def test_one_worker_is_no_other_process() -> None:
    with Server.twistd("--workers", "1", "--chat", "127.0.0.1:0") as server:
        assert children(server.process.pid) == []


@pytest.mark.parametrize("chosen", [(), ("--reactor", "poll")])
def test_workers_run_on_the_fast_reactor_or_the_one_that_was_chosen(place: Path, chosen: tuple[str, ...]) -> None:
    with start(place, "--who", "127.0.0.1:0", before=("-n", "--pidfile=", *chosen)) as server:
        with connect(server.port("who tcp")) as stream:
            stream.send(b"reactor")
            assert stream.recv(100) == (b"PollReactor" if chosen else b"NetsvcReactor")

"""The product as users run it: real processes, real sockets, real signals."""

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
from tests.builders.facts import drained, states, unlike
from tests.builders.processes import (
    PATIENCE,
    ROOT,
    TWISTD,
    Server,
    connect,
    datagrams,
    read_all,
    read_exactly,
    run,
    twistd,
)

#: Real processes, many of them.
pytestmark = pytest.mark.slow


def test_echo_and_reply_serve_streams_and_datagrams_of_both_ip_versions_in_one_process() -> None:
    with Server.twistd("--tcp", "0", "--udp", "0", "--reply", "0", "--reply-udp", "0") as server:
        for host in ("127.0.0.1", "::1"):
            with connect(server.port("echo tcp"), host) as stream:
                stream.sendall(b"\x00\xff hello")
                assert read_exactly(stream, 8) == b"\x00\xff hello"
            with datagrams(server.port("echo udp"), host) as socket_:
                for data in (b"hello", b"", b"x" * 65507 if host == "127.0.0.1" else b"x" * 65487):
                    socket_.send(data)
                    assert socket_.recv(65536) == data
            with connect(server.port("reply tcp"), host) as stream:
                stream.sendall(b"anything")
                assert read_exactly(stream, 18) == b"hello, tcp client!"
            with datagrams(server.port("reply udp"), host) as socket_:
                socket_.send(b"anything that is long enough")
                assert socket_.recv(100) == b"i am udp,i got it"


def test_addresses_repeat_in_every_form(tmp_path: Path) -> None:
    key, certificate = write_certificate(tmp_path, "localhost")
    streams = ["127.0.0.1:0", "[::1]:0", "tcp:0:interface=127.0.0.1", "tcp6:0:interface=\\:\\:1"]
    words = [word for address in streams for word in ("--tcp", address)]
    words += ["--tcp", f"ssl:0:privateKey={key}:certKey={certificate}:interface=127.0.0.1"]
    words += ["--tcp", f"unix:{tmp_path}/echo.sock", "--udp", f"unixgram:{tmp_path}/echo.gram:mode=600"]
    words += ["--udp", "udp:0:interface=127.0.0.1", "--udp", "udp6:0:interface=\\:\\:1", "--udp", "localhost:0"]
    with Server.twistd(*words) as server:
        for place, host in enumerate(("127.0.0.1", "::1", "127.0.0.1", "::1")):
            with connect(server.port("echo tcp", place), host) as stream:
                stream.sendall(b"hello")
                assert read_exactly(stream, 5) == b"hello"
        context = ssl.create_default_context(cafile=str(certificate))
        with context.wrap_socket(connect(server.port("echo tcp", 4)), server_hostname="localhost") as stream:
            stream.sendall(b"hello")
            assert stream.recv(5) == b"hello"
        for place, host in enumerate(("127.0.0.1", "::1", "127.0.0.1")):
            with datagrams(server.port("echo udp", place), host) as socket_:
                socket_.send(b"hello")
                assert socket_.recv(100) == b"hello"
        with socket.socket(socket.AF_UNIX) as stream:
            stream.settimeout(PATIENCE)
            stream.connect(f"{tmp_path}/echo.sock")
            stream.sendall(b"hello")
            assert read_exactly(stream, 5) == b"hello"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as socket_:
            socket_.settimeout(PATIENCE)
            socket_.bind(f"{tmp_path}/client.gram")
            socket_.sendto(b"x" * 100_000, f"{tmp_path}/echo.gram")
            assert socket_.recv(200_000) == b"x" * 100_000
        assert (tmp_path / "echo.gram").stat().st_mode & 0o777 == 0o600
    assert {path.name for path in tmp_path.iterdir()} >= {"client.gram"}
    assert not (tmp_path / "echo.sock").exists()
    assert not (tmp_path / "echo.gram").exists()


_AS_SYSTEMD = """\
import os, sys
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_systemd_hands_over_streams_and_datagrams(tmp_path: Path) -> None:
    stream, datagram, unix = socket.socket(), socket.socket(type=socket.SOCK_DGRAM), socket.socket(socket.AF_UNIX, 2)
    with stream, datagram, unix:
        stream.bind(("127.0.0.1", 0))
        stream.listen()
        datagram.bind(("127.0.0.1", 0))
        unix.bind(str(tmp_path / "gram"))
        # systemd passes descriptors from 3 on.
        script = "import os, sys\nfor place, number in enumerate(sys.argv.pop(1).split(',')):\n"
        script += "    os.dup2(int(number), 3 + place)\n" + _AS_SYSTEMD
        numbers = [stream.fileno(), datagram.fileno(), unix.fileno()]
        high = [fcntl.fcntl(number, fcntl.F_DUPFD, 40) for number in numbers]
        command = [sys.executable, "-c", script, ",".join(map(str, high)), TWISTD, "-n", "--pidfile=", "netsvc"]
        command += ["--tcp", "systemd:domain=INET:index=0", "--udp", "systemd:domain=INET:name=datagrams"]
        command += ["--udp", "systemd:domain=UNIX:name=gram"]
        server = Server(command, env={"LISTEN_FDS": "3", "LISTEN_FDNAMES": "streams:datagrams:gram"}, pass_fds=high)
        for number in high:
            os.close(number)
        with server:
            server.wait_for("ready$")
            with connect(stream.getsockname()[1]) as connection:
                connection.sendall(b"hello")
                assert read_exactly(connection, 5) == b"hello"
            with datagrams(datagram.getsockname()[1]) as client:
                client.send(b"hello")
                assert client.recv(100) == b"hello"
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
                client.settimeout(PATIENCE)
                client.bind(str(tmp_path / "client"))
                client.sendto(b"hello", str(tmp_path / "gram"))
                assert client.recv(100) == b"hello"


def test_systemd_addresses_without_systemd_say_so() -> None:
    ended = twistd("-n", "--pidfile=", "netsvc", "--tcp", "systemd:domain=INET:index=0", "--udp", "systemd:INET:name=x")
    assert ended.returncode == 1
    assert not unlike(
        ended.stderr.splitlines(),
        ("netsvc: echo tcp ", "systemd:domain=INET:index=0: ", " no socket 0;", ".socket"),
        ("netsvc: echo udp ", "systemd:INET:name=x: ", " no socket x;", ".socket"),
    )


def test_nothing_starts_when_one_port_cannot_be_opened_and_every_failure_has_its_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        words = ["--tcp", f"unix:{tmp_path}/echo.sock", "--udp", f"unixgram:{tmp_path}/gram", "--tcp", str(port)]
        words += ["--reply", "192.0.2.1:9", "--files", "0", "--files-root", f"{tmp_path}/missing"]
        ended = twistd("-n", f"--pidfile={tmp_path}/pid", "netsvc", *words)
    assert ended.returncode == 1
    assert not unlike(
        ended.stderr.splitlines(),
        ("netsvc: files root ", f"{tmp_path}/missing: ", "no such directory; "),
        ("netsvc: echo tcp ", f" {port}: ", f"port {port} is in use", f" 127.0.0.1:{port}; "),
        ("netsvc: reply tcp ", " 192.0.2.1:9: ", "; ", "127.0.0.1"),
    )
    assert "Traceback" not in ended.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_privileged_port_needs_root_and_uid_sheds_it() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with Server.twistd("--tcp", "127.0.0.1:0", before=["--uid", "65534", "--gid", "65534"]) as server:
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        assert re.search(r"^Uid:\s+65534\s+65534", status, re.M)
        with connect(server.port("echo tcp")) as stream:
            stream.sendall(b"hello")
            assert read_exactly(stream, 5) == b"hello"


def test_a_terminated_server_answers_while_it_drains() -> None:
    with Server.twistd("--tcp", "127.0.0.1:0", "--drain", "3600") as server:
        with connect(server.port("echo tcp")) as stream:
            stream.sendall(b"hello")
            assert read_exactly(stream, 5) == b"hello"
            server.process.send_signal(signal.SIGTERM)
            server.wait_for("draining: 1 connection")
            # Repeats change nothing.
            server.process.send_signal(signal.SIGTERM)
            stream.sendall(b"world")
            assert read_exactly(stream, 5) == b"world"
        assert server.wait() == -signal.SIGTERM
        assert drained(server.log) == (1, {}, {})


def test_a_terminated_server_says_what_it_cut() -> None:
    with Server.twistd("--tcp", "127.0.0.1:0", "--drain", "0.3") as server:
        with connect(server.port("echo tcp")) as stream:
            stream.sendall(b"hello")
            assert read_exactly(stream, 5) == b"hello"
            server.process.send_signal(signal.SIGTERM)
            assert read_all(stream) == b""
        assert server.wait() == -signal.SIGTERM
        assert drained(server.log) == (0, {"echo tcp": 1}, {})
        assert "Traceback" not in server.log


def test_no_datagram_goes_from_one_service_to_another_of_the_process(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from twisted.internet.protocol import DatagramProtocol as Silent\n")
    words = ["--udp", "127.0.0.1:0", "--reply-udp", "127.0.0.1:0", "--serve", f"{tmp_path}/mine.py:Silent=127.0.0.1:0"]
    with Server.twistd(*words) as server:
        echo = ("127.0.0.1", server.port("echo udp"))
        for label in ("echo udp", "reply udp", "Silent datagram"):
            with socket.socket(type=socket.SOCK_DGRAM) as forged, datagrams(echo[1]) as client:
                # The port of a listener at another address is as near as one gets without a raw socket.
                forged.bind(("127.0.0.2", server.port(label)))
                forged.sendto(b"hello", echo)
                client.send(b"hello")
                assert client.recv(100) == b"hello"
                forged.setblocking(False)
                with pytest.raises(BlockingIOError):
                    forged.recv(100)


def test_every_connection_that_the_kernel_took_is_served_when_the_server_is_terminated() -> None:
    with Server.twistd("--tcp", "127.0.0.1:0") as server:
        with connect(server.port("echo tcp")) as stream:
            stream.sendall(b"x")
            assert read_exactly(stream, 1) == b"x"
        server.process.send_signal(signal.SIGSTOP)
        streams = [connect(server.port("echo tcp")) for _ in range(60)]
        for stream in streams:
            stream.sendall(b"hello")
            stream.shutdown(socket.SHUT_WR)
        server.process.send_signal(signal.SIGTERM)
        server.process.send_signal(signal.SIGCONT)
        for stream in streams:
            with stream:
                assert read_all(stream) == b"hello"
        assert server.wait() == -signal.SIGTERM


@pytest.mark.parametrize("name", ["Refusing", "RefusingDatagrams"])
def test_a_plugin_that_raises_as_it_is_opened_stops_the_start_in_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "mine.py").write_text(
        "from twisted.internet.protocol import DatagramProtocol, Factory, Protocol\n"
        "class Refusing(Factory):\n"
        "    protocol = Protocol\n"
        "    def startFactory(self):\n"
        "        raise RuntimeError('no')\n"
        "class RefusingDatagrams(DatagramProtocol):\n"
        "    def startProtocol(self):\n"
        "        raise RuntimeError('no')\n"
    )
    reference = f"{tmp_path}/mine.py:{name}"
    ended = twistd("-n", "--pidfile=", "netsvc", "--serve", f"{reference}=127.0.0.1:0")
    assert ended.returncode == 1
    kind, line = ("stream", 5) if name == "Refusing" else ("datagram", 8)
    at = f"{tmp_path}/mine.py:{line}"
    assert not unlike(
        ended.stderr.splitlines(), (f"netsvc: {reference} {kind} ", " 127.0.0.1:0: ", "RuntimeError: no", at)
    )


def test_a_unix_socket_that_is_in_use_is_said_to_be(tmp_path: Path) -> None:
    with Server.twistd("--tcp", f"unix:{tmp_path}/echo.sock"):
        ended = twistd("-n", "--pidfile=", "netsvc", "--tcp", f"unix:{tmp_path}/echo.sock")
    path = f"{tmp_path}/echo.sock"
    assert ended.returncode == 1
    assert not unlike(ended.stderr.splitlines(), ("netsvc: echo tcp ", f" unix:{path}: ", f"{path} is in use; "))


def test_a_socket_file_that_the_user_may_not_remove_is_left_behind_in_one_line(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    tmp_path.chmod(0o755)
    words = ["--tcp", f"unix:{tmp_path}/sock", "--udp", f"unixgram:{tmp_path}/gram"]
    with Server.twistd(*words, before=["--uid", "65534", "--gid", "65534"]) as server:
        server.stop()
    for name in ("sock", "gram"):
        assert any(states(line, f"{tmp_path}/{name} ", "Permission denied") for line in server.log.splitlines())
    assert "Traceback" not in server.log


def test_a_second_interrupt_does_not_wait() -> None:
    with Server.twistd("--tcp", "127.0.0.1:0", "--drain", "3600") as server:
        with connect(server.port("echo tcp")) as stream:
            stream.sendall(b"hello")
            assert read_exactly(stream, 5) == b"hello"
            server.process.send_signal(signal.SIGINT)
            server.wait_for("draining")
            assert server.stop(signal.SIGINT) == -signal.SIGINT
        assert drained(server.log) == (0, {}, {"echo tcp": 1})


def test_a_daemon_that_cannot_start_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ended = twistd(
            f"--pidfile={tmp_path}/pid", f"--logfile={tmp_path}/log", "netsvc", "--tcp", str(taken.getsockname()[1])
        )
    assert ended.returncode == 1
    assert "is in use" in (tmp_path / "log").read_text()
    assert not (tmp_path / "pid").exists()


def test_twist_runs_it_as_well() -> None:
    twist = str(Path(TWISTD).with_name("twist"))
    with Server([twist, "--log-format=text", "netsvc", "--tcp", "127.0.0.1:0"]) as server:
        server.wait_for("ready$")
        with connect(server.port("echo tcp")) as stream:
            stream.sendall(b"hello")
            assert read_exactly(stream, 5) == b"hello"


def test_every_service_is_a_command_of_its_own() -> None:
    with Server.twistd("127.0.0.1:0", "--udp", "127.0.0.1:0", plugin="netsvc-echo") as server:
        with connect(server.port("echo tcp")) as stream:
            stream.sendall(b"hello")
            assert read_exactly(stream, 5) == b"hello"
    listed = twistd("--help").stdout
    for name in ("netsvc", "netsvc-echo", "netsvc-reply", "netsvc-chat", "netsvc-files"):
        assert re.search(rf"^    {name}\s", listed, re.M), listed


def test_a_class_is_served_straight_from_a_file_or_a_module(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from twisted.internet.protocol import DatagramProtocol, Factory, Protocol\n"
        "class Upper(Protocol):\n"
        "    def dataReceived(self, data):\n"
        "        self.transport.write(data.upper())\n"
        "class Back(DatagramProtocol):\n"
        "    def datagramReceived(self, data, addr):\n"
        "        self.transport.write(data[::-1], addr)\n"
        "factory = Factory.forProtocol(Upper)\n"
    )
    words = ["--serve", f"{tmp_path}/mine.py:Upper=127.0.0.1:0", "--serve", "mine:Back=127.0.0.1:0"]
    command = [TWISTD, "-n", "--pidfile=", "netsvc", *words, "--serve", "mine:factory=tcp:0:interface=127.0.0.1"]
    with Server(command, cwd=tmp_path) as server:
        server.wait_for("ready$")
        for label in (f"{tmp_path}/mine.py:Upper stream", "mine:factory stream"):
            with connect(server.port(re.escape(label))) as stream:
                stream.sendall(b"hello")
                assert read_exactly(stream, 5) == b"HELLO"
        with datagrams(server.port("mine:Back datagram")) as socket_:
            socket_.send(b"hello")
            assert socket_.recv(100) == b"olleh"


def test_help_imports_no_service_and_no_reactor() -> None:
    script = (
        "import sys\n"
        "from twisted.application.app import ServerOptions\n"
        "str(ServerOptions())\n"
        "print([n for n in sys.modules if n.startswith('netsvc.services') or n == 'twisted.internet.reactor'])\n"
    )
    assert run(sys.executable, "-c", script, cwd=ROOT).stdout.splitlines()[-1] == "[]"


def test_the_reactor_of_the_users_choice_is_used() -> None:
    with Server.twistd("--tcp", "127.0.0.1:0", before=["--reactor", "poll"]) as server:
        assert "PollReactor" in server.log


@pytest.mark.parametrize("arguments", [("netsvc",), ("netsvc-chat",)])
def test_nothing_to_run_is_said_with_examples(arguments: tuple[str, ...]) -> None:
    ended = twistd("-n", "--pidfile=", *arguments)
    assert ended.returncode == 1
    assert not unlike(ended.stderr.splitlines(), ("netsvc: nothing to run", "; ", "twistd -n netsvc"))


@pytest.mark.parametrize("command", [["list"], ["check", "--tcp", "0"]])
def test_a_plugin_file_that_does_not_load_is_one_line_and_no_traceback(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "twisted/plugins").mkdir(parents=True)
    (tmp_path / "twisted/plugins/broken_plugin.py").write_text("import no_such_module_at_all\n")
    ended = run(sys.executable, "-m", "netsvc", *command, env={"PYTHONPATH": f"{ROOT}:{tmp_path}"})
    assert ended.returncode == 0
    [line] = [line for line in (ended.stdout + ended.stderr).splitlines() if "no_such_module_at_all" in line]
    assert states(line, "broken_plugin.py ", "ModuleNotFoundError")
    assert "Traceback" not in ended.stderr


def test_a_crowd_of_members_and_idle_connections_is_served() -> None:
    ended = run(sys.executable, "-m", "benchmarks.crowd", "--members", "250", "--rooms", "5", "--idle", "250", cwd=ROOT)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    # From a member of each wire to each other member of its room.
    assert "735 deliveries" in ended.stdout


def _echoes(port: int) -> bool:
    try:
        with connect(port) as stream:
            stream.sendall(b"hello")
            return read_exactly(stream, 5) == b"hello"
    except ConnectionError:
        return False


def test_running_out_of_descriptors_is_survived_and_said_once() -> None:
    limited = [
        "bash",
        "-c",
        'ulimit -n 40; exec "$0" "$@"',
        TWISTD,
        "-n",
        "--pidfile=",
        "netsvc",
        "--tcp",
        "127.0.0.1:0",
        "--access",
        "off",
    ]
    with Server(limited) as server:
        server.wait_for("ready$")
        port = server.port("echo tcp")
        crowd = [connect(port) for _ in range(100)]
        server.wait_for("not accepting")
        for connection in crowd:
            connection.close()
        # The server may find the next connection before it finds the ends of these.
        assert any(_echoes(port) for _ in range(1000))
    assert server.log.count("not accepting for now") == 1
    assert len(server.lines) < 20

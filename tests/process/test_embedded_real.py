"""Twistd plugins inside a real netsvc process, each with a real client."""

from __future__ import annotations

import ftplib
import io
import re
import signal
import socket
import struct
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders.processes import (
    PATIENCE,
    TWISTD,
    Server,
    connect,
    free_port,
    is_refused,
    read_all,
    read_exactly,
    run,
)

#: Real processes, many of them.
pytestmark = pytest.mark.slow

HELLO = b"hello, world\n"


@pytest.fixture
def public(tmp_path: Path) -> Path:
    """Return a directory with a small file and a big one."""
    directory = tmp_path / "public"
    directory.mkdir()
    (directory / "hello.txt").write_bytes(HELLO)
    (directory / "big").write_bytes(bytes(range(256)) * 65536)
    return directory


def fetch(port: int, name: str = "hello.txt") -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{name}", timeout=PATIENCE) as response:
        body: bytes = response.read()
        return body


def until_refused(port: int) -> None:
    """Wait until nobody listens any more: the line in the log comes a moment before."""
    while True:
        try:
            connect(port).close()
        except ConnectionRefusedError:
            return
        except ConnectionResetError:
            # It was waiting to be accepted when the port closed.
            continue


def embed(plugin: str) -> tuple[str, str]:
    return "--with", plugin


def web(public: Path, port: object = 0, limits: str = "") -> tuple[str, str]:
    guard = f"guard:{limits}:" if limits else ""
    return embed(f"web --listen {guard}tcp:{port}:interface=127.0.0.1 --path {public}")


def test_web_serves_beside_a_service_of_netsvc(public: Path) -> None:
    with Server.twistd("--tcp", "127.0.0.1:0", *web(public)) as server:
        assert fetch(server.port("web")) == HELLO
        with connect(server.port("echo tcp")) as connection:
            connection.sendall(HELLO)
            assert read_exactly(connection, len(HELLO)) == HELLO
        # Its own log lines are in the log, and of Twisted's there is none that netsvc's says better.
        server.wait_for("GET /hello.txt")
        assert not [line for line in server.lines if "starting on" in line or "Starting factory" in line]


def test_of_one_peer_only_so_many_are_served(public: Path) -> None:
    with Server.twistd(*web(public, limits="perip=1")) as server:
        port = server.port("web")
        with connect(port) as held:
            held.sendall(b"GET /hello.txt HTTP/1.1\r\nHost: x\r\n\r\n")
            assert held.recv(1)
            assert is_refused(port)
        server.wait_for("limit perip refused 127.0.0.1 at web")
        while True:
            try:
                assert fetch(port) == HELLO
            except OSError:
                # The end of the first one has not come yet.
                continue
            break


def test_a_download_that_is_under_way_is_drained_and_still_logged(public: Path, tmp_path: Path) -> None:
    access = tmp_path / "access.log"
    words = web(public)[1]
    with Server.twistd("--drain", "600", *embed(f"{words} --logfile {access}")) as server:
        with connect(server.port("web")) as connection:
            connection.sendall(b"GET /big HTTP/1.0\r\n\r\n")
            head = read_exactly(connection, 1000)
            server.process.send_signal(signal.SIGTERM)
            server.wait_for("draining: 1 connection")
            until_refused(server.port("web"))
            body = (head + read_all(connection)).partition(b"\r\n\r\n")[2]
        assert body == (public / "big").read_bytes()
        assert server.wait() == -signal.SIGTERM
        assert re.search(r"stopped: 1 \S+ ended by itself", server.log)
        assert '"GET /big HTTP/1.0" 200' in access.read_text()


def test_a_connection_that_does_not_end_is_closed_at_the_end_of_the_drain(public: Path) -> None:
    with Server.twistd("--drain", "0.2", *web(public)) as server:
        with connect(server.port("web")) as connection:
            connection.sendall(b"GET /hello.txt HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(1)
            server.process.send_signal(signal.SIGTERM)
            read_all(connection)
        assert server.wait() == -signal.SIGTERM
        assert re.search(r" 0\.2 s: 1 web\b", server.log)


def ftp(port: int) -> ftplib.FTP:
    client = ftplib.FTP(timeout=PATIENCE)
    client.connect("127.0.0.1", port)
    client.login()
    return client


@pytest.mark.parametrize("passive", [True, False])
def test_ftp_lists_and_sends_files_whoever_opens_the_data_connection(public: Path, passive: bool) -> None:
    with Server.twistd(*embed(f"ftp --port 0 --root {public}")) as server:
        assert re.search(r"ftp: .*\(PASV, PORT\).* no limits", server.log)
        with ftp(server.port("ftp")) as client:
            client.set_pasv(passive)
            assert sorted(client.nlst(".")) == ["big", "hello.txt"]
            for name in ("hello.txt", "big"):
                received = io.BytesIO()
                client.retrbinary(f"RETR {name}", received.write)
                assert received.getvalue() == (public / name).read_bytes()


def test_ftp_has_limits_and_is_drained(public: Path) -> None:
    with Server.twistd("--drain", "0.2", "--limit", "perip=1", *embed(f"ftp --port 0 --root {public}")) as server:
        with ftp(server.port("ftp")) as client:
            assert is_refused(server.port("ftp"))
            server.process.send_signal(signal.SIGTERM)
            with pytest.raises(EOFError):
                client.getresp()
            client.close()
        assert server.wait() == -signal.SIGTERM
        assert re.search(r" 0\.2 s: 1 ftp\b", server.log)


class Talker:
    """A client of IRC (RFC 2812)."""

    def __init__(self, port: int, name: str, password: str) -> None:
        self.connection = connect(port)
        self.lines = self.connection.makefile("r", encoding="utf-8", newline="\r\n")
        self.say(f"PASS {password}", f"NICK {name}", f"USER {name} 0 * :{name}")

    def say(self, *lines: str) -> None:
        self.connection.sendall("".join(f"{line}\r\n" for line in lines).encode())

    def hear(self, part: str) -> str:
        """Read up to a line that has this part."""
        return next(line for line in self.lines if part in line)

    def close(self) -> None:
        self.lines.close()
        self.connection.close()


@pytest.fixture
def talkers() -> Iterator[list[Talker]]:
    opened: list[Talker] = []
    yield opened
    for talker in opened:
        talker.close()


def test_people_talk_through_words(talkers: list[Talker]) -> None:
    words = "words --irc-port tcp:0:interface=127.0.0.1 --auth memory:alice:secret:bob:hush"
    with Server.twistd("--drain", "0.2", "--limit", "perip=2", *embed(words)) as server:
        port = server.port("words")
        for name, password in (("alice", "secret"), ("bob", "hush")):
            talkers.append(Talker(port, name, password))
            talkers[-1].hear(" 376 ")
        talkers[0].say("PRIVMSG bob :hello")
        assert talkers[1].hear("PRIVMSG bob").startswith(":alice!")
        assert is_refused(port)


def http(connection: socket.socket) -> bytes:
    connection.sendall(b"GET /hello.txt HTTP/1.0\r\n\r\n")
    return read_all(connection).partition(b"\r\n\r\n")[2]


def question(name: str) -> bytes:
    """Ask for the IPv4 address of a name (RFC 1035, section 4)."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!6H", 7, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", 1, 1)


def test_several_plugins_run_beside_each_other(public: Path, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("192.0.2.7 acme.example\n")
    http_port = free_port()
    plugins = (
        *web(public, http_port),
        *embed(f"portforward --port tcp:0:interface=127.0.0.1 --host 127.0.0.1 --dest_port {http_port}"),
        *embed("socks --port 0"),
        *embed(f"dns --port {free_port()} --interface 127.0.0.1 --hosts-file {tmp_path}/hosts"),
    )
    with Server.twistd(*plugins) as server:
        with connect(server.port("portforward")) as connection:
            assert http(connection) == HELLO
        with connect(server.port("socks")) as connection:
            connection.sendall(b"\x04\x01" + struct.pack("!H", http_port) + b"\x7f\0\0\1user\0")
            assert read_exactly(connection, 8)[:2] == b"\0\x5a"
            assert http(connection) == HELLO
        asked = question("acme.example")
        with connect(server.port("dns")) as connection:
            connection.sendall(struct.pack("!H", len(asked)) + asked)
            (length,) = struct.unpack("!H", read_exactly(connection, 2))
            assert read_exactly(connection, length).endswith(b"\xc0\0\2\7")
        with socket.socket(type=socket.SOCK_DGRAM) as client:
            client.settimeout(PATIENCE)
            client.sendto(asked, ("127.0.0.1", server.port("dns udp")))
            assert client.recv(512).endswith(b"\xc0\0\2\7")


def test_what_is_wrong_with_a_plugin_stops_the_start_with_a_line_and_no_traceback(public: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for plugin, line in (
            ("wbe", "no twistd plugin is called wbe; did you mean web?"),
            ("web --no-such", "option --no-such not recognized; twistd web --help lists its options"),
            ("web --help", "these options of web show something, and start nothing; run twistd web --help to see it"),
            ("words --group x", "words cannot read its options: AttributeError"),
            (f"web --listen tcp:{port}:interface=127.0.0.1", f"cannot listen: port {port} is in use at "),
            ("inetd --file /no/such/file", "inetd cannot be built: FileNotFoundError"),
        ):
            ended = run(TWISTD, "-n", "--pidfile=", "netsvc", "--with", plugin)
            assert ended.returncode == 1
            assert f"netsvc: --with {plugin.split()[0]}: {line}" in ended.stderr
            assert "Traceback" not in ended.stdout + ended.stderr

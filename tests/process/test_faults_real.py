"""Real processes among real faults: they go on, say what has happened, and are as before when it is over."""

from __future__ import annotations

import os
import random
import re
import resource
import select
import signal
import socket
import ssl
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.builders.pems import Pem
from tests.builders.processes import PATIENCE, TWISTD, Server, connect, datagrams, read_all, read_exactly

pytestmark = pytest.mark.slow

#: Fails wherever it can, but at what it is told not to.
CLUMSY = """
from twisted.internet.protocol import DatagramProtocol, Factory, Protocol


class Clumsy(Protocol):
    told = b""

    def connectionMade(self):
        if self.factory.at_start:
            raise ValueError("at the start")

    def dataReceived(self, data):
        self.told = data
        if data == b"ok":
            self.transport.write(data)
        elif data == b"end":
            self.transport.loseConnection()
        else:
            raise ValueError("in the middle")

    def connectionLost(self, reason):
        if self.told == b"end":
            raise ValueError("at the end")


class Clumsiness(Factory):
    protocol = Clumsy
    at_start = False
    built = 0

    def buildProtocol(self, addr):
        self.built += 1
        if self.built % 5 == 1:
            raise ValueError("before the start")
        self.at_start = self.built % 5 == 2
        return super().buildProtocol(addr)


class ClumsyUDP(DatagramProtocol):
    def datagramReceived(self, data, address):
        if data != b"ok":
            raise ValueError("a datagram")
        self.transport.write(data, address)
"""


def limited(command: Sequence[str], descriptors: int) -> Server:
    """Start a server that may have so many descriptors."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    # It is inherited; and the hard one, which netsvc would raise its own to, cannot be raised again by everybody.
    shell = ["sh", "-c", f'ulimit -n {descriptors} && exec "$@"', "sh", *command]
    server = Server(shell)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before
    server.wait_for("ready$")
    return server


def descriptors(server: Server) -> int:
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


def cpu_seconds(server: Server) -> float:
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(server: Server) -> int:
    """Return the resident bytes."""
    return int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]) * resource.getpagesize()


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def reset(connection: socket.socket) -> None:
    """Close a connection by a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.mark.parametrize("reactor", ["netsvc", "epoll", "select"])
def test_without_descriptors_the_others_wait_and_are_served_when_there_are_some(reactor: str, tmp_path: Path) -> None:
    config = tmp_path / "netsvc.toml"
    public = tmp_path / "public"
    public.mkdir()
    (public / "hello").write_bytes(b"hello")
    settings = '[limits]\nperip = "none"\n[services.echo]\ntcp = "127.0.0.1:0"\nudp = "127.0.0.1:0"\n'
    config.write_text(f'{settings}[services.files]\nclassic = "127.0.0.1:0"\nroot = "{public}"\n')
    chosen = [] if reactor == "netsvc" else ["--reactor", reactor]
    with limited([TWISTD, "-n", "--pidfile=", *chosen, "netsvc", "--config", str(config)], 64) as server:
        before = descriptors(server)
        port, files = server.port("echo tcp"), server.port("files classic")
        download = connect(files)
        peers = [connect(port) for _ in range(200)]
        for number, peer in enumerate(peers):
            peer.sendall(b"%03d" % number)
        until(lambda: descriptors(server) >= 56)
        server.wait_for(r"echo tcp: .*: too many open files; .*\bulimit -n")
        spent = cpu_seconds(server)
        time.sleep(1)
        assert cpu_seconds(server) - spent < 0.5
        # Whoever is there is served; so are datagrams, and files can be opened.
        assert read_exactly(peers[0], 3) == b"000"
        with datagrams(server.port("echo udp")) as asking:
            asking.send(b"there?")
            assert asking.recv(99) == b"there?"
        download.sendall(b"hello\n")
        assert read_all(download) == b"hello"
        download.close()
        config.write_text(config.read_text() + "# changed\n")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("reload")
        # The others come as the first ones go, in order and nobody forgotten.
        waiting = set(peers[1:])
        while waiting:
            readable, _, _ = select.select(waiting, [], [], PATIENCE)
            assert readable
            for peer in readable:
                assert peer.recv(99) == b"%03d" % peers.index(peer)
                peer.close()
                waiting.remove(peer)
        peers[0].close()
        until(lambda: descriptors(server) <= before)
    assert server.log.count("have to wait") <= 2


def test_what_a_plugin_raises_costs_what_it_was_about_alone(tmp_path: Path) -> None:
    (tmp_path / "clumsy.py").write_text(CLUMSY)
    plugin = tmp_path / "clumsy.py"
    served = ["--serve", f"{plugin}:Clumsiness=127.0.0.1:0", "--serve", f"{plugin}:ClumsyUDP=127.0.0.1:0"]
    server = Server.twistd(*served, "--tcp", "127.0.0.1:0")
    try:
        before = descriptors(server)
        port, udp = server.port("Clumsiness stream"), server.port("ClumsyUDP datagram")
        with connect(server.port("echo tcp")) as steady, datagrams(udp) as asking:
            for number in range(200):
                words = (b"", b"", b"bad", b"end", b"ok")[number % 5]
                assert answer(port, words) == (b"ok" if words == b"ok" else b"")
                asking.send(b"bad")
            steady.sendall(b"there?")
            assert read_exactly(steady, 6) == b"there?"
            asking.send(b"ok")
            assert asking.recv(99) == b"ok"
        until(lambda: descriptors(server) <= before)
    finally:
        status = server.stop()
    assert status == -signal.SIGTERM
    lines = server.log.splitlines()
    faults = [line for line in lines if "Clumsiness stream 127.0.0.1:" in line and "failed" in line]
    named = [line for line in lines if "could not be given a protocol" in line]
    assert faults or named
    # Once a second for each listener, with how many there were.
    assert server.log.count("Traceback") < 30
    assert any("ClumsyUDP datagram 127.0.0.1:" in line and "failed" in line for line in lines)


def answer(port: int, words: bytes) -> bytes:
    """Send `words`, and read the answer; nothing, where the server resets the connection, however early."""
    try:
        # A reset that comes before `connect` looks at the connection is raised there.
        with connect(port) as peer:
            peer.sendall(words)
            return peer.recv(99)
    except (ConnectionResetError, BrokenPipeError):
        return b""


def test_peers_that_reset_in_the_middle_of_everything_leave_nothing_behind(tmp_path: Path) -> None:
    cert, key = Pem("example.org").write(tmp_path)
    (tmp_path / "big").write_bytes(bytes(8_000_000))
    server = Server.twistd(
        *("--tcp", "127.0.0.1:0"),
        *("--tcp", f"tls:0:cert={cert}:key={key}:interface=127.0.0.1"),
        *("--tcp", "proxy:trust=127.0.0.1:127.0.0.1:0"),
        *("--chat", "127.0.0.1:0", "--files", "127.0.0.1:0", "--files-root", str(tmp_path), "--udp", "127.0.0.1:0"),
        *("--limit", "perip=none", "--limit", "periprate=none", "--access", "off"),
    )
    with server:
        plain, tls, proxied = (server.port("echo tcp", place) for place in range(3))
        chat, files = server.port("chat line"), server.port("files classic")
        trusting = ssl.create_default_context()
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE

        def at_once(_dice: random.Random) -> None:
            reset(connect(plain))

        def in_a_handshake(dice: random.Random) -> None:
            raw = connect(tls)
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            client = trusting.wrap_bio(incoming, outgoing)
            with pytest.raises(ssl.SSLWantReadError):
                client.do_handshake()
            hello = outgoing.read()
            raw.sendall(hello[: dice.randrange(len(hello) + 1)])
            reset(raw)

        def under_tls(_dice: random.Random) -> None:
            with connect(tls) as raw, trusting.wrap_socket(raw) as secured:
                secured.sendall(b"x" * 100)
                reset(socket.socket(fileno=secured.detach()))

        def in_a_header(dice: random.Random) -> None:
            raw = connect(proxied)
            header = b"PROXY TCP4 192.0.2.1 192.0.2.2 1000 2000\r\nhello"
            raw.sendall(header[: dice.randrange(len(header) + 1)])
            reset(raw)

        def in_a_download(dice: random.Random) -> None:
            raw = connect(files)
            raw.sendall(b"big\n")
            raw.recv(dice.randrange(1, 100_000))
            reset(raw)

        def in_chat(dice: random.Random) -> None:
            raw = connect(chat)
            raw.sendall(b"hello\n" * dice.randrange(20))
            reset(raw)

        def half_open(_dice: random.Random) -> None:
            raw = connect(plain)
            raw.sendall(b"x" * 1000)
            raw.shutdown(socket.SHUT_WR)
            reset(raw)

        with connect(plain) as steady, connect(chat) as member:
            steady.sendall(b"there?")
            assert read_exactly(steady, 6) + member.recv(1)
            # A file that was asked for; so threads that read files are there.
            in_a_download(random.Random(1))
            server.wait_for('/big|"big"')
            before = descriptors(server)
            kinds = (at_once, in_a_handshake, under_tls, in_a_header, in_a_download, in_chat, half_open)
            order = [kind for kind in kinds for _ in range(500)]
            dice = random.Random(5)
            dice.shuffle(order)
            for number, kind in enumerate(order):
                kind(dice)
                if number % 100 == 0:
                    steady.sendall(b"there?")
                    assert read_exactly(steady, 6) == b"there?"
                    drain(member)
                    server.read_log()
            server.read_log()
            until(lambda: descriptors(server) <= before)
            steady.sendall(b"there?")
            assert read_exactly(steady, 6) == b"there?"
    assert "Traceback" not in server.log
    assert "Unhandled" not in server.log


def test_a_unix_socket_whose_file_is_removed_is_found_again_and_its_connections_stay(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with Server.twistd("--tcp", f"unix:{path}:mode=600") as server, socket.socket(socket.AF_UNIX) as before:
        before.settimeout(PATIENCE)
        before.connect(str(path))
        path.unlink()
        server.wait_for(rf"#warn\] echo tcp: .*{re.escape(str(path))} ")
        assert path.stat().st_mode & 0o777 == 0o600
        with socket.socket(socket.AF_UNIX) as after:
            after.settimeout(PATIENCE)
            after.connect(str(path))
            for peer in (before, after):
                peer.sendall(b"there?")
                assert read_exactly(peer, 6) == b"there?"
    assert not path.exists()


def drain(member: socket.socket) -> None:
    """Read what others have said so far."""
    while select.select([member], [], [], 0)[0]:
        if not member.recv(65536):
            return


def test_ten_thousand_that_never_send_are_ended_and_others_are_served() -> None:
    count = 10_000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count + 200:
        pytest.skip(f"needs ulimit -n {count + 200}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (count + 200, hard))
    limits = ["perip=none", "periprate=none", f"connections={2 * count}", "handshake=8"]
    words = [word for each in limits for word in ("--limit", each)]
    silent: list[socket.socket] = []
    try:
        with Server.twistd("--tcp", "127.0.0.1:0", "--access", "off", *words) as server:
            before, small = descriptors(server), memory(server)
            port = server.port("echo tcp")
            silent += (connect(port) for _ in range(count))
            with connect(port) as other:
                other.sendall(b"there?")
                assert read_exactly(other, 6) == b"there?"
                server.wait_for("limit handshake ended")
                # What is over its limit is ended in order: each sees the end.
                for each in silent:
                    assert each.recv(1) == b""
                    each.close()
                other.sendall(b"there?")
                assert read_exactly(other, 6) == b"there?"
                until(lambda: descriptors(server) <= before + 1)
            assert memory(server) - small < 100_000_000
    finally:
        for each in silent:
            each.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

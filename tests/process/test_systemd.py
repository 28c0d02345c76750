"""A real process that is started as systemd starts it: it serves the sockets that it is given, and says how it is."""

from __future__ import annotations

import shutil
import signal
import socket
from functools import partial
from pathlib import Path

import pytest

from tests.builders.activated import Manager, activated, bound
from tests.builders.facts import unlike
from tests.builders.processes import PATIENCE, TWISTD, Server, connect, datagrams, free_port, read_exactly
from tests.builders.several import children, until

#: Real processes.
pytestmark = pytest.mark.slow


def echoes(stream: socket.socket, data: bytes = b"hello") -> bool:
    stream.sendall(data)
    return read_exactly(stream, len(data)) == data


@pytest.mark.parametrize("workers", ["1", "2"])
def test_it_tells_when_it_is_ready_reloads_and_stops(tmp_path: Path, workers: str) -> None:
    config = tmp_path / "netsvc.toml"
    config.write_text(f'workers = {workers}\ndrain = 0.3\n[services.echo]\ntcp = ["systemd:echo"]\n')
    with Manager(tmp_path) as manager, bound(socket.SOCK_STREAM, "::1") as stream:
        environment = {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "400000"}
        words = ["--config", str(config)]
        with activated([("echo", stream)], *words, environment=environment, cwd=tmp_path) as server:
            manager.hear("READY=1")
            server.wait_for("ready$")
            assert "WATCHDOG=1" in manager.heard
            assert "RELOADING=1" not in manager.heard
            for pid in (server.process.pid, *children(server.process.pid)):
                # What a process was started with stays there to be seen; what its workers get is another thing.
                if pid != server.process.pid:
                    inherited = Path(f"/proc/{pid}/environ").read_bytes()
                    assert not [name for name in (b"NOTIFY_", b"WATCHDOG_", b"LISTEN_") if name in inherited]
            with connect(stream.getsockname()[1], "::1") as client:
                assert echoes(client)
                manager.hear("STATUS=1 connection" if workers == "1" else "STATUS=2 workers")
                for text, line in (("limit = ", "not reloaded"), (config.read_text(), "reloaded: ")):
                    config.write_text(text)
                    server.process.send_signal(signal.SIGHUP)
                    manager.hear("RELOADING=1\nMONOTONIC_USEC=")
                    manager.hear("READY=1")
                    server.wait_for(line)
                manager.hear("WATCHDOG=1")
                server.process.send_signal(signal.SIGTERM)
                assert manager.hear("STOPPING=1") == "STOPPING=1\nEXTEND_TIMEOUT_USEC=10300000"
                # It is alive while it drains.
                manager.hear("WATCHDOG=1")


def test_one_name_stands_for_streams_and_datagrams_and_the_files_of_unix_sockets_stay(tmp_path: Path) -> None:
    with (
        bound(socket.SOCK_STREAM) as stream,
        bound(socket.SOCK_DGRAM) as datagram,
        bound(socket.SOCK_STREAM, f"{tmp_path}/sock") as unix,
        bound(socket.SOCK_DGRAM, f"{tmp_path}/gram") as gram,
    ):
        (tmp_path / "sock").chmod(0o640)
        passed = [("echo", stream), ("echo", datagram), ("local", unix), ("local", gram)]
        words = ["--tcp", "systemd:echo", "--udp", "systemd:echo", "--tcp", "systemd:local", "--udp", "systemd:local"]
        with activated(passed, *words) as server:
            server.wait_for("ready$")
            with connect(stream.getsockname()[1]) as client, datagrams(datagram.getsockname()[1]) as peer:
                assert echoes(client)
                peer.send(b"hello")
                assert peer.recv(100) == b"hello"
            with socket.socket(socket.AF_UNIX) as local:
                local.settimeout(PATIENCE)
                local.connect(f"{tmp_path}/sock")
                assert echoes(local)
        # They belong to systemd, which starts the next one when somebody comes.
        assert (tmp_path / "sock").stat().st_mode & 0o777 == 0o640
        assert (tmp_path / "gram").exists()
        with socket.socket(socket.AF_UNIX) as local:
            local.connect(f"{tmp_path}/sock")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_plain_address_is_that_of_a_socket_that_was_passed(tmp_path: Path, workers: str) -> None:
    with (
        bound(socket.SOCK_STREAM) as stream,
        bound(socket.SOCK_DGRAM) as datagram,
        bound(socket.SOCK_STREAM, f"{tmp_path}/sock") as unix,
        bound(socket.SOCK_DGRAM, f"{tmp_path}/gram") as gram,
    ):
        inode = (tmp_path / "sock").stat().st_ino
        tcp, udp = (f"127.0.0.1:{each.getsockname()[1]}" for each in (stream, datagram))
        words = ["--tcp", tcp, "--udp", udp, "--tcp", f"unix:{tmp_path}/sock", "--udp", f"unixgram:{tmp_path}/gram"]
        passed = [("any", stream), ("any", datagram), ("any", unix), ("any", gram)]
        with activated(passed, *words, "--workers", workers) as server:
            server.wait_for("ready$")
            with connect(stream.getsockname()[1]) as client, datagrams(datagram.getsockname()[1]) as peer:
                assert echoes(client)
                peer.send(b"hello")
                assert peer.recv(100) == b"hello"
            with socket.socket(socket.AF_UNIX) as local:
                local.settimeout(PATIENCE)
                local.connect(f"{tmp_path}/sock")
                assert echoes(local)
        assert (tmp_path / "sock").stat().st_ino == inode
        assert (tmp_path / "gram").exists()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_socket_that_no_address_uses_is_named(workers: str) -> None:
    with bound(socket.SOCK_STREAM) as stream, bound(socket.SOCK_STREAM) as spare:
        words = ["--tcp", "systemd:echo", "--admin", "127.0.0.1:0", "--workers", workers]
        with activated([("echo", stream), ("spare", spare)], *words) as server:
            server.wait_for("ready$")
            [line] = [line for line in server.lines if "systemd has passed" in line]
            assert "systemd:spare" in line


def test_a_plain_address_that_only_overlaps_with_one_that_was_passed_is_in_use() -> None:
    with bound(socket.SOCK_STREAM, "0.0.0.0") as stream:
        port = stream.getsockname()[1]
        server = activated([("echo", stream)], "--tcp", f"127.0.0.1:{port}")
        assert server.wait() == 1
        assert f"in use at 0.0.0.0:{port}" in server.stderr
        assert "systemd:echo" in server.stderr
        # Nor is one taken that another address has named.
        server = activated([("echo", stream)], "--tcp", "systemd:echo", "--tcp", f"0.0.0.0:{port}")
        assert server.wait() == 1
        assert "systemd:echo" in server.stderr


def test_a_limit_and_a_proxy_stand_before_a_socket_of_systemd_as_before_any_other() -> None:
    with bound(socket.SOCK_STREAM) as stream:
        address = "guard:connections=1:proxy:trust=127.0.0.0/8:systemd:echo"
        with activated([("echo", stream)], "--tcp", address) as server:
            server.wait_for("ready$")
            with connect(stream.getsockname()[1]) as client:
                client.sendall(b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n")
                assert echoes(client)


def test_what_was_passed_wrongly_is_said_in_a_line_each() -> None:
    with bound(socket.SOCK_STREAM) as stream, bound(socket.SOCK_DGRAM) as datagram:
        words = ["--tcp", "systemd:udp", "--udp", "systemd:tcp", "--tcp", "systemd:none"]
        server = activated([("tcp", stream), ("udp", datagram)], *words)
        assert server.wait() == 1
    assert not unlike(
        server.stderr.splitlines(),
        ("netsvc: echo tcp ", " systemd:udp: ", "socket udp ", "streams; ", "ListenStream=", "Accept=no"),
        ("netsvc: echo udp ", " systemd:tcp: ", "socket tcp ", "datagrams; ", "ListenDatagram="),
        ("netsvc: echo tcp ", " systemd:none: ", " no socket none; ", ".socket"),
    )


def test_a_listener_that_a_reload_took_away_comes_back_with_the_next(tmp_path: Path) -> None:
    config = tmp_path / "netsvc.toml"
    with_it = '[services.echo]\ntcp = ["systemd:echo", "127.0.0.1:0"]\n'
    config.write_text(with_it)
    with bound(socket.SOCK_STREAM) as stream:
        with activated([("echo", stream)], "--config", str(config), cwd=tmp_path) as server:
            server.wait_for("ready$")
            for text in (with_it.replace('"systemd:echo", ', ""), with_it):
                config.write_text(text)
                server.process.send_signal(signal.SIGHUP)
                server.wait_for("reloaded: ")
            with connect(stream.getsockname()[1]) as client:
                assert echoes(client)


def test_the_program_of_systemd_that_passes_sockets_is_understood() -> None:
    if not (program := shutil.which("systemd-socket-activate")):
        pytest.skip("needs systemd-socket-activate")
    port = free_port()
    command = [program, f"--listen=127.0.0.1:{port}", "--fdname=echo", TWISTD, "-n", "--pidfile=", "netsvc"]
    with Server([*command, "--tcp", "systemd:echo"]):
        until(partial(_listens, port))
        # It starts the program when somebody comes.
        with connect(port) as client:
            assert echoes(client)


def _listens(port: int) -> bool:
    # To try a connection would be to start the program.
    rows = Path("/proc/net/tcp").read_text("ascii").splitlines()[1:]
    return any(row.split()[1].endswith(f":{port:04X}") and row.split()[3] == "0A" for row in rows)

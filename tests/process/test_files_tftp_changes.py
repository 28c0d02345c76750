"""Transfers over TFTP while the server is reloaded, upgraded and stopped, and from several workers."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from netsvc.cli.tftp import Reception
from tests.builders.files import pattern
from tests.builders.processes import PATIENCE, TWISTD, Server, free_port, run

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")]

NETSVC = str(Path(TWISTD).parent / "netsvc")
CONTENT = pattern(400_000)


class Download:
    """A client that takes as many blocks as it is told to."""

    def __init__(self, port: int) -> None:
        self.data = bytearray()
        self._reception = Reception(b"f", lambda size: None, self.data.extend)
        self._socket = socket.socket(type=socket.SOCK_DGRAM)
        self._socket.settimeout(PATIENCE)
        self._socket.sendto(self._reception.last_packet, ("127.0.0.1", port))
        packet, self.server = self._socket.recvfrom(65536)
        self._socket.connect(self.server)
        self._feed(packet)

    def _feed(self, packet: bytes) -> None:
        answer = self._reception.received(packet)
        if answer is not None:
            self._socket.send(answer)

    def take(self, blocks: int = sys.maxsize) -> Download:
        """Go on until so many blocks have come, or all."""
        while self._reception.blocks < blocks and not self._reception.is_complete:
            self._feed(self._socket.recv(65536))
        return self

    def error(self) -> bytes:
        """Acknowledge nothing more; return the ERROR packet."""
        while (packet := self._socket.recv(65536))[1] != 5:
            pass
        return packet

    def close(self) -> None:
        self._socket.close()


def whole(download: Download) -> bool:
    download.take()
    download.close()
    return bytes(download.data) == CONTENT


class Configured:
    """A server with a configuration file."""

    def __init__(self, directory: Path) -> None:
        (directory / "root").mkdir()
        (directory / "root" / "f").write_bytes(CONTENT)
        self.port = free_port()
        self.file = directory / "netsvc.toml"
        self._root = directory / "root"
        self.write()
        self.server = Server([TWISTD, "-n", "--pidfile=", "netsvc", "--config", str(self.file)])
        self.server.wait_for("ready$")

    def write(self, *lines: str, tftp: bool = True) -> None:
        listener = f'tftp = "127.0.0.1:{self.port}"' if tftp else 'http = "127.0.0.1:0"'
        lines = (f"drain = {int(PATIENCE)}", "[services.files]", listener, f'root = "{self._root}"', *lines)
        self.file.write_text("\n".join(lines) + "\n")

    def command(self, name: str) -> str:
        done = run(NETSVC, name, "--pid", str(self.server.process.pid))
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def configured(tmp_path: Path) -> Iterator[Configured]:
    one = Configured(tmp_path)
    with one.server:
        yield one


def test_a_transfer_ends_whole_when_a_reload_changes_options_and_ports(configured: Configured) -> None:
    before = Download(configured.port).take(20)
    number = free_port()
    configured.write(f'tftp-ports = "{number}-{number}"', "hidden = true", "tftp-peer = 50")
    configured.command("reload")
    after = Download(configured.port).take(20)
    assert after.server == ("127.0.0.1", number)
    assert whole(before) and whole(after)


def test_a_transfer_ends_whole_when_a_reload_removes_its_listener(configured: Configured) -> None:
    download = Download(configured.port).take(20)
    configured.write(tftp=False)
    configured.command("reload")
    with socket.socket(type=socket.SOCK_DGRAM) as late:
        late.connect(("127.0.0.1", configured.port))
        late.settimeout(PATIENCE)
        late.send(b"\0\1f\0octet\0")
        # Nobody listens there.
        with pytest.raises(ConnectionRefusedError):
            late.recv(100)
    assert whole(download)


@pytest.mark.parametrize("workers", [(), ("--workers", "2")], ids=["one process", "two workers"])
def test_a_transfer_ends_whole_in_the_old_process_after_an_upgrade(tmp_path: Path, workers: tuple[str, ...]) -> None:
    (tmp_path / "f").write_bytes(CONTENT)
    port = free_port()
    words = ("--files-tftp", f"127.0.0.1:{port}", "--files-root", str(tmp_path), "--drain", str(int(PATIENCE)))
    pids: set[int] = set()
    try:
        with Server([TWISTD, "-n", "--pidfile=", "netsvc", *workers, *words]) as server:
            server.wait_for("ready$")
            old = [Download(port).take(20) for _ in range(4)]
            done = run(NETSVC, "upgrade", "--pid", str(server.process.pid))
            assert done.returncode == 0, done.stdout + done.stderr
            new = [Download(port).take(20) for _ in range(4)]
            assert all(map(whole, old + new))
            pids = _session(server.process.pid)
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _session(leader: int) -> set[int]:
    found = set()
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and os.getsid(int(entry.name)) == leader:
                found.add(int(entry.name))
    return found


def test_a_drain_waits_for_a_transfer(configured: Configured) -> None:
    download = Download(configured.port).take(20)
    configured.server.process.send_signal(signal.SIGTERM)
    configured.server.wait_for("drain")
    assert whole(download)
    began = time.monotonic()
    configured.server.wait()
    assert time.monotonic() - began < PATIENCE


def test_at_the_deadline_of_a_drain_the_client_is_told(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(CONTENT)
    words = ("--files-tftp", "127.0.0.1:0", "--files-root", str(tmp_path), "--drain", "0.2")
    with Server([TWISTD, "-n", "--pidfile=", "netsvc", *words]) as server:
        server.wait_for("ready$")
        download = Download(server.port("files tftp")).take(20)
        server.process.send_signal(signal.SIGTERM)
        assert b"server stops" in download.error()
        download.close()
        server.wait()


def test_workers_share_the_transfers(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(CONTENT)
    words = ("--workers", "2", "--files-tftp", f"127.0.0.1:{free_port()}", "--files-root", str(tmp_path))
    with Server([TWISTD, "-n", "--pidfile=", "netsvc", *words]) as server:
        server.wait_for("ready$")
        downloads = [Download(server.port("files tftp")).take(1 + number) for number in range(8)]
        assert all(map(whole, downloads))
        server.stop()

"""Clients that request a file and read nothing: none of their data is left to the kernel when the server closes."""

from __future__ import annotations

import re
import socket
from contextlib import suppress
from pathlib import Path

import pytest

from tests.builders.processes import PATIENCE, Server

pytestmark = pytest.mark.slow

#: How many connections of one address are served, and how many bytes each requests.
PLACES, SIZE = 5, 200_000


def request(port: int) -> socket.socket:
    """Request the file with a receive buffer that is as small as possible."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)
    client.settimeout(PATIENCE)
    # One that is refused may be reset before `connect` looks at it.
    with suppress(ConnectionError):
        client.connect(("127.0.0.1", port))
        client.send(b"mid.bin\n")
    return client


def is_served(client: socket.socket) -> bool:
    try:
        return bool(client.recv(1, socket.MSG_PEEK))
    except OSError:
        return False


def descriptors(server: Server) -> int:
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the descriptors of a process are read from /proc")
def test_they_keep_their_places_until_they_are_reset(tmp_path: Path) -> None:
    (tmp_path / "mid.bin").write_bytes(bytes(SIZE))
    limits = ("--limit", f"perip={PLACES}", "--limit", "idle=12")
    server = Server.twistd("--files", "127.0.0.1:0", "--files-root", str(tmp_path), *limits)
    clients = []
    try:
        port = int(re.findall(r"listens on 127.0.0.1:(\d+)", server.log)[0])
        before = descriptors(server)
        clients = [request(port) for _ in range(PLACES)]
        assert all(map(is_served, clients))
        # The service gives its last byte to the kernel at once, and closes two seconds later.
        for _ in range(PLACES):
            server.wait_for(f"{SIZE} bytes in .*: sent$")
        clients.append(request(port))
        assert not is_served(clients[-1])
        for _ in range(PLACES):
            delivered = server.wait_for(r"files classic .* bytes_out=(\d+) .* reason=(stalled|limit)")[1]
            assert int(delivered) < 5000
        for client in clients[:PLACES]:
            with pytest.raises(ConnectionResetError):
                client.send(b"?")
        clients.append(request(port))
        assert is_served(clients[-1])
        assert descriptors(server) <= before + 2
    finally:
        for client in clients:
            client.close()
        server.stop()

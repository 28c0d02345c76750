"""Clients over real sockets that stall, babble, reset and vanish, and a file that is cut under one."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet.threads import deferToThread

from tests.builders.files import open_below, pattern
from tests.builders.files_server import MIB, PATIENCE, connect, fetch, make_root, receive, serving


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_root(tmp_path)


@pytest_twisted.ensureDeferred
async def test_a_file_that_shrinks_is_a_reset_to_the_client(root: Path) -> None:
    size = 64 * MIB
    os.truncate(root / "mib", size)

    def read_and_truncate(port: int) -> int:
        received = 0
        with connect(port) as stream:
            stream.sendall(b"mib\n")
            received += len(stream.recv(1000))
            os.truncate(root / "mib", 2000)
            try:
                while data := stream.recv(MIB):
                    received += len(data)
            except ConnectionResetError:
                return received
        raise AssertionError("the part was taken for the whole")

    async with serving(root) as server:
        assert await server.client(read_and_truncate) < size
        ((_, sent, result),) = server.results
        assert sent < size
        assert result == "file shrank"


@pytest_twisted.ensureDeferred
async def test_a_client_that_goes_on_sending_still_gets_the_whole_file(root: Path) -> None:
    # RFC 1122, section 4.2.2.13: to close with bytes unread would reset the connection, and cut the file.
    def babble(port: int) -> bytes:
        with connect(port) as stream:
            stream.sendall(b"mib\n" + b"x" * MIB)
            first = stream.recv(1000)
            stream.sendall(b"x" * MIB)
            return first + receive(stream)

    def babble_on(port: int) -> bytes:
        with connect(port) as stream:
            stream.sendall(b"f\n")
            found = receive(stream)
            # Sent to a socket that was closed, the second of these would fail.
            stream.sendall(b"x" * MIB)
            stream.sendall(b"x" * MIB)
            return found

    async with serving(root) as server:
        assert await server.client(babble) == pattern(MIB)
        assert await server.client(babble_on) == b"content"


@pytest_twisted.ensureDeferred
async def test_a_client_that_stalls_holds_up_nobody(root: Path) -> None:
    os.truncate(root / "mib", 64 * MIB)

    def stall(port: int) -> bytes:
        with connect(port) as slow:
            slow.sendall(b"mib\n")
            slow.recv(1)
            found = fetch(port, b"f\n")
            assert sum(len(data) for data in iter(lambda: slow.recv(MIB), b"")) == 64 * MIB - 1
            return found

    async with serving(root) as server:
        assert await server.client(stall) == b"content"
        assert sorted(server.results) == [("f", 7, "sent"), ("mib", 64 * MIB, "sent")]


@pytest.mark.parametrize("reset", [True, False])
@pytest_twisted.ensureDeferred
async def test_a_client_that_vanishes_in_the_middle_leaves_nothing_open(root: Path, reset: bool) -> None:
    os.truncate(root / "mib", 64 * MIB)

    def vanish(port: int) -> None:
        with connect(port) as stream:
            stream.sendall(b"mib\n")
            stream.recv(1000)
            if reset:
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async with serving(root) as server:
        await server.client(vanish)
        ((name, sent, result),) = server.results
        assert (name, result) == ("mib", "client went away")
        assert sent < 64 * MIB
        assert server.core.downloads == 0
        assert open_below(root) == [str(root)]


@pytest_twisted.ensureDeferred
async def test_a_drain_lasts_as_long_as_the_downloads(root: Path) -> None:
    os.truncate(root / "mib", 64 * MIB)
    async with serving(root) as server:
        with connect(server.port) as waiting, connect(server.port) as slow:
            slow.sendall(b"mib\n")
            await deferToThread(slow.recv, 1)
            done = server.core.drain()
            assert done is not None
            with pytest.raises(ConnectionResetError):
                await deferToThread(receive, waiting)
            assert not done.called
            assert len(await deferToThread(receive, slow)) == 64 * MIB - 1
            await done.addTimeout(PATIENCE, server.reactor)

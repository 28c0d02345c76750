"""The kernel sends files over plain connections: every size, every client, every end."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.interfaces import IPullProducer, IPushProducer
from twisted.internet.threads import deferToThread
from zope.interface.verify import verifyClass

from netsvc.services.files import file as files_file
from netsvc.services.files.core import FilesCore
from netsvc.services.files.download import LEAST, MOST, SMALL, STOCK, Download, Shares, send_share
from netsvc.services.files.file import AHEAD, OpenFile
from tests.builders.files import Served, open_cold, pattern
from tests.builders.files_server import MIB, PATIENCE, Custom, Server, connect, make_root, receive, serving

SIZES = [0, 1, SMALL - 1, SMALL, SMALL + 1, LEAST, STOCK - 1, STOCK, STOCK + 1, MOST, MOST + 1, 5 * MIB + 7]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_root(tmp_path)


class Unread(OpenFile):
    """A file that may be sent, but not read."""

    def read(self, limit: int) -> bytes:
        raise AssertionError("the kernel was to send this")


def unread(core: FilesCore) -> Callable[[bytes], OpenFile]:
    opened = core.open

    def open_unread(name: bytes) -> OpenFile:
        file = opened(name)
        other = Unread(os.dup(file.descriptor), file.size, core._file_moved, core._file_closed)
        core._file_moved(other)
        file.close()
        return other

    return open_unread


def receive_name(open_stream: Callable[[], socket.socket], name: bytes) -> bytes:
    with open_stream() as stream:
        stream.sendall(name + b"\n")
        return receive(stream)


def connect_unix(path: str) -> socket.socket:
    stream = socket.socket(socket.AF_UNIX)
    stream.settimeout(PATIENCE)
    stream.connect(path)
    return stream


@pytest.mark.parametrize("family", ["tcp", "unix"])
@pytest_twisted.ensureDeferred
async def test_files_of_every_size_come_whole_and_are_never_read(root: Path, family: str) -> None:
    path = str(root.parent / "socket")
    endpoint = "tcp:0:interface=127.0.0.1" if family == "tcp" else f"unix:{path}"
    async with serving(root, endpoint) as server:
        server.core.open = unread(server.core)  # type: ignore
        opened = partial(connect, server.port) if family == "tcp" else partial(connect_unix, path)
        for size in SIZES:
            (root / "sized").write_bytes(pattern(size))
            if size <= SMALL:
                # So that it is read in the way of small files, which is not this one.
                (root / "sized").read_bytes()
            found = await deferToThread(receive_name, opened, b"sized")
            await server.idle()
            assert hashlib.sha256(found).digest() == hashlib.sha256(pattern(size)).digest()
        assert server.results == [("sized", size, "sent") for size in SIZES]


@pytest_twisted.ensureDeferred
async def test_a_file_that_grows_is_sent_at_its_old_size(root: Path) -> None:
    size = 16 * MIB
    (root / "big").write_bytes(pattern(size))

    def read_and_append(port: int) -> bytes:
        with connect(port) as stream:
            stream.sendall(b"big\n")
            first = stream.recv(1000)
            with (root / "big").open("ab") as more:
                more.write(b"more")
            return first + receive(stream)

    async with serving(root) as server:
        assert await server.client(read_and_append) == pattern(size)


@pytest_twisted.ensureDeferred
async def test_fifty_stalled_clients_cost_a_descriptor_each_and_no_thread(root: Path) -> None:
    count = 50
    os.truncate(root / "mib", 64 * MIB)
    async with serving(root) as server:
        await server.client(partial(receive_some, b"mib\n"))
        threads, descriptors = threading.active_count(), len(os.listdir("/dev/fd"))
        with contextlib.ExitStack() as stack:
            for _ in range(count):
                stream = stack.enter_context(connect(server.port))
                stream.sendall(b"mib\n")
                await deferToThread(stream.recv, 1)
            assert server.core.downloads == count
            # Of each connection the client's socket, the server's, and the file.
            assert len(os.listdir("/dev/fd")) == descriptors + 3 * count
            assert threading.active_count() == threads
            assert await deferToThread(receive_name, partial(connect, server.port), b"f") == b"content"
        await server.idle()
        assert server.core.shares.eager == 0
        assert [result for _, _, result in server.results[2:]] == ["client went away"] * count


def receive_some(data: bytes, port: int) -> bytes:
    with connect(port) as stream:
        stream.sendall(data)
        return stream.recv(1)


@pytest_twisted.ensureDeferred
async def test_a_client_that_reads_little_at_a_time_gets_it_all(root: Path) -> None:
    (root / "big").write_bytes(pattern(3 * MIB))

    def sip(port: int) -> bytes:
        with socket.socket() as stream:
            stream.settimeout(PATIENCE)
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stream.connect(("127.0.0.1", port))
            stream.sendall(b"big\n")
            return b"".join(iter(lambda: stream.recv(997), b""))

    async with serving(root) as server:
        assert await server.client(sip) == pattern(3 * MIB)


@pytest_twisted.ensureDeferred
async def test_a_half_close_in_the_middle_does_not_end_it(root: Path) -> None:
    (root / "big").write_bytes(pattern(16 * MIB))

    def half_close(port: int) -> bytes:
        with connect(port) as stream:
            stream.sendall(b"big\n")
            first = stream.recv(1000)
            stream.shutdown(socket.SHUT_WR)
            return first + receive(stream)

    async with serving(root) as server:
        assert await server.client(half_close) == pattern(16 * MIB)


@contextlib.asynccontextmanager
async def sending(
    root: Path, name: bytes, before: Callable[[Any], None], endpoint: str = "tcp:0:interface=127.0.0.1"
) -> AsyncIterator[Server]:
    async with serving(root, endpoint) as server:
        server.factory.buildProtocol = lambda address: Custom(server.core, name, before)  # type: ignore
        yield server


def read_to_end(port: int) -> bytes:
    with connect(port) as stream:
        return receive(stream)


@pytest.mark.parametrize("header", [b"header", b"h" * 3 * MIB])
@pytest_twisted.ensureDeferred
async def test_what_was_written_before_the_file_comes_before_it(root: Path, header: bytes) -> None:
    (root / "big").write_bytes(pattern(5 * MIB))
    async with sending(root, b"big", lambda transport: transport.write(header)) as server:
        assert await deferToThread(read_to_end, server.port) == header + pattern(5 * MIB)


@pytest_twisted.ensureDeferred
async def test_what_the_kernel_cannot_send_is_read_and_written(root: Path) -> None:
    # sendfile(2) refuses a socket with O_APPEND (EINVAL), as it does files of some filesystems.
    def refuse(transport: Any) -> None:
        fcntl.fcntl(transport.fileno(), fcntl.F_SETFL, os.O_APPEND | os.O_NONBLOCK)

    (root / "big").write_bytes(pattern(5 * MIB))
    async with sending(root, b"big", refuse) as server:
        assert await deferToThread(read_to_end, server.port) == pattern(5 * MIB)


@pytest_twisted.ensureDeferred
async def test_a_descriptor_that_waits_to_be_sent_over_a_unix_socket_still_gets_there(root: Path) -> None:
    path = str(root.parent / "socket")

    passed = os.open(root / "f", os.O_RDONLY)

    def take() -> tuple[bytes, bytes]:
        with connect_unix(path) as stream:
            data, descriptors, _, _ = socket.recv_fds(stream, 1, 1)
            with os.fdopen(descriptors[0], "rb") as file:
                return data + receive(stream), file.read()

    (root / "big").write_bytes(pattern(MIB))
    async with sending(root, b"big", lambda transport: transport.sendFileDescriptor(passed), f"unix:{path}"):
        assert await deferToThread(take) == (pattern(MIB), b"content")
        os.close(passed)


class Pair:
    """A socket with a client at its far end, and what its transport was asked for."""

    def __init__(self) -> None:
        self.socket, self.client = socket.socketpair()
        self.socket.setblocking(False)
        self.fileno = self.socket.fileno
        self.asked: list[str] = []

    def startWriting(self) -> None:
        self.asked.append("start")

    def wait_to_write(self) -> None:
        self.asked.append("wait")


def test_the_transport_goes_on_at_once_after_a_whole_share_and_waits_when_the_kernel_took_less(root: Path) -> None:
    pair = Pair()
    file = OpenFile(os.open(root / "mib", os.O_RDONLY), MIB, lambda file: None, lambda file: None)
    with pair.socket, pair.client:
        assert send_share(file, pair, 1000)
        assert (file.offset, pair.asked) == (1000, ["start"])
        assert not send_share(file, pair, MIB)
        assert 1000 < file.offset < MIB
        kept = file.offset
        assert not send_share(file, pair, MIB)
        assert (file.offset, pair.asked) == (kept, ["start", "wait", "wait"])
        pair.client.close()
        assert not send_share(file, pair, MIB)
        assert (file.offset, pair.asked[3:]) == (kept, ["wait"])
        file.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            send_share(file, pair, MIB)


def test_a_share_is_small_when_others_wait_and_what_it_was_on_other_reactors() -> None:
    reactor = SimpleNamespace(ready=0)
    shares = Shares(reactor)
    assert shares.next() == MOST
    reactor.ready = 1
    assert shares.next() == MOST
    shares.eager = 3
    assert shares.next() == MOST // 4
    reactor.ready = 1000
    assert shares.next() == LEAST
    assert Shares(object()).next() == STOCK


def test_a_download_is_a_pull_producer_and_can_be_a_push_producer() -> None:
    assert verifyClass(IPullProducer, Download)
    assert verifyClass(IPushProducer, Download, tentative=True)


@pytest.mark.parametrize("name", [b"cold", b"small"])
@pytest_twisted.ensureDeferred
async def test_a_file_that_is_not_in_memory_is_read_by_a_thread_and_sent(root: Path, name: bytes) -> None:
    size = 2 * AHEAD + 5 if name == b"cold" else SMALL
    (root / os.fsdecode(name)).write_bytes(pattern(size))
    async with serving(root) as server:
        server.core.open = partial(open_cold, server.core)  # type: ignore[method-assign]
        fetched = 0
        fetch = server.core.ahead.fetch

        def count(*arguments: Any) -> bool:
            nonlocal fetched
            fetched += 1
            return fetch(*arguments)

        server.core.ahead.fetch = count  # type: ignore
        assert await server.client(receive_name_at, name) == pattern(size)
        assert fetched == -(-size // AHEAD)


def receive_name_at(port: int, name: bytes) -> bytes:
    return receive_name(partial(connect, port), name)


def test_what_was_not_read_yet_is_not_in_memory_and_what_was_is(tmp_path: Path) -> None:
    path = tmp_path / "evicted"
    with path.open("wb") as written:
        written.write(bytes(4 * MIB))
        written.flush()
        os.fsync(written.fileno())
        os.posix_fadvise(written.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    file = OpenFile(os.open(path, os.O_RDONLY), 4 * MIB, lambda file: None, lambda file: None)
    try:
        if file.cached(4 * MIB):
            pytest.skip("this filesystem does not tell")
        path.read_bytes()
        assert file.cached(4 * MIB)
        assert file.read_cached(bytearray(4 * MIB)) == bytes(4 * MIB)
        assert (file.left, file.read_cached(bytearray())) == (0, b"")
    finally:
        file.close()


def test_without_a_way_to_ask_everything_counts_as_in_memory(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_file, "_NOWAIT", None)
    file = OpenFile(os.open(root / "f", os.O_RDONLY), 7, lambda file: None, lambda file: None)
    assert file.cached(7)
    assert file.read_cached(bytearray(7)) is None
    file.close()
    served = Served(root)
    assert served.ask(b"f\n").value() == b"content"
    for transport in list(served.clock.connections):
        transport.lose()
    served.bench.stop()


def test_a_file_that_cannot_be_asked_or_shrank_is_left_to_reading(root: Path) -> None:
    file = OpenFile(os.open(root, os.O_RDONLY), 7, lambda file: None, lambda file: None)
    assert file.cached(7)
    assert file.read_cached(bytearray(7)) is None
    file.close()
    file = OpenFile(os.open(root / "f", os.O_RDONLY), 8, lambda file: None, lambda file: None)
    assert file.read_cached(bytearray(8)) is None
    file.close()

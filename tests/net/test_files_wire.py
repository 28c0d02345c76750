"""The files service over real sockets: plain ones, TLS, and behind a proxy."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import ssl
from contextlib import suppress
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from OpenSSL import SSL
from twisted.internet.task import Clock

from netsvc.guard import Guard
from tests.builders.certificates import write_certificate
from tests.builders.files import pattern
from tests.builders.files_server import MIB, PROXIED, connect, fetch, make_root, receive, serving


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_root(tmp_path)


@pytest_twisted.ensureDeferred
async def test_a_name_that_ends_in_any_way_gets_its_file(root: Path) -> None:
    async with serving(root) as server:
        for name in ("文件.txt".encode(), "文件.txt".encode("gbk")):
            for ways in ((name + b"\n",), (name + b"\r\n",), (name,), (name[:3], name[3:])):
                assert await server.client(fetch, *ways) == "内容".encode()
        assert await server.client(lambda port: fetch(port, b"mib", half_close=True)) == pattern(MIB)
        assert [result for _, _, result in server.results] == ["sent"] * 9


@pytest_twisted.ensureDeferred
async def test_what_is_not_a_file_below_the_root_closes_with_no_bytes(root: Path) -> None:
    os.mkfifo(root / "fifo")
    (root / "device").symlink_to("/dev/zero")
    (root / "d").mkdir()
    async with serving(root) as server:
        for name in (b"missing", b"fifo", b"device", b"d", b"../f", b"/etc/passwd", b"", b"x" * 5000, b"\xff\0"):
            assert await server.client(fetch, name + b"\n") == b""
        assert await server.client(lambda port: fetch(port, half_close=True)) == b""
        assert len(server.events) == 9


def fetch_and_hash(port: int, name: bytes) -> tuple[int, str]:
    size, digest = 0, hashlib.sha256()
    with connect(port) as stream:
        stream.sendall(name + b"\n")
        while data := stream.recv(MIB):
            size += len(data)
            digest.update(data)
    return size, digest.hexdigest()


@pytest.mark.parametrize(("endpoint", "before", "limit"), [("", b"", 0), ("proxied:", PROXIED, 256 * 1024)])
@pytest_twisted.ensureDeferred
async def test_a_big_file_is_sent_whole_in_constant_memory(
    root: Path, endpoint: str, before: bytes, limit: int
) -> None:
    size = 64 * MIB
    marks = {0: b"first", 17 * MIB + 3: b"middle", size - 4: b"last"}
    with (root / "big").open("wb") as big:
        big.truncate(size)
        for place, mark in marks.items():
            os.pwrite(big.fileno(), mark, place)
    digest = hashlib.sha256((root / "big").read_bytes()).hexdigest()

    most, blocks = 0, 0
    async with serving(root, f"{endpoint}tcp:0:interface=127.0.0.1") as server:
        opened = server.core.open

        def observed(name: bytes) -> Any:
            file = opened(name)

            class Observed:
                """Looks at what the transport still holds whenever the next bytes are taken from the file."""

                def __getattr__(self, attribute: str) -> Any:
                    return getattr(file, attribute)

                def read(self, limit: int) -> bytes:
                    nonlocal blocks
                    blocks += 1
                    data = file.read(limit)
                    self.look(len(data))
                    return data

                def move(self, count: int) -> None:
                    file.move(count)
                    self.look(0)

                def look(self, more: int) -> None:
                    nonlocal most
                    (protocol,) = server.live
                    transport = protocol.transport
                    most = max(most, more + len(transport.dataBuffer) + transport._tempDataLen)

            return Observed()

        server.core.open = observed  # type: ignore[method-assign]
        assert await server.client(fetch_and_hash, before + b"big") == (size, digest)
        assert server.results == [("big", size, "sent")]
    assert most <= limit
    # The kernel sends what goes over a plain connection: we never see it.
    assert bool(blocks) is bool(limit)


@pytest_twisted.ensureDeferred
async def test_many_clients_at_once_each_get_their_file(root: Path) -> None:
    count, size = 100, 300_000
    os.truncate(root / "mib", size)

    def fetch_many(port: int) -> set[bytes]:
        with contextlib.ExitStack() as stack:
            streams = [stack.enter_context(connect(port)) for _ in range(count)]
            for stream in streams:
                stream.sendall(b"mib\n")
            return {hashlib.sha256(receive(stream)).digest() for stream in streams}

    async with serving(root) as server:
        assert await server.client(fetch_many) == {hashlib.sha256(pattern(MIB)[:size]).digest()}
        assert server.results == [("mib", size, "sent")] * count


# Twisted's own way of loading a certificate.
@pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")
@pytest_twisted.ensureDeferred
async def test_files_come_whole_over_tls(root: Path, tmp_path: Path) -> None:
    key, certificate = write_certificate(tmp_path, "localhost")

    def fetch_encrypted(port: int, name: bytes) -> bytes:
        context = ssl.create_default_context(cafile=str(certificate))
        with connect(port) as raw, context.wrap_socket(raw, server_hostname="localhost") as stream:
            stream.sendall(name + b"\nmore")
            return receive(stream)

    endpoint = f"ssl:0:interface=127.0.0.1:privateKey={key}:certKey={certificate}"
    async with serving(root, endpoint) as server:
        assert await server.client(fetch_encrypted, b"f") == b"content"
        assert await server.client(fetch_encrypted, b"mib") == pattern(MIB)
        assert await server.client(fetch_encrypted, b"missing") == b""
        assert server.results == [("f", 7, "sent"), ("mib", MIB, "sent"), ("missing", 0, "no such file")]


@pytest_twisted.ensureDeferred
async def test_a_proxied_client_gets_its_file_and_is_logged_by_its_own_address(root: Path) -> None:
    header = b"PROXY TCP4 192.0.2.7 192.0.2.1 4000 80\r\n"
    async with serving(root, "proxied:tcp:0:interface=127.0.0.1") as server:
        assert await server.client(fetch, header + b"mib\n") == pattern(MIB)
        assert [event["peer"] for event in server.events] == ["192.0.2.7:4000"]


@pytest_twisted.ensureDeferred
async def test_a_proxied_client_that_half_closes_still_gets_its_file(root: Path) -> None:
    header = b"PROXY TCP4 192.0.2.7 192.0.2.1 4000 80\r\n"
    (root / "big").write_bytes(pattern(16 * MIB))
    async with serving(root, "proxied:tcp:0:interface=127.0.0.1") as server:
        guard = Guard(Clock())
        server.factory.buildProtocol = guard.wrap(copy(server.factory), "files").buildProtocol  # type: ignore[method-assign]
        assert await server.client(partial(fetch, half_close=True), header + b"big\n") == pattern(16 * MIB)
        assert server.results == [("big", 16 * MIB, "sent")]
        # The reactor of the tests does not report acknowledgements.
        guard.clock.advance(1)
        assert not guard.live


@pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")
@pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION])
@pytest_twisted.ensureDeferred
async def test_a_tls_client_that_half_closes_gets_the_whole_file(version: int, root: Path, tmp_path: Path) -> None:
    key, certificate = write_certificate(tmp_path, "localhost")
    content = pattern(16 * MIB)
    (root / "big").write_bytes(content)

    def ask(port: int) -> bytes:
        received = bytearray()
        with connect(port) as raw:
            raw.settimeout(None)
            context = SSL.Context(SSL.TLS_CLIENT_METHOD)
            context.set_max_proto_version(version)
            client = SSL.Connection(context, raw)
            client.set_connect_state()
            # Without a line end, as from a client that half-closes TCP.
            client.sendall(b"big")
            client.shutdown()
            raw.shutdown(socket.SHUT_WR)
            # An orderly end; a reset would be another error.
            with suppress(SSL.ZeroReturnError):
                while True:
                    received += client.recv(MIB)
        return bytes(received)

    async with serving(root, f"ssl:0:interface=127.0.0.1:privateKey={key}:certKey={certificate}") as server:
        assert await server.client(ask) == content
        assert [result for _, _, result in server.results] == ["sent"]

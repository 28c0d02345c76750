"""`@NAME` is a UNIX socket in the abstract namespace, for streams and datagrams, for servers and clients."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.protocol import DatagramProtocol, Factory, Protocol

from netsvc.cli.connection import connect
from netsvc.guard import Guard
from netsvc.listen.opening import listen
from netsvc.listen.port import OpenPort
from netsvc.listen.sockets import is_bound_to
from netsvc.plan.address import bound_path, parse_address, parse_server, resolve_address, written_path
from tests.builders.processes import PATIENCE

NAME = f"netsvc-test-{os.getpid()}"


class Echo(DatagramProtocol):
    transport: Any

    def datagramReceived(self, data: bytes, peer: Any) -> None:
        self.transport.write(data, peer)


def opening(address: str, kind: Any) -> Any:
    from twisted.internet import reactor

    served: Any = Echo() if kind == "datagram" else Factory.forProtocol(Protocol)
    results: list[Any] = []
    listen(reactor, parse_address(address, kind), served).addBoth(results.append)
    return results[0]


@contextmanager
def opened(address: str, kind: Any) -> Iterator[OpenPort]:
    made = opening(address, kind)
    assert isinstance(made, OpenPort), made
    try:
        yield made
    finally:
        made.abandon()


@pytest.mark.parametrize("form", ["unix:@", "unix:address=@", "proxy:trust=unix:unix:@"])
def test_a_stream_listens_at_a_name_without_a_file(form: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    address = f"{form}{NAME}"
    with opened(address, "stream") as made:
        assert made.socket.getsockname() == f"\0{NAME}".encode()
        assert made.place() == f"@{NAME}"
        assert made.files() == [] and os.listdir(tmp_path) == []
        assert is_bound_to(made.socket, parse_address(f"unix:@{NAME}", "stream"))
        assert not is_bound_to(made.socket, parse_address(f"unix:@{NAME}x", "stream"))
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"\0{NAME}")
        # The name is in use, and free again afterwards.
        failure = opening(address, "stream")
        assert f"@{NAME} is in use" in str(failure.value)
    with opened(address, "stream"):
        pass


def test_datagrams_are_served_at_a_name_without_a_file(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with opened(f"unixgram:@{NAME}", "datagram") as made, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        port: Any = made.port
        port.sessions = Guard(port.reactor).sessions("x udp")
        assert made.place() == f"@{NAME}" and made.files() == [] and os.listdir(tmp_path) == []
        client.bind(f"\0{NAME}-client")
        client.settimeout(PATIENCE)
        client.sendto(b"hello", f"\0{NAME}")
        port.doRead()
        assert client.recv(100) == b"hello"
        [session] = port.sessions.all()
        assert session.peer_place() == (f"@{NAME}-client", None)
        assert f"@{NAME} is in use" in str(opening(f"unixgram:@{NAME}", "datagram").value)


@pytest.mark.parametrize("scheme", ["unix", "unixgram"])
def test_a_client_connects_to_it(scheme: str) -> None:
    import asyncio

    kind = socket.SOCK_STREAM if scheme == "unix" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_UNIX, kind) as server:
        server.bind(f"\0{NAME}-{scheme}")
        if scheme == "unix":
            server.listen()

        async def reach() -> None:
            async with connect(parse_server(f"{scheme}:@{NAME}-{scheme}"), None, 10):
                pass

        asyncio.run(reach())


def test_a_path_is_written_with_an_at_sign_and_bound_with_a_null() -> None:
    for written, bound in (("@x", "\0x"), ("/run/x", "/run/x"), ("./@x", "./@x")):
        assert bound_path(written) == bound
        assert written_path(bound) == written
    for address in ("unix:@x", "unixgram:@x", r"haproxy:unix:@x"):
        assert resolve_address(address, "/etc") == address
    assert resolve_address("unix:./@x", "/etc") == "unix:/etc/@x"

"""Coroutines serve real clients on every reactor, in plain text and under TLS, and await what the reactor offers."""

from __future__ import annotations

import ssl
import textwrap
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.builders.certificates import write_certificate
from tests.builders.processes import Server, connect, read_all

SERVED = """
    import asyncio
    from twisted.internet.defer import Deferred

    async def lines(stream):
        async for line in stream:
            await stream.write(line.upper() + b"\\n")

    async def flood(stream):
        await stream.read_line()
        for number in range(100):
            await stream.write(bytes([number]) * 65536)

    async def later(stream):
        from twisted.internet import reactor
        done = Deferred()
        reactor.callLater(0.01, done.callback, b"later")
        await stream.write(await done)

    async def task(stream):
        async def compute():
            async with asyncio.timeout(60):
                await asyncio.sleep(0.01)
            return b"computed"
        await stream.write(await asyncio.create_task(compute()))
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "served.py"
    path.write_text(textwrap.dedent(SERVED))
    return path


#: uvloop is in the extra `test`.
UVLOOP = pytest.mark.skipif(not find_spec("uvloop"), reason="uvloop has no wheel for this Python on this machine")


@pytest.mark.parametrize(
    "reactor", ["netsvc", "epoll", "asyncio", pytest.param("uvloop", marks=[UVLOOP, pytest.mark.slow])]
)
def test_on_each_reactor(file: Path, reactor: str) -> None:
    names = ("lines", "flood", "later", *(("task",) if reactor in ("asyncio", "uvloop") else ()))
    words = [word for name in names for word in ("--serve", f"{name}={file}:{name}=127.0.0.1:0")]
    with Server.twistd(*words, before=("--reactor", reactor)) as server:
        answers = {}
        for name in names:
            with connect(server.port(f"{name} stream")) as client:
                # The others read nothing, and may have closed before anything is sent.
                if name in ("lines", "flood"):
                    client.sendall(b"hello\nwor")
                    client.sendall(b"ld\n")
                    client.shutdown(1)
                answers[name] = read_all(client)
        assert answers["lines"] == b"HELLO\nWORLD\n"
        assert answers["flood"] == b"".join(bytes([number]) * 65536 for number in range(100))
        assert answers["later"] == b"later"
        assert answers.get("task", b"computed") == b"computed"


def test_under_tls(file: Path, tmp_path: Path) -> None:
    key, certificate = write_certificate(tmp_path, "localhost")
    context = ssl.create_default_context(cafile=str(certificate))
    where = f"tls:0:cert={certificate}:key={key}:interface=127.0.0.1"
    with Server.twistd("--serve", f"flood={file}:flood={where}") as server:
        with context.wrap_socket(connect(server.port("flood stream")), server_hostname="localhost") as client:
            client.sendall(b"hello\n")
            received = b""
            while data := client.recv(65536):
                received += data
        assert received == b"".join(bytes([number]) * 65536 for number in range(100))

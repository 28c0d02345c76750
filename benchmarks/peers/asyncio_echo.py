"""Bare asyncio: an echo Protocol or DatagramProtocol, on its own loop or on uvloop, with no limits and no log.

python -m benchmarks.peers.asyncio_echo stream|datagram PORT asyncio|uvloop
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any


class Echo(asyncio.Protocol):
    """Sends back what comes."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class EchoDatagram(asyncio.DatagramProtocol):
    """Sends back what comes."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.transport.sendto(data, addr)


async def serve(kind: str, port: int) -> None:
    """Serve until killed."""
    loop = asyncio.get_running_loop()
    if kind == "datagram":
        await loop.create_datagram_endpoint(EchoDatagram, ("127.0.0.1", port))
    else:
        await loop.create_server(Echo, "127.0.0.1", port, backlog=1024)
    await loop.create_future()


def main(kind: str, port: int, name: str) -> None:
    """Run the loop of that name."""
    if name == "uvloop":
        import uvloop

        uvloop.run(serve(kind, port))
    else:
        asyncio.run(serve(kind, port))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])

"""Bare Twisted: an echo Protocol or DatagramProtocol, with no limits and no log.

python -m benchmarks.peers.twisted_echo stream|datagram PORT [netsvc]

It runs on Twisted's epoll reactor, or on netsvc's: the difference of that to netsvc is what netsvc adds.
"""

from __future__ import annotations

import sys
from typing import Any

from twisted.internet import epollreactor

from netsvc.reactor import epoll as fast_reactor

(fast_reactor if sys.argv[3:] == ["netsvc"] else epollreactor).install()

from twisted.internet import protocol, reactor  # noqa: E402


class Echo(protocol.Protocol):
    """Sends back what comes."""

    transport: Any

    def dataReceived(self, data: bytes) -> None:
        self.transport.write(data)


class EchoDatagram(protocol.DatagramProtocol):
    """Sends back what comes."""

    transport: Any

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        self.transport.write(datagram, addr)


def main(kind: str, port: int) -> None:
    """Serve until killed."""
    any_reactor: Any = reactor
    if kind == "datagram":
        any_reactor.listenUDP(port, EchoDatagram(), interface="127.0.0.1", maxPacketSize=65535)
    else:
        any_reactor.listenTCP(port, protocol.Factory.forProtocol(Echo), backlog=1024, interface="127.0.0.1")
    any_reactor.run()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

"""Keeps two datagram services from answering each other for ever, and a lost answer from stopping one."""

from __future__ import annotations

import os
from typing import Any

from twisted.internet.error import MessageLengthError
from twisted.internet.interfaces import IUDPTransport
from twisted.internet.protocol import DatagramProtocol
from twisted.python import usage

from netsvc.interfaces import Context

__all__ = ["ECHO_LIKE_PORTS", "AnsweringProtocol", "LoopGuard"]

#: Source ports of services that answer whatever they get: echo, daytime, qotd, chargen, time, DNS, TFTP, NTP,
#: and 0, from which no program sends. A datagram forged to come from one of them would start a loop
#: (CERT advisory CA-1996-01).
ECHO_LIKE_PORTS = frozenset({0, 7, 13, 17, 19, 37, 53, 69, 123})


class LoopGuard:
    """The core of a service that answers datagrams: it knows the source ports that must not be answered.

    These are the ports of other echo-like services, and those of every listener of the process,
    for UNIX sockets their paths.
    """

    def __init__(self, options: usage.Options, context: Context) -> None:
        self.options = options
        self.context = context
        #: Shared by all services of the process; the host adds each place that it opens.
        self.refused_ports = context.own_ports
        self.refused_ports |= ECHO_LIKE_PORTS


class AnsweringProtocol(DatagramProtocol):
    """Answers each datagram with `answer(data)`, unless that could start a loop. Its core is a `LoopGuard`.

    An answer that the system will not take (its buffer is full, the peer cannot be reached) is dropped and
    counted in `dropped`, as the network would drop it; it is not logged, for a peer could ask for thousands.
    """

    transport: IUDPTransport
    core: LoopGuard
    dropped = 0

    def startProtocol(self) -> None:
        """Answer nobody who sends from where we are."""
        host: Any = self.transport.getHost()
        self.core.refused_ports.add(host.name if hasattr(host, "name") else host.port)

    def datagramReceived(self, data: bytes, address: Any) -> None:
        """Send back the answer, to whoever may be answered."""
        # The peer of a UNIX socket is its path, and None when it has none and so cannot be answered. A peer can
        # put a link to our own socket where its own was: what we send there comes back to us, from us.
        if type(address) is tuple:
            if address[1] in self.core.refused_ports:
                return
        elif not address or os.fsencode(address) in self.core.refused_ports:
            return
        answer = self.answer(data)
        if answer is None:
            return
        try:
            self.transport.write(answer, address)
        except (OSError, MessageLengthError):
            self.dropped += 1

    def answer(self, data: bytes) -> bytes | None:
        """Return the datagram that answers `data`, or None for no answer."""
        raise NotImplementedError

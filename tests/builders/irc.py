"""Clients of the chat's IRC protocol, in memory."""

from __future__ import annotations

import base64
from typing import Any, cast

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from netsvc.service import stream_factory
from netsvc.services.chat.core import ChatCore
from netsvc.services.chat.irc.protocol import IrcChat


class IrcClient:
    """One connection of the IRC protocol over a fake transport, and what the client sends and sees."""

    def __init__(self, core: ChatCore, peer: str = "192.0.2.1") -> None:
        self.core = core
        self.clock = core.context.reactor
        address = IPv4Address("TCP", peer, 4000)
        self.transport = cast(Any, StringTransport(peerAddress=address))
        factory: Any = stream_factory(IrcChat, core)
        self.protocol = factory.buildProtocol(address)
        self.transport.protocol = self.protocol
        self.protocol.makeConnection(self.transport)

    def sends(self, *lines: str) -> list[str]:
        """Send lines; return those that have come since the last time."""
        for line in lines:
            self.protocol.dataReceived(f"{line}\r\n".encode())
        return self.sees()

    def sees(self) -> list[str]:
        data: bytes = self.transport.value()
        self.transport.clear()
        assert not data or data.endswith(b"\r\n")
        return data.decode().split("\r\n")[:-1]

    def codes(self, *lines: str) -> list[str]:
        """Send lines; return the commands and numerics of the answers."""
        return [command(line) for line in self.sends(*lines)]

    def register(self, nick: str, *capabilities: str) -> IrcClient:
        """Connect with a nickname and capabilities."""
        if capabilities:
            self.sends("CAP LS 302", f"CAP REQ :{' '.join(capabilities)}")
        self.sends(f"NICK {nick}", f"USER {nick} 0 * :{nick} the person", *(["CAP END"] if capabilities else []))
        assert self.protocol.session.member is not None
        return self

    def authenticate(self, name: str, password: str) -> list[str]:
        """Log in with SASL."""
        response = base64.b64encode(f"\0{name}\0{password}".encode()).decode()
        return self.sends("CAP REQ sasl", "AUTHENTICATE PLAIN", f"AUTHENTICATE {response}")

    def lose(self) -> None:
        self.protocol.connectionLost(Failure(ConnectionDone()))


def command(line: str) -> str:
    """Return the command of a line."""
    words = line.split(" ")
    return next(word for word in words if word[:1] not in {"@", ":"})


def irc_client(core: ChatCore, nick: str, *capabilities: str, peer: str = "192.0.2.1") -> IrcClient:
    """A client that is connected."""
    client = IrcClient(core, peer).register(nick, *capabilities)
    client.sees()
    return client

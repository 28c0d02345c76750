"""Discard (RFC 863): any data received is thrown away, and no response is sent.

That is what Twisted's own base classes do.
"""

from __future__ import annotations

from twisted.internet.protocol import DatagramProtocol, Protocol

from netsvc.service import Service

__all__ = ["service"]

service = Service(
    "discard",
    "Throw everything away (RFC 863)",
    streams={"tcp": Protocol},
    datagrams={"udp": DatagramProtocol},
)

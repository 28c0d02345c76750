"""The echo service: sends back what it receives (RFC 862)."""

from __future__ import annotations

from netsvc.datagram import AnsweringProtocol
from netsvc.service import Service
from netsvc.stream import StreamProtocol

__all__ = ["Echo", "EchoDatagram", "service"]


class Echo(StreamProtocol):
    """Sends every byte back."""

    def dataReceived(self, data: bytes) -> None:
        """Send it back."""
        self.transport.write(data)


class EchoDatagram(AnsweringProtocol):
    """Sends every datagram back whole, an empty one too."""

    def answer(self, data: bytes) -> bytes:
        """Return the datagram."""
        return data


service = Service(
    "echo",
    "Send back what it receives (RFC 862)",
    streams={"tcp": Echo},
    datagrams={"udp": EchoDatagram},
    parallel=True,
)

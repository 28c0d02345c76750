"""The optional C extension of the reactor; `netsvc.reactor.extension` knows whether it is here."""

import socket as sockets
from typing import Any, final

#: Changes with what Python expects of the extension.
INTERFACE: int
#: Datagrams that are received at a time.
BATCH: int

@final
class Datagrams:
    """Receives and sends the datagrams of a UDP socket, many at a time."""

    def __new__(cls, socket: sockets.socket, controls: bool) -> Datagrams: ...
    def receive(self) -> list[tuple[bytes, tuple[Any, Any], bytes]]:
        """Receive up to `BATCH` datagrams; see `netsvc.reactor.batch.Receiver`. Raises `OSError`."""

    def collect(self, data: bytes, sockaddr: Any, source: Any, owner: object, /) -> bool:
        """Keep a datagram until `flush`; return False if it must be sent at once, after a `flush`."""

    def flush(self) -> list[tuple[bytes, Any, Any, Any, int]]:
        """Send what was collected; return what the system did not take, each as it was collected and with its errno."""

class Stream:
    """The part of a stream transport that runs for each message, and the attributes that it reads for that.

    The other part is in `netsvc.reactor.streams`: `write_slowly`, `read_slowly` and `flush_answer`.
    """

    def write(self, data: bytes, /) -> None:
        """Write bytes; see `ITransport.write`."""

    def doRead(self) -> Any:
        """Read once, pass the data to the protocol, and send its answer."""

def accept(descriptor: int, /) -> tuple[int, Any]:
    """Accept an IP connection; return its descriptor, which does not block, and its peer. Raises `OSError`."""

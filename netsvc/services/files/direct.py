"""Writes to a socket without a turn through the event loop, where nothing is lost by that.

A transport keeps what is written until its reactor comes by, and half-closes after that. For a small file that is as
much work as all the rest; and the file leaves together with the end of the stream, in one segment, if both are said
at once.
"""

from __future__ import annotations

import socket
from typing import Any

from netsvc.services.files.sendfile import can_sendfile

__all__ = ["half_close", "write"]

#: Tells the kernel that more follows at once: not to send what does not fill a segment. Linux has it.
_MORE: int = getattr(socket, "MSG_MORE", 0)


def write(transport: Any, data: bytes, *, more: bool = False) -> None:
    """Write bytes as `ITransport.write` does, now if possible.

    With `more`, the caller ends the stream at once, in whatever way. A connection that is lost is found out by the
    transport, later: nothing is called from here.
    """
    if can_sendfile(transport) and transport.producer is None and transport.connected:
        try:  # noqa: SIM105  (as below)
            data = data[transport.socket.send(data, _MORE if more else 0) :]
        except OSError:
            pass
    if data:
        transport.write(data)


def half_close(transport: Any) -> bool:
    """End our direction now, if all has been sent; otherwise do nothing. Returns whether it has ended.

    Nothing is called from here, not `writeConnectionLost` either.
    """
    if (
        not can_sendfile(transport)
        or transport.producer is not None
        or not transport.connected
        or transport.disconnecting
        or transport._writeDisconnected
    ):
        return False
    # What `FileDescriptor.doWrite` does when it has sent the last byte. It must not be called any more: even to send
    # nothing is an error now, and it would take the connection for lost.
    transport.stopWriting()
    transport._writeDisconnected = True
    try:  # noqa: SIM105  (this is run for each small file, and takes half the time)
        transport.socket.shutdown(socket.SHUT_WR)
    except OSError:
        # The client is gone, which the transport will find out when it reads.
        pass
    return True

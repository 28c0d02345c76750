"""Makes room for a new port where old ones that will go are in its way: a socket beside theirs."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Any

from netsvc.address import Address
from netsvc.listeners.inherited import Inherited
from netsvc.listeners.sockets import bound_socket

__all__ = ["Room", "bind_beside", "copy_of"]


class Room(Inherited):
    """The socket of a port that is still to be opened."""

    def close(self) -> None:
        """Close it, if nobody has taken it: where nobody accepts, whoever connects would wait for ever."""
        while self._descriptors:
            os.close(self._descriptors.pop())


def copy_of(bound: socket.socket) -> Room:
    """Return the very socket of an open port, so that whoever waits there is served by the one port or the other."""
    return Room([os.dup(bound.fileno())])


def bind_beside(address: Address, others: Sequence[Any]) -> Room:
    """Bind a socket beside those of open ports. Raises `OSError`."""
    try:
        _let_in(others, True)
        with bound_socket(address, beside=True) as bound:
            # For this moment only: nobody else may have the port.
            _let_in([bound], False)
            return Room([bound.detach()])
    finally:
        _let_in(others, False)


def _let_in(sockets: Sequence[Any], others: bool) -> None:
    """Let others bind beside these sockets, or no more (socket(7), SO_REUSEPORT)."""
    for bound in sockets:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, others)

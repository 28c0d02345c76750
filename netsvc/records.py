"""The record of a connection that has ended, or of a datagram peer's session: what an access log says of it."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["REASONS", "Record"]

#: Why a connection or session has ended, and what each word says.
REASONS = {
    "peer": "the peer has ended it, in order",
    "server": "the service has ended it, in order",
    "reset": "the peer has broken it off, or cannot be reached any more",
    "abort": "the service has broken it off",
    "error": "the service has failed at it; the log has more",
    "tls": "the TLS handshake was never completed",
    "limit": "a limit has ended it",
    "drain": "it was still there at the deadline of a drain",
    "admin": "somebody has closed it, by the admin page or the API",
    "silent": "nothing has come of the datagram peer for as long as its session lasts",
    "full": "the datagram peer has given way to another one, where there were as many as there may be",
    "closed": "the datagram port was closed",
}


class Record(NamedTuple):
    """One connection, or session, from its begin to its end.

    `time` is when it ended, in seconds since the epoch, and `seconds` how long it lasted. `listener` is where it
    came in. `peer` is an address, with `port`; or, of a UNIX socket, who is there as far as is known, and no port.
    Bytes are those of the socket: below TLS, and with a PROXY header. Datagrams are None for a stream. `limit` names
    the limit that ended it, if one did.
    """

    time: float
    service: str
    protocol: str
    kind: str
    listener: str
    peer: str
    port: int | None
    bytes_in: int
    bytes_out: int
    datagrams_in: int | None
    datagrams_out: int | None
    seconds: float
    reason: str
    limit: str | None = None

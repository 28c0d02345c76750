"""The access record of a connection that has ended, of a datagram peer's session, or of a request of HTTP."""

from __future__ import annotations

from typing import NamedTuple

#: Why a connection or session ended.
REASONS = {
    "peer": "closed by the peer",
    "server": "closed by the service",
    "reset": "reset by the peer, or the peer became unreachable",
    "abort": "aborted by the service",
    "error": "the service failed; the log has the error",
    "tls": "the TLS handshake was not completed",
    "stalled": "closed, and then reset, as the peer did not acknowledge what was sent",
    "limit": "ended by a limit",
    "drain": "still open at the deadline of a drain",
    "admin": "closed with the admin page or API",
    "silent": "the datagram session timed out",
    "full": "the datagram session was evicted for a new one, at the limit `sessions` or `perip`",
    "closed": "the datagram port was closed",
}


class Record(NamedTuple):
    """One connection, or session, that has ended.

    `time` is its end in seconds since the epoch, and `seconds` its duration. `listener` is the address that it was
    accepted at. `peer` is an address, with `port`; or, of a UNIX socket, the user if known, without a port. Bytes are
    counted at the socket: below TLS, and with a PROXY header; over TCP, sent bytes are the bytes that the peer has
    acknowledged. Datagrams are None for a stream. `limit` is the limit that ended it, if one did.
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


class RequestRecord(NamedTuple):
    """One request of HTTP that has ended, with or without an answer.

    `time` is its end in seconds since the epoch. `line` is what the client sent, `user` who it has proved to be. `size`
    is the number of bytes of the content that were sent. What is unknown is empty.
    """

    time: float
    host: str
    user: str
    line: bytes
    status: int
    size: int
    referer: bytes
    agent: bytes


AnyRecord = Record | RequestRecord

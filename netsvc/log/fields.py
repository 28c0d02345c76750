"""What a line of the log says: the names of its fields, and what each means. They stay as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from twisted.logger import LogEvent

from netsvc.records import Record

__all__ = ["ACCESS_FIELDS", "ACCESS_SOURCE", "LOG_FIELDS", "Lines"]

#: Of an event, as JSON.
LOG_FIELDS: Mapping[str, str] = {
    "time": "when it was logged: RFC 3339, UTC, with milliseconds",
    "kind": "`log`",
    "level": "`debug`, `info`, `warn`, `error` or `critical`",
    "source": "who says it: `netsvc`, `netsvc.chat`, …; `stdout` and `stderr` for what is printed",
    "text": "what is said",
    "failure": "the traceback of what failed, if something did",
    "worker": "the number of the worker that says it, with `--workers`",
}

#: Of an access record, as JSON. As text it has those from `listener` on, in this order, as `name=value`.
ACCESS_FIELDS: Mapping[str, str] = {
    "time": "when the connection or session ended: RFC 3339, UTC, with milliseconds",
    "kind": "`access`",
    "service": "the service, as in `echo`",
    "protocol": "its protocol, as in `tcp`",
    "transport": "`stream` for a connection, `datagram` for the session of a datagram peer",
    "peer": "the address of the peer; of a UNIX socket, who is there as far as is known",
    "port": "the port of the peer; not of a UNIX socket",
    "listener": "where it came in",
    "bytes_in": "bytes that came from the peer, as on the socket: below TLS, and with a PROXY header",
    "bytes_out": "bytes that went to the peer, counted alike",
    "seconds": "how long it lasted",
    "reason": "why it ended",
    "limit": "the limit that ended it, if one did",
    "datagrams_in": "datagrams that came from the peer; not of a connection",
    "datagrams_out": "datagrams that went to the peer; not of a connection",
    "worker": "the number of the worker that served it, with `--workers`",
}

#: The namespace of access records, where they are events.
ACCESS_SOURCE = "netsvc.access"


class Lines(Protocol):
    """A form of the log: makes lines, each with its end, of what is to be said."""

    def event(self, event: LogEvent) -> str | None:
        """Make the line of an event, or the lines; nothing of one that says nothing."""

    def record(self, record: Record) -> str:
        """Make the line of an access record: a single one, whatever the peer has sent."""

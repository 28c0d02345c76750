"""Daytime (RFC 867): the current date and time as a line of text."""

from __future__ import annotations

from datetime import UTC, datetime

from netsvc.service import Service
from netsvc_classic.message import Message, MessageCore, MessageDatagram

__all__ = ["service"]


class Daytime(MessageCore):
    """The date and time in UTC, as in the first of the RFC's two syntaxes."""

    def message(self) -> bytes:
        """Return `Thursday, January 1, 1970 00:00:00-UTC` and a line end."""
        now = datetime.fromtimestamp(self.now(), UTC)
        return f"{now:%A, %B} {now.day}, {now:%Y %H:%M:%S}-UTC\r\n".encode("ascii")


service = Service(
    "daytime",
    "Tell the date and time as a line (RFC 867)",
    core=Daytime,
    streams={"tcp": Message},
    datagrams={"udp": MessageDatagram},
    parallel=True,
)

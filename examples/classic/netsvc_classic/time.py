"""Time (RFC 868): the seconds since 1900 as a 32-bit binary number."""

from __future__ import annotations

from netsvc.service import Service
from netsvc_classic.message import Message, MessageCore, MessageDatagram

__all__ = ["service"]

#: Seconds from 00:00 1 January 1900 to 00:00 1 January 1970, as the RFC gives them.
FROM_1900_TO_1970 = 2_208_988_800


class Time(MessageCore):
    """The time as a number, which begins again at 0 on 7 February 2036."""

    def message(self) -> bytes:
        """Return four bytes, the most significant one first."""
        return ((int(self.now()) + FROM_1900_TO_1970) % 2**32).to_bytes(4, "big")


service = Service(
    "time",
    "Tell the time as a number (RFC 868)",
    core=Time,
    streams={"tcp": Message},
    datagrams={"udp": MessageDatagram},
)

"""The chat service: rooms for nc, telnet and other clients that send lines, and for clients of IRC."""

from __future__ import annotations

from netsvc.service import Service
from netsvc.services.chat.core import ChatCore
from netsvc.services.chat.irc.protocol import IrcChat
from netsvc.services.chat.line import LineChat
from netsvc.services.chat.options import ChatOptions

__all__ = ["service"]

service = Service(
    "chat",
    "Chat rooms for nc, telnet and clients of IRC",
    options=ChatOptions,
    core=ChatCore,
    streams={"line": LineChat, "irc": IrcChat},
    # Members read for hours without sending anything. The option `silence` makes room when the chat is full.
    # One whose machine is gone is noticed after 115 seconds.
    limits={"handshake": None, "idle": 86400, "keepalive": 75},
)

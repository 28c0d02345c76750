"""The chat service: rooms for nc, telnet and other clients that send lines, for clients of IRC, and for browsers."""

from __future__ import annotations

from netsvc.service import Service
from netsvc.services.chat.core import ChatCore
from netsvc.services.chat.irc.protocol import IrcChat
from netsvc.services.chat.line import LineChat
from netsvc.services.chat.options import ChatOptions
from netsvc.services.chat.web import web_factory

__all__ = ["service"]

service = Service(
    "chat",
    "Chat rooms for nc, telnet, clients of IRC and browsers",
    options=ChatOptions,
    core=ChatCore,
    streams={"line": LineChat, "irc": IrcChat, "web": web_factory},
    # Members read for hours without sending anything. The option `silence` makes room when the chat is full.
    # One whose machine is gone is noticed after 113 seconds.
    limits={"handshake": None, "idle": 86400, "keepalive": 75},
)

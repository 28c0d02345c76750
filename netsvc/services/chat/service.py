"""Declares the chat service."""

from __future__ import annotations

from netsvc.service import Service
from netsvc.services.chat.core import ChatCore
from netsvc.services.chat.line import LineChat
from netsvc.services.chat.options import ChatOptions

__all__ = ["service"]

service = Service(
    "chat",
    "Chat rooms for nc, telnet and friends",
    options=ChatOptions,
    core=ChatCore,
    streams={"line": LineChat},
    # People read along for hours, and say nothing before they have read; whoever only takes a place is found by
    # `silence`.
    limits={"handshake": None, "idle": 86400},
)

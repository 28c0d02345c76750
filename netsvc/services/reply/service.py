"""Declares the reply service."""

from __future__ import annotations

from netsvc.service import Service
from netsvc.services.reply.core import ReplyCore, ReplyOptions
from netsvc.services.reply.tcp import Reply
from netsvc.services.reply.udp import ReplyDatagram

__all__ = ["service"]

service = Service(
    "reply",
    "Answer everything with a fixed text",
    options=ReplyOptions,
    core=ReplyCore,
    streams={"tcp": Reply},
    datagrams={"udp": ReplyDatagram},
    parallel=True,
)

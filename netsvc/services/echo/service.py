"""Declares the echo service."""

from __future__ import annotations

from netsvc.datagram import LoopGuard
from netsvc.service import Service
from netsvc.services.echo.tcp import Echo
from netsvc.services.echo.udp import EchoDatagram

__all__ = ["service"]

service = Service(
    "echo",
    "Send back what comes (RFC 862)",
    core=LoopGuard,
    streams={"tcp": Echo},
    datagrams={"udp": EchoDatagram},
    parallel=True,
)

"""Twisted's asyncio reactor over the event loop of uvloop: `--reactor uvloop`, if uvloop is installed."""

from __future__ import annotations

from asyncio import set_event_loop

from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.main import installReactor

__all__ = ["UvloopReactor", "install"]


class UvloopReactor(AsyncioSelectorReactor):
    """A reactor over a new event loop of uvloop. Raises `ImportError` if uvloop is not installed."""

    def __init__(self) -> None:
        from uvloop import new_event_loop

        loop = new_event_loop()
        set_event_loop(loop)
        super().__init__(loop)


def install() -> None:
    """Install this reactor for the process."""
    installReactor(UvloopReactor())

"""Collects what is logged, as text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from twisted.logger import ILogObserver, eventAsText, globalLogPublisher
from zope.interface import implementer


@implementer(ILogObserver)
class Lines(list[str]):
    """The texts of what netsvc, and its workers, log; `levels` and `systems` beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.levels: list[str] = []
        self.systems: list[str] = []

    def __call__(self, event: Any) -> None:
        text = eventAsText(event, includeTimestamp=False, includeSystem=False)
        if text and str(event.get("log_namespace")).startswith(("netsvc", "std", "who")):
            self.append(text)
            self.levels.append(event["log_level"].name)
            self.systems.append(event.get("log_system", event["log_namespace"]))


def collected() -> Iterator[Lines]:
    """Collect what is logged meanwhile. For a fixture."""
    lines = Lines()
    globalLogPublisher.addObserver(lines)
    yield lines
    globalLogPublisher.removeObserver(lines)

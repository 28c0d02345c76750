"""Tells members what happens, in one order for all, and what happens together at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType

from twisted.logger import Logger

from netsvc.services.chat.events import Event, Several

__all__ = ["Audience", "Telling"]

#: The `deliver` of everybody who is to be told.
Audience = Iterable[Callable[[Event], None]]

#: Events, and characters of members' own text in them, that wait to be told together. More would hardly be cheaper,
#: and a client gets all of it at once: its transport may have so much more to send than it takes at a time.
_MOST_EVENTS = 64
_MOST_CHARACTERS = 8192


class Telling:
    """Delivers events, each to its audience. All who are told of two events are told of them in the same order.

    An event is delivered at once; within a `with` block at its end, or as soon as many wait. Those that follow each
    other and have the very same audience are then delivered as one `Several`: a thousand receivers are told once,
    and not once a line.
    """

    def __init__(self, log: Logger) -> None:
        self._log = log
        self._untold: deque[tuple[Audience, Event, object]] = deque()
        self._characters = 0
        self._telling = False
        self._blocks = 0

    def __enter__(self) -> None:
        """Collect what is told."""
        self._blocks += 1

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """Deliver what was collected, unless this block is within another."""
        self._blocks -= 1
        if not self._blocks:
            self.deliver()

    def tell(self, audience: Audience, event: Event, but: object = None, characters: int = 0) -> None:
        """Have an event delivered to all of `audience`, but not to `but`.

        The audience must not change afterwards. `characters` is the length of the member's own text in the event.
        """
        self._untold.append((audience, event, but))
        self._characters += characters
        if not self._blocks or len(self._untold) >= _MOST_EVENTS or self._characters >= _MOST_CHARACTERS:
            self.deliver()

    def deliver(self) -> None:
        """Deliver all that waits.

        A delivery may end its connection, which is another event: it waits, or else those later in the line
        would be told of the two in the wrong order.
        """
        if self._telling:
            return
        self._telling = True
        try:
            while self._untold:
                self._deliver_next()
        finally:
            self._telling = False

    def _deliver_next(self) -> None:
        untold = self._untold
        audience, event, but = untold.popleft()
        if untold and untold[0][0] is audience and untold[0][2] is but:
            events = [event]
            while untold and untold[0][0] is audience and untold[0][2] is but:
                events.append(untold.popleft()[1])
            event = Several(tuple(events))
        if not untold:
            self._characters = 0
        for deliver in audience:
            if deliver is not but:
                try:
                    deliver(event)
                except Exception:  # noqa: BLE001  (a wire's fault must not cost the other members the event)
                    self._log.failure("a chat connection could not take an event")
        event.rendered.clear()

"""What one member wants to see: of whom nothing, whether who comes and goes, whether times."""

from __future__ import annotations

from netsvc.services.chat.events import (
    Acted,
    Departed,
    Event,
    Joined,
    Left,
    Noticed,
    Proclaimed,
    Renamed,
    Retitled,
    Said,
    Several,
    Whispered,
)
from netsvc.services.chat.names import name_key

__all__ = ["View"]

_COMING_AND_GOING = (Joined, Left, Departed, Renamed)
#: The events that a member causes, with its `name`.
_OWN = (Said, Acted, Whispered, Noticed, Proclaimed, Joined, Left, Departed, Retitled)


class View:
    """What one member wants to see."""

    __slots__ = ("has_times", "ignored", "is_plain", "is_quiet")

    def __init__(self) -> None:
        #: The names of ignored members by their keys. One that is renamed stays ignored.
        self.ignored: dict[str, str] = {}
        self.is_quiet = False
        self.has_times = False
        #: Whether it sees every event, without times. Asked for each delivery; mostly nothing else is.
        self.is_plain = True

    def changed(self) -> None:
        """Note a change."""
        self.is_plain = not (self.ignored or self.is_quiet or self.has_times)

    def select(self, event: Event) -> list[Event]:
        """Return what the member sees of an event, each one by itself."""
        events = event.events if isinstance(event, Several) else (event,)
        return [each for each in events if self._shows(each)]

    def _shows(self, event: Event) -> bool:
        if self.ignored and self._is_ignored(event):
            return False
        return not (self.is_quiet and isinstance(event, _COMING_AND_GOING))

    def _is_ignored(self, event: Event) -> bool:
        if isinstance(event, Renamed):
            if self.ignored.pop(name_key(event.old), None) is None:
                return False
            self.ignored[name_key(event.new)] = event.new
            return True
        return isinstance(event, _OWN) and name_key(event.name) in self.ignored

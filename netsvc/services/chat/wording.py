"""The chat in words: the line of each event, and its bytes in a client's encoding."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

from netsvc.services.chat.events import (
    Acted,
    Changed,
    Closed,
    Departed,
    Displaced,
    Event,
    Expelled,
    Forgetting,
    Joined,
    Kicked,
    Left,
    Noticed,
    Proclaimed,
    Remembering,
    Renamed,
    Retitled,
    Said,
    Several,
    Stopping,
    Unsent,
    Whispered,
)

__all__ = ["LineForm", "line_form", "past", "wording"]

_CHANGES = {
    "banned": "banned {whom} from {room}",
    "unbanned": "lifted the ban of {whom} from {room}",
    "muted": "muted {whom} in {room}",
    "unmuted": "let {whom} speak in {room} again",
    "opped": "made {whom} an operator of {room}",
    "deopped": "made {whom} no operator of {room} any more",
    "modes": "set modes of {room}: {whom}",
    "excepted": "let no ban of {room} apply to {whom}",
    "unexcepted": "let bans of {room} apply to {whom} again",
    "admitted": "let {whom} enter {room} without an invitation",
    "unadmitted": "does not let {whom} enter {room} without an invitation any more",
    "voiced": "let {whom} speak in {room}",
    "devoiced": "does not let {whom} speak in {room} more than others any more",
    "invited": "invited {whom} to {room}; /join {room}",
    "asked": "invited {whom} to {room}",
    "registered": "registered {room}",
    "released": "released {room}: it is not registered any more",
}


def _with(why: str) -> str:
    return f" ({why})" if why else ""


# No member can forge a line of the server's or of another member's: names have neither spaces nor brackets, and a
# text has no line end.
_WORDINGS: dict[type[Event], Callable[[Any], str]] = {
    Said: lambda event: f"[{event.room}] {event.name}: {event.text}",
    Acted: lambda event: f"[{event.room}] * {event.name} {event.text}",
    Whispered: lambda event: f"{event.name} -> you: {'* ' * event.acted}{event.text}",
    Noticed: lambda event: (
        f"[{event.room}] -{event.name}- {event.text}" if event.room else f"-{event.name}- {event.text}"
    ),
    Proclaimed: lambda event: f"-{event.name}- to all operators: {event.text}",
    Unsent: lambda event: f"* not sent, as {event.reason}: {event.text}",
    Forgetting: lambda event: f"* {event.reason}: the chat cannot keep messages now, and refuses them until it can",
    Remembering: lambda _event: "* the chat can keep messages again",
    Joined: lambda event: f"* {event.name} joined {event.room}",
    Left: lambda event: f"* {event.name} left {event.room}{_with(event.why)}",
    Departed: lambda event: f"* {event.name} left the chat{_with(event.reason or event.why)}",
    Renamed: lambda event: f"* {event.old} is now {event.new}",
    Retitled: lambda event: (
        f"* {event.name} set the topic of {event.room}: {event.topic}"
        if event.topic
        else f"* {event.name} removed the topic of {event.room}"
    ),
    Kicked: lambda event: f"* {event.by} kicked {event.name} from {event.room}{_with(event.why)}",
    Changed: lambda event: (
        f"* {event.name} {_CHANGES[event.change].format(whom=event.whom, room=event.room)}{_with(event.why)}"
    ),
    Expelled: lambda event: (
        f"* {event.by} disconnects you{_with(event.why)}, goodbye"
        if event.by
        else "* you have logged in elsewhere; disconnecting you here, goodbye"
    ),
    Closed: lambda event: f"* all rooms are in use, and {event.room} had to be closed; /rooms lists the others",
    Displaced: lambda event: (
        f"* the chat is full, and of the {event.crowd} members at your address you have been silent the longest; "
        "disconnecting you, goodbye"
        if event.crowd
        else "* the chat is full and you have been silent the longest; disconnecting you, goodbye"
    ),
    Stopping: lambda _event: "* the server is stopping, goodbye",
}

_UNITS = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


def wording(event: Event) -> str:
    """Return the line of an event, without a line end; an empty one if it has none, as its wire form is another."""
    words = _WORDINGS.get(type(event))
    return words(event) if words is not None else ""


def past(event: Event, age: float) -> str:
    """Return the line of an event that happened `age` seconds ago, marked as such."""
    for seconds, unit in _UNITS:
        count = int(age // seconds)
        if count > 0:
            return f"({count} {unit}{'s' if count > 1 else ''} ago) {wording(event)}"
    return f"(just now) {wording(event)}"


class LineForm:
    """Lines as bytes, in one encoding and with one line end. Characters that the encoding lacks become `?`."""

    def __init__(self, encoding: str, end: str, *, has_times: bool = False) -> None:
        self._encoding = encoding
        self._end = end
        self._has_times = has_times

    @property
    def with_times(self) -> LineForm:
        """The form in which each event has its time: `(14:05) [lobby] ann: hello`."""
        return _form_with_times(self._encoding, self._end)

    def encode(self, lines: Iterable[str]) -> bytes:
        """Return the bytes of lines, each with its end."""
        return "".join(f"{line}{self._end}" for line in lines).encode(self._encoding, "replace")

    def render(self, event: Event) -> bytes:
        """Return the bytes of an event's line or lines, made once for all receivers of this form."""
        data = event.rendered.get(self)
        if data is None:
            events = event.events if isinstance(event, Several) else (event,)
            lines = map(_timed if self._has_times else wording, events)
            data = event.rendered[self] = self.encode(filter(None, lines))
        return data


def _timed(event: Event) -> str:
    # What is not kept happens now.
    moment = time.localtime(getattr(event, "time", 0) or None)
    line = wording(event)
    return line and f"({time.strftime('%H:%M', moment)}) {line}"


@cache
def _form_with_times(encoding: str, end: str) -> LineForm:
    return LineForm(encoding, end, has_times=True)


@cache
def line_form(encoding: str, end: str) -> LineForm:
    """Return the one `LineForm` of an encoding and a line end, shared by all connections."""
    return LineForm(encoding, end)

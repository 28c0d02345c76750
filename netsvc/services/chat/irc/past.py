"""The commands for what was said before (draft/chathistory), and up to where it was read (draft/read-marker)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from twisted.internet.defer import Deferred

from netsvc.services.chat.archive import event_of
from netsvc.services.chat.core import ChatRoom
from netsvc.services.chat.events import Marked
from netsvc.services.chat.irc.command import IrcCommand
from netsvc.services.chat.irc.form import happening_id, irc_time
from netsvc.services.chat.irc.message import IrcMessage, format_message
from netsvc.services.chat.irc.session import IrcSession
from netsvc.services.chat.irc.support import MOST_HISTORY
from netsvc.services.chat.names import name_key
from netsvc.services.chat.room import Happening
from netsvc.services.chat.store.interface import Message

__all__ = ["PAST_COMMANDS", "send_marker"]

#: Targets of which a guest has a read marker.
_MOST_MARKERS = 200


_Item = Message | Happening


class _Point:
    """A place in the history of a room: a message by its id, or a time."""

    def __init__(self, text: str) -> None:
        kind, _, value = text.partition("=")
        self.id: int | None = None
        #: Of something that happened after the message with that id; 0: the message itself.
        self.number = 0
        self.time = 0.0
        if kind == "msgid":
            numbers = value.partition("-")[0].split(".")
            if len(numbers) > 2 or not all(each.isascii() and each.isdigit() and len(each) < 19 for each in numbers):
                raise ValueError(text)
            self.id, self.number = int(numbers[0]), int(numbers[1]) if len(numbers) == 2 else 0
        elif kind == "timestamp":
            self.time = datetime.fromisoformat(value).timestamp()
        else:
            raise ValueError(text)

    def is_before(self, item: _Item) -> bool:
        """Return whether an item is after this point."""
        if self.id is not None:
            return _place(item) > (self.id, self.number)
        return _milliseconds(item.time) > _milliseconds(self.time)

    def is_after(self, item: _Item) -> bool:
        """Return whether an item is before this point."""
        if self.id is not None:
            return _place(item) < (self.id, self.number)
        return _milliseconds(item.time) < _milliseconds(self.time)


def _place(item: _Item) -> tuple[int, int]:
    """Return where an item is in the order of a room."""
    return (item.id, 0) if isinstance(item, Message) else (item.after, item.number)


class _Query(NamedTuple):
    """What is asked for: CHATHISTORY's word (REVERSE: BETWEEN, with the later point first), points, and how much."""

    verb: str
    points: Sequence[_Point | None]
    limit: int


def _milliseconds(seconds: float) -> int:
    return int(round(seconds * 1000, 3))


def _chathistory(session: IrcSession, message: IrcMessage) -> Deferred[None] | None:
    verb, *params = message.params
    verb = verb.upper()
    if verb == "TARGETS":
        _targets(session, params)
        return None
    points = {"LATEST": 1, "BEFORE": 1, "AFTER": 1, "AROUND": 1, "BETWEEN": 2}.get(verb)
    if points is None:
        session.fail("CHATHISTORY", "INVALID_PARAMS", verb[:50], "Unknown command")
        return None
    if len(params) < 2 + points:
        session.fail("CHATHISTORY", "INVALID_PARAMS", verb, "Insufficient parameters")
        return None
    room = session.find_room(params[0])
    if room is None or room not in session.me.rooms:
        session.fail("CHATHISTORY", "INVALID_TARGET", verb, params[0], "Messages could not be retrieved")
        return None
    try:
        limit = min(int(params[1 + points]), MOST_HISTORY)
        if limit <= 0:
            raise ValueError(limit)
        asked = [None if verb == "LATEST" and each == "*" else _Point(each) for each in params[1 : 1 + points]]
    except (ValueError, OverflowError):
        session.fail("CHATHISTORY", "INVALID_PARAMS", verb, "Invalid parameters")
        return None
    if verb == "BETWEEN" and _is_later(*asked):
        verb, asked = "REVERSE", asked[::-1]
    query = _Query(verb, asked, limit)
    reading = Deferred.fromCoroutine(_read(session, room, query))
    return reading.addCallback(lambda messages: _send(session, room, _played(session, room, query, messages)))


def _is_later(first: _Point | None, second: _Point | None) -> bool:
    assert first is not None and second is not None
    if first.id is not None and second.id is not None:
        return (first.id, first.number) > (second.id, second.number)
    return first.time > second.time


def _send(session: IrcSession, room: ChatRoom, items: Sequence[_Item]) -> None:
    with session.batch("chathistory", f"#{room.name}") as batch:
        for item in items:
            if isinstance(item, Message):
                batch.add(event_of(room.name, item))
            else:
                batch.replay(item.event, item.time, happening_id(room.name, item.after, item.number))


def _played(session: IrcSession, room: ChatRoom, query: _Query, messages: list[Message]) -> Sequence[_Item]:
    """Return messages with what else happened between them, for a client that knows that."""
    if not session.has("draft/event-playback"):
        return messages
    verb, points, limit = query
    first, last = points[0], points[-1]
    happened = [
        each
        for each in room.happened
        if (first is None or verb in {"BEFORE", "AROUND"} or first.is_before(each))
        and (last is None or verb not in {"BEFORE", "BETWEEN", "REVERSE"} or last.is_after(each))
    ]
    items: list[_Item] = sorted([*messages, *happened], key=_place)
    if verb == "AROUND":
        assert first is not None
        middle = sum(first.is_after(each) for each in items)
        start = max(0, middle - limit // 2)
        return items[start : middle + limit - limit // 2]
    return items[:limit] if verb in {"AFTER", "BETWEEN"} else items[-limit:]


async def _read(session: IrcSession, room: ChatRoom, query: _Query) -> list[Message]:
    """Return the messages that are asked for, oldest first."""
    verb, points, limit = query
    read, key = session.core.archive.store.read, room.key
    first, last = points[0], points[-1]
    if first is None:
        return await read(key, limit)
    if verb == "LATEST":
        return [each for each in await read(key, limit) if first.is_before(each)]
    if verb == "BEFORE":
        return await _before(session, key, first, limit)
    if verb == "AFTER":
        return await _after(session, key, first, limit)
    if verb in {"BETWEEN", "REVERSE"}:
        assert last is not None
        if verb == "REVERSE":
            return [each for each in await _before(session, key, last, limit) if first.is_before(each)]
        return [each for each in await _after(session, key, first, limit) if last.is_after(each)]
    half = limit // 2
    before = await _before(session, key, first, half) if half else []
    if first.id is not None:
        after = await read(key, limit - half, after=first.id - (not first.number))
    else:
        after = await read(key, limit - half, since=first.time)
    return [*before, *after]


async def _before(session: IrcSession, key: str, point: _Point, limit: int) -> list[Message]:
    read = session.core.archive.store.read
    number = point.id
    if number is not None and point.number:
        number += 1
    if number is None:
        following = await read(key, 1, since=point.time)
        if not following:
            return await read(key, limit)
        number = following[0].id
    return await read(key, limit, before=number)


async def _after(session: IrcSession, key: str, point: _Point, limit: int) -> list[Message]:
    read = session.core.archive.store.read
    if point.id is not None:
        return await read(key, limit, after=point.id)
    # Those of the very millisecond are not after it.
    found = await read(key, limit, since=point.time + 0.001)
    return [each for each in found if point.is_before(each)]


def _targets(session: IrcSession, params: Sequence[str]) -> None:
    try:
        start, end = sorted(_Point(each).time for each in params[:2])
        limit = min(int(params[2]), MOST_HISTORY)
    except (ValueError, IndexError, OverflowError):
        session.fail("CHATHISTORY", "INVALID_PARAMS", "TARGETS", "Invalid parameters")
        return
    latest = sorted((room.history[-1][0], room.name) for room in session.me.rooms if room.history)
    with session.batch("draft/chathistory-targets") as batch:
        for time, name in [each for each in latest if start < each[0] < end][:limit]:
            batch.line(format_message("CHATHISTORY", "TARGETS", f"#{name}", irc_time(time), source=session.server))


def _marked(session: IrcSession, target: str) -> int:
    key = name_key(target[:256])
    account = session.me.account
    if account is not None:
        return session.core.markers.get(account.key, key)
    return session.markers.get(key, 0)


def send_marker(session: IrcSession, target: str) -> None:
    """Send up to when the client has read a target."""
    session.answer(_marker(session, target, _marked(session, target)))


def _marker(session: IrcSession, target: str, milliseconds: int) -> str:
    shown = f"timestamp={irc_time(milliseconds / 1000)}" if milliseconds else "*"
    return format_message("MARKREAD", target, shown, source=session.server)


def _markread(session: IrcSession, message: IrcMessage) -> None:
    if not message.params or not message.params[0]:
        session.fail("MARKREAD", "NEED_MORE_PARAMS", "Missing parameters")
        return
    target = message.params[0]
    if len(message.params) == 1:
        send_marker(session, target)
        return
    kind, _, value = message.params[1].partition("=")
    try:
        if kind != "timestamp":
            raise ValueError(kind)
        milliseconds = _milliseconds(datetime.fromisoformat(value).timestamp())
    except (ValueError, OverflowError):
        session.fail("MARKREAD", "INVALID_PARAMS", target, "Invalid timestamp")
        return
    key = name_key(target[:256])
    account = session.me.account
    if account is None:
        if key in session.markers or len(session.markers) < _MOST_MARKERS:
            session.markers[key] = max(session.markers.get(key, 0), milliseconds)
        send_marker(session, target)
        return
    before = session.core.markers.get(account.key, key)
    after = session.core.markers.advance(account.key, key, milliseconds)
    send_marker(session, target)
    if after > before:
        for member in session.core.members:
            if member.account is not None and member.account.key == account.key and member is not session.me:
                member.deliver(Marked(target, after))


PAST_COMMANDS = {
    "CHATHISTORY": IrcCommand(_chathistory, 1),
    "MARKREAD": IrcCommand(_markread),
}

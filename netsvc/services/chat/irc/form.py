"""The chat's events in IRC's words, for clients with the same capabilities."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from enum import IntFlag
from functools import lru_cache
from typing import Any

from netsvc.services.chat.events import (
    Acted,
    Away,
    Changed,
    Departed,
    Described,
    Displaced,
    Event,
    Expelled,
    Forgetting,
    Identified,
    Joined,
    Kicked,
    Left,
    MemberOrigin,
    Noticed,
    Proclaimed,
    Remembering,
    Renamed,
    Retitled,
    Said,
    Several,
    Stopping,
    Tagged,
    Whispered,
)
from netsvc.services.chat.irc.masks import shown_mask
from netsvc.services.chat.irc.message import LONGEST_LINE, format_message
from netsvc.services.chat.names import name_key
from netsvc.services.chat.rules import VALUED_MODES
from netsvc.services.chat.wording import wording

__all__ = ["MODE_LETTERS", "Detail", "IrcForm", "happening_id", "irc_form", "irc_time", "message_id", "plain"]

#: Of each mode of a room, its letter. `outside` is the opposite of `n`.
MODE_LETTERS = {
    "invite": "i",
    "registered": "R",
    "moderated": "m",
    "topic": "t",
    "secret": "s",
    "outside": "n",
    "key": "k",
    "limit": "l",
}
#: Changes of a list or of a member's status, and their modes.
_CHANGES = {
    "banned": "+b",
    "unbanned": "-b",
    "muted": "+b",
    "unmuted": "-b",
    "excepted": "+e",
    "unexcepted": "-e",
    "admitted": "+I",
    "unadmitted": "-I",
    "opped": "+o",
    "deopped": "-o",
    "voiced": "+v",
    "devoiced": "-v",
}

#: Colours and type faces of mIRC's, which other clients would show as digits and signs.
_FORMATTING = re.compile("\x03(?:[0-9]{1,2}(?:,[0-9]{1,2})?)?|\x04(?:[0-9A-Fa-f]{6})?|[\x02\x0f\x11\x16\x1d\x1e\x1f]")


class Detail(IntFlag):
    """What a client wants to know of events besides what RFC 1459 has."""

    TIME = 1
    ACCOUNT_TAG = 2
    TAGS = 4
    EXTENDED_JOIN = 8
    AWAY = 16
    ACCOUNT = 32
    SETNAME = 64
    INVITE = 128


def plain(text: str) -> str:
    """Return a text without IRC's codes for colours and type faces."""
    # Most texts have none.
    return text if text.isprintable() else _FORMATTING.sub("", text)


def irc_time(seconds: float) -> str:
    """Return a time (seconds since 1970) as the tag `time` has it."""
    moment = datetime.fromtimestamp(seconds, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03}Z"


@lru_cache(maxsize=4096)
def _room_tail(room: str) -> str:
    return hashlib.blake2s(name_key(room).encode("utf-8", "replace"), digest_size=4).hexdigest()


def message_id(event: Event) -> str:
    """Return the id of a message, which no other one in the chat has; empty for other events."""
    if isinstance(event, Said | Acted):
        return f"{event.id}-{_room_tail(event.room)}"
    return getattr(event, "id", "")


def happening_id(room: str, after: int, number: int) -> str:
    """Return the id of something that happened in a room after the message with the id `after`; see `Happening`."""
    return f"{after}.{number}-{_room_tail(room)}"


class IrcForm:
    """The lines of events as bytes, the same for all clients that want the same details.

    What is different for each receiver (`Closed`, `Unsent`, `Present`, `Absent`) has no lines here.
    """

    def __init__(self, server: str, details: Detail, now: Callable[[], float]) -> None:
        self.server = server
        self.details = details
        # Read for each message; to ask an IntFlag costs as much as the rest of its tags.
        self._has_time = bool(details & Detail.TIME)
        self._has_account = bool(details & Detail.ACCOUNT_TAG)
        self._has_tags = bool(details & Detail.TAGS)
        self._is_bare = not (self._has_time or self._has_account or self._has_tags)
        self._now = now

    def render(self, event: Event) -> bytes:
        """Return the lines of an event, made once for all receivers of this form."""
        data = event.rendered.get(self)
        if data is None:
            events = event.events if isinstance(event, Several) else (event,)
            lines = [line for each in events for line in self.lines(each)]
            data = event.rendered[self] = "".join([f"{line}\r\n" for line in lines]).encode("utf-8", "replace")
        return data

    def lines(self, event: Event, extra: str = "") -> Iterator[str]:
        """Iterate over the lines of an event, each with the tags `extra`, too."""
        say = _LINES.get(type(event))
        if say is not None:
            yield from say(self, event, extra)

    def replay(self, event: Event, extra: str, time: float, id: str) -> str:
        """Return the line of something that happened at a time, under an id; empty if it is none of IRC's."""
        if isinstance(event, Changed) and event.change not in _CHANGES and event.change != "modes":
            return ""
        parts = [extra] if extra else []
        if self._has_time:
            parts.append(f"time={irc_time(time)}")
        if self._has_tags:
            parts.append(f"msgid={id}")
        # These lines have tags of their own, which are those of now.
        line = next(_bare_form(self).lines(event), "")
        return f"@{';'.join(parts)} {line}" if parts and line else line

    def tags(self, event: Event, extra: str = "", *, is_first: bool = True) -> str:
        """Return the tags of an event. A message in several lines has its id in the first one."""
        if self._is_bare:
            return extra
        parts = [extra] if extra else []
        if self._has_time:
            parts.append(f"time={irc_time(getattr(event, 'time', 0) or self._now())}")
        source = event.source
        if self._has_account and (account := source.account if source is not None else getattr(event, "account", "")):
            parts.append(f"account={account}")
        if self._has_tags:
            if source is not None and source.is_bot:
                parts.append("bot")
            if is_first and (id := message_id(event)):
                parts.append(f"msgid={id}")
            if event.tags:
                parts.append(event.tags)
        return ";".join(parts)

    def line(self, event: Event, name: str, extra: str, command: str, *params: str) -> str:
        """Return the line of what the member `name` did."""
        return format_message(command, *params, source=self.mask(name, event.source), tags=self.tags(event, extra))

    def mask(self, name: str, source: MemberOrigin | None) -> str:
        """Return a member as the source of a message."""
        return f"{name}!{source.user}@{source.host}" if source is not None else f"{name}!chat@{self.server}"

    def _talk(self, event: Any, extra: str, command: str, target: str, text: str, *, acted: bool) -> Iterator[str]:
        head = f":{self.mask(event.name, event.source)} {command} {target} :"
        begin, end = ("\x01ACTION ", "\x01") if acted else ("", "")
        room = LONGEST_LINE - 2 - len(head.encode("utf-8", "replace")) - len(begin) - len(end)
        # No character has more than four bytes.
        parts = (text,) if len(text) * 4 <= room else _parts(text, room)
        for number, part in enumerate(parts):
            tags = self.tags(event, extra, is_first=not number)
            yield f"{f'@{tags} ' if tags else ''}{head}{begin}{part}{end}"

    def _said(self, event: Any, extra: str) -> Iterator[str]:
        return self._talk(event, extra, "PRIVMSG", f"#{event.room}", event.text, acted=isinstance(event, Acted))

    def _whispered(self, event: Any, extra: str) -> Iterator[str]:
        return self._talk(event, extra, "PRIVMSG", event.to, event.text, acted=event.acted)

    def _noticed(self, event: Any, extra: str) -> Iterator[str]:
        target = f"#{event.room}" if event.room else event.to
        return self._talk(event, extra, "NOTICE", target, event.text, acted=False)

    def _tagged(self, event: Any, extra: str) -> Iterator[str]:
        if self.details & Detail.TAGS:
            yield self.line(event, event.name, extra, "TAGMSG", f"#{event.room}" if event.room else event.to)

    def _joined(self, event: Any, extra: str) -> Iterator[str]:
        room = f"#{event.room}"
        if self.details & Detail.EXTENDED_JOIN:
            account = event.source.account if event.source is not None else ""
            yield self.line(event, event.name, extra, "JOIN", room, account or "*", event.real_name)
        else:
            yield self.line(event, event.name, extra, "JOIN", room)
        if event.away and self.details & Detail.AWAY:
            yield self.line(event, event.name, extra, "AWAY", event.away)

    def _changed(self, event: Any, extra: str) -> Iterator[str]:
        room = f"#{event.room}"
        if event.change == "modes":
            letters, values = mode_change(event.whom)
            yield self.line(event, event.name, extra, "MODE", room, letters, *values)
        elif event.change in {"invited", "asked"}:
            if event.change == "invited" or self.details & Detail.INVITE:
                yield self.line(event, event.name, extra, "INVITE", event.whom, room)
        elif event.change in _CHANGES:
            kind, pattern = event.subject
            whom = shown_mask(kind, pattern, mutes="muted" in event.change) if kind else event.whom
            yield self.line(event, event.name, extra, "MODE", room, _CHANGES[event.change], whom)
        else:
            yield self._notice(event, extra, room)

    def _notice(self, event: Event, extra: str, target: str = "*") -> str:
        text = wording(event).removeprefix("* ")
        return format_message("NOTICE", target, text, source=self.server, tags=self.tags(event, extra))


def _simple(command: str, name: str, params: Callable[[Any], tuple[str, ...]], wanted: Detail | None = None) -> Any:
    def lines(form: IrcForm, event: Any, extra: str) -> Iterator[str]:
        if wanted is None or form.details & wanted:
            yield form.line(event, getattr(event, name), extra, command, *params(event))

    return lines


def _closing(_form: IrcForm, event: Event, _extra: str) -> Iterator[str]:
    yield format_message("ERROR", f"Closing link: {wording(event).removeprefix('* ')}")


def _news(form: IrcForm, event: Event, extra: str) -> Iterator[str]:
    yield form._notice(event, extra)


def _optional(text: str) -> tuple[str, ...]:
    return (text,) if text else ()


_LINES: dict[type[Event], Callable[[IrcForm, Any, str], Iterator[str]]] = {
    Said: IrcForm._said,
    Acted: IrcForm._said,
    Whispered: IrcForm._whispered,
    Noticed: IrcForm._noticed,
    Tagged: IrcForm._tagged,
    Joined: IrcForm._joined,
    Left: _simple("PART", "name", lambda event: (f"#{event.room}", *_optional(event.why))),
    Departed: _simple("QUIT", "name", lambda event: (event.reason or (f"Quit: {event.why}" if event.why else "Quit"),)),
    Renamed: _simple("NICK", "old", lambda event: (event.new,)),
    Retitled: _simple("TOPIC", "name", lambda event: (f"#{event.room}", event.topic)),
    Kicked: _simple("KICK", "by", lambda event: (f"#{event.room}", event.name, event.why or event.by)),
    Changed: IrcForm._changed,
    Proclaimed: _simple("WALLOPS", "name", lambda event: (event.text,)),
    Away: _simple("AWAY", "name", lambda event: _optional(event.text), Detail.AWAY),
    Identified: _simple("ACCOUNT", "name", lambda event: (event.account or "*",), Detail.ACCOUNT),
    Described: _simple("SETNAME", "name", lambda event: (event.text,), Detail.SETNAME),
    Expelled: _closing,
    Displaced: _closing,
    Stopping: _closing,
    Forgetting: _news,
    Remembering: _news,
}


def mode_change(change: str) -> tuple[str, list[str]]:
    """Return the letters (`+k-n`) and values of a change of modes in the core's words (`+key:sesame +outside`)."""
    signed: dict[str, list[str]] = {"+": [], "-": []}
    values: dict[str, list[str]] = {"+": [], "-": []}
    for each in change.split(" "):
        sign, (name, _, value) = each[0], each[1:].partition(":")
        if name == "outside":
            sign = "-" if sign == "+" else "+"
        signed[sign].append(MODE_LETTERS[name])
        # A limit is unset without its value.
        if name in VALUED_MODES and not (sign == "-" and name == "limit"):
            values[sign].append(value)
    letters = "".join(sign + "".join(names) for sign, names in signed.items() if names)
    return letters, [*values["+"], *values["-"]]


def _parts(text: str, room: int) -> Iterator[str]:
    """Cut a text into parts of at most `room` bytes, at spaces where there are some in the last half of a part."""
    data = text.encode("utf-8", "replace")
    while len(data) > room:
        end = room
        while data[end] & 0xC0 == 0x80:
            end -= 1
        space = data.rfind(b" ", room // 2, end)
        end = space + 1 if space > 0 else end
        yield data[:end].decode()
        data = data[end:]
    yield data.decode()


def _bare_form(form: IrcForm) -> IrcForm:
    """Return a form with the same lines and no tags."""
    return irc_form(form.server, form.details & Detail.EXTENDED_JOIN, form._now)


@lru_cache(maxsize=1024)
def irc_form(server: str, details: Detail, now: Callable[[], float]) -> IrcForm:
    """Return the one `IrcForm` of these details, shared by all connections."""
    return IrcForm(server, details, now)

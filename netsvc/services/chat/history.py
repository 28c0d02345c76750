"""What a member asks of the history of a room (`/history 50`, `/history 2026-12-24 18:00`), and the answer in words."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from netsvc.services.chat.archive import event_of
from netsvc.services.chat.names import ChatError
from netsvc.services.chat.store.interface import Message
from netsvc.services.chat.wording import wording

__all__ = ["MOST_MISSED", "HistoryRequest", "missed", "parse_request", "tell"]

#: Messages that one answer has, at most, and without a number.
_MOST = 200
_USUAL = 20

#: Messages that are counted as missed.
MOST_MISSED = 200

_NUMBER = re.compile(r"[0-9]{1,9}", re.ASCII)
_TIME = re.compile(r"(?:(\d{4}-\d\d-\d\d)(?: |$))? ?(\d{1,2}:\d\d)?", re.ASCII)


class HistoryRequest(NamedTuple):
    """The last `limit` messages, or, with `since` (seconds since 1970), the first ones from then on."""

    limit: int
    since: float | None = None


def parse_request(text: str, now: float) -> HistoryRequest:
    """Return what `/history TEXT` asks for: nothing, a number, a time of the last 24 hours, or a date with or without
    a time, in the zone of the server. Raises `ChatError`.
    """
    text = text.strip()
    if not text:
        return HistoryRequest(_USUAL)
    if _NUMBER.fullmatch(text):
        return HistoryRequest(min(int(text), _MOST))
    found = _TIME.fullmatch(text)
    try:
        if found is None:
            raise ValueError
        date, clock = found.groups()
        today = datetime.fromtimestamp(now)
        hours, minutes = map(int, (clock or "0:00").split(":"))
        day = datetime.fromisoformat(date) if date else today
        moment = day.replace(hour=hours, minute=minutes, second=0, microsecond=0)
        if not date and moment > today:
            moment -= timedelta(days=1)
        return HistoryRequest(_MOST, moment.timestamp())
    except (ValueError, OverflowError, OSError):
        raise ChatError(
            f"usage: /history, /history NUMBER (up to {_MOST}), /history HH:MM or /history YYYY-MM-DD [HH:MM]"
        ) from None


def tell(room: str, messages: Sequence[Message], asked: HistoryRequest) -> list[str]:
    """Return the lines of an answer: each message with its time, in the zone of the server, which the first names."""
    if not messages:
        return [f"* {room} has no messages" + (" since then" if asked.since is not None else "")]
    zone = time.strftime("%Z", time.localtime(messages[-1].time))
    lines = [f"* {len(messages)} message{'s' * (len(messages) != 1)} of {room}, times in {zone}:"]
    lines += [f"({_shown(message.time)}) {wording(event_of(room, message))}" for message in messages]
    if asked.since is not None and len(messages) == asked.limit:
        lines.append(f"* to read on: /history {_shown(messages[-1].time)}")
    return lines


def missed(messages: Sequence[Message], room: str, account: str, since: float, until: float) -> str:
    """Return in words how many of the messages since a time, and before another, others sent; "" for none."""
    count = sum(message.account != account and message.time < until for message in messages)
    if not count:
        return ""
    number = f"more than {MOST_MISSED}" if count > MOST_MISSED else str(count)
    return f"{number} message{'s' * (count != 1)} in {room} since you were here: /history {_shown(since)}"


def _shown(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment))

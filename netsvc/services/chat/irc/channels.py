"""The commands of channels, which are the chat's rooms: `#lobby` is the room `lobby`."""

from __future__ import annotations

from netsvc.services.chat.core import ChatRoom
from netsvc.services.chat.irc.command import IrcCommand
from netsvc.services.chat.irc.form import plain
from netsvc.services.chat.irc.message import IrcMessage
from netsvc.services.chat.irc.past import send_marker
from netsvc.services.chat.irc.session import IrcSession
from netsvc.services.chat.irc.support import MOST_TARGETS
from netsvc.services.chat.names import ChatError
from netsvc.services.chat.rules import EntryError, Role, matches

__all__ = ["CHANNEL_COMMANDS", "find_shown", "send_names"]

_REFUSALS = {"banned": "474", "full": "471", "key": "475", "invite": "473", "registered": "477"}


def find_shown(session: IrcSession, name: str) -> ChatRoom | None:
    """Return a room; answer that there is none."""
    room = session.find_room(name)
    if room is None:
        session.reply("403", name or "*", "No such channel")
    return room


def _find_own(session: IrcSession, name: str) -> ChatRoom | None:
    """Return a room that the client is in; answer that there is none, or that it is not in it."""
    room = find_shown(session, name)
    if room is not None and room not in session.me.rooms:
        session.reply("442", f"#{room.name}", "You're not on that channel")
        return None
    return room


def _join(session: IrcSession, message: IrcMessage) -> None:
    if message.params[0] == "0":
        for room in list(session.me.rooms):
            session.core.leave(session.me, room)
        return
    keys = message.params[1].split(",") if len(message.params) > 1 else []
    names = message.params[0].split(",")
    for name in session.each(names):
        at = names.index(name)
        _join_one(session, name, keys[at] if at < len(keys) else "")


def _join_one(session: IrcSession, name: str, key: str) -> None:
    core, member = session.core, session.me
    if not name.startswith("#"):
        session.reply("403", name or "*", "No such channel")
        return
    if (known := core.rooms.find(name)) is not None and known in member.rooms:
        return
    if len(member.rooms) >= core.options["member-rooms"]:
        session.reply("405", name, "You have joined too many channels")
        return
    try:
        room = core.join(member, name, key)
    except EntryError as error:
        session.reply(_REFUSALS[error.reason], name, str(error))
        return
    except ChatError as error:
        session.reply("403", name, str(error))
        return
    if room.topic:
        _send_topic(session, room)
    if session.has("draft/read-marker"):
        send_marker(session, f"#{room.name}")
    _welcome(session, room)


def _welcome(session: IrcSession, room: ChatRoom) -> None:
    send_names(session, room)
    if session.has("server-time") and not session.has("draft/chathistory") and room.history:
        with session.batch("chathistory", f"#{room.name}") as batch:
            for _, event in room.history:
                batch.add(event)


def _send_topic(session: IrcSession, room: ChatRoom) -> None:
    session.reply("332", f"#{room.name}", room.topic)
    if room.topic_by:
        session.reply("333", f"#{room.name}", room.topic_by, str(int(room.topic_time)))


def send_names(session: IrcSession, room: ChatRoom) -> None:
    """Send who is in a room."""
    _list_names(session, room)
    session.reply("366", f"#{room.name}", "End of /NAMES list")


def _list_names(session: IrcSession, room: ChatRoom) -> None:
    mark = "@" if "secret" in room.rules.modes else "="
    all_of_them, hosts = session.has("multi-prefix"), session.has("userhost-in-names")
    is_in = room in session.me.rooms
    words = [
        session.prefix(room, each, all_of_them=all_of_them) + (session.mask(each) if hosts else each.name)
        for each in room.members
        if is_in or not each.is_invisible
    ]
    session.listed("353", (mark, f"#{room.name}"), words)


def _part(session: IrcSession, message: IrcMessage) -> None:
    why = message.params[1] if len(message.params) > 1 else ""
    for name in session.each(message.params[0].split(",")):
        if (room := _find_own(session, name)) is not None:
            session.core.leave(session.me, room, plain(why))


def _topic(session: IrcSession, message: IrcMessage) -> None:
    name = message.params[0]
    if len(message.params) == 1:
        room = find_shown(session, name)
        if room is None:
            return
        if not session.sees(room):
            session.reply("442", f"#{room.name}", "You're not on that channel")
        elif room.topic:
            _send_topic(session, room)
        else:
            session.reply("331", f"#{room.name}", "No topic is set")
        return
    room = _find_own(session, name)
    if room is None:
        return
    if "topic" in room.rules.modes and not _operates(session, room):
        return
    session.core.retitle(session.me, room, plain(message.params[1]))


def _operates(session: IrcSession, room: ChatRoom) -> bool:
    """Return whether the client operates a room; answer that it does not."""
    if session.core.moderation.role(session.me, room) >= Role.OPERATOR:
        return True
    session.reply("482", f"#{room.name}", "You're not channel operator")
    return False


def _names(session: IrcSession, message: IrcMessage) -> None:
    asked = message.params[0] if message.params else "*"
    for name in asked.split(",")[:MOST_TARGETS]:
        shown = session.find_room(name)
        if shown is not None and session.sees(shown):
            _list_names(session, shown)
            if "," not in asked:
                asked = f"#{shown.name}"
    session.reply("366", asked or "*", "End of /NAMES list")


def _list(session: IrcSession, message: IrcMessage) -> None:
    conditions = message.params[0].split(",") if message.params and message.params[0] else []
    now = session.core.now()
    session.reply("321", "Channel", "Users  Name")
    for room in session.core.rooms:
        if room.members and session.sees(room) and _is_wanted(room, conditions, now):
            session.reply("322", f"#{room.name}", str(len(room.members)), room.topic)
    session.reply("323", "End of /LIST")


def _is_wanted(room: ChatRoom, conditions: list[str], now: float) -> bool:
    """Return whether a room meets the conditions of LIST (ELIST=CMNTU): one of the names, and all of the others."""
    name = f"#{room.name}".casefold()
    names = []
    for condition in conditions:
        kind, sign, number = condition[:1].upper(), condition[:1], condition[1:]
        is_aged = kind in {"C", "T"} and condition[1:2] in {"<", ">"}
        if is_aged:
            sign, number = condition[1], condition[2:]
        if (is_aged or sign in {"<", ">"}) and number.isascii() and number.isdigit():
            value = float(number[:9])
            if is_aged:
                since = room.made if kind == "C" else room.topic_time
                # How many minutes ago; a topic that was never set is older than any.
                measured = (now - since) / 60
            else:
                measured = len(room.members)
            if not (measured < value if sign == "<" else measured > value):
                return False
        elif condition[:1] == "!":
            if matches(condition[1:].casefold(), name):
                return False
        else:
            names.append(condition.casefold())
    return not names or any(matches(each, name) for each in names)


def _kick(session: IrcSession, message: IrcMessage) -> None:
    names, why = message.params[1].split(","), message.params[2] if len(message.params) > 2 else ""
    channels = message.params[0].split(",")
    # One channel for all names, or one for each.
    for number, name in enumerate(session.each(names[:MOST_TARGETS])):
        channel = channels[number] if len(channels) == len(names) else channels[0]
        room = _find_own(session, channel)
        if room is None or not _operates(session, room):
            if len(channels) == 1:
                return
            continue
        other = session.find_member(name)
        if other is None:
            session.reply("401", name or "*", "No such nick")
        elif room not in other.rooms:
            session.reply("441", other.name, f"#{room.name}", "They aren't on that channel")
        else:
            session.core.moderation.kick(session.me, room, other, plain(why))


def _invite(session: IrcSession, message: IrcMessage) -> None:
    if not message.params:
        for each in session.core.rooms:
            if each.rules.is_invited(session.me):
                session.reply("336", f"#{each.name}")
        session.reply("337", "End of /INVITE list")
        return
    if len(message.params) == 1:
        session.reply("461", "INVITE", "Not enough parameters")
        return
    name, channel = message.params[:2]
    other = session.find_member(name)
    if other is None:
        session.reply("401", name, "No such nick")
        return
    room = _find_own(session, channel)
    if room is None:
        return
    if room in other.rooms:
        session.reply("443", other.name, f"#{room.name}", "is already on channel")
        return
    if room.rules.modes & {"invite", "registered"} and not _operates(session, room):
        return
    session.core.moderation.invite(session.me, room, other)
    session.reply("341", other.name, f"#{room.name}")
    if other.away:
        session.reply("301", other.name, other.away)


CHANNEL_COMMANDS = {
    "JOIN": IrcCommand(_join, 1),
    "PART": IrcCommand(_part, 1),
    "TOPIC": IrcCommand(_topic, 1),
    "NAMES": IrcCommand(_names),
    "LIST": IrcCommand(_list),
    "KICK": IrcCommand(_kick, 2),
    "INVITE": IrcCommand(_invite),
}

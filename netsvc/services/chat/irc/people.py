"""The commands about members: who is where, who is who, who comes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from netsvc.services.chat.core import ChatRoom, Member
from netsvc.services.chat.irc.command import IrcCommand
from netsvc.services.chat.irc.masks import full_mask
from netsvc.services.chat.irc.message import IrcMessage
from netsvc.services.chat.irc.session import IrcSession
from netsvc.services.chat.irc.support import MOST_MONITORED
from netsvc.services.chat.rules import Role, matches

__all__ = ["PEOPLE_COMMANDS"]

#: Members in an answer to WHO with a mask.
_MOST_FOUND = 500
_ORDER = "tcuihsnfdlaor"


def _who(session: IrcSession, message: IrcMessage) -> None:
    mask = message.params[0] if message.params else "*"
    more = message.params[1] if len(message.params) > 1 else ""
    fields, _, token = more.partition("%")[2].partition(",") if "%" in more else ("", "", "")
    only_operators = "o" in more.partition("%")[0]
    room = session.find_room(mask)
    for member in _found(session, mask, room):
        if only_operators and not session.core.moderation.is_server_operator(member):
            continue
        _describe(session, member, room or _shared_room(session, member), fields, token)
    session.reply("315", mask or "*", "End of /WHO list")


def _found(session: IrcSession, mask: str, room: ChatRoom | None) -> Iterator[Member]:
    if mask.startswith("#"):
        if room is not None and session.sees(room):
            is_in = room in session.me.rooms
            yield from (each for each in room.members if is_in or not each.is_invisible)
        return
    exact = session.find_member(mask)
    if exact is not None:
        yield exact
        return
    if "*" not in mask and "?" not in mask and mask != "0":
        return
    wanted = full_mask("*" if mask == "0" else mask).casefold()
    count = 0
    for member in session.core.members:
        if matches(wanted, member.mask) and (not member.is_invisible or session.shares_room(member)):
            yield member
            count += 1
            if count >= _MOST_FOUND:
                return


def _shared_room(session: IrcSession, member: Member) -> ChatRoom | None:
    """Return a room of a member that the client may know of."""
    return next((room for room in member.rooms if session.sees(room)), None)


def _describe(session: IrcSession, member: Member, room: ChatRoom | None, fields: str, token: str) -> None:
    channel = f"#{room.name}" if room is not None else "*"
    flags = "G" if member.away else "H"
    flags += "*" * session.core.moderation.is_server_operator(member) + "B" * member.source.is_bot
    if room is not None:
        flags += session.prefix(room, member, all_of_them=session.has("multi-prefix"))
    user, host = member.source.user, member.source.host
    if not fields:
        real_name = f"0 {member.real_name}"
        session.reply("352", channel, user, host, session.server, member.name, flags, real_name)
        return
    operates = room is not None and room.rules.role(member) >= Role.OPERATOR
    values = {
        "t": token[:3] or "0",
        "c": channel,
        "u": user,
        "i": "255.255.255.255",
        "h": host,
        "s": session.server,
        "n": member.name,
        "f": flags,
        "d": "0",
        "l": str(_idle(session, member)),
        "a": member.source.account or "0",
        "o": "0" if operates else "n/a",
        "r": member.real_name,
    }
    session.reply("354", *(values[each] for each in _ORDER if each in fields))


def _idle(session: IrcSession, member: Member) -> int:
    return max(0, int(session.core.now() - member.spoke))


def _whois(session: IrcSession, message: IrcMessage) -> None:
    if not message.params or not message.params[-1]:
        session.reply("431", "No nickname given")
        return
    if len(message.params) > 1 and message.params[0].casefold() != session.server.casefold():
        target = session.find_member(message.params[0])
        if target is None:
            session.reply("402", message.params[0] or "*", "No such server")
            return
    name = message.params[-1].split(",")[0]
    member = session.find_member(name)
    if member is None:
        session.reply("401", name or "*", "No such nick")
        session.reply("318", name or "*", "End of /WHOIS list")
        return
    name = member.name
    session.reply("311", name, member.source.user, member.source.host, "*", member.real_name)
    rooms = [room for room in member.rooms if _shows(session, member, room)]
    every = session.has("multi-prefix")
    session.listed(
        "319", (name,), (session.prefix(room, member, all_of_them=every) + f"#{room.name}" for room in rooms)
    )
    session.reply("312", name, session.server, "netsvc chat")
    if member.away:
        session.reply("301", name, member.away)
    if session.core.moderation.is_server_operator(member):
        session.reply("313", name, "is an IRC operator")
    if member.source.account:
        session.reply("330", name, member.source.account, "is logged in as")
    if member.source.is_bot:
        session.reply("335", name, "is a bot")
    if member is session.me or session.is_operator:
        peer = member.peer.removesuffix("/64")
        session.reply("378", name, f"is connecting from {member.source.user}@{peer} {peer}")
        session.reply("379", name, f"is using modes {user_modes(session, member)}")
    if member.outlet.is_encrypted:
        session.reply("671", name, "is using a secure connection")
    session.reply("317", name, str(_idle(session, member)), str(int(member.entered)), "seconds idle, signon time")
    session.reply("318", name, "End of /WHOIS list")


def _shows(session: IrcSession, member: Member, room: ChatRoom) -> bool:
    if room in session.me.rooms or session.is_operator:
        return True
    return "secret" not in room.rules.modes and not member.is_invisible


def user_modes(session: IrcSession, member: Member) -> str:
    """Return the modes of a member."""
    is_operator = session.core.moderation.is_server_operator(member)
    return "+" + "B" * member.source.is_bot + "i" * member.is_invisible + "o" * is_operator


def _whowas(session: IrcSession, message: IrcMessage) -> None:
    if not message.params or not message.params[0]:
        session.reply("431", "No nickname given")
        return
    name = message.params[0]
    count = message.params[1] if len(message.params) > 1 else ""
    most = int(count[:4]) if count.isascii() and count.isdigit() else 0
    found = session.core.presence.former(session.core.key_of(name) or "")
    for each in found[:most] if most > 0 else found:
        session.reply("314", each.name, each.source.user, each.source.host, "*", each.real_name)
        session.reply(
            "312", each.name, session.server, time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(each.until))
        )
    if not found:
        session.reply("406", name, "There was no such nickname")
    session.reply("369", name, "End of WHOWAS")


def _userhost(session: IrcSession, message: IrcMessage) -> None:
    found = [member for name in message.params[:5] if (member := session.find_member(name)) is not None]
    is_operator = session.core.moderation.is_server_operator
    words = [
        f"{each.name}{'*' * is_operator(each)}={'-' if each.away else '+'}{each.source.user}@{each.source.host}"
        for each in found
    ]
    session.reply("302", " ".join(words))


def _ison(session: IrcSession, message: IrcMessage) -> None:
    names = " ".join(message.params).split(" ")[:100]
    found = [member.name for name in names if (member := session.find_member(name)) is not None]
    session.reply("303", " ".join(found))


def _monitor(session: IrcSession, message: IrcMessage) -> None:
    verb = message.params[0][:1].upper()
    names = message.params[1].split(",") if len(message.params) > 1 else []
    verbs: dict[str, Callable[[IrcSession, list[str]], None]] = {"+": _watch, "-": _unwatch, "C": _clear, "S": _status}
    if verb in verbs:
        verbs[verb](session, names)
    elif verb == "L":
        session.listed("732", (), _with_commas(session.watched.values()))
        session.reply("733", "End of MONITOR list")


def _watch(session: IrcSession, names: list[str]) -> None:
    added = []
    for number, name in enumerate(names):
        key = session.core.key_of(name)
        # A mask is no name.
        if not key or set(name) & set(" *?!@"):
            continue
        if key not in session.watched:
            if len(session.watched) >= MOST_MONITORED:
                session.reply("734", str(MOST_MONITORED), ",".join(names[number:]), "Monitor list is full.")
                break
            session.watched[key] = name
            closely = session.has("extended-monitor")
            session.core.presence.watch(key, session.me.deliver, closely=closely)
            added.append(key)
        else:
            continue
    _tell(session, added)


def _unwatch(session: IrcSession, names: list[str]) -> None:
    for name in names:
        key = session.core.key_of(name) or ""
        if session.watched.pop(key, None) is not None:
            session.core.presence.unwatch([key], session.me.deliver)


def _clear(session: IrcSession, _names: list[str]) -> None:
    session.core.presence.unwatch(session.watched, session.me.deliver)
    session.watched.clear()


def _status(session: IrcSession, _names: list[str]) -> None:
    _tell(session, session.watched)


def _tell(session: IrcSession, keys: Iterable[str]) -> None:
    here, gone = [], []
    for key in keys:
        member = session.core.get(key)
        if member is not None:
            here.append(session.mask(member))
        else:
            gone.append(session.watched[key])
    session.listed("730", (), _with_commas(here))
    session.listed("731", (), _with_commas(gone))


def _with_commas(words: Iterable[str]) -> Iterator[str]:
    """Iterate over the words, some with commas between them as one."""
    line: list[str] = []
    for word in words:
        if sum(map(len, line)) + len(word) > 300:
            yield ",".join(line)
            line = []
        line.append(word)
    if line:
        yield ",".join(line)


PEOPLE_COMMANDS = {
    "WHO": IrcCommand(_who),
    "WHOIS": IrcCommand(_whois),
    "WHOWAS": IrcCommand(_whowas),
    "USERHOST": IrcCommand(_userhost, 1),
    "ISON": IrcCommand(_ison, 1),
    "MONITOR": IrcCommand(_monitor, 1),
}

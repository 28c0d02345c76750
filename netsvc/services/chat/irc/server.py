"""The commands about the server, and for its operators."""

from __future__ import annotations

import time

from twisted.internet.defer import Deferred

from netsvc.services.chat.irc.command import IrcCommand
from netsvc.services.chat.irc.form import plain
from netsvc.services.chat.irc.message import IrcMessage, format_message
from netsvc.services.chat.irc.session import IrcSession
from netsvc.services.chat.irc.support import support
from netsvc.services.chat.names import ChatError

__all__ = ["SERVER_COMMANDS", "send_motd", "send_users"]


def send_users(session: IrcSession) -> None:
    """Send the numbers of members and rooms."""
    core = session.core
    members = list(core.members)
    invisible = sum(member.is_invisible for member in members)
    operators = sum(core.moderation.is_server_operator(member) for member in members)
    rooms = sum(bool(room.members) for room in core.rooms)
    visible, count = len(members) - invisible, len(members)
    session.reply("251", f"There are {visible} users and {invisible} invisible on 1 servers")
    if operators:
        session.reply("252", str(operators), "operator(s) online")
    if rooms:
        session.reply("254", str(rooms), "channels formed")
    session.reply("255", f"I have {count} clients and 0 servers")
    most = max(core.most_members, count)
    session.reply("265", str(count), str(most), f"Current local users {count}, max {most}")
    session.reply("266", str(count), str(most), f"Current global users {count}, max {most}")


def send_motd(session: IrcSession) -> None:
    """Send the message of the day."""
    session.reply("422", "MOTD is missing: this chat has none")


def _is_here(session: IrcSession, message: IrcMessage, at: int = 0) -> bool:
    """Return whether a command is for this server, after refusing it if it is not."""
    target = message.params[at] if len(message.params) > at else ""
    if not target or target.casefold() == session.server.casefold() or target == "*":
        return True
    if session.find_member(target) is not None:
        return True
    session.reply("402", target, "No such server")
    return False


def _motd(session: IrcSession, message: IrcMessage) -> None:
    if _is_here(session, message):
        send_motd(session)


def _lusers(session: IrcSession, _message: IrcMessage) -> None:
    send_users(session)


def _version(session: IrcSession, message: IrcMessage) -> None:
    if not _is_here(session, message):
        return
    session.reply("351", "netsvc", session.server, "netsvc chat")
    tokens = support(session.options)
    for start in range(0, len(tokens), 13):
        session.reply("005", *tokens[start : start + 13], "are supported by this server")


def _time(session: IrcSession, message: IrcMessage) -> None:
    if _is_here(session, message):
        now = session.core.now()
        shown = time.strftime("%A %B %d %Y, %H:%M:%S %z", time.localtime(now))
        session.reply("391", session.server, shown)


def _info(session: IrcSession, message: IrcMessage) -> None:
    if _is_here(session, message):
        session.reply("371", "netsvc: rooms for nc, telnet and clients of IRC")
        session.reply("374", "End of /INFO list")


def _admin(session: IrcSession, message: IrcMessage) -> None:
    if _is_here(session, message):
        session.reply("423", session.server, "No administrative info available")


def _links(session: IrcSession, message: IrcMessage) -> None:
    mask = message.params[-1] if message.params else "*"
    session.reply("365", mask, "End of /LINKS list")


def _oper(session: IrcSession, message: IrcMessage) -> Deferred[None]:
    name, password = message.params[:2]
    if not (session.outlet.is_confidential or session.options["plain-passwords"]):
        raise ChatError("others could read your password on its way; connect with TLS, and change that password")

    def operates(_result: None) -> None:
        session.reply("381", "You are now an IRC operator")
        session.answer(format_message("MODE", session.name, "+o", source=session.mask(session.me)))

    def refused(failure: object) -> None:
        error = failure.trap(ChatError) and failure.value  # type: ignore[attr-defined]
        session.reply("464", str(error))

    return session.core.operate(session.me, name, password).addCallbacks(operates, refused)


def _kill(session: IrcSession, message: IrcMessage) -> None:
    name, why = message.params[0], message.params[1] if len(message.params) > 1 else ""
    if not _is_permitted(session):
        return
    other = session.find_member(name)
    if other is None:
        session.reply("401", name, "No such nick")
        return
    session.core.moderation.disconnect(session.me, other, why)


def _is_permitted(session: IrcSession) -> bool:
    """Return whether the client operates the chat; answer that it does not."""
    if not session.is_operator:
        session.reply("481", "Permission Denied- You're not an IRC operator")
    return session.is_operator


def _wallops(session: IrcSession, message: IrcMessage) -> None:
    if _is_permitted(session):
        session.core.proclaim(session.me, plain(message.params[0]))


SERVER_COMMANDS = {
    "MOTD": IrcCommand(_motd),
    "LUSERS": IrcCommand(_lusers),
    "VERSION": IrcCommand(_version),
    "TIME": IrcCommand(_time),
    "INFO": IrcCommand(_info),
    "ADMIN": IrcCommand(_admin),
    "LINKS": IrcCommand(_links),
    "OPER": IrcCommand(_oper, 2),
    "KILL": IrcCommand(_kill, 1),
    "WALLOPS": IrcCommand(_wallops, 1),
}

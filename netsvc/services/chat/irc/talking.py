"""The commands with which a member speaks, or says how it is."""

from __future__ import annotations

from netsvc.services.chat.core import ChatRoom
from netsvc.services.chat.irc.command import IrcCommand
from netsvc.services.chat.irc.form import plain
from netsvc.services.chat.irc.message import LONGEST_LINE, IrcMessage, join_tags
from netsvc.services.chat.irc.session import IrcSession
from netsvc.services.chat.irc.support import MOST_TARGETS
from netsvc.services.chat.names import ChatError, EmptyTextError
from netsvc.services.chat.room import Member
from netsvc.services.chat.text import clean_text

__all__ = ["STATE_COMMANDS", "TALKING_COMMANDS"]


def _client_tags(session: IrcSession, message: IrcMessage) -> str:
    """Return the tags that are for other clients."""
    if not message.tags or not session.has("message-tags"):
        return ""
    return join_tags({key: clean_text(value) for key, value in message.tags.items() if key.startswith("+")})


def _privmsg(session: IrcSession, message: IrcMessage) -> None:
    if not message.params or not message.params[0]:
        session.reply("411", "No recipient given (PRIVMSG)")
        return
    if len(message.params) < 2 or not message.params[1]:
        session.reply("412", "No text to send")
        return
    targets = message.params[0].split(",")
    if len(targets) > MOST_TARGETS:
        session.reply("407", message.params[0][:100], f"Too many recipients: {MOST_TARGETS} at a time")
        return
    for target in session.each(targets):
        _say(session, target, message.params[1], _client_tags(session, message))


def _say(session: IrcSession, target: str, text: str, tags: str) -> None:
    core, member = session.core, session.me
    acted = text.startswith("\x01ACTION ")
    if acted:
        text = text[8:].removesuffix("\x01")
    elif text.startswith("\x01"):
        session.reply("404", target, "Not sent: of CTCP, only ACTION is passed on")
        return
    text = plain(text)
    to = _receiver(session, target)
    if to is None or _is_too_long(session, "PRIVMSG", to, f"\x01ACTION {text}\x01" if acted else text):
        return
    try:
        if isinstance(to, ChatRoom):
            (core.act if acted else core.say)(member, to, text, tags)
            session.expect_echo()
        else:
            core.whisper(member, to, text, tags, acted=acted)
            if to.away:
                session.reply("301", to.name, to.away)
    except EmptyTextError:
        session.reply("412", "No text to send")
    except ChatError as error:
        session.reply("404", target, str(error))


def _is_too_long(session: IrcSession, verb: str, to: ChatRoom | Member, text: str) -> bool:
    """Return whether a message is too long for lines with its source before it; answer that it is."""
    target = f"#{to.name}" if isinstance(to, ChatRoom) else to.name
    line = f":{session.mask(session.me)} {verb} {target} :{text}"
    if len(line.encode("utf-8", "replace")) <= LONGEST_LINE - 2:
        return False
    session.reply("417", "Input line was too long: for its receivers, your name is before it")
    return True


def _receiver(session: IrcSession, target: str, *, tells: bool = True) -> ChatRoom | Member | None:
    """Return the room or member that a target names; answer that there is none, if `tells`."""
    to: ChatRoom | Member | None
    to = session.find_room(target) if target.startswith("#") else session.find_member(target)
    if to is None and tells:
        if target.startswith("#"):
            session.reply("403", target, "No such channel")
        else:
            session.reply("401", target or "*", "No such nick")
    return to


def _notice(session: IrcSession, message: IrcMessage) -> None:
    # A notice is never answered (RFC 1459, section 4.4.2).
    if len(message.params) < 2 or message.params[1].startswith("\x01"):
        return
    for target in session.each(message.params[0].split(",")[:MOST_TARGETS]):
        to = _receiver(session, target, tells=False)
        if to is not None and not _is_too_long(session, "NOTICE", to, message.params[1]):
            try:
                session.core.notify(session.me, to, plain(message.params[1]), _client_tags(session, message))
            except ChatError:
                continue


def _tagmsg(session: IrcSession, message: IrcMessage) -> None:
    if not message.params:
        session.reply("461", "TAGMSG", "Not enough parameters")
        return
    tags = _client_tags(session, message)
    if not tags:
        return
    for target in session.each(message.params[0].split(",")[:MOST_TARGETS]):
        to = _receiver(session, target)
        if to is not None:
            try:
                session.core.tag(session.me, to, tags)
            except ChatError as error:
                session.reply("404", target, str(error))


def _away(session: IrcSession, message: IrcMessage) -> None:
    text = plain(message.params[0]) if message.params else ""
    if text != session.me.away:
        session.core.set_away(session.me, text)
    if text:
        session.reply("306", "You have been marked as being away")
    else:
        session.reply("305", "You are no longer marked as being away")


def _setname(session: IrcSession, message: IrcMessage) -> None:
    if not session.has("setname"):
        session.reply("421", "SETNAME", "Unknown command")
    elif not message.params[0]:
        session.fail("SETNAME", "INVALID_REALNAME", "Real name is not valid")
    else:
        session.core.describe(session.me, plain(message.params[0]))


TALKING_COMMANDS = {
    "PRIVMSG": IrcCommand(_privmsg),
    "NOTICE": IrcCommand(_notice),
    "TAGMSG": IrcCommand(_tagmsg),
}
#: How it is.
STATE_COMMANDS = {
    "AWAY": IrcCommand(_away),
    "SETNAME": IrcCommand(_setname, 1),
}

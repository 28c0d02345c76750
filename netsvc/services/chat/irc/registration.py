"""The commands of a connection: its capabilities, its name, its registration, its end."""

from __future__ import annotations

import re
from hmac import compare_digest

from netsvc.services.chat.irc.command import IrcCommand
from netsvc.services.chat.irc.message import LONGEST_LINE, IrcMessage, format_message
from netsvc.services.chat.irc.server import send_motd, send_users
from netsvc.services.chat.irc.session import CAPABILITIES, IrcSession
from netsvc.services.chat.irc.support import CHANNEL_MODES, USER_MODES, support
from netsvc.services.chat.moderation import LONGEST_REASON
from netsvc.services.chat.names import ChatError, NameTakenError
from netsvc.services.chat.text import clean_text

__all__ = ["REGISTRATION_COMMANDS"]

#: What a user name may have; it is only shown.
_NOT_USER = re.compile(r"[^A-Za-z0-9._-]+", re.ASCII)
_LONGEST_USER = 10
#: Seconds that a client with STS connects over TLS only.
_STS_DURATION = 30 * 86400


def offered(session: IrcSession) -> dict[str, str]:
    """Return the capabilities that this client can have, with their values."""
    values = dict.fromkeys(CAPABILITIES, "")
    if session.outlet.is_confidential or session.options["plain-passwords"]:
        values |= {"sasl": "PLAIN", "draft/account-registration": ""}
    if port := session.options["irc-sts-port"]:
        values["sts"] = f"duration={_STS_DURATION}" if session.outlet.is_encrypted else f"port={port}"
    return dict(sorted(values.items()))


def _cap(session: IrcSession, message: IrcMessage) -> None:
    verb = message.params[0].upper()
    if verb in {"LS", "REQ"} and session.member is None:
        session.negotiates = True
    if verb == "LS":
        _list_capabilities(session, message.params[1] if len(message.params) > 1 else "")
    elif verb == "LIST":
        _send_capabilities(session, "LIST", sorted(session.capabilities))
    elif verb == "REQ" and len(message.params) > 1:
        _request(session, message.params[1])
    elif verb == "END":
        if session.member is None:
            session.negotiates = False
            _register(session)
    else:
        session.reply("410", verb[:50], "Invalid CAP command")


def _list_capabilities(session: IrcSession, version: str) -> None:
    if version.isascii() and version.isdigit():
        session.version = max(session.version, int(version[:4]))
    if session.version >= 302:
        session.capabilities.add("cap-notify")
    values = offered(session)
    words = [f"{name}={value}" if value and session.version >= 302 else name for name, value in values.items()]
    _send_capabilities(session, "LS", words)


def _send_capabilities(session: IrcSession, verb: str, words: list[str]) -> None:
    lines: list[list[str]] = [[]]
    size = 0
    for word in words:
        if size + len(word) > LONGEST_LINE - 150:
            lines.append([])
            size = 0
        lines[-1].append(word)
        size += len(word) + 1
    for number, line in enumerate(lines):
        # A client of an earlier version knows one line only.
        more = ["*"] if number < len(lines) - 1 and session.version >= 302 else []
        session.answer(format_message("CAP", session.name, verb, *more, " ".join(line), source=session.server))


def _request(session: IrcSession, text: str) -> None:
    known = offered(session)
    wanted = set(session.capabilities)
    is_known = True
    for word in text.split():
        name = word.removeprefix("-")
        # A client of version 302 always hears of changes.
        is_fixed = name == "sts" or (word == "-cap-notify" and session.version >= 302)
        is_known = is_known and name in known and not is_fixed
        wanted.discard(name) if word[0] == "-" else wanted.add(name)
    verb = "ACK" if is_known else "NAK"
    if is_known:
        session.change_capabilities(wanted)
    session.answer(format_message("CAP", session.name, verb, text, source=session.server))


def _nick(session: IrcSession, message: IrcMessage) -> None:
    nick = message.params[0] if message.params else ""
    if not nick:
        session.reply("431", "No nickname given")
        return
    member = session.member
    try:
        if member is None:
            session.nick = session.core.check_free(nick, session.outlet.peer, session.account)
        elif nick != member.name:
            session.core.rename(member, nick)
    except NameTakenError as error:
        may_log_in = member is None and session.negotiates and "sasl" in offered(session)
        if may_log_in and session.core.accounts.owner(nick) is not None:
            # Clients send their name before they log in to its account.
            session.nick = nick
        else:
            session.reply("433", nick[:100], str(error))
    except ChatError as error:
        session.reply("432", nick[:100], str(error))
    else:
        _register(session)


def _user(session: IrcSession, message: IrcMessage) -> None:
    if session.member is not None:
        session.reply("462", "You may not reregister")
        return
    user, real_name = message.params[0], message.params[3]
    if not user or not real_name:
        session.reply("461", "USER", "Not enough parameters")
        return
    session.user = "~" + (_NOT_USER.sub("", user)[:_LONGEST_USER] or "user")
    session.real_name = clean_text(real_name)[:LONGEST_REASON]
    _register(session)


def _pass(session: IrcSession, message: IrcMessage) -> None:
    if session.member is not None:
        session.reply("462", "You may not reregister")
        return
    session.password = message.params[0]


def _register(session: IrcSession) -> None:
    """Enter the chat, if the client has said all that it must."""
    if session.member is not None or session.negotiates or not session.nick or not session.user:
        return
    core = session.core
    if core.password and not compare_digest(core.password.encode(), session.password.encode("utf-8", "replace")):
        session.reply("464", "Password incorrect")
        _close(session, "the password is wrong or missing")
        return
    try:
        user, real_name = session.user, session.real_name
        member = core.enter(session.outlet, session.nick, session.account, user=user, real_name=real_name)
    except NameTakenError as error:
        session.reply("433", session.nick, str(error))
        session.nick = ""
        return
    except ChatError as error:
        _close(session, str(error))
        return
    session.member = member
    session.note_registered()
    options, server = session.options, session.server
    session.reply("001", f"Welcome to the {server} chat, {session.mask(member)}")
    session.reply("002", f"Your host is {server}, running netsvc")
    session.reply("003", "This server has rooms that clients of other protocols share")
    session.reply("004", server, "netsvc", USER_MODES, CHANNEL_MODES, "beIklov")
    tokens = support(options)
    for start in range(0, len(tokens), 13):
        session.reply("005", *tokens[start : start + 13], "are supported by this server")
    send_users(session)
    send_motd(session)
    session.reply("221", "+")


def _close(session: IrcSession, reason: str) -> None:
    session.answer(format_message("ERROR", f"Closing link: {reason}"))
    session.over = True


def _quit(session: IrcSession, message: IrcMessage) -> None:
    session.farewell = message.params[0] if message.params else ""
    _close(session, "goodbye")


def _ping(session: IrcSession, message: IrcMessage) -> None:
    if not message.params[0]:
        session.reply("409", "No origin specified")
        return
    session.answer(format_message("PONG", session.server, message.params[0], source=session.server))


def _pong(_session: IrcSession, _message: IrcMessage) -> None:
    """Do nothing: that the client has sent something is all there is to know."""


REGISTRATION_COMMANDS = {
    "CAP": IrcCommand(_cap, 1, True),
    "NICK": IrcCommand(_nick, 0, True),
    "USER": IrcCommand(_user, 4, True),
    "PASS": IrcCommand(_pass, 1, True),
    "QUIT": IrcCommand(_quit, 0, True),
    "PING": IrcCommand(_ping, 1, True),
    "PONG": IrcCommand(_pong, 0, True),
}

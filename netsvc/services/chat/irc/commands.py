"""All commands of IRC, and how one is run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from netsvc.services.chat.irc.accounts import ACCOUNT_COMMANDS_OF_IRC
from netsvc.services.chat.irc.channels import CHANNEL_COMMANDS
from netsvc.services.chat.irc.command import IrcCommand
from netsvc.services.chat.irc.message import IrcMessage, IrcMessageError
from netsvc.services.chat.irc.modes import MODE_COMMANDS
from netsvc.services.chat.irc.past import PAST_COMMANDS
from netsvc.services.chat.irc.people import PEOPLE_COMMANDS
from netsvc.services.chat.irc.registration import REGISTRATION_COMMANDS
from netsvc.services.chat.irc.server import SERVER_COMMANDS
from netsvc.services.chat.irc.session import IrcSession
from netsvc.services.chat.irc.talking import STATE_COMMANDS, TALKING_COMMANDS
from netsvc.services.chat.names import ChatError
from netsvc.services.chat.store.interface import StoreError

__all__ = ["IRC_COMMANDS", "run"]


def _help(session: IrcSession, message: IrcMessage) -> None:
    subject = (message.params[0] if message.params else "") or "*"
    if subject != "*" and subject.upper() not in IRC_COMMANDS:
        session.reply("524", subject, "I know nothing about this")
        return
    session.reply("704", subject, "Commands of this server:")
    session.listed("705", (subject,), sorted(IRC_COMMANDS))
    session.reply("706", subject, "End of /HELP")


IRC_COMMANDS: Mapping[str, IrcCommand] = {
    **REGISTRATION_COMMANDS,
    **ACCOUNT_COMMANDS_OF_IRC,
    **CHANNEL_COMMANDS,
    **MODE_COMMANDS,
    **TALKING_COMMANDS,
    **STATE_COMMANDS,
    **PEOPLE_COMMANDS,
    **PAST_COMMANDS,
    **SERVER_COMMANDS,
    "HELP": IrcCommand(_help),
    "HELPOP": IrcCommand(_help),
}
#: What can be said before all earlier messages are kept.
_AT_ONCE = frozenset(TALKING_COMMANDS)


def run(session: IrcSession, line: IrcMessage | IrcMessageError) -> Deferred[None] | None:
    """Do what a message says, and answer it.

    The Deferred, if there is one, fires when it is answered; it never fails. Raises `CongestedError` or
    `UnsettledError`: the same message has to be run again.
    """
    if isinstance(line, IrcMessageError):
        _refuse(session, line)
        return None
    session.begin(line)
    try:
        answer = _run(session, line)
    except ChatError as error:
        _failed(Failure(error), session, line)
    else:
        if answer is not None:
            answer.addErrback(_failed, session, line)
            return answer.addCallback(lambda _: session.finish())
    session.finish()
    return None


def _run(session: IrcSession, message: IrcMessage) -> Deferred[None] | None:
    command = IRC_COMMANDS.get(message.command)
    if session.member is None and (command is None or not command.is_early):
        if message.command == "REGISTER":
            account = message.params[0] if message.params else "*"
            session.fail("REGISTER", "COMPLETE_CONNECTION_REQUIRED", account, "Connect first, then register")
        else:
            session.reply("451", "You have not registered")
        return None
    if session.member is not None and message.command not in _AT_ONCE:
        session.core.archive.check_settled(session.member)
    if command is None:
        session.reply("421", message.command[:50], "Unknown command")
        return None
    if len(message.params) < command.least:
        session.reply("461", message.command, "Not enough parameters")
        return None
    return command.run(session, message)


def _refuse(session: IrcSession, error: IrcMessageError) -> None:
    if error.code == "too long":
        session.reply("417", str(error))
    elif error.code == "encoding":
        session.fail("*", "INVALID_UTF8", str(error))
    elif session.member is None:
        session.reply("451", "You have not registered")
    else:
        session.reply("421", "*", "Unknown command")


def _failed(failure: Failure, session: IrcSession, message: IrcMessage) -> Any:
    if failure.check(ChatError):
        session.reply("400", message.command, str(failure.value))
    elif failure.check(StoreError):
        session.reply("400", message.command, f"This cannot be done now: {failure.value}")
    else:
        session.core.log.failure("an IRC command failed", failure)
        session.reply("400", message.command, "This failed, for a reason that is in the log of the server")

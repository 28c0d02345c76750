"""The commands of accounts: SASL (RFC 4616), and the draft account-registration."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from netsvc.services.chat.irc.command import IrcCommand
from netsvc.services.chat.irc.message import IrcMessage, format_message
from netsvc.services.chat.irc.session import IrcSession
from netsvc.services.chat.names import ChatError, name_key
from netsvc.services.chat.store.interface import AccountRecord, StoreError

__all__ = ["ACCOUNT_COMMANDS_OF_IRC"]

#: Characters of one AUTHENTICATE; a shorter one is the last of a response. And of a whole response.
_CHUNK, _LONGEST = 400, 1600


def _authenticate(session: IrcSession, message: IrcMessage) -> Deferred[None] | None:
    text = message.params[0]
    if not session.has("sasl"):
        session.reply("904", "SASL authentication failed: the capability sasl is missing")
    elif session.exchange is None:
        _begin(session, text)
    elif text == "*":
        session.exchange = None
        session.reply("906", "SASL authentication aborted")
    elif len(text) > _CHUNK or sum(map(len, session.exchange)) + len(text) > _LONGEST:
        session.exchange = None
        session.reply("905", "SASL message too long")
    else:
        if text != "+":
            session.exchange.append(text)
        if text == "+" or len(text) < _CHUNK:
            return _plain(session)
    return None


def _begin(session: IrcSession, mechanism: str) -> None:
    if session.member is not None and session.member.account is not None:
        session.reply("907", "You have already authenticated")
    elif mechanism.upper() != "PLAIN":
        session.reply("908", "PLAIN", "are available SASL mechanisms")
        session.reply("904", "SASL authentication failed")
    else:
        session.exchange = []
        session.answer(format_message("AUTHENTICATE", "+"))


def _plain(session: IrcSession) -> Deferred[None] | None:
    written, session.exchange = "".join(session.exchange or ()), None
    try:
        _, name, password = base64.b64decode(written, validate=True).decode().split("\0")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        session.reply("904", "SASL authentication failed: this is no response of PLAIN")
        return None
    core = session.core
    login: Deferred[Any]
    if session.member is not None:
        login = core.login(session.member, name, password).addCallback(lambda _: session.me.account)
    else:
        login = core.authenticate(name, password, session.outlet.peer)
    answered: Deferred[None] = login.addCallback(_logged_in, session)
    return answered.addErrback(_not_logged_in, session)


def _logged_in(account: object, session: IrcSession) -> Any:
    if not isinstance(account, AccountRecord):
        # It has gone meanwhile.
        return None
    session.account = account
    mask = session.mask(session.member) if session.member is not None else f"{session.nick or '*'}!*@*"
    session.reply("900", mask, account.name, f"You are now logged in as {account.name}")
    session.reply("903", "SASL authentication successful")
    return session.core.markers.load(account.key)


def _not_logged_in(failure: Failure, session: IrcSession) -> None:
    failure.trap(ChatError, StoreError)
    session.reply("904", f"SASL authentication failed: {failure.value}")


def _register(session: IrcSession, message: IrcMessage) -> Deferred[None] | None:
    account, _email, password = message.params[:3]
    member = session.me
    if not (session.outlet.is_confidential or session.options["plain-passwords"]):
        reason = "others could read your password on its way; connect with TLS, and change that password"
        session.fail("REGISTER", "TEMPORARILY_UNAVAILABLE", account, reason)
        return None
    if member.account is not None:
        session.fail("REGISTER", "ALREADY_AUTHENTICATED", account, "You are logged in already")
        return None
    if account != "*" and name_key(account[:256]) != member.key:
        session.fail("REGISTER", "ACCOUNT_NAME_MUST_BE_NICK", account, "Your account name must be your nickname")
        return None
    try:
        registering = session.core.register(member, password)
    except ChatError as error:
        session.fail("REGISTER", "BAD_ACCOUNT_NAME", member.name, str(error))
        return None

    def registered(_result: None) -> Deferred[None] | None:
        made = member.account
        if made is None:
            return None
        text = "Account successfully registered"
        if not session.core.archive.store.is_lasting:
            text += "; this chat keeps nothing, so that it ends when the server is restarted"
        session.answer(format_message("REGISTER", "SUCCESS", made.name, text, source=session.server))
        session.reply("900", session.mask(member), made.name, f"You are now logged in as {made.name}")
        return session.core.markers.load(made.key)

    def refused(failure: Failure) -> None:
        failure.trap(ChatError, StoreError)
        text = str(failure.value)
        code = "ACCOUNT_EXISTS" if session.core.accounts.owner(member.name) else "UNACCEPTABLE_PASSWORD"
        session.fail("REGISTER", code, member.name, text)

    return registering.addCallbacks(registered, refused)


ACCOUNT_COMMANDS_OF_IRC = {
    "AUTHENTICATE": IrcCommand(_authenticate, 1, True),
    "REGISTER": IrcCommand(_register, 3),
}

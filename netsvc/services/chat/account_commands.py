"""The commands for a member's own account, and for what it wants to see."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

from twisted.internet.defer import Deferred

from netsvc.services.chat.core import ChatCore
from netsvc.services.chat.events import Outlet
from netsvc.services.chat.names import ChatError
from netsvc.services.chat.room import ChatRoom, Member
from netsvc.services.chat.view import View

__all__ = ["ACCOUNT_COMMANDS", "Speaker"]

#: Members that one member can ignore.
MOST_IGNORED = 100


class Speaker(Protocol):
    """A member's conversation, as its commands see it: `commands.Conversation`."""

    core: ChatCore
    member: Member
    outlet: Outlet
    view: View

    def here(self) -> ChatRoom:
        """Return the room that plain lines go to. Raises `ChatError` if there is none."""

    def notice(self, *lines: str) -> None:
        """Show lines of the server."""

    def tell_missed(self, rooms: Collection[ChatRoom], until: float) -> Deferred[None] | None:
        """Say how much was sent in rooms since the member's account was last in them, and before `until`."""


def _register(conversation: Speaker, password: str) -> Deferred[None]:
    _check_confidential(conversation)
    member = conversation.member

    def registered(_result: None) -> None:
        conversation.notice(f"the name {member.name} is yours now; next time, say /login {member.name} PASSWORD")
        if not conversation.core.archive.store.is_lasting:
            conversation.notice("this chat keeps nothing: accounts end when the server is restarted")

    return conversation.core.register(member, password).addCallback(registered)


def _login(conversation: Speaker, text: str) -> Deferred[None]:
    _check_confidential(conversation)
    name, _, password = text.partition(" ")
    if not password.strip():
        # With a guest's name, which nobody can register, the password alone is of no use.
        name, password = conversation.member.name, text
    login = conversation.core.login(conversation.member, name, password.strip())

    def logged_in(_result: None) -> Deferred[None] | None:
        conversation.notice(f"you are logged in as {conversation.member.name}")
        account = conversation.member.account
        if account is None:
            return None
        loaded = conversation.core.markers.load(account.key)
        # What came after it had connected was delivered.
        member = conversation.member
        return loaded.addCallback(lambda _: conversation.tell_missed(member.rooms, member.entered))

    return login.addCallback(logged_in)


def _logout(conversation: Speaker, _text: str) -> None:
    conversation.core.logout(conversation.member)
    conversation.notice(f"you are logged out; you are now {conversation.member.name}")


def _password(conversation: Speaker, password: str) -> Deferred[None]:
    _check_confidential(conversation)
    account = conversation.member.account
    if account is None:
        raise ChatError("log in first: /login NAME PASSWORD")
    changing = conversation.core.accounts.change_password(account, password)
    return changing.addCallback(lambda _: conversation.notice("your password is changed"))


def _forget(conversation: Speaker, name: str) -> Deferred[None]:
    account = conversation.member.account
    if account is None:
        raise ChatError("only the messages of an account can be deleted; log in first")
    if conversation.core.key_of(name) != account.key:
        raise ChatError(f"/forget {account.name} deletes all that you have said in rooms while you were logged in")
    return conversation.core.forget(account.key).addCallback(
        lambda count: conversation.notice(f"{count} message{'s' * (count != 1)} of {account.name} deleted")
    )


def _check_confidential(conversation: Speaker) -> None:
    if not (conversation.core.options["plain-passwords"] or conversation.outlet.is_confidential):
        raise ChatError("others could read your password on its way; connect with TLS, and change that password")


def _ignore(conversation: Speaker, name: str) -> None:
    view = conversation.view
    if not name:
        ignored = ", ".join(view.ignored.values())
        conversation.notice(f"you ignore {ignored}" if ignored else "you ignore no one")
        return
    other = conversation.core.find(name)
    if other is conversation.member:
        raise ChatError("you cannot ignore yourself")
    if len(view.ignored) >= MOST_IGNORED:
        raise ChatError(f"you ignore {MOST_IGNORED} members, which is the limit; /unignore NAME")
    view.ignored[other.key] = other.name
    view.changed()
    conversation.notice(f"you ignore {other.name} now; /unignore {other.name} undoes it")


def _unignore(conversation: Speaker, name: str) -> None:
    key = conversation.core.key_of(name)
    if conversation.view.ignored.pop(key or "", None) is None:
        raise ChatError("you do not ignore such a member; /ignore lists those that you do")
    conversation.view.changed()
    conversation.notice(f"you hear {name} again")


def _quiet(conversation: Speaker, _text: str) -> None:
    view = conversation.view
    view.is_quiet = not view.is_quiet
    view.changed()
    conversation.notice(
        "you do not see who joins and leaves now; /quiet undoes it" if view.is_quiet else "you see who joins and leaves"
    )


def _time(conversation: Speaker, _text: str) -> None:
    view = conversation.view
    view.has_times = not view.has_times
    view.changed()
    conversation.notice("lines have times now; /time undoes it" if view.has_times else "lines have no times now")


#: By name: the arguments, the line of help, and what runs it; see `commands.Command`.
ACCOUNT_COMMANDS: dict[str, tuple[str, str, Callable[[Speaker, str], Deferred[None] | None]]] = {
    "register": ("PASSWORD", "register your name, so that it stays yours", _register),
    "login": ("[NAME] PASSWORD", "log in, and get your name back", _login),
    "logout": ("", "log out, and be a guest", _logout),
    "password": ("PASSWORD", "change the password of your account", _password),
    "forget": ("NAME", "delete all that your account has said", _forget),
    "ignore": ("[NAME]", "see nothing of a member, or list those that you ignore", _ignore),
    "unignore": ("NAME", "see a member again", _unignore),
    "quiet": ("", "hide or show who joins and leaves", _quiet),
    "time": ("", "show or hide the times of lines", _time),
}

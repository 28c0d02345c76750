"""What operators of a room may do: kick, ban, mute, invite, choose modes, make operators, register the room."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

from twisted.logger import Logger

from netsvc.base.hosts import is_loopback
from netsvc.base.text import escape
from netsvc.services.chat.cloak import Cloak
from netsvc.services.chat.events import Changed, Delivery, Kicked
from netsvc.services.chat.names import ChatError
from netsvc.services.chat.room import ChatRoom, Member
from netsvc.services.chat.rules import (
    ADMIT,
    BAN,
    EXCEPT,
    LONGEST_KEY,
    MODES,
    MUTE,
    VALUED_MODES,
    Effect,
    Role,
    applies,
    parse_target,
)
from netsvc.services.chat.store.interface import Ban
from netsvc.services.chat.text import clean_text

__all__ = ["LONGEST_REASON", "BanTarget", "Moderation"]

#: Characters of a reason.
LONGEST_REASON = 200
#: What has happened to whom a ban, or the like, was made for, by its effect.
_MADE = {BAN: "banned", MUTE: "muted", EXCEPT: "excepted", ADMIT: "admitted"}
#: Rooms that an account can register.
MOST_REGISTERED = 5


@dataclass(frozen=True, slots=True)
class BanTarget:
    """Whom a ban is for, and its effect: its kind (account, address or name), pattern, and how the room sees it."""

    effect: Effect
    kind: str
    pattern: str
    shown: str


class _Rooms(Protocol):
    def all(self) -> Iterable[ChatRoom]: ...
    def leave(self, room: ChatRoom, member: Member) -> None: ...
    def set_founder(self, room: ChatRoom, account: str) -> None: ...


class _Core(Protocol):
    """What it needs of the core."""

    server_operators: frozenset[str]
    delivery: Delivery

    @property
    def log(self) -> Logger: ...
    @property
    def rooms(self) -> _Rooms: ...
    @property
    def members(self) -> Iterable[Member]: ...
    @property
    def cloak(self) -> Cloak: ...
    def now(self) -> float: ...
    def find(self, name: str) -> Member: ...
    def expel(self, member: Member, by: str, why: str) -> None: ...
    def keep_room(self, room: ChatRoom) -> None: ...


class Moderation:
    """Does what an operator of a room asks, tells the room, keeps it, and logs who did it.

    Each method raises `ChatError` if the member may not, and then has changed nothing. What a moderator does takes
    effect even if it cannot be kept now; it is kept when the store can again.
    """

    def __init__(self, core: _Core) -> None:
        self._core = core

    def role(self, member: Member, room: ChatRoom) -> Role:
        """Return what a member may do in a room."""
        return Role.SERVER if self.is_server_operator(member) else room.rules.role(member)

    def is_server_operator(self, member: Member) -> bool:
        """Return whether a member operates the whole chat."""
        account = member.account
        return member.is_operator or (account is not None and account.key in self._core.server_operators)

    def require(self, member: Member, room: ChatRoom, role: Role = Role.OPERATOR) -> Role:
        """Return a member's role in a room. Raises `ChatError` if it is less than `role`."""
        found = self.role(member, room)
        if found < role:
            what = "the founder" if role is Role.FOUNDER else "an operator"
            raise ChatError(f"you are not {what} of {room.name}")
        return found

    def kick(self, member: Member, room: ChatRoom, other: Member, why: str) -> None:
        """Remove another member from a room; it can come back."""
        self._check_subject(member, room, other)
        if room not in other.rooms:
            raise ChatError(f"{other.name} is not in {room.name}")
        self._remove(member, room, other, _reason(why))
        self._log(member, room, "kicked", other.name, why)

    def disconnect(self, member: Member, other: Member, why: str) -> None:
        """Disconnect another member from the chat; only an operator of the server may."""
        if not self.is_server_operator(member):
            raise ChatError("only an operator of the server can disconnect a member")
        self._core.expel(other, member.name, _reason(why))
        self._log(member, None, "disconnected", other.name, why)

    def target(self, effect: Effect, text: str) -> BanTarget:
        """Return whom a text means: `account:NAME`, `address:NETWORK`, `name:NAME`, or the name of a member.

        A member is banned by its account, or by its address if that is not this machine's; otherwise by its name.
        """
        if parsed := parse_target(text):
            return BanTarget(effect, *parsed, shown=clean_text(text)[:100])
        other = self._core.find(text)
        if other.account is not None:
            return BanTarget(effect, "account", other.account.key, other.name)
        # Behind a UNIX socket or a loopback address, there may be everyone.
        host = other.peer.removesuffix("/64")
        if host[:1].isalnum() and ("." in host or ":" in host) and not is_loopback(host):
            return BanTarget(effect, "address", other.peer, other.name)
        return BanTarget(effect, "name", other.key, other.name)

    def ban(self, member: Member, room: ChatRoom, target: BanTarget, seconds: float | None, why: str) -> None:
        """Ban or mute; a ban removes those from the room that it is for. `seconds`: how long; None for ever."""
        role = self.require(member, room)
        now = self._core.now()
        until = None if seconds is None else now + seconds
        ban = Ban(f"{target.effect} {target.kind}", target.pattern, member.name, now, until, _reason(why))
        rules = room.rules
        keeps_off = target.effect in (BAN, MUTE)
        subject = [other for other in self._core.members if applies(ban, other, now)] if keeps_off else []
        if any(other is member for other in subject):
            raise ChatError("that ban is for yourself, too; make it smaller")
        is_broad = target.kind in {"address", "mask"}
        if not is_broad and any(self.role(other, room) >= max(role, Role.FOUNDER) for other in subject):
            raise ChatError(f"{target.shown} is not subject to your bans")
        rules.add(ban, now)
        change = _MADE[target.effect]
        event = Changed(room.name, member.name, change, target.shown, ban.why, self._subject(target))
        self._tell(room, member, event)
        if target.effect == BAN:
            for other in subject:
                if room in other.rooms and self.role(other, room) < Role.OPERATOR:
                    self._remove(member, room, other, ban.why)
        self._core.keep_room(room)
        self._log(member, room, change, f"{target.kind}:{target.pattern}", why)

    def lift(self, member: Member, room: ChatRoom, target: BanTarget) -> None:
        """Lift a ban."""
        self.require(member, room)
        if not room.rules.lift(target.effect, target.kind, target.pattern):
            raise ChatError(f"there is no such ban in {room.name}; /bans lists them")
        change = f"un{_MADE[target.effect]}"
        event = Changed(room.name, member.name, change, target.shown, subject=self._subject(target))
        self._tell(room, member, event)
        self._core.keep_room(room)
        self._log(member, room, change, f"{target.kind}:{target.pattern}")

    def invite(self, member: Member, room: ChatRoom, other: Member) -> None:
        """Let another member enter a room once, whatever its modes and bans, and tell it."""
        if room not in member.rooms:
            raise ChatError(f"you are not in {room.name}")
        if room.rules.modes & {"invite", "registered"} or room.rules.find(BAN, other, self._core.now()):
            self.require(member, room)
        if room in other.rooms:
            raise ChatError(f"{other.name} is in {room.name} already")
        room.rules.invite(other)
        invited = Changed(room.name, member.name, "invited", other.name, source=member.source)
        self._core.delivery.send((other.deliver,), invited)
        operators = [each.deliver for each in room.members if self.role(each, room) >= Role.OPERATOR]
        self._core.delivery.send(operators, replace(invited, change="asked"), member.deliver)
        self._log(member, room, "invited", other.name)

    def set_operator(self, member: Member, room: ChatRoom, other: Member, *, operates: bool) -> None:
        """Make another member an operator of a room, or no operator any more."""
        role = self.require(member, room)
        if not operates and self.role(other, room) > role:
            raise ChatError(f"{other.name} is not subject to you")
        if operates is (room.rules.role(other) >= Role.OPERATOR):
            raise ChatError(f"{other.name} is {'an' if operates else 'no'} operator of {room.name} already")
        if not operates and room.rules.role(other) is Role.FOUNDER:
            raise ChatError(f"{other.name} has founded {room.name}")
        room.rules.set_operator(other, operates)
        change = "opped" if operates else "deopped"
        self._tell(room, member, Changed(room.name, member.name, change, other.name))
        self._core.keep_room(room)
        self._log(member, room, change, other.name)

    def set_voice(self, member: Member, room: ChatRoom, other: Member, *, speaks: bool) -> None:
        """Let another member of the room speak, whatever its modes, until it leaves; or do not any more."""
        self.require(member, room)
        voiced = room.rules.voiced
        if room not in other.rooms:
            raise ChatError(f"{other.name} is not in {room.name}")
        if speaks is (other in voiced):
            raise ChatError(f"{other.name} {'may' if speaks else 'need not'} speak in {room.name} already")
        voiced.add(other) if speaks else voiced.discard(other)
        change = "voiced" if speaks else "devoiced"
        self._tell(room, member, Changed(room.name, member.name, change, other.name))
        self._log(member, room, change, other.name)

    def set_modes(self, member: Member, room: ChatRoom, changes: Iterable[str]) -> None:
        """Set modes (`+topic`) and unset them (`-topic`)."""
        self.require(member, room)
        modes = set(room.rules.all_modes)
        for change in changes:
            sign, mode = (change[0], change[1:]) if change[:1] in {"+", "-"} else ("+", change)
            name = mode.partition(":")[0]
            if name in VALUED_MODES:
                modes = {each for each in modes if not each.startswith(f"{name}:")}
                if sign == "+":
                    modes.add(check_valued(mode))
                continue
            if mode not in MODES:
                known = ", ".join([*MODES, *(f"{each}:VALUE" for each in VALUED_MODES)])
                raise ChatError(f'no such mode: "{escape(mode, 20)}"; the modes are {known}')
            modes.add(mode) if sign == "+" else modes.discard(mode)
        before = room.rules.all_modes
        if modes == before:
            return
        added = sorted(modes - before)
        # A value that is replaced is not removed.
        removed = [each for each in sorted(before - modes) if f"{each.partition(':')[0]}:" not in "+".join(added)]
        room.rules.set_modes(modes)
        shown = " ".join([*(f"+{name}" for name in added), *(f"-{name}" for name in removed)])
        self._tell(room, member, Changed(room.name, member.name, "modes", shown))
        self._core.keep_room(room)
        self._log(member, room, "set modes", shown)

    def register_room(self, member: Member, room: ChatRoom) -> None:
        """Make a room last: its rules, its topic and its place stay when it is empty."""
        account = member.account
        if account is None:
            raise ChatError("log in first: a room is registered to an account")
        self.require(member, room)
        if room.rules.founder:
            raise ChatError(f"{room.name} is registered already")
        if room.is_permanent:
            raise ChatError(f"{room.name} always exists")
        mine = sum(each.rules.founder == account.key for each in self._core.rooms.all())
        if mine >= MOST_REGISTERED:
            raise ChatError(f"you have registered {mine} rooms, which is the limit; /release one first")
        self._core.rooms.set_founder(room, account.key)
        self._core.keep_room(room)
        self._tell(room, member, Changed(room.name, member.name, "registered", room.name))
        self._log(member, room, "registered", room.name)

    def release_room(self, member: Member, room: ChatRoom) -> None:
        """Undo `register_room`. The room stays until it is empty."""
        self.require(member, room, Role.FOUNDER)
        if not room.rules.founder:
            raise ChatError(f"{room.name} is not registered")
        self._core.rooms.set_founder(room, "")
        self._core.keep_room(room)
        self._tell(room, member, Changed(room.name, member.name, "released", room.name))
        self._log(member, room, "released", room.name)

    def _check_subject(self, member: Member, room: ChatRoom, other: Member) -> None:
        if self.role(other, room) > self.require(member, room):
            raise ChatError(f"{other.name} is not subject to you")
        if other is member:
            raise ChatError("that is yourself")

    def _remove(self, member: Member, room: ChatRoom, other: Member, why: str) -> None:
        everyone = room.everyone
        self._core.rooms.leave(room, other)
        kicked = Kicked(room.name, other.name, member.name, why, source=member.source)
        room.note(kicked, self._core.now())
        member.own(kicked)
        self._core.delivery.send(everyone, kicked, member.deliver)

    def _subject(self, target: BanTarget) -> tuple[str, str]:
        """Return whom a ban is for, as all members may see it: without addresses."""
        if target.kind == "address":
            return "mask", f"*!*@{self._core.cloak.host(target.pattern)}"
        return target.kind, target.pattern

    def _tell(self, room: ChatRoom, member: Member, event: Changed) -> None:
        event = replace(event, source=member.source)
        room.note(event, self._core.now())
        member.own(event)
        self._core.delivery.send(room.everyone, event, member.deliver)

    def _log(self, member: Member, room: ChatRoom | None, change: str, whom: str, why: str = "") -> None:
        self._core.log.info(
            '{moderator} ({account}) {change} "{whom}" in {room}{because}',
            moderator=escape(member.name),
            account=escape(member.account.name) if member.account is not None else "no account",
            change=change,
            whom=escape(whom),
            room=escape(room.name) if room is not None else "the chat",
            because=f": {escape(_reason(why))}" if why else "",
        )


def check_valued(mode: str) -> str:
    """Return a mode with a value (`limit:10`). Raises `ChatError`."""
    name, _, value = mode.partition(":")
    if name == "limit" and not (value.isascii() and value.isdigit() and 0 < int(value[:9]) == int(value[:10])):
        raise ChatError("a limit is a number, such as limit:10")
    if name == "key" and not (0 < len(value) <= LONGEST_KEY and value.isprintable() and not set(value) & set(" ,:")):
        raise ChatError(f"a key is a word of up to {LONGEST_KEY} characters without commas, such as key:sesame")
    return f"{name}:{int(value)}" if name == "limit" else mode


def _reason(text: str) -> str:
    return clean_text(text).strip()[:LONGEST_REASON]

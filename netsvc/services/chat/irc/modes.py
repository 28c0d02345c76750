"""The command MODE: of channels, and of the client itself."""

from __future__ import annotations

from collections.abc import Iterator

from netsvc.services.chat.core import ChatRoom, Member
from netsvc.services.chat.irc.channels import find_shown
from netsvc.services.chat.irc.command import IrcCommand
from netsvc.services.chat.irc.form import MODE_LETTERS
from netsvc.services.chat.irc.masks import ban_target, shown_mask
from netsvc.services.chat.irc.message import IrcMessage, format_message
from netsvc.services.chat.irc.people import user_modes
from netsvc.services.chat.irc.session import IrcSession
from netsvc.services.chat.irc.support import MOST_TARGETS
from netsvc.services.chat.moderation import BanTarget, check_valued
from netsvc.services.chat.names import ChatError
from netsvc.services.chat.rules import ADMIT, BAN, EXCEPT, MUTE, VALUED_MODES, Effect, Role

__all__ = ["MODE_COMMANDS"]

_NAMES = {letter: name for name, letter in MODE_LETTERS.items()}
#: Of each list: its effects, and the numerics of an entry and of the end.
_LISTS = {"b": ((BAN, MUTE), "367", "368"), "e": ((EXCEPT,), "348", "349"), "I": ((ADMIT,), "346", "347")}


def _mode(session: IrcSession, message: IrcMessage) -> None:
    target, *params = message.params
    if target.startswith("#"):
        room = find_shown(session, target)
        if room is not None:
            _channel_mode(session, room, params)
        return
    member = session.find_member(target)
    if member is None:
        session.reply("401", target or "*", "No such nick")
    elif member is not session.me:
        session.reply("502", "Cannot change mode for other users")
    elif not params:
        session.reply("221", user_modes(session, member))
    else:
        _user_mode(session, params[0])


def _user_mode(session: IrcSession, text: str) -> None:
    member, done = session.me, ""
    for sign, letter in _signed(text):
        is_on = sign == "+"
        if letter == "i" and member.is_invisible is not is_on:
            member.is_invisible = is_on
        elif letter == "B" and member.source.is_bot is not is_on:
            member.source = member.source._replace(is_bot=is_on)
        elif letter == "o" and not is_on and member.is_operator:
            member.is_operator = False
        elif letter in "iBo":
            # No one becomes an operator in this way, and what is so already needs no answer.
            continue
        else:
            session.reply("501", "Unknown MODE flag")
            continue
        done += sign + letter
    if done:
        session.answer(format_message("MODE", session.name, _short(done), source=session.mask(member)))


def _short(changes: str) -> str:
    """Return `+a+b-c` as `+ab-c`."""
    short, last = "", ""
    for sign, letter in _signed(changes):
        short += letter if sign == last else sign + letter
        last = sign
    return short


def _signed(text: str) -> Iterator[tuple[str, str]]:
    """Iterate over the letters of a change of modes (`+ab-c`), each with its sign."""
    sign = "+"
    for letter in text[:100]:
        if letter in {"+", "-"}:
            sign = letter
        else:
            yield sign, letter


def _channel_mode(session: IrcSession, room: ChatRoom, params: list[str]) -> None:
    name = f"#{room.name}"
    if not params:
        session.reply("324", name, *shown_modes(room, with_key=room in session.me.rooms or session.is_operator))
        session.reply("329", name, str(int(room.made)))
        return
    values = iter(params[1:])
    flags: list[str] = []
    count = 0
    refused = False
    for sign, letter in _signed(params[0]):
        needs = letter in "beIkov" or (letter == "l" and sign == "+")
        value = next(values, None) if needs else None
        if letter in "ov" and not value:
            continue
        if letter in _LISTS and value is None:
            _send_list(session, room, letter)
            continue
        count += needs
        if count > MOST_TARGETS and needs:
            continue
        if letter not in _NAMES and letter not in _LISTS and letter not in "ov":
            session.reply("472", letter, "is unknown mode char to me")
            continue
        if session.core.moderation.role(session.me, room) < Role.OPERATOR:
            if not refused:
                session.reply("482", name, "You're not channel operator")
            refused = True
            continue
        if letter in _NAMES:
            change = _flag(session, room, sign, letter, value)
            if change:
                flags.append(change)
            continue
        try:
            _listed(session, room, sign, letter, value or "")
        except ChatError as error:
            session.reply("696", name, letter, "*", str(error))
    if flags:
        session.core.moderation.set_modes(session.me, room, flags)


def _flag(session: IrcSession, room: ChatRoom, sign: str, letter: str, value: str | None) -> str:
    """Return a change of a mode in the core's words; nothing if it was refused."""
    mode = _NAMES[letter]
    if mode == "outside":
        return f"{'-' if sign == '+' else '+'}outside"
    if mode not in VALUED_MODES:
        return f"{sign}{mode}"
    if sign == "-":
        return f"-{mode}:"
    try:
        return "+" + check_valued(f"{mode}:{value or ''}")
    except ChatError as error:
        # A value may have spaces, or be long.
        session.reply("696", f"#{room.name}", letter, "*", str(error))
        return ""


def _listed(session: IrcSession, room: ChatRoom, sign: str, letter: str, value: str) -> None:
    moderation, me = session.core.moderation, session.me
    if letter in _LISTS:
        target = _ban_target(session, room, _LISTS[letter][0][0], value)
        if sign == "+":
            moderation.ban(me, room, target, None, "")
        elif any(
            (ban.kind, ban.pattern) == (f"{target.effect} {target.kind}", target.pattern) for ban in room.rules.bans
        ):
            moderation.lift(me, room, target)
        return
    other = session.find_member(value)
    if other is None:
        session.reply("401", value or "*", "No such nick")
    elif room not in other.rooms:
        session.reply("441", other.name, f"#{room.name}", "They aren't on that channel")
    else:
        _status(session, room, sign, letter, other)


def _status(session: IrcSession, room: ChatRoom, sign: str, letter: str, other: Member) -> None:
    moderation, is_on = session.core.moderation, sign == "+"
    if letter == "o" and is_on is not (room.rules.role(other) >= Role.OPERATOR):
        moderation.set_operator(session.me, room, other, operates=is_on)
    elif letter == "v" and is_on is not (other in room.rules.voiced):
        moderation.set_voice(session.me, room, other, speaks=is_on)


def shown_modes(room: ChatRoom, *, with_key: bool) -> list[str]:
    """Return the modes of a room as letters, and their values."""
    rules = room.rules
    letters = {MODE_LETTERS[name] for name in rules.modes if name != "outside"}
    if "outside" not in rules.modes:
        letters.add("n")
    values = []
    if rules.key:
        letters.add("k")
        values.append(rules.key if with_key else "*")
    if rules.limit:
        letters.add("l")
        values.append(str(rules.limit))
    return ["+" + "".join(sorted(letters)), *values]


def _send_list(session: IrcSession, room: ChatRoom, letter: str) -> None:
    effects, entry, end = _LISTS[letter]
    name = f"#{room.name}"
    if letter != "b" and session.core.moderation.role(session.me, room) < Role.OPERATOR:
        session.reply("482", name, "You're not channel operator")
        return
    for ban in room.rules.lasting(session.core.now()):
        effect, _, kind = ban.kind.partition(" ")
        if effect in effects:
            mask = _cloaked(session, room, kind, ban.pattern, mutes=effect == MUTE)
            session.reply(entry, name, mask, ban.by, str(int(ban.made)))
    session.reply(end, name, "End of channel list")


def _cloaked(session: IrcSession, room: ChatRoom, kind: str, pattern: str, *, mutes: bool) -> str:
    """Return the mask of a ban. Who is no operator is not told addresses."""
    if kind == "address" and session.core.moderation.role(session.me, room) < Role.OPERATOR:
        kind, pattern = "mask", f"*!*@{session.core.cloak.host(pattern)}"
    return shown_mask(kind, pattern, mutes=mutes)


def _ban_target(session: IrcSession, room: ChatRoom, effect: Effect, text: str) -> BanTarget:
    """Return whom a mask is for: if it is of a member's host name, for the address that this stands for."""
    target = ban_target(effect, text)
    host = target.pattern.removeprefix("*!*@")
    if target.kind == "mask" and host != target.pattern:
        cloak = session.core.cloak.host
        addresses = [ban.pattern for ban in room.rules.bans if ban.kind.endswith(" address")]
        peers = [each.peer for each in session.core.members if each.source.host == host]
        for each in (*addresses, *peers):
            if cloak(each) == host and ("." in each or ":" in each) and each[:1].isalnum():
                return BanTarget(target.effect, "address", each, target.shown)
    return target


MODE_COMMANDS = {"MODE": IrcCommand(_mode, 1)}

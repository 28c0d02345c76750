"""The commands for those who operate a room, and for what its members may know of its rules."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from twisted.internet.defer import Deferred

from netsvc.base.values import seconds
from netsvc.services.chat.account_commands import Speaker
from netsvc.services.chat.names import ChatError
from netsvc.services.chat.rules import BAN, MODES, MUTE, VALUED_MODES, Effect, describe

__all__ = ["ROOM_COMMANDS"]

#: How long a ban may last.
_duration = seconds(1, 10 * 366 * 86400)


def _kick(conversation: Speaker, text: str) -> None:
    name, _, why = text.partition(" ")
    core, room = conversation.core, conversation.here()
    other = core.find(name)
    core.moderation.kick(conversation.member, room, other, why)
    conversation.notice(f"you kicked {other.name} from {room.name}")


def _ban(effect: Effect, conversation: Speaker, text: str) -> None:
    who, _, rest = text.partition(" ")
    core, room = conversation.core, conversation.here()
    length, why = _parse_duration(rest.strip())
    core.moderation.require(conversation.member, room)
    target = core.moderation.target(effect, who)
    core.moderation.ban(conversation.member, room, target, length, why)
    what = "banned" if effect == BAN else "muted"
    conversation.notice(f"you {what} {target.shown} in {room.name} ({target.kind}:{target.pattern})")


def _lift(effect: Effect, conversation: Speaker, who: str) -> None:
    core, room = conversation.core, conversation.here()
    core.moderation.require(conversation.member, room)
    target = core.moderation.target(effect, who)
    core.moderation.lift(conversation.member, room, target)
    conversation.notice(f"{target.shown} may {'enter' if effect == BAN else 'speak in'} {room.name} again")


def _parse_duration(text: str) -> tuple[float | None, str]:
    first, _, rest = text.partition(" ")
    if not first[:1].isdigit():
        return None, text
    try:
        return float(_duration(first)), rest.strip()
    except ValueError:
        raise ChatError(f"how long: {first} is not a time such as 10m, 2h or 7d, of up to ten years") from None


def _bans(conversation: Speaker, _text: str) -> None:
    core, room = conversation.core, conversation.here()
    core.moderation.require(conversation.member, room)
    now = core.now()
    bans = [describe(ban, now) for ban in room.rules.lasting(now)]
    conversation.notice(*(bans or [f"there are no bans in {room.name}"]))


def _invite(conversation: Speaker, name: str) -> None:
    core, room = conversation.core, conversation.here()
    other = core.find(name)
    core.moderation.invite(conversation.member, room, other)
    conversation.notice(f"you invited {other.name} to {room.name}")


def _operate(operates: bool, conversation: Speaker, name: str) -> None:
    core, room = conversation.core, conversation.here()
    other = core.find(name)
    core.moderation.set_operator(conversation.member, room, other, operates=operates)
    conversation.notice(f"{other.name} is {'an' if operates else 'no'} operator of {room.name} now")


def _mode(conversation: Speaker, text: str) -> None:
    core, room = conversation.core, conversation.here()
    if text:
        core.moderation.set_modes(conversation.member, room, text.split())
    known = MODES | VALUED_MODES
    modes = ", ".join(f"{mode} ({known[mode.partition(':')[0]]})" for mode in sorted(room.rules.all_modes))
    conversation.notice(f"modes of {room.name}: {modes}" if modes else f"{room.name} has no modes")


def _claim(conversation: Speaker, _text: str) -> None:
    room = conversation.here()
    conversation.core.moderation.register_room(conversation.member, room)
    conversation.notice(f"{room.name} is yours now, and stays when it is empty; /release undoes it")


def _release(conversation: Speaker, _text: str) -> None:
    room = conversation.here()
    conversation.core.moderation.release_room(conversation.member, room)
    conversation.notice(f"{room.name} is not registered any more")


def _disconnect(conversation: Speaker, text: str) -> None:
    name, _, why = text.partition(" ")
    other = conversation.core.find(name)
    conversation.core.moderation.disconnect(conversation.member, other, why)
    conversation.notice(f"{other.name} is disconnected")


_ALL_MODES = ", ".join([*MODES, *(f"{name}:VALUE" for name in VALUED_MODES)])


def _voice(speaks: bool, conversation: Speaker, name: str) -> None:
    core, room = conversation.core, conversation.here()
    other = core.find(name)
    core.moderation.set_voice(conversation.member, room, other, speaks=speaks)
    conversation.notice(f"{other.name} {'may' if speaks else 'may not'} speak in {room.name} whatever its modes")


#: By name: the arguments, the line of help, and what runs it; see `commands.Command`.
ROOM_COMMANDS: dict[str, tuple[str, str, Callable[[Speaker, str], Deferred[None] | None]]] = {
    "invite": ("NAME", "let a member enter the room", _invite),
    "mode": ("[+MODE -MODE]", f"show or set the modes of the room: {_ALL_MODES}", _mode),
    "claim": ("", "register the room to your account, so that it lasts", _claim),
    "release": ("", "undo /claim", _release),
    "op": ("NAME", "make a member an operator of the room", partial(_operate, True)),
    "deop": ("NAME", "make a member no operator any more", partial(_operate, False)),
    "voice": ("NAME", "let a member speak in the room, whatever its modes", partial(_voice, True)),
    "devoice": ("NAME", "undo /voice", partial(_voice, False)),
    "kick": ("NAME [REASON]", "remove a member from the room", _kick),
    "ban": ("WHO [TIME] [REASON]", "keep a member, account:NAME or address:NETWORK out", partial(_ban, BAN)),
    "unban": ("WHO", "lift a ban", partial(_lift, BAN)),
    "mute": ("WHO [TIME] [REASON]", "let someone read only", partial(_ban, MUTE)),
    "unmute": ("WHO", "lift a /mute", partial(_lift, MUTE)),
    "bans": ("", "list the bans and mutes of the room", _bans),
    "disconnect": ("NAME [REASON]", "end a member's connection (operators of the server)", _disconnect),
}

"""The names of members and rooms."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any, Generic, TypeVar

from netsvc.services.chat.looks import look, skeleton
from netsvc.services.chat.text import INVISIBLE

__all__ = [
    "ChatError",
    "EmptyTextError",
    "NameIndex",
    "NameTakenError",
    "check_name",
    "find_key",
    "name_key",
    "reserved_names",
]

T = TypeVar("T")

FORM = "letters, digits and symbols of any script, and emoji"

_JOINERS = "-_."
_MARKS = ("Mn", "Mc", "Me")
#: What separates names from the text around them, in lines, in IRC and in lists.
_STRUCTURE = frozenset('()[]<>{}:;,!?*@#&/\\"')
#: Of these, what would let a name that only looks like them forge a line.
_FORGING = frozenset("()[]<>:*/#")
#: Marks that are drawn through a letter or around it, of no living script: a font without them shows the letter alone.
_OVERLAYS = frozenset(map(chr, (*range(0x0334, 0x0339), 0x0488, 0x0489, *range(0x20D0, 0x20F1))))
#: What a sequence of several code points that is one emoji has, and no other text in a name: see `_without_emoji`.
_EMOJI_PARTS = re.compile("[\u200d\u20e3\ufe0f\U000e0020-\U000e007f]")
#: Marks on one letter beyond those it is composed with. Two are enough for living scripts; more would cover the
#: lines above.
_MARKS_IN_A_ROW = 2
#: Code points that compose into one, at most (U+1F82): a text this many times longer than the limit is no name.
_LONGEST_DECOMPOSITION = 4

#: A private message is shown as `name -> you: text`, and its copy to the sender as `you -> name: text`. The others
#: would be taken for the server or its operators.
_RESERVED = (
    *("you", "me", "all", "everyone", "here", "nobody", "anonymous"),
    *("server", "system", "netsvc", "chat", "service", "services", "nickserv", "chanserv"),
    *("admin", "administrator", "root", "operator", "sysop", "moderator", "mod", "staff", "support", "owner"),
    *("管理员", "系统管理员", "系统", "服务器", "版主", "群主", "客服"),
    *("管理員", "系統管理員", "系統", "伺服器"),
    *("админ", "администратор", "система", "сервер", "модератор"),
)
#: Guests are named guest1, guest2 and so on.
_GUEST = "guest"


class ChatError(Exception):
    """A member asked for something that was not done. The text is one line for the member: the reason and the cure."""


class EmptyTextError(ChatError):
    """Nothing visible is left of a text that a member sent."""


class NameTakenError(ChatError):
    """A name is another member's or account's, or looks like it."""


@lru_cache(maxsize=2048)
def name_key(name: str) -> str:
    """Return the key of a name: equal for two names exactly if they differ in case and Unicode form only."""
    key, previous = name, ""
    # Folding can undo normal form and the other way round: repeat until neither changes anything. Decompose before
    # folding: a Greek iota subscript moves when it becomes a letter, past the marks that were composed.
    while key != previous:
        previous, key = key, unicodedata.normalize("NFKC", unicodedata.normalize("NFKD", key).casefold())
    return key


def find_key(text: str, limit: int) -> str | None:
    """Return the `name_key` of `text`, or None if it is too long to be a name of `limit` characters.

    Normalizing takes the square of the number of marks in a row: a long line of them would block the server.
    """
    return name_key(text) if len(text) <= limit * _LONGEST_DECOMPOSITION else None


def check_name(text: str, limit: int, reserved: NameIndex[Any] | None = None) -> str:
    """Return `text` as a name to show: in NFKC, 1 to `limit` characters (RFC 8266 without spaces, and emoji).

    `reserved` has the names that no member can have; rooms can. Raises `ChatError` with the reason and the accepted
    form.
    """
    name = unicodedata.normalize("NFKC", text) if len(text) <= limit * _LONGEST_DECOMPOSITION else text
    problem = _problem(name, limit)
    if not problem and reserved is not None and (_is_guest(name) or reserved.similar(name)):
        problem = f"the name {_shown(name)} is reserved"
    if problem:
        raise ChatError(f"{problem}; a name is 1 to {limit} {FORM}")
    return name


def _problem(name: str, limit: int) -> str | None:
    if not name:
        return "the name is missing"
    if len(name) > limit:
        return f"that name has {len(name)} characters"
    refused = next((each for each in name if each in _STRUCTURE or each.isspace()), None) or _refused(name)
    if refused is not None:
        return f"{_shown(refused)} is not allowed in a name"
    # Clients of IRC add a _ to a name that is taken, and it is a letter there.
    if unicodedata.category(name[0]) in _MARKS or (name[0].isascii() and not name[0].isalnum() and name[0] != "_"):
        return f"a name cannot begin with {_shown(name[0])}"
    if name[-1] in _JOINERS and name[-1] != "_":
        return f"a name cannot end with {_shown(name[-1])}"
    marks = 0
    for before, character in pairwise(name):
        marks = marks + 1 if unicodedata.category(character) in _MARKS and character not in INVISIBLE else 0
        if marks > _MARKS_IN_A_ROW:
            return f"a letter in that name has more than {_MARKS_IN_A_ROW} marks"
        if marks and before in _JOINERS:
            return f"a mark cannot follow {_shown(before)}"
    return None


def _refused(name: str) -> str | None:
    """Return the first character that no name has (RFC 8264, section 4.3, and what shows nothing), if there is one."""
    if name.isascii() and name.isprintable():
        return None
    for part in _without_emoji(name):
        try:
            _profile().enforce(part)
        except UnicodeEncodeError as error:
            return part[error.start]
        for character in part:
            looks_like = frozenset() if character.isascii() else frozenset(skeleton(character))
            is_mark = unicodedata.category(character) in _MARKS
            if character in INVISIBLE or character in _OVERLAYS or (looks_like & _FORGING and not is_mark):
                return character
    return None


@cache
def _profile() -> Any:
    from precis_i18n import get_profile

    return get_profile("FreeFormClass")


def _without_emoji(name: str) -> list[str]:
    """Return what is left and right of each emoji that is a sequence, which RFC 8266 would refuse."""
    if not _EMOJI_PARTS.search(name):
        return [name]
    from emoji import emoji_list

    parts, start = [], 0
    for found in emoji_list(name):
        if found["match_end"] - found["match_start"] > 1:
            parts.append(name[start : found["match_start"]])
            start = found["match_end"]
    return [part for part in (*parts, name[start:]) if part]


def _is_guest(name: str) -> bool:
    """Return whether a name is that of a guest, or looks like one."""
    key = name_key(name)
    digits = {look(digit) for digit in "0123456789"}
    return key == _GUEST or any(
        each.startswith(_GUEST) and all(digit in accepted for digit in each.removeprefix(_GUEST))
        for each, accepted in ((key, frozenset("0123456789")), (look(name), digits))
    )


class NameIndex(Generic[T]):
    """Things by name. `similar` finds the one that a new name would be confused with: see `looks.look`."""

    def __init__(self) -> None:
        self._by_key: dict[str, T] = {}
        self._by_look: dict[str, T] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def __iter__(self) -> Iterator[T]:
        return iter(self._by_key.values())

    def get(self, key: str | None) -> T | None:
        """Return the thing with that `name_key`."""
        return None if key is None else self._by_key.get(key)

    def similar(self, name: str) -> T | None:
        """Return the thing whose name is that one, or looks like it."""
        return self._by_key.get(name_key(name)) or self._by_look.get(look(name))

    def add(self, name: str, thing: T) -> None:
        """Add a thing under a name that nothing has."""
        self._by_key[name_key(name)] = self._by_look[look(name)] = thing

    def remove(self, name: str) -> None:
        """Remove the thing of that name. Others may have its look: names that were stored before Unicode changed."""
        thing = self._by_key.pop(name_key(name))
        if self._by_look.get(look(name)) is thing:
            del self._by_look[look(name)]


def reserved_names(more: Iterable[str] = ()) -> NameIndex[str]:
    """Return the names that no member can have, and `more`."""
    index: NameIndex[str] = NameIndex()
    for name in (*_RESERVED, *more):
        # ADM1N looks like ADMIN, and not like admin.
        for spelling in (name, name.capitalize(), name.upper()):
            index.add(spelling, name)
    return index


def _shown(text: str) -> str:
    if text == " ":
        return "a space"
    if not text.isprintable() or text in INVISIBLE or unicodedata.category(text[0])[0] == "M":
        return f"U+{ord(text):04X}"
    return f'"{text}"'

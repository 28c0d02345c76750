"""The names of members and rooms."""

from __future__ import annotations

import unicodedata
from itertools import pairwise

__all__ = ["ChatError", "EmptyTextError", "check_name", "find_key", "name_key"]

FORM = "letters and digits of any script, with - _ . between them"

_JOINERS = "-_."
_ALNUM = ("Lu", "Ll", "Lt", "Lm", "Lo", "Nd")
_MARKS = ("Mn", "Mc")
#: Marks on one letter beyond those it is composed with. Two are enough for living scripts; more would cover the
#: lines above.
_MARKS_IN_A_ROW = 2
#: Code points that compose into one, at most (U+1F82): a text this many times longer than the limit is no name.
_LONGEST_DECOMPOSITION = 4

#: Letters and marks that show nothing (Default_Ignorable_Code_Point, and two blank hieroglyphs): two names that
#: differ in one of them look the same.
_INVISIBLE = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u3164\uffa0\U00013441\U00013442"
) | frozenset(map(chr, (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))))

#: A private message is shown as `name -> you: text`, and its copy to the sender as `you -> name: text`.
_RESERVED = frozenset({"you"})


class ChatError(Exception):
    """A member asked for something that was not done. The text is one line for the member: the reason and the cure."""


class EmptyTextError(ChatError):
    """Nothing visible is left of a text that a member sent."""


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


def check_name(text: str, limit: int) -> str:
    """Return `text` as a name to show: in NFKC, 1 to `limit` characters.

    Raises `ChatError` with the reason and the accepted form.
    """
    name = unicodedata.normalize("NFKC", text) if len(text) <= limit * _LONGEST_DECOMPOSITION else text
    problem = _problem(name, limit)
    if problem:
        raise ChatError(f"{problem}; a name is 1 to {limit} {FORM}")
    return name


def _problem(name: str, limit: int) -> str | None:
    if not name:
        return "the name is missing"
    if len(name) > limit:
        return f"that name has {len(name)} characters"
    for character in name:
        if not _is_accepted(character):
            return f"{_shown(character)} is not allowed in a name"
    if not _is_alnum(name[0]):
        return f"a name cannot begin with {_shown(name[0])}"
    if name[-1] in _JOINERS:
        return f"a name cannot end with {_shown(name[-1])}"
    marks = 0
    for before, character in pairwise(name):
        marks = marks + 1 if unicodedata.category(character) in _MARKS else 0
        if marks > _MARKS_IN_A_ROW:
            return f"a letter in that name has more than {_MARKS_IN_A_ROW} marks"
        if marks and before in _JOINERS:
            return f"a mark cannot follow {_shown(before)}"
    if name_key(name) in _RESERVED:
        return f"the name {_shown(name)} is reserved"
    return None


def _is_alnum(character: str) -> bool:
    return unicodedata.category(character) in _ALNUM and character not in _INVISIBLE


def _is_accepted(character: str) -> bool:
    if character in _INVISIBLE:
        return False
    return character in _JOINERS or unicodedata.category(character) in (*_ALNUM, *_MARKS)


def _shown(text: str) -> str:
    if text == " ":
        return "a space"
    if not text.isprintable() or text in _INVISIBLE or unicodedata.category(text[0])[0] == "M":
        return f"U+{ord(text):04X}"
    return f'"{text}"'

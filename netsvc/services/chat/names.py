"""The rules for the names of members and rooms: what one may look like, and when two are the same."""

from __future__ import annotations

import unicodedata
from itertools import pairwise

from netsvc.services.chat.refusal import RefusedError

__all__ = ["check_name", "find_key", "name_key"]

FORM = "letters and digits of any script, with - _ . between them"

_JOINERS = "-_."
_ALNUM = ("Lu", "Ll", "Lt", "Lm", "Lo", "Nd")
_MARKS = ("Mn", "Mc")
#: Marks on one letter beyond those it is composed with. Two are enough for living scripts; more pile up over
#: the lines above.
_MARKS_IN_A_ROW = 2
#: Code points that compose into one, at most (U+1F82): no longer text can be a name of the limit's length.
_LONGEST_DECOMPOSITION = 4

#: Letters and marks that show nothing (Default_Ignorable_Code_Point, and two blank hieroglyphs): two names that
#: differ in one of them look the same.
_INVISIBLE = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u3164\uffa0\U00013441\U00013442"
) | frozenset(map(chr, (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))))

#: A private message is shown as `name -> you: text`, and its copy to the sender as `you -> name: text`.
_RESERVED = frozenset({"you"})


def name_key(name: str) -> str:
    """Return what is equal for two names exactly if they are the same but for case and Unicode form."""
    key, previous = name, ""
    # Folding can undo normal form, and the other way round: repeat until neither changes anything. What is folded
    # is decomposed first: a Greek iota below moves when it becomes a letter, past the marks that were composed.
    while key != previous:
        previous, key = key, unicodedata.normalize("NFKC", unicodedata.normalize("NFKD", key).casefold())
    return key


def find_key(text: str, limit: int) -> str | None:
    """Return the `name_key` of what may be a name of at most `limit` characters, or None if it is too long to be one.

    To bring text into a normal form takes the square of the number of marks in a row: a line of them would keep
    everybody waiting.
    """
    return name_key(text) if len(text) <= limit * _LONGEST_DECOMPOSITION else None


def check_name(text: str, limit: int) -> str:
    """Return `text` as the name to be shown: in NFKC, at most `limit` characters.

    Raises `RefusedError`, which says what is wrong and the accepted form.
    """
    name = unicodedata.normalize("NFKC", text) if len(text) <= limit * _LONGEST_DECOMPOSITION else text
    problem = _problem(name, limit)
    if problem:
        raise RefusedError(f"{problem}; a name is 1 to {limit} {FORM}")
    return name


def _problem(name: str, limit: int) -> str | None:
    if not name:
        return "the name is missing"
    if len(name) > limit:
        return f"that name has {len(name)} characters"
    for character in name:
        if not _is_accepted(character):
            return f"{_shown(character)} cannot be in a name"
    if not _is_alnum(name[0]):
        return f"a name cannot begin with {_shown(name[0])}"
    if name[-1] in _JOINERS:
        return f"a name cannot end with {_shown(name[-1])}"
    marks = 0
    for before, character in pairwise(name):
        marks = marks + 1 if unicodedata.category(character) in _MARKS else 0
        if marks > _MARKS_IN_A_ROW:
            return f"more than {_MARKS_IN_A_ROW} marks stand on one letter"
        if marks and before in _JOINERS:
            return f"a mark cannot follow {_shown(before)}"
    if name_key(name) in _RESERVED:
        return f"{_shown(name)} stands for whoever reads it"
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

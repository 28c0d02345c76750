"""What members type, made fit for other people's screens: editing keys, control characters, marks, invisible text."""

from __future__ import annotations

import re
import unicodedata

from netsvc.base.text import is_unsafe

__all__ = ["BYTE_ORDER_MARK", "INVISIBLE", "MARKS", "clean_text", "edit", "is_visible"]

#: Some clients send it before their first line.
BYTE_ORDER_MARK = "\ufeff"

#: Marks that a letter keeps. Living scripts need up to four (Burmese, Tibetan, pointed Hebrew); more would cover the
#: lines above and below.
MARKS = 4

#: Characters of blocks without marks, controls and invisible characters: most lines have no others.
_PLAIN = re.compile("[ -~\u00a1-\u00ac\u00ae-\u02ff\u0391-\u03a1\u03a3-\u0482\u3001-\u3029\u3041-\u3096\u4e00-\u9fa5"
                    "\uac00-\ud7a3\uff01-\uff5e\U0001f600-\U0001f64f]*")  # fmt: skip

#: Letters, marks and symbols that show nothing: Default_Ignorable_Code_Point of Unicode, the blank Braille pattern,
#: note head and hieroglyphs.
INVISIBLE = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2065\u2800\u3164\uffa0\U0001d159\U00013441\U00013442"
) | frozenset(map(chr, (*range(0xFE00, 0xFE10), *range(0xFFF0, 0xFFF9), *range(0xE0000, 0xE1000))))
#: Format characters that are drawn: signs that enclose the digits after them.
_DRAWN = frozenset("\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd")

#: What a terminal sends for arrow and function keys, and around pasted text; colours (ECMA-48, sections 5.4 and 5.6).
_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|O[ -~]|[]P^_X][^\x07\x1b]*(?:\x07|\x1b\\)?)")
#: Backspace, DEL, Ctrl-U and Ctrl-W, as a terminal's own line editing has them; and the text between them.
_KEYS = re.compile("[\b\x7f\x15\x17]|[^\b\x7f\x15\x17]+")
_EDITED = re.compile("[\b\x7f\x15\x17\x1b]")
#: Characters that one displayed character is searched in. The longest emoji sequences have ten.
_LONGEST = 32


def clean_text(text: str) -> str:
    """Return `text` without what a terminal would obey rather than show; a tab becomes a space.

    Removes control characters, bidirectional controls, line and paragraph separators, byte order marks, and of the
    marks on one letter those after `MARKS`. Joined characters (emoji, Indic and Arabic letters) stay joined.
    Idempotent.
    """
    if text.isprintable() if text.isascii() else _PLAIN.fullmatch(text):
        return text
    kept = []
    marks = 0
    for character in text.replace("\t", " "):
        if character == BYTE_ORDER_MARK or is_unsafe(character):
            continue
        category = unicodedata.category(character)
        # A joiner is no letter: the marks after it would be drawn on the letter before it.
        marks = marks + 1 if category[0] == "M" else marks if category == "Cf" else 0
        if marks <= MARKS or category == "Cf":
            kept.append(character)
    return "".join(kept)


def is_visible(text: str) -> bool:
    """Return whether anything of a clean text can be seen."""
    return any(map(_shows, text))


def _shows(character: str) -> bool:
    if character.isspace() or character in INVISIBLE:
        return False
    return unicodedata.category(character) != "Cf" or character in _DRAWN


def edit(text: str) -> str:
    """Return a line as its writer saw it: with the editing keys in it obeyed, and the sequences of other keys removed.

    Backspace and DEL remove one character as it is displayed (UAX 29), Ctrl-U what is before it, Ctrl-W a word.
    """
    if not _EDITED.search(text):
        return text
    line: list[str] = []
    for piece in _KEYS.findall(_SEQUENCE.sub("", text)):
        if piece == "\x15":
            line.clear()
        elif piece == "\x17":
            words = "".join(line).rstrip()
            del line[len(words) - len(words.split()[-1]) if words else 0 :]
        elif piece in "\b\x7f":
            _remove_last(line)
        else:
            line += piece
    return "".join(line)


def _remove_last(line: list[str]) -> None:
    if line and line[-1].isascii():
        line.pop()
    elif line:
        # Here, because most lines have been edited by the client.
        from wcwidth import grapheme_boundary_before

        tail = "".join(line[-_LONGEST:])
        del line[grapheme_boundary_before(tail, len(tail)) - len(tail) :]

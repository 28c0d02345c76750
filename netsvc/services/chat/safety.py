"""Makes what a member wrote safe for the terminals of the others."""

from __future__ import annotations

from netsvc.text import is_unsafe

__all__ = ["clean_text"]

#: Sent by some clients before their first line, and shown by nobody.
_BYTE_ORDER_MARK = "\ufeff"


def clean_text(text: str) -> str:
    """Drop what a terminal would obey rather than show; a tab becomes a space.

    Control characters, bidirectional controls, line and paragraph separators go, and so do byte order marks.
    What is joined (emoji, Indic and Arabic letters) stays joined. Cleaning twice is cleaning once.
    """
    # Everything that has to go counts as not printable; most lines have nothing of the kind.
    if text.isprintable():
        return text
    return "".join(
        character for character in text.replace("\t", " ") if character != _BYTE_ORDER_MARK and not is_unsafe(character)
    )

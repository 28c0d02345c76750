"""Which names look alike: the skeletons of Unicode's security mechanisms (UTS 39, section 4)."""

from __future__ import annotations

import json
import re
import unicodedata
from functools import cache
from importlib.resources import files

#: Default_Ignorable_Code_Point: what shows nothing.
_IGNORABLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)


def skeleton(text: str) -> str:
    """Return the skeleton of a text: equal for two texts that look the same in some font.

    `paypal` in Cyrillic letters has that of the Latin one, `rn` that of `m`, and a capital I that of a small l.
    """
    prototypes = _prototypes()
    decomposed = unicodedata.normalize("NFD", _IGNORABLE.sub("", unicodedata.normalize("NFD", text)))
    mapped = "".join([prototypes.get(character, character) for character in decomposed])
    return unicodedata.normalize("NFD", mapped)


def look(name: str) -> str:
    """Return the skeleton of a name in small letters: equal for two names that look alike, in capitals or not."""
    return skeleton(skeleton(name).casefold())


@cache
def _prototypes() -> dict[str, str]:
    """Return what each character that looks like something else looks like; most are not in it.

    The data of confusable_homoglyphs lists each pair both ways: what has several partners is their prototype. Of a
    pair with no other partners, either can stand for both.
    """
    data = (files("confusable_homoglyphs") / "confusables.json").read_bytes()
    partners = {text: [pair["c"] for pair in pairs] for text, pairs in json.loads(data).items()}
    prototypes = {}
    for text, [first, *others] in partners.items():
        alone = not others and len(partners[first]) == 1
        if len(text) == 1 and not others and (not alone or (len(first), first) > (1, text)):
            prototypes[text] = first
    # A prototype of several characters may hold one that was chosen to be none.
    while unresolved := [text for text, first in prototypes.items() if not prototypes.keys().isdisjoint(first)]:
        for text in unresolved:
            prototypes[text] = "".join([prototypes.get(character, character) for character in prototypes[text]])
    return prototypes

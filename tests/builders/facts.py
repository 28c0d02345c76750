"""Facts in a line of text, whatever its wording."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import zip_longest

__all__ = ["counted", "drained", "lacks", "states", "unlike"]


def states(text: str | bytes, *facts: object) -> bool:
    """Tell whether one line, of the server's if it is one of the chat, has all these facts in it, in this order."""
    line = text.decode() if isinstance(text, bytes) else text
    line = line.removesuffix("\n").removesuffix("\r")
    at = 0
    for fact in map(str, facts):
        at = line.find(fact, at)
        if at < 0:
            return False
        at += len(fact)
    return "\n" not in line


def lacks(line: str, *facts: object) -> list[str]:
    """Return the facts that are not in a line, in the order given; a fact that is repeated must be there as often."""
    rest, missing = line, []
    for fact in map(str, facts):
        if fact in rest:
            rest = rest.replace(fact, "\0", 1)
        else:
            missing.append(fact)
    return missing


def counted(summary: str) -> dict[str, int]:
    """Return how many listeners a reload kept, opened and closed, by its summary; no entry for none."""
    return {what: int(count) for count, what in re.findall(r"\b(\d+) (?:listeners? )?(kept|opened|closed)\b", summary)}


def unlike(lines: Sequence[str], *facts: tuple[object, ...]) -> list[str]:
    """Return the lines that lack the facts given for them, in order, and what is missing or too many."""
    pairs = zip_longest(lines, facts)
    return [
        f"{line!r} is not {wanted}"
        for line, wanted in pairs
        if line is None or wanted is None or not states(line, *wanted)
    ]


def drained(summary: str) -> tuple[int, dict[str, int], dict[str, int]]:
    """Return how many connections a drain let end by themselves, and how many of each listener it closed, and cut."""

    def listed(beginning: str) -> dict[str, int]:
        found = re.search(rf"\b{beginning}: ([^;\n]*)", summary)
        parts = [part.partition(" ") for part in found[1].split(", ")] if found else []
        return {name: int(count) for count, _, name in parts}

    ended = re.search(r"\b(\d+) connections? ended", summary)
    assert ended or "no connection was open" in summary, summary
    return int(ended[1]) if ended else 0, listed(r"closed at the end of \S+ s"), listed("cut off")

"""Writes numbers, and rows of them, for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from prompt_toolkit.utils import get_cwidth

from netsvc.text import plain

__all__ = ["ASCII_BLOCKS", "BLOCKS", "Column", "count", "delay", "fit", "row", "size", "span", "sparkline", "titles"]

T = TypeVar("T")

#: From the lowest to the highest; the first is for nothing at all.
BLOCKS, ASCII_BLOCKS = " ▁▂▃▄▅▆▇█", " .:-=+*#@"


def size(amount: float) -> str:
    """Write bytes in at most seven characters: `0 B`, `1.23 kB`, `999 GB`."""
    if amount < 999.5:
        return f"{amount:.0f} B"
    power = next((power for power in range(1, 6) if amount / 1000**power < 999.5), 6)
    amount /= 1000**power
    return f"{amount:.{2 if amount < 9.995 else 1 if amount < 99.95 else 0}f} {' kMGTPE'[power]}B"


def count(number: int) -> str:
    """Write a number in at most nine characters: in groups of three digits, or `12.3M`, `1.23G`."""
    if number < 9_999_999.5:
        return f"{number:,}"
    return size(number).removesuffix("B").replace(" ", "")


def span(seconds: float) -> str:
    """Write a time that has passed in at most six characters: `59s`, `59m59s`, `23h59m`, `99d23h`, `1000d`."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    for limit, unit, names in ((60, 60, "ms"), (24, 3600, "hm"), (100, 86400, "dh")):
        if whole < limit * unit:
            units, rest = divmod(whole, unit)
            part = rest if unit == 60 else rest * (60 if unit == 3600 else 24) // unit
            return f"{units}{names[0]}{part:02}{names[1]}"
    return f"{whole // 86400}d"


def delay(seconds: float) -> str:
    """Write a short time: `0.3 ms`, `12 ms`, `1.2 s`."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.{1 if seconds < 0.00995 else 0}f} ms"
    return f"{seconds:.1f} s"


def sparkline(values: Sequence[float], width: int, blocks: str = BLOCKS) -> str:
    """Draw values that are not negative, the newest on the right, in a line of at most `width` characters.

    Where there are more values than room, a character stands for the highest of several, always as many.
    """
    if not values or width < 1:
        return ""
    step = -(-len(values) // width)
    # Counted from the newest, so that what has been drawn does not change its height.
    heights = [max(values[max(0, end - step) : end]) for end in range(len(values), 0, -step)][::-1]
    highest = max(heights)
    steps = len(blocks) - 1
    return "".join(blocks[-int(-value * steps // highest)] if value else blocks[0] for value in heights)


def fit(text: str, width: int, *, right: bool = False) -> str:
    """Make text as wide as `width` columns of a terminal, and safe for it: filled up, or cut with `…`."""
    # No more than can be seen: it is cut a character at a time.
    text = plain(text[: 2 * width + 2])
    space = width - get_cwidth(text)
    if space < 0:
        while text and get_cwidth(text) > width - 1:
            text = text[:-1]
        text += "…" if width > 0 else ""
        space = width - get_cwidth(text)
    return " " * space + text if right else text + " " * space


@dataclass(frozen=True)
class Column(Generic[T]):
    """A column of a table of rows of `T`. One of no width has what the others leave; those of numbers are `right`."""

    title: str
    width: int
    write: Callable[[T], str]
    right: bool = False


def titles(columns: Sequence[Column[T]], width: int) -> str:
    """Write the head of a table."""
    return _line(((column, column.title) for column in columns), columns, width)


def row(columns: Sequence[Column[T]], each: T, width: int) -> str:
    """Write one row."""
    return _line(((column, column.write(each)) for column in columns), columns, width)


def _line(cells: Iterable[tuple[Column[T], str]], columns: Sequence[Column[T]], width: int) -> str:
    taken = sum(column.width for column in columns) + len(columns) - 1
    rest = max(8, width - taken)
    return fit(" ".join(fit(text, column.width or rest, right=column.right) for column, text in cells), width)

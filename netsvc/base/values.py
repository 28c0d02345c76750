"""The values that options and limits commonly have, and how they are parsed.

A coercer is for the fifth item of an entry of `optParameters`; its `ValueError` has the accepted form.
"""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar
from weakref import WeakKeyDictionary

_Coercer = TypeVar("_Coercer", bound=Callable[[Any], Any])

#: How a protocol is carried.
Kind = Literal["stream", "datagram"]

#: Python counts these among the text encodings, but they encode host names, or nothing.
_NAME_CODECS = {"idna", "punycode", "undefined"}
#: What the help calls the values of a coercer. No attribute of the coercer: it may be any callable.
_PLACEHOLDERS: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
_SIZES = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3}
_TIMES = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Range:
    """A coercer of numbers between two bounds, both included.

    `what` is the unit, and `more` what the error adds about other forms that `parse` reads.
    """

    def __init__(self, what: str, lowest: float, highest: float, parse: Callable[[str], float], more: str = "") -> None:
        self.what = what
        self.lowest = lowest
        self.highest = highest
        self._parse = parse
        self._form = f"{what} from {_plain(lowest)} to {_plain(highest)}{more}"

    def __call__(self, value: Any) -> Any:
        """Parse a value. Raises `ValueError` with the accepted form."""
        try:
            parsed = self._parse(str(value).strip())
        except ValueError:
            parsed = math.nan
        if not self.lowest <= parsed <= self.highest:
            raise ValueError(self._form)
        return parsed


def _plain(value: float) -> str:
    """Write a bound as a person would: 0.01, 1000000."""
    return f"{value:.0f}" if value == int(value) else f"{value:g}"


def whole_number(lowest: int, highest: int) -> Range:
    """Accept a whole number between two bounds, both included."""
    return shown_as("NUMBER", Range("a whole number", lowest, highest, int))


def number(lowest: float, highest: float) -> Range:
    """Accept a decimal number between two bounds, both included."""
    return shown_as("NUMBER", Range("a number", lowest, highest, float))


def seconds(lowest: float, highest: float) -> Range:
    """Accept a time in seconds between two bounds, both included; or with m, h or d, in minutes, hours or days."""
    more = ", or with m, h, d (10m)" if highest >= _TIMES["h"] else ""
    return shown_as("SECONDS", Range("seconds", lowest, highest, _seconds, more))


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)\s*([smhd])", text.lower(), re.ASCII)
    # Rounded, as 1.1 minutes are 66 seconds, and not 66.00000000000001.
    return round(float(found[1]) * _TIMES[found[2]], 9) if found else float(text)


def byte_count(lowest: int, highest: int) -> Range:
    """Accept a number of bytes between two bounds, with K, M or G for powers of 1024."""
    return shown_as("BYTES", Range("bytes", lowest, highest, _bytes, ", or with K, M, G (64K)"))


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+)([kmg]?)i?b?", text.lower(), re.ASCII)
    if found is None:
        raise ValueError
    return int(found[1]) * _SIZES[found[2]]


def encoding(value: Any) -> str:
    """Accept the name of a text encoding that Python knows."""
    try:
        found = codecs.lookup(str(value))
        if not found._is_text_encoding or found.name in _NAME_CODECS:
            raise LookupError
    except (LookupError, ValueError):
        raise ValueError("the name of a text encoding, such as utf-8, gbk or latin-1") from None
    return found.name


def shown_as(placeholder: str, coerce: _Coercer) -> _Coercer:
    """Return a coercer whose values the help calls `placeholder`: `--files-root DIR`."""
    _PLACEHOLDERS[coerce] = placeholder
    return coerce


shown_as("ENCODING", encoding)
shown_as("NUMBER", int)
shown_as("NUMBER", float)
shown_as("FILE", Path)

#: What Python says of a text that is no number, and the accepted form.
_NOT_A_NUMBER = {"invalid literal for int()": "a whole number", "could not convert string to float": "a number"}


def accepted_form(error: Exception) -> str:
    """Return the accepted form of a value for the error that its coercer raised, as far as the error says it."""
    text = str(error)
    if type(error).__name__ == "InvalidOperation":
        # Of decimal, which is imported by plugins that use it only.
        return "a number"
    for begin, form in _NOT_A_NUMBER.items():
        if text.startswith(begin):
            return form
    if isinstance(error, ValueError):
        return text or "not an accepted value"
    return f"{type(error).__name__}: {text}"


def placeholder_of(coerce: Any) -> str:
    """Return what the help calls the values of a coercer."""
    return "VALUE" if coerce is None else _PLACEHOLDERS.get(coerce, "VALUE")

"""Reads a service's options from plain values, and the values that options commonly hold.

The functions that end in a coercer (`whole_number`, `seconds`, …) stand in the fifth place of an entry of
`optParameters`; their errors say the accepted form.
"""

from __future__ import annotations

import codecs
import getopt
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from twisted.python import usage

from netsvc.errors import MistakeError

__all__ = [
    "Setting",
    "byte_count",
    "declared_settings",
    "encoding",
    "number",
    "parse_settings",
    "seconds",
    "whole_number",
]

_UNITS = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3}


def whole_number(lowest: int, highest: int) -> Callable[[Any], int]:
    """Accept a whole number between two bounds, both included."""

    def coerce(value: Any) -> int:
        try:
            number = int(str(value))
        except ValueError:
            number = lowest - 1
        if not lowest <= number <= highest:
            raise ValueError(f"a whole number from {lowest} to {highest}")
        return number

    return coerce


def number(lowest: float, highest: float, unit: str = "a number") -> Callable[[Any], float]:
    """Accept a decimal number between two bounds, both included."""

    def coerce(value: Any) -> float:
        try:
            number = float(str(value))
        except ValueError:
            number = math.nan
        if not lowest <= number <= highest:
            raise ValueError(f"{unit} from {lowest:g} to {highest:g}")
        return number

    return coerce


def seconds(lowest: float, highest: float) -> Callable[[Any], float]:
    """Accept a time in seconds between two bounds, both included."""
    return number(lowest, highest, "seconds")


def byte_count(lowest: int, highest: int) -> Callable[[Any], int]:
    """Accept a number of bytes between two bounds, with K, M or G for powers of 1024."""

    def coerce(value: Any) -> int:
        text = str(value).strip().lower().removesuffix("b").removesuffix("i")
        unit = text[-1:] if text[-1:].isalpha() else ""
        digits = text.removesuffix(unit)
        if not (digits.isdecimal() and unit in _UNITS and lowest <= int(digits) * _UNITS[unit] <= highest):
            raise ValueError(f"bytes from {lowest} to {highest}, or with K, M, G (64K)")
        return int(digits) * _UNITS[unit]

    return coerce


def encoding(value: Any) -> str:
    """Accept the name of a text encoding that Python knows."""
    try:
        found = codecs.lookup(str(value))
        if not found._is_text_encoding:
            raise LookupError
    except (LookupError, ValueError):
        raise ValueError("the name of a text encoding, such as utf-8, gbk or latin-1") from None
    return found.name


@dataclass(frozen=True)
class Setting:
    """One option of a service: its name, whether it is a flag, its default, and its line of help."""

    name: str
    flag: bool
    default: object
    description: str


def _wants_value(options: usage.Options) -> dict[str, bool]:
    return {word.removesuffix("="): word.endswith("=") for word in options.longOpt}


def declared_settings(make: Callable[[], usage.Options]) -> list[Setting]:
    """List the options that an options class declares, in its own order; `--help` and `--version` aside."""
    options = make()
    return [
        Setting(name, not takes_value, options.get(name), options.docs.get(name) or "")
        for name, takes_value in _wants_value(options).items()
        if name not in ("help", "version")
    ]


def _argument(name: str, value: object) -> list[str]:
    """Write one setting as `usage.Options` reads it; a flag's value is True, False leaves it out."""
    if isinstance(value, bool):
        return [f"--{name}"] if value else []
    return [f"--{name}={value}"]


def _explain(error: Exception) -> str:
    return str(error).removeprefix("Parameter type enforcement failed: ")


def parse_settings(
    make: Callable[[], usage.Options],
    settings: Mapping[str, object],
    written: Callable[[str], str] = "--{}".format,
) -> usage.Options:
    """Parse `settings` (option name to value, True for a flag) with an options class.

    `written(name)` says how the user wrote an option, for the messages. Raises `MistakeError` with a line
    for every setting that is wrong, not only the first.
    """
    mistakes = []
    known = _wants_value(make())
    for name, value in settings.items():
        if known.get(name, not isinstance(value, bool)) == isinstance(value, bool):
            mistakes.append(f"{written(name)} {'needs a value' if known[name] else 'takes no value'}")
            continue
        # The class's own postOptions judges all settings together, below; alone, one may look incomplete.
        # The attribute is set on the instance, so that no other user of the class sees it.
        alone = make()
        alone.postOptions = lambda: None  # type: ignore[method-assign]
        try:
            alone.parseOptions(_argument(name, value))
        except (usage.UsageError, getopt.GetoptError, ValueError) as error:
            mistakes.append(f"{written(name)} {value}: {_explain(error)}")
    if mistakes:
        raise MistakeError(mistakes)
    options = make()
    try:
        options.parseOptions([word for name, value in settings.items() for word in _argument(name, value)])
    except usage.UsageError as error:
        raise MistakeError([_explain(error)]) from None
    return options

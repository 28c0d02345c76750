"""Reads a service's options from plain values, and the values that options commonly hold.

The functions that end in a coercer (`whole_number`, `seconds`, …) stand in the fifth place of an entry of
`optParameters`; their errors say the accepted form.
"""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from twisted.python import usage
from twisted.python.reflect import accumulateClassList

from netsvc.errors import MistakeError
from netsvc.text import escape

__all__ = [
    "Setting",
    "byte_count",
    "declared_settings",
    "encoding",
    "number",
    "parse_settings",
    "seconds",
    "shown_as",
    "whole_number",
]

_T = TypeVar("_T")

#: Python counts these among the text encodings, but they encode host names, or nothing.
_NAME_CODECS = {"idna", "punycode", "undefined"}
#: What a help page calls the values of a coercer. No attribute of the coercer: it may be any callable.
_PLACEHOLDERS: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
_UNITS = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3}
_TIMES = {"s": 1, "m": 60, "h": 3600, "d": 86400}


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

    return shown_as("NUMBER", coerce)


def number(lowest: float, highest: float, unit: str = "a number") -> Callable[[Any], float]:
    """Accept a decimal number between two bounds, both included."""

    def coerce(value: Any) -> float:
        try:
            number = float(str(value))
        except ValueError:
            number = math.nan
        if not lowest <= number <= highest:
            raise ValueError(f"{unit} from {_plain(lowest)} to {_plain(highest)}")
        return number

    return shown_as("NUMBER" if unit == "a number" else unit.upper(), coerce)


def _plain(value: float) -> str:
    """Write a bound as a person would: 0.01, 1000000."""
    return f"{value:.0f}" if value == int(value) else f"{value:g}"


def seconds(lowest: float, highest: float) -> Callable[[Any], float]:
    """Accept a time in seconds between two bounds, both included; or with m, h or d, in minutes, hours or days."""
    coerce_number = number(lowest, highest, "seconds")

    def coerce(value: Any) -> float:
        text = str(value).strip().lower()
        # Rounded, as 1.1 minutes are 66 seconds, and not 66.00000000000001.
        found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)\s*([smhd])", text, re.ASCII)
        try:
            return coerce_number(round(float(found[1]) * _TIMES[found[2]], 9) if found else value)
        except ValueError as error:
            raise ValueError(f"{error}, or with m, h, d (10m)" if highest >= _TIMES["h"] else str(error)) from None

    return shown_as("SECONDS", coerce)


def byte_count(lowest: int, highest: int) -> Callable[[Any], int]:
    """Accept a number of bytes between two bounds, with K, M or G for powers of 1024."""

    def coerce(value: Any) -> int:
        text = str(value).strip().lower().removesuffix("b").removesuffix("i")
        unit = text[-1:] if text[-1:].isalpha() else ""
        digits = text.removesuffix(unit)
        try:
            count = int(digits) * _UNITS[unit] if digits.isdecimal() else lowest - 1
        except (ValueError, KeyError):
            count = lowest - 1
        if not lowest <= count <= highest:
            raise ValueError(f"bytes from {lowest} to {highest}, or with K, M, G (64K)")
        return count

    return shown_as("BYTES", coerce)


def encoding(value: Any) -> str:
    """Accept the name of a text encoding that Python knows."""
    try:
        found = codecs.lookup(str(value))
        if not found._is_text_encoding or found.name in _NAME_CODECS:
            raise LookupError
    except (LookupError, ValueError):
        raise ValueError("the name of a text encoding, such as utf-8, gbk or latin-1") from None
    return found.name


def shown_as(placeholder: str, coerce: Callable[[Any], _T]) -> Callable[[Any], _T]:
    """Return a coercer whose values a help page calls `placeholder`: `--files-root DIR`."""
    _PLACEHOLDERS[coerce] = placeholder
    return coerce


shown_as("ENCODING", encoding)


@dataclass(frozen=True)
class Setting:
    """One option of a service: its name, whether it is a flag, its default, its line of help, its value's name."""

    name: str
    flag: bool
    default: object
    description: str
    placeholder: str = "VALUE"


def declared_settings(make: Callable[[], usage.Options]) -> list[Setting]:
    """List the options that an options class declares, in its own order; `--help` and `--version` aside."""
    options = make()
    declared = ((word.removesuffix("="), not word.endswith("=")) for word in options.longOpt)
    parameters: list[Sequence[Any]] = []
    accumulateClassList(type(options), "optParameters", parameters)
    placeholders = {entry[0]: _PLACEHOLDERS.get(entry[4], "VALUE") for entry in parameters if len(entry) > 4}
    return [
        Setting(name, flag, options.get(name), options.docs.get(name) or "", placeholders.get(name, "VALUE"))
        for name, flag in declared
        if name not in ("help", "version")
    ]


def _argument(name: str, value: object) -> list[str]:
    """Write one setting as `usage.Options` reads it; a flag's value is True, False leaves it out."""
    if isinstance(value, bool):
        return [f"--{name}"] if value else []
    return [f"--{name}={value}"]


def _parsed(options: usage.Options, words: list[str]) -> str:
    """Parse words, and return what is wrong with them, if anything is."""
    try:
        options.parseOptions(words)
    except (usage.UsageError, ValueError) as error:
        return str(error).removeprefix("Parameter type enforcement failed: ")
    except Exception as error:  # noqa: BLE001  (Decimal and re.compile, say, raise errors that are no ValueError)
        return f"{type(error).__name__}: {error}"
    return ""


def parse_settings(
    make: Callable[[], usage.Options],
    settings: Mapping[str, object],
    written: Callable[[str], str] = "--{}".format,
) -> usage.Options:
    """Parse `settings` (option name to value, True for a flag) with an options class.

    `written(name)` says how the user wrote an option, for the messages; an option that the class's own
    message names, `--name`, is named so as well. Raises `MistakeError` with a line for every setting that is
    wrong, not only the first.
    """
    mistakes = []
    flags = {setting.name: setting.flag for setting in declared_settings(make)}
    for name, value in settings.items():
        if name not in flags:
            # getopt would take the beginning of a name for the name.
            mistakes.append(f"{written(name)}: there is no such option")
        elif flags[name] != isinstance(value, bool):
            mistakes.append(f"{written(name)} {'takes no value' if flags[name] else 'needs a value'}")
        else:
            # The class's own postOptions judges all settings together, below; alone, one may look incomplete.
            # The attribute is set on the instance, so that no other user of the class sees it.
            alone = make()
            alone.postOptions = lambda: None  # type: ignore[method-assign]
            if mistake := _parsed(alone, _argument(name, value)):
                mistakes.append(f"{written(name)} {escape(str(value))}: {mistake}")
    if mistakes:
        raise MistakeError(mistakes)
    options = make()
    if mistake := _parsed(options, [word for name, value in settings.items() for word in _argument(name, value)]):
        names = re.compile(r"--([\w-]+)")
        raise MistakeError([names.sub(lambda found: written(found[1]) if found[1] in flags else found[0], mistake)])
    return options

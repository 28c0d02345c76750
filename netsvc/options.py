"""The options that a service declares, and how plain values become them.

The fifth item of an entry of `optParameters` is its coercer, a callable that takes the text and returns the value:

- `whole_number(1, 100)`, `number(0.1, 2.5)`: numbers between two bounds, both included
- `seconds(1, 3600)`: a time, such as `90`, `90s`, `10m`, `2h` or `1d`; the value is in seconds
- `byte_count(1, 1048576)`: a size, such as `512`, `64K` or `1M`; the value is in bytes
- `encoding`: the name of a text encoding; the value is Python's name of it
- `int`, `float` and `decimal.Decimal`: any number
- `pathlib.Path`: a path; in a configuration file it is relative to the directory of the file
- a callable of your own, which raises `ValueError` with the accepted form: `ValueError("red, green or blue")`.
  `shown_as("COLOUR", callable)` is what the help calls the value.

Without a coercer the value is the text. A wrong value is one line, with the option as the user wrote it and the
accepted form: `--lights-level 11: a whole number from 0 to 10`. `bool` is refused, as it takes any text for true: what
is on or off is declared in `optFlags`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from twisted.python import usage
from twisted.python.reflect import accumulateClassList

from netsvc.base.errors import UserError
from netsvc.base.text import escape
from netsvc.base.values import (
    accepted_form,
    byte_count,
    encoding,
    number,
    placeholder_of,
    seconds,
    shown_as,
    whole_number,
)

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


@dataclass(frozen=True)
class Setting:
    """One option of a service or of the process: its name, whether it is a flag, its default and its line of help.

    `placeholder` is what the help calls its value. Values in `choices` are accepted as they are, all others are
    parsed with `coerce`.
    """

    name: str
    flag: bool
    default: object
    description: str
    placeholder: str = "VALUE"
    coerce: Callable[[Any], Any] | None = field(default=None, compare=False)
    choices: tuple[str, ...] = ()

    def parse(self, value: str) -> Any:
        """Parse a value. Raises `ValueError` with the accepted form."""
        if value in self.choices:
            return value
        if self.coerce is None:
            raise ValueError(f"write {' or '.join(self.choices)}")
        try:
            return self.coerce(value)
        except ValueError as error:
            raise ValueError(", or ".join([str(error), *self.choices])) from None


def declared_settings(make: Callable[[], usage.Options]) -> list[Setting]:
    """List the options that an options class declares, in its own order, without `--help` and `--version`."""
    return list(_declared(make))


@lru_cache(maxsize=64)
def _declared(make: Callable[[], usage.Options]) -> tuple[Setting, ...]:
    options = make()
    parameters: list[Sequence[Any]] = []
    accumulateClassList(type(options), "optParameters", parameters)
    coercers = {entry[0]: entry[4] for entry in parameters if len(entry) > 4}
    settings = []
    for long_option in options.longOpt:
        name = long_option.removesuffix("=")
        if name not in ("help", "version"):
            coerce = coercers.get(name)
            if coerce is bool:
                raise UserError([f"option {name} has the coercer bool, which takes any text for True: use optFlags"])
            description = " ".join((options.docs.get(name) or "").split())
            flag = name == long_option
            settings.append(Setting(name, flag, options.get(name), description, placeholder_of(coerce), coerce))
    return tuple(settings)


def _argument(name: str, value: object) -> list[str]:
    """Write one setting as `usage.Options` reads it; a flag's value is True, and False omits it."""
    if isinstance(value, bool):
        return [f"--{name}"] if value else []
    return [f"--{name}={value}"]


def _parse(options: usage.Options, settings: Mapping[str, object]) -> str:
    """Parse settings with an options object; return the error, or an empty string."""
    try:
        options.parseOptions([argument for item in settings.items() for argument in _argument(*item)])
    except usage.UsageError as error:
        # Twisted has caught a `ValueError` of the coercer.
        text = str(error).removeprefix("Parameter type enforcement failed: ")
        return accepted_form(ValueError(text)) if text != str(error) else text
    except Exception as error:  # noqa: BLE001  (Decimal and re.compile, say, raise errors that are no ValueError)
        return accepted_form(error)
    return ""


def parse_settings(
    make: Callable[[], usage.Options],
    settings: Mapping[str, object],
    written: Callable[[str], str] = "--{}".format,
) -> usage.Options:
    """Parse `settings` (option name to value, True for a flag) with an options class.

    `written(name)` is how the user wrote an option, for the errors; an option that the class's own error names,
    `--name`, is shown so as well. Raises `UserError` with a line for every wrong setting, not only the first.
    """
    flags = {setting.name: setting.flag for setting in _declared(make)}
    options, error = make(), ""
    if all(flags.get(name) == isinstance(value, bool) for name, value in settings.items()):
        error = _parse(options, settings)
        if not error:
            return options
    errors = []
    for name, value in settings.items():
        if name not in flags:
            # getopt would accept an abbreviated name.
            errors.append(f"{written(name)}: unknown option")
        elif flags[name] != isinstance(value, bool):
            errors.append(f"{written(name)} {'takes no value' if flags[name] else 'needs a value'}")
        else:
            # The class's own postOptions checks all settings together; a single one may look incomplete.
            # The attribute is set on the instance, so that no other user of the class sees it.
            single = make()
            single.postOptions = lambda: None  # type: ignore[method-assign]
            if wrong := _parse(single, {name: value}):
                errors.append(f"{written(name)} {escape(str(value))}: {wrong}")
    if not errors:
        names = re.compile(r"--([\w-]+)")
        errors = [names.sub(lambda found: written(found[1]) if found[1] in flags else found[0], error)]
    raise UserError(errors)

"""Reads a configuration file (TOML) into a draft of a plan, and finds every error in it, each with its line."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from netsvc.base.files import read_file
from netsvc.base.text import escape
from netsvc.config.discovery import nearest
from netsvc.config.draft import NETWORKS, PROCESS, Draft, Given, Origin
from netsvc.config.settings import SETTINGS, key_of
from netsvc.config.toml_lines import Key, TooComplexError, check_complexity, find_lines
from netsvc.interfaces import INetworkService
from netsvc.options import Setting, declared_settings
from netsvc.plan.address import resolve_address, resolve_networks, resolve_path
from netsvc.plan.limits import LIMITS
from netsvc.plan.plan import ServiceUse, access_form

#: Bytes. It is read whole, and again at every reload.
LARGEST = 1 << 18
#: Characters of environment variables in all values together: a short file could name a long one any number of times.
MOST_SUBSTITUTED = 1 << 16
#: Errors that are reported: each suggests similar names, which takes time to find.
MOST_ERRORS = 100

#: The keys of the file, of `[admin]`, of `[services.NAME]` beside protocols and options, of a listener, and of
#: `[[twistd]]`.
KEYS = (*dict.fromkeys(key_of(name)[0] for name in SETTINGS), "limits", "services", "twistd")
ADMIN_KEYS = ("address", *(key[1] for key in map(key_of, SETTINGS) if len(key) > 1))
SERVICE_KEYS = ("service", "serve", "listen", "limits", "drain")
LISTENER_KEYS = ("address", "limits")
TWISTD_KEYS = ("run", "limits")

#: What the value of a setting must be, by its placeholder.
_FORMS = {
    "ADDRESS": 'an address, such as 9000 or "unix:admin.sock"',
    "DIR": "the name of a directory",
    "FILE": "the name of a file",
}
_PATHS = ("DIR", "FILE", "PATH")
_CLASS = "PATH_OR_MODULE:NAME, such as ./my.py:MyProtocol"
_RUN = 'run = "web --listen tcp:8080 --path public"'

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SYNTAX_ERROR = re.compile(r" \(at (?:line (?P<line>\d+), column (?P<column>\d+)|(?P<end>end of document))\)$")
_SUBSTITUTION = re.compile(r"\$(?:\$|\{(?:(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\})?)")
#: No value is as large, and beyond some thousand digits Python refuses to write one.
_LARGEST_NUMBER = 1 << 64
_BOOLEANS = {"true": True, "false": False}


class _TooManyError(Exception):
    """There are `MOST_ERRORS` already."""


def read_config(path: str, draft: Draft) -> None:
    """Read the file into a draft, with its errors."""
    draft.config = os.path.abspath(path)
    shown = escape(path)
    try:
        text = read_file(path, LARGEST).decode("utf-8-sig")
        check_complexity(text)
        table = tomllib.loads(text)
        lines = find_lines(text)
    except OSError as error:
        draft.errors.append(f"{shown}: {error.strerror}; name a readable configuration file (netsvc init writes one)")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        draft.errors.append(f"{shown}:{line}: not UTF-8, as TOML must be")
    except TooComplexError as error:
        draft.errors.append(f"{shown}:{error.line}: {error}")
    except ValueError as error:
        draft.errors.append(f"{shown}:{_syntax_error(str(error), text)}")
    else:
        try:
            _Reader(shown, lines, draft).read(table)
        except _TooManyError:
            draft.errors.append(f"{shown}: too many errors; stopping after {MOST_ERRORS}")


def resolve_reference(reference: str, directory: str) -> str:
    """Resolve a file in `PATH_OR_MODULE:NAME`, as seen from a directory; a module is found where Python finds it."""
    target, _, name = reference.rpartition(":")
    return f"{resolve_path(target, directory)}:{name}" if target.endswith(".py") or "/" in target else reference


def _syntax_error(reason: str, text: str) -> str:
    """Write an error of tomllib with its location first: `3: column 5: …`."""
    found = _SYNTAX_ERROR.search(reason)
    if found is None:
        # A number of more digits than Python reads.
        return f" {escape(reason)}; the file must be TOML (toml.io)"
    what = escape(f"{reason[0].lower()}{reason[1 : found.start()]}")
    line = found["line"] or text.rstrip("\n").count("\n") + 1
    column = f"column {found['column']}: " if found["column"] else "at the end: "
    return f"{line}: {column}{what}; the file must be TOML (toml.io)"


class _Reader:
    """Reads one file. A method is named for what it reads; `key` is where that is, and a `ValueError` is its error."""

    def __init__(self, shown: str, lines: Mapping[Key, int], draft: Draft) -> None:
        self._shown = shown
        self._lines = lines
        #: Characters of environment variables so far.
        self._substituted = 0
        self._draft = draft
        assert draft.config is not None
        self._directory = os.path.dirname(draft.config)

    @contextmanager
    def _at(self, key: Key) -> Iterator[None]:
        """Report a `ValueError` in the block as the error of a key."""
        try:
            yield
        except ValueError as error:
            if len(self._draft.errors) >= MOST_ERRORS:
                raise _TooManyError from None
            self._draft.errors.append(self._origin(key).error(error))
        else:
            # The draft has errors of its own.
            if len(self._draft.errors) > MOST_ERRORS:
                raise _TooManyError

    def _origin(self, key: Key) -> Origin:
        parts = [part if _BARE_KEY.fullmatch(part) else f'"{escape(part)}"' for part in key if isinstance(part, str)]
        while key and key not in self._lines:
            # The line of the nearest key around it.
            key = key[:-1]
        return Origin(".".join(parts), f"{self._shown}:{self._lines.get(key, 1)}: ")

    def read(self, table: Mapping[str, Any]) -> None:
        for name, value in table.items():
            key: Key = (name,)
            with self._at(key):
                if name == "admin":
                    self._admin(key, value)
                elif name in SETTINGS:
                    self._setting(key, name, value)
                elif name == "limits":
                    self._level(key, PROCESS, value)
                elif name == "services":
                    for service, each in self._table(value, "[services.echo]").items():
                        with self._at((*key, service)):
                            self._service((*key, service), service, each)
                elif name == "twistd":
                    self._twistd(key, value)
                elif name in self._draft.catalogue.services:
                    raise ValueError(f"unknown key; did you mean [services.{name}]?")
                else:
                    raise _unknown(name, KEYS)

    def _setting(self, key: Key, name: str, value: object) -> None:
        setting = SETTINGS[name]
        if setting.flag:
            self._draft.set(name, self._flag(value), self._origin(key))
            return
        choices = " or ".join(f'"{choice}"' for choice in setting.choices)
        form = _FORMS.get(setting.placeholder, "a number")
        text = self._text(value, choices if setting.coerce is None else f"{form}, or {choices}" if choices else form)
        if setting.placeholder == "ADDRESS":
            text = resolve_address(text, self._directory)
        elif setting.placeholder in _PATHS and text not in setting.choices:
            form, path = access_form(text) if name == "access" else ("", text)
            text = f"{form}:" * bool(form) + resolve_path(path, self._directory)
        self._draft.set(name, text, self._origin(key))

    def _admin(self, key: Key, value: object) -> None:
        if not isinstance(value, dict):
            self._setting(key, "admin", value)
        elif not value:
            raise ValueError("the address is missing; write address = 9000, for example")
        else:
            self._only(key, value, ADMIN_KEYS)
            for name in value.keys() & set(ADMIN_KEYS):
                with self._at((*key, name)):
                    self._setting((*key, name), "admin" if name == "address" else f"admin-{name}", value[name])

    def _only(self, key: Key, table: Mapping[str, Any], known: Sequence[str]) -> None:
        for name in table:
            with self._at((*key, name)):
                if name not in known:
                    raise _unknown(name, known)

    def _table(self, value: object, form: str) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            raise ValueError(f"must be a table; write {form}")
        return value

    def _text(self, value: object, form: str) -> str:
        """Return a scalar as an argument of a command line would have it, with environment variables replaced."""
        if isinstance(value, str):
            return _SUBSTITUTION.sub(self._substitute, value)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ValueError(f"must be {form}")
        if not abs(value) <= _LARGEST_NUMBER:
            raise ValueError("the number is too large")
        return str(value)

    def _substitute(self, found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        name, default = found["name"], found["default"]
        if name is None:
            raise ValueError("write ${NAME} or ${NAME:-DEFAULT} for an environment variable, $$ for a dollar sign")
        value = self._draft.environment.get(name)
        if value is None and default is None:
            raise ValueError(f"environment variable {name} is not set; set it, or write ${{{name}:-DEFAULT}}")
        if not value:
            return default or ""
        self._substituted += len(value)
        if self._substituted > MOST_SUBSTITUTED:
            raise ValueError(
                f"with environment variable {name}, variables fill in more than {MOST_SUBSTITUTED} characters; put "
                "long lists of networks in files of their own"
            )
        return value

    def _level(self, key: Key, service: str, value: object) -> None:
        """Read the limits of the process, or of a service."""
        for name, given in self._limits(key, value).items():
            self._draft.give(service, "limit", name, given.value, given.origin)

    def _limits(self, key: Key, value: object) -> dict[str, Given]:
        limits: dict[str, Given] = {}
        with self._at(key):
            for name, each in self._table(value, "[limits], or limits = { idle = 60 }").items():
                with self._at((*key, name)):
                    limits[name] = Given(self._limit((*key, name), each), self._origin((*key, name)))
        return limits

    def _limit(self, key: Key, value: object) -> str | list[str]:
        found: str | list[str]
        if isinstance(value, list):
            found = []
            for index, each in enumerate(value):
                with self._at((*key, index)):
                    found.append(self._text(each, "a number or text"))
        else:
            found = self._text(value, "a number, text or a list, or none")
        return resolve_networks(found, self._directory) if key[-1] in NETWORKS and found != "none" else found

    def _service(self, key: Key, name: str, value: object) -> None:
        table = self._table(value, f"[services.{escape(name)}]")
        service = self._named(key, name, table)
        settings = {setting.name: setting for setting in declared_settings(service.options)} if service else {}
        for part, each in table.items():
            here = (*key, part)
            with self._at(here):
                if part == "limits":
                    self._level(here, name, each)
                elif part == "drain":
                    self._draft.give(name, "drain", part, self._text(each, "a number"), self._origin(here))
                elif part in ("service", "serve") or service is None:
                    # The keys of an unknown service are not known.
                    continue
                elif part == "listen" or part in service.protocols:
                    self._addresses(here, name, "" if part == "listen" else part, each)
                elif part in settings:
                    self._option(here, name, settings[part], each)
                elif part in LIMITS:
                    raise _unknown(part, SERVICE_KEYS)
                else:
                    hint = nearest(part, [*service.protocols, *settings, *SERVICE_KEYS])
                    raise ValueError(f"{name} has no protocol, option or other key of that name{hint}")

    def _named(self, key: Key, name: str, table: Mapping[str, Any]) -> INetworkService | None:
        """Return the service that a table configures, under its name in the draft; or None, after an error."""
        which = next((part for part in ("serve", "service") if part in table), "")
        asked = (*key, which) if which and _NAME.fullmatch(name) else key
        with self._at(asked):
            use = ServiceUse(name)
            if not _NAME.fullmatch(name):
                raise ValueError("invalid name for a service; use a-z, 0-9 and single hyphens")
            if "service" in table and "serve" in table:
                raise ValueError("service is given as well; write one of them")
            if which == "service":
                use = ServiceUse(self._text(table[which], 'the name of a service, such as "chat"'))
            if which == "serve":
                text = self._text(table[which], _CLASS)
                module, _, attribute = text.rpartition(":")
                if not (module and attribute):
                    raise ValueError(f"write {_CLASS}")
                use = ServiceUse(resolve_reference(text, self._directory), adhoc=True, name=name)
            return self._draft.name_use(name, use, self._origin(key), self._origin(asked))
        self._draft.unusable.add(name)
        return None

    def _addresses(self, key: Key, service: str, protocol: str, value: object) -> None:
        if not isinstance(value, list):
            self._address(key, service, protocol, value)
            return
        for index, each in enumerate(value):
            with self._at((*key, index)):
                self._address((*key, index), service, protocol, each)

    def _address(self, key: Key, service: str, protocol: str, value: object) -> None:
        self._draft.addressed.add(service)
        limits: dict[str, Given] = {}
        if isinstance(value, dict):
            self._only(key, value, LISTENER_KEYS)
            limits = self._limits((*key, "limits"), value.get("limits", {}))
            if "address" not in value:
                raise ValueError("the address is missing; write { address = 9001, limits = { perip = 4 } }")
            key, value = (*key, "address"), value["address"]
        with self._at(key):
            text = self._text(value, 'an address, such as 9001 or "127.0.0.1:9001", or a list of addresses')
            origin = self._origin(key).valued(text)
            self._draft.listen(service, protocol, resolve_address(text, self._directory), origin, limits)

    def _option(self, key: Key, service: str, setting: Setting, value: object) -> None:
        given: str | bool
        if setting.flag:
            given = self._flag(value)
        else:
            given = self._text(value, "text or a number")
            if setting.placeholder in _PATHS:
                given = resolve_path(given, self._directory)
            elif setting.placeholder == "STORE" and given.startswith("sqlite:"):
                given = f"sqlite:{resolve_path(given.removeprefix('sqlite:'), self._directory)}"
        if given is not False:
            self._draft.give(service, "option", setting.name, given, self._origin(key))

    def _flag(self, value: object) -> bool:
        given = _BOOLEANS.get(self._text(value, "")) if isinstance(value, str) else value
        if not isinstance(given, bool):
            raise ValueError("must be true or false")
        return given

    def _twistd(self, key: Key, value: object) -> None:
        if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
            raise ValueError(f"must be a list of tables; write [[twistd]] and below it {_RUN}")
        for index, each in enumerate(value):
            here = (*key, index)
            self._only(here, each, TWISTD_KEYS)
            limits = self._limits((*here, "limits"), each.get("limits", {}))
            with self._at((*here, "run") if "run" in each else here):
                if "run" not in each:
                    raise ValueError(f"run is missing; write {_RUN}")
                if not isinstance(each["run"], str):
                    raise ValueError("must be text, a twistd plugin and its options")
                self._draft.embed(self._text(each["run"], ""), self._origin((*here, "run")), limits)


def _unknown(name: str, known: Sequence[str]) -> ValueError:
    if name in LIMITS:
        return ValueError(f"unknown key; limits have a table: limits = {{ {name} = … }}")
    hint = nearest(name, known) or f"; the keys are {', '.join(known)}"
    return ValueError(f"unknown key{hint}")

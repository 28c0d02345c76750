"""Reads a configuration file (TOML) into a draft of a plan, and finds every mistake in it, each with its line."""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from netsvc.config.draft import NETWORKS, PROCESS, Draft
from netsvc.config.places import Path, Places, find_places
from netsvc.config.process import ADMIN_PARTS
from netsvc.config.relative import resolve_address, resolve_networks, resolve_path, resolve_reference
from netsvc.config.written import Given, Written
from netsvc.discovery import nearest
from netsvc.limits import LIMITS
from netsvc.plan import ACCESS_FORMS, ServiceUse
from netsvc.settings import Setting, declared_settings
from netsvc.text import escape

__all__ = ["ADMIN_KEYS", "KEYS", "LARGEST", "SERVICE_KEYS", "TWISTD_KEYS", "read_config"]

#: Bytes. It is read whole, and again at every reload.
LARGEST = 1 << 20

#: Keys of a file whose values are one word each, and how a mistake names such a word.
_WORDS = {
    "drain": "a number",
    "workers": "a number",
    "log": "a text",
    "access": "a text: log, off, or a file",
    "state": "the name of a directory",
}

#: What may stand in a file, in `[admin]`, in `[services.NAME]` beside protocols and options, in a listener, and in
#: `[[twistd]]`.
KEYS = (*_WORDS, "admin", "limits", "services", "twistd")
ADMIN_KEYS = ("address", *ADMIN_PARTS)
SERVICE_KEYS = ("service", "serve", "listen", "limits", "drain")
LISTENER_KEYS = ("address", "limits")
TWISTD_KEYS = ("run", "limits")

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SYNTAX_PLACE = re.compile(r" \(at (?:line (?P<line>\d+), column (?P<column>\d+)|(?P<end>end of document))\)$")
_SUBSTITUTION = re.compile(r"\$(?:\$|\{(?:(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\})?)")
#: No value is as large, and beyond some thousand digits Python refuses to write one.
_LARGEST_NUMBER = 1 << 64
_BOOLEANS = {"true": True, "false": False}
#: Nobody reads more, and to look for the word that was meant takes its time.
MOST_MISTAKES = 100


class _EnoughError(Exception):
    """There are as many mistakes as are told."""


def read_config(path: str, draft: Draft, environment: Mapping[str, str] = os.environ) -> None:
    """Read the file into a draft; what is wrong with it becomes the draft's mistakes."""
    draft.config = os.path.abspath(path)
    shown = escape(path)
    try:
        text = _read(path).decode("utf-8-sig")
        table = tomllib.loads(text)
        places = find_places(text)
    except OSError as error:
        draft.mistakes.append(f"{shown}: {error.strerror}; name a file that can be read, such as netsvc init writes")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        draft.mistakes.append(f"{shown}:{line}: not UTF-8, which a TOML file is")
    except RecursionError:
        draft.mistakes.append(f"{shown}: arrays in arrays, too many to read; no value here needs more than two")
    except ValueError as error:
        draft.mistakes.append(f"{shown}:{_syntax_mistake(str(error), text)}")
    else:
        try:
            _Reader(shown, places, draft, environment).read(table)
        except _EnoughError:
            draft.mistakes.append(f"{shown}: that is enough; mend these {MOST_MISTAKES} mistakes, and see what is left")


def _read(path: str) -> bytes:
    try:
        with open(path, "rb", opener=_open) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError(0, "it is no file")
            content = file.read(LARGEST + 1)
    except ValueError:
        raise OSError(0, "no file has such a name") from None
    if len(content) > LARGEST:
        raise OSError(0, f"it is larger than {LARGEST} bytes")
    return content


def _open(path: str, flags: int) -> int:
    # A FIFO or a terminal would have us wait, and a reload must not.
    return os.open(path, flags | os.O_NONBLOCK)


def _syntax_mistake(reason: str, text: str) -> str:
    """Say what tomllib says with the place first: `3: column 5: …`."""
    found = _SYNTAX_PLACE.search(reason)
    if found is None:
        # A number of more digits than Python reads.
        return f" {escape(reason)}; the file is TOML (toml.io)"
    what = escape(f"{reason[0].lower()}{reason[1 : found.start()]}")
    line = found["line"] or text.rstrip("\n").count("\n") + 1
    column = f"column {found['column']}: " if found["column"] else "at the end: "
    return f"{line}: {column}{what}; the file is TOML (toml.io)"


class _Reader:
    """Reads one file. The name of a method is what it reads; `path` is where that stands."""

    def __init__(self, shown: str, places: Places, draft: Draft, environment: Mapping[str, str]) -> None:
        self._shown = shown
        self._places = places
        self._draft = draft
        self._environment = environment
        assert draft.config is not None
        self._directory = os.path.dirname(draft.config)

    def read(self, table: Mapping[str, Any]) -> None:
        for key, value in table.items():
            path: Path = (key,)
            if key in _WORDS:
                self._of_process(path, key, value)
            elif key == "admin":
                self._admin(path, value)
            elif key == "limits":
                self._level(path, PROCESS, value)
            elif key == "services":
                for name, each in self._table(path, value, "[services.echo]").items():
                    self._service((*path, name), name, each)
            elif key == "twistd":
                self._twistd(path, value)
            elif key in self._draft.catalogue.services:
                self._mistake(path, f"there is no such key; did you mean [services.{key}]?")
            else:
                self._unknown(path, KEYS)

    def _of_process(self, path: Path, key: str, value: object) -> None:
        word = self._word(path, value, _WORDS[key])
        if word is None:
            return
        if key == "state" or (key == "access" and word not in ACCESS_FORMS):
            word = resolve_path(word, self._directory)
        self._draft.process.set(key, word, self._written(path))

    def _admin(self, path: Path, value: object) -> None:
        table = value if isinstance(value, dict) else {"address": value}
        self._only(path, table, ADMIN_KEYS)
        if not table:
            self._mistake(path, "there is no address in it; write address = 9000, for example")
        place = (*path, "address") if isinstance(value, dict) else path
        if "address" in table:
            word = self._word(place, table["address"], 'an address, such as 9000 or "unix:admin.sock"')
            if word is not None:
                self._draft.process.admin(resolve_address(word, self._directory), self._written(place))
        for name in ADMIN_PARTS:
            if name in table:
                here = (*path, name)
                word = self._word(here, table[name], "the name of a file")
                if word is not None:
                    self._draft.process.admin_part(name, resolve_path(word, self._directory), self._written(here))

    def _unknown(self, path: Path, known: Sequence[str]) -> None:
        key = str(path[-1])
        hint = nearest(key, known) or f"; there are {', '.join(known)}"
        if key in LIMITS:
            hint = f"; limits have a table: limits = {{ {key} = … }}"
        self._mistake(path, f"there is no such key{hint}")

    def _written(self, path: Path) -> Written:
        parts = [part if _BARE_KEY.fullmatch(part) else f'"{escape(part)}"' for part in path if isinstance(part, str)]
        return Written(".".join(parts), f"{self._shown}:{self._places.line(path)}: ")

    def _mistake(self, path: Path, what: object) -> None:
        if len(self._draft.mistakes) >= MOST_MISTAKES:
            raise _EnoughError
        self._draft.mistakes.append(self._written(path).mistake(what))

    def _table(self, path: Path, value: object, form: str) -> Mapping[str, Any]:
        if isinstance(value, dict):
            return value
        self._mistake(path, f"this is a table; write {form}")
        return {}

    def _word(self, path: Path, value: object, form: str) -> str | None:
        """Return a scalar as a word of a command line would have it, the environment put in; None: a mistake."""
        if isinstance(value, str):
            try:
                return _SUBSTITUTION.sub(self._substitute, value)
            except ValueError as error:
                self._mistake(path, error)
                return None
        if isinstance(value, int | float) and not isinstance(value, bool):
            if abs(value) <= _LARGEST_NUMBER:
                return str(value)
            self._mistake(path, "no number here is as large as that")
        else:
            self._mistake(path, f"this is {form}")
        return None

    def _substitute(self, found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        name, default = found["name"], found["default"]
        if name is None:
            raise ValueError("write ${NAME} or ${NAME:-DEFAULT} for what the environment has, $$ for a dollar sign")
        value = self._environment.get(name)
        if default is not None:
            return value or default
        if value is None:
            raise ValueError(f"the environment has no {name}; set it, or write ${{{name}:-DEFAULT}}")
        return value

    def _level(self, path: Path, key: str, value: object) -> None:
        """Read the limits of the process, or of a service."""
        for name, given in self._limits(path, value).items():
            self._draft.limit(key, name, given.value, given.written)

    def _limits(self, path: Path, value: object) -> dict[str, Given]:
        limits: dict[str, Given] = {}
        for name, each in self._table(path, value, "[limits], or limits = { idle = 60 }").items():
            here = (*path, name)
            found = self._limit(here, each)
            if found is not None:
                if name in NETWORKS and found != "none":
                    found = resolve_networks(found, self._directory)
                limits[name] = Given(found, self._written(here))
        return limits

    def _limit(self, path: Path, value: object) -> str | list[str] | None:
        if not isinstance(value, list):
            return self._word(path, value, "a number, a text or a list, or none")
        words = [self._word((*path, place), each, "a number or a text") for place, each in enumerate(value)]
        known = [word for word in words if word is not None]
        return known if len(known) == len(words) else None

    def _service(self, path: Path, key: str, value: object) -> None:
        if not isinstance(value, dict):
            self._table(path, value, f"[services.{escape(key)}]")
            return
        use, asked = self._use(path, key, value)
        service = None if use is None else self._draft.name_use(key, use, self._written(path), self._written(asked))
        settings = {setting.name: setting for setting in declared_settings(service.options)} if service else {}
        for name, each in value.items():
            here = (*path, name)
            if name == "limits":
                self._level(here, key, each)
            elif name == "drain":
                word = self._word(here, each, "a number")
                if word is not None:
                    self._draft.drain(key, word, self._written(here))
            elif name in ("service", "serve") or service is None:
                # Of a service that is not known it cannot be said what it has.
                continue
            elif name == "listen" or name in service.protocols:
                self._addresses(here, key, "" if name == "listen" else name, each)
            elif name in settings:
                self._option(here, key, settings[name], each)
            elif name in LIMITS:
                self._unknown(here, SERVICE_KEYS)
            else:
                hint = nearest(name, [*service.protocols, *settings, *SERVICE_KEYS])
                self._mistake(here, f"{key} has no protocol, no option and no other key of that name{hint}")

    def _use(self, path: Path, key: str, table: Mapping[str, Any]) -> tuple[ServiceUse | None, Path]:
        """Say which service is meant, and where that stands."""
        if not _NAME.fullmatch(key):
            self._mistake(path, "no name for a service: use a-z, 0-9 and single hyphens")
        elif "service" in table and "serve" in table:
            self._mistake((*path, "serve"), "service is given as well; write one of them")
        elif "service" in table:
            path = (*path, "service")
            word = self._word(path, table["service"], 'the name of a service, such as "chat"')
            if word is not None:
                return ServiceUse(word), path
        elif "serve" in table:
            path = (*path, "serve")
            form = "PATH_OR_MODULE:NAME, such as ./my.py:MyProtocol"
            word = self._word(path, table["serve"], form)
            module, _, attribute = (word or "").rpartition(":")
            if module and attribute and word is not None:
                return ServiceUse(resolve_reference(word, self._directory), adhoc=True), path
            if word is not None:
                self._mistake(path, f"write {form}")
        else:
            return ServiceUse(key), path
        self._draft.unusable.add(key)
        return None, path

    def _only(self, path: Path, table: Mapping[str, Any], known: Sequence[str]) -> None:
        for name in table:
            if name not in known:
                self._unknown((*path, name), known)

    def _addresses(self, path: Path, key: str, protocol: str, value: object) -> None:
        if not isinstance(value, list):
            self._address(path, key, protocol, value)
            return
        for place, each in enumerate(value):
            self._address((*path, place), key, protocol, each)

    def _address(self, path: Path, key: str, protocol: str, value: object) -> None:
        self._draft.addressed.add(key)
        limits: dict[str, Given] = {}
        if isinstance(value, dict):
            self._only(path, value, LISTENER_KEYS)
            limits = self._limits((*path, "limits"), value.get("limits", {}))
            if "address" not in value:
                self._mistake(path, "there is no address in it; write { address = 9001, limits = { perip = 4 } }")
                return
            path, value = (*path, "address"), value["address"]
        word = self._word(path, value, 'an address, such as 9001 or "127.0.0.1:9001", or a list of them')
        if word is not None:
            written = self._written(path).valued(word)
            self._draft.listen(key, protocol, resolve_address(word, self._directory), written, limits)

    def _option(self, path: Path, key: str, setting: Setting, value: object) -> None:
        written = self._written(path)
        if setting.flag:
            if isinstance(value, str):
                value = _BOOLEANS.get(self._word(path, value, "") or "", value)
            if not isinstance(value, bool):
                self._mistake(path, "this is true or false")
            elif value:
                self._draft.option(key, setting.name, True, written)
            return
        word = self._word(path, value, "a text or a number")
        if word is not None:
            if setting.placeholder in ("DIR", "FILE", "PATH"):
                word = resolve_path(word, self._directory)
            self._draft.option(key, setting.name, word, written)

    def _twistd(self, path: Path, value: object) -> None:
        if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
            self._mistake(path, 'this is a list of tables; write [[twistd]] and below it run = "web --path public"')
            return
        for place, each in enumerate(value):
            here = (*path, place)
            self._only(here, each, TWISTD_KEYS)
            limits = self._limits((*here, "limits"), each.get("limits", {}))
            if "run" not in each:
                self._mistake(here, 'there is nothing to run; write run = "web --listen tcp:8080 --path public"')
                continue
            form = "a text with a twistd plugin and its options"
            # A number would be a word, too.
            word = self._word((*here, "run"), each["run"] if isinstance(each["run"], str) else None, form)
            if word is not None:
                self._draft.embed(word, self._written((*here, "run")), limits)

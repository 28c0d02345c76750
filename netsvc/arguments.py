"""Reads command line words into a plan, and finds every mistake in them, not only the first."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Iterator, Sequence

from netsvc.address import Address
from netsvc.config.draft import PROCESS, Draft, load_use
from netsvc.config.process import ADMIN_PARTS
from netsvc.config.reading import read_config
from netsvc.config.written import Written
from netsvc.discovery import Catalogue, nearest
from netsvc.errors import MistakeError
from netsvc.interfaces import INetworkService
from netsvc.plan import DEFAULT_DRAIN, Plan
from netsvc.settings import declared_settings
from netsvc.text import escape

__all__ = ["EXAMPLES", "OF_MANY", "OPTIONS", "SHORTHANDS", "in_order", "load_use", "read_arguments", "survey_arguments"]

#: Echo is the default service.
SHORTHANDS = {"tcp": "echo-tcp", "udp": "echo-udp"}

EXAMPLES = ("--tcp 9001 --udp 9001", "--chat 9002", "--files 9003 --files-root ./public")

#: The options that are no service's: their form, default, and line of help.
OPTIONS = (
    *((f"--{short} ADDRESS", "", f"Short for --{whole}") for short, whole in SHORTHANDS.items()),
    ("--serve TARGET=ADDRESS", "", "Run a class straight from a file or module: ./my.py:MyProtocol=9001"),
    ("--with WORDS", "", 'Run another twistd plugin as well: "web --listen tcp:8080 --path public"'),
    ("--config FILE", "", "Read this file first; netsvc init writes one, and netsvc run alone reads ./netsvc.toml"),
    ("--drain SECONDS", f"{DEFAULT_DRAIN:g}", "How long conversations have to end when the process stops"),
    ("--workers NUMBER", "1", "How many processes serve, on the same ports; auto: one for each core"),
    ("--admin ADDRESS", "", "Serve the admin page, metrics and API there; a bare port is on this machine only"),
    ("--admin-token FILE", "", "Who asks for the admin page must know the word in it"),
    ("--admin-ca FILE", "", "Who asks for the admin page must have a certificate signed by one of these (PEM)"),
    ("--log FORM", "text", "How the log is written: text, or json, one object a line"),
    ("--access WHERE", "log", "Where a record of each connection goes: log, off, or a file of its own"),
    ("--state DIR", "", "Keep there what is to be kept; below systemd, that of its unit"),
    ("--limit NAME=VALUE", "", "Set a limit for the whole process; the limits are at the end of this page"),
    ("--list", "", "Show the services, their protocols and options, and where each comes from, and exit"),
    ("--version", "", "Show the version and exit"),
    ("--help", "", "Show this page and exit"),
)

#: Options of twistd itself, which go before the plugin's name.
_TWISTDS = {
    *("chroot", "debug", "euid", "gid", "logfile", "logger", "no_save", "nodaemon", "originalname", "pidfile"),
    *("prefix", "profile", "profiler", "python", "reactor", "rundir", "savestats", "syslog", "uid", "umask"),
}

#: Options that show something and end the command, before any other word is read.
_PAGES = ("help", "list", "version")

#: Options of the process, whatever it runs, and those that the command of one service does not have.
_ADMIN = ("admin", *(f"admin-{part}" for part in ADMIN_PARTS))
_OF_PROCESS = ("drain", "workers", *_ADMIN, "log", "access", "state", "limit")
OF_MANY = ("serve", "with", "config")

_EMBEDDED = 'write a twistd plugin and its options as one word: --with "web --listen tcp:8080 --path public"'


def read_arguments(
    words: Sequence[str], catalogue: Catalogue, alone: str | None = None, in_use: Collection[Address] = ()
) -> Plan:
    """Read `words` into a plan.

    With `alone`, the words are those of one service's own command: its options have no prefix, and a word
    that is no option is an address of its default protocol. Raises `MistakeError` with every mistake. The
    certificates of addresses that are `in_use` are not read: they may not be readable any more, and need not be.
    """
    plan, mistakes = survey_arguments(words, catalogue, alone, in_use)
    if mistakes:
        raise MistakeError(mistakes)
    return plan


def survey_arguments(
    words: Sequence[str], catalogue: Catalogue, alone: str | None = None, in_use: Collection[Address] = ()
) -> tuple[Plan, list[str]]:
    """Read `words` as `read_arguments` does; return the plan of what is right in them, and every mistake.

    A `--config` file is read anew each time. What the words say is added to it, and wins over it.
    """
    draft = Draft(catalogue, alone, in_use=in_use)
    files = [] if alone else list(_values(words, "config"))
    if len(files) > 1:
        draft.mistakes.append("--config is given twice: one file has all")
    for file in filter(None, files[:1]):
        read_config(file, draft)
    _Reader(draft).read(words)
    draft.judge()
    plan = draft.plan()
    if not (plan.listeners or plan.twistd or draft.mistakes):
        draft.mistakes.append(_nothing_to_run(alone, files))
    return plan, in_order(MistakeError(draft.mistakes).mistakes, words)


def in_order(mistakes: Sequence[str], words: Sequence[str]) -> list[str]:
    """Sort the mistakes in the words' `--config` file by line, before all others; leave out what is said twice."""
    files = list(_values(words, "config"))

    def line(mistake: str) -> float:
        found = re.match(rf"{re.escape(escape(files[0]))}:(\d+): ", mistake) if files else None
        return int(found[1]) if found else math.inf

    return sorted(dict.fromkeys(mistakes), key=line)


def _nothing_to_run(alone: str | None, files: Sequence[str]) -> str:
    if files:
        return f"{escape(files[0])}: nothing to run; write [services.echo] and below it tcp = 9001, for example"
    command = f"twistd -n netsvc-{alone}" if alone else "twistd -n netsvc"
    examples = ("9001",) if alone else EXAMPLES
    here = "" if alone or not os.path.exists("netsvc.toml") else "; or, as it is here: --config netsvc.toml"
    return f"nothing to run; for example: {'  or  '.join(f'{command} {each}' for each in examples)}{here}"


def _values(words: Sequence[str], name: str) -> Iterator[str]:
    """Find the values of an option, before it is known which other options take one."""
    for place, word in enumerate(words):
        if word.startswith(f"--{name}="):
            yield word.partition("=")[2]
        elif word == f"--{name}" and place + 1 < len(words) and not words[place + 1].startswith("--"):
            yield words[place + 1]


class _Reader:
    """Reads words into a draft, which has what was in a file already."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._alone = draft.alone
        self._declared: dict[str, dict[str, bool]] = {}

    def _mistake(self, line: str) -> None:
        self._draft.mistakes.append(line)

    def read(self, words: Sequence[str]) -> None:
        pending = list(reversed(words))
        while pending:
            word = pending.pop()
            if not word.startswith("--"):
                self._read_bare_word(word)
                continue
            name, equals, value = word[2:].partition("=")
            given: str | None = value if equals else None
            if given is None and not self._is_flag(name) and pending and not pending[-1].startswith("--"):
                given = pending.pop()
            self._read_option(name, given)

    def _read_bare_word(self, word: str) -> None:
        if len(word) > 1 and word.startswith("-"):
            self._mistake(f"{escape(word)} is no option here; those of twistd go before the plugin's name")
        elif self._alone is not None:
            self._draft.listen(self._alone, "", word, Written(escape(word)))
        else:
            cure = "Write --<service> ADDRESS, such as --tcp 9001"
            if word.endswith(".toml"):
                cure = f"Write --config {escape(word)}"
            elif re.fullmatch(r".+\.py:\w+", word):
                cure = f"Write --serve {escape(word)}=9001"
            self._mistake(f"{escape(word) or 'an empty word'}: what is that? {cure}")

    def _split(self, name: str) -> tuple[str, str] | None:
        """Split an option's name into the service's name and what follows it."""
        if self._alone is not None:
            return self._alone, name
        name = SHORTHANDS.get(name, name)
        services = [
            service
            for service in self._draft.names()
            if name == service or (name.startswith(f"{service}-") and name != f"{service}-")
        ]
        if not services:
            return None
        service = max(services, key=len)
        return service, name[len(service) + 1 :]

    def _flags_and_values(self, service: INetworkService, key: str) -> dict[str, bool]:
        """Say of each option of a service whether it is a flag."""
        if key not in self._declared:
            self._declared[key] = {setting.name: setting.flag for setting in declared_settings(service.options)}
        return self._declared[key]

    def _is_flag(self, name: str) -> bool:
        parts = self._split(name)
        service = self._draft.service(parts[0]) if parts else None
        return bool(service and parts and self._flags_and_values(service, parts[0]).get(parts[1]))

    def _read_option(self, name: str, value: str | None) -> None:
        parts = self._split(name)
        if name in _PAGES:
            self._mistake(f"--{name} takes no value")
        elif name in _OF_PROCESS or (name in OF_MANY and self._alone is None):
            self._read_own_option(name, value)
        elif parts is None and name in _TWISTDS:
            self._mistake(
                f"--{name} is an option of twistd: write it before the plugin's name, twistd -n --{name} … netsvc …"
            )
        elif parts is None:
            known = [*self._draft.names(), *SHORTHANDS, *_OF_PROCESS, *OF_MANY, "list", "help"]
            # A mistyped service shows in its first word, a mistyped protocol or option in the whole.
            hint = nearest(name, known, "--") or nearest(name.partition("-")[0], known, "--")
            self._mistake(f"--{escape(name)}: there is no such option, and no service of that name{hint}")
            self._draft.mistakes += self._draft.catalogue.problems
        elif service := self._draft.service(parts[0]):
            self._read_service_option(service, parts[0], parts[1], name, value)

    def _read_own_option(self, name: str, value: str | None) -> None:
        written = Written(f"--{name}")
        if name == "serve":
            self._serve(value or "")
        elif name == "limit":
            self._limit(PROCESS, name, value)
        elif name == "with":
            if value is None:
                self._mistake(f"--with needs a value; {_EMBEDDED}")
            else:
                self._draft.embed(value, written)
        elif name == "config":
            # It has been read.
            if not value:
                self._mistake("--config needs the name of a file; netsvc init writes one")
        elif value is None and name != "workers":
            self._mistake(f"--{name} needs a value")
        elif name == "admin":
            self._draft.process.admin(value or "", written)
        elif name in _ADMIN:
            self._draft.process.admin_part(name.removeprefix("admin-"), value or "", written)
        else:
            self._draft.process.set(name, value or "", written)

    def _read_service_option(self, service: INetworkService, key: str, rest: str, name: str, value: str | None) -> None:
        declared = self._flags_and_values(service, key)
        if (not rest and self._alone is None) or rest in service.protocols:
            if value is None:
                self._mistake(f"--{name} needs an address, such as --{name} 9001")
            else:
                self._draft.listen(key, rest, value, Written(f"--{name}").valued(value))
        elif rest in declared:
            if value is None and not declared[rest]:
                self._mistake(f"--{name} needs a value")
            elif value is not None and declared[rest]:
                self._mistake(f"--{name} takes no value")
            else:
                self._draft.option(key, rest, True if value is None else value, Written(f"--{name}"))
        elif rest == "limit":
            self._limit(key, name, value)
        elif rest == "drain" and value is None:
            self._mistake(f"--{name} needs a value")
        elif rest == "drain":
            self._draft.drain(key, value or "", Written(f"--{name}"))
        else:
            prefix = "--" if self._alone else f"--{key}-"
            known = [*service.protocols, *declared, *(_OF_PROCESS if self._alone else ["limit", "drain"])]
            hint = nearest(rest, known, prefix)
            self._mistake(f"--{escape(name)}: {key} has no protocol and no option of that name{hint}")

    def _limit(self, key: str, option: str, value: str | None) -> None:
        name, equals, limit = (value or "").partition("=")
        if not (name and equals):
            self._mistake(f"--{option} {escape(value or '')}: write NAME=VALUE, such as --{option} perip=20")
            return
        self._draft.limit(key, name, limit, Written(f"--{option} {escape(name)}"))

    def _serve(self, value: str) -> None:
        reference, equals, address = value.partition("=")
        if not (equals and address and reference.rpartition(":")[0] and reference.rpartition(":")[2]):
            self._mistake(
                f"--serve {escape(value)}: write PATH_OR_MODULE:NAME=ADDRESS, such as ./my.py:MyProtocol=9001"
            )
        elif self._draft.serve(reference):
            self._draft.listen(reference, "", address, Written("--serve").valued(value))

"""Reads the arguments of the command line into a plan, and finds every error in them, not only the first."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence

from netsvc.base.errors import UserError
from netsvc.base.text import escape
from netsvc.config.discovery import Catalogue, nearest
from netsvc.config.draft import PROCESS, Draft, Origin
from netsvc.config.settings import SETTINGS
from netsvc.interfaces import INetworkService
from netsvc.options import Setting, declared_settings
from netsvc.plan.address import Address
from netsvc.plan.plan import Plan

#: Echo is the default service.
SHORTHANDS = {"tcp": "echo-tcp", "udp": "echo-udp"}

EXAMPLES = ("--tcp 9001 --udp 9001", "--chat 9002", "--files 9003 --files-root ./public")

#: The options of the command that are not settings of the process, by their names. The commands of one service have
#: no `serve`, `with` and `config`.
OPTIONS: Mapping[str, Setting] = {
    setting.name: setting
    for setting in (
        Setting(
            "serve",
            False,
            None,
            "Serve a class or a Service from a file or module: [NAME=]./my.py:MyProtocol=9001",
            "TARGET=ADDRESS",
        ),
        Setting("with", False, None, 'Run another twistd plugin as well: --with "web --path public"', "PLUGIN"),
        Setting("config", False, None, "Read this configuration file first; see netsvc init", "FILE"),
        Setting("limit", False, None, "Set a limit for the whole process; see --help limits", "NAME=VALUE"),
        Setting("list", True, None, "List the services that are installed, and exit"),
        Setting("version", True, None, "Show the version, and exit"),
        Setting("help", False, None, "Show this page, or one about a topic, and exit", "[TOPIC]"),
    )
}
OF_MANY = ("serve", "with", "config")
#: Options that show something and end the command, before anything else is read.
_PAGES = ("help", "list", "version")

#: The value of `--serve`. The address may be omitted if the service has a name, and so options of its own.
_SERVED = re.compile(
    r"(?:(?P<name>[a-z][a-z0-9]*(?:-[a-z0-9]+)*)=)?(?P<reference>[^=]*[^=:]:[^=:]+)(?:=(?P<address>.+))?"
)

#: Options of twistd itself, which go before the plugin's name.
_TWISTD = {
    *("chroot", "debug", "euid", "gid", "logfile", "logger", "no_save", "nodaemon", "originalname", "pidfile"),
    *("prefix", "profile", "profiler", "python", "reactor", "rundir", "savestats", "syslog", "uid", "umask"),
}


def read_arguments(
    arguments: Sequence[str], catalogue: Catalogue, alone: str | None = None, in_use: Collection[Address] = ()
) -> Plan:
    """Read arguments into a plan.

    With `alone`, they are the arguments of one service's own command: its options have no prefix, and an argument
    that is no option is an address of its default protocol. Raises `UserError` with every error. The certificates
    of addresses that are `in_use` are not read: they need not be readable any more.
    """
    plan, errors = survey_arguments(arguments, catalogue, alone, in_use)
    if errors:
        raise UserError(errors)
    return plan


def survey_arguments(
    arguments: Sequence[str], catalogue: Catalogue, alone: str | None = None, in_use: Collection[Address] = ()
) -> tuple[Plan, list[str]]:
    """Read arguments as `read_arguments` does; return the plan of what is valid in them, and every error.

    A `--config` file is read each time. Arguments are added to it, and win over it.
    """
    draft = Draft(catalogue, alone, in_use)
    files = [] if alone else list(_values(arguments, "config"))
    if len(files) > 1:
        draft.errors.append("--config is given twice; keep one of them")
    for file in filter(None, files[:1]):
        # Here, as most starts have no file, and importing tomllib takes time.
        from netsvc.config.file import read_config

        read_config(file, draft)
    _Reader(draft).read(arguments)
    draft.check()
    plan = draft.plan()
    if not (plan.listeners or plan.twistd or draft.errors):
        draft.errors.append(_nothing_to_run(alone, files))
    return plan, in_order(UserError(draft.errors).errors, arguments)


def in_order(errors: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """Sort the errors in the `--config` file by line, before all others, and remove duplicates."""
    files = list(_values(arguments, "config"))

    def line(error: str) -> float:
        found = re.match(rf"{re.escape(escape(files[0]))}:(\d+): ", error) if files else None
        return int(found[1]) if found else math.inf

    return sorted(dict.fromkeys(errors), key=line)


def _nothing_to_run(alone: str | None, files: Sequence[str]) -> str:
    if files:
        return f"{escape(files[0])}: nothing to run; write [services.echo] and below it tcp = 9001, for example"
    command = f"twistd -n netsvc-{alone}" if alone else "twistd -n netsvc"
    examples = ("9001",) if alone else EXAMPLES
    here = "" if alone or not os.path.exists("netsvc.toml") else "; or use the file here: --config netsvc.toml"
    return f"nothing to run; for example: {'  or  '.join(f'{command} {each}' for each in examples)}{here}"


def _values(arguments: Sequence[str], name: str) -> Iterator[str]:
    """Find the values of an option, before it is known which other options have one."""
    for position, argument in enumerate(arguments):
        if argument.startswith(f"--{name}="):
            yield argument.partition("=")[2]
        elif argument == f"--{name}" and not "".join(arguments[position + 1 : position + 2]).startswith("--"):
            yield from arguments[position + 1 : position + 2]


class _Reader:
    """Reads arguments into a draft, which may already have the content of a file."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._alone = draft.alone
        #: The keys of the services that `--serve` has added, by its values; None after an error.
        self._served: dict[str, str | None] = {}

    def _error(self, line: str) -> None:
        self._draft.errors.append(line)

    def read(self, arguments: Sequence[str]) -> None:
        if self._alone is None:
            # First: the options of a served service may stand before it.
            for value in _values(arguments, "serve"):
                self._name_served(value)
        pending = list(reversed(arguments))
        while pending:
            argument = pending.pop()
            if not argument.startswith("--"):
                self._read_positional(argument)
                continue
            name, equals, value = argument[2:].partition("=")
            given: str | None = value if equals else None
            if given is None and not self._is_flag(name) and pending and not pending[-1].startswith("--"):
                given = pending.pop()
            self._read_option(name, given)

    def _read_positional(self, argument: str) -> None:
        if len(argument) > 1 and argument.startswith("-"):
            self._error(f"{escape(argument)}: unknown option; options of twistd go before the plugin's name")
        elif self._alone is not None:
            self._draft.listen(self._alone, "", argument, Origin(escape(argument)))
        else:
            cure = "write --SERVICE ADDRESS, such as --tcp 9001"
            if argument.endswith(".toml"):
                cure = f"write --config {escape(argument)}"
            elif re.fullmatch(r".+\.py:\w+", argument):
                cure = f"write --serve {escape(argument)}=9001"
            self._error(f"{escape(argument) or 'an empty argument'}: unexpected argument; {cure}")

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

    def _is_flag(self, name: str) -> bool:
        if name in SETTINGS:
            return SETTINGS[name].flag
        parts = self._split(name)
        service = self._draft.service(parts[0]) if parts else None
        return bool(service and parts and _flags(service).get(parts[1]))

    def _read_option(self, name: str, value: str | None) -> None:
        parts = self._split(name)
        if name in _PAGES:
            self._error(f"--{name} takes no value")
        elif name in SETTINGS and SETTINGS[name].flag == (value is not None):
            self._error(f"--{name} {'needs a value' if value is None else 'takes no value'}")
        elif name in SETTINGS:
            self._draft.set(name, True if value is None else value, Origin(f"--{name}"))
        elif name in OPTIONS and (self._alone is None or name not in OF_MANY):
            self._read_own_option(name, value)
        elif parts is None and name in _TWISTD:
            self._error(f"--{name} is an option of twistd; it goes before the plugin: twistd -n --{name} … netsvc …")
        elif parts is None:
            known = [*self._draft.names(), *SHORTHANDS, *SETTINGS, *OPTIONS]
            # A mistyped service shows in its first part, a mistyped protocol or option in the whole.
            hint = nearest(name, known, "--") or nearest(name.partition("-")[0], known, "--") or "; see --help"
            self._error(f"--{escape(name)}: unknown option, and no service of that name{hint}")
            from netsvc.config.declarations import why_missing

            # The service is the whole name, or what is before one of its hyphens.
            parts_of_name = name.split("-")
            services = ["-".join(parts_of_name[:count]) for count in range(len(parts_of_name), 0, -1)]
            missing = (why_missing(each) for each in services if each not in self._draft.catalogue.services)
            self._draft.errors += next(filter(None, missing), [])
            self._draft.errors += self._draft.catalogue.problems
        elif service := self._draft.service(parts[0]):
            self._read_service_option(service, *parts, name, value)

    def _read_own_option(self, name: str, value: str | None) -> None:
        if name == "serve":
            self._serve(value or "")
        elif name == "limit":
            self._limit(PROCESS, name, value)
        elif name == "config":
            # It has been read.
            if not value:
                self._error("--config needs the name of a file; netsvc init writes one")
        elif value is None:
            example = '--with "web --listen tcp:8080 --path public"'
            self._error(f"--with needs a value, a twistd plugin and its options as one argument: {example}")
        else:
            self._draft.embed(value, Origin("--with"))

    def _read_service_option(self, service: INetworkService, key: str, rest: str, name: str, value: str | None) -> None:
        flags = _flags(service)
        origin = Origin(f"--{name}")
        if (not rest and self._alone is None) or rest in service.protocols:
            if value is None:
                self._error(f"--{name} needs an address, such as --{name} 9001")
            else:
                self._draft.listen(key, rest, value, origin.valued(value))
        elif (rest == "drain" or flags.get(rest) is False) and value is None:
            self._error(f"--{name} needs a value")
        elif flags.get(rest) and value is not None:
            self._error(f"--{name} takes no value")
        elif rest in flags:
            self._draft.give(key, "option", rest, True if value is None else value, origin)
        elif rest == "drain":
            self._draft.give(key, "drain", rest, value, origin)
        elif rest == "limit":
            self._limit(key, name, value)
        else:
            known = [*service.protocols, *flags, "limit", *(SETTINGS if self._alone else ["drain"])]
            page = "--help" if self._alone else f"--help {service.name}"
            hint = nearest(rest, known, "--" if self._alone else f"--{key}-") or f"; see {page}"
            self._error(f"--{escape(name)}: {key} has no protocol or option of that name{hint}")

    def _limit(self, key: str, option: str, value: str | None) -> None:
        name, equals, limit = (value or "").partition("=")
        if not (name and equals):
            self._error(f"--{option} {escape(value or '')}: write NAME=VALUE, such as --{option} perip=20")
            return
        self._draft.give(key, "limit", name, limit, Origin(f"--{option} {escape(name)}"))

    def _name_served(self, value: str) -> None:
        """Add the service of a `--serve` to the draft."""
        found = _SERVED.fullmatch(value)
        if found is not None and value not in self._served:
            reserved = {*SETTINGS, *OPTIONS, *SHORTHANDS}
            self._served[value] = self._draft.serve(found["reference"], found["name"] or "", reserved)

    def _serve(self, value: str) -> None:
        found = _SERVED.fullmatch(value)
        key = self._served.get(value)
        if found is None or (key == found["reference"] and found["address"] is None):
            form = "write PATH_OR_MODULE:NAME=ADDRESS, such as ./my.py:MyProtocol=9001 or my=./my.py:MyProtocol=9001"
            self._error(f"--serve {escape(value)}: {form}")
        elif key is not None and found["address"] is not None:
            self._draft.listen(key, "", found["address"], Origin("--serve").valued(value))


def _flags(service: INetworkService) -> dict[str, bool]:
    """Return of each option of a service whether it is a flag."""
    return {setting.name: setting.flag for setting in declared_settings(service.options)}

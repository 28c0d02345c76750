"""Reads command line words into a plan, and finds every mistake in them, not only the first."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from netsvc.address import Address, parse_address
from netsvc.adhoc import adhoc_service
from netsvc.discovery import Catalogue, nearest
from netsvc.errors import MistakeError, PluginError
from netsvc.interfaces import INetworkService, Kind
from netsvc.listeners import check_address
from netsvc.plan import DEFAULT_DRAIN, MOST_WORKERS, Listener, Plan, ServiceUse, undivided
from netsvc.settings import declared_settings, parse_settings, seconds, whole_number
from netsvc.text import escape

__all__ = ["EXAMPLES", "SHORTHANDS", "load_use", "read_arguments", "survey_arguments"]

#: Echo is the default service.
SHORTHANDS = {"tcp": "echo-tcp", "udp": "echo-udp"}

EXAMPLES = ("--tcp 9001 --udp 9001", "--chat 9002", "--files 9003 --files-root ./public")

_LONGEST_DRAIN = 86400

#: Options of twistd itself, which go before the plugin's name.
_TWISTDS = {
    *("chroot", "debug", "euid", "gid", "logfile", "logger", "no_save", "nodaemon", "originalname", "pidfile"),
    *("prefix", "profile", "profiler", "python", "reactor", "rundir", "savestats", "syslog", "uid", "umask"),
}

#: Options that show something and end the command, before any other word is read.
_PAGES = ("help", "list", "version")


def load_use(use: ServiceUse, catalogue: Catalogue) -> INetworkService:
    """Load the service that a plan names. Raises `PluginError`."""
    return adhoc_service(use.service) if use.adhoc else catalogue.load(use.service)


def read_arguments(words: Sequence[str], catalogue: Catalogue, alone: str | None = None) -> Plan:
    """Read `words` into a plan.

    With `alone`, the words are those of one service's own command: its options have no prefix, and a word
    that is no option is an address of its default protocol. Raises `MistakeError` with every mistake.
    """
    plan, mistakes = survey_arguments(words, catalogue, alone)
    if mistakes:
        raise MistakeError(mistakes)
    return plan


def survey_arguments(words: Sequence[str], catalogue: Catalogue, alone: str | None = None) -> tuple[Plan, list[str]]:
    """Read `words` as `read_arguments` does; return the plan of what is right in them, and every mistake."""
    reader = _Reader(catalogue, alone)
    reader.read(words)
    reader.judge()
    return reader.plan(), list(dict.fromkeys(reader.mistakes))


@dataclass
class _Reader:
    catalogue: Catalogue
    alone: str | None
    uses: dict[str, ServiceUse] = field(default_factory=dict)
    listeners: list[Listener] = field(default_factory=list)
    drain: float = DEFAULT_DRAIN
    workers: int = 1
    mistakes: list[str] = field(default_factory=list)

    _settings: dict[str, dict[str, object]] = field(default_factory=dict)
    _loaded: dict[str, INetworkService | None] = field(default_factory=dict)

    def plan(self) -> Plan:
        return Plan(self.uses, tuple(self.listeners), self.drain, self.workers)

    def read(self, words: Sequence[str]) -> None:
        pending = list(words)
        while pending:
            word = pending.pop(0)
            if not word.startswith("--"):
                self._read_bare_word(word)
                continue
            name, equals, value = word[2:].partition("=")
            given: str | None = value if equals else None
            if given is None and not self._is_flag(name) and pending and not pending[0].startswith("--"):
                given = pending.pop(0)
            self._read_option(name, given)

    def _read_bare_word(self, word: str) -> None:
        if len(word) > 1 and word.startswith("-"):
            self.mistakes.append(f"{escape(word)} is no option here; those of twistd go before the plugin's name")
        elif self.alone is not None:
            self._listen(self.alone, "", word, word)
        else:
            self.mistakes.append(
                f"{escape(word) or 'an empty word'}: what is that? Write --<service> ADDRESS, such as --tcp 9001"
            )

    def _split(self, name: str) -> tuple[str, str] | None:
        """Split an option's name into the service's name and what follows it."""
        if self.alone is not None:
            return self.alone, name
        name = SHORTHANDS.get(name, name)
        services = [
            service
            for service in self.catalogue.services
            if name == service or (name.startswith(f"{service}-") and name != f"{service}-")
        ]
        if not services:
            return None
        service = max(services, key=len)
        return service, name[len(service) + 1 :]

    def _load(self, name: str) -> INetworkService | None:
        if name not in self._loaded:
            try:
                self._loaded[name] = self.catalogue.load(name)
            except PluginError as error:
                self.mistakes += error.mistakes
                self._loaded[name] = None
        return self._loaded[name]

    def _flags_and_values(self, service: INetworkService) -> dict[str, bool]:
        return {setting.name: setting.flag for setting in declared_settings(service.options)}

    def _is_flag(self, name: str) -> bool:
        parts = self._split(name)
        service = self._load(parts[0]) if parts else None
        return bool(service and parts and self._flags_and_values(service).get(parts[1]))

    def _read_option(self, name: str, value: str | None) -> None:
        parts = self._split(name)
        if name in _PAGES:
            self.mistakes.append(f"--{name} takes no value")
        elif name == "drain":
            self._read_drain(value)
        elif name == "workers":
            self._read_workers(value)
        elif name == "serve" and self.alone is None:
            self._serve(value)
        elif parts is None and name in _TWISTDS:
            self.mistakes.append(f"--{name} is an option of twistd: write it before the plugin's name")
        elif parts is None:
            known = [*self.catalogue.services, *SHORTHANDS, "drain", "workers", "serve", "list", "help"]
            # A mistyped service shows in its first word, a mistyped protocol or option in the whole.
            hint = nearest(name, known, "--") or nearest(name.partition("-")[0], known, "--")
            self.mistakes.append(f"--{escape(name)}: there is no such option, and no service of that name{hint}")
            self.mistakes += self.catalogue.problems
        elif service := self._load(parts[0]):
            self._read_service_option(service, parts[0], parts[1], name, value)

    def _read_service_option(self, service: INetworkService, key: str, rest: str, name: str, value: str | None) -> None:
        declared = self._flags_and_values(service)
        if (not rest and self.alone is None) or rest in service.protocols:
            if value is None:
                self.mistakes.append(f"--{name} needs an address, such as --{name} 9001")
            else:
                self._listen(key, rest, value, f"--{name} {value}")
        elif rest in declared:
            if value is None and not declared[rest]:
                self.mistakes.append(f"--{name} needs a value")
            elif value is not None and declared[rest]:
                self.mistakes.append(f"--{name} takes no value")
            else:
                self._settings.setdefault(key, {})[rest] = True if value is None else value
        else:
            prefix = "--" if self.alone else f"--{key}-"
            known = [*service.protocols, *declared, *(["drain", "workers"] if self.alone else [])]
            hint = nearest(rest, known, prefix)
            self.mistakes.append(f"--{escape(name)}: {key} has no protocol and no option of that name{hint}")

    def _read_drain(self, value: str | None) -> None:
        if value is None:
            self.mistakes.append("--drain needs a value")
            return
        try:
            self.drain = seconds(0, _LONGEST_DRAIN)(value)
        except ValueError as error:
            self.mistakes.append(f"--drain {escape(value)}: {error}")

    def _read_workers(self, value: str | None) -> None:
        if value == "auto":
            self.workers = min(MOST_WORKERS, _usable_cores())
            return
        try:
            self.workers = whole_number(1, MOST_WORKERS)(value)
        except ValueError as error:
            self.mistakes.append(f"--workers {escape(value or '')}: {error}, or auto: one for each core")

    def _serve(self, value: str | None) -> None:
        reference, equals, address = (value or "").partition("=")
        if not (equals and address and reference.rpartition(":")[0] and reference.rpartition(":")[2]):
            self.mistakes.append(
                f"--serve {escape(value or '')}: write PATH_OR_MODULE:NAME=ADDRESS, such as ./my.py:MyProtocol=9001"
            )
            return
        if reference not in self._loaded:
            try:
                self._loaded[reference] = adhoc_service(reference)
            except PluginError as error:
                self.mistakes += error.mistakes
                self._loaded[reference] = None
        if self._loaded[reference]:
            self.uses.setdefault(reference, ServiceUse(reference, adhoc=True))
            self._listen(reference, "", address, f"--serve {value}")

    def _listen(self, key: str, protocol: str, text: str, written: str) -> None:
        service = self._loaded.get(key) or self._load(key)
        if service is None:
            return
        protocol = protocol or next(iter(service.protocols))
        kind: Kind = service.protocols[protocol]
        self.uses.setdefault(key, ServiceUse(key))
        try:
            address = parse_address(text, kind)
            check_address(address)
        except ValueError as error:
            self.mistakes.append(f"{escape(written)}: {error}")
        else:
            self.listeners.append(Listener(key, protocol, address))

    def judge(self) -> None:
        """Judge what only the whole shows."""
        for key, settings in self._settings.items():
            if key not in self.uses:
                cure = "an ADDRESS" if self.alone else f"--{key} ADDRESS"
                self.mistakes += [
                    f"--{self._written(key, name)} is set, but {key} listens nowhere: add {cure}" for name in settings
                ]
        for key, use in list(self.uses.items()):
            self.uses[key] = ServiceUse(use.service, self._settings.get(key, {}), use.adhoc)
            service = self._loaded[key]
            assert service is not None
            try:
                parse_settings(service.options, self.uses[key].settings, self._writer(key))
            except MistakeError as error:
                self.mistakes += error.mistakes
                del self.uses[key]
        self.mistakes += _clashes(self.listeners)
        self.mistakes += undivided(
            self.plan(), {key: service for key, service in self._loaded.items() if key in self.uses and service}
        )
        if not self.listeners and not self.mistakes:
            command = f"twistd -n netsvc-{self.alone}" if self.alone else "twistd -n netsvc"
            examples = ("9001",) if self.alone else EXAMPLES
            self.mistakes.append(f"nothing to run; for example: {'  or  '.join(f'{command} {e}' for e in examples)}")

    def _written(self, key: str, name: str) -> str:
        return name if self.alone else f"{key}-{name}"

    def _writer(self, key: str) -> Callable[[str], str]:
        return lambda name: f"--{self._written(key, name)}"


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _clashes(listeners: Sequence[Listener]) -> Iterator[str]:
    """Find the ports that are asked for twice."""
    for place, one in enumerate(listeners):
        for other in listeners[:place]:
            if _overlap(one.address, other.address):
                yield (
                    f"{one.address.text} is asked for twice: by {other.use} {other.protocol} "
                    f"and by {one.use} {one.protocol}"
                )


def _covers(one: Address, other: Address) -> bool:
    """Tell whether `one` takes every interface that `other` may name. Names are not resolved here."""
    if one.host is None or other.host is None:
        return True
    if ":" in other.host:
        return one.host == "::"
    return one.host == "0.0.0.0" and re.fullmatch(r"[0-9.]+", other.host) is not None


def _overlap(one: Address, other: Address) -> bool:
    if one.kind != other.kind:
        return False
    if one.port and other.port:
        return one.port == other.port and (one.host == other.host or _covers(one, other) or _covers(other, one))
    # Port 0 is another one each time.
    return one.scheme != "inet" and one.text == other.text and not re.search("[:=]0+(:|$)", one.text)

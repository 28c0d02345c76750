"""A plan while it is written: what the command line and the configuration file ask for, judged as a whole.

Both readers put what they find here, each with how the user wrote it, and what is said later wins. Mistakes are
collected, and end nothing: whatever can be judged without what is wrong still is.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from netsvc.address import Address, Proxy, parse_address
from netsvc.adhoc import adhoc_service
from netsvc.config.process import Process, read_drain
from netsvc.config.written import Given, Written
from netsvc.discovery import Catalogue, nearest
from netsvc.errors import MistakeError, PluginError
from netsvc.interfaces import INetworkService, Kind
from netsvc.limits import LIMITS, Limits, parse_limits
from netsvc.listeners.opening import check_address
from netsvc.plan import AdminUse, Listener, Plan, ServiceUse, TwistdUse, undivided
from netsvc.settings import parse_settings

__all__ = ["NETWORKS", "PROCESS", "Draft", "load_use"]

#: The limits whose values may name files.
NETWORKS = ("allow", "deny")

#: Stands for the whole process where limits are set; no service has this name.
PROCESS = ""


def load_use(use: ServiceUse, catalogue: Catalogue) -> INetworkService:
    """Load the service that a plan names. Raises `PluginError`."""
    return adhoc_service(use.service) if use.adhoc else catalogue.load(use.service)


@dataclass
class Draft:
    """Collects a plan. With `alone`, it is that of the command of one service, which has no prefix to its options."""

    catalogue: Catalogue
    alone: str | None = None
    #: Addresses that this process listens on, whose certificates it has.
    in_use: Collection[Address] = ()
    mistakes: list[str] = field(default_factory=list)
    uses: dict[str, ServiceUse] = field(default_factory=dict)
    #: Services of the file that cannot be used.
    unusable: set[str] = field(default_factory=set)
    #: Services with an address, right or wrong.
    addressed: set[str] = field(default_factory=set)
    #: The absolute path of the configuration file that was read.
    config: str | None = None

    _listeners: list[Listener] = field(default_factory=list)
    _twistd: list[TwistdUse] = field(default_factory=list)
    _admin: AdminUse | None = None
    _drains: dict[str, Given] = field(default_factory=dict)
    _limits: dict[str, dict[str, Given]] = field(default_factory=dict)
    _settings: dict[str, dict[str, Given]] = field(default_factory=dict)
    #: By reference, and whether that is one for `--serve`.
    _loaded: dict[tuple[str, bool], INetworkService | PluginError] = field(default_factory=dict)
    #: The services of the file, which stand there whether or not they listen anywhere.
    _named: dict[str, Written] = field(default_factory=dict)
    _process_limits: Limits = field(default_factory=dict)
    _place: str = ""

    def __post_init__(self) -> None:
        #: What is said of the process, beside its limits.
        self.process = Process(self.mistakes)

    def plan(self) -> Plan:
        """Return the plan of what is right."""
        return Plan(
            self.uses,
            tuple(self._listeners),
            self.process.drain,
            self.process.workers,
            self._process_limits,
            tuple(self._twistd),
            self.config,
            self._admin,
            self.process.log,
            self.process.access,
            self.process.state(),
            place=self._place,
        )

    def names(self) -> list[str]:
        """List the names of services: those that are installed, and those of the file."""
        return list(dict.fromkeys([*self.catalogue.services, *self._named]))

    def name_use(self, key: str, use: ServiceUse, written: Written, asked: Written) -> INetworkService | None:
        """Let a service of the file be known under a name. Returns it; None if it cannot be used: a mistake.

        `written` is the name, and `asked` what says which service it is.
        """
        self._named[key] = written
        if key in self.catalogue.services and (use.adhoc or use.service != key):
            self.mistakes.append(written.mistake(f"{key} is the name of another service; choose another name"))
            service = None
        else:
            service = self._load(use, asked)
        if service is None:
            self.unusable.add(key)
        else:
            self.uses[key] = replace(use, place=written.prefix)
        return service

    def serve(self, reference: str) -> bool:
        """Take a class in, under its reference. Returns whether it can be used; if not, that is a mistake."""
        use = ServiceUse(reference, adhoc=True)
        if self._load(use, Written("")) is None:
            return False
        self.uses.setdefault(reference, use)
        return True

    def service(self, key: str) -> INetworkService | None:
        """Return the service of that name; None if it cannot be used, which is a mistake, named once."""
        if key in self.unusable:
            return None
        return self._load(self.uses.get(key) or ServiceUse(key), Written(""))

    def _load(self, use: ServiceUse, written: Written) -> INetworkService | None:
        key = (use.service, use.adhoc)
        if key not in self._loaded:
            try:
                self._loaded[key] = load_use(use, self.catalogue)
            except PluginError as error:
                self._loaded[key] = error
        loaded = self._loaded[key]
        if not isinstance(loaded, PluginError):
            return loaded
        line, *others = loaded.mistakes
        self.mistakes += [f"{written.prefix}{line.removeprefix('--serve ')}" if written.place else line, *others]
        return None

    def listen(self, key: str, protocol: str, text: str, written: Written, limits: Mapping[str, Given] = {}) -> None:
        """Add a listener; without a protocol's name, of the default one. `written` is with the value."""
        service = self.service(key)
        if service is None:
            return
        protocol = protocol or next(iter(service.protocols))
        kind: Kind = service.protocols[protocol]
        self.uses.setdefault(key, ServiceUse(key))
        self.addressed.add(key)
        try:
            address = parse_address(text, kind)
            if address not in self.in_use:
                check_address(address)
        except ValueError as error:
            self.mistakes.append(written.mistake(error))
            return
        given = {
            name: Given(value, Written(f"{written.text}: {name}", written.place))
            for name, value in address.limits.items()
        }
        values = self._parse_limits({**given, **limits}, kind)
        self._listeners.append(Listener(key, protocol, _without_guard(address), values, written.prefix))

    def option(self, key: str, name: str, value: object, written: Written) -> None:
        """Set an option that the service declares: a word, or True for a flag."""
        self._settings.setdefault(key, {})[name] = Given(value, written)

    def limit(self, key: str, name: str, value: object, written: Written) -> None:
        """Set a limit of a service, or of the `PROCESS`."""
        self._limits.setdefault(key, {})[name] = Given(value, written)

    def drain(self, key: str, value: str, written: Written) -> None:
        """Set how long the conversations of a service have to end."""
        self._drains[key] = Given(value, written)

    def embed(self, text: str, written: Written, limits: Mapping[str, Given] = {}) -> None:
        """Add another twistd plugin, with its options as a shell would read them."""
        try:
            words = shlex.split(text)
            if not words:
                raise ValueError("nothing is named")
        except ValueError as error:
            reason = str(error).lower()
            self.mistakes.append(
                written.valued(text).mistake(
                    f"{reason}; write a twistd plugin and its options, such as web --listen tcp:8080 --path public"
                )
            )
            return
        self._twistd.append(TwistdUse(tuple(words), self._parse_limits(limits), written.prefix))

    def judge(self) -> None:
        """Judge what only the whole shows, and finish the plan."""
        limits = self._limits.pop(PROCESS, {})
        self._process_limits = self._parse_limits(limits)
        self._place = next((limits[name].written.prefix for name in NETWORKS if name in limits), "")
        self._admin = self.process.judge(self.in_use)
        for key in dict.fromkeys([*self._settings, *self._limits, *self._drains]):
            if key not in self.uses:
                self._judge_unused(key)
        for key in list(self.uses):
            self._judge_use(key)
        self.mistakes += _clashes(self._listeners)
        loaded = {key: service for key in self.uses if (service := self.service(key))}
        for line in undivided(self.plan(), loaded):
            workers = self.process.workers
            written = self.process.workers_written.valued(workers)
            self.mistakes.append(written.mistake(line.removeprefix(f"--workers {workers}: ")))

    def _judge_unused(self, key: str) -> None:
        self._parse_limits(self._limits.get(key, {}))
        if key in self.unusable:
            # Why has been said.
            return
        cure = "an ADDRESS" if self.alone else f"--{key} ADDRESS"
        others = [f"--{other}-…" for other, use in self.uses.items() if use.service == key]
        if others:
            cure += f", or write {' or '.join(others)}"
        self.mistakes += [
            f"{given.written.text} is set, but {key} listens nowhere: add {cure}"
            for given in (
                *self._settings.get(key, {}).values(),
                *self._limits.get(key, {}).values(),
                *(given for other, given in self._drains.items() if other == key),
            )
        ]

    def _judge_use(self, key: str) -> None:
        service = self.service(key)
        assert service is not None
        named = self._named.get(key)
        if named and key not in self.addressed:
            protocol = next(iter(service.protocols))
            self.mistakes.append(named.mistake(f"{key} listens nowhere; give it an address, such as {protocol} = 9001"))
        given = self._settings.get(key, {})
        values = {name: each.value for name, each in given.items()}
        limits = self._parse_limits(self._limits.get(key, {}))
        self.uses[key] = replace(self.uses[key], settings=values, limits=limits, drain=self._judge_drain(key))
        prefix = f"{named.text}." if named else "--" if self.alone else f"--{key}-"
        texts = {name: each.written for name, each in given.items()}
        try:
            parse_settings(
                service.options, values, lambda name: texts[name].text if name in texts else f"{prefix}{name}"
            )
        except MistakeError as error:
            self.mistakes += [_placed(line, texts.values(), named) for line in error.mistakes]
            del self.uses[key]

    def _judge_drain(self, key: str) -> float | None:
        given = self._drains.get(key)
        if given is None:
            return None
        try:
            return read_drain(given.value)
        except ValueError as error:
            self.mistakes.append(given.written.valued(given.value).mistake(error))
            return None

    def _parse_limits(self, limits: Mapping[str, Given], kind: Kind | None = None) -> Limits:
        """Read limits; those of a listener must be for its kind."""
        known: dict[str, Given] = {}
        for name, given in limits.items():
            if name not in LIMITS:
                hint = nearest(name, LIMITS) or f"; there are {', '.join(LIMITS)}"
                self.mistakes.append(given.written.mistake(f"there is no limit of that name{hint}"))
            elif kind and kind not in LIMITS[name].kinds:
                these = ", ".join(each.name for each in LIMITS.values() if kind in each.kinds)
                self.mistakes.append(given.written.mistake(f"this is no limit of {kind}s, which have {these}"))
            else:
                known[name] = given
        values: dict[str, Any] = {}
        for name, given in known.items():
            try:
                values |= parse_limits({name: given.value})
            except MistakeError as error:
                # They begin with the name and, unless there is none, the value.
                self.mistakes += [
                    f"{given.written.place}{given.written.text}{line.removeprefix(name).replace(' ', '=', 1)}"
                    for line in error.mistakes
                ]
        return values


def _placed(line: str, writings: Iterable[Written], around: Written | None) -> str:
    """Put the place before a line about an option: that of the option with which it begins, or of the service."""
    for written in writings:
        if re.match(rf"{re.escape(written.text)}[ :]", line):
            return f"{written.place}{line}"
    return around.mistake(line) if around else line


def _without_guard(address: Address) -> Address:
    """Return an address without its `guard:`, so that limits stand in one place, whoever wrote them and where."""
    if not address.limits:
        return address
    text = address.place
    if address.proxy is not None:
        trust = ",".join(address.proxy.trust).replace(":", r"\:")
        timeout = "" if address.proxy == Proxy(address.proxy.trust) else f"timeout={address.proxy.timeout:g}:"
        text = f"proxy:trust={trust}:{timeout}{text}"
    return replace(address, text=text, limits={})


def _clashes(listeners: Sequence[Listener]) -> Iterator[str]:
    """Find the ports that are asked for twice: a line for each listener that is too late."""
    # Only those of one port, or of one path, can clash; there may be thousands of others.
    groups: dict[object, list[Listener]] = {}
    for one in listeners:
        group = groups.setdefault(one.address.port or one.address.place, [])
        for other in group:
            if _overlap(one.address, other.address):
                yield (
                    f"{one.place}{one.address.text} is asked for twice: by {other.use} {other.protocol} "
                    f"and by {one.use} {one.protocol}"
                )
                break
        group.append(one)


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
    return one.scheme != "inet" and one.place == other.place and not re.search("[:=]0+(:|$)", one.place)

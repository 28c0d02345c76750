"""A plan while it is read: what the command line and the configuration file ask for, checked as a whole.

Both readers put what they find here, each with its origin, and the later value wins. Errors are collected and end
nothing: everything else is still checked.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from netsvc.base.errors import PluginError, UserError
from netsvc.base.text import escape
from netsvc.config.adhoc import ServedClass, adhoc_service
from netsvc.config.admin_address import check_admin
from netsvc.config.conflicts import claims_of, find_conflicts
from netsvc.config.discovery import Catalogue, nearest
from netsvc.config.settings import SETTINGS
from netsvc.interfaces import INetworkService, Kind
from netsvc.listen.opening import check_address
from netsvc.listen.sockets import resolve
from netsvc.options import parse_settings
from netsvc.plan.address import Address, parse_address
from netsvc.plan.limits import LIMITS, Limits, parse_limit, show_limit
from netsvc.plan.plan import MOST_WORKERS, AdminUse, Listener, Plan, ServiceUse, TwistdUse, undivided

#: The limits whose values may name files.
NETWORKS = ("allow", "deny")

#: Stands for the whole process where limits are set; no service has this name.
PROCESS = ""

_What = Literal["option", "limit", "drain"]


@dataclass(frozen=True)
class Origin:
    """Where a value was written: `--chat-history`, or a key of a file with its location, `netsvc.toml:7: `."""

    name: str
    location: str = ""

    def error(self, what: object) -> str:
        """Write the line about an error."""
        return f"{self.location}{self.name}: {what}"

    def valued(self, value: object) -> Origin:
        """Return the same with its value, as an error shows both."""
        return replace(self, name=f"{self.name} {escape(str(value))}")

    @property
    def prefix(self) -> str:
        """What begins a later line about a key of a file; empty for an option of the command line."""
        return f"{self.location}{self.name}: " if self.location else ""


@dataclass(frozen=True)
class Given:
    """A value with its origin."""

    value: Any
    origin: Origin


def load_use(use: ServiceUse, catalogue: Catalogue) -> INetworkService:
    """Load the service that a plan names. Raises `PluginError`."""
    return adhoc_service(use.service, use.name) if use.adhoc else catalogue.load(use.service)


@dataclass
class Draft:
    """Collects a plan. With `alone`, the plan is for the command of one service, whose options have no prefix.

    `in_use` are addresses that this process listens on, whose certificates need not be read again.
    """

    catalogue: Catalogue
    alone: str | None = None
    in_use: Collection[Address] = ()
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    errors: list[str] = field(default_factory=list)
    uses: dict[str, ServiceUse] = field(default_factory=dict)
    #: Services of the file that cannot be used.
    unusable: set[str] = field(default_factory=set)
    #: Services with an address, valid or not.
    addressed: set[str] = field(default_factory=set)
    #: The absolute path of the configuration file that was read.
    config: str | None = None

    _listeners: list[Listener] = field(default_factory=list)
    _twistd: list[TwistdUse] = field(default_factory=list)
    _admin: AdminUse | None = None
    _process: dict[str, Given] = field(default_factory=dict)
    #: By service, or `PROCESS`; then by kind and name.
    _given: dict[str, dict[tuple[_What, str], Given]] = field(default_factory=dict)
    #: By reference, and whether that is one of `--serve`.
    _loaded: dict[tuple[str, bool, str], INetworkService | PluginError] = field(default_factory=dict)
    #: The value of `--serve` by the name of its service, for services that have a name.
    _served: dict[str, str] = field(default_factory=dict)
    #: The services of the file, whether or not they listen anywhere.
    _named: dict[str, Origin] = field(default_factory=dict)
    _process_limits: Limits = field(default_factory=dict)
    _origin: str = ""

    def plan(self) -> Plan:
        """Return the plan of what is valid."""
        values = {name: setting.default for name, setting in SETTINGS.items()}
        values |= {name: given.value for name, given in self._process.items()}
        workers: Any = values["workers"]
        # Several directories are separated by colons (systemd.exec(5)).
        unit = self.environment.get("STATE_DIRECTORY", "").partition(":")[0] or None
        return Plan(
            self.uses,
            tuple(self._listeners),
            values["drain"],  # type: ignore[arg-type]
            _usable_cores() if workers == "auto" else workers,
            self._process_limits,
            tuple(self._twistd),
            self.config,
            self._admin,
            str(values["log"]),
            str(values["access"]),
            values["state"] or unit,  # type: ignore[arg-type]
            bool(values["debug"]),
            origin=self._origin,
        )

    def names(self) -> list[str]:
        """List the names of services: installed ones, ones of the file, and served ones that have a name."""
        return list(dict.fromkeys([*self.catalogue.services, *self._named, *self._served]))

    def set(self, name: str, value: str | bool, origin: Origin) -> None:
        """Set one of the `SETTINGS` of the process, a flag with a bool."""
        try:
            self._process[name] = Given(value if isinstance(value, bool) else SETTINGS[name].parse(value), origin)
        except ValueError as error:
            self.errors.append(origin.valued(value).error(error))

    def name_use(self, key: str, use: ServiceUse, origin: Origin, asked: Origin) -> INetworkService | None:
        """Give a service of the file its name, and return it; or None, after an error, if it cannot be used.

        `origin` is the name's, and `asked` is the origin of the key that names the service.
        """
        self._named[key] = origin
        if key in self.catalogue.services and (use.adhoc or use.service != key):
            self.errors.append(origin.error(f"{key} is the name of another service; choose another name"))
            service = None
        else:
            service = self._load(use, asked)
        if service is None:
            self.unusable.add(key)
        else:
            self.uses[key] = replace(use, origin=origin.prefix)
        return service

    def serve(self, reference: str, name: str, reserved: Collection[str]) -> str | None:
        """Add a class or a declared service and return its key in the plan; or None, after an error.

        The key is the given or the declared name, and the reference of a class without one. A name must not be
        `reserved`.
        """
        use = ServiceUse(reference, adhoc=True, name=name)
        service = self._load(use, Origin(""))
        if service is None:
            return None
        key = name or (reference if isinstance(service, ServedClass) else service.name)
        shown = escape(reference)
        present = self.uses.get(key)
        cure = f"give it another name: --serve NAME={shown}=ADDRESS"
        if key in self.catalogue.services or key in reserved:
            what = "an installed service" if key in self.catalogue.services else "an option"
            self.errors.append(f"--serve {shown}: {key} is the name of {what}; {cure}")
        elif key in self.unusable:
            # Its error has been reported.
            pass
        elif present is not None and (present.service, present.adhoc) != (reference, True):
            cure += f", or write --{key} ADDRESS to add an address"
            self.errors.append(f"--serve {shown}: {key} is the name of {escape(present.service)} already; {cure}")
        else:
            self.uses.setdefault(key, use)
            if key != reference:
                self._served.setdefault(key, shown)
            return key
        return None

    def service(self, key: str) -> INetworkService | None:
        """Return the service of that name; or None, after one error however often, if it cannot be used."""
        if key in self.unusable:
            return None
        return self._load(self.uses.get(key) or ServiceUse(key), Origin(""))

    def _load(self, use: ServiceUse, origin: Origin) -> INetworkService | None:
        key = (use.service, use.adhoc, use.name)
        if key not in self._loaded:
            try:
                self._loaded[key] = load_use(use, self.catalogue)
            except PluginError as error:
                self._loaded[key] = error
        loaded = self._loaded[key]
        if not isinstance(loaded, PluginError):
            return loaded
        line, *others = loaded.errors
        self.errors += [f"{origin.prefix}{line.removeprefix('--serve ')}" if origin.location else line, *others]
        return None

    def listen(self, key: str, protocol: str, text: str, origin: Origin, limits: Mapping[str, Given] = {}) -> None:
        """Add a listener; without a protocol's name, of the default one. `origin` is with the value.

        A host name becomes a listener for each of its addresses.
        """
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
            self.errors.append(origin.error(error))
            return
        given = {
            name: Given(value, Origin(f"{origin.name}: {name}", origin.location))
            for name, value in address.limits.items()
        }
        values = self._parse_limits({**given, **limits}, kind)
        for each in resolve(replace(address, limits={})):
            self._listeners.append(Listener(key, protocol, each, values, origin.prefix))

    def give(self, key: str, what: _What, name: str, value: object, origin: Origin) -> None:
        """Set an option that a service declares (text, or True for a flag), a limit, or its drain time.

        Limits may be of the `PROCESS`. They are checked when the plan is complete.
        """
        self._given.setdefault(key, {})[what, name] = Given(value, origin)

    def _of(self, key: str, what: _What) -> dict[str, Given]:
        return {name: given for (kind, name), given in self._given.get(key, {}).items() if kind == what}

    def embed(self, text: str, origin: Origin, limits: Mapping[str, Given] = {}) -> None:
        """Add another twistd plugin, with its options as a shell would split them."""
        try:
            arguments = shlex.split(text)
            if not arguments:
                raise ValueError("no plugin is named")
        except ValueError as error:
            form = "write a twistd plugin and its options, such as web --listen tcp:8080 --path public"
            self.errors.append(origin.valued(text).error(f"{str(error).lower()}; {form}"))
            return
        self._twistd.append(TwistdUse(tuple(arguments), self._parse_limits(limits), origin.prefix))

    def check(self) -> None:
        """Check what only the whole shows, and complete the plan."""
        limits = self._of(PROCESS, "limit")
        self._process_limits = self._parse_limits(limits)
        self._origin = next((limits[name].origin.prefix for name in NETWORKS if name in limits), "")
        self._admin = self._check_admin()
        for key in self._given:
            if key != PROCESS and key not in self.uses:
                self._check_unused(key)
        for key in list(self.uses):
            self._check_use(key)
        plan = self.plan()
        self.errors += find_conflicts(claims_of(plan))
        loaded = {key: service for key in self.uses if (service := self.service(key))}
        for line in undivided(plan, loaded):
            origin = self._process["workers"].origin.valued(plan.workers)
            self.errors.append(origin.error(line.removeprefix(f"--workers {plan.workers}: ")))

    def _check_admin(self) -> AdminUse | None:
        admin = self._process.get("admin")
        files = {name: self._process.get(f"admin-{name}") for name in ("token", "ca")}
        if admin is None:
            cure = "there is no admin address; set it with --admin ADDRESS, or address in [admin]"
            self.errors += [given.origin.error(cure) for given in files.values() if given]
            return None
        try:
            address = parse_address(admin.value, "stream")
        except ValueError as error:
            self.errors.append(admin.origin.valued(admin.value).error(error))
            return None
        token, ca = (given.value if given else None for given in files.values())
        use = AdminUse(address, token, ca, admin.origin.prefix)
        errors = [] if address in self.in_use else check_admin(use)
        self.errors += errors
        return None if errors else use

    def _check_unused(self, key: str) -> None:
        self._parse_limits(self._of(key, "limit"))
        if key in self.unusable:
            # The reason has been reported.
            return
        cure = "an ADDRESS" if self.alone else f"--{key} ADDRESS"
        others = [f"--{other}-…" for other, use in self.uses.items() if use.service == key]
        if others:
            cure += f", or write {' or '.join(others)}"
        self.errors += [
            f"{given.origin.name} is set, but {key} listens nowhere: add {cure}" for given in self._given[key].values()
        ]

    def _check_use(self, key: str) -> None:
        service = self.service(key)
        assert service is not None
        named = self._named.get(key)
        if named and key not in self.addressed:
            protocol = next(iter(service.protocols))
            self.errors.append(named.error(f"{key} listens nowhere; give it an address, such as {protocol} = 9001"))
        elif key in self._served and key not in self.addressed:
            self.errors.append(f"--serve {self._served[key]}: {key} listens nowhere; add --{key} ADDRESS")
        given = self._of(key, "option")
        values = {name: each.value for name, each in given.items()}
        limits = self._parse_limits(self._of(key, "limit"))
        drain = None
        for each in self._of(key, "drain").values():
            try:
                drain = SETTINGS["drain"].parse(each.value)
            except ValueError as error:
                self.errors.append(each.origin.valued(each.value).error(error))
        self.uses[key] = replace(self.uses[key], settings=values, limits=limits, drain=drain)
        prefix = f"{named.name}." if named else "--" if self.alone else f"--{key}-"
        names = {name: each.origin.name for name, each in given.items()}
        try:
            parse_settings(service.options, values, lambda name: names.get(name, f"{prefix}{name}"))
        except UserError as error:
            self.errors += [_located(line, [each.origin for each in given.values()], named) for line in error.errors]
            del self.uses[key]

    def _parse_limits(self, limits: Mapping[str, Given], kind: Kind | None = None) -> Limits:
        """Parse limits; a listener's must be for its kind."""
        values: dict[str, Any] = {}
        for name, given in limits.items():
            if name not in LIMITS:
                hint = nearest(name, LIMITS) or f"; the limits are {', '.join(LIMITS)}"
                self.errors.append(given.origin.error(f"unknown limit{hint}"))
            elif kind and kind not in LIMITS[name].kinds:
                these = ", ".join(each.name for each in LIMITS.values() if kind in each.kinds)
                self.errors.append(given.origin.error(f"not a limit of {kind}s, which have {these}"))
            else:
                try:
                    values[name] = parse_limit(name, given.value)
                except ValueError as error:
                    shown = Origin(f"{given.origin.name}={escape(show_limit(given.value))}", given.origin.location)
                    self.errors.append(shown.error(error))
        return values


def _located(line: str, origins: Iterable[Origin], around: Origin | None) -> str:
    """Put a location before a line about an option: of the option with which it begins, or of the service."""
    for origin in origins:
        if re.match(rf"{re.escape(origin.name)}[ :]", line):
            return f"{origin.location}{line}"
    return around.error(line) if around else line


def _usable_cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_WORKERS, cores)

"""Finds service plugins: entry points of the group `netsvc.services`, and files in `twisted/plugins/`.

No service is imported to find it; one that does not load affects only its own users.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from twisted.plugin import CachedDropin, CachedPlugin, getCache
from twisted.python.modules import getModule

from netsvc.base.errors import ANYTHING, PluginError, describe
from netsvc.base.networks import Access
from netsvc.base.text import escape
from netsvc.config.settings import GROUP, RESERVED
from netsvc.interfaces import INetworkService
from netsvc.listen.quiet import quietly
from netsvc.options import declared_settings
from netsvc.service import Service, ServicePlugin, declared_limits

#: Our own services, which are listed first.
_OWN = ("echo", "reply", "chat", "files")


@dataclass(frozen=True)
class FoundService:
    """A plugin that was found: its name, where, and how to load it. Two with the same `target` are the same."""

    name: str
    origin: str
    target: str
    source: Any = field(repr=False, compare=False)
    description: str = ""

    def load(self) -> INetworkService:
        """Import the declaration. Raises `PluginError` if that fails, in whatever way."""
        try:
            loaded = self.source.load()
            # Instances in a plugin file point to their declaration; an entry point may name either.
            service = loaded.load() if isinstance(loaded, ServicePlugin) else loaded
            if INetworkService.providedBy(service):
                names = {setting.name for setting in declared_settings(service.options)}
                protocols = dict(service.protocols)
                next(iter(protocols))
                _check_limits(service)
        except ANYTHING as error:
            raise self._error(f"does not load: {describe(error)}", "fix or uninstall it") from error
        if not INetworkService.providedBy(service):
            kind = type(service).__name__
            what = f"cannot be used: {self.target} is {kind}, not an INetworkService"
            raise self._error(what, "make it a netsvc.service.Service")
        if service.name != self.name:
            raise self._error(f"calls itself {service.name}", "give both the same name")
        for name in protocols.keys() & names:
            raise self._error(
                f"has a protocol and an option called {name}, which --{self.name}-{name} cannot both be",
                "rename one of them",
            )
        for name in RESERVED & {*protocols, *names}:
            raise self._error(f"has a protocol or an option called {name}, a name that netsvc reserves", "rename it")
        return service

    def _error(self, what: str, cure: str) -> PluginError:
        return PluginError([f"service {self.name} {what} (from {self.origin}); {cure}"])


def _check_limits(service: Any) -> None:
    """Raise `UserError` for a wrong limit that a service declares, and for a network file that cannot be read."""
    limits = getattr(service, "limits", None)
    # A `Service` has parsed its own.
    if not isinstance(service, Service):
        limits = declared_limits(limits)
    if limits and ("allow" in limits or "deny" in limits):
        Access(limits.get("allow"), limits.get("deny"))


@dataclass
class Catalogue:
    """All services that were found, by name.

    `rivals` holds, for a name claimed twice, every claim; `problems` has a line for each plugin file that
    does not load.
    """

    services: dict[str, FoundService] = field(default_factory=dict)
    rivals: dict[str, list[FoundService]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    _loaded: dict[str, INetworkService] = field(default_factory=dict, repr=False)

    def add(self, found: FoundService) -> None:
        """Add a plugin. The same target found twice, by entry point and by file, is one."""
        known = self.services.setdefault(found.name, found)
        if known.target != found.target:
            claims = self.rivals.setdefault(found.name, [known])
            if all(claim.target != found.target for claim in claims):
                claims.append(found)

    def names(self) -> list[str]:
        """List the names: our own services first, then the others by name."""
        return [*(name for name in _OWN if name in self.services), *sorted(self.services.keys() - set(_OWN))]

    def load(self, name: str) -> INetworkService:
        """Load service `name`. Raises `PluginError`: unknown (with the nearest names), claimed twice, or broken."""
        if name in self.rivals:
            claims = " and ".join(f"{claim.target} (from {claim.origin})" for claim in self.rivals[name])
            raise PluginError([f"service {name} is declared twice: by {claims}; uninstall one of them"])
        if name not in self.services:
            from netsvc.config.declarations import why_missing

            hint = nearest(name, self.services) or "; netsvc list shows the services"
            raise PluginError([f"no service is called {escape(name)}{hint}", *why_missing(name), *self.problems])
        if name not in self._loaded:
            self._loaded[name] = self.services[name].load()
        return self._loaded[name]

    def warnings(self) -> list[str]:
        """List what is wrong with plugins, whether or not they are used, a line each."""
        lines = list(self.problems)
        for name in self.rivals:
            try:
                self.load(name)
            except PluginError as error:
                lines += error.errors
        return lines


def nearest(word: str, words: Iterable[str], prefix: str = "") -> str:
    """Suggest the names nearest to a mistyped one, `; did you mean chat?`, or nothing."""
    # Here, as only an error needs it.
    from difflib import get_close_matches

    close = get_close_matches(word, list(words), 3, 0.6)
    return f"; did you mean {' or '.join(prefix + name for name in close)}?" if close else ""


def _from_entry_points(problems: list[str]) -> Iterator[FoundService]:
    try:
        points = entry_points(group=GROUP)
    except Exception as error:  # noqa: BLE001  (one malformed file among all that are installed)
        problems.append(f"entry points cannot be read: {describe(error)}; fix the malformed entry_points.txt")
        return
    for point in points:
        yield FoundService(point.name, _entry_point_origin(point), point.value.replace(" ", ""), point)


def _entry_point_origin(point: EntryPoint) -> str:
    distribution = point.dist
    return f"entry point of {distribution.name} {distribution.version}" if distribution else "entry point"


def _from_plugin_files(problems: list[str]) -> Iterator[FoundService]:
    import twisted.plugins

    # getCache logs the traceback of a file that does not import and omits it: we report it in a line.
    cache: Mapping[str, CachedDropin] = quietly(getCache, twisted.plugins)
    for module in getModule("twisted.plugins").iterModules():
        if module.name.rpartition(".")[2] not in cache:
            try:
                module.load()
            except ANYTHING as error:
                problems.append(_broken_file(module.filePath.path, error))
    for dropin in cache.values():
        for plugin in dropin.plugins:
            for provided in plugin.provided:
                if provided.isOrExtends(INetworkService):
                    break
            else:
                continue
            try:
                found = _from_plugin(dropin, plugin)
            except ANYTHING as error:
                # The cache is newer than the file, but what the file imports has been removed.
                problems.append(_broken_file(dropin.moduleName, error))
            else:
                yield found


def _from_plugin(dropin: CachedDropin, plugin: CachedPlugin) -> FoundService:
    loaded = plugin.load()
    path = sys.modules[dropin.moduleName].__file__
    target = loaded.target if isinstance(loaded, ServicePlugin) else f"{dropin.moduleName}:{plugin.name}"
    return FoundService(loaded.name, str(path), target, Loaded(loaded), loaded.description)


def _broken_file(file: str, error: BaseException) -> str:
    return f"plugin file {file} does not load: {describe(error)}; fix or remove it"


@dataclass(frozen=True)
class Loaded:
    """A plugin object with the `load` of an entry point."""

    plugin: Any

    def load(self) -> Any:
        """Return it."""
        return self.plugin


def discover() -> Catalogue:
    """Find every service plugin. Imports plugin files, which hold names only, and no service."""
    catalogue = Catalogue()
    for found in _from_plugin_files(catalogue.problems):
        catalogue.add(found)
    for found in _from_entry_points(catalogue.problems):
        catalogue.add(found)
    return catalogue

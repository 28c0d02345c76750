"""Finds service plugins: entry points of the group `netsvc.services`, and files in `twisted/plugins/`.

Nothing of a service is imported to find it; a service that does not load harms only whoever asks for it.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from twisted.plugin import CachedDropin, CachedPlugin, getCache
from twisted.python.modules import getModule

from netsvc.errors import PluginError
from netsvc.hush import hushed
from netsvc.interfaces import INetworkService
from netsvc.service import ServicePlugin
from netsvc.settings import declared_settings
from netsvc.text import escape

__all__ = ["ANYTHING", "RESERVED", "Catalogue", "Found", "describe", "discover", "nearest"]

GROUP = "netsvc.services"

#: What no protocol and no option can be called: `--<service>-limit`, keys of a service in a configuration file, and
#: what `twistd netsvc-<service>` has for the process, without a prefix.
RESERVED = frozenset(
    {"limit", "limits", "listen", "serve", "service", "drain", "workers", "log", "access", "state"}
    | {"admin", "admin-token", "admin-ca"}
)

#: What somebody else's module may raise while it is imported; a script without `if __name__` exits.
ANYTHING = (Exception, SystemExit)


@dataclass(frozen=True)
class Found:
    """A plugin that was found: its name, where, and how to load it. `target` tells equal ones from rivals."""

    name: str
    origin: str
    target: str
    source: Any = field(repr=False, compare=False)
    description: str = ""

    def load(self) -> INetworkService:
        """Import the declaration. Raises `PluginError` if that fails, whatever way it does."""
        try:
            loaded = self.source.load()
            # Instances by a plugin file point to their declaration; an entry point may name either.
            service = loaded.load() if isinstance(loaded, ServicePlugin) else loaded
            if INetworkService.providedBy(service):
                # What every use of a service asks first.
                service.options(), next(iter(service.protocols))
        except ANYTHING as error:
            raise PluginError(
                [f"service {self.name} does not load: {describe(error)} (from {self.origin}); mend or uninstall it"]
            ) from error
        if not INetworkService.providedBy(service):
            raise PluginError(
                [
                    f"service {self.name} is no service: {self.target} is {type(service).__name__}, "
                    f"not an INetworkService (from {self.origin}); make it a netsvc.service.Service"
                ]
            )
        if service.name != self.name:
            raise PluginError(
                [f"service {self.name} calls itself {service.name} (from {self.origin}); give both the same name"]
            )
        for both in service.protocols.keys() & {setting.name for setting in declared_settings(service.options)}:
            raise PluginError(
                [
                    f"service {self.name} has a protocol and an option called {both}, and --{self.name}-{both} cannot "
                    f"be both (from {self.origin}); rename one of them"
                ]
            )
        for word in RESERVED & {*service.protocols, *(setting.name for setting in declared_settings(service.options))}:
            raise PluginError(
                [
                    f"service {self.name} has a protocol or an option called {word}, which is a word of netsvc's own "
                    f"(from {self.origin}); rename it"
                ]
            )
        return service


#: Where the frames of an import begin that are not the author's: ours, and the import machinery's.
_NOT_THE_AUTHORS = (
    __file__,
    str(Path(__file__).with_name("adhoc.py")),
    ServicePlugin.load.__code__.co_filename,
    str(Path(importlib.__file__).parent),
    "<frozen ",
)


def describe(error: BaseException) -> str:
    """Name an error and its place in one line, for one who must mend the file it came from."""
    frames = inspect.getinnerframes(error.__traceback__) if error.__traceback__ else []
    # The innermost frame outside the import machinery is where the author has to look.
    own = [frame for frame in frames if not frame.filename.startswith(_NOT_THE_AUTHORS)]
    place = f" at {own[-1].filename}:{own[-1].lineno}" if own else ""
    if isinstance(error, SyntaxError) and error.filename:
        place = f" at {error.filename}:{error.lineno}"
    return escape(f"{type(error).__name__}: {error}".splitlines()[0], 400) + place


@dataclass
class Catalogue:
    """All services that were found, by name.

    `rivals` holds, for a name claimed twice, every claim; `problems` has a line for each plugin file that
    does not load.
    """

    services: dict[str, Found] = field(default_factory=dict)
    rivals: dict[str, list[Found]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def add(self, found: Found) -> None:
        """Take a plugin in. The same target found twice, by entry point and by file, is one."""
        known = self.services.setdefault(found.name, found)
        if known.target != found.target:
            claims = self.rivals.setdefault(found.name, [known])
            if all(claim.target != found.target for claim in claims):
                claims.append(found)

    def names(self) -> list[str]:
        """List the names: those of netsvc itself first, then the others by name."""
        return sorted(self.services, key=lambda name: (name not in _OWN, _OWN.get(name, 0), name))

    def load(self, name: str) -> INetworkService:
        """Load service `name`. Raises `PluginError`: unknown (with the nearest names), claimed twice, or broken."""
        if name in self.rivals:
            claims = " and ".join(f"{claim.target} (from {claim.origin})" for claim in self.rivals[name])
            raise PluginError([f"service {name} is declared twice: by {claims}; uninstall one of them"])
        if name not in self.services:
            raise PluginError([f"no service is called {escape(name)}{nearest(name, self.services)}", *self.problems])
        return self.services[name].load()

    def warnings(self) -> list[str]:
        """Say what is wrong with plugins, whether or not they are used: a line each."""
        lines = list(self.problems)
        for name in self.rivals:
            try:
                self.load(name)
            except PluginError as error:
                lines += error.mistakes
        return lines


_OWN = {name: place for place, name in enumerate(("echo", "reply", "chat", "files"))}


def nearest(word: str, words: Iterable[str], prefix: str = "") -> str:
    """Suggest the names nearest to a mistyped one: `; did you mean chat?`, or nothing."""
    close = difflib.get_close_matches(word, list(words), 3, 0.6)
    return f"; did you mean {' or '.join(prefix + name for name in close)}?" if close else ""


def _from_entry_points(problems: list[str]) -> Iterator[Found]:
    try:
        points = entry_points(group=GROUP)
    except Exception as error:  # noqa: BLE001  (one malformed file among all that are installed)
        problems.append(f"no entry point can be read: {describe(error)}; mend the entry_points.txt that is malformed")
        return
    for point in points:
        yield Found(point.name, _entry_point_origin(point), point.value.replace(" ", ""), point)


def _entry_point_origin(point: EntryPoint) -> str:
    distribution = point.dist
    return f"entry point of {distribution.name} {distribution.version}" if distribution else "entry point"


def _from_plugin_files(problems: list[str]) -> Iterator[Found]:
    import twisted.plugins

    # getCache logs the traceback of a file that does not import and leaves it out: we say so in a line.
    cache: Mapping[str, CachedDropin] = hushed(getCache, twisted.plugins)
    for module in getModule("twisted.plugins").iterModules():
        if module.name.rpartition(".")[2] not in cache:
            try:
                module.load()
            except ANYTHING as error:
                problems.append(_broken_file(module.filePath.path, error))
    for dropin in cache.values():
        for plugin in dropin.plugins:
            if not any(provided.isOrExtends(INetworkService) for provided in plugin.provided):
                continue
            try:
                found = _from_plugin(dropin, plugin)
            except ANYTHING as error:
                # The cache is newer than the file, but what the file imports is gone.
                problems.append(_broken_file(dropin.moduleName, error))
            else:
                yield found


def _from_plugin(dropin: CachedDropin, plugin: CachedPlugin) -> Found:
    loaded = plugin.load()
    path = sys.modules[dropin.moduleName].__file__
    target = loaded.target if isinstance(loaded, ServicePlugin) else f"{dropin.moduleName}:{plugin.name}"
    return Found(loaded.name, str(path), target, _Loaded(loaded), loaded.description)


def _broken_file(file: str, error: BaseException) -> str:
    return f"plugin file {file} does not load: {describe(error)}; mend or remove it"


@dataclass(frozen=True)
class _Loaded:
    """A plugin object with the `load` of an entry point."""

    plugin: Any

    def load(self) -> Any:
        return self.plugin


def discover() -> Catalogue:
    """Find every service plugin. Imports plugin files, which hold names only, and no service."""
    catalogue = Catalogue()
    for found in _from_plugin_files(catalogue.problems):
        catalogue.add(found)
    for found in _from_entry_points(catalogue.problems):
        catalogue.add(found)
    return catalogue

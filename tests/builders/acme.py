"""A twistd plugin for tests, `acme`, and what it may be made of."""

from __future__ import annotations

import errno
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
from twisted.application.service import MultiService, Service
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.testing import MemoryReactorClock
from twisted.python import usage

from netsvc.embedded.service import EmbeddedService
from netsvc.guard import Guard
from netsvc.plan.plan import TwistdUse
from tests.builders.site import Place

DECLARATION = """
from twisted.application.service import ServiceMaker
acme = ServiceMaker("acme", "acme_tap", "A test", "acme")
"""


class Plugin:
    """The twistd plugin `acme`: its service, or what its makeService does instead, and its options class."""

    def __init__(self) -> None:
        self.service: Any = MultiService()
        self.options: Any = usage.Options

    def read(self) -> Any:
        return self.options()

    def make(self, options: Any) -> Any:
        return self.service(options) if isinstance(self.service, types.FunctionType) else self.service


def installed(place: Place, monkeypatch: pytest.MonkeyPatch) -> Plugin:
    """Install a twistd plugin for one test."""
    plugin = Plugin()
    module: Any = types.ModuleType("acme_tap")
    module.makeService = plugin.make
    module.Options = plugin.read
    monkeypatch.setitem(sys.modules, "acme_tap", module)
    place.plugin_file("acme_plugins", DECLARATION)
    return plugin


def embedded(plugin: Plugin, service: Any = None, on: Any = None, **details: Any) -> EmbeddedService:
    """Embed a service of the plugin."""
    if service is not None:
        plugin.service = service
    on = on or MemoryReactorClock()
    return EmbeddedService(TwistdUse(("acme",)), Guard(on), on, **details)


class Counting(Factory):
    """Notes when it is started and stopped."""

    protocol = Protocol

    def __init__(self) -> None:
        self.calls: list[str] = []

    def startFactory(self) -> None:
        self.calls.append("start")

    def stopFactory(self) -> None:
        self.calls.append("stop")


class Recorder(Service):
    """Notes what is asked of it."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.faults: dict[str, BaseException] = {}

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name in self.faults:
            raise self.faults[name]

    def privilegedStartService(self) -> None:
        self._call("privileged")

    def startService(self) -> None:
        self._call("start")

    def stopService(self) -> None:
        self._call("stop")


class Endpoint:
    """An endpoint that answers as it is told."""

    def __init__(self, answer: Callable[[], Deferred[Any]]) -> None:
        self.answer = answer

    def listen(self, factory: Any) -> Deferred[Any]:
        return self.answer()


class Port:
    """A port of another kind than Twisted's."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.stopping: Deferred[None] = Deferred()

    def getHost(self) -> Any:
        return types.SimpleNamespace(name=self.path)

    def stopListening(self) -> Deferred[None]:
        return self.stopping


def in_use(port: int = 1) -> CannotListenError:
    return CannotListenError("", port, OSError(errno.EADDRINUSE, "Address already in use"))

"""Loads a class or a declared service from a file or module, for `--serve`."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any, cast

from twisted.internet.interfaces import IProtocol, IProtocolFactory
from twisted.internet.protocol import AbstractDatagramProtocol

from netsvc.base.errors import ANYTHING, PluginError, describe
from netsvc.config.discovery import FoundService, Loaded, nearest
from netsvc.interfaces import INetworkService
from netsvc.service import Service, answers

_PYTHON_FILE = re.compile(r".*(\.py|/.*)")


def _import_target(target: str) -> Any:
    path = Path(target)
    if not _PYTHON_FILE.fullmatch(target):
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            # As `python -m` and gunicorn do, look in the current directory first.
            sys.path.insert(0, str(Path.cwd()))
        return importlib.import_module(target)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {target}")
    name = f"netsvc_served_{abs(hash(path.resolve())):x}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


class ServedClass(Service):
    """A service of one class, which declares no name of its own."""


def adhoc_service(reference: str, called: str = "") -> INetworkService:
    """Return the service that `PATH_OR_MODULE:NAME` names: one that is declared there, or one made of a class.

    The class is a Protocol, Factory or DatagramProtocol, and its one protocol is called `stream` or `datagram`;
    `called` is the name of its service. Raises `PluginError` if it does not exist or is something else.
    """
    target, _, name = reference.rpartition(":")
    try:
        source = _import_target(target)
    except ANYTHING as error:
        raise PluginError([f"--serve {reference} does not load: {describe(error)}"]) from error
    for part in name.split("."):
        if not hasattr(source, part):
            raise PluginError([f"--serve {reference}: {target} has no {name}{nearest(part, dir(source))}"])
        source = getattr(source, part)
    if INetworkService.providedBy(source):
        return FoundService(source.name, reference, reference, Loaded(source)).load()
    if isinstance(source, type):
        _check_signature(reference, name, source)
    service = service_of(source, called or "serve", reference)
    if service is None:
        kind = "another class" if isinstance(source, type) else type(source).__name__
        raise PluginError(
            [
                f"--serve {reference}: {name} is {kind}, not a Protocol, DatagramProtocol or Factory "
                "class, a coroutine function, or a Service"
            ]
        )
    return service


def service_of(source: Any, called: str, description: str) -> ServedClass | None:
    """Return a service whose one protocol, `stream` or `datagram`, is a class, a factory or a function.

    None if `source` is something else.
    """
    if isinstance(source, AbstractDatagramProtocol):
        return ServedClass(called, description, datagrams={"datagram": partial(_with_core, source)})
    is_class = isinstance(source, type)
    if (is_class and issubclass(source, AbstractDatagramProtocol)) or (inspect.isroutine(source) and answers(source)):
        return ServedClass(called, description, datagrams={"datagram": source})
    if (
        inspect.iscoroutinefunction(source)
        or IProtocolFactory.providedBy(source)
        or (is_class and (IProtocol.implementedBy(source) or IProtocolFactory.implementedBy(source)))
    ):
        return ServedClass(called, description, streams={"stream": source})
    return None


def _with_core(protocol: Any, core: object) -> AbstractDatagramProtocol:
    """Give a protocol object the core, unless it has one."""
    if not hasattr(protocol, "core"):
        protocol.core = core
    return cast(AbstractDatagramProtocol, protocol)


def _check_signature(reference: str, name: str, source: type) -> None:
    """Raise `PluginError` for a class that cannot be called without arguments, as it is for each connection or port."""
    try:
        inspect.signature(source).bind()
    except ValueError:
        # A class of an extension module may not show its signature.
        return
    except TypeError as error:
        cure = f"serve a Service that builds it: streams={{'tcp': lambda core: {name}(…)}}"
        raise PluginError([f"--serve {reference}: {name} is called without arguments, but {error}; {cure}"]) from None

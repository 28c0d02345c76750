"""Makes a service of a class straight from a file or module, for `--serve`."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

from twisted.internet.interfaces import IProtocol, IProtocolFactory
from twisted.internet.protocol import AbstractDatagramProtocol

from netsvc.discovery import ANYTHING, describe, nearest
from netsvc.errors import PluginError
from netsvc.service import Service

__all__ = ["adhoc_service"]

_PYTHON_FILE = re.compile(r".*(\.py|/.*)")


def _import_target(target: str) -> Any:
    path = Path(target)
    if not _PYTHON_FILE.fullmatch(target):
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            # As `python -m` and gunicorn do: the module in the current directory is the one that is meant.
            sys.path.insert(0, str(Path.cwd()))
        return importlib.import_module(target)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {target}")
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


def adhoc_service(reference: str) -> Service:
    """Make a service of the class, Protocol, Factory or DatagramProtocol, that `PATH_OR_MODULE:NAME` names.

    Its one protocol is called `stream` or `datagram`. Raises `PluginError` if there is no such thing.
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
    is_class = isinstance(source, type)
    if isinstance(source, AbstractDatagramProtocol) or (is_class and issubclass(source, AbstractDatagramProtocol)):
        return Service("serve", reference, datagrams={"datagram": source})
    if IProtocolFactory.providedBy(source) or (
        is_class and (IProtocol.implementedBy(source) or IProtocolFactory.implementedBy(source))
    ):
        return Service("serve", reference, streams={"stream": source})
    raise PluginError(
        [
            f"--serve {reference}: {name} is {'another class' if is_class else type(source).__name__}, "
            "not a Protocol, DatagramProtocol or Factory class"
        ]
    )

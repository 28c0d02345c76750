"""The private names of Twisted that netsvc uses: listed here with the reason for each, and all still there.

Supported is Twisted from 26.10 on (setup.cfg). A new version of Twisted may change any of these names: then one of
these tests fails and says which, and where netsvc uses it. A use that is not listed fails as well.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from configparser import ConfigParser
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import netsvc
import twisted

ROOT = Path(netsvc.__file__).parent

#: Where Twisted (or Python) defines a name, and what netsvc needs it for.
NAMES = {
    # For those who run coroutines themselves (docs.python.org/3/library/asyncio-extending.html).
    "_enter_task": ("asyncio.tasks", "let a coroutine that is no task be the current task"),
    "_leave_task": ("asyncio.tasks", "let it be that no more"),
    # Python 3.13 has a public name for it.
    "_compresslevel": ("zipfile.ZipInfo", "compress the texts in an archive, and nothing else"),
    # Ports and transports of netsvc.reactor are Twisted's, with some methods replaced.
    "_accept": ("socket.socket", "accept without asking the system for the kind of each socket"),
    "_addressType": ("twisted.internet.tcp.Server", "make the addresses of IPv6 connections"),
    "_buildAddr": ("twisted.internet.tcp.Port", "make the address of a client"),
    "_fromConnectedSocket": ("twisted.internet.tcp.Server", "IReactorSocket.adoptStreamConnection"),
    "_fromListeningDescriptor": ("twisted.internet.tcp.Port", "IReactorSocket.adoptStreamPort"),
    "_preexistingSocket": ("twisted.internet.unix.Port", "open a port over a socket that is bound"),
    "_realPortNumber": ("twisted.internet.tcp.Port", "name the port in log lines, as Twisted does"),
    "_getLogPrefix": ("twisted.internet.abstract._LogOwner", "name connections in log lines, as Twisted does"),
    "_makeTransport": ("twisted.internet.tcp.Connector", "make outgoing connections that are flushed"),
    "_reservedFD": ("twisted.internet.tcp", "a port that is adopted reserves a descriptor, as every port does"),
    "_bindPath": ("twisted.internet.unix.Port", "know the file of a UNIX port"),
    "_shouldShutdown": ("twisted.internet.tcp._SocketCloser", "close a listening socket that other processes have"),
    "_closeSocket": ("twisted.internet.tcp._SocketCloser", "close without shutting down what has ended"),
    "_postLoseConnection": ("twisted.internet.abstract.FileDescriptor", "send close_notify behind what was written"),
    "_closeWriteConnection": ("twisted.internet.abstract.FileDescriptor", "half-close through a layer"),
    "_dataReceived": ("twisted.internet.tcp.Connection", "count and limit what a UNIX socket receives"),
    "_aborting": ("twisted.internet.tcp._AbortingMixin", "deliver nothing to a connection that is being aborted"),
    "_sendmsgQueue": ("twisted.internet.unix._SendmsgMixin", "count and limit what goes with descriptors"),
    "_tempDataBuffer": ("twisted.internet.abstract.FileDescriptor", "send what is written with one system call"),
    "_tempDataLen": ("twisted.internet.abstract.FileDescriptor", "know how much that is"),
    "_maybePauseProducer": ("twisted.internet.abstract.FileDescriptor", "pause a producer as Twisted does"),
    "_writeDisconnected": ("twisted.internet.abstract.FileDescriptor", "know that a connection is half-closed"),
    "_writeDisconnecting": ("twisted.internet.abstract.FileDescriptor", "know that it is to be half-closed"),
    "_bindSocket": ("twisted.internet.udp.Port", "give a UDP port a large receive buffer"),
    "_connectedAddr": ("twisted.internet.udp.Port", "report refusals to connected UDP ports only"),
    # The fast reactor is Twisted's epoll reactor with another doPoll.
    "_poller": ("twisted.internet.epollreactor.EPollReactor", "wait for events"),
    "_selectables": ("twisted.internet.epollreactor.EPollReactor", "find the transport of an event"),
    "_doReadOrWrite": ("twisted.internet.posixbase._PollLikeMixin", "dispatch what is not ours as Twisted does"),
    "_disconnectSelectable": (
        "twisted.internet.posixbase._DisconnectSelectableMixin",
        "lose connections as Twisted does",
    ),
    "_supportedAddressFamilies": ("twisted.internet.posixbase.PosixReactorBase", "refuse other families"),
    # TLS.
    "_handshakeDone": ("twisted.protocols.tls.TLSMemoryBIOProtocol", "the limit `handshake`; the reason `tls`"),
    "_BypassTLS": ("twisted.internet._newtls", "start TLS on a connection, with our transport"),
    "_producer": ("twisted.protocols.tls.TLSMemoryBIOProtocol", "close although a producer is registered"),
    "_shutdownTLS": ("twisted.protocols.tls.TLSMemoryBIOProtocol", "answer close_notify when everything is sent"),
    "_tlsConnection": ("twisted.protocols.tls.TLSMemoryBIOProtocol", "know whether close_notify has come"),
    "_aggregator": ("twisted.protocols.tls.BufferingTLSTransport", "send what waits for more, before close_notify"),
    "_PullToPush": ("twisted.internet._producer_helpers", "know a producer that is asked for each piece"),
    "_flushReceiveBIO": ("twisted.protocols.tls.TLSMemoryBIOProtocol", "answer a client that has sent close_notify"),
    "_flushSendBIO": ("twisted.protocols.tls.TLSMemoryBIOProtocol", "send what TLS has encrypted, as Twisted does"),
    "_tlsShutdownFinished": ("twisted.protocols.tls.TLSMemoryBIOProtocol", "end a connection as Twisted does"),
    "_lostTLSConnection": ("twisted.protocols.tls.TLSMemoryBIOProtocol", "close without waiting for close_notify"),
    # Of Python's own.
    "_asyncio_future_blocking": ("asyncio.Future", "let a coroutine await asyncio's futures, as its own tasks do"),
    "_exit": ("os", "end a process without running what was set up for another one"),
    "_is_text_encoding": ("codecs.CodecInfo", "refuse codecs that are none of text"),
    # Elsewhere.
    "_proxyInfo": ("twisted.protocols.haproxy._wrapper.HAProxyProtocolWrapper", "know whether the header has come"),
    "HAProxyProtocolWrapper": ("twisted.protocols.haproxy._wrapper", "survive headers that its parser fails at"),
    "HAProxyWrappingFactory": ("twisted.protocols.haproxy._wrapper", "use that class in its factory"),
    "_SystemdParser": ("twisted.internet.endpoints", "give the sockets of a worker to systemd: endpoints"),
    "_sddaemon": ("twisted.internet.endpoints._SystemdParser", "give the sockets of a worker to systemd: endpoints"),
    "_wrappedEndpoint": (
        "twisted.internet.endpoints._WrapperServerEndpoint",
        "open the ports of haproxy: endpoints of a plugin",
    ),
    "_interface": ("twisted.internet.endpoints.TCP4ServerEndpoint", "find clashes with the ports of plugins"),
    "_AbstractServer": ("twisted.application.internet", "open the ports of a plugin's services"),
    "ServerOptions": ("twisted.scripts._twistd_unix", "run twistd with another exit status"),
    "UnixApplicationRunner": ("twisted.scripts._twistd_unix", "run twistd with another exit status"),
    "_exitSignal": ("twisted.application.app.ApplicationRunner", "know the signal that stopped the reactor"),
}

_PRIVATE = re.compile(r"_[a-z]\w*")
#: Our own names are in snake_case: a private name in camelCase is Twisted's.
_CAMEL_CASE = re.compile(r"_[a-z]+[A-Z]\w*")
_BY_NAME = {"getattr", "hasattr", "setattr", "delattr"}


#: The nodes of a tree that have names.
_DEFINITIONS = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
_NODES = _DEFINITIONS | ast.Name | ast.Attribute | ast.arg | ast.Call | ast.ImportFrom


def nodes(tree: ast.Module) -> list[Any]:
    """List the nodes that have names. It is a walk through hundreds of thousands of them."""
    return [node for node in ast.walk(tree) if isinstance(node, _NODES)]


@cache
def sources() -> dict[Path, list[Any]]:
    """Parse every module of netsvc."""
    return {path: nodes(ast.parse(path.read_text("utf-8"))) for path in sorted(ROOT.rglob("*.py"))}


def _is_own(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def own_names() -> set[str]:
    """List the private names that netsvc defines."""
    own = set()
    for found in sources().values():
        for node in found:
            if isinstance(node, _DEFINITIONS):
                own.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                own.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_own(node.value):
                own.add(node.attr)
            elif isinstance(node, ast.arg):
                own.add(node.arg)
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "namedtuple":
                own |= {"_make", "_replace", "_asdict"}
    return own | {"_make", "_replace", "_asdict"}


def foreign_names(nodes: list[Any], own: set[str]) -> Iterator[tuple[str, int]]:
    """Find the private names of others in a module, and their lines."""
    for node in nodes:
        found: list[str] = []
        if isinstance(node, ast.Attribute):
            found = [node.attr]
        elif isinstance(node, ast.FunctionDef):
            found = [node.name] if _CAMEL_CASE.fullmatch(node.name) else []
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _BY_NAME:
            found = [each.value for each in node.args if isinstance(each, ast.Constant) and isinstance(each.value, str)]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "twisted":
            private = "._" in (node.module or "")
            for alias in node.names:
                if private or alias.name.startswith("_"):
                    yield alias.name, node.lineno
        for name in found:
            if _PRIVATE.fullmatch(name) and (_CAMEL_CASE.fullmatch(name) or name not in own):
                yield name, node.lineno


@cache
def uses() -> dict[str, list[str]]:
    """List where netsvc uses each private name of others."""
    own, found = own_names(), dict[str, list[str]]()
    for path, named in sources().items():
        for name, line in foreign_names(named, own):
            found.setdefault(name, []).append(f"netsvc/{path.relative_to(ROOT)}:{line}")
    return found


def resolve(dotted: str) -> Any:
    """Import a module, or an attribute of one."""
    try:
        return import_module(dotted)
    except ImportError:
        parent, _, name = dotted.rpartition(".")
        return getattr(resolve(parent), name)


def is_there(owner: Any, name: str) -> bool:
    """Return whether a module or class has an attribute, or its instances have one."""
    if hasattr(owner, name):
        return True
    classes = owner.__mro__ if isinstance(owner, type) else ()
    sources = [inspect.getsource(each) for each in classes if each.__module__.startswith("twisted.")]
    return any(re.search(rf"\bself\.{name}\b", source) for source in sources)


def test_every_private_name_that_is_used_is_listed() -> None:
    unlisted = {name: places for name, places in uses().items() if name not in NAMES}
    assert not unlisted, f"private names that are not in {__file__}: {unlisted}"


@pytest.mark.parametrize("name", NAMES)
def test_a_private_name_that_is_listed_is_used_and_still_in_twisted(name: str) -> None:
    owner, reason = NAMES[name]
    assert name in uses(), f"{name} is not used any more: remove it from the list"
    try:
        there = is_there(resolve(owner), name)
    except (ImportError, AttributeError):
        there = False
    needing = ", ".join(uses()[name])
    assert there, f"{owner}.{name} is not in Twisted {twisted.__version__}: {needing} need it to {reason}"


def test_a_name_that_is_gone_is_missed() -> None:
    assert not is_there(resolve("twisted.internet.tcp.Server"), "_noSuchThing")
    with pytest.raises(AttributeError):
        resolve("twisted.internet.tcp.NoSuchThing")
    source = "port._noSuch = 1\nfrom twisted.x import _y\ngetattr(a, '_zZ')\nself._own"
    found = dict(foreign_names(nodes(ast.parse(source)), {"_own"}))
    assert found == {"_noSuch": 1, "_y": 2, "_zZ": 3}


def test_the_supported_versions_of_twisted_are_those_of_setup_cfg() -> None:
    setup = ConfigParser()
    assert setup.read(Path(__file__).parents[2] / "setup.cfg")
    required = setup["options"]["install_requires"]
    assert "twisted[tls]>=26.10" in required.replace(" ", "")

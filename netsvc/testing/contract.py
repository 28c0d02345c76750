"""Checks a service against the contract, in one call."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from twisted.internet.interfaces import IProtocolFactory
from twisted.internet.protocol import AbstractDatagramProtocol, Protocol
from twisted.python import usage
from zope.interface import Invalid
from zope.interface.verify import verifyObject

from netsvc.discovery import discover
from netsvc.errors import MistakeError
from netsvc.interfaces import INetworkService, IServiceInstance
from netsvc.service import Service, ServicePlugin
from netsvc.settings import declared_settings, parse_settings
from netsvc.testing.bench import Bench, build, load
from netsvc.testing.conversation import check_datagram, check_drain, check_losses, check_splits, finish, note_habits
from netsvc.testing.watch import BreachError, call_name, watched
from netsvc.text import is_unsafe

__all__ = ["Report", "check_service"]

#: Characters; a longer description does not fit its line of --help.
LONGEST_DESCRIPTION = 100
#: Seconds that a fresh process may take to import a declaration.
IMPORT_LIMIT = 60


@dataclass(frozen=True)
class Report:
    """What `check_service` checked, a line each, and what it noticed beside; print it.

    A note is no breach: it says what a protocol does that its users will not like, and the cure.
    """

    service: str
    lines: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [*self.lines, *(f"note: {note}" for note in self.notes)]
        return "\n".join([f"{self.service} keeps the contract:", *(f"  {line}" for line in lines)])


def check_service(
    service: INetworkService | str,
    settings: Mapping[str, object] | None = None,
    samples: Mapping[str, Sequence[bytes]] | None = None,
    chunked: Collection[str] = (),
) -> Report:
    """Check that a service keeps the contract of `INetworkService`, whatever its peers do.

    - `service`: a declaration, a `ServicePlugin`, an installed service's name, or `package.module:attribute`.
    - `settings`: option name to value, as `parse_settings` takes them; at least those without a default.
    - `samples`: for each protocol, what a peer sends: whole conversations for a stream, single datagrams.
      Every protocol is tried with bytes of no meaning as well.
    - `chunked`: the stream protocols that answer each chunk as it comes, or answer differently each time; they
      are not asked for the same answer to the same bytes.

    Raises `BreachError`, an `AssertionError`, with one sentence for the first breach; `ValueError` if `samples` or
    `chunked` name no protocol of the service; `MistakeError` if it is not found or `settings` are wrong.
    """
    settings, samples = settings or {}, samples or {}
    target = _target(service)
    declaration = load(service)
    try:
        lines = list(_check(declaration, target, settings, samples, chunked))
        notes = [
            note
            for name, kind in declaration.protocols.items()
            if kind == "stream"
            for note in note_habits(lambda: started(declaration, settings), name, samples.get(name, ()))
        ]
    except BreachError as error:
        raise BreachError(f"{getattr(declaration, 'name', service)}: {error}") from error.__cause__
    return Report(declaration.name, tuple(lines), tuple(notes))


def _check(
    declaration: INetworkService,
    target: str | None,
    settings: Mapping[str, object],
    samples: Mapping[str, Sequence[bytes]],
    chunked: Collection[str],
) -> Iterator[str]:
    yield _check_declaration(declaration)
    for name in (*samples, *chunked):
        if name not in declaration.protocols:
            raise ValueError(f"{declaration.name} speaks no {name}; it speaks {', '.join(declaration.protocols)}")
    parse_settings(declaration.options, settings)
    yield check_import(target)
    yield _check_build(declaration, settings)

    def bench() -> Bench:
        return started(declaration, settings)

    with watched("start() and stop()"):
        finish(bench(), "start() and stop()")
    yield "start() and stop() leave nothing behind"
    for name, kind in declaration.protocols.items():
        given = samples.get(name, ())
        if kind == "datagram":
            yield check_datagram(bench, name, given)
        else:
            if name not in chunked:
                yield check_splits(bench, name, given)
            yield check_losses(bench, name, given)
    yield check_drain(bench, declaration.protocols, samples)


def started(declaration: INetworkService, settings: Mapping[str, object]) -> Bench:
    """Build a service and start it."""
    bench = build(declaration, settings)
    try:
        bench.start()
    except MistakeError as error:
        raise BreachError(f"start() refuses to: {error}; does check_service need other settings?") from error
    return bench


def _check_declaration(service: Any) -> str:
    _verify(INetworkService, service, "the declaration")
    try:
        # What a declaration made with Service cannot get wrong.
        Service(service.name, service.description, streams=dict.fromkeys(service.protocols, Protocol))
    except (ValueError, TypeError) as error:
        raise BreachError(f"the declaration is wrong: {error}") from None
    odd = {name: kind for name, kind in service.protocols.items() if kind not in ("stream", "datagram")}
    if odd:
        raise BreachError(f"protocol {next(iter(odd))} is {next(iter(odd.values()))!r}: say 'stream' or 'datagram'")
    description = service.description
    if not description.strip() or len(description) > LONGEST_DESCRIPTION or any(map(is_unsafe, description)):
        raise BreachError(
            f"the description {description!r} is no line for --help: 1 to {LONGEST_DESCRIPTION} plain characters"
        )
    options = service.options()
    if not isinstance(options, usage.Options):
        raise BreachError(f"options makes {type(options).__name__}: give it a subclass of netsvc.interfaces.Options")
    names = [setting.name for setting in declared_settings(service.options)]
    for name in names:
        if name in service.protocols:
            raise BreachError(
                f"option {name} and protocol {name} would both be --{service.name}-{name}; rename one of them"
            )
    for name in getattr(options, "limits", ()):
        if name not in names:
            raise BreachError(f"limits names {name}, which is no option")
    return f"declaration: {len(service.protocols)} protocols ({', '.join(service.protocols)}), {len(names)} options"


def _verify(interface: Any, candidate: object, what: str) -> None:
    try:
        verifyObject(interface, candidate)
    except Invalid as error:
        reason = " ".join(str(error).split())
        raise BreachError(f"{what} does not provide {interface.__name__}: {reason}") from None


def _target(service: Any) -> str | None:
    """Say where a declaration is imported from, as an entry point does; None for one made on the spot."""
    if isinstance(service, ServicePlugin):
        return service.target
    if isinstance(service, str) and ":" in service:
        return service
    if isinstance(service, str):
        found = discover().services.get(service)
        return found.target if found else None
    for place, module in list(sys.modules.items()):
        # A module of tests that imports the declaration holds it as well.
        if place == "__main__" or place.rpartition(".")[2].startswith("test_"):
            continue
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if value is service:
                return f"{place}:{name}"
    return None


_IMPORT = """
import sys
sys.path[:] = sys.argv[2:]
from netsvc.testing.bench import load
load(sys.argv[1])
sys.exit(3 if "twisted.internet.reactor" in sys.modules else 0)
"""


def check_import(target: str | None, limit: float = IMPORT_LIMIT) -> str:
    """See that a declaration can be imported by itself, within `limit` seconds, and leaves the reactor alone."""
    if target is None:
        return "import: not checked, for no module holds this declaration"
    # The path is given, for a declaration may lie in a directory that only this process knows.
    command = [sys.executable, "-W", "ignore", "-c", _IMPORT, target, *sys.path]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit)
    except subprocess.TimeoutExpired:
        raise BreachError(f"importing {target} takes more than {limit:g} s; does it run something?") from None
    if ran.returncode == 3:
        raise BreachError(
            f"importing {target} imports twisted.internet.reactor, which breaks twistd --reactor; "
            "take the reactor from the context"
        )
    if ran.returncode:
        raise BreachError(f"{target} cannot be imported in a fresh process: {ran.stderr.strip().splitlines()[-1]}")
    return f"import: {target} loads without the reactor"


def _check_build(service: INetworkService, settings: Mapping[str, object]) -> str:
    with watched("build()"):
        reactor_before = "twisted.internet.reactor" in sys.modules
        first, second = build(service, settings), build(service, settings)
        _verify(IServiceInstance, first.instance, "what build() returns")
        core = getattr(first.instance, "core", None)
        if first.instance is second.instance or (core is not None and core is getattr(second.instance, "core", None)):
            raise BreachError("build() returns the same core twice; it must build a fresh one for every call")
        for name, kind in service.protocols.items():
            protocols = first.protocol(name), first.protocol(name)
            if kind == "stream" and not all(map(IProtocolFactory.providedBy, protocols)):
                raise BreachError(f"protocol {name} is {type(protocols[0]).__name__}, not an IProtocolFactory")
            if kind == "datagram":
                _check_datagram_protocol(name, protocols)
        if ("twisted.internet.reactor" in sys.modules) > reactor_before:
            raise BreachError("build() imports twisted.internet.reactor; take the reactor from the context")
        _check_idle(first, "build()")
    with watched("check()"):
        made = build(service, settings)
        try:
            made.check()
        except MistakeError as error:
            raise BreachError(f"check() refuses to: {error}; does check_service need other settings?") from error
        _check_idle(made, "check()")
    return "build() and check(): a fresh core, no side effects"


def _check_datagram_protocol(name: str, protocols: Sequence[object]) -> None:
    for protocol in protocols:
        if not isinstance(protocol, AbstractDatagramProtocol):
            raise BreachError(f"protocol {name} is {type(protocol).__name__}, not a DatagramProtocol")
    if protocols[0] is protocols[1]:
        raise BreachError(f"protocol {name} is one object, which only one listener can use; declare its class")


def _check_idle(bench: Bench, what: str) -> None:
    calls = bench.clock.getDelayedCalls()
    if calls:
        raise BreachError(f"{what} schedules a call ({call_name(calls[0])}); do that in start()")

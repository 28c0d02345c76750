"""Finds, in one call, what would make a service fail or do harm in production."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocolFactory
from twisted.internet.protocol import AbstractDatagramProtocol, Protocol
from twisted.python import usage
from twisted.python.failure import Failure
from zope.interface import Invalid
from zope.interface.verify import verifyObject

from netsvc.base.errors import UserError, describe
from netsvc.base.text import escape, is_unsafe
from netsvc.config.discovery import discover
from netsvc.interfaces import INetworkService, IServiceInstance
from netsvc.options import declared_settings, parse_settings
from netsvc.plan.limits import LIMITS
from netsvc.service import Service, ServicePlugin
from netsvc.testing.findings import Finding, Findings, FindingsError, ProblemError, Step, call_name, effects, source_of
from netsvc.testing.frames import shown_at_caller
from netsvc.testing.served import Client, Served, load
from netsvc.testing.wire import LONGEST_DATAGRAM, MemoryReactor

__all__ = ["Finding", "FindingsError", "check_service"]

#: How often an answer that differs is compared again, where the answer to the same sample differs as well.
ATTEMPTS = 5
#: Characters. A longer description does not fit its line of --help.
LONGEST_DESCRIPTION = 100
#: Seconds that a fresh process may take to import a declaration.
IMPORT_LIMIT = 60
#: Sent to every protocol besides its samples: nothing, a line, and every byte.
GARBAGE = (b"", b"hello\r\n", bytes(range(256)))
#: Bytes that a peer reads in all, so that an endless answer ends.
WINDOW = 64 * 1024
#: Bytes. A longer answer to a sample is reported as endless.
LONGEST_ANSWER = 4 * 1024 * 1024
#: Bytes that a protocol may hold for a peer that does not read: several times Twisted's send buffer.
HOARD = 512 * 1024
#: Bytes without a delimiter that a protocol is sent, in pieces, and what it may hold of them.
ENDLESS, HELD, PIECE = 4 * 1024 * 1024, 3 * 1024 * 1024, 64 * 1024
#: The most moments, spread over its length, at which the connection is broken in a sample.
MOMENTS = 20
#: Seconds that pass, in steps: short ones for pauses between bytes, then enough for idle limits.
PASSING = (0.0, 0.1, 0.5, 1.0, 5.0, 20.0, 40.0)
_UNLIMITED: Mapping[str, object] = dict.fromkeys(LIMITS)
#: Clients of a datagram protocol: of both IP versions, and of a UNIX socket.
_PEERS = (IPv4Address("UDP", "192.0.2.1", 54321), IPv6Address("UDP", "2001:db8::1", 54321), UNIXAddress("/run/peer"))


@shown_at_caller
def check_service(
    service: Any,
    settings: Mapping[str, object] | None = None,
    samples: Mapping[str, Sequence[bytes]] | None = None,
    allow: Collection[str] = (),
) -> None:
    """Check that a service is fit for production, whatever its clients do.

    - `service`: what `serve` accepts.
    - `settings`: option name to value; at least the options without a default.
    - `samples`: protocol name to what clients send: whole conversations for a stream, single datagrams. Every protocol
      is also tried with arbitrary bytes.
    - `allow`: the kinds of findings that the service accepts, of all protocols or of one: `"tcp split"` for a stream
      protocol that answers each chunk as it arrives, or differently each time.

    Raises `FindingsError`, an `AssertionError` whose `findings` has all of them, each with its kind, its location and
    the cure (see `netsvc.testing.findings.KINDS`). Raises `ValueError` if `samples` name an unknown protocol;
    `UserError` if the service is not found or `settings` are wrong.
    """
    settings, samples = settings or {}, samples or {}
    declaration = load(service)
    findings = Findings(allow)
    _Check(declaration, settings, samples, findings).run(_target(service))
    if findings.found:
        raise FindingsError(getattr(declaration, "name", None) or repr(service), list(findings.found.values()))


def _target(service: Any) -> str | None:
    """Return where a declaration is imported from, as in an entry point; None if no module holds it."""
    if isinstance(service, ServicePlugin):
        return service.target
    if isinstance(service, str) and ":" in service:
        return service
    if isinstance(service, str):
        found = discover().services.get(service)
        return found.target if found else None
    for place, module in list(sys.modules.items()):
        # A test module that imports the declaration holds it as well.
        if place == "__main__" or place.rpartition(".")[2].startswith("test_"):
            continue
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if value is service:
                return f"{place}:{name}"
    return None


_IMPORT = """
import sys
sys.path[:] = sys.argv[2:]
from netsvc.testing.served import load
load(sys.argv[1])
sys.exit(3 if "twisted.internet.reactor" in sys.modules else 0)
"""


def check_import(target: str, limit: float = IMPORT_LIMIT) -> None:
    """Check that a fresh process can import a declaration within `limit` seconds, without importing the reactor."""
    # Pass the path, because the declaration may be in a directory that only this process has on its path.
    command = [sys.executable, "-W", "ignore", "-c", _IMPORT, target, *sys.path]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit)
    except subprocess.TimeoutExpired:
        raise ProblemError("import", f"importing {target} takes more than {limit:g} s") from None
    if ran.returncode == 3:
        raise ProblemError(
            "import", f"importing {target} imports twisted.internet.reactor, which breaks twistd --reactor"
        )
    if ran.returncode:
        raise ProblemError(
            "import", f"{target} cannot be imported in a fresh process: {ran.stderr.strip().splitlines()[-1]}"
        )


@dataclass
class _Check:
    """Everything that is checked of one service."""

    service: INetworkService
    settings: Mapping[str, object]
    samples: Mapping[str, Sequence[bytes]]
    findings: Findings

    def run(self, target: str | None) -> None:
        core = source_of(getattr(self.service, "core", self.service))
        with self.findings.step("the declaration") as step:
            self._check_declaration(step)
        if self.findings.found:
            # The rest relies on it.
            return
        for name in self.samples:
            if name not in self.service.protocols:
                offered = ", ".join(self.service.protocols)
                raise ValueError(f"{self.service.name} has no protocol {name}; it speaks {offered}")
        parse_settings(self.service.options, self.settings)
        with self.findings.step("the import"):
            if target is not None:
                check_import(target)
        sources: dict[str, str] = {}
        for what, prepare in (
            ("build()", self._check_build),
            ("check()", self._check_check),
            ("start()", self._check_start),
        ):
            with self.findings.step(what, core) as step:
                prepare(step, sources)
            if step.failed:
                # The rest would fail for the same reason.
                return
        for name, kind in self.service.protocols.items():
            checks: tuple[Callable[[Step, str], None], ...] = (self._check_datagrams, self._check_answers)
            if kind == "stream":
                checks = self._check_splits, self._check_losses, self._check_reading
            for check in checks:
                with self.findings.step(name, sources[name], name) as step:
                    check(step, name)
                if self._is_endless(name):
                    break
        if any(map(self._is_endless, self.service.protocols)):
            # The rest would take as long.
            return
        for live in (False, True):
            with self.findings.step(f"drain() with {'live' if live else 'no'} connections", core) as step:
                self._check_drain(step, live)

    def _is_endless(self, name: str) -> bool:
        return any(found[:2] == ("endless", name) for found in self.findings.found)

    # The declaration, and what it builds.

    def _check_declaration(self, step: Step) -> None:
        service = self.service
        _verify(INetworkService, service, "the declaration")
        try:
            # Check what `Service` checks of its own declarations.
            Service(service.name, service.description, streams=dict.fromkeys(service.protocols, Protocol))
        except (ValueError, TypeError) as error:
            raise ProblemError("declaration", str(error)) from None
        for name, kind in service.protocols.items():
            if kind not in ("stream", "datagram"):
                step.add("declaration", f"protocol {name} is {kind!r}, not 'stream' or 'datagram'")
        description = service.description
        if not description.strip() or len(description) > LONGEST_DESCRIPTION or any(map(is_unsafe, description)):
            step.add(
                "declaration",
                f"the description {description!r} is no line for --help: 1 to {LONGEST_DESCRIPTION} plain characters",
            )
        options = service.options()
        if not isinstance(options, usage.Options):
            raise ProblemError(
                "declaration", f"options makes {type(options).__name__}, not a subclass of netsvc.interfaces.Options"
            )
        names = [setting.name for setting in declared_settings(service.options)]
        for name in names:
            if name in service.protocols:
                step.add("declaration", f"option {name} and protocol {name} would both be --{service.name}-{name}")
        for name in getattr(options, "limits", ()):
            if name not in names:
                step.add("declaration", f"limits names {name}, which is no option")

    def _check_build(self, step: Step, sources: dict[str, str]) -> None:
        step.leaves = "side-effect"
        reactor_before = "twisted.internet.reactor" in sys.modules
        with effects() as seen:
            first, second = self._built(), self._built()
            _verify(IServiceInstance, first.instance, "what build() returns")
            built = {
                name: (first.instance.protocol(name), first.instance.protocol(name)) for name in self.service.protocols
            }
        self._check_idle(step, seen, first)
        if ("twisted.internet.reactor" in sys.modules) > reactor_before:
            raise ProblemError("side-effect", "build() imports twisted.internet.reactor")
        core = getattr(first.instance, "core", None)
        if first.instance is second.instance or (core is not None and core is getattr(second.instance, "core", None)):
            raise ProblemError("declaration", "build() returns the same core twice, not a fresh one for every call")
        for name, (one, other) in built.items():
            if self.service.protocols[name] == "stream":
                if not IProtocolFactory.providedBy(one):
                    raise ProblemError(
                        "declaration", f"protocol {name} is {type(one).__name__}, not an IProtocolFactory"
                    )
            elif not isinstance(one, AbstractDatagramProtocol):
                raise ProblemError("declaration", f"protocol {name} is {type(one).__name__}, not a DatagramProtocol")
            elif one is other:
                raise ProblemError(
                    "declaration", f"protocol {name} is one object, which only one listener can use; declare its class"
                )
            sources[name] = _protocol_source(one)

    def _check_check(self, step: Step, sources: object) -> None:
        step.leaves = "side-effect"
        with effects() as seen:
            made = self._built()
            try:
                made.instance.check()
            except UserError as error:
                raise ProblemError("settings", f"check() refuses to: {describe(error)}") from error
        self._check_idle(step, seen, made)

    def _check_idle(self, step: Step, seen: Iterable[str], served: Served) -> None:
        """Add what was done outside, or asked of the reactor."""
        for effect in seen:
            step.add("side-effect", f"{step.what} {effect}")
        clock = served.clock
        for call in clock.getDelayedCalls()[:1]:
            step.add("side-effect", f"{step.what} schedules a call ({call_name(call)})")
        asked = ("tcpServers", "tcpClients", "sslServers", "sslClients", "unixServers", "unixClients")
        for attribute in (*asked, "udpServers", "unixDatagramServers"):
            if getattr(clock, attribute):
                step.add("side-effect", f"{step.what} opens a socket ({attribute} of the reactor)")

    def _check_start(self, step: Step, sources: object) -> None:
        with self._served(step):
            step.begin("start() and stop()")

    def _built(self, limits: Mapping[str, object] = _UNLIMITED) -> Served:
        return Served(self.service, self.settings, limits, MemoryReactor(), None)

    @contextmanager
    def _served(self, step: Step, limits: Mapping[str, object] = _UNLIMITED) -> Iterator[Served]:
        """Serve in a block; then stop, and check that nothing is left."""
        served = self._built(limits)
        try:
            served.start()
        except UserError as error:
            raise ProblemError("settings", f"start() refuses to: {describe(error)}") from error
        yield served
        for connection in list(served.clock.connections):
            with served._settled():
                connection.lose()
        for port in served._open_ports():
            port.close()
        _pass_time(served)
        served.stop()
        if served.clock.hasStopped:
            raise ProblemError("raises", f"{step.what} stopped the reactor, and with it every other service")
        calls = served.clock.getDelayedCalls()
        if calls:
            raise ProblemError("leftover", f"{step.what}: stop() leaves a delayed call behind ({call_name(calls[0])})")
        if asking := served.metrics.asking():
            raise ProblemError("leftover", f"{step.what}: stop() leaves a function in the gauge {asking[0]}")

    def _sent(self, name: str) -> tuple[bytes, ...]:
        return (*self.samples.get(name, ()), *GARBAGE)

    # Streams.

    def _check_splits(self, step: Step, name: str) -> None:
        """Check that the answer depends neither on segment borders, nor on when the client reads."""
        for sample in self._sent(name):
            ways = {
                "byte by byte": [sample[place : place + 1] for place in range(len(sample))],
                "in pairs of bytes": [sample[place : place + 2] for place in range(0, len(sample), 2)],
                "whole to a client that reads late": [sample],
            }
            whole = self._outcome(step, name, sample, "whole", [sample])
            for way, chunks in ways.items():
                found = self._outcome(step, name, sample, way, chunks)
                attempts = ATTEMPTS
                while found != whole:
                    before, whole = whole, self._outcome(step, name, sample, "whole", [sample])
                    attempts -= 1
                    if found == whole:
                        break
                    if before == whole or not attempts:
                        step.begin(f"{name}, {_show(sample)} sent {way}")
                        raise ProblemError("split", f"{step.what}: {_difference(whole, found)}")
                    # The answer has the time of day in it, which has changed meanwhile.
                    found = self._outcome(step, name, sample, way, chunks)

    def _outcome(self, step: Step, name: str, sample: bytes, way: str, chunks: Sequence[bytes]) -> _Outcome:
        step.begin(f"{name}, {_show(sample)} sent {way}")
        # A core of its own, since the answer may depend on what was said before.
        with self._served(step) as served:
            return _converse(served, name, chunks, reads_late="late" in way)

    def _check_losses(self, step: Step, name: str) -> None:
        """Check that the service survives a connection that breaks at any moment, in any way."""
        with self._served(step) as served:
            for sample in self._sent(name):
                for sent in _moments(sample):
                    for ending in _ENDINGS:
                        step.begin(f"{name}, {ending.name} after {_show(sent)}")
                        client = served.connect(name, window=ending.window)
                        client.send(sent)
                        if ending.half_close:
                            client.half_close()
                        if ending.wait:
                            _pass_time(served)
                        client.reset()

    def _check_reading(self, step: Step, name: str) -> None:
        """Check a client that half-closes, one that does not read, and one that sends no delimiter."""
        with self._served(step) as served:
            for sample in self._sent(name):
                step.begin(f"{name}, a half-close after {_show(sample)}")
                slow, hasty = (served.connect(name, window=WINDOW) for _ in range(2))
                slow.send(sample)
                is_endless = _is_endless_answer(served, slow)
                slow.half_close()
                hasty.half_close(sample)
                _pass_time(served)
                if slow.received and not hasty.received:
                    step.add(
                        "half-close",
                        f"{name} loses its answer to a client that sends and half-closes at once, as one at the end of "
                        "a pipe does",
                    )
                    break
                if is_endless or _is_endless_answer(served, slow):
                    what = f"{name} answers {_show(sample)} with more than {LONGEST_ANSWER // 1024**2} MiB"
                    step.add("endless", what, "endless")
                    break
                slow.reset()
                hasty.reset()
            step.begin(f"{name}, a client that does not read")
            unread = served.connect(name, window=0)
            sample = next(iter(self.samples.get(name, ())), b"") or GARBAGE[1]
            for _ in range(2 * HOARD // PIECE):
                unread.send(sample * (PIECE // len(sample) + 1))
            if unread.unread >= HOARD:
                step.add("slow-reader", f"{name} holds all that it answers to a client that does not read")
            unread.reset()
            step.begin(f"{name}, {ENDLESS // 1024**2} MiB without a delimiter")
            if (held := _held_of_endless(served.connect(name, window=WINDOW))) >= HELD:
                step.add(
                    "unbounded",
                    f"{name} holds {held // 1024**2} MiB of input for one connection that sends no delimiter",
                )

    # Datagrams.

    def _check_datagrams(self, step: Step, name: str) -> None:
        """Check that a datagram protocol takes any datagram from any peer, over UDP and over a UNIX socket."""
        samples = self.samples.get(name, ())
        with self._served(step) as served:
            for peer in _PEERS:
                step.begin(f"{name}, starting for {peer}")
                client = served.connect_datagram(name, peer=peer)
                for place in (client.peer, None) if isinstance(peer, UNIXAddress) else (client.peer,):
                    for data in (*samples, *GARBAGE, bytes(LONGEST_DATAGRAM), *samples):
                        step.begin(f"{name}, a datagram of {len(data)} bytes ({_show(data)}) from {place or 'no name'}")
                        with served._settled():
                            client.port.feed(data, place)
            step.begin(f"{name}, the end of its port")

    def _check_answers(self, step: Step, name: str) -> None:
        """Check the length of what a datagram protocol answers, with the limits that it will have."""
        with self._served(step) as free, self._served(step, {}) as limited:
            client, bounded = free.connect_datagram(name), limited.connect_datagram(name)
            refused = bounded.port.sessions.gate.tally.counts.refused
            for data in self._sent(name):
                step.begin(f"{name}, an answer to {len(data)} bytes ({_show(data)})")
                for each in (client, bounded):
                    each.received.clear()
                    each.send(data)
                    _pass_time(each.served)
                size = sum(map(len, client.received))
                if not data and size:
                    step.add("empty-datagram", f"{name} answers an empty datagram with {size} bytes")
                if refused["amplify"]:
                    step.add(
                        "amplification",
                        f"{name} answers {len(data)} bytes ({_show(data)}) with {size}: the limit amplify drops that, "
                        "since the address of a peer can be forged",
                    )
                    break

    # Drain.

    def _check_drain(self, step: Step, live: bool) -> None:
        with self._served(step) as served:
            conversations: list[tuple[Client, bytes]] = []
            for name, kind in self.service.protocols.items():
                if kind == "stream" and live:
                    sample = next(iter(self.samples.get(name, ())), GARBAGE[1])
                    for half in (0, len(sample) // 2):
                        client = served.connect(name, window=WINDOW)
                        client.send(sample[:half])
                        conversations.append((client, sample[half:]))
            done = served.drain()
            fired: list[Any] = []
            if done is not None and not isinstance(done, Deferred):
                raise ProblemError("drain", f"drain() returns {type(done).__name__}, not a Deferred or None")
            if done is not None:
                done.addBoth(fired.append)
            for client, rest in conversations:
                client.send(rest)
            _pass_time(served)
            for client, _ in conversations:
                client.reset()
            _pass_time(served)
            if done is not None and not fired:
                raise ProblemError("drain", f"{step.what} does not finish, though every connection is gone")
            if fired and isinstance(fired[0], Failure):
                raise ProblemError("drain", f"{step.what} fails: {describe(fired[0].value or Exception())}")


def _verify(interface: Any, candidate: object, what: str) -> None:
    try:
        verifyObject(interface, candidate)
    except Invalid as error:
        reason = " ".join(str(error).split())
        raise ProblemError("declaration", f"{what} does not provide {interface.__name__}: {reason}") from None


def _protocol_source(built: Any) -> str:
    """Return the location of the class or function behind a factory or datagram protocol."""
    for attribute in ("function", "_function", "protocol"):
        source = getattr(built, attribute, None)
        if callable(source):
            return source_of(source)
    return source_of(built)


def _pass_time(served: Served) -> None:
    for amount in PASSING:
        with served._settled():
            served.clock.advance(amount)


@dataclass(frozen=True)
class _Outcome:
    """What a client saw: the bytes that it received, before and after it half-closed, and how the connection ended."""

    answer: bytes
    ended: bool
    rest: bytes
    was_reset: bool


def _converse(served: Served, name: str, chunks: Sequence[bytes], *, reads_late: bool = False) -> _Outcome:
    client = served.connect(name, window=0 if reads_late else WINDOW)
    for chunk in chunks:
        client.send(chunk)
    if reads_late:
        client.window = WINDOW
    _pass_time(served)
    answer, ended = client.received, client.transport.ended
    client.half_close()
    _pass_time(served)
    outcome = _Outcome(answer, ended, client.received[len(answer) :], client.was_reset)
    client.reset()
    return outcome


def _show(data: bytes) -> str:
    return f'"{escape(data, 40)}"' if data else "nothing"


def _difference(whole: _Outcome, other: _Outcome) -> str:
    for ours, theirs, when in (
        (whole.answer, other.answer, ""),
        (whole.rest, other.rest, " after the client has sent all"),
    ):
        if ours != theirs:
            return f"the answer{when} is {_show(theirs)}, but whole it is {_show(ours)}"
    return "the connection ends in another way than when it is sent whole"


def _moments(sample: bytes) -> list[bytes]:
    """Return the beginnings of a sample: up to each byte, or to some of them if there are too many."""
    stride = len(sample) // MOMENTS + 1
    return [sample[:place] for place in range(1, len(sample), stride)] + [sample]


@dataclass(frozen=True)
class _Ending:
    """How a connection ends: what happens before the loss, and how much the client reads."""

    name: str
    half_close: bool = False
    wait: bool = False
    window: int = WINDOW // 16


_ENDINGS = (
    _Ending("a loss"),
    _Ending("a loss with the answer unread", window=0),
    _Ending("a loss after an idle minute", wait=True),
    _Ending("a half-close and a loss", half_close=True),
    _Ending("a half-close with the answer unread", half_close=True, window=0),
    _Ending("a half-close and an idle minute", half_close=True, wait=True),
)


def _is_endless_answer(served: Served, client: Client) -> bool:
    """Let the client read on if there is more to read; return whether that goes on past `LONGEST_ANSWER`."""
    read = WINDOW
    while not (client.window or client.closed):
        if read >= LONGEST_ANSWER:
            return True
        client.transport.clear()
        client.window = WINDOW
        read += WINDOW
        _pass_time(served)
    return False


def _held_of_endless(client: Client) -> int:
    """Return how many bytes are held for a connection that sends bytes and never a delimiter, and reads the answers."""
    was_tracing = tracemalloc.is_tracing()
    if not was_tracing:
        tracemalloc.start()
    try:
        piece = b"x" * PIECE
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(ENDLESS // PIECE):
            client.send(piece)
            client.transport.clear()
            client.window = WINDOW
            if client.unsent or client.closed:
                # It does not read on, or has ended the connection.
                break
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        if not was_tracing:
            tracemalloc.stop()
        client.reset()

"""Talks to a service's protocols as peers do, the rude ones too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from netsvc.interfaces import Kind
from netsvc.testing.bench import Bench, bind, connect
from netsvc.testing.watch import BreachError, call_name, describe, watched
from netsvc.testing.wire import LONGEST_DATAGRAM, FakeTransport
from netsvc.text import escape

__all__ = ["check_datagram", "check_drain", "check_losses", "check_splits", "finish", "note_habits"]

#: What is tried with every protocol, beside its samples: nothing, a line, and every byte that there is.
GARBAGE = (b"", b"hello\r\n", bytes(range(256)))
#: Bytes that the peer of a check takes in all, so that an endless answer has an end.
WINDOW = 64 * 1024
#: Bytes that a protocol may hold for a peer that does not read: several times what Twisted's buffer holds.
HOARD = 512 * 1024
#: Pieces in which such a peer sends what makes an answer of that size.
BLOCKS = 64
#: Connections that are broken in each sample at most, at moments spread over its length.
MOMENTS = 100
#: Seconds, step by step: short ones for pauses between bytes, then enough for idle limits.
PASSING = (0.0, 0.1, 0.5, 1.0, 5.0, 20.0, 40.0)
#: Where datagrams come to and from: UDP of both IP versions, and a UNIX socket, whose peers may have no name.
PLACES: tuple[tuple[Any, tuple[Any, ...]], ...] = (
    (IPv4Address("UDP", "127.0.0.1", 40000), (("192.0.2.1", 54321),)),
    (IPv6Address("UDP", "::1", 40000), (("2001:db8::1", 54321),)),
    (UNIXAddress("/run/server"), ("/run/peer", None)),
)


@dataclass(frozen=True)
class _Outcome:
    """What a peer saw: the bytes that came, before and after it said that it has sent all, and how it ended."""

    answer: bytes
    ended: bool
    farewell: bytes
    aborted: bool


@contextmanager
def _in(step: str) -> Iterator[None]:
    """Say in which step an error was raised."""
    try:
        yield
    except BreachError:
        raise
    except (Exception, SystemExit) as error:
        raise BreachError(f"{step}: raised {describe(error)}") from error


def _pass_time(bench: Bench) -> None:
    for amount in PASSING:
        bench.clock.advance(amount)


def finish(bench: Bench, what: str) -> None:
    """Stop a service all of whose connections are gone, and see that nothing is left of it."""
    with _in(f"after {what}"):
        _pass_time(bench)
        bench.stop()
    if bench.clock.hasStopped:
        raise BreachError(f"{what} stopped the reactor, and with it every other service")
    calls = bench.clock.getDelayedCalls()
    if calls:
        raise BreachError(f"{what} left a call behind that stop() did not cancel ({call_name(calls[0])})")
    asking = bench.context.metrics.asking()
    if asking:
        raise BreachError(f"{what} left a function in the gauge {asking[0]} that stop() did not remove")


def _converse(bench: Bench, name: str, chunks: Sequence[bytes], *, reads_late: bool = False) -> _Outcome:
    _, transport = connect(bench, name, window=0 if reads_late else WINDOW)
    for chunk in chunks:
        transport.feed(chunk)
    if reads_late:
        transport.take(WINDOW)
    _pass_time(bench)
    answer, ended = transport.value(), transport.ended
    transport.half_close()
    _pass_time(bench)
    outcome = _Outcome(answer, ended, transport.value()[len(answer) :], transport.aborted)
    transport.lose()
    return outcome


def check_splits(make: Callable[[], Bench], name: str, samples: Sequence[bytes]) -> str:
    """See that the borders between segments make no difference, nor that the peer reads late."""
    for sample in (*samples, *GARBAGE):
        ways = {
            "whole": [sample],
            "byte by byte": [sample[place : place + 1] for place in range(len(sample))],
            "in pairs of bytes": [sample[place : place + 2] for place in range(0, len(sample), 2)],
            "whole to a peer that reads late": [sample],
        }
        outcomes = {}
        for way, chunks in ways.items():
            step = f"{name}, {_show(sample)} sent {way}"
            with watched(step):
                bench = make()
                with _in(step):
                    outcomes[way] = _converse(bench, name, chunks, reads_late="late" in way)
                finish(bench, step)
            if outcomes[way] != outcomes["whole"]:
                raise BreachError(f"{step}: {_difference(outcomes['whole'], outcomes[way])}")
    return f"{name}: {len(samples)} samples and garbage, whole, split and read late: the same answer"


def note_habits(make: Callable[[], Bench], name: str, samples: Sequence[bytes]) -> Iterator[str]:
    """Say what a stream protocol does that the contract allows, and that its users will not like."""
    what = f"{name}, looking at its habits"
    with watched(what):
        bench = make()
        with _in(what):
            for sample in (*samples, *GARBAGE):
                (_, slow), (_, hasty) = connect(bench, name, window=WINDOW), connect(bench, name, window=WINDOW)
                slow.feed(sample)
                slow.half_close()
                hasty.half_close(sample)
                _pass_time(bench)
                slow.lose()
                hasty.lose()
                if slow.value() and not hasty.value():
                    yield (
                        f"{name} loses its answer to a peer that sends and half-closes at once, "
                        "as a client at the end of a pipe does; implement IHalfCloseableProtocol"
                    )
                    break
            _, unread = connect(bench, name, window=0)
            sample = next(iter(samples), b"") or GARBAGE[1]
            for _ in range(2 * BLOCKS):
                unread.feed(sample * (HOARD // BLOCKS // len(sample) + 1))
            if unread.buffered >= HOARD:
                yield (
                    f"{name} holds all that it answers to a peer that does not read; "
                    "call transport.registerProducer(transport, True) when the connection is made"
                )
            unread.lose()
        finish(bench, what)


def _show(data: bytes) -> str:
    return f'"{escape(data, 40)}"' if data else "nothing"


def _difference(whole: _Outcome, other: _Outcome) -> str:
    hint = "if each chunk is answered as it comes, name the protocol in chunked="
    for ours, theirs, when in (
        (whole.answer, other.answer, ""),
        (whole.farewell, other.farewell, " after the peer has sent all"),
    ):
        if ours != theirs:
            return f"the answer{when} is {_show(theirs)}, but whole it is {_show(ours)}; {hint}"
    return f"the connection ends in another way than when it is sent whole; {hint}"


def _moments(sample: bytes) -> list[bytes]:
    """Cut a sample off at every place, or at places spread over it where there are too many."""
    stride = len(sample) // MOMENTS + 1
    return [sample[:place] for place in range(1, len(sample), stride)] + [sample]


def check_losses(make: Callable[[], Bench], name: str, samples: Sequence[bytes]) -> str:
    """See that a connection may break at any moment, in any way, and that the service outlives it."""
    count = 0
    for sample in (*samples, *GARBAGE):
        what = f"{name}, a connection lost in {_show(sample)}"
        with watched(what):
            bench = make()
            for sent in _moments(sample):
                for ending in _ENDINGS:
                    with _in(f"{name}, {ending.name} after {_show(sent)}"):
                        _, transport = connect(bench, name, window=ending.window)
                        transport.feed(sent)
                        if ending.half_close:
                            transport.half_close()
                        if ending.wait:
                            _pass_time(bench)
                        transport.lose()
                    count += 1
            finish(bench, what)
    return f"{name}: {count} connections lost, at every moment of the samples"


@dataclass(frozen=True)
class _Ending:
    """How a connection comes to its end: what goes before the loss, and how much the peer reads."""

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


def check_datagram(make: Callable[[], Bench], name: str, samples: Sequence[bytes]) -> str:
    """See that a datagram protocol takes anything from anybody, over UDP and over a UNIX socket."""
    datagrams = (*samples, *GARBAGE, bytes(LONGEST_DATAGRAM))
    for host, peers in PLACES:
        what = f"{name} at {host}"
        with watched(what):
            bench = make()
            with _in(f"{what}, starting"):
                _, transport = bind(bench, name, host=host)
            for data in (*datagrams, *samples):
                for peer in peers:
                    with _in(
                        f"{name}, a datagram of {len(data)} bytes ({_show(data)}) from {peer or 'a nameless peer'}"
                    ):
                        transport.feed(data, peer)
                        bench.clock.turn()
            with _in(f"{what}, stopping"):
                _pass_time(bench)
                transport.stopListening()
            finish(bench, what)
    return f"{name}: {len(samples)} samples, garbage, 0 and {LONGEST_DATAGRAM:,} bytes, over UDP and UNIX sockets"


def check_drain(
    make: Callable[[], Bench], protocols: Mapping[str, Kind], samples: Mapping[str, Sequence[bytes]]
) -> str:
    """See that drain() comes to an end: with no connection, and with live ones that are lost later."""
    for live in (False, True):
        what = "drain() with live connections" if live else "drain() with no connection"
        with watched(what):
            bench, conversations = make(), list[tuple[FakeTransport, bytes]]()
            with _in(what):
                for name in [name for name, kind in protocols.items() if kind == "stream" and live]:
                    sample = next(iter(samples.get(name, ())), GARBAGE[1])
                    for half in (0, len(sample) // 2):
                        _, transport = connect(bench, name, window=WINDOW)
                        transport.feed(sample[:half])
                        conversations.append((transport, sample[half:]))
                done = bench.drain()
                fired = _watch(done, what)
                for transport, rest in conversations:
                    transport.feed(rest)
                _pass_time(bench)
                for transport, _ in conversations:
                    transport.lose()
                _pass_time(bench)
            if done is not None and not fired:
                raise BreachError(f"{what} does not finish, though every connection is gone: its Deferred must fire")
            if fired and fired[0] is not None:
                raise BreachError(f"{what} fails: {fired[0]}")
            finish(bench, what)
    return "drain() ends, with and without live connections"


def _watch(done: Any, what: str) -> list[str | None]:
    """Return a list that gets what a Deferred fires with: None, or a failure's description."""
    fired: list[str | None] = []
    if done is None:
        return fired
    if not isinstance(done, Deferred):
        raise BreachError(f"{what} returns {type(done).__name__}: return a Deferred, or None")

    def note(result: object) -> None:
        fired.append(describe(result.value) if isinstance(result, Failure) and result.value else None)

    done.addBoth(note)
    return fired

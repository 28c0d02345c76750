"""Protocols as coroutines: `async def` functions that read from and write to a connection, on any reactor.

    async def shout(stream):
        async for line in stream:
            await stream.write(line.upper() + b"\\n")

    service = Service("shout", "Send back capitals", streams={"tcp": shout})

`Service` accepts such a function wherever it accepts a Protocol class. It is called with the `Stream` of each
connection, and when it returns, the connection is closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from types import TracebackType, coroutine
from typing import Any, cast

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionClosed, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IAddress, IHalfCloseableProtocol, IPushProducer, IReactorTime
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from netsvc.base.buffer import Buffer, LimitError
from netsvc.base.limit_log import LimitLog
from netsvc.base.tasks import CurrentTask, deferred_of, running_loop

__all__ = [
    "HELD",
    "LINE_LIMIT",
    "MOST_AT_END",
    "MOST_AT_ONCE",
    "EndOfStreamError",
    "Stream",
    "StreamError",
    "StreamFactory",
    "StreamLimitError",
    "StreamTimeoutError",
]

#: Bytes of a line or frame, unless another limit is given.
LINE_LIMIT = 8192
#: Received bytes that are held for a coroutine that does not read; then the connection is not read.
HELD = 65536

#: Reads and writes in a row that did not have to wait; then other connections have their turn.
MOST_AT_ONCE = 100
#: Reads at the end of what the peer sends, and writes to a lost connection; then the coroutine is ended.
MOST_AT_END = 100
#: Digits of the length of a netstring, as in its reference implementation (cr.yp.to/proto/netstrings.txt).
_MOST_DIGITS = 9

#: What a suspended coroutine waits for: a chunk of data for `Stream.read`, more data in the buffer, room to write, or
#: its next turn.
_CHUNK, _DATA, _ROOM, _TURN = "chunk", "data", "room", "turn"


class StreamError(Exception):
    """The peer did not do what the coroutine waited for. If it is not caught, the connection is closed.

    It is not a fault of the protocol, and is not counted as one.
    """


class EndOfStreamError(StreamError, EOFError):
    """The peer closed in the middle of a message."""


class StreamLimitError(StreamError, ValueError):
    """The peer sent a longer line or frame than allowed, or one that is not well-formed. Not caught, it is logged.

    If it is caught, the coroutine may answer and read on: the message that was too long is dropped as it arrives, and
    the next read gets what follows it. After one that is not well-formed nothing more is read: what the peer sends has
    ended for the coroutine.
    """

    _cure = "if that is allowed, raise the service's limit: its option for that, or the limit in its code"


class StreamTimeoutError(StreamError, TimeoutError):
    """A `Stream.timeout` expired."""


class _EndlessError(BaseException):
    """Ends a coroutine that goes on at the end of its connection; not an `Exception`, so that it does not catch it."""


class _Suspension:
    """An awaitable that suspends the coroutine until its stream has data, or room for more, or until its next turn."""

    __slots__ = ("_stream", "_wanted")

    def __init__(self, stream: Stream, wanted: str) -> None:
        self._stream = stream
        self._wanted = wanted

    def __await__(self) -> Generator[None, None, None]:
        self._stream._waits_for = self._wanted
        if self._wanted is _TURN:
            self._stream._schedule_turn()
        yield


class _Done(tuple[()]):
    """An awaitable that has nothing to wait for."""

    __slots__ = ()

    __await__ = cast("Callable[[Any], Generator[None, None, None]]", tuple.__iter__)


_DONE = _Done()


@implementer(IHalfCloseableProtocol, IPushProducer)
class Stream(Protocol):
    """A connection, as its coroutine sees it. `core` is the state that all connections of the service share.

    While the coroutine does not read, at most `HELD` bytes are held for it, then the connection is not read. While the
    peer does not read, `write` waits. When the connection is lost, the coroutine is cancelled: what it awaits raises
    `twisted.internet.error.ConnectionClosed`, or, if that is a Deferred or an asyncio future, is cancelled.

    A coroutine may await its stream, other coroutines, Deferreds, and, on an asyncio reactor, whatever asyncio's
    libraries provide. An exception that it does not catch closes the connection; it is logged and counted as an error
    of the protocol, unless it is a `StreamError` or the loss of the connection. A `StreamLimitError` is logged with the
    limit and the cure, at most once a second.

    A coroutine that does not have to wait gives way to the other connections after `MOST_AT_ONCE` reads and writes.
    One that reads on at the end of what the peer sends, or writes on to a lost connection, is ended after `MOST_AT_END`
    times, as one that fails.

    All methods are for the coroutine itself and what it awaits; one `await` at a time.
    """

    transport: Any
    factory: StreamFactory

    def __init__(self, factory: StreamFactory) -> None:
        self.factory = factory
        self.core = factory.core
        self._buffer = Buffer()
        # The coroutine, until it has ended, and what it waits for: `_CHUNK`, `_DATA`, `_ROOM`, a Deferred, or None.
        self._coroutine: Coroutine[Any, Any, None] | None = None
        self._waits_for: Any = None
        # Whether the peer sends no more; whether the transport has enough to send; whether the transport is not read.
        self._at_end = self._full = self._held = False
        # The exception that tells the coroutine of the loss of the connection.
        self._lost: type[ConnectionClosed] | None = None
        self._fault: BaseException | None = None
        # How often it did not have to wait, in a row, and how often it found the end; its next turn, if that is due.
        self._ready = self._ends = 0
        self._turn: Any = None
        # Whether what the peer sends is dropped.
        self._is_deaf = False
        # On an asyncio reactor, what asyncio takes for the task of the coroutine, and whether a library cancels it.
        self._task: CurrentTask | None = None
        self._is_cancelled = False

    @property
    def peer(self) -> Any:
        """The address of the peer, such as `twisted.internet.address.IPv4Address`."""
        return self.transport.getPeer()

    # Reading.

    @coroutine
    def read(self, most: int = 65536) -> Generator[None, bytes | None, bytes]:
        """Read up to `most` bytes, as soon as there are any; an empty result means that the peer sends no more."""
        if not (self._buffer or self._at_end):
            # The data of the common case is not put into the buffer.
            self._waits_for = _DATA if self._buffer.skips else _CHUNK
            data = yield
            if data is not None:
                if len(data) <= most:
                    return data
                self._buffer += data
        elif self._is_due():
            yield from _Suspension(self, _TURN).__await__()
        if not self._buffer:
            self._note_end()
        return self._buffer.take(most)

    async def read_exactly(self, size: int) -> bytes:
        """Read `size` bytes. Raises `EndOfStreamError` if the peer sends fewer."""
        if self._is_due():
            await _Suspension(self, _TURN)
        await self._holds(size)
        return self._buffer.take(size)

    async def _holds(self, size: int) -> None:
        """Wait until the buffer holds `size` bytes. Raises `EndOfStreamError` if the peer sends fewer."""
        while len(self._buffer) < size:
            if self._at_end:
                self._note_end()
                raise EndOfStreamError(f"the peer closed after {len(self._buffer)} of {size} bytes")
            await _Suspension(self, _DATA)

    async def read_until(self, delimiter: bytes, limit: int = LINE_LIMIT) -> bytes | None:
        """Read the bytes before the next delimiter, and skip the delimiter.

        At the end of what the peer sends, what is left is the last message; then the result is None. Raises
        `StreamLimitError` if a message is longer than `limit` bytes; the next read gets what follows its delimiter.
        """
        if self._is_due():
            await _Suspension(self, _TURN)
        try:
            while (data := self._buffer.until(delimiter, limit)) is None:
                if self._at_end:
                    return self._last(limit, f"more than {limit} bytes before {delimiter!r}")
                await _Suspension(self, _DATA)
        except LimitError as error:
            raise StreamLimitError(str(error)) from None
        return data

    def _last(self, limit: int, error: str) -> bytes | None:
        """Take what is left."""
        data = self._buffer.take(len(self._buffer))
        if not data:
            self._note_end()
        if len(data) > limit:
            raise StreamLimitError(error)
        return data or None

    async def read_line(self, limit: int = LINE_LIMIT) -> bytes | None:
        """Read a line that ends at LF or CRLF, and return it without that; see `read_until`."""
        try:
            # A CR before the LF is not a part of the line.
            line = await self.read_until(b"\n", limit + 1)
        except StreamLimitError:
            raise StreamLimitError(f"a line of more than {limit} bytes") from None
        if line is None:
            return None
        line = line.removesuffix(b"\r")
        if len(line) > limit:
            raise StreamLimitError(f"a line of more than {limit} bytes")
        return line

    def __aiter__(self) -> Stream:
        """Iterate over the lines, of at most `LINE_LIMIT` bytes each, to the end of what the peer sends."""
        return self

    async def __anext__(self) -> bytes:
        """Return the next line."""
        line = await self.read_line()
        if line is None:
            raise StopAsyncIteration
        return line

    async def read_frame(self, prefix: int = 2, limit: int = LINE_LIMIT) -> bytes | None:
        """Read a frame after its length in `prefix` bytes, most significant first; None if the peer sends no more.

        Raises `StreamLimitError` if it is longer than `limit` bytes, and `EndOfStreamError` in the middle of a frame.
        After a time-out or a `StreamLimitError` the next read begins at a frame.
        """
        if not await self._has_more():
            return None
        await self._holds(prefix)
        return await self._frame(prefix, int.from_bytes(self._buffer[:prefix], "big"), limit)

    async def read_varint_frame(self, limit: int = LINE_LIMIT) -> bytes | None:
        """Read a frame after its length as a varint (seven bits in a byte, least significant first).

        See `read_frame`. A length in more than five bytes raises `StreamLimitError`, and nothing more is read.
        """
        if not await self._has_more():
            return None
        size = 0
        for place in range(5):
            await self._holds(place + 1)
            byte = self._buffer[place]
            size |= (byte & 0x7F) << 7 * place
            if byte < 0x80:
                return await self._frame(place + 1, size, limit)
        raise self._malformed("a varint of more than five bytes")

    async def read_netstring(self, limit: int = LINE_LIMIT) -> bytes | None:
        """Read a netstring, such as `5:hello,`; None if the peer sends no more. See `read_frame`.

        What is not a netstring raises `StreamLimitError`, and nothing more is read. A length has at most nine digits.
        """
        if not await self._has_more():
            return None
        place = 0
        await self._holds(1)
        while self._buffer[place] != 0x3A:
            if place == _MOST_DIGITS or not 0x30 <= self._buffer[place] <= 0x39:
                raise self._malformed("what is not a netstring")
            place += 1
            await self._holds(place + 1)
        digits = bytes(self._buffer[:place])
        if not digits or (digits[0] == 0x30 and place > 1):
            raise self._malformed("what is not a netstring")
        data = await self._frame(place + 1, int(digits), limit, 1)
        if data[-1:] != b",":
            raise self._malformed("what is not a netstring")
        return data[:-1]

    def _malformed(self, what: str) -> StreamLimitError:
        """Read nothing more, since no message can be found in it; return the error."""
        self._at_end = self._is_deaf = True
        self._buffer.clear()
        error = StreamLimitError(what)
        error._cure = ""
        return error

    async def _has_more(self) -> bool:
        """Wait until there is a byte; return False if the peer sends no more."""
        if self._is_due():
            await _Suspension(self, _TURN)
        while not (self._buffer or self._at_end):
            await _Suspension(self, _DATA)
        if not self._buffer:
            self._note_end()
        return bool(self._buffer)

    async def _frame(self, before: int, size: int, limit: int, after: int = 0) -> bytes:
        """Read a frame of `size` bytes, with `after` bytes more, and drop the `before` bytes of its length."""
        if size > limit:
            self._buffer.skip(before + size + after)
            raise StreamLimitError(f"a frame of {size} bytes, more than {limit}")
        await self._holds(before + size + after)
        self._buffer.take(before)
        return self._buffer.take(size + after)

    def _is_due(self) -> bool:
        """Count a read or write that may not have to wait; return whether it is the turn of other connections."""
        self._ready += 1
        return self._ready > MOST_AT_ONCE

    def _note_end(self) -> None:
        """Count what is done at the end of the connection. Raises `_EndlessError` in the end."""
        self._ends += 1
        if self._ends > MOST_AT_END:
            raise _EndlessError

    # Writing and closing.

    def write(self, data: bytes) -> Awaitable[None]:
        """Write bytes; await the result, which waits while the peer does not read.

        Raises `twisted.internet.error.ConnectionClosed` if the connection is lost.
        """
        if self._lost is not None:
            self._note_end()
            raise self._lost()
        self.transport.write(data)
        if self._full:
            return self._drained()
        return _Suspension(self, _TURN) if self._is_due() else _DONE

    async def _drained(self) -> None:
        while self._full:
            await _Suspension(self, _ROOM)
            if self._lost is not None:
                raise self._lost()

    def close(self) -> None:
        """Close the connection after everything that was written has been sent. Nothing more is read."""
        self._at_end = True
        if self._lost is None:
            # A transport does not close under a producer.
            self.transport.unregisterProducer()
            self.transport.loseConnection()

    def abort(self) -> None:
        """Close the connection at once, and discard what was not sent."""
        if self._lost is None:
            getattr(self.transport, "abortConnection", self.transport.loseConnection)()

    def timeout(self, seconds: float) -> _Timeout:
        """Return a context manager that raises `StreamTimeoutError` in its block after so many seconds.

        For example: `with stream.timeout(10): name = await stream.read_line()`.
        """
        return _Timeout(self, seconds)

    # Called by Twisted.

    def connectionMade(self) -> None:
        """Start the coroutine."""
        self.transport.registerProducer(self, True)
        self._coroutine = self.factory.function(self)
        loop = running_loop()
        if loop is not None:
            self._task = CurrentTask(loop, self._cancel)
        self._step()

    def dataReceived(self, data: bytes) -> None:
        """Pass data to the coroutine if it waits for some."""
        if self._waits_for is _CHUNK:
            self._step(data)
        elif self._coroutine is not None and not self._is_deaf:
            self._buffer.add(data)
            # All of it may have been dropped.
            if self._waits_for is _DATA and self._buffer:
                self._step()
            self._hold_if_full()

    def _hold_if_full(self) -> None:
        is_reading = self._waits_for is _DATA or self._waits_for is _CHUNK
        if len(self._buffer) > HELD and not (is_reading or self._held) and self._lost is None:
            self._held = True
            self.transport.pauseProducing()

    def readConnectionLost(self) -> None:
        """Let the coroutine read to the end and answer: the peer has sent everything."""
        self._at_end = True
        if self._coroutine is None:
            self.close()
        elif self._waits_for in {_DATA, _CHUNK}:
            self._step()

    def writeConnectionLost(self) -> None:
        """Close: nothing can be sent any more."""
        self.close()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Cancel the coroutine, unless it has ended."""
        self._at_end, self._full = True, False
        self._lost = ConnectionDone if reason.check(ConnectionDone) else ConnectionLost
        self._forget_turn()
        if isinstance(self._waits_for, Deferred):
            self._waits_for.cancel()
        elif self._waits_for is _ROOM or (self._waits_for and self._lost is ConnectionLost):
            self._step(error=self._lost())
        elif self._waits_for:
            self._step()
        fault, self._fault = self._fault, None
        if fault is not None:
            # The reactor, or netsvc's guard, logs and counts it.
            raise fault

    def pauseProducing(self) -> None:
        """Let `write` wait: the send buffer is full."""
        self._full = True

    def resumeProducing(self) -> None:
        """Let the coroutine write: the send buffer has room."""
        self._full = False
        if self._waits_for is _ROOM:
            self._step_apart()

    def stopProducing(self) -> None:
        """Do nothing: `connectionLost` follows."""

    # Running the coroutine.

    def _schedule_turn(self) -> None:
        self._turn = self.factory.reactor.callLater(0, self._take_turn)

    def _take_turn(self) -> None:
        self._turn = None
        self._step_apart()

    def _forget_turn(self) -> None:
        """Cancel the turn: the coroutine is interrupted."""
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None

    def _step(self, value: bytes | None = None, error: BaseException | None = None) -> None:
        """Run the coroutine until it is suspended or ends. Raises its exception if that is a fault."""
        running: Any = self._coroutine
        while True:
            self._waits_for = None
            self._ready = 0
            try:
                if self._task is not None:
                    awaited = self._task.step(*((running.send, value) if error is None else (running.throw, error)))
                else:
                    awaited = running.send(value) if error is None else running.throw(error)
            except BaseException as raised:  # noqa: BLE001  (it is raised again, unless it is an end)
                self._ended(raised)
                return
            value, error = None, None
            if awaited is None and self._waits_for is not None:
                break
            try:
                self._waits_for = deferred = deferred_of(awaited)
                deferred.addBoth(self._fired)
            except (TypeError, RuntimeError) as unknown:
                error = unknown
            else:
                break
        if self._held and self._waits_for in {_DATA, _CHUNK}:
            self._held = False
            self.transport.resumeProducing()

    def _fired(self, result: object) -> None:
        # The awaited Deferred gives the coroutine its result itself, but not yet its failure.
        error = result.value if isinstance(result, Failure) else None
        if self._is_cancelled:
            error, self._is_cancelled = asyncio.CancelledError(), False
        self._step_apart(error)

    def _step_apart(self, error: BaseException | None = None) -> None:
        """Step outside of `dataReceived`, where an exception would not reach what logs and counts it."""
        try:
            self._step(error=error)
        except BaseException as fault:
            if self._lost is None:
                self._fault = fault
                self.abort()
            else:
                raise

    def _ended(self, raised: BaseException) -> None:
        self._coroutine = None
        if self._task is not None:
            self._task.close()
        if isinstance(raised, StopIteration | StreamError | ConnectionClosed) or (
            self._lost is not None and isinstance(raised, CancelledError | asyncio.CancelledError)
        ):
            if isinstance(raised, StreamLimitError) and self.factory.limit_log is not None:
                self.factory.limit_log.note(self.peer, str(raised), raised._cure)
            self.close()
        elif isinstance(raised, _EndlessError):
            what = "reads on at the end of what its peer sends, or writes on to a lost connection: leave the loop there"
            # Its own lines are the ones to show.
            raise RuntimeError(f"the coroutine {what}").with_traceback(raised.__traceback__) from None
        else:
            raise raised

    def _cancel(self) -> None:
        """Interrupt the coroutine as asyncio does."""
        if isinstance(self._waits_for, Deferred):
            self._is_cancelled = True
            self._waits_for.cancel()
        elif self._coroutine is not None:
            self._forget_turn()
            self._step_apart(asyncio.CancelledError())

    def _expire(self) -> None:
        """Interrupt the coroutine in its innermost `await`."""
        if self._coroutine is not None:
            if isinstance(self._waits_for, Deferred):
                self._waits_for.cancel()
            else:
                self._forget_turn()
                self._step_apart(StreamTimeoutError())


class _Timeout:
    """See `Stream.timeout`."""

    def __init__(self, stream: Stream, seconds: float) -> None:
        self._stream = stream
        self._seconds = seconds
        self._call: Any = None

    def __enter__(self) -> None:
        self._call = self._stream.factory.reactor.callLater(self._seconds, self._expire)

    def _expire(self) -> None:
        self._call = None
        self._stream._expire()

    def __exit__(self, kind: type[BaseException] | None, raised: BaseException | None, _: TracebackType | None) -> None:
        if self._call is not None:
            self._call.cancel()
        elif isinstance(raised, CancelledError | asyncio.CancelledError):
            raise StreamTimeoutError from raised


class StreamFactory(Factory):
    """Runs `function(stream)` for each connection. `reactor` provides `IReactorTime`."""

    noisy = False

    def __init__(
        self,
        function: Callable[[Stream], Coroutine[Any, Any, None]],
        core: object,
        reactor: IReactorTime,
        limit_log: LimitLog | None = None,
    ) -> None:
        self.limit_log = limit_log
        self.function = function
        self.core = core
        self.reactor = cast(Any, reactor)

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """Return the stream of a connection."""
        return Stream(self)

"""Protocols as coroutines: reading, writing, the end of a connection, time-outs, and what each may cost."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.error import ConnectionClosed, ConnectionDone, ConnectionLost
from twisted.python.failure import Failure

from netsvc.coroutine import (
    HELD,
    LINE_LIMIT,
    MOST_AT_END,
    EndOfStreamError,
    Stream,
    StreamLimitError,
    StreamTimeoutError,
)
from netsvc.service import Service
from netsvc.testing import check_service
from netsvc.testing.wire import FakeTransport
from tests.builders.bench import Bench, build, connect

Function = Callable[[Stream], Any]


def served(function: Function, **how: Any) -> tuple[FakeTransport, Bench]:
    """Connect a client to a service that is one function."""
    bench = build(Service("one", "One function", streams={"tcp": function}))
    return connect(bench, "tcp", **how)[1], bench


class Log(list[Any]):
    """Results and exceptions of a coroutine that reads once, or again and again."""

    def once(self, reading: Callable[[Stream], Awaitable[Any]]) -> Function:
        async def run(stream: Stream) -> None:
            try:
                self.append(await reading(stream))
            except Exception as error:
                self.append(type(error))
                raise

        return run

    def all(self, reading: Callable[[Stream], Awaitable[Any]]) -> Function:
        async def run(stream: Stream) -> None:
            while (message := await reading(stream)) is not None:
                self.append(message)

        return run

    def errors_too(self, reading: Callable[[Stream], Awaitable[Any]]) -> Function:
        """Read again after a `StreamLimitError`."""

        async def run(stream: Stream) -> None:
            message: Any = b""
            while message is not None:
                try:
                    message = await reading(stream)
                except StreamLimitError:
                    message = StreamLimitError
                if message is not None:
                    self.append(message)

        return run


async def echo(stream: Stream) -> None:
    while data := await stream.read():
        await stream.write(data)


async def shout(stream: Stream) -> None:
    async for line in stream:
        await stream.write(line.upper() + b"\n")


class TestEcho:
    def test_sends_back_what_comes_and_closes_when_the_client_has_half_closed(self) -> None:
        client, _ = served(echo)
        client.feed(b"one")
        client.feed(b"two")
        assert client.value() == b"onetwo"
        client.half_close(b"three")
        assert client.value() == b"onetwothree"
        assert client.ended and not client.aborted

    def test_passes_the_checks_of_the_contract(self) -> None:
        check_service(Service("one", "One function", streams={"tcp": echo}))
        check_service(Service("one", "One function", streams={"tcp": shout}))

    def test_a_builder_may_return_a_method_of_the_core(self) -> None:
        class Core:
            def __init__(self, options: object, context: object) -> None:
                self.count = 0

            async def serve(self, stream: Stream) -> None:
                assert stream.core is self
                self.count += 1
                await stream.write(str(self.count).encode())

        bench = build(Service("one", "One", core=Core, streams={"tcp": lambda core: core.serve}))
        assert [connect(bench, "tcp")[1].value() for _ in range(3)] == [b"1", b"2", b"3"]


class TestRead:
    def test_no_more_than_asked_for(self) -> None:
        log = Log()

        async def run(stream: Stream) -> None:
            while data := await stream.read(3):
                log.append(data)

        client, _ = served(run)
        client.feed(b"abcdefgh")
        client.feed(b"ij")
        client.half_close()
        assert b"".join(log) == b"abcdefghij" and max(map(len, log)) == 3

    @given(
        st.lists(st.binary(max_size=6).map(lambda line: line.replace(b"\n", b"").rstrip(b"\r")), max_size=5),
        st.integers(1, 7),
        st.sampled_from([b"\n", b"\r\n"]),
    )
    def test_lines_however_they_are_cut(self, lines: list[bytes], step: int, ending: bytes) -> None:
        log = Log()
        client, _ = served(log.all(lambda stream: stream.read_line()))
        data = b"".join(line + ending for line in lines)
        for place in range(0, len(data), step):
            client.feed(data[place : place + step])
        client.half_close(b"rest")
        assert log == [*lines, b"rest"]

    @pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
    def test_a_line_at_its_limit_and_one_over(self, end: bytes) -> None:
        for size, result in ((5, b"x" * 5), (6, StreamLimitError)):
            log = Log()
            client, _ = served(log.once(lambda stream: stream.read_line(5)))
            client.half_close(b"x" * size + end)
            assert log == [result]
            assert client.ended and not client.aborted

    def test_a_line_without_an_end_is_refused_at_the_limit(self) -> None:
        log = Log()
        client, _ = served(log.once(lambda stream: stream.read_line()))
        client.feed(b"x" * (LINE_LIMIT + 2))
        assert log == [StreamLimitError] and client.ended

    def test_exactly(self) -> None:
        log = Log()
        client, _ = served(log.once(lambda stream: stream.read_exactly(5)))
        client.feed(b"abc")
        assert not log
        client.feed(b"defg")
        assert log == [b"abcde"]

    def test_exactly_with_too_few_bytes(self) -> None:
        log = Log()
        client, _ = served(log.once(lambda stream: stream.read_exactly(5)))
        client.half_close(b"abc")
        assert log == [EndOfStreamError] and client.ended

    def test_exactly_more_than_is_held(self) -> None:
        log = Log()
        client, _ = served(log.once(lambda stream: stream.read_exactly(3 * HELD)), window=1)
        for _ in range(3):
            client.feed(b"x" * HELD)
        assert log == [b"x" * 3 * HELD]


def varint(number: int) -> bytes:
    """Encode a number, seven bits in a byte."""
    return bytes([number]) if number < 0x80 else bytes([number & 0x7F | 0x80]) + varint(number >> 7)


FRAMES: dict[str, tuple[Callable[[Stream], Awaitable[bytes | None]], Callable[[bytes], bytes]]] = {
    "16": (lambda stream: stream.read_frame(2, 300), lambda data: len(data).to_bytes(2, "big") + data),
    "32": (lambda stream: stream.read_frame(4, 300), lambda data: len(data).to_bytes(4, "big") + data),
    "varint": (lambda stream: stream.read_varint_frame(300), lambda data: varint(len(data)) + data),
    "netstring": (lambda stream: stream.read_netstring(300), lambda data: b"%d:%b," % (len(data), data)),
    "until": (
        lambda stream: stream.read_until(b"\0\xff", 300),
        lambda data: data.replace(b"\0", b"x").replace(b"\xff", b"y") + b"\0\xff",
    ),
}


@pytest.mark.parametrize("form", FRAMES)
class TestFrames:
    def test_however_they_are_cut(self, form: str) -> None:
        reading, written = FRAMES[form]

        @given(st.lists(st.binary(max_size=300), max_size=4), st.integers(1, 50))
        def check(messages: list[bytes], step: int) -> None:
            log = Log()
            client, _ = served(log.all(reading))
            data = b"".join(map(written, messages))
            for place in range(0, len(data), step):
                client.feed(data[place : place + step])
            client.half_close()
            assert [written(message) for message in log] == [written(message) for message in messages]
            assert client.ended and not client.aborted

        check()

    def test_one_at_the_limit_and_one_over(self, form: str) -> None:
        reading, written = FRAMES[form]
        for size, results in ((300, [b"x" * 300]), (301, [StreamLimitError])):
            log = Log()
            client, _ = served(log.once(reading))
            client.feed(written(b"x" * size))
            assert log == results

    def test_one_over_the_limit_is_dropped_and_the_next_is_read(self, form: str) -> None:
        reading, written = FRAMES[form]

        @given(st.lists(st.integers(290, 310), max_size=4), st.integers(1, 400))
        def check(sizes: list[int], step: int) -> None:
            log = Log()
            client, _ = served(log.errors_too(reading))
            data = b"".join(written(b"x" * size) for size in sizes)
            for place in range(0, len(data), step):
                client.feed(data[place : place + step])
            client.half_close()
            assert log == [b"x" * size if size <= 300 else StreamLimitError for size in sizes]
            assert client.ended and not client.aborted

        check()

    def test_a_time_out_in_the_middle_loses_nothing(self, form: str) -> None:
        reading, written = FRAMES[form]
        log, expired = Log(), []

        async def run(stream: Stream) -> None:
            while True:
                try:
                    with stream.timeout(10):
                        message = await reading(stream)
                except StreamTimeoutError:
                    expired.append(1)
                else:
                    if message is None:
                        break
                    log.append(message)

        client, bench = served(run)
        for byte in written(b"hello") + written(b"again"):
            client.feed(bytes([byte]))
            bench.clock.advance(10)
        client.half_close()
        assert log == [b"hello", b"again"] and len(expired) > 10

    def test_any_bytes_give_messages_or_the_declared_errors(self, form: str) -> None:
        reading, _ = FRAMES[form]

        @given(st.binary(max_size=40))
        def check(data: bytes) -> None:
            log = Log()
            client, _ = served(log.once(reading))
            client.half_close(data)
            assert log[0] in {StreamLimitError, EndOfStreamError, None} or isinstance(log[0], bytes)
            assert client.ended and not client.aborted

        check()


@pytest.mark.parametrize(
    ("form", "data"),
    [
        ("netstring", b"5:hello;"),
        ("netstring", b"05:hello,"),
        ("netstring", b"-1:,"),
        ("netstring", b"9999999999"),
        ("netstring", b"9999:"),
        ("varint", b"\xff\xff\xff\xff\xff\xff"),
        ("32", b"\xff\xff\xff\xff"),
    ],
)
def test_what_is_no_frame_is_refused_at_once(form: str, data: bytes) -> None:
    log = Log()
    client, _ = served(log.once(FRAMES[form][0]))
    client.feed(data)
    assert log == [StreamLimitError] and client.ended


@pytest.mark.parametrize(("form", "data"), [("netstring", b"5:hello;1:x,"), ("varint", b"\xff" * 6 + b"\1x")])
def test_what_is_no_frame_ends_what_is_read(form: str, data: bytes) -> None:
    log = Log()
    client, _ = served(log.errors_too(FRAMES[form][0]))
    client.feed(data)
    assert log == [StreamLimitError] and client.ended and not client.aborted


class TestLimits:
    def test_a_long_line_is_answered_once_and_the_next_as_if_it_had_not_been(self) -> None:
        async def run(stream: Stream) -> None:
            while True:
                try:
                    line = await stream.read_line(100)
                except StreamLimitError:
                    await stream.write(b"TOO LONG\n")
                    continue
                if line is None:
                    return
                await stream.write(line + b"\n")

        client, _ = served(run)
        client.feed(b"x" * 300)
        assert client.value() == b"TOO LONG\n"
        for _ in range(3):
            client.feed(b"x" * HELD)
        assert client.value() == b"TOO LONG\n" and client.reading
        client.half_close(b"x\nshort\n" + b"y" * 101)
        assert client.value() == b"TOO LONG\nshort\nTOO LONG\n" and client.ended and not client.aborted
        check_service(Service("one", "One function", streams={"tcp": run}), samples={"tcp": [b"x" * 300 + b"\na\n"]})

    def test_bytes_after_a_long_line_can_be_read_in_any_way(self) -> None:
        log = Log()

        async def run(stream: Stream) -> None:
            for reading in (lambda: stream.read_until(b"\r\n", 3), stream.read, lambda: stream.read_exactly(2)):
                try:
                    log.append(await reading())
                except StreamLimitError:
                    log.append(StreamLimitError)

        client, _ = served(run)
        for data in (b"xxxxx", b"x\r", b"\nab", b"cd"):
            client.feed(data)
        assert log == [StreamLimitError, b"ab", b"cd"]


class TestTurns:
    def test_a_coroutine_that_need_not_wait_gives_way(self) -> None:
        served_at = []

        async def run(stream: Stream) -> None:
            async for _ in stream:
                served_at.append(stream)

        bench = build(Service("one", "One", streams={"tcp": run}))
        (one, _), (other, _) = (connect(bench, "tcp") for _ in range(2))
        many, few = b"\n" * 2000, b"\n"
        # Both have arrived before either is read.
        one.transport._wire.arriving += many
        other.transport._wire.arriving += few
        bench.clock.turn()
        assert len(served_at) == 2001 and served_at.index(other) < 200
        assert not bench.clock.getDelayedCalls()

    def test_writes_without_end_give_way_and_end_with_the_connection(self) -> None:
        async def run(stream: Stream) -> None:
            while True:
                await stream.write(b"x")

        client, bench = served(run, window=10_000)
        assert len(client.value()) == 10_000
        client.lose()
        assert not bench.clock.getDelayedCalls()

    @pytest.mark.parametrize("ending", ["half-close", "close", "loss"])
    @pytest.mark.parametrize(
        "action",
        [
            lambda stream: stream.read(),
            lambda stream: stream.read_line(),
            lambda stream: stream.read_exactly(1),
            lambda stream: stream.read_frame(),
            lambda stream: stream.read_netstring(),
            lambda stream: stream.write(b"x"),
        ],
    )
    def test_one_that_goes_on_at_the_end_is_ended(self, action: Callable[[Stream], Any], ending: str) -> None:
        count, ends = 0, []

        async def run(stream: Stream) -> None:
            nonlocal count
            await stream.read(1)
            try:
                while True:
                    try:
                        count += 1
                        await action(stream)
                    except Exception:  # noqa: BLE001  (as careless protocols do)
                        continue
            finally:
                ends.append(1)

        client, bench = served(run, window=1000)
        client.feed(b"x")
        with suppress(RuntimeError):
            {"half-close": client.half_close, "close": client.close, "loss": client.lose}[ending]()
            client.lose()
        assert ends and count < HELD + 2 * MOST_AT_END + 1000
        assert not bench.clock.getDelayedCalls()

    def test_a_time_out_and_a_loss_interrupt_a_turn(self) -> None:
        log = Log()

        async def run(stream: Stream) -> None:
            try:
                with stream.timeout(0):
                    while True:
                        await stream.write(b"")
            except StreamTimeoutError:
                log.append("late")

        client, bench = served(run)
        assert log == ["late"] and client.ended
        assert not bench.clock.getDelayedCalls()


class TestFlow:
    def test_write_waits_while_the_client_does_not_read(self) -> None:
        written = Log()

        async def flood(stream: Stream) -> None:
            for number in range(100):
                await stream.write(bytes(10_000))
                written.append(number)

        client, _ = served(flood, window=1000)
        assert len(written) < 10
        before = len(written)
        client.take(100_000)
        assert before < len(written) < 40
        client.take(10**6)
        assert len(written) == 100 and client.ended

    def test_a_client_is_not_read_while_its_coroutine_does_not_read(self) -> None:
        gate: Deferred[None] = Deferred()
        total = Log()

        async def slow(stream: Stream) -> None:
            await gate
            while data := await stream.read():
                total.append(len(data))

        client, _ = served(slow)
        client.feed(b"x" * HELD)
        assert client.reading
        client.feed(b"x")
        assert not client.reading
        gate.callback(None)
        assert client.reading
        client.half_close(b"y")
        assert sum(total) == HELD + 2 and client.ended


class TestEnd:
    def test_returning_closes_after_everything_is_sent(self) -> None:
        async def greet(stream: Stream) -> None:
            await stream.write(b"hello")

        client, _ = served(greet)
        assert (client.value(), client.ended, client.aborted) == (b"hello", True, False)

    def test_abort_resets(self) -> None:
        async def reset(stream: Stream) -> None:
            await stream.read()
            stream.abort()

        client, _ = served(reset)
        client.feed(b"x")
        assert client.aborted

    def test_a_lost_connection_is_raised_where_the_coroutine_reads(self) -> None:
        log = Log()
        client, _ = served(log.once(lambda stream: stream.read()))
        client.connectionLost(Failure(ConnectionLost()))
        assert log == [ConnectionLost]

    def test_an_orderly_end_is_the_end_of_what_is_read_and_the_next_write_is_told(self) -> None:
        log = Log()

        async def run(stream: Stream) -> None:
            log.append(await stream.read())
            try:
                await stream.write(b"x")
            except ConnectionClosed as error:
                log.append(type(error))
                raise

        client, _ = served(run)
        client.connectionLost(Failure(ConnectionDone()))
        assert log == [b"", ConnectionDone]

    def test_a_deferred_is_cancelled_with_the_connection(self) -> None:
        cancelled, log = Log(), Log()
        client, _ = served(log.once(lambda stream: Deferred(cancelled.append)))
        client.connectionLost(Failure(ConnectionLost()))
        assert len(cancelled) == 1 and log == [CancelledError]

    def test_a_write_that_waits_is_told(self) -> None:
        log = Log()
        client, _ = served(log.once(lambda stream: stream.write(bytes(10**6))), window=1)
        client.connectionLost(Failure(ConnectionLost()))
        assert log == [ConnectionLost]

    def test_an_exception_reaches_whom_it_would_reach_from_a_protocol(self) -> None:
        async def broken(stream: Stream) -> None:
            await stream.read()
            raise ZeroDivisionError

        client, _ = served(broken)
        with pytest.raises(ZeroDivisionError):
            client.protocol.dataReceived(b"x")

    def test_an_exception_after_a_deferred_is_raised_at_the_end_of_the_connection(self) -> None:
        gate: Deferred[None] = Deferred()

        async def broken(stream: Stream) -> None:
            await gate
            raise ZeroDivisionError

        client, bench = served(broken)
        gate.callback(None)
        with pytest.raises(ZeroDivisionError):
            bench.clock.turn()
        assert client.aborted


class TestDeferred:
    def test_results_and_failures(self) -> None:
        log = Log()

        async def run(stream: Stream) -> None:
            log.append(await succeed(1))
            gate: Deferred[int] = Deferred()
            stream.factory.reactor.callLater(1, gate.callback, 2)
            log.append(await gate)
            gate = Deferred()
            stream.factory.reactor.callLater(1, gate.errback, KeyError("x"))
            try:
                await gate
            except KeyError as error:
                log.append(error.args)

        client, bench = served(run)
        bench.clock.advance(1)
        bench.clock.advance(1)
        assert log == [1, 2, ("x",)] and client.ended

    def test_what_cannot_be_awaited_is_named(self) -> None:
        log = Log()

        class Odd:
            def __await__(self) -> Any:
                yield self

        async def run(stream: Stream) -> None:
            try:
                await Odd()
            except TypeError as error:
                log.append(str(error))

        client, _ = served(run)
        assert "Odd" in log[0] and client.ended


class TestTimeout:
    def test_interrupts_reading(self) -> None:
        log = Log()

        async def run(stream: Stream) -> None:
            with stream.timeout(10):
                log.append(await stream.read_line())
            try:
                with stream.timeout(10):
                    log.append(await stream.read_line())
            except StreamTimeoutError:
                await stream.write(b"too slow")

        client, bench = served(run)
        client.feed(b"fast\n")
        bench.clock.advance(9.9)
        assert client.value() == b""
        bench.clock.advance(0.2)
        assert (log, client.value(), client.ended) == ([b"fast"], b"too slow", True)
        assert not bench.clock.getDelayedCalls()

    def test_cancels_a_deferred(self) -> None:
        log = Log()

        async def run(stream: Stream) -> None:
            with stream.timeout(10):
                await log.once(lambda _: Deferred())(stream)

        client, bench = served(run)
        bench.clock.advance(10)
        assert log == [CancelledError]
        assert client.ended and not client.aborted

    def test_ends_with_the_connection(self) -> None:
        async def run(stream: Stream) -> None:
            with stream.timeout(10):
                await stream.read()

        client, bench = served(run)
        client.connectionLost(Failure(ConnectionLost()))
        assert not bench.clock.getDelayedCalls()

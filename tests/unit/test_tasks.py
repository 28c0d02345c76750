"""Asyncio's libraries work in coroutines of netsvc where its event loop runs, and say what is missing where not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure

from netsvc.coroutine import Stream, StreamTimeoutError
from netsvc.guard import Guard
from netsvc.service import Service
from netsvc.testing.wire import FakeTransport
from tests.builders.bench import Bench, bind, build, connect
from tests.conftest import LoggedErrors

PEER = ("192.0.2.1", 4000)


def in_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a test as the asyncio reactor runs protocols: in its event loop, and no task."""

    async def run() -> None:
        await test()
        for _ in range(5):
            await asyncio.sleep(0)
        # What a coroutine ran in has ended with it.
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())


async def until(happened: Callable[[], object], bench: Bench | None = None) -> None:
    for _ in range(1000):
        if bench is not None:
            bench.clock.turn()
        if happened():
            return
        await asyncio.sleep(0.001)
    raise AssertionError


def stream_of(function: Callable[[Stream], Awaitable[None]]) -> tuple[FakeTransport, Bench]:
    bench = build(Service("one", "One", streams={"x": function}))
    return connect(bench, "x")[1], bench


def port_of(function: Callable[[bytes, Any], Awaitable[bytes | None]]) -> Any:
    return bind(build(Service("one", "One", datagrams={"x": function})), "x")[1]


class TestStreams:
    def test_a_coroutine_may_await_futures_time_outs_and_groups_of_tasks(self) -> None:
        async def test() -> None:
            async def serve(stream: Stream) -> None:
                async for line in stream:
                    async with asyncio.timeout(5):
                        await asyncio.sleep(0)
                    async with asyncio.TaskGroup() as group:
                        task = group.create_task(asyncio.sleep(0, line.upper()))
                    await asyncio.wait_for(asyncio.sleep(0), 5)
                    await stream.write(task.result() + b"\n")

            client, bench = stream_of(serve)
            client.feed(b"one\ntwo\n")
            await until(lambda: client.value() == b"ONE\nTWO\n", bench)
            client.half_close()
            assert client.ended and not client.aborted

        in_loop(test)

    @pytest.mark.parametrize("waits_for", ["the stream", "a future", "a Deferred"])
    def test_a_time_out_of_asyncio_ends_whatever_the_coroutine_awaits(self, waits_for: str) -> None:
        async def test() -> None:
            async def serve(stream: Stream) -> None:
                try:
                    async with asyncio.timeout(0.001):
                        if waits_for == "the stream":
                            await stream.read()
                        elif waits_for == "a future":
                            await asyncio.get_running_loop().create_future()
                        else:
                            await Deferred()
                except TimeoutError:
                    await stream.write(b"late ")
                task = asyncio.current_task()
                await stream.write(b"%d" % (task.cancelling() if task else -1))

            client, bench = stream_of(serve)
            await until(lambda: client.ended, bench)
            assert client.value() == b"late 0"

        in_loop(test)

    def test_a_time_out_of_the_stream_ends_a_future(self) -> None:
        async def test() -> None:
            got = []

            async def serve(stream: Stream) -> None:
                try:
                    with stream.timeout(1):
                        await asyncio.get_running_loop().create_future()
                except StreamTimeoutError as error:
                    got.append(error)

            bench = build(Service("one", "One", streams={"x": serve}))
            _, client = connect(bench, "x")
            bench.clock.advance(1)
            await until(lambda: client.ended, bench)
            assert len(got) == 1

        in_loop(test)

    def test_a_lost_connection_cancels_what_is_awaited_and_is_no_fault(self) -> None:
        async def test() -> None:
            ended: list[type[BaseException]] = []

            async def serve(stream: Stream) -> None:
                try:
                    await asyncio.sleep(60)
                except BaseException as error:
                    ended.append(type(error))
                    raise

            client, _ = stream_of(serve)
            client.lose()
            await until(lambda: ended)
            assert ended == [asyncio.CancelledError]

        in_loop(test)

    def test_a_coroutine_that_another_wakes_is_its_own_task(self) -> None:
        async def test() -> None:
            gate: Deferred[None] = Deferred()
            tasks: list[object] = []

            async def waits(stream: Stream) -> None:
                tasks.append(asyncio.current_task())
                await gate
                tasks.append(asyncio.current_task())

            async def opens(stream: Stream) -> None:
                tasks.append(asyncio.current_task())
                gate.callback(None)
                tasks.append(asyncio.current_task())

            stream_of(waits)
            stream_of(opens)
            first, second, third, fourth = tasks
            assert first is third
            assert second is fourth
            assert first is not second

        in_loop(test)

    def test_an_exception_after_a_future_is_a_fault(self, logged_errors: LoggedErrors) -> None:
        async def test() -> None:
            async def serve(stream: Stream) -> None:
                await asyncio.sleep(0)
                raise ZeroDivisionError

            bench = build(Service("one", "One", streams={"x": serve}))
            protocol, client = connect(bench, "x")
            await until(lambda: protocol._fault)
            with pytest.raises(ZeroDivisionError):
                client.feed(b"")

        in_loop(test)


class TestDatagrams:
    def test_a_coroutine_may_await_asyncio_and_deferreds(self) -> None:
        async def test() -> None:
            gate: Deferred[bytes] = Deferred()

            async def answer(data: bytes, peer: Any) -> bytes:
                await asyncio.wait_for(asyncio.sleep(0), 5)
                return data + await gate

            port = port_of(answer)
            port.feed(b"one", PEER)
            asyncio.get_running_loop().call_later(0.005, gate.callback, b"!")
            await until(lambda: port.written)
            assert port.written == [(b"one!", PEER)]

        in_loop(test)

    def test_a_deferred_that_fails_raises_and_a_time_out_ends_it(self) -> None:
        async def test() -> None:
            async def answer(data: bytes, peer: Any) -> bytes:
                failing: Deferred[None] = Deferred()
                asyncio.get_running_loop().call_soon(failing.errback, Failure(ConnectionDone()))
                try:
                    await failing
                except ConnectionDone:
                    data += b" failed"
                try:
                    async with asyncio.timeout(0.001):
                        await Deferred()
                except TimeoutError:
                    data += b" late"
                return data

            port = port_of(answer)
            port.feed(b"x", PEER)
            await until(lambda: port.written)
            assert port.written == [(b"x failed late", PEER)]

        in_loop(test)

    @pytest.mark.parametrize("is_future", [True, False])
    def test_those_that_run_are_cancelled_with_the_port(self, is_future: bool) -> None:
        async def test() -> None:
            ended: list[str] = []

            async def answer(data: bytes, peer: Any) -> None:
                try:
                    await (asyncio.sleep(60) if is_future else Deferred())
                except BaseException as error:
                    ended.append(type(error).__name__)
                    raise

            protocol, port = bind(build(Service("one", "One", datagrams={"x": answer})), "x")
            port.feed(b"x", PEER)
            protocol.doStop()
            await until(lambda: ended)
            assert ended == ["CancelledError"]

        in_loop(test)


class TestWithoutAsyncio:
    """On the other reactors one line names the cure."""

    def test_a_stream_that_calls_a_library_or_awaits_a_future(self) -> None:
        loop = asyncio.new_event_loop()

        async def sleeps(stream: Stream) -> None:
            await stream.read()
            await asyncio.sleep(1)

        async def awaits(stream: Stream) -> None:
            await stream.read()
            await loop.create_future()

        async def turns(stream: Stream) -> None:
            await stream.read()
            await asyncio.sleep(0)

        for function in (sleeps, awaits, turns):
            client, bench = stream_of(function)
            with pytest.raises(RuntimeError, match="no running event loop") as raised:
                client.feed(b"x")
            with capturedLogs() as events:
                Guard(bench.clock).faults.note("one x", "192.0.2.1", 1, Failure(raised.value))
            [line] = map(formatEvent, events)
            assert line.startswith("one x 192.0.2.1:1 failed: RuntimeError: no running event loop at ")
            assert f" {__file__}:" in line
            assert "--reactor asyncio" in line
        loop.close()

    def test_a_datagram_that_awaits_a_future(self, logged_errors: LoggedErrors) -> None:
        loop = asyncio.new_event_loop()

        async def awaits(data: bytes, peer: Any) -> None:
            await loop.create_future()

        port = port_of(awaits)
        port.feed(b"x", PEER)
        [failure] = logged_errors.flush(RuntimeError)
        with capturedLogs() as events:
            Guard(Clock()).faults.note("one x", "192.0.2.1", 1, failure)
        assert "--reactor asyncio" in formatEvent(events[0])
        loop.close()

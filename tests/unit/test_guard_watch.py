"""A connection that is silent or lasts for too long is ended, and no other, neither too soon nor much too late."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netsvc.guard.timeouts import GRACE, RATE_WINDOW
from tests.builders.watched import OFF, Bench, Connection, Kernel, Wire, only


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.mark.parametrize("limit", ["handshake", "idle", "life"])
@pytest.mark.parametrize("value", [0.1, 0.75, 3, 60, 3600])
@pytest.mark.parametrize("counted", [True, False], ids=["kernel", "transport"])
def test_a_silent_connection_is_ended_after_the_limit_and_within_a_second(
    bench: Bench, limit: str, value: float, counted: bool
) -> None:
    connection = bench.tcp()[0] if counted else Connection(Wire())
    bench.watch.add(connection, *only(limit, value))
    bench.run(value - min(value / 50, 0.05), step=value / 50)
    bench.run(0.5, step=min(value / 50, 0.05))
    [(when, ended, word)] = bench.said
    assert ended is connection
    assert word == f"ended {limit}"
    assert value <= when <= value + min(0.3, value / 2)
    # Who has not said anything has nothing that could be lost; otherwise what comes is still read.
    assert connection.transport.asked == ["lose" if limit == "handshake" else "half"]
    bench.watch.remove(connection)
    bench.watch.close()
    assert not bench.clock.getDelayedCalls()


def test_what_is_left_after_the_grace_is_aborted_once_and_nothing_is_said_twice(bench: Bench) -> None:
    connection, _ = bench.tcp()
    bench.watch.add(connection, (3, False), (4, False), (5, False))
    bench.run(4)
    assert connection.transport.asked == ["lose"]
    bench.run(GRACE - 1)
    assert connection.transport.asked == ["lose"]
    bench.run(2)
    assert connection.transport.asked == ["lose", "abort"]
    bench.run(100)
    assert connection.transport.asked == ["lose", "abort"]
    assert bench.words() == ["ended handshake"]
    assert not bench.clock.getDelayedCalls()


def test_one_that_ends_in_the_grace_is_not_aborted(bench: Bench) -> None:
    connection, _ = bench.tcp()
    bench.watch.add(connection, *only("life", 3))
    bench.run(4)
    bench.watch.remove(connection)
    bench.run(100)
    assert connection.transport.asked == ["half"]


def test_one_that_ends_by_itself_is_never_looked_at(bench: Bench) -> None:
    connection, kernel = bench.tcp()
    bench.watch.add(connection, (3, False), (4, False), (5, False))
    asked = kernel.asked
    bench.watch.remove(connection)
    bench.watch.remove(connection)
    bench.run(100)
    assert not bench.said
    assert kernel.asked == asked


def test_without_a_limit_there_is_no_watching(bench: Bench) -> None:
    connection, kernel = bench.tcp()
    bench.watch.add(connection, OFF, OFF, OFF)
    assert not kernel.asked
    assert not bench.clock.getDelayedCalls()
    bench.watch.remove(connection)


def test_who_has_said_something_is_past_the_handshake(bench: Bench) -> None:
    connection, kernel = bench.tcp()
    bench.watch.add(connection, *only("handshake", 10))
    kernel.receive()
    bench.run(100)
    assert not bench.said
    assert not bench.clock.getDelayedCalls(), "there is nothing left to watch for"


def test_who_has_only_acknowledged_is_not_past_the_handshake(bench: Bench) -> None:
    connection, kernel = bench.tcp()
    bench.watch.add(connection, *only("handshake", 10))
    kernel.send()
    kernel.hear(500)
    bench.run(12)
    assert bench.words() == ["ended handshake"]


@pytest.mark.parametrize("way", ["receive", "send"])
@pytest.mark.parametrize("last", [0.0, 0.4, 7.3, 19.9, 31.0])
def test_idle_time_counts_from_the_last_byte_either_way(bench: Bench, way: str, last: float) -> None:
    connection, kernel = bench.tcp()
    bench.watch.add(connection, *only("idle", 20))

    def move() -> None:
        if way == "receive":
            kernel.receive()
        else:
            kernel.send()
            kernel.hear(10)

    while bench.now() < last - 3:
        bench.run(2.9)
        move()
    bench.run(last - bench.now())
    move()
    bench.run(30)
    [(when, _, word)] = bench.said
    assert word == "ended idle"
    assert last + 20 <= when <= last + 21


def test_keepalives_and_window_probes_are_no_sign_of_life(bench: Bench) -> None:
    connection, kernel = bench.tcp()
    bench.watch.add(connection, *only("idle", 100))
    bench.run(1)
    kernel.receive(100)
    kernel.send()
    bench.run(1)
    kernel.hear(100)
    for _ in range(40):
        bench.run(5)
        kernel.hear()
    [(when, _, _)] = bench.said
    # An acknowledgement may be dated a little too late: not later than what it is for would have been sent again.
    assert 101 <= when <= 103


def test_a_peer_that_acknowledges_no_more_is_idle_though_it_answers_and_much_is_sent(bench: Bench) -> None:
    connection, kernel = bench.tcp()
    bench.watch.add(connection, *only("idle", 100))
    for _ in range(15):
        bench.run(10)
        kernel.hear(1000)
        kernel.send()
    stalled = bench.now()
    for _ in range(150):
        bench.run(1)
        # Sent again, and answered by an acknowledgement of nothing new.
        kernel.sent_at = bench.clock.seconds()
        kernel.hear()
    [(when, _, word)] = bench.said
    assert word == "ended idle"
    assert stalled + 100 <= when <= stalled + 107


def test_life_is_not_lengthened_by_talking(bench: Bench) -> None:
    connection, kernel = bench.tcp()
    bench.watch.add(connection, (5, False), (5, False), (30, False))
    while bench.now() < 40:
        kernel.receive()
        bench.run(1)
    [(when, _, word)] = bench.said
    assert word == "ended life"
    assert 30 <= when <= 31


def test_an_idle_connection_is_looked_at_only_when_it_could_be_over(bench: Bench) -> None:
    connection, kernel = bench.tcp()
    bench.watch.add(connection, (120, False), (3600, False), OFF)
    kernel.receive()
    kernel.asked = 0
    bench.run(3500, step=10)
    assert kernel.asked == 1, "at the end of the handshake"
    bench.run(200, step=10)
    assert kernel.asked == 2
    assert bench.words() == ["ended idle"]


def test_a_busy_connection_is_looked_at_once_an_idle_time(bench: Bench) -> None:
    connection, kernel = bench.tcp()
    bench.watch.add(connection, OFF, (60, False), OFF)
    kernel.asked = 0
    for _ in range(600):
        kernel.receive()
        kernel.send()
        kernel.hear(1)
        bench.run(1, step=1)
    assert 9 <= kernel.asked <= 11
    assert not bench.said


@pytest.mark.parametrize("limit", ["handshake", "idle", "life"])
def test_a_dry_run_is_reported_once_and_the_connection_goes_on(bench: Bench, limit: str) -> None:
    connection, _ = bench.tcp()
    bench.watch.add(connection, *only(limit, 3, dry=True))
    bench.run(100)
    assert bench.words() == [f"reported {limit}"]
    assert connection.transport.asked == []


def test_the_other_limits_hold_after_a_dry_run(bench: Bench) -> None:
    connection, _ = bench.tcp()
    bench.watch.add(connection, (3, True), (6, True), (9, False))
    bench.run(20)
    assert bench.words() == ["reported handshake", "reported idle", "ended life"]


@pytest.mark.parametrize(("dry", "expected"), [(True, ["reported life", "ended idle"]), (False, ["ended life"])])
def test_one_that_is_over_two_limits_at_once_is_ended_once(bench: Bench, dry: bool, expected: list[str]) -> None:
    connection, _ = bench.tcp()
    bench.watch.add(connection, OFF, (4, False), (4, dry))
    bench.run(20)
    assert bench.words() == expected


class TestKeepalive:
    """One whose data is not acknowledged is ended after one and a half times the limit; the probes are the kernel's."""

    @staticmethod
    def begin(bench: Bench, seconds: float, dry: bool = False) -> tuple[Any, Kernel]:
        connection, kernel = bench.tcp()
        bench.watch.add(connection, OFF, OFF, OFF, OFF, (seconds, dry))
        return connection, kernel

    @staticmethod
    def retransmit(bench: Bench, kernel: Kernel, seconds: float) -> None:
        """Send a segment, and again and again, to a peer that does not answer."""
        kernel.send()
        pause = kernel.timeout / 1e6
        while seconds > pause:
            bench.run(pause)
            seconds -= pause
            pause = kernel.retransmit()
        bench.run(seconds)

    @pytest.mark.parametrize("limit", [1, 10, 75, 120, 300])
    @pytest.mark.parametrize("before", [0.0, 40.0, 400.0])
    def test_a_peer_that_vanished_is_ended_in_time(self, bench: Bench, limit: float, before: float) -> None:
        connection, kernel = self.begin(bench, limit)
        bench.run(before, step=1)
        began = bench.now()
        self.retransmit(bench, kernel, 3 * limit)
        [(when, who, word)] = bench.said
        assert (who, word) == (connection, "ended keepalive")
        # Three segments, the last 1.4 s after the first, are left unanswered at the least.
        late = when - began - max(1.5 * limit, 1.4)
        # The kernel's timeout, by which the past is known, grows up to two minutes.
        assert 0 <= late <= max(1, 0.15 * limit if limit <= 120 else 1.5 * limit)
        assert connection.transport.asked == ["abort"]

    def test_one_that_answers_after_an_outage_is_kept(self, bench: Bench) -> None:
        connection, kernel = self.begin(bench, 60)
        for _ in range(3):
            self.retransmit(bench, kernel, 85)
            kernel.hear(1)
            bench.run(300, step=1)
        assert not bench.said
        assert connection.transport.asked == []

    def test_one_that_does_not_read_is_kept_as_it_answers_probes_and_one_that_does_not_answer_them_is_not(
        self, bench: Bench
    ) -> None:
        connection, kernel = self.begin(bench, 75)
        kernel.send()
        for seconds in (*range(120), *[120] * 50):
            bench.run(seconds, step=1)
            kernel.probed = 1
            bench.run(0.3)
            kernel.hear()
        assert not bench.said
        began = bench.now()
        for _ in range(4):
            bench.run(120, step=1)
            kernel.probed += 1
        assert bench.words() == ["ended keepalive"]
        assert 360 <= bench.said[0][0] - began <= 480
        assert connection.transport.asked == ["abort"]

    def test_a_dry_run_is_reported_once(self, bench: Bench) -> None:
        connection, kernel = self.begin(bench, 10, dry=True)
        self.retransmit(bench, kernel, 100)
        assert bench.words() == ["reported keepalive"]
        assert connection.transport.asked == []

    def test_only_the_kernel_knows_who_does_not_answer(self, bench: Bench) -> None:
        connection = Connection(Wire())
        bench.watch.add(connection, OFF, OFF, OFF, OFF, (10, False))
        bench.run(60)
        assert not bench.said
        assert not bench.clock.getDelayedCalls()

    def test_one_that_is_silent_is_looked_at_once_in_that_time(self, bench: Bench) -> None:
        _, kernel = self.begin(bench, 100)
        bench.run(3600, step=1)
        assert kernel.asked <= 24


class TestMany:
    """Ten thousand cost little, and what is wrong with one is nothing to the others."""

    def test_one_delayed_call_serves_all_and_none_is_left(self, bench: Bench) -> None:
        connections = [bench.tcp()[0] for _ in range(1000)]
        for number, connection in enumerate(connections):
            bench.watch.add(connection, (10 + number % 7, False), (0.1 if number == 500 else 60, False), OFF)
            assert len(bench.clock.getDelayedCalls()) == 1
        bench.watch.close()
        assert not bench.clock.getDelayedCalls()

    def test_many_that_end_at_once_end_in_several_turns(self, bench: Bench) -> None:
        for _ in range(1000):
            bench.watch.add(bench.tcp()[0], *only("idle", 10))
        turns = []
        bench.run(9)
        while len(bench.said) < 1000:
            before = len(bench.said)
            bench.clock.advance(2 if not before else 0)
            turns.append(len(bench.said) - before)
        assert max(turns) < 50
        assert bench.now() <= 11.5
        bench.watch.close()

    def test_many_looks_are_spread_over_turns(self, bench: Bench) -> None:
        kernels = []
        for _ in range(1000):
            connection, kernel = bench.tcp()
            bench.watch.add(connection, (10, False), (60, False), OFF)
            kernel.receive()
            kernel.asked = 0
            kernels.append(kernel)
        bench.run(9)
        looks = []
        for turn in range(6):
            before = sum(kernel.asked for kernel in kernels)
            bench.clock.advance(0 if turn else 2)
            looks.append(sum(kernel.asked for kernel in kernels) - before)
        assert looks == [250, 250, 250, 250, 0, 0]
        bench.watch.close()

    def test_moments_of_connections_that_are_gone_do_not_pile_up(self, bench: Bench) -> None:
        for _ in range(5000):
            connection, _ = bench.tcp()
            bench.watch.add(connection, *only("life", 86400))
            bench.watch.remove(connection)
            bench.clock.advance(1)
        assert len(bench.watch._moments) < 100
        assert not bench.watch._due

    def test_one_that_fails_to_close_is_logged_aborted_and_in_nobodys_way(
        self, bench: Bench, logged_errors: Any
    ) -> None:
        connections = [bench.tcp()[0] for _ in range(10)]
        connections[4].transport.loseWriteConnection = lambda: 1 / 0
        for connection in connections:
            bench.watch.add(connection, *only("idle", 10))
        bench.run(30)
        assert len(logged_errors.flush(ZeroDivisionError)) == 1
        assert len(bench.said) == 10
        assert all(connection.transport.asked[-1] == "abort" for connection in connections)

    def test_one_may_be_removed_while_it_or_another_is_closed(self, bench: Bench) -> None:
        connections = [bench.tcp()[0] for _ in range(10)]

        def remove_all() -> None:
            for connection in connections:
                bench.watch.remove(connection)

        for connection in connections:
            connection.transport.loseWriteConnection = remove_all
            bench.watch.add(connection, *only("idle", 10))
        bench.run(30)
        assert len(bench.said) == 1
        assert not bench.clock.getDelayedCalls()


@given(
    limits=st.tuples(*[st.none() | st.sampled_from([0.1, 0.5, 2.0, 7.0, 30.0])] * 3),
    events=st.lists(st.tuples(st.floats(0.01, 9), st.sampled_from(["receive", "move"])), max_size=25),
    counted=st.booleans(),
)
def test_whatever_happens_the_first_limit_that_is_exceeded_ends_it_in_time(
    limits: tuple[float | None, ...], events: list[tuple[float, str]], counted: bool
) -> None:
    bench = Bench()
    connection, kernel = bench.tcp()
    if not counted:
        connection = Connection(Wire())
    bench.watch.add(connection, *((value, False) for value in limits))
    handshake, idle, life = (value or float("inf") for value in limits)
    step = min((value for value in limits if value), default=10) / 20
    heard, alive = False, 0.0
    for pause, event in [*events, (100.0, "")]:
        # Nothing of this passes in silence before the next event.
        until = min(pause, 35.0) if event else 45.0
        bench.run(until, step)
        if bench.said:
            break
        assert bench.now() <= alive + idle + max(1, idle / 10) + 3 * step
        if event == "receive":
            kernel.receive()
            connection.transport.receive(bench.clock)
            heard = True
        elif event:
            kernel.send()
            kernel.hear(1)
            connection.transport.send(bench.clock)
        alive = bench.now()
    if bench.said:
        [(when, _, word)] = bench.said
        begin, value = {
            "ended handshake": (0.0, handshake),
            "ended idle": (alive, idle),
            "ended life": (0.0, life),
        }[word]
        # The clock moves in steps, and up to three moments are waited for.
        assert begin + value - 1e-6 <= when <= begin + value + max(1, value / 10) + 3 * step
        assert not (heard and word == "ended handshake")
    else:
        assert all(value is None for value in (limits[1], limits[2]))
        assert heard or limits[0] is None
    bench.watch.remove(connection)
    bench.watch.close()
    assert not bench.clock.getDelayedCalls()


SLOW = (100, False)


@pytest.mark.parametrize("counted", [True, False], ids=["kernel", "transport"])
@pytest.mark.parametrize("way", ["receive", "send"])
def test_one_that_transfers_a_byte_a_second_is_ended_by_minrate_in_the_second_window(
    bench: Bench, counted: bool, way: str
) -> None:
    connection, kernel = bench.tcp() if counted else (Connection(Wire()), None)
    bench.watch.add(connection, OFF if way == "send" else (10, False), (5, False), OFF, SLOW)
    while not bench.said:
        if kernel is None:
            getattr(connection.hooks, way)(bench.clock)
        elif way == "send":
            kernel.send()
            kernel.hear(1)
        else:
            kernel.receive()
        bench.run(1, step=0.25)
        assert bench.now() < 3 * RATE_WINDOW
    [(when, ended, word)] = bench.said
    assert (ended, word) == (connection, "ended minrate")
    assert RATE_WINDOW <= when <= 2 * RATE_WINDOW + 1
    assert connection.transport.asked == ["half"]


def test_one_that_is_fast_enough_in_each_window_is_not_slow_however_it_is_divided(bench: Bench) -> None:
    connection, kernel = bench.tcp()
    bench.watch.add(connection, OFF, OFF, OFF, SLOW)
    for _ in range(20):
        kernel.receive(900)
        bench.run(RATE_WINDOW / 2, step=0.25)
        kernel.hear(1200)
        bench.run(RATE_WINDOW / 2, step=0.25)
    assert not bench.said
    bench.run(2 * RATE_WINDOW + 1, step=0.25)
    assert bench.words() == ["ended minrate"]


def test_before_the_first_byte_nothing_is_slow(bench: Bench) -> None:
    connection, _ = bench.tcp()
    bench.watch.add(connection, OFF, OFF, OFF, SLOW)
    bench.run(10 * RATE_WINDOW, step=0.25)
    assert not bench.said


def test_a_slow_one_is_only_reported_in_a_dry_run_and_only_once(bench: Bench) -> None:
    connection, kernel = bench.tcp()
    bench.watch.add(connection, OFF, OFF, OFF, (100, True))
    for _ in range(100):
        kernel.receive()
        bench.run(1, step=0.25)
    assert bench.words() == ["reported minrate"]
    assert not connection.transport.asked

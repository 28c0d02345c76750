"""Whoever watches is told once a second, and nobody can make that dear."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from netsvc.admin.history import MOST_POINTS, SPAN, History
from netsvc.admin.http import AdminExchange
from netsvc.admin.status import COUNTS, Sample
from netsvc.admin.stream import MOST_QUERIES, MOST_WATCHERS, PATIENCE
from netsvc.plan.status import ConnectionQuery, Counts, ProcessStatus, Vitals
from tests.builders.admin_asked import Admin
from tests.builders.admin_site import FakeOperations, listener, process
from tests.conftest import LoggedErrors


def counted(pid: int = 1, delay: float = 0.0, **counts: Any) -> ProcessStatus:
    made = process(listeners=[listener("echo", "tcp", "*:1", counts=Counts(**counts))], vitals=Vitals(delay))
    return replace(made, pid=pid)


def points(*samples: tuple[float, list[ProcessStatus]]) -> list[dict[str, Any]]:
    history = History()
    for time, statuses in samples:
        history.add(Sample(time, statuses, []))
    return list(history.points)


def test_a_point_has_rates_since_the_one_before() -> None:
    first, second = points(
        (100.0, [counted(accepted=5, open=2, bytes_in=100)]),
        (102.0, [counted(accepted=9, open=3, bytes_in=1100, datagrams_out=4, refused=Counter(idle=3), delay=0.25)]),
    )
    assert (first["open"], first["accepted"], first["refused"]) == (2, 0.0, {})
    assert (second["time"], second["open"], second["accepted"], second["bytes_in"]) == (102.0, 3, 2.0, 500.0)
    assert (second["datagrams_out"], second["refused"], second["delay"]) == (2.0, {"idle": 1.5}, 0.25)


def test_processes_that_come_and_go_make_no_peak_and_no_valley() -> None:
    one, two = counted(1, accepted=1000), counted(2, accepted=10)
    made = points(
        (100.0, [one]),
        (101.0, [one, two]),
        (102.0, [two]),
        (103.0, [counted(1, accepted=1030), two]),
        (104.0, [counted(1, accepted=3)]),
    )
    # One that is heard of again has counted for longer; one that counts less than before has begun anew.
    assert [point["accepted"] for point in made] == [0.0, 10.0, 0.0, 15.0, 0.0]


def test_bytes_that_nobody_has_looked_at_since_make_no_valley_and_no_peak() -> None:
    def looked(at: float, bytes_in: int, accepted: int) -> list[ProcessStatus]:
        return [replace(counted(bytes_in=bytes_in, accepted=accepted), looked=at)]

    made = points(
        (100.0, looked(99.9, 0, 0)),
        (101.0, looked(99.9, 0, 1)),
        (103.0, looked(102.9, 3000, 3)),
        (104.0, looked(102.9, 3100, 4)),
        (105.0, looked(102.9, 3100, 5)),
        (106.0, looked(105.9, 9000, 6)),
        (107.0, looked(106.9, 9000, 7)),
    )
    assert [point["bytes_in"] for point in made] == [0.0, 0.0, 1000.0, 1000.0, 1000.0, 2000.0, 0.0]
    assert [point["accepted"] for point in made] == [0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]


def test_a_clock_that_was_changed_begins_a_new_history() -> None:
    steady = [counted(accepted=1)]
    assert len(points((100.0, steady), (101.0, steady), (50.0, steady))) == 1
    assert len(points((100.0, steady), (101.0 + SPAN + 1, steady))) == 1
    assert len(points((100.0, steady), (100.0, steady), (100.2, steady))) == 1


def test_the_history_is_bounded_in_time_and_number() -> None:
    steady = [counted(accepted=1)]
    by_seconds = points(*((float(second), steady) for second in range(1000)))
    assert by_seconds[0]["time"] == 999 - SPAN
    assert len(points(*((second / 2, steady) for second in range(2000)))) == MOST_POINTS


def test_while_nobody_watches_only_counts_are_looked_at_and_less_often() -> None:
    admin = Admin()
    admin.watching.start()
    admin.clock.pump([1.0] * 10)
    assert admin.operations.asked == [COUNTS] * 5
    admin.close()


def test_a_watcher_gets_the_history_and_then_what_happens() -> None:
    admin = Admin()
    admin.watching.start()
    admin.clock.pump([1.0] * 4)
    watcher = admin.send("/api/stream?connections=5&order=new")
    assert b"text/event-stream" in watcher.value()
    (first, history), (second, limits), (third, status) = watcher.events()
    assert (first, second, third) == ("history", "limits", "status")
    assert len(history) == 2
    assert limits[0]["limits"][0]["name"] == "connections"
    assert status.keys() >= {"state", "totals", "listeners", "connections", "refusals", "point", "processes"}
    assert "limits" not in status["listeners"][0]
    admin.clock.advance(1)
    [(kind, after)] = watcher.events()
    assert kind == "status"
    assert after["point"]["time"] > status["point"]["time"] or after["point"] == status["point"]
    admin.operations.statuses[0].listeners[0].limits.pop()
    admin.clock.advance(1)
    assert [kind for kind, _ in watcher.events()] == ["limits", "status"]
    admin.close()
    assert watcher.aborted


def test_all_who_watch_the_same_share_one_look() -> None:
    admin = Admin()
    admin.watching.start()
    watchers = [admin.send("/api/stream") for _ in range(5)]
    admin.operations.asked.clear()
    admin.clock.pump([1.0] * 3)
    assert admin.operations.asked == [ConnectionQuery()] * 3
    assert all([kind for kind, _ in watcher.events()].count("status") >= 3 for watcher in watchers)
    admin.close()


def test_different_questions_take_turns() -> None:
    admin = Admin()
    admin.watching.start()
    watchers = [admin.send(f"/api/stream?words={number}") for number in range(MOST_QUERIES * 2 + 1)]
    for watcher in watchers:
        watcher.clear()
    admin.operations.asked.clear()
    for _ in range(9):
        admin.clock.advance(1)
    assert len(admin.operations.asked) == 9 * MOST_QUERIES
    assert all(len(watcher.events()) >= 3 for watcher in watchers)
    admin.close()


def test_there_are_only_so_many_watchers() -> None:
    admin = Admin()
    watchers = [admin.send("/api/stream") for _ in range(MOST_WATCHERS)]
    reply = admin.ask("/api/stream")
    assert reply.code == 503
    assert str(MOST_WATCHERS) in reply.json["error"]
    watchers[0].end()
    assert b" 200 OK" in admin.send("/api/stream").value()
    admin.close()


def test_a_watcher_that_does_not_read_misses_it_and_is_dropped_in_the_end() -> None:
    admin = Admin()
    admin.watching.start()
    slow, quick = admin.send("/api/stream"), admin.send("/api/stream")
    assert slow.producer is not None
    slow.clear()
    slow.producer.pauseProducing()
    admin.operations.statuses[0].listeners[0].limits.pop()
    admin.clock.pump([1.0] * 5)
    assert not slow.value()
    slow.producer.resumeProducing()
    admin.clock.advance(1)
    # What it has missed and needs comes now.
    assert [kind for kind, _ in slow.events()] == ["limits", "status"]
    slow.producer.pauseProducing()
    admin.clock.pump([1.0] * (int(PATIENCE) + 2))
    assert slow.aborted and not quick.aborted
    slow.protocol.stopProducing()
    admin.close()


def test_one_who_watches_stays_for_as_long_as_it_likes() -> None:
    admin = Admin()
    admin.watching.start()
    watcher = admin.send("/api/stream")
    admin.clock.pump([1.0] * 400)
    assert not watcher.gone
    admin.close()


def test_a_process_that_takes_its_time_is_not_asked_again_meanwhile() -> None:
    operations = FakeOperations()
    operations.held = []
    admin = Admin(operations)
    admin.watching.start()
    admin.clock.pump([1.0] * 10)
    assert len(operations.held) == 1
    operations.held.pop().callback([process()])
    admin.clock.pump([1.0] * 2)
    assert len(operations.held) == 1
    operations.held.pop().callback([])
    admin.close()


def test_who_watches_while_too_much_is_asked_is_told_later() -> None:
    admin = Admin()
    admin.watching.start()
    for number in range(20):
        admin.ask(f"/api/connections?words={number}")
    watcher = admin.send("/api/stream")
    assert [kind for kind, _ in watcher.events()] == ["history"]
    admin.clock.advance(1)
    assert [kind for kind, _ in watcher.events()] == ["limits", "status"]
    admin.close()
    admin.watching.stop()


def test_ten_thousand_connections_make_no_longer_event_than_a_hundred() -> None:
    one = process().connections[0]
    operations = FakeOperations(process(connections=[one._replace(id=f"0-{number}") for number in range(10_000)]))
    admin = Admin(operations)
    watcher = admin.send("/api/stream")
    assert len(watcher.value()) < 40_000
    [*_, (_, status)] = watcher.events()
    assert len(status["connections"]) == 100
    admin.close()


def test_what_cannot_be_told_is_logged_once(logged_errors: LoggedErrors) -> None:
    admin = Admin(FakeOperations(process(refusals=[None])))
    admin.watching.start()
    watcher = admin.send("/api/stream")
    assert [kind for kind, _ in watcher.events()] == ["history"]
    admin.clock.pump([1.0] * 5)
    assert len(logged_errors.flush(AttributeError)) == 1
    admin.operations.statuses[0].refusals.clear()
    admin.clock.advance(1)
    assert [kind for kind, _ in watcher.events()] == ["limits", "status"]
    admin.close()


def test_a_stream_that_cannot_be_gone_on_with_ends() -> None:
    admin = Admin()
    watcher = admin.send("/api/stream")
    exchange = watcher.protocol.exchange
    assert isinstance(exchange, AdminExchange)
    exchange.fail(500, "it failed")
    assert watcher.aborted

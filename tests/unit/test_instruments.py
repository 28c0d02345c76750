"""What services count with: counters, gauges, histograms and their labels."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import capturedLogs

from netsvc.base.errors import UserError
from netsvc.base.instruments import MOST_SETS, OTHER
from netsvc.metrics import BUCKETS, MOST_BUCKETS, Metrics
from tests.conftest import LoggedErrors


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("chat")


def family(metrics: Metrics) -> dict[str, Any]:
    [family] = metrics.samples()
    return family


class TestACounter:
    def test_counts(self, metrics: Metrics) -> None:
        counter = metrics.counter("messages", "Messages said")
        counter.inc()
        counter.inc(2.5)
        assert metrics.value("messages") == metrics.value("messages_total") == 3.5
        assert family(metrics)["name"] == "netsvc_chat_messages_total"
        assert family(metrics)["sets"] == [[["chat"], 3.5]]

    def test_is_seen_before_anything_happens(self, metrics: Metrics) -> None:
        metrics.counter("messages", "Messages said")
        assert family(metrics)["sets"] == [[["chat"], 0]]

    @pytest.mark.parametrize("amount", [-1, -0.001, math.nan, math.inf])
    def test_only_grows(self, metrics: Metrics, amount: float) -> None:
        with pytest.raises(ValueError, match=re.escape(str(amount))):
            metrics.counter("messages", "Messages said").inc(amount)
        assert metrics.value("messages") == 0

    def test_may_be_named_with_its_ending(self, metrics: Metrics) -> None:
        assert metrics.counter("messages_total", "Said") is metrics.counter("messages", "Said")


class TestAGauge:
    def test_is_what_was_set_and_changed(self, metrics: Metrics) -> None:
        gauge = metrics.gauge("members", "Members")
        gauge.set(5)
        gauge.inc()
        gauge.dec(4)
        assert metrics.value("members") == 2
        assert family(metrics)["sets"] == [[["chat"], 2]]

    def test_is_not_shown_before_it_was_set(self, metrics: Metrics) -> None:
        metrics.gauge("members", "Members")
        assert family(metrics)["sets"] == []

    def test_is_the_sum_of_the_functions_of_all_instances(self, metrics: Metrics) -> None:
        old, new = ["a", "b"], ["c"]
        gauge = metrics.gauge("members", "Members")
        gauge.add_function(old.__len__)
        gauge.add_function(new.__len__)
        gauge.add_function(new.__len__)
        assert metrics.value("members") == 3
        new.append("d")
        assert metrics.value("members") == 4
        gauge.remove_function(old.__len__)
        gauge.remove_function(old.__len__)
        assert metrics.value("members") == 2
        gauge.set(10)
        assert family(metrics)["sets"] == [[["chat"], 12]]

    @pytest.mark.parametrize("fault", [lambda: 1 / 0, lambda: "many", lambda: None])
    def test_whose_function_fails_is_said_once_and_left_out(
        self, metrics: Metrics, fault: Callable[[], Any], logged_errors: LoggedErrors
    ) -> None:
        metrics.gauge("broken", "Broken").add_function(fault)
        metrics.gauge("members", "Members").set(3)
        with capturedLogs() as logged:
            for _ in range(3):
                assert [len(each["sets"]) for each in metrics.samples()] == [0, 1]
        assert [event["name"] for event in logged] == ["netsvc_chat_broken"]
        assert len(logged_errors.flush()) == 1

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_that_is_no_finite_number_is_left_out(self, metrics: Metrics, value: float) -> None:
        metrics.gauge("members", "Members").set(value)
        assert family(metrics)["sets"] == []


class TestAHistogram:
    def test_counts_in_classes(self, metrics: Metrics) -> None:
        histogram = metrics.histogram("seconds", "How long", buckets=[1, 5, math.inf])
        for amount in (0, 1, 1.1, 5, 6, 100):
            histogram.observe(amount)
        assert family(metrics)["bounds"] == [1, 5]
        assert family(metrics)["sets"] == [[["chat"], [113.1, 2, 2, 2]]]
        assert metrics.value("seconds") == 6

    def test_has_classes_of_its_own_if_none_are_given(self, metrics: Metrics) -> None:
        metrics.histogram("seconds", "How long")
        assert family(metrics)["bounds"] == [*BUCKETS]

    @pytest.mark.parametrize("amount", [math.nan, math.inf, -math.inf])
    def test_refuses_what_is_no_number(self, metrics: Metrics, amount: float) -> None:
        with pytest.raises(ValueError, match=str(amount)):
            metrics.histogram("seconds", "How long").observe(amount)
        assert metrics.value("seconds") == 0

    @pytest.mark.parametrize(
        "buckets",
        [[], [math.inf], [2, 1], [1, 1], [1, math.nan], [math.nan], [-math.inf, 1], range(MOST_BUCKETS + 1)],
    )
    def test_needs_rising_classes_and_not_too_many(self, metrics: Metrics, buckets: list[float]) -> None:
        with pytest.raises(UserError, match=r"buckets .*50"):
            metrics.histogram("seconds", "How long", buckets=buckets)

    def test_may_have_the_most_classes(self, metrics: Metrics) -> None:
        metrics.histogram("seconds", "How long", buckets=range(MOST_BUCKETS))
        assert len(family(metrics)["bounds"]) == MOST_BUCKETS


class TestLabels:
    def test_tell_sets_apart_by_place_or_by_name(self, metrics: Metrics) -> None:
        said = metrics.counter("said", "Said", labels=["room", "kind"])
        said.labels("lobby", "text").inc()
        said.labels(kind="text", room="lobby").inc()
        said.labels("den", 7).inc()
        assert metrics.value("said", room="lobby", kind="text") == 2
        assert metrics.value("said", room="den", kind="7") == 1
        assert metrics.value("said", room="attic", kind="text") == 0
        assert family(metrics)["labels"] == ["use", "room", "kind"]
        assert family(metrics)["sets"] == [[["chat", "lobby", "text"], 2], [["chat", "den", "7"], 1]]

    def test_of_gauges_and_histograms(self, metrics: Metrics) -> None:
        metrics.gauge("members", "Members", ["room"]).labels("lobby").set(3)
        metrics.histogram("length", "Lengths", "room", buckets=[10]).labels(room="lobby").observe(4)
        assert metrics.value("members", room="lobby") == 3
        assert metrics.value("length", room="lobby") == 1

    @pytest.mark.parametrize(
        ("values", "named", "given_as"),
        [((), {}, "none"), (("a", "b"), {}, "a, b"), ((), {"den": "a"}, "den"), (("a",), {"room": "a"}, "a, room")],
    )
    def test_must_all_have_a_value(
        self, metrics: Metrics, values: tuple[str, ...], named: dict[str, str], given_as: str
    ) -> None:
        said = metrics.counter("said", "Said", labels=("room",))
        with pytest.raises(ValueError, match=rf"^netsvc_chat_said_total .*\broom\b.*\b{given_as}$"):
            said.labels(*values, **named)

    def test_of_a_peer_are_escaped_and_cut(self, metrics: Metrics) -> None:
        said = metrics.counter("said", "Said", ["room"])
        said.labels("\x1b[2J\n\u202e").inc()
        said.labels("x" * 5000).inc()
        [[[_, hostile], _], [[_, long], _]] = family(metrics)["sets"]
        assert hostile == "\\x1b[2J\\n\\u202e"
        assert long == "x" * 100 + "… (4900 more)"

    def test_beyond_the_most_count_as_other_and_that_is_said_once(self, metrics: Metrics) -> None:
        said = metrics.counter("said", "Said", ["room"])
        with capturedLogs() as logged:
            for number in range(MOST_SETS):
                said.labels(f"room{number}").inc()
            assert logged == []
            for number in range(MOST_SETS, MOST_SETS + 50):
                said.labels(f"room{number}").inc()
        assert len(family(metrics)["sets"]) == MOST_SETS + 1
        assert metrics.value("said", room=OTHER) == 50
        assert [event["name"] for event in logged] == ["netsvc_chat_said_total"]
        said.labels("room0").inc()
        assert metrics.value("said", room="room0") == 2

    def test_that_are_removed_leave_their_place(self, metrics: Metrics) -> None:
        members = metrics.gauge("members", "Members", ["room"])
        for number in range(MOST_SETS):
            members.labels(f"room{number}").set(1)
        members.remove("room0")
        members.remove(room="nowhere")
        members.labels("den").set(2)
        assert metrics.value("members", room="den") == 2
        assert metrics.value("members", room=OTHER) == 0

    @given(st.lists(st.one_of(st.text(max_size=120), st.binary(max_size=20)), max_size=20))
    def test_take_anything_and_give_what_json_and_utf_8_hold(self, values: list[object]) -> None:
        metrics = Metrics("chat")
        for value in values:
            metrics.counter("said", "Said", ["room"]).labels(value).inc()
        assert json.dumps(metrics.samples(), ensure_ascii=False).encode()
        assert sum(value for _, value in family(metrics)["sets"]) == len(values) if values else True

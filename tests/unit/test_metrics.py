"""The metrics of services: the names they may have, who has them, and the sums of several processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from netsvc.base.errors import UserError
from netsvc.metrics import MOST_METRICS, Metrics, Registry, merge_metrics


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("chat")


def family(metrics: Metrics) -> dict[str, Any]:
    [family] = metrics.samples()
    return family


class TestNames:
    def test_begin_with_the_service(self) -> None:
        metrics = Metrics("my-own", "second")
        metrics.gauge("depth", "Depth").set(1)
        assert family(metrics)["name"] == "netsvc_my_own_depth"
        assert family(metrics)["sets"] == [[["second"], 1]]

    @pytest.mark.parametrize("name", ["", "Said", "9lives", "a-b", "a b", "é", "x" * 61, "said\n"])
    def test_that_cannot_be_are_mistakes_with_the_cure(self, metrics: Metrics, name: str) -> None:
        with pytest.raises(UserError, match="60") as caught:
            metrics.counter(name, "Said")
        assert len(caught.value.errors) == 1
        assert "service chat" in str(caught.value)

    @pytest.mark.parametrize("ending", ["total", "bucket", "count", "sum", "created", "info"])
    def test_may_not_end_as_prometheus_ends_them(self, metrics: Metrics, ending: str) -> None:
        with pytest.raises(UserError, match=rf"_{ending}\b.*Prometheus"):
            metrics.gauge(f"x_{ending}", "X")

    @pytest.mark.parametrize("label", ["", "Room", "use", "le", "quantile", "__x", "a-b", "x" * 41])
    def test_of_labels_that_cannot_be(self, metrics: Metrics, label: str) -> None:
        with pytest.raises(UserError, match=r'"said".*service chat.*label ".*"'):
            metrics.counter("said", "Said", [label])

    @pytest.mark.parametrize("labels", [["a", "a"], list("abcdefghi")])
    def test_of_labels_that_are_too_many(self, metrics: Metrics, labels: list[str]) -> None:
        with pytest.raises(UserError, match="8"):
            metrics.counter("said", "Said", labels)

    def test_of_netsvc_are_taken(self) -> None:
        with pytest.raises(UserError, match="netsvc_connections_open"):
            Metrics("connections").gauge("open", "Open")
        with pytest.raises(UserError, match="netsvc_connections_accepted"):
            Metrics("connections").gauge("accepted", "Accepted")

    def test_of_a_wrong_way_to_combine(self, metrics: Metrics) -> None:
        with pytest.raises(UserError, match=r"combine.*sum.*max.*min.*mean"):
            metrics.gauge("x", "X", combine="mean")  # type: ignore[arg-type]

    def test_that_stand_for_something_else_already(self, metrics: Metrics) -> None:
        metrics.counter("said", "Said")
        for ask in (
            lambda: metrics.gauge("said", "Said"),
            lambda: metrics.counter("said", "Said", ["room"]),
            lambda: metrics.counter("said", "Written"),
        ):
            with pytest.raises(UserError, match="netsvc_chat_said_total"):
                ask()

    def test_are_at_most_so_many(self, metrics: Metrics) -> None:
        for number in range(MOST_METRICS):
            metrics.counter(f"c{number}", "C")
        with pytest.raises(UserError, match=r"100.*labels"):
            metrics.counter("one_more", "C")
        assert metrics.counter("c0", "C") is not None

    def test_that_nobody_has_asked_for_have_no_value(self, metrics: Metrics) -> None:
        with pytest.raises(KeyError, match=r"said.*none"):
            metrics.value("said")
        metrics.counter("heard", "Heard")
        with pytest.raises(KeyError, match=r"said.*heard"):
            metrics.value("said")
        with pytest.raises(ValueError, match=r"netsvc_chat_heard_total.*no labels"):
            metrics.value("heard", room="lobby")

    def test_text_is_one_line(self, metrics: Metrics) -> None:
        metrics.counter("said", "Said\n# TYPE x counter")
        assert "\n" not in family(metrics)["help"]


class TestARegistry:
    def test_gives_an_instance_built_anew_what_was_there(self) -> None:
        registry = Registry()
        registry.of("chat", "chat").counter("said", "Said").inc()
        registry.of("chat", "chat").counter("said", "Said").inc()
        assert registry.of("chat", "chat").value("said") == 2

    def test_tells_two_uses_apart(self) -> None:
        registry = Registry()
        registry.of("chat", "chat").counter("said", "Said").inc()
        registry.of("den", "chat").counter("said", "Said").inc(2)
        [family] = merge_metrics([registry.samples()])
        assert family["sets"] == [[["chat"], 1], [["den"], 2]]

    def test_lets_no_service_take_the_name_of_another(self) -> None:
        registry = Registry()
        registry.of("chat", "chat").counter("bot_said", "Said")
        with pytest.raises(UserError, match="netsvc_chat_bot_said_total"):
            registry.of("chat-bot", "chat-bot").gauge("said", "Said")

    def test_forgets_who_has_left_the_plan(self) -> None:
        registry = Registry()
        for use in ("one", "other"):
            registry.of(use, "chat").counter("said", "Said").inc()
        registry.keep({"other"})
        assert [each["sets"] for each in registry.samples()] == [[[["other"], 1]]]
        assert registry.of("one", "chat").samples() == []


class TestTheSumOfProcesses:
    def of_two(self, use: Callable[[Metrics, int], object]) -> list[list[dict[str, Any]]]:
        processes = []
        for number in (1, 2):
            metrics = Metrics("chat")
            use(metrics, number)
            # As it comes from another process.
            processes.append(json.loads(json.dumps(metrics.samples())))
        return processes

    def test_of_counters(self) -> None:
        processes = self.of_two(lambda metrics, number: metrics.counter("said", "Said").inc(number))
        [family] = merge_metrics(processes)
        assert family["sets"] == [[["chat"], 3]]
        assert processes[0][0]["sets"] == [[["chat"], 1]]

    def test_of_what_was_json_and_what_was_not(self) -> None:
        metrics = Metrics("chat")
        metrics.histogram("length", "Lengths", ["room"], buckets=[1, 2]).labels("lobby").observe(1)
        once = metrics.samples()
        [family] = merge_metrics([once, json.loads(json.dumps(once))])
        assert family["sets"] == [[["chat", "lobby"], [2, 2, 0, 0]]]

    def test_of_sets_that_one_has_alone(self) -> None:
        def use(metrics: Metrics, number: int) -> None:
            said = metrics.counter("said", "Said", ["room"])
            said.labels("lobby").inc(number)
            said.labels(f"room{number}").inc()

        [family] = merge_metrics(self.of_two(use))
        assert family["sets"] == [[["chat", "lobby"], 3], [["chat", "room1"], 1], [["chat", "room2"], 1]]

    @pytest.mark.parametrize(("combine", "combined"), [("sum", 3), ("max", 2), ("min", 1)])
    def test_of_gauges_is_as_they_say(self, combine: Any, combined: float) -> None:
        processes = self.of_two(lambda metrics, number: metrics.gauge("x", "X", combine=combine).set(number))
        assert merge_metrics(processes)[0]["sets"] == [[["chat"], combined]]

    def test_of_histograms(self) -> None:
        processes = self.of_two(lambda metrics, number: metrics.histogram("x", "X", buckets=[1]).observe(number))
        assert merge_metrics(processes)[0]["sets"] == [[["chat"], [3, 1, 1]]]

    def test_has_what_departed_processes_have_counted_but_not_their_gauges(self) -> None:
        def use(metrics: Metrics, number: int) -> None:
            metrics.counter("said", "Said").inc(number)
            metrics.gauge("members", "Members").set(number)

        there, gone = self.of_two(use)
        values = {each["name"]: each["sets"] for each in merge_metrics([there], [gone])}
        assert values == {"netsvc_chat_said_total": [[["chat"], 3]], "netsvc_chat_members": [[["chat"], 1]]}

    def test_leaves_out_what_another_version_has_declared_otherwise(self) -> None:
        def use(metrics: Metrics, number: int) -> None:
            metrics.histogram("x", "X", buckets=[number]).observe(1)

        assert merge_metrics(self.of_two(use))[0]["sets"] == [[["chat"], [1, 1, 0]]]

    def test_of_none_is_none(self) -> None:
        assert merge_metrics([]) == []

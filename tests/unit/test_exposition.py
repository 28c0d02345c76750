"""What Prometheus is told: read back with the parsers of its own library."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from netsvc.admin.exposition import TEXT, exposition
from netsvc.metrics import Metrics
from netsvc.plan.catalog import METRICS, rows
from netsvc.plan.record import REASONS
from netsvc.plan.status import DURATIONS, Counts, ListenerStatus, ProcessStatus, Vitals, read_status

OPENMETRICS = "application/openmetrics-text"

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def process(worker: int = 0, *listeners: ListenerStatus, **more: Any) -> ProcessStatus:
    vitals = Vitals(0.002, 0.5, 17, 1024, 50_000_000, 12.5)
    fields: dict[str, Any] = {"state": "ready", "vitals": vitals, **more}
    return ProcessStatus("1.2.3", 100 + worker, 1_700_000_000.5, worker, listeners=list(listeners), **fields)


def listener(*, kind: str = "stream", place: str = "tcp:127.0.0.1:9001", **counts: Any) -> ListenerStatus:
    protocol = "tcp" if kind == "stream" else "udp"
    return ListenerStatus("echo", protocol, place, kind, "9001", counts=Counts(**counts))


def read(body: bytes, kind: str) -> Series:
    """Read an exposition; every series may be there only once."""
    families = (read_text if kind == TEXT else read_openmetrics)(body.decode())
    series: Series = {}
    for family in families:
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in series, key
            series[key] = sample.value
    return series


def told(
    statuses: Sequence[ProcessStatus],
    departed: Sequence[ListenerStatus] = (),
    departed_metrics: Sequence[list[dict[str, Any]]] = (),
) -> Series:
    """Return the series, which are the same in both forms."""
    text, openmetrics = (
        read(*exposition(statuses, departed, accept, departed_metrics)) for accept in ("", OPENMETRICS)
    )
    assert text == openmetrics
    return text


def value(series: Series, name: str, **labels: str) -> float | None:
    """Return the value of the one series of this name that has these labels; None if there is none."""
    found = [each for (named, has), each in series.items() if named == name and has >= set(labels.items())]
    assert len(found) <= 1, found
    return found[0] if found else None


class TestOfAListener:
    def test_everything_that_is_counted_is_told(self) -> None:
        counts = Counts(accepted=9, open=2, bytes_in=100, bytes_out=200, errors=1)
        counts.ended.update(peer=4, limit=3)
        counts.refused["per-peer"] = 5
        counts.reported["idle"] = 6
        one = listener()
        one.counts = counts
        series = told([process(0, one)])
        own = {"service": "echo", "protocol": "tcp", "listener": "tcp:127.0.0.1:9001"}
        assert {
            (name, labels): value
            for (name, labels), value in series.items()
            if "listener" in dict(labels) and not name.startswith("netsvc_connection_duration")
        } == {
            (f"netsvc_{name}", frozenset({**own, **more}.items())): value
            for name, more, value in [
                ("listener_up", {}, 1),
                ("connections_open", {}, 2),
                ("connections_accepted_total", {}, 9),
                ("connections_ended_total", {"reason": "peer"}, 4),
                ("connections_ended_total", {"reason": "limit"}, 3),
                ("connections_refused_total", {"limit": "per-peer"}, 5),
                ("connections_reported_total", {"limit": "idle"}, 6),
                ("listener_bytes_total", {"direction": "in"}, 100),
                ("listener_bytes_total", {"direction": "out"}, 200),
                ("listener_errors_total", {}, 1),
            ]
        }

    def test_that_takes_datagrams_these_are_told_too(self) -> None:
        series = told([process(0, listener(kind="datagram", datagrams_in=7, datagrams_out=6, dropped=1))])
        assert value(series, "netsvc_listener_datagrams_total", direction="in") == 7
        assert value(series, "netsvc_listener_datagrams_total", direction="out") == 6
        assert value(series, "netsvc_listener_dropped_total") == 1

    def test_durations_are_a_histogram(self) -> None:
        one = listener()
        for seconds in (0.005, 0.006, 2, 1_000_000):
            one.counts.lasted(seconds)
        series = told([process(0, one)])
        buckets = [value(series, "netsvc_connection_duration_seconds_bucket", le=str(bound)) for bound in DURATIONS]
        assert buckets == [1, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3]
        assert value(series, "netsvc_connection_duration_seconds_bucket", le="+Inf") == 4
        assert value(series, "netsvc_connection_duration_seconds_count") == 4
        assert value(series, "netsvc_connection_duration_seconds_sum") == 1_000_002.011

    def test_that_is_down_in_one_process_is_down(self) -> None:
        down = listener()
        down.up = False
        assert value(told([process(1, listener()), process(2, down)]), "netsvc_listener_up") == 0

    def test_counts_are_sums_over_all_processes_and_those_that_have_departed(self) -> None:
        statuses = [process(number, listener(accepted=number, open=1, bytes_in=10)) for number in (1, 2)]
        series = told(statuses, [listener(accepted=100, bytes_in=1000, seconds=1.5)])
        assert value(series, "netsvc_connections_accepted_total") == 103
        assert value(series, "netsvc_connections_open") == 2
        assert value(series, "netsvc_listener_bytes_total", direction="in") == 1020
        assert [status.listeners[0].counts.accepted for status in statuses] == [1, 2]

    def test_that_nobody_has_any_more_goes_on_to_count_but_is_neither_up_nor_down(self) -> None:
        series = told([process()], [listener(accepted=3)])
        assert value(series, "netsvc_connections_accepted_total") == 3
        assert value(series, "netsvc_listener_up") is None


class TestOfAProcess:
    def test_what_is_known_is_told_of_each(self) -> None:
        series = told([process(1), process(2, state="draining")])
        for worker in ("1", "2"):
            for name, expected in {
                "loop_delay_seconds": 0.002,
                "loop_delay_worst_seconds": 0.5,
                "open_fds": 17,
                "max_fds": 1024,
                "resident_memory_bytes": 50_000_000,
                "cpu_seconds_total": 12.5,
                "start_time_seconds": 1_700_000_000.5,
            }.items():
                assert value(series, f"netsvc_process_{name}", worker=worker) == expected
        assert value(series, "netsvc_build_info", version="1.2.3") == 1

    @pytest.mark.parametrize(
        ("state", "not_ready", "ready", "draining"),
        [
            ("starting", [], 0, 0),
            ("ready", [], 1, 0),
            ("ready", ["echo tcp is not open"], 0, 0),
            ("draining", ["draining"], 0, 1),
            ("stopped", [], 0, 0),
        ],
    )
    def test_whether_it_serves_or_leaves(self, state: str, not_ready: list[str], ready: int, draining: int) -> None:
        series = told([process(state=state, not_ready=not_ready)])
        assert value(series, "netsvc_process_ready", worker="0") == ready
        assert value(series, "netsvc_process_draining", worker="0") == draining

    def test_of_two_with_one_number_the_newer_is_told(self) -> None:
        old, new = process(1), process(1, vitals=Vitals(memory=7))
        new.started += 1
        assert value(told([new, old]), "netsvc_process_resident_memory_bytes", worker="1") == 7


class TestOfAService:
    def test_its_own_are_told(self) -> None:
        processes = []
        for number in (1, 2):
            metrics = Metrics("chat")
            metrics.counter("said", "Said", ["room"]).labels("lobby").inc(number)
            metrics.gauge("members", "Members").set(number)
            metrics.histogram("length", "Lengths", buckets=[1]).observe(number)
            processes.append(read_status(json.loads(json.dumps(process(number, metrics=metrics.samples()).to_json()))))
        series = told(processes, [], [processes[0].metrics])
        assert value(series, "netsvc_chat_said_total", use="chat", room="lobby") == 4
        assert value(series, "netsvc_chat_members", use="chat") == 3
        assert value(series, "netsvc_chat_length_bucket", use="chat", le="1.0") == 2
        assert value(series, "netsvc_chat_length_bucket", use="chat", le="+Inf") == 3
        assert value(series, "netsvc_chat_length_sum", use="chat") == 4


class TestTheForm:
    @pytest.mark.parametrize(
        ("accept", "expected"),
        [
            ("", "text/plain"),
            ("*/*", "text/plain"),
            ("text/html,*/*;q=0.1", "text/plain"),
            ("text/plain;version=0.0.4", "text/plain"),
            ("text/plain;version=1.0.0;escaping=allow-utf-8", "text/plain"),
            (f"{OPENMETRICS};q=0, text/plain", "text/plain"),
            (f"{OPENMETRICS}; q=0.0 , text/plain", "text/plain"),
            (OPENMETRICS, OPENMETRICS),
            # As Prometheus 2.53 asks.
            (f"{OPENMETRICS};version=1.0.0;q=0.5,{OPENMETRICS};version=0.0.1;q=0.4,text/plain;q=0.3", OPENMETRICS),
            ("Application/OpenMetrics-Text; version=nonsense\r\nX-Injected: 1", OPENMETRICS),
            (";;;,,,q=,=", "text/plain"),
        ],
    )
    def test_is_openmetrics_for_who_asks_for_it(self, accept: str, expected: str) -> None:
        body, kind = exposition([process()], [], accept)
        assert re.fullmatch(r"[\w/-]+; version=\d\.\d\.\d; charset=utf-8", kind)
        assert kind.split(";")[0] == expected
        assert body.endswith(b"# EOF\n") == (expected == OPENMETRICS)

    def test_of_nothing_has_no_series(self) -> None:
        assert told([]) == {}

    @given(st.text(), st.text(max_size=20), st.text(max_size=20))
    def test_holds_whatever_names_there_are(self, place: str, limit: str, use: str) -> None:
        one = listener(place=place)
        one.counts.refused[limit] = 1
        metrics = Metrics("chat", use)
        metrics.counter("said", "Said").inc()
        series = told([process(0, one, metrics=metrics.samples())])
        assert value(series, "netsvc_connections_refused_total") == 1
        assert value(series, "netsvc_chat_said_total") == 1

    def test_lets_no_name_forge_a_line_or_reach_a_terminal(self) -> None:
        hostile = 'unix:/tmp/"} 1\nnetsvc_listener_up{x="\x1b[2J\u202e\udcff\\'
        body, _ = exposition([process(0, listener(place=hostile))])
        assert body.count(b"\nnetsvc_listener_up{") == 1
        assert not re.search(rb"[\x00-\x09\x0b-\x1f\x7f]", body)
        [found] = {dict(labels)["listener"] for name, labels in read(body, TEXT) if name == "netsvc_listener_up"}
        assert found == 'unix:/tmp/"} 1\\x0anetsvc_listener_up{x="\\x1b[2J\\x202e\\xdcff\\'

    def test_two_places_that_are_written_alike_are_one(self) -> None:
        series = told([process(0, listener(place="\x1b", accepted=1), listener(place="\\x1b", accepted=2))])
        assert value(series, "netsvc_connections_accepted_total") == 3


class TestTheCatalog:
    @pytest.fixture
    def everything(self) -> Series:
        counts = {"ended": dict.fromkeys(REASONS, 1), "refused": {"rate": 1}, "reported": {"rate": 1}}
        one = listener(kind="datagram")
        for name, by in counts.items():
            getattr(one.counts, name).update(by)
        return told([process(0, one)])

    def test_has_every_metric_that_is_told_with_its_labels(self, everything: Series) -> None:
        found: dict[str, set[str]] = {}
        for name, labels in everything:
            family = re.sub(r"(?<=_duration_seconds)_(bucket|count|sum)$", "", name)
            found.setdefault(family, set()).update(dict(labels))
        assert found.pop("netsvc_connection_duration_seconds") - {"le"} == {"service", "protocol", "listener"}
        assert found == {name: set(metric.labels) for name, metric in METRICS.items() if metric.kind != "histogram"}

    @pytest.mark.parametrize("name", METRICS)
    def test_names_are_what_prometheus_advises(self, name: str) -> None:
        metric = METRICS[name]
        assert re.fullmatch(r"netsvc_[a-z]+(_[a-z]+)+", name)
        assert name.endswith("_total") == (metric.kind == "counter")
        assert metric.help
        assert metric.help[0].isalnum()
        assert not metric.help.endswith(".")

    def test_is_a_table(self) -> None:
        table = {row[0]: row[1:] for row in rows()}
        assert table["netsvc_process_open_fds"] == ("gauge", "worker", METRICS["netsvc_process_open_fds"].help)
        assert len(table) == len(METRICS)

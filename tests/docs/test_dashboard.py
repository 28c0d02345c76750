"""The dashboard for Grafana and the alerts for Prometheus ask for what there is, and are whole."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from netsvc.metrics import Metrics
from netsvc.plan.catalog import METRICS
from tests.builders.bench import build
from tests.builders.processes import ROOT
from tests.builders.promql import TARGET, known_metrics, parse

DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy" / "grafana.json").read_text("utf-8"))
ALERTS = (ROOT / "deploy" / "alerts.yml").read_text("utf-8")

#: The kinds of panels that Grafana brings with it (10 and later).
KINDS = {"heatmap", "row", "stat", "state-timeline", "table", "timeseries"}
COLUMNS = 24
RULE = re.compile(
    r"      - alert: (?P<name>Netsvc[A-Za-z]+)\n"
    r"        expr: (?P<expr>\S.*)\n"
    r"(?:        for: (?P<time>\d+m)\n)?"
    r"        labels:\n          severity: (?P<severity>critical|warning)\n"
    r'        annotations:\n          summary: "(?P<summary>[^"\n]+)"\n'
    r'          description: "(?P<description>[^"\n]+\.)"\n'
)


def of_services() -> Iterator[Metrics]:
    yield build("chat").context.metrics
    yield build("files", {"root": "."}).context.metrics


@cache
def known() -> dict[str, tuple[str, set[str]]]:
    """List the metrics of netsvc and of its services."""
    families = {name: (metric.kind, metric.labels) for name, metric in METRICS.items()} | {
        each["name"]: (each["kind"], each["labels"]) for metrics in of_services() for each in metrics.samples()
    }
    return known_metrics(families)


def panels(within: dict[str, Any] = DASHBOARD) -> Iterator[dict[str, Any]]:
    for panel in within.get("panels", ()):
        yield panel
        yield from panels(panel)


TARGETS = [
    pytest.param(panel, target, id=f"{panel['title']} {target['refId']}")
    for panel in panels()
    for target in panel.get("targets", ())
]
RULES = [pytest.param(rule, id=rule["name"]) for rule in RULE.finditer(ALERTS)]


class TestTheDashboard:
    @pytest.mark.parametrize(("panel", "target"), TARGETS)
    def test_asks_for_metrics_and_labels_that_there_are(self, panel: dict[str, Any], target: dict[str, Any]) -> None:
        query = parse(target["expr"], known())
        assert query.metrics
        for name, looked_at in query.metrics.items():
            # What is chosen above holds for every panel.
            assert looked_at >= TARGET
            assert ("service" in looked_at) == ("service" in known()[name][1])
        shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        assert shown <= (query.labels or set())
        if panel["type"] == "timeseries":
            assert shown == query.labels, "two lines would have one name"
        if panel["type"] == "stat":
            assert not query.labels

    def test_shows_every_metric(self) -> None:
        asked = {name for param in TARGETS for name in parse(param.values[1]["expr"], known()).metrics}  # type: ignore[index]
        draining = {"netsvc_process_draining"}
        assert set(known()) - asked <= draining

    def test_chooses_among_what_there_is(self) -> None:
        names = []
        for variable in DASHBOARD["templating"]["list"]:
            names.append(variable["name"])
            if variable["type"] == "query":
                [(metric, label)] = re.findall(r"^label_values\((.*), (\w+)\)$", variable["query"]["query"])
                assert label in (parse(metric, known()).labels or set())
                assert variable["definition"] == variable["query"]["query"]
        assert names == ["datasource", "job", "instance", "service"]
        used = set(re.findall(r"\$(?!__)\{?(\w+)", json.dumps(DASHBOARD)))
        assert used == set(names)

    def test_marks_what_there_is(self) -> None:
        [mark] = [each for each in DASHBOARD["annotations"]["list"] if "expr" in each]
        assert set(re.findall(r"\{\{(\w+)\}\}", mark["titleFormat"])) <= (parse(mark["expr"], known()).labels or set())

    @pytest.mark.parametrize("panel", [pytest.param(each, id=each["title"]) for each in panels()])
    def test_panels_are_whole(self, panel: dict[str, Any]) -> None:
        assert panel["type"] in KINDS
        assert panel["title"]
        place = panel["gridPos"]
        assert place["w"] >= 1 and place["h"] >= 1
        assert place["x"] >= 0 and place["x"] + place["w"] <= COLUMNS
        if panel["type"] == "row":
            assert panel["collapsed"] == bool(panel["panels"])
            return
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert [target["refId"] for target in panel["targets"]] == list("ABCDEFGHIJ")[: len(panel["targets"])]
        for each in (panel, *panel["targets"]):
            assert each["datasource"] == {"type": "prometheus", "uid": "${datasource}"}

    def test_panels_have_numbers_of_their_own_and_do_not_overlap(self) -> None:
        numbers = [panel["id"] for panel in panels()]
        assert len(set(numbers)) == len(numbers)
        for group in (DASHBOARD["panels"], *(panel["panels"] for panel in panels() if panel["type"] == "row")):
            taken: set[tuple[int, int]] = set()
            for place in (panel["gridPos"] for panel in group):
                cells = {
                    (x, y)
                    for x in range(place["x"], place["x"] + place["w"])
                    for y in range(place["y"], place["y"] + place["h"])
                }
                assert not cells & taken
                taken |= cells

    def test_columns_of_tables_are_of_what_is_asked(self) -> None:
        for panel in panels():
            for step in panel.get("transformations", ()):
                names = {name.removeprefix("Value #") for name in step["options"].get("renameByName", {})}
                for name in names:
                    letters = {target["refId"] for target in panel["targets"]}
                    labels = set.union(*(parse(target["expr"], known()).labels or set() for target in panel["targets"]))
                    assert name in letters | labels

    def test_is_for_any_grafana(self) -> None:
        assert DASHBOARD["id"] is None
        assert DASHBOARD["uid"] == DASHBOARD["title"] == "netsvc"


class TestTheAlerts:
    @pytest.mark.parametrize("rule", RULES)
    def test_ask_for_metrics_and_labels_that_there_are(self, rule: re.Match[str]) -> None:
        query = parse(rule["expr"], known())
        assert query.metrics
        for text in (rule["summary"], rule["description"]):
            for shown in re.findall(r"\{\{(.*?)\}\}", text):
                label = re.fullmatch(r" \$labels\.(\w+) | \$value \| humanize(Duration|Percentage)? ", shown)
                assert label, shown
                assert label[1] is None or label[1] in (query.labels or set())

    def test_are_all_read_here(self) -> None:
        head, _, rest = ALERTS.partition("    rules:\n")
        assert re.fullmatch(r"(#.*\n)+groups:\n  - name: netsvc\n", head)
        assert RULE.sub("", rest) == ""
        names = [rule["name"] for rule in RULE.finditer(rest)]
        assert len(set(names)) == len(names) >= 5


class TestTheReading:
    @pytest.mark.parametrize(
        ("query", "reason"),
        [
            ("netsvc_nothing", "there is no metric netsvc_nothing"),
            ("netsvc_connection_duration_seconds", "there is no metric"),
            ('netsvc_listener_up{worker="1"}', "netsvc_listener_up has no label {'worker'}"),
            ("sum by (worker) (netsvc_listener_up)", "there is no label {'worker'}"),
            ("sum by (limit) (sum by (service) (rate(netsvc_connections_refused_total[5m])))", "no label {'limit'}"),
            ("rate(netsvc_listener_up[5m])", "rate of netsvc_listener_up, which is no counter"),
            ("rate(netsvc_listener_errors_total)", "rate needs a range"),
            ("rate(netsvc_listener_errors_total", "more expected, not the end"),
            ("sum(netsvc_listener_up", r"\) expected, not the end"),
            ("netsvc_listener_up netsvc_listener_up", "not understood from netsvc_listener_up on"),
            ("netsvc_listener_up{service=echo}", "a value is in quotation marks"),
            ("netsvc_listener_up ~ 1", "not understood at  ~ 1"),
            ("netsvc_listener_up / netsvc_process_ready", "do not match"),
            ("histogram_quantile(0.5, sum(rate(netsvc_connection_duration_seconds_bucket[5m])))", "needs the label le"),
        ],
    )
    def test_finds_what_is_wrong(self, query: str, reason: str) -> None:
        with pytest.raises(ValueError, match=reason):
            parse(query, known())

    def test_knows_what_an_answer_has(self) -> None:
        assert parse('sum by (service) (netsvc_listener_up{service=~"$service", job!="x"})', known()).labels == {
            "service"
        }
        assert parse("time() - (max(netsvc_process_start_time_seconds))", known()).labels == set()
        assert parse("count(netsvc_listener_up == 0) or vector(0)", known()).labels == set()
        assert parse("1 + 1", known()) == parse("2", known())

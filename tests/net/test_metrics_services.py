"""How services come by their metrics, and what our own count."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from twisted.internet.task import Clock
from twisted.logger import Logger

from netsvc.base.errors import UserError
from netsvc.base.instruments import MOST_SETS, OTHER, Counter, Gauge, Histogram
from netsvc.interfaces import Context
from netsvc.metrics import Metrics, Registry
from netsvc.plan.plan import ServiceUse
from netsvc.server.instances import build_instance
from netsvc.service import Service
from netsvc.services.echo import Echo
from netsvc.testing import FindingsError, check_service
from tests.builders.bench import build, connect
from tests.builders.processes import ROOT
from tests.builders.reloaded import ONE, TWO, plan, world


class TestAService:
    def test_is_given_metrics_of_its_own_name(self) -> None:
        seen: list[Context] = []

        class Core:
            def __init__(self, options: object, context: Context) -> None:
                seen.append(context)
                context.metrics.counter("made", "Made").inc()

        service = Service("shout", "Shout", core=Core, streams={"tcp": Echo})
        build_instance(ServiceUse("shout"), service, Clock())
        registry = Registry()
        build_instance(ServiceUse("shout"), service, Clock(), None, registry.of("loud", "shout"))
        assert [context.metrics.use for context in seen] == ["shout", "loud"]
        assert seen[1].metrics is registry.of("loud", "shout")
        assert build(service).context.metrics.value("made") == 1

    def test_with_a_wrong_name_is_a_mistake_that_says_so(self) -> None:
        def core(_options: object, context: Context) -> object:
            return context.metrics.counter("No!", "No")

        service = Service("shout", "Shout", core=core, streams={"tcp": Echo})
        with pytest.raises(UserError, match=r'^metric "No!".*service shout') as caught:
            build_instance(ServiceUse("shout"), service, Clock())
        assert len(caught.value.errors) == 1

    def test_may_be_built_without_any(self) -> None:
        one, other = (Context(Clock(), Logger()) for _ in range(2))
        assert one.metrics is not other.metrics


class TestAReload:
    def test_lets_counters_go_on(self) -> None:
        with world(plan(ONE, "one tcp 127.0.0.1:0")) as made:
            before = made.core("one").context.metrics
            before.counter("said", "Said").inc()
            made.reload(plan({"one": {"text": "new"}}, "one tcp 127.0.0.1:0"))
            after = made.core("new").context.metrics
            after.counter("said", "Said").inc()
            assert after.value("said") == 2
            [family] = made.host.running_plan.metrics.samples()
            assert (family["name"], family["sets"]) == ("netsvc_says_said_total", [[["one"], 2]])

    def test_forgets_those_of_a_service_that_leaves_the_plan(self) -> None:
        with world(plan(TWO, "one tcp 127.0.0.1:0", "two tcp 127.0.0.1:0")) as made:
            for name in ("one", "two"):
                made.core(name).context.metrics.counter("said", "Said").inc()
            made.reload(plan({"two": {"text": "two"}}, "two tcp 127.0.0.1:0"))
            [family] = made.host.running_plan.metrics.samples()
            assert family["sets"] == [[["two"], 1]]

    def test_that_fails_changes_none(self) -> None:
        with world(plan(ONE, "one tcp 127.0.0.1:0")) as made:
            made.core("one").context.metrics.counter("said", "Said").inc()
            failing = plan({"one": {"text": "new", "fail": "start"}}, "one tcp 127.0.0.1:0")
            assert made.errors(failing) == ("start fails",)
            assert made.core("one").context.metrics.value("said") == 1
            [family] = made.host.running_plan.metrics.samples()
            assert family["sets"] == [[["one"], 1]]


class TestTheContract:
    def test_finds_a_function_that_stop_does_not_remove(self) -> None:
        class Core:
            def __init__(self, _options: object, context: Context) -> None:
                self.gauge = context.metrics.gauge("depth", "Depth", ["kind"]).labels("any")

            def start(self) -> None:
                self.gauge.add_function(lambda: 1)

        service = Service("shout", "Shout", core=Core, streams={"tcp": Echo})
        with pytest.raises(FindingsError, match=r"gauge netsvc_shout_depth.*stop\(\)"):
            check_service(service)


class TestTheDocument:
    text = (ROOT / "docs/howto/metrics.md").read_text("utf-8")

    def test_names_what_there_is(self) -> None:
        kinds = {"counter": Counter, "gauge": Gauge, "histogram": Histogram}
        found = re.findall(r"^\| `(\w+)` \|.*?\| (.*) \|$", self.text, re.M)
        assert [kind for kind, _ in found] == list(kinds)
        for kind, what in found:
            assert hasattr(Metrics, kind)
            named = set(re.findall(r"`(\w+)\(", what))
            assert named
            assert all(callable(getattr(kinds[kind], name)) for name in named)

    def test_says_the_limit_and_the_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.syspath_prepend(ROOT / "examples" / "classic")
        assert f"at most {MOST_SETS:,} sets of values" in self.text
        assert f"together as `{OTHER}`" in self.text
        bench = build("netsvc_classic.qotd:service")
        [family] = bench.context.metrics.samples()
        assert f"`{family['name']}`" in self.text
        assert family["labels"] == ["use", "number"]


class TestOurOwnServices:
    def test_chat_counts_members_rooms_and_what_is_said(self) -> None:
        bench = build("chat")
        metrics = bench.context.metrics
        bench.start()
        _, one = connect(bench, "line")
        _, other = connect(bench, "line")
        one.feed(b"hello\n/me waves\n/msg guest2 psst\n/join den\n/msg guest1 to myself\n")
        other.feed(b"/join attic\n/leave attic\n")
        assert (metrics.value("members"), metrics.value("rooms"), metrics.value("messages")) == (2, 2, 3)
        one.lose()
        assert (metrics.value("members"), metrics.value("rooms")) == (1, 1)
        other.lose()
        bench.stop()
        remaining = [each["name"] for each in metrics.samples() if each["sets"]]
        assert remaining == ["netsvc_chat_messages_total", "netsvc_chat_unsent_total"]

    def test_files_counts_requests_by_their_end_bytes_and_downloads(self, tmp_path: Path) -> None:
        (tmp_path / "small").write_bytes(b"content")
        (tmp_path / "large").write_bytes(b"x" * 1_000_000)
        bench = build("files", {"root": str(tmp_path)})
        metrics = bench.context.metrics
        bench.start()
        for name in (b"small\n", b"missing\n", b"missing\n", b"../etc/passwd\n"):
            _, transport = connect(bench, "classic")
            transport.feed(name)
            transport.lose()
        _, transport = connect(bench, "classic", window=1000)
        transport.feed(b"large\n")
        assert metrics.value("downloads") == 1
        transport.lose()
        assert metrics.value("downloads") == 0
        results = {"sent": 1, "no such file": 2, "outside the root": 1, "client went away": 1}
        assert {result: metrics.value("requests", result=result) for result in results} == results
        assert 7 < metrics.value("sent_bytes") < 1_000_000
        bench.stop()
        assert "netsvc_files_downloads" not in [each["name"] for each in metrics.samples() if each["sets"]]

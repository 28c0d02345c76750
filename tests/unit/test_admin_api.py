"""What the admin server answers, and what it does."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator

import pytest
from twisted.internet.defer import Deferred

from netsvc.admin.api import LONGEST_WORDS, MOST_WORDS, PATHS, PATIENCE
from netsvc.admin.status import LOOKS_AT_ONCE, MOST_KNOWN, MOST_LOOKS, MOST_REFUSALS, VERSION
from netsvc.plan.answer import Answer
from netsvc.plan.status import MOST_SHOWN, ConnectionQuery, ConnectionStatus, Counts, RefusalStatus
from tests.builders.admin_asked import Admin
from tests.builders.admin_site import HOSTILE, FakeOperations, listener, process
from tests.builders.logs import Lines, collected
from tests.conftest import LoggedErrors


@pytest.fixture
def lines() -> Iterator[Lines]:
    """Collect what is logged."""
    yield from collected()


def test_all_that_is_documented_is_there_and_nothing_else() -> None:
    admin = Admin()
    for entry in PATHS:
        method, path = entry.split()
        reply = admin.send(
            path.replace("ID", "0-1"), method, b"{}" if method == "POST" else None, Content_Type="application/json"
        )
        assert reply.value().startswith(b"HTTP/1.1 200 "), entry
        other = admin.ask(path, "PUT")
        assert other.code == 405
        allowed = "POST, OPTIONS" if method == "POST" else "GET, HEAD, OPTIONS"
        assert other.headers["allow"] == allowed
        offered = admin.ask(path.replace("ID", "0-1"), "OPTIONS")
        assert offered.code == 200
        assert path == "/ready" or (offered.headers["allow"], offered.body) == (allowed, b"")
        reply.end()
    service = admin.service
    documented = {entry.split()[1] for entry in PATHS if "ID" not in entry}
    assert documented | {"/page.js", "/draw.js", "/figures.js", "/rows.js", "/page.css", "/icon.svg"} == {
        *service._reads, *service._writes
    }  # fmt: skip
    for path in ("/nothing", "/api", "/api/connections/0-1", "/page.css/", "//", "/..%2f"):
        assert admin.ask(path).code == 404
    admin.close()


def test_it_is_healthy_as_long_as_it_answers() -> None:
    operations = FakeOperations()
    operations.lines = ["drains"]
    assert Admin(operations).ask("/health").body == b"ok\n"


def test_it_is_ready_until_something_is_not_which_is_named() -> None:
    operations = FakeOperations()
    admin = Admin(operations)
    assert (admin.ask("/ready").code, admin.ask("/ready").body) == (200, b"ready\n")
    operations.lines = ["it drains", "echo tcp: unix:/run/\x1b[2J: its file is gone"]
    reply = admin.ask("/ready")
    assert reply.code == 503
    assert reply.body == b"it drains\necho tcp: unix:/run/\\x1b[2J: its file is gone\n"
    assert admin.ask("/ready", "OPTIONS").code == 503


def test_the_metrics_are_of_one_moment() -> None:
    # A worker that ends after it was looked at is not counted twice, so that nothing goes down a second later.
    admin = Admin()
    admin.operations.held = []
    first = admin.send("/metrics")
    second = admin.send("/metrics")
    admin.operations.gone_metrics = [{"name": "netsvc_echo_pings"}]
    admin.operations.held[0].callback([process()])
    admin.operations.gone_metrics = []
    admin.operations.held[1].callback([process()])
    assert b"pings" in admin.read(first).body
    assert b"pings" not in admin.read(second).body


@pytest.mark.parametrize("path", ["/metrics", "/api/status", "/api/listeners", "/api/connections"])
def test_an_answer_shows_what_happened_before_its_request(path: str) -> None:
    admin = Admin()
    before = admin.ask(path).body
    admin.operations.statuses = [process(listeners=[], connections=[])]
    admin.operations.gone = [listener("old", "tcp", "*:1")]
    assert admin.ask(path).body != before
    # Nor is a sample used that was begun before.
    admin.operations.held = []
    waiting = [admin.send(path) for _ in range(2)]
    assert len(admin.operations.held) == 1
    admin.operations.held[0].callback([process()])
    assert [bool(each.value()) for each in waiting] == [True, False]
    admin.operations.held[1].callback([process()])
    for each in waiting:
        assert admin.read(each).code == 200


def test_the_metrics_are_made_once_for_all_who_ask_in_a_moment() -> None:
    operations = FakeOperations()
    operations.held = []
    operations.gone = [listener("old", "tcp", "*:1"), listener("old", "tcp", "*:2")]
    admin = Admin(operations)
    waiting = [admin.send("/metrics") for _ in range(20)]
    waiting += [admin.send("/metrics", Accept=f"text/plain;q=0.{number}") for number in range(5)]
    newer = admin.send("/metrics", Accept="application/openmetrics-text")
    # The first one, and one for all that came while it was taken.
    for number in range(2):
        operations.held[number].callback([process()])
    assert {admin.read(each).body for each in waiting} == {b"# 1 2 \n"}
    assert admin.read(newer).body.endswith(b"application/openmetrics-text\n")
    assert (admin.exposed, len(operations.asked)) == (3, 2)


def test_the_status_has_everything_by_documented_names() -> None:
    status = Admin().ask("/api/status").json
    assert status.keys() == {
        "api", "time", "state", "not_ready", "processes", "totals", "listeners", "connections", "refusals"
    }  # fmt: skip
    assert (status["api"], status["state"], status["not_ready"]) == (VERSION, "ready", [])
    [shown] = status["processes"]
    assert (shown["pid"], shown["open"], shown["vitals"]["descriptors_limit"]) == (4711, 1, 1024)
    assert status["totals"]["refused"] == {"idle": 2}
    [connection] = status["connections"]
    assert (connection["id"], connection["peer"], connection["rate_out"]) == ("0-1", "192.0.2.7:5000", 2.0)
    [echo] = status["listeners"]
    assert (echo["service"], echo["counts"]["accepted"], len(echo["limits"])) == ("echo", 3, 5)
    [refusal] = status["refusals"]
    assert (refusal["limit"], refusal["action"]) == ("connections", "refused")


def test_several_processes_and_those_that_have_ended_are_one() -> None:
    one, two = process(worker=2, state="draining"), process(worker=1)
    two.listeners[0].up = False
    two.connections = [two.connections[0]._replace(id="1-9", rate_in=99.0)]
    operations = FakeOperations(one, two)
    operations.gone = [listener("echo", "tcp", "*:9001", counts=Counts(accepted=10)), listener("old", "tcp", "*:1")]
    operations.gone[1].counts.bytes_in = 7
    admin = Admin(operations)
    status = admin.ask("/api/status").json
    assert [each["worker"] for each in status["processes"]] == [1, 2]
    assert status["state"] == "draining"
    assert (status["totals"]["accepted"], status["totals"]["bytes_in"]) == (16, 27)
    [echo] = status["listeners"]
    assert (echo["counts"]["accepted"], echo["up"]) == (16, False)
    assert [each["id"] for each in status["connections"]] == ["1-9", "0-1"]
    # Nothing that was seen is changed by being shown.
    assert admin.ask("/api/status").json == status
    assert admin.ask("/api/connections").json["open"] == 2
    assert len(admin.ask("/api/limits").json["limits"]) == 1


def test_where_no_process_answers_it_starts() -> None:
    operations = FakeOperations()
    operations.statuses.clear()
    status = Admin(operations).ask("/api/status").json
    assert (status["state"], status["listeners"], status["connections"]) == ("starting", [], [])


def test_connections_are_listed_as_they_are_asked_for() -> None:
    admin = Admin()
    reply = admin.ask("/api/connections?connections=7&order=bytes&words=echo++192")
    assert admin.operations.asked == [ConnectionQuery(7, "bytes", ("echo", "192"))]
    assert [each["peer"] for each in reply.json["connections"]] == ["192.0.2.7:5000"]
    assert admin.ask("/api/connections?words=chat").json == {"open": 1, "connections": []}
    assert len(admin.ask("/api/connections?words=ECHO").json["connections"]) == 1
    assert admin.ask(f"/api/connections?connections={MOST_SHOWN}").code == 200


@pytest.mark.parametrize(
    "query",
    [
        f"connections={MOST_SHOWN + 1}",
        "connections=-1",
        "connections=9999999999",
        "connections=%D9%A3",
        "order=size",
        "order=<script>",
        "colour=red",
        "%00=1",
        f"words={'x' * (LONGEST_WORDS + 1)}",
        "words=" + "+".join(f"w{number}" for number in range(MOST_WORDS + 1)),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_line(query: str) -> None:
    for path in ("/api/status", "/api/connections", "/api/stream"):
        reply = Admin().ask(f"{path}?{query}")
        assert reply.code == 400
        assert "\n" not in reply.json["error"]


def test_refusals_are_listed_newest_first_up_to_a_limit() -> None:
    found = [
        RefusalStatus(float(number), "echo", "tcp", "*:1", "p", "idle", "ended") for number in range(MOST_REFUSALS + 5)
    ]
    listed = Admin(FakeOperations(process(refusals=found))).ask("/api/refusals").json["refusals"]
    assert [each["time"] for each in listed] == [float(number) for number in range(MOST_REFUSALS + 4, 4, -1)]


def test_what_a_peer_calls_itself_stays_within_its_string() -> None:
    name = HOSTILE + '"}\r\n\r\ndata: \u2028</script>'
    odd = ConnectionStatus("0-2", "echo", "tcp", "/run/x", "stream", name, 1.0, 0, 0)
    reply = Admin(FakeOperations(process(connections=[odd]))).ask("/api/connections")
    assert reply.headers["content-type"] == "application/json"
    assert reply.body.isascii() and reply.body.count(b"\n") == 1
    assert reply.json["connections"][0]["peer"] == name


def test_different_questions_in_one_moment_are_bounded() -> None:
    admin = Admin()
    codes = Counter(admin.ask(f"/api/connections?words=w{number}").code for number in range(40))
    assert codes == {200: LOOKS_AT_ONCE, 429: 40 - LOOKS_AT_ONCE}
    # What was asked lately waits for its turn.
    waiting = [admin.send(f"/api/connections?words=w{number}") for number in (19, 19, 18)]
    assert len(admin.watching.samples._known) == MOST_KNOWN
    assert admin.ask("/api/connections?words=w0").headers["retry-after"] == "1"
    admin.clock.advance(1 / MOST_LOOKS)
    assert [bool(each.value()) for each in waiting] == [True, True, False]
    admin.clock.advance(1 / MOST_LOOKS)
    assert {admin.read(each).code for each in waiting} == {200}
    admin.clock.advance(1)
    assert admin.ask("/api/connections?words=w0").code == 200
    for _ in range(int(LOOKS_AT_ONCE) + 1):
        admin.send("/api/connections?words=w0")
    admin.close()
    assert not admin.clock.getDelayedCalls()


def test_a_connection_is_closed_once(lines: Lines) -> None:
    admin = Admin()
    assert admin.post("/api/connections/0-1/close").json == {"closed": "0-1"}
    gone = admin.post("/api/connections/0-1/close", b"")
    assert gone.code == 404
    assert "0-1" in gone.json["error"]
    assert admin.operations.asked == ["0-1", "0-1"]
    assert "0-1" in lines[0]
    assert "127.0.0.1:5555" in lines[0]


@pytest.mark.parametrize("name", ["", "a" * 65, "%0a", "a/b", "é", "a b"])
def test_what_is_no_connection_is_not_asked_for(name: str) -> None:
    admin = Admin()
    transport = admin.connect()
    transport.protocol.dataReceived(
        f"POST /api/connections/{name}/close HTTP/1.1\r\nHost: localhost\r\n"
        "Content-Type: application/json\r\nContent-Length: 0\r\n\r\n".encode()
    )
    assert transport.value()[9:12] in (b"400", b"404")
    assert not admin.operations.asked
    transport.end()


@pytest.mark.parametrize("command", ["drain", "reload", "upgrade"])
def test_a_command_is_given_and_its_lines_come_back(command: str, lines: Lines) -> None:
    admin = Admin()
    reply = admin.post(f"/api/{command}")
    assert reply.json == {"done": True, "lines": ["reloaded: nothing has changed"]}
    assert admin.operations.asked == [command]
    [line] = lines
    assert command in line
    assert "127.0.0.1:5555" in line
    admin.operations.answer = Answer(1, ["netsvc.toml:7: no", "nor that"])
    reply = admin.post(f"/api/{command}")
    assert reply.code == 409
    assert reply.json == {"error": "netsvc.toml:7: no; nor that", "lines": ["netsvc.toml:7: no", "nor that"]}


def test_a_command_that_takes_its_time_is_said_to_be_under_way() -> None:
    admin = Admin()
    admin.operations.answer = Deferred()
    transport = admin.send("/api/drain", "POST", b"{}", Content_Type="application/json; charset=utf-8")
    admin.clock.advance(PATIENCE)
    reply = admin.read(transport)
    assert (reply.code, reply.json["done"]) == (202, False)
    admin.operations.answer.callback(Answer(0, []))


def test_who_leaves_before_the_answer_leaves_nothing_behind() -> None:
    admin = Admin()
    admin.operations.answer = Deferred()
    admin.send("/api/drain", "POST", b"{}", Content_Type="application/json").end()
    assert not admin.clock.getDelayedCalls()
    admin.operations.answer.callback(Answer(0, []))


@pytest.mark.parametrize("body", [b"[]", b"{", b'{"a": 1}', b"null", b"\xff", b"[" * 4000])
def test_a_body_that_asks_for_more_is_refused(body: bytes) -> None:
    admin = Admin()
    assert admin.post("/api/reload", body).code == 400
    assert not admin.operations.asked


def test_what_fails_is_logged_and_told_in_a_line(logged_errors: LoggedErrors) -> None:
    admin = Admin()
    admin.operations.answer = Deferred()
    transport = admin.send("/api/reload", "POST", b"{}", Content_Type="application/json")
    admin.operations.answer.errback(ZeroDivisionError("secret"))
    reply = admin.read(transport)
    assert reply.code == 500
    assert "ZeroDivisionError" in reply.json["error"]
    assert len(logged_errors.flush(ZeroDivisionError)) == 1


def test_the_page_is_whole_and_small_and_asks_nothing_of_others() -> None:
    admin = Admin()
    bodies = [
        admin.ask(path).body
        for path in ("/", "/page.js", "/draw.js", "/figures.js", "/rows.js", "/page.css", "/icon.svg")
    ]
    assert sum(map(len, bodies)) < 60_000
    text = b"".join(bodies).replace(b"http://www.w3.org/2000/svg", b"")
    for forbidden in (b"http:", b"https:", b"innerHTML", b"insertAdjacentHTML", b"eval(", b"style=", b"onclick="):
        assert forbidden not in text
    assert admin.ask("/").headers["content-type"] == "text/html; charset=utf-8"


def test_the_history_can_be_read() -> None:
    admin = Admin()
    admin.watching.start()
    admin.clock.pump([1.0] * 6)
    history = json.loads(admin.ask("/api/history").body)["history"]
    assert [point["open"] for point in history] == [1, 1, 1]
    admin.close()


def test_the_head_of_a_stream_can_be_asked_for() -> None:
    reply = Admin().ask("/api/stream", "HEAD")
    assert (reply.code, reply.headers["content-type"], reply.body) == (200, "text/event-stream", b"")

"""The log is opened where twistd puts it, in the form that the plan says, and has the access records in order."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.application.service import Application, IService, Service
from twisted.internet.task import deferLater
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import ILogObserver, Logger, LogLevel, globalLogPublisher
from twisted.scripts._twistd_unix import ServerOptions
from zope.interface.verify import verifyObject

from netsvc.base.errors import StartError
from netsvc.base.requests import log_event, request_event
from netsvc.base.signals import process_signals
from netsvc.log.access import AT_ONCE, LONGEST_WAIT
from netsvc.log.opening import Log, OpenLog, open_log
from netsvc.plan.plan import Plan
from netsvc.tap import make_application
from netsvc.workers.channel import read_report
from netsvc.workers.reports import access_report, relay_access, relay_requests, requests_report
from tests.builders.children import FakeReactor
from tests.builders.facts import states
from tests.builders.logs import Lines, collected
from tests.builders.recorded import NOON, STREAM
from tests.builders.twistd_options import parse

RECORD = "[netsvc.access#info] echo tcp 192.0.2.7:5123 listener=0.0.0.0:9001 bytes_in=6 bytes_out=7 seconds=1.250"


def options(*words: str) -> ServerOptions:
    """Parse twistd's own options."""
    parsed = ServerOptions()
    parsed.parseOptions([*words, "netsvc-echo", "--tcp", "1"])
    return parsed


def event(text: str) -> dict[str, Any]:
    return {"log_format": text, "log_time": NOON, "log_level": LogLevel.info, "log_namespace": "netsvc"}


@pytest.fixture
def lines() -> Iterator[Lines]:
    """Collect what is logged."""
    yield from collected()


@pytest.fixture
def usr1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the signal be nobody's, in a directory of the test's own."""
    monkeypatch.chdir(tmp_path)
    before = signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGUSR1, before)


class OpenedLog:
    """An open log, with what takes its access records."""

    def __init__(self, *words: str, form: str = "text", access: str = "log") -> None:
        self.reactor = MemoryReactorClock()
        self.log = OpenLog(options(*words), form, access)
        self.record: Any = self.log.recorder(self.reactor)

    def say(self, *texts: str) -> None:
        assert self.log.observer is not None
        for text in texts:
            self.log.observer(event(text))

    def stop(self) -> None:
        for function, args, kwargs in self.reactor.triggers.get("after", {}).get("shutdown", ()):
            function(*args, **kwargs)
        self.log.close()


def said(path: str) -> list[str]:
    return [line.partition(" ")[2] for line in Path(path).read_text().splitlines()]


def test_in_the_foreground_the_log_goes_to_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    for words in (["-n"], ["-n", "--logfile=-"]):
        world = OpenedLog(*words)
        assert verifyObject(ILogObserver, world.log.observer)
        world.say("said")
        assert capfd.readouterr().out.endswith("[netsvc#info] said\n")
        world.stop()


def test_what_was_printed_before_comes_before(capfd: pytest.CaptureFixture[str]) -> None:
    out = open(os.dup(1), "w")  # noqa: SIM115
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        out.write("printed\n")
        OpenedLog("-n").say("said")
    assert capfd.readouterr().out.startswith("printed\n2026-")
    out.close()


def test_a_stdout_that_is_closed_or_no_descriptor_is_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    world = OpenedLog("-n")
    world.say("said")
    assert world.log.lost == 0
    os.close(world.log.observer.output._descriptor)  # type: ignore[union-attr]
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert OpenedLog("-n").log.foreign


@pytest.mark.usefixtures("usr1")
def test_a_daemon_logs_to_twistd_log_and_to_the_file_that_is_given() -> None:
    for words, name in ((["--logfile=other"], "other"), (["-n", "--logfile=third"], "third"), ([], "twistd.log")):
        world = OpenedLog(*words)
        world.say("文件")
        assert Path(name).read_bytes().endswith("文件\n".encode())
        world.stop()


@pytest.mark.usefixtures("usr1")
def test_records_and_events_are_in_their_order() -> None:
    world = OpenedLog("--logfile=log")
    world.record(STREAM)
    world.say("between")
    world.record(STREAM)
    world.say("")
    assert [line[:84] for line in said("log")] == [RECORD[:84], "[netsvc#info] between"]
    world.reactor.advance(LONGEST_WAIT)
    world.record(STREAM)
    world.stop()
    assert [line.split()[0] for line in said("log")] == [
        "[netsvc.access#info]",
        "[netsvc#info]",
        "[netsvc.access#info]",
        "[netsvc.access#info]",
    ]
    assert not world.reactor.getDelayedCalls()


@pytest.mark.usefixtures("usr1")
@pytest.mark.parametrize("access", ["log", "off", "other"])
def test_requests_are_written_together_and_in_their_order(access: str) -> None:
    world = OpenedLog("--logfile=log", access=access)
    assert world.log.observer is not None
    requests = Logger(namespace="netsvc.files", observer=world.log.observer)
    log_event(request_event(requests, size=1), "a")
    log_event(request_event(requests, size=1), "b {size}")
    assert said("log") == []
    world.say("c")
    first = ["[netsvc.files#info] a", "[netsvc.files#info] b {size}", "[netsvc#info] c"]
    assert said("log") == first
    log_event(request_event(requests), "d")
    world.reactor.advance(LONGEST_WAIT)
    log_event(request_event(requests), "e")
    world.log.reopen()
    log_event(request_event(requests), "f")
    world.stop()
    assert said("log") == [*first, *(f"[netsvc.files#info] {line}" for line in "def")]
    assert not world.reactor.getDelayedCalls()


@pytest.mark.usefixtures("usr1")
def test_as_json_each_line_is_an_object() -> None:
    world = OpenedLog("--logfile=log", form="json")
    world.record(STREAM)
    world.say("ready\n")
    world.stop()
    found = [json.loads(line) for line in Path("log").read_text().splitlines()]
    assert [each["kind"] for each in found] == ["access", "log"]
    assert found[1]["text"] == "ready\n"


@pytest.mark.usefixtures("usr1")
def test_records_may_have_a_file_of_their_own() -> None:
    world = OpenedLog("--logfile=log", access="records")
    world.record(STREAM)
    world.say("ready")
    world.stop()
    assert said("log") == ["[netsvc#info] ready"]
    assert [line[: len(RECORD)] for line in said("records")] == [RECORD]


@pytest.mark.usefixtures("usr1")
def test_a_file_of_their_own_that_is_the_log_is_one_file() -> None:
    world = OpenedLog("--logfile=log", access=os.path.abspath("log"))
    world.record(STREAM)
    world.say("ready")
    world.stop()
    assert [line.split()[0] for line in said("log")] == ["[netsvc.access#info]", "[netsvc#info]"]


def test_records_that_nobody_wants_are_not_made() -> None:
    assert OpenedLog("-n", access="off").record is None
    assert OpenedLog("-n", "--syslog", access="off").record is None


def test_in_a_log_that_is_somebody_else_s_records_are_events(lines: Lines) -> None:
    world = OpenedLog("-n", "--syslog")
    world.record(STREAM)
    assert [f"[{system}#info] {line}" for system, line in zip(lines.systems, lines, strict=True)] == [
        f"{RECORD} reason=peer"
    ]
    world.stop()


@pytest.mark.slow
@pytest.mark.usefixtures("usr1")
@pytest.mark.parametrize("where", [["--logfile=log"], ["-n", "--syslog"]])
def test_a_flood_of_records_ends_in_a_line_with_how_many_more(where: list[str], lines: Lines) -> None:
    world = OpenedLog(*where)
    for _ in range(AT_ONCE + 5):
        world.record(STREAM)
    world.stop()
    recorded = lines[:-1] if "--syslog" in where else said("log")
    assert len(recorded) == AT_ONCE and lines[-1].startswith("5 ")
    assert not world.reactor.getDelayedCalls()


@pytest.mark.usefixtures("usr1")
def test_beside_such_a_log_records_may_have_a_file() -> None:
    world = OpenedLog("-n", "--syslog", form="json", access="records")
    world.record(STREAM)
    world.stop()
    assert json.loads(Path("records").read_text())["peer"] == "192.0.2.7"


@pytest.mark.usefixtures("usr1")
@pytest_twisted.ensureDeferred
async def test_usr1_opens_the_files_anew_and_nothing_is_lost() -> None:
    from twisted.internet import reactor

    world = OpenedLog("--logfile=log", access="records")
    world.log.reopen_on_signal()
    world.record(STREAM)
    world.say("before")
    os.rename("log", "log.old")
    os.rename("records", "records.old")
    signal.raise_signal(signal.SIGUSR1)
    world.say("still before")
    await deferLater(reactor, 0, lambda: None)
    world.say("after")
    world.stop()
    assert [line.split("] ")[1] for line in said("log.old")] == ["before", "still before"]
    assert said("log") == ["[netsvc#info] after"]
    assert Path("records").exists() and len(said("records") + said("records.old")) == 1


@pytest.mark.usefixtures("usr1")
def test_a_signal_that_somebody_has_taken_is_left_alone() -> None:
    signal.signal(signal.SIGUSR1, lambda *_: None)
    mine = signal.getsignal(signal.SIGUSR1)
    world = OpenedLog("--logfile=log")
    world.log.reopen_on_signal()
    assert signal.getsignal(signal.SIGUSR1) is mine
    world.stop()


@pytest.mark.usefixtures("usr1")
def test_the_signal_is_left_to_who_opens_the_log() -> None:
    OpenedLog("-n", "--syslog").log.reopen_on_signal()
    assert process_signals.is_free(signal.SIGUSR1)


@pytest.mark.usefixtures("usr1")
@pytest_twisted.ensureDeferred
async def test_with_a_log_on_stdout_the_signal_ends_nothing() -> None:
    from twisted.internet import reactor

    world = OpenedLog("-n")
    world.log.reopen_on_signal()
    signal.raise_signal(signal.SIGUSR1)
    await deferLater(reactor, 0, lambda: None)


def test_a_log_on_stdout_has_nothing_to_open_anew(capfd: pytest.CaptureFixture[str]) -> None:
    log = OpenLog(options("-n"))
    log.reopen()
    log.close()
    assert capfd.readouterr().out == ""


@pytest.mark.usefixtures("usr1")
def test_a_thread_that_opens_a_log_leaves_signals_alone() -> None:
    log = OpenedLog("-n").log
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    thread = threading.Thread(target=log.reopen_on_signal)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


@pytest.mark.usefixtures("usr1")
def test_what_could_not_be_written_is_counted_and_said(capfd: pytest.CaptureFixture[str]) -> None:
    world = OpenedLog("--logfile=/dev/full", form="json", access="records")
    world.say("one", "two")
    world.record(STREAM)
    world.stop()
    assert world.log.lost == 2
    notice = json.loads(world.log._notice("3 lines were lost"))
    assert (notice["level"], notice["source"], notice["text"]) == ("error", "netsvc.log", "3 lines were lost")


@pytest.mark.usefixtures("usr1")
def test_a_file_that_cannot_be_opened_is_one_line() -> None:
    with pytest.raises(StartError) as raised:
        OpenedLog("--logfile=no/such/log")
    assert states(str(raised.value), "netsvc: log file no/such/log: ", os.strerror(errno.ENOENT).lower(), "--logfile")
    with pytest.raises(StartError) as raised:
        OpenedLog("-n", access="/no/such/records")
    assert states(
        str(raised.value), "netsvc: access log /no/such/records: ", os.strerror(errno.ENOENT).lower(), "--access"
    )


@pytest.mark.usefixtures("usr1")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_files_that_are_made_belong_to_who_will_write_them() -> None:
    Path("theirs").touch()
    world = OpenedLog("--logfile=log", "--uid=65534", access="records")
    OpenedLog("--logfile=theirs", "--uid=65534", "--gid=65533").stop()
    OpenedLog("--logfile=other", "--uid=65534", "--gid=65533").stop()
    world.stop()
    found = [(os.stat(name).st_uid, os.stat(name).st_gid) for name in ("log", "records", "theirs", "other")]
    assert found == [(65534, 0), (65534, 0), (0, 0), (65534, 65533)]


def test_a_daemon_that_is_to_log_to_stdout_is_one_line() -> None:
    with pytest.raises(StartError, match=r"\bdaemon\b.*\bstdout\b"):
        OpenedLog("--logfile=-")


@pytest.mark.parametrize("given", [["--syslog"], ["--logger=netsvc.log.opening.Log"]])
def test_a_log_of_another_kind_is_left_to_twistd(given: list[str]) -> None:
    assert OpenedLog("-n", *given).log.foreign


def test_a_server_that_is_debugged_has_the_log_of_twistd() -> None:
    # To parse --debug would have every later failure of this process start a debugger.
    assert OpenLog({**options("-n"), "debug": True}).foreign


def test_twist_keeps_its_own_log() -> None:
    assert OpenLog({"logFile": sys.stdout, "reactorName": "default"}).foreign


@pytest.mark.usefixtures("usr1")
def test_records_of_workers_are_written_as_they_are() -> None:
    world = OpenedLog("--logfile=log", access="records")
    world.log.relay()
    words = read_report(access_report("one x\ntwo é\n"))
    relay_access(words[1])
    relay_access("three \x1b[2J\u2028\n\nfour")
    relay_access("five")
    world.stop()
    relay_access("six\n")
    assert Path("records").read_text() == "one x\ntwo é\nthree \\x1b[2J\\x2028\nfour\nfive\n"
    assert Path("log").read_text() == ""


@pytest.mark.usefixtures("usr1")
def test_they_have_the_place_of_events_in_the_log() -> None:
    world = OpenedLog("--logfile=log")
    world.log.relay()
    world.say("before")
    relay_access("a record\n")
    world.say("after")
    world.stop()
    assert [line.split()[-1] for line in Path("log").read_text().splitlines()] == ["before", "record", "after"]


@pytest.mark.usefixtures("usr1")
def test_requests_of_workers_are_written_to_the_log_as_they_are() -> None:
    world = OpenedLog("--logfile=log", access="records")
    world.log.relay()
    world.say("before")
    relay_requests(read_report(requests_report("one é\ntwo \x1b[2J\n"))[1])
    world.say("after")
    world.stop()
    lines = Path("log").read_text().splitlines()
    assert [line.split("] ")[-1] for line in lines] == ["before", "one é", "two \\x1b[2J", "after"]
    assert Path("records").read_text() == ""


def test_in_a_log_that_is_somebody_else_s_requests_are_events(lines: Lines) -> None:
    world = OpenedLog("-n", "--syslog", access="off")
    world.log.relay()
    relay_requests("2026 [netsvc.files#info] [worker 2] one\nother\n")
    world.stop()
    world.log.close()
    relay_requests("2026 [netsvc.files#info] [worker 2] two\n")
    assert lines == ["[worker 2] one", "other"]


def test_in_a_log_that_is_somebody_else_s_they_are_events(lines: Lines) -> None:
    world = OpenedLog("-n", "--syslog")
    world.log.relay()
    Logger("netsvc").info("not one")
    relay_access("2026 [netsvc.access#info] echo one\n{}\n")
    world.stop()
    assert lines == ["not one", "echo one", "{}"]


def test_those_that_nobody_wants_are_dropped(lines: Lines) -> None:
    world = OpenedLog("-n", "--syslog", access="off")
    world.log.relay()
    relay_access("one\n")
    world.stop()
    assert lines == []


PLAN = Plan({}, ())


def opened(words: list[str] | None, plan: Plan = PLAN) -> tuple[Any, OpenLog]:
    """Open the log of an application."""
    application: Any = Application("any")
    return application, open_log(application, {} if words is None else options(*words), plan)


@pytest.mark.usefixtures("usr1")
def test_an_application_gets_the_log() -> None:
    application, _ = opened(["-n"])
    assert isinstance(application.getComponent(ILogObserver), Log)


def test_without_options_of_twistd_an_application_has_the_log_it_had() -> None:
    application, log = opened(None)
    Service().setServiceParent(application)
    assert application.getComponent(ILogObserver, None) is None
    assert log.foreign


def test_a_form_that_somebody_else_s_log_has_not_is_said(lines: Lines) -> None:
    opened(["-n", "--syslog"], Plan({}, (), log="json"))
    assert len(lines) == 1 and states(lines[0], "log json")


class StartedReactor(FakeReactor, MemoryReactorClock):  # type: ignore[misc]
    """Opens real ports for workers that are objects, and the control socket in memory."""

    def adoptStreamPort(self, descriptor: int, family: Any, factory: Any) -> Any:
        kind: Any = MemoryReactorClock if family == socket.AF_UNIX else FakeReactor
        return kind.adoptStreamPort(self, descriptor, family, factory)


@pytest.mark.usefixtures("usr1")
@pytest.mark.parametrize("workers", [1, 2])
def test_what_twistd_runs_brings_it(workers: int) -> None:
    given: Any = parse("--tcp", "127.0.0.1:0", "--workers", str(workers))
    given.parent = options("-n")
    application: Any = Application("any")
    reactor: Any = MemoryReactorClock() if workers == 1 else StartedReactor()
    service = make_application(given, reactor)
    observers = list(globalLogPublisher._observers)
    service.setServiceParent(application)
    assert list(IService(application)) == [service]  # type: ignore[call-overload]
    assert isinstance(application.getComponent(ILogObserver), Log)
    assert service.log is not None
    if workers > 1:
        service.server.log_connections(service.log)
    # One process records its connections; several report theirs.
    assert len(globalLogPublisher._observers) == len(observers) + (workers > 1)
    service.log.close()

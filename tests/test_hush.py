"""What Twisted says worse than we do is not said."""

from __future__ import annotations

from io import StringIO

from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, Logger, globalLogPublisher, textFileLogObserver
from twisted.python import log
from zope.interface import implementer

from netsvc.hush import AcceptLog, hushed
from tests.conftest import LoggedErrors
from tests.processes import Server


def test_the_old_log_is_silent_and_the_new_one_is_not(logged_errors: LoggedErrors) -> None:
    def noisy(word: str) -> str:
        log.msg(word)
        log.err(ValueError(word))
        Logger().info("kept")
        return word.upper()

    text = StringIO()
    observer = textFileLogObserver(text)
    globalLogPublisher.addObserver(observer)
    try:
        assert hushed(noisy, "gone") == "GONE"
        log.msg("again")
        logged_errors.flush(ValueError)
    finally:
        globalLogPublisher.removeObserver(observer)
    assert [line.split("] ")[1] for line in text.getvalue().splitlines()] == ["kept", "again"]


def test_a_listener_has_one_line_at_the_start() -> None:
    with Server.twistd("--tcp", "127.0.0.1:0", "--udp", "127.0.0.1:0", "--chat", "tcp:0:interface=127.0.0.1") as server:
        assert server.log.count("listens on") == 3
        assert "starting on" not in server.log


def test_connections_that_cannot_be_accepted_are_told_of_once_a_minute_with_their_number() -> None:
    lines: list[str] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        lines.append(str(event["log_format"]).format(**event))

    clock = Clock()
    port = Logger(observer=AcceptLog(clock, Logger(observer=observe)))
    for _ in range(100):
        port.info("EMFILE encountered; releasing reserved file descriptor.")
        port.info("EMFILE recovery: Closed socket from {address}", address="x")
        clock.advance(0.5)
    clock.advance(20)
    port.info("Could not accept new connection ({acceptError})", acceptError="ENOBUFS")
    assert [line.partition(",")[2].partition(";")[0] for line in lines] == [
        " 0 so far were closed",
        " 100 so far were closed",
    ]

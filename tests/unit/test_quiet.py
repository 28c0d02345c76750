"""What Twisted says worse than we do is not said."""

from __future__ import annotations

from io import StringIO

import pytest
from twisted.logger import Logger, globalLogPublisher, textFileLogObserver
from twisted.python import log

from netsvc.listen.quiet import quietly
from tests.builders.processes import Server
from tests.conftest import LoggedErrors


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
        assert quietly(noisy, "gone") == "GONE"
        log.msg("again")
        logged_errors.flush(ValueError)
    finally:
        globalLogPublisher.removeObserver(observer)
    assert [line.split("] ")[1] for line in text.getvalue().splitlines()] == ["kept", "again"]


@pytest.mark.slow
def test_a_listener_has_one_line_at_the_start() -> None:
    with Server.twistd("--tcp", "127.0.0.1:0", "--udp", "127.0.0.1:0", "--chat", "tcp:0:interface=127.0.0.1") as server:
        assert server.log.count("listens on") == 3
        assert "starting on" not in server.log

"""The log has the lines of twistd's own, at the places where twistd puts them."""

from __future__ import annotations

import io
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.application.service import Application, IService, Service
from twisted.internet.task import deferLater
from twisted.logger import ILogObserver, Logger, LogLevel, textFileLogObserver
from twisted.python import log as old_log
from twisted.python.failure import Failure
from twisted.scripts._twistd_unix import ServerOptions
from zope.interface.verify import verifyObject

from netsvc.errors import StartError
from netsvc.host.host import Host
from netsvc.tap import makeService
from netsvc.textlog import LogsText, TextLog, text_log
from netsvc.workers.workers import Workers
from tests.processes import PATIENCE, TWISTD, Server, run, twistd
from tests.test_tap import parse

NOON = 1_780_000_000.0


class Unshowable:
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


def lines(event: dict[str, Any]) -> tuple[str, str]:
    """Write an event as we do and as Twisted does."""
    ours, theirs = io.StringIO(), io.StringIO()
    TextLog(ours)(event)
    textFileLogObserver(theirs)(event)
    return ours.getvalue(), theirs.getvalue()


def event(template: object, **fields: object) -> dict[str, Any]:
    return {"log_format": template, "log_time": NOON, "log_level": LogLevel.info, "log_namespace": "netsvc", **fields}


class Thing:
    name = "thing"

    def call(self) -> str:
        return "called"


@pytest.mark.parametrize(
    "one",
    [
        event("ready"),
        event("{line}", line='127.0.0.1:1 "f" 7 bytes in 0.000 s: sent'),
        event("{line}", line="two\nlines"),
        event("{line}", line=""),
        event(""),
        event(None),
        event(b"bytes {line}", line="x"),
        event(7),
        event("{line} {line!r} {count:03d}", line="x", count=7),
        event("{thing.name} {thing.call()} {call()}", thing=Thing(), call=lambda: "called"),
        event("{thing}", thing=Unshowable()),
        event("{missing}"),
        event("{0} {}"),
        event("{{doubled}} {line}", line="x"),
        event("half { open"),
        event("half } closed"),
        event("{名}", 名="x"),
        event("{line}", line="x", log_system="-"),
        event("{line}", line="x", log_system="two\nlines"),
        event("{line}", line="x", log_system=7),
        event("{line}", line="x", log_system=Unshowable()),
        event("{line}", line="x", log_level=None),
        event("{line}", line="x", log_time=None),
        event("{line}", line="x", log_namespace=None),
        event("{line}", line="x", log_flattened={"line!:": "flat"}),
        {"log_format": "bare"},
        {},
        event("{count} of {what}", count=3, what=None),
        event("{line} 中文", line="\ud800"),
    ],
)
def test_an_event_is_the_line_that_twisted_writes(one: dict[str, Any]) -> None:
    ours, theirs = lines(one)
    # Where a thing lies in memory is no part of it.
    assert ours == theirs


def test_a_failure_has_its_traceback() -> None:
    try:
        raise ValueError("wrong")
    except ValueError:
        ours, theirs = lines(event("it {what}", what="failed", log_failure=Failure()))
    assert ours == theirs
    assert "\n\tTraceback" in ours


@given(
    st.text("{}abc.!:() \n", max_size=12),
    st.dictionaries(
        st.sampled_from(["a", "b", "c", "ab"]), st.none() | st.integers() | st.text(max_size=3), max_size=3
    ),
)
def test_any_format_is_filled_in_as_twisted_does(template: str, fields: dict[str, Any]) -> None:
    ours, theirs = lines(event(template, **fields))
    assert ours == theirs


@given(st.lists(st.floats(0, 2e9) | st.integers(0, 2_000_000_000), min_size=1, max_size=5))
def test_the_time_is_that_of_each_event(times: list[float]) -> None:
    ours, theirs = io.StringIO(), io.StringIO()
    mine, reference = TextLog(ours), textFileLogObserver(theirs)
    # Twisted rounds to microseconds, and so may be in the next second a little early.
    for when in (round(each, 3) for each in times):
        for one in (event("{a}", a="x", log_time=when), event("{a!r}", a="x", log_time=when)):
            mine(one)
            reference(one)
    assert ours.getvalue() == theirs.getvalue()


def test_what_the_old_log_and_a_logger_say_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = io.StringIO(), io.StringIO()
    observers = TextLog(ours), textFileLogObserver(theirs)
    for observer in observers:
        old_log.addObserver(observer)
    try:
        old_log.msg("said {as} it is")
        old_log.msg(format="%(count)d things", count=3)
        Logger("some.place").warn("{thing} is late", thing="it")
        print("nothing", file=io.StringIO())
    finally:
        for observer in observers:
            old_log.removeObserver(observer)
    assert ours.getvalue() == theirs.getvalue()
    assert "it is late" in ours.getvalue()


def test_each_line_is_flushed_before_the_next(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as out:
        observer = TextLog(out)
        assert verifyObject(ILogObserver, observer)
        for count in range(1, 4):
            observer(event("{count}", count=count))
            assert len((tmp_path / "log").read_text().splitlines()) == count


def options(*words: str) -> ServerOptions:
    """Parse twistd's own options."""
    parsed = ServerOptions()
    parsed.parseOptions([*words, "netsvc-echo", "--tcp", "1"])
    return parsed


@pytest.fixture
def usr1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the signal be nobody's, in a directory of the test's own."""
    monkeypatch.chdir(tmp_path)
    before = signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGUSR1, before)


def test_in_the_foreground_the_log_goes_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["-n"], ["-n", "--logfile=-"]):
        observer = text_log(options(*words))
        assert observer is not None
        observer(event("{line}", line="said"))
        assert capsys.readouterr().out.endswith("[netsvc#info] said\n")


@pytest.mark.usefixtures("usr1")
def test_a_daemon_logs_to_twistd_log_and_to_the_file_that_is_given() -> None:
    for words, name in ((["--logfile=other"], "other"), (["-n", "--logfile=third"], "third"), ([], "twistd.log")):
        observer = text_log(options(*words))
        assert observer is not None
        observer(event("文件"))
        assert Path(name).read_bytes().endswith("文件\n".encode())
        observer._write.__self__.close()


@pytest.mark.usefixtures("usr1")
@pytest_twisted.ensureDeferred
async def test_usr1_rotates_the_file_and_nothing_is_lost() -> None:
    from twisted.internet import reactor

    observer = text_log(options("--logfile=log"))
    assert observer is not None
    observer(event("before"))
    signal.raise_signal(signal.SIGUSR1)
    observer(event("still before"))
    await deferLater(reactor, 0, lambda: None)
    observer(event("after"))
    assert [line.split("] ")[1] for line in Path("log.1").read_text().splitlines()] == ["before", "still before"]
    assert Path("log").read_text().endswith("] after\n")
    observer._write.__self__.close()


@pytest.mark.usefixtures("usr1")
def test_a_signal_that_somebody_has_taken_is_left_alone() -> None:
    taken = signal.signal(signal.SIGUSR1, lambda *_: None)
    mine = signal.getsignal(signal.SIGUSR1)
    observer = text_log(options("--logfile=log"))
    assert observer is not None
    assert signal.getsignal(signal.SIGUSR1) is mine
    assert taken is signal.SIG_DFL
    observer._write.__self__.close()


@pytest.mark.usefixtures("usr1")
def test_a_file_rotates_when_it_is_full() -> None:
    observer = text_log(options("--logfile=log"))
    assert observer is not None
    file = observer._write.__self__
    file.rotateLength = 100
    for count in range(5):
        observer(event("{count} 文件文件文件", count=count))
    assert [len(Path(name).read_text("utf-8").splitlines()) for name in ("log.2", "log.1", "log")] == [2, 2, 1]
    file.close()


@pytest.mark.usefixtures("usr1")
def test_a_file_that_cannot_be_opened_is_one_line() -> None:
    with pytest.raises(StartError) as raised:
        text_log(options("--logfile=no/such/log"))
    expected = "netsvc: log file no/such/log: no such file or directory; give --logfile a name that can be written"
    assert str(raised.value) == expected


def test_a_daemon_that_is_to_log_to_stdout_is_one_line() -> None:
    with pytest.raises(StartError, match="a daemon cannot log to stdout"):
        text_log(options("--logfile=-"))


@pytest.mark.parametrize("given", [["--syslog"], ["--logger=netsvc.textlog.text_log"]])
def test_a_log_of_another_kind_is_left_to_twistd(given: list[str]) -> None:
    assert text_log(options("-n", *given)) is None


def test_a_server_that_is_debugged_has_the_log_of_twistd() -> None:
    # To parse --debug would have every later failure of this process start a debugger.
    assert text_log({**options("-n"), "debug": True}) is None


def test_twist_keeps_its_own_log() -> None:
    assert text_log({"logFile": sys.stdout, "reactorName": "default"}) is None


def test_the_root_service_brings_the_log_to_its_application() -> None:
    application: Any = Application("any")
    root = LogsText()
    root.twistd_options = options("-n")
    root.setServiceParent(application)
    assert isinstance(application.getComponent(ILogObserver), TextLog)
    assert list(IService(application)) == [root]  # type: ignore[call-overload]


def test_without_options_of_twistd_an_application_has_the_log_it_had() -> None:
    application: Any = Application("any")
    Service().setServiceParent(application)
    LogsText().setServiceParent(application)
    assert application.getComponent(ILogObserver, None) is None


@pytest.mark.parametrize(("words", "kind"), [([], Host), (["--workers", "2"], Workers)])
def test_what_twistd_runs_brings_it(words: list[str], kind: type[Service]) -> None:
    given: Any = parse("--tcp", "127.0.0.1:0", *words)
    given.parent = options("-n")
    application: Any = Application("any")
    root = makeService(given)
    root.setServiceParent(application)
    assert isinstance(root, kind)
    assert isinstance(application.getComponent(ILogObserver), TextLog)


def test_a_server_writes_to_the_file_and_rotates_it(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"content")
    words = ["-n", "--pidfile=", f"--logfile={tmp_path}/log", "netsvc", "--files", "127.0.0.1:0", "--files-root", "."]
    with Server([TWISTD, *words], cwd=tmp_path) as server:
        port = ready(server, tmp_path / "log")
        assert fetch(port) == b"content"
        server.process.send_signal(signal.SIGUSR1)
        wait_until(server, (tmp_path / "log.1").exists)
        assert fetch(port) == b"content"
    for name in ("log.1", "log"):
        [line] = [line for line in (tmp_path / name).read_text().splitlines() if '"f"' in line]
        assert "] 127.0.0.1:" in line
        assert line.endswith(" s: sent")
    assert (tmp_path / "log").read_text().endswith("Server Shut Down.\n")


def ready(server: Server, log: Path) -> int:
    """Wait for a server whose log is a file, and return its port."""
    wait_until(server, lambda: log.exists() and "ready\n" in log.read_text())
    return int(log.read_text().split("listens on 127.0.0.1:")[1].split()[0])


def wait_until(server: Server, done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert server.process.poll() is None
        assert time.monotonic() < deadline


def fetch(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as stream:
        stream.sendall(b"f\n")
        return b"".join(iter(lambda: stream.recv(100), b""))


def test_a_server_whose_log_cannot_be_opened_says_so_in_a_line(tmp_path: Path) -> None:
    ended = twistd("-n", "--pidfile=", f"--logfile={tmp_path}/no/log", "netsvc", "--tcp", "127.0.0.1:0")
    assert ended.returncode == 1
    assert ended.stderr.splitlines() == [
        f"netsvc: log file {tmp_path}/no/log: no such file or directory; give --logfile a name that can be written"
    ]


def test_a_logger_of_the_user_s_is_used() -> None:
    words = ["-n", "--pidfile=", "--logger=twisted.logger.eventAsText", "netsvc", "--tcp", "127.0.0.1:0"]
    ended = run(sys.executable, "-c", "from twisted.scripts.twistd import run; run()", *words)
    assert ended.returncode != 0
    assert "TypeError" in ended.stderr

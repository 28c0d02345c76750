"""The twistd plugin, its pages, and the commands that show a plan."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from twisted.application.service import IService, IServiceMaker
from twisted.internet.testing import MemoryReactorClock
from twisted.plugin import IPlugin, getPlugins
from twisted.python import usage
from zope.interface.verify import verifyObject

from netsvc import __version__, tap
from netsvc.base.errors import PluginError, StartError
from netsvc.cli.run import check, list_services, run
from netsvc.config.arguments import EXAMPLES
from netsvc.config.discovery import Catalogue, FoundService, discover
from netsvc.config.pages import list_page
from netsvc.plan.limits import DEFAULTS, show_limit
from netsvc.server.server import Server
from netsvc.workers.workers import Workers
from tests.builders.facts import lacks, states
from tests.builders.twistd_options import parse


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read no netsvc.toml: a reader of the README has written one into the checkout before running the tests."""
    monkeypatch.chdir(tmp_path)


def test_words_become_a_host_that_runs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    options = parse("--tcp", "127.0.0.1:0", "--udp", "127.0.0.1:0", "--drain", "2")
    reactor: Any = MemoryReactorClock()
    application = tap.make_application(options, reactor)
    assert verifyObject(IService, application)
    assert isinstance(application.server, Server)
    assert application.server.plan.drain == 2
    application.startService()
    assert len(reactor.adoptedPorts) == 2
    # It has a control socket.
    application.stopService()
    reactor.advance(1)


def test_words_come_from_the_command_line_when_none_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["twistd", "--tcp", "9001"])
    options = tap.Options()
    options.parseOptions()
    assert [listener.use for listener in options.plan.listeners] == ["echo"]


def test_mistakes_end_the_process_with_a_line_each() -> None:
    with pytest.raises(StartError) as raised:
        parse("--tcp", "99999", "--nonsense", "1")
    assert [line.partition(":")[0] for line in str(raised.value).splitlines()] == ["netsvc", "netsvc"]
    # twistd cleans up after an Exception, Python ends with status 1 after a SystemExit.
    assert isinstance(raised.value, Exception)
    assert isinstance(raised.value, SystemExit)
    assert raised.value.code not in (0, None)


@pytest.mark.parametrize(
    ("word", "expected"), [("--help", "Usage: twistd"), ("-h", "Usage: "), ("--version", f"netsvc {__version__}")]
)
def test_a_page_is_printed_and_the_process_ends(word: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        parse("--tcp", "9001", word)
    assert raised.value.code == 0
    assert capsys.readouterr().out.startswith(expected)


def test_every_service_is_a_plugin_of_its_own() -> None:
    makers = {maker.tapname: maker for maker in getPlugins(IServiceMaker)}
    for name in ("netsvc", "netsvc-echo", "netsvc-reply", "netsvc-chat", "netsvc-files"):
        assert verifyObject(IServiceMaker, makers[name])
        assert IPlugin.providedBy(makers[name])
    options = makers["netsvc-reply"].options()
    assert isinstance(options, usage.Options)
    options.parseOptions(["127.0.0.1:0", "--udp", "0", "--text", "hi"])
    assert isinstance(makers["netsvc-reply"].makeService(options).server, Server)


#: A line of a catalogue about a file.
PROBLEM = "plugin file /x/y.py does not load: NameError: y"


class Broken:
    def load(self) -> object:
        raise ImportError("No module named nothing")


@pytest.fixture
def catalogue() -> Catalogue:
    """A catalogue with a plugin that works, one that does not load, and one declared twice."""
    catalogue = discover()
    catalogue.problems.append(PROBLEM)
    catalogue.add(FoundService("broken", "/x/broken.py", "broken:service", Broken()))
    for origin in ("/x/a.py", "/x/b.py"):
        catalogue.add(FoundService("twice", origin, f"{origin}:service", Broken()))
    return catalogue


def test_the_list_names_protocols_options_origins_and_what_is_broken(catalogue: Catalogue) -> None:
    page = list_page(catalogue)
    lines = page.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("echo "))
    assert lines[first] == f"echo  {catalogue.load('echo').description}"
    assert states(lines[first + 1], "tcp (stream)", "udp (datagram)")
    assert states(lines[first + 2], "netsvc_plugins.py")
    assert "--reply-text" in page
    broken = next(number for number, line in enumerate(lines) if line.startswith("broken "))
    assert states(lines[broken + 1], "broken", "ImportError: No module named nothing")
    assert any(states(line, "twice", "/x/a.py:service", "/x/a.py", "/x/b.py:service") for line in lines)
    assert page.endswith(catalogue.problems[0])


def invoke(command: Any, *words: str) -> Result:
    return CliRunner().invoke(command, list(words))


def rows(result: Result) -> list[list[str]]:
    """Split the lines of a page into their columns."""
    return [line.split() for line in result.output.splitlines()]


def test_check_prints_the_plan_and_opens_nothing() -> None:
    result = invoke(check, "--tcp", "9001", "--udp", "[::1]:9001", "--reply-udp", "9002", "--reply-text", "a\x1bb")
    assert result.exit_code == 0
    paragraphs = [part.splitlines() for part in result.output.split("\n\n")]
    assert [line.split() for line in paragraphs[0][1:]] == [
        ["echo", "tcp", "stream", "9001"],
        ["echo", "udp", "datagram", "[::1]:9001"],
        ["reply", "udp", "datagram", "9002"],
    ]
    # The columns are aligned.
    assert len({line.rindex(" ") for line in paragraphs[0]}) == 1
    assert [line.split() for line in paragraphs[1][1:]] == [["text", "a\\x1bb"], ["encoding", "utf-8", "default"]]
    assert [line.split() for line in paragraphs[2][1:]] == [["amplify", "no", "default"]]
    limits = [line.split(maxsplit=2) for line in paragraphs[3][1:]]
    assert [each[:2] for each in limits] == [[name, show_limit(value)] for name, value in DEFAULTS.items()]
    assert [line.split(maxsplit=1) for line in paragraphs[4][1:]] == [
        ["drain", "4 s"],
        ["workers", "1"],
        ["log", "text"],
        ["access", "log"],
    ]


def test_check_says_which_limits_are_those_of_each_worker() -> None:
    result = invoke(check, "--files", "9003", "--files-root", ".", "--workers", "2", "--reply", "1")
    titles = [line for line in result.output.splitlines()[1:] if line and not line.startswith(" ")]
    of_files, of_reply = [[line for line in titles if states(line, name)] for name in ("files", "reply")]
    assert any("worker" in line for line in of_files)
    assert not all("worker" in line for line in of_reply)
    assert any(line.split() == ["workers", "2"] for line in result.output.splitlines())
    refused = str(invoke(check, "--chat", "9002", "--workers", "2").exception)
    assert lacks(refused, "--workers 2", "chat", "parallel=True") == []


def test_several_workers_are_run_by_a_process_that_holds_their_ports() -> None:
    made: Any = tap.makeService(parse("--tcp", "127.0.0.1:0", "--workers", "2"))
    assert verifyObject(IService, made)
    assert isinstance(made.server, Workers)
    assert made.server.plan.workers == 2
    one: Any = tap.makeService(parse("--tcp", "0", "--workers", "1"))
    assert isinstance(one.server, Server)


@pytest.mark.parametrize(
    ("given", "chosen"),
    [({}, False), ({"reactor": "poll"}, True), ({"reactorName": "default"}, False), ({"reactorName": "poll"}, True)],
)
def test_workers_learn_whether_a_reactor_was_chosen(given: dict[str, str], chosen: bool) -> None:
    options = parse("--tcp", "127.0.0.1:0", "--workers", "2")
    # Of twistd, or of twist.
    options.parent = given
    made: Any = tap.makeService(options)
    assert made.server._reactor_chosen == chosen


def test_check_prints_every_mistake(tmp_path: Path) -> None:
    result = invoke(check, "--tcp", "x", "--ehco", "9001", "--reply", "1", "--reply-encoding", "none")
    assert isinstance(result.exception, StartError)
    assert len(str(result.exception).splitlines()) == 3
    result = invoke(check, "--files", "1", "--files-root", str(tmp_path / "missing"))
    assert isinstance(result.exception, StartError)
    assert "missing" in str(result.exception)
    assert len(str(result.exception).splitlines()) == 1
    # What is wrong with one service does not hide what is wrong with another, and neither is told twice.
    words = ["--tcp", "99999", "--files", "1", "--files-root", str(tmp_path / "missing")]
    words += ["--reply", "2", "--reply-text", "é", "--reply-encoding", "ascii"]
    lines = str(invoke(check, *words).exception).splitlines()
    assert [next(key for key in ("99999", "missing", "--reply-encoding") if key in line) for line in lines] == [
        "99999",
        "--reply-encoding",
        "missing",
    ]


@pytest.mark.parametrize("words", [["--reactor", "asyncio"], ["--reactor=asyncio"]])
def test_check_takes_the_reactor_of_run(words: list[str]) -> None:
    result = invoke(check, "--tcp", "0", *words, "--udp", "0")
    assert (result.exit_code, result.output.count("echo ")) == (
        0,
        invoke(check, "--tcp", "0", "--udp", "0").output.count("echo "),
    )


def test_check_with_nothing_says_what_could_be_run() -> None:
    result = invoke(check)
    assert lacks(str(result.exception), *EXAMPLES) == []


def test_without_words_check_and_run_take_the_file_that_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netsvc.toml").write_text("services.echo.tcp = 9001\n")
    monkeypatch.chdir(tmp_path)
    assert ["echo", "tcp", "stream", "9001"] in rows(invoke(check))
    # What is given is added to it.
    added = invoke(check, "--drain", "1", "--admin", "9100")
    for row in (["echo", "tcp", "stream", "9001"], ["drain", "1", "s"], ["admin", "9100"]):
        assert row in rows(added)
    assert "./netsvc.toml" in added.stderr
    (tmp_path / "other.toml").write_text("services.echo.tcp = 9002\n")
    for words in (("--config", "other.toml"), ("--config=other.toml",)):
        assert "9001" not in invoke(check, *words).output
    assert "9001" not in invoke(check, "--list").output
    called: list[list[str]] = []
    monkeypatch.setattr(sys, "argv", ["netsvc"])
    monkeypatch.setattr("twisted.application.app.run", lambda *_: called.append(sys.argv))
    invoke(run)
    invoke(run, "--admin", "9100")
    invoke(run, "--config=other.toml", "--admin", "9100")
    twistd = ["twistd", "-n", "--pidfile=", "netsvc"]
    assert called == [
        [*twistd, "--config", "netsvc.toml"],
        [*twistd, "--config", "netsvc.toml", "--admin", "9100"],
        [*twistd, "--config=other.toml", "--admin", "9100"],
    ]


def test_check_finds_a_port_that_another_plugin_takes() -> None:
    forward = ("--with", "portforward --port tcp:9002:interface=127.0.0.1 --host localhost --dest_port 1")
    line = str(invoke(check, "--tcp", "9002", *forward).exception)
    assert lacks(line, "--with portforward", "tcp:9002", "echo tcp", "9002") == []
    assert lacks(str(invoke(check, *forward, *forward).exception), "tcp:9002", "portforward", "portforward") == []
    assert invoke(check, "--tcp", "9001", "--udp", "9002", *forward).exit_code == 0


def test_check_shows_the_list_and_the_version_as_its_help_says() -> None:
    assert invoke(check, "--list").output == invoke(list_services).output
    assert invoke(check, "--version").output == f"netsvc {__version__}\n"


def test_list_prints_the_services() -> None:
    assert f"\nreply  {discover().load('reply').description}\n" in invoke(list_services).output


def test_warnings_about_plugins_are_printed_by_check(monkeypatch: pytest.MonkeyPatch, catalogue: Catalogue) -> None:
    monkeypatch.setattr("netsvc.cli.run.discover", lambda: catalogue)
    result = invoke(check, "--tcp", "9001")
    assert any(states(line, "twice", "/x/a.py", "/x/b.py") for line in result.output.splitlines())
    assert result.exit_code == 0
    with pytest.raises(PluginError):
        catalogue.load("twice")


def test_run_is_twistd_in_one_word(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(sys, "argv", ["netsvc"])
    monkeypatch.setattr("twisted.application.app.run", lambda *_: called.append(sys.argv))
    invoke(run, "--tcp", "9001", "--list")
    assert called == [["twistd", "-n", "--pidfile=", "netsvc", "--tcp", "9001", "--list"]]


def test_a_warning_that_is_the_mistake_is_printed_once(monkeypatch: pytest.MonkeyPatch, catalogue: Catalogue) -> None:
    monkeypatch.setattr("netsvc.cli.run.discover", lambda: catalogue)
    result = invoke(check, "--twice", "9001")
    assert lacks(str(result.exception), "twice", "/x/a.py", "/x/b.py") == []
    assert "/x/a.py" not in result.stderr
    assert PROBLEM in result.stderr


def test_check_finds_a_protocol_that_cannot_be_built() -> None:
    result = invoke(check, "--serve", "twisted.protocols.portforward:ProxyFactory=9001")
    # It is called without arguments; what the service must build needs a declared one.
    assert lacks(str(result.exception), "portforward:ProxyFactory: ", "'host'", "lambda core: ProxyFactory(") == []


def test_the_list_keeps_options_whole() -> None:
    assert not [line for line in list_page(discover()).splitlines() if line.endswith("-")]

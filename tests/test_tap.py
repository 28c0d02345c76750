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
from twisted.protocols.basic import LineReceiver
from twisted.python import usage
from zope.interface.verify import verifyObject

from netsvc import __version__, tap
from netsvc.client.serving import check, list_services, run
from netsvc.discovery import Catalogue, Found, discover
from netsvc.errors import PluginError, StartError
from netsvc.host.host import Host
from netsvc.pages import help_page, list_page
from netsvc.service import Service
from netsvc.settings import seconds
from netsvc.workers.workers import Workers


def parse(*words: str, options: Any = tap.Options) -> Any:
    parsed = options()
    parsed.parseOptions(list(words))
    return parsed


def test_words_become_a_host_that_runs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    options = parse("--tcp", "127.0.0.1:0", "--udp", "127.0.0.1:0", "--drain", "2")
    host: Any = tap.makeService(options)
    assert isinstance(host, Host)
    assert verifyObject(IService, host)
    assert host.plan.drain == 2
    host._reactor = reactor = MemoryReactorClock()
    host.startService()
    assert len(reactor.adoptedPorts) == 2


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


def test_help_shows_every_option_of_every_service() -> None:
    page = help_page(discover())
    for line in ("--tcp ADDRESS", "--echo-udp ADDRESS", "--reply-text VALUE", "--reply-amplify  ", "--drain SECONDS"):
        assert line in page
    assert str(tap.Options()) == page
    assert all(len(line) <= 120 for line in page.splitlines())


def test_the_help_of_one_service_has_its_options_without_prefix() -> None:
    page = help_page(discover(), "reply")
    assert page.startswith("Usage: twistd [options] netsvc-reply ADDRESS… [netsvc-reply options]\n")
    assert "  --text VALUE" in page
    assert "--reply" not in page
    assert "echo tcp" not in page


def test_every_service_is_a_plugin_of_its_own() -> None:
    makers = {maker.tapname: maker for maker in getPlugins(IServiceMaker)}
    for name in ("netsvc", "netsvc-echo", "netsvc-reply", "netsvc-chat", "netsvc-files"):
        assert verifyObject(IServiceMaker, makers[name])
        assert IPlugin.providedBy(makers[name])
    options = makers["netsvc-reply"].options()
    assert isinstance(options, usage.Options)
    options.parseOptions(["127.0.0.1:0", "--udp", "0", "--text", "hi"])
    assert isinstance(makers["netsvc-reply"].makeService(options), Host)


class Broken:
    def load(self) -> object:
        raise ImportError("No module named nothing")


@pytest.fixture
def catalogue() -> Catalogue:
    """A catalogue with a plugin that works, one that does not load, and one declared twice."""
    catalogue = discover()
    catalogue.problems.append("plugin file /x/y.py does not load: NameError: y")
    catalogue.add(Found("broken", "/x/broken.py", "broken:service", Broken()))
    for origin in ("/x/a.py", "/x/b.py"):
        catalogue.add(Found("twice", origin, f"{origin}:service", Broken()))
    return catalogue


def test_the_list_names_protocols_options_origins_and_what_is_broken(catalogue: Catalogue) -> None:
    page = list_page(catalogue)
    assert "echo  Send back what comes (RFC 862)\n  protocols  tcp (stream), udp (datagram)\n  from       " in page
    assert "netsvc_plugins.py" in page
    assert "--reply-text" in page
    assert "broken  not usable\n  service broken does not load: ImportError: No module named nothing" in page
    assert "service twice is declared twice: by /x/a.py:service (from /x/a.py) and /x/b.py:service" in page
    assert page.endswith("plugin file /x/y.py does not load: NameError: y")


def test_help_says_which_service_is_not_usable(catalogue: Catalogue) -> None:
    assert "broken: not usable\n  service broken does not load" in help_page(catalogue)


def test_a_long_option_does_not_break_the_columns() -> None:
    class Long(usage.Options):
        optParameters = [["a-very-long-name-for-an-option", None, 7, "What it is for"]]

    class Plugin:
        def load(self) -> object:
            return Service("long", "Test", options=Long, streams={"tcp": LineReceiver})

    catalogue = Catalogue()
    catalogue.add(Found("long", "/x", "x:y", Plugin()))
    assert f"  --long-a-very-long-name-for-an-option VALUE\n{'':34}What it is for (default: 7)" in help_page(catalogue)


def test_pages_call_values_by_what_they_are_and_let_no_description_command_the_terminal() -> None:
    class Options(usage.Options):
        optParameters = [
            ["wait", None, 7.0, 'How "long" to wait\x1b[2J', seconds(0, 9)],
            ["other", None, None, "Something", str],
        ]

    class Plugin:
        def load(self) -> object:
            return Service("x", "An \x1b[31m x\u202e", options=Options, streams={"tcp": LineReceiver})

    catalogue = Catalogue()
    catalogue.add(Found("x", "/x", "x:y", Plugin()))
    page = help_page(catalogue)
    assert '--x-wait SECONDS                How "long" to wait\\x1b[2J (default: 7.0)' in page
    assert "--x-other VALUE " in page
    for text in (page, list_page(catalogue)):
        assert "An \\x1b[31m x\\x202e" in text
        assert "\x1b" not in text


def invoke(command: Any, *words: str) -> Result:
    return CliRunner().invoke(command, list(words))


def test_check_prints_the_plan_and_opens_nothing() -> None:
    result = invoke(check, "--tcp", "9001", "--udp", "[::1]:9001", "--reply-udp", "9002", "--reply-text", "a\x1bb")
    assert result.exit_code == 0
    assert result.output == (
        "SERVICE  PROTOCOL  KIND      ADDRESS\n"
        "echo     tcp       stream    9001\n"
        "echo     udp       datagram  [::1]:9001\n"
        "reply    udp       datagram  9002\n"
        "\n"
        "reply options\n"
        "  text      a\\x1bb\n"
        "  encoding  utf-8   default\n"
        "\n"
        "reply limits of its own\n"
        "  amplify  no  default\n"
        "\n"
        "process limits\n"
        "  connections  20000  default\n"
        "  sessions     20000  default\n"
        "  perip        256    default\n"
        "  periprate    50     default\n"
        "  peripburst   500    default\n"
        "  handshake    120    default\n"
        "  idle         3600   default\n"
        "  sessionidle  60     default\n"
        "  amplify      1      default\n"
        "\n"
        "process\n"
        "  drain    4 s\n"
        "  workers  1\n"
        "  log      text\n"
        "  access   log\n"
    )


def test_check_says_which_limits_are_those_of_each_worker() -> None:
    result = invoke(check, "--files", "9003", "--files-root", ".", "--workers", "2", "--reply", "1")
    assert "\nfiles limits of its own, in each worker\n" in result.output
    assert "\nreply options\n" in result.output
    assert "\nprocess\n  drain    4 s\n  workers  2\n" in result.output
    assert "--workers 2: chat may not run" in str(invoke(check, "--chat", "9002", "--workers", "2").exception)


def test_several_workers_are_run_by_a_process_that_holds_their_ports() -> None:
    made: Any = tap.makeService(parse("--tcp", "127.0.0.1:0", "--workers", "2"))
    assert isinstance(made, Workers)
    assert verifyObject(IService, made)
    assert made.plan.workers == 2
    assert isinstance(tap.makeService(parse("--tcp", "0", "--workers", "1")), Host)


@pytest.mark.parametrize(
    ("given", "chosen"),
    [({}, False), ({"reactor": "poll"}, True), ({"reactorName": "default"}, False), ({"reactorName": "poll"}, True)],
)
def test_workers_learn_whether_a_reactor_was_chosen(given: dict[str, str], chosen: bool) -> None:
    options = parse("--tcp", "127.0.0.1:0", "--workers", "2")
    # Of twistd, or of twist.
    options.parent = given
    made: Any = tap.makeService(options)
    assert made._reactor_chosen == chosen


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


def test_check_with_nothing_says_what_could_be_run() -> None:
    result = invoke(check)
    assert str(result.exception).startswith("netsvc: nothing to run; for example: ")


def test_without_words_check_and_run_take_the_file_that_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netsvc.toml").write_text("services.echo.tcp = 9001\n")
    monkeypatch.chdir(tmp_path)
    assert "\necho     tcp       stream  9001\n" in invoke(check).output
    # Any word at all is to be taken as it is.
    assert str(invoke(check, "--drain", "1").exception).endswith("; or, as it is here: --config netsvc.toml")
    called: list[list[str]] = []
    monkeypatch.setattr(sys, "argv", ["netsvc"])
    monkeypatch.setattr("twisted.scripts.twistd.run", lambda: called.append(sys.argv))
    invoke(run)
    assert called == [["twistd", "-n", "--pidfile=", "netsvc", "--config", "netsvc.toml"]]


@pytest.mark.parametrize("command", [check, run])
def test_check_and_run_have_a_help_page_of_their_own(command: Any) -> None:
    page = invoke(command, "--help").output
    assert page.startswith(f"Usage: netsvc {command.name} [options]\n")
    assert page.count(f"  netsvc {command.name} --") == 3
    assert "twistd [" not in page
    assert "twistd -n" not in page


def test_check_shows_the_list_and_the_version_as_its_help_says() -> None:
    assert invoke(check, "--list").output == invoke(list_services).output
    assert invoke(check, "--version").output == f"netsvc {__version__}\n"


def test_list_prints_the_services() -> None:
    assert "\nreply  Answer everything with a fixed text\n" in invoke(list_services).output


def test_warnings_about_plugins_are_printed_by_check(monkeypatch: pytest.MonkeyPatch, catalogue: Catalogue) -> None:
    monkeypatch.setattr("netsvc.client.serving.discover", lambda: catalogue)
    result = invoke(check, "--tcp", "9001")
    assert "netsvc: warning: service twice is declared twice" in result.output
    assert result.exit_code == 0
    with pytest.raises(PluginError):
        catalogue.load("twice")


def test_run_is_twistd_in_one_word(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[list[str]] = []
    monkeypatch.setattr(sys, "argv", ["netsvc"])
    monkeypatch.setattr("twisted.scripts.twistd.run", lambda: called.append(sys.argv))
    invoke(run, "--tcp", "9001", "--list")
    assert called == [["twistd", "-n", "--pidfile=", "netsvc", "--tcp", "9001", "--list"]]


def test_a_warning_that_is_the_mistake_is_printed_once(monkeypatch: pytest.MonkeyPatch, catalogue: Catalogue) -> None:
    monkeypatch.setattr("netsvc.client.serving.discover", lambda: catalogue)
    result = invoke(check, "--twice", "9001")
    assert "service twice is declared twice" in str(result.exception)
    assert "service twice is declared twice" not in result.stderr
    assert "netsvc: warning: plugin file /x/y.py" in result.stderr


def test_check_finds_a_protocol_that_cannot_be_built() -> None:
    result = invoke(check, "--serve", "twisted.protocols.portforward:ProxyFactory=9001")
    assert "ProxyFactory stream cannot be built: TypeError: " in str(result.exception)


def test_the_list_keeps_options_whole() -> None:
    assert not [line for line in list_page(discover()).splitlines() if line.endswith("-")]

"""What is said of the process: on the command line and in a file alike, with the same mistakes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from netsvc.config.arguments import read_arguments, survey_arguments
from netsvc.config.discovery import discover
from netsvc.config.draft import Draft
from netsvc.config.file import read_config
from netsvc.config.pages import plan_page
from netsvc.config.settings import LONGEST_DRAIN
from netsvc.plan.plan import AdminUse, Plan, ServiceUse
from tests.builders.arguments import catalogue, errors, mistake, plan
from tests.builders.facts import lacks, states

CATALOGUE = catalogue()
TOKEN = "0123456789abcdef"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    Path("token").write_text(TOKEN)
    return tmp_path


def read(text: str, *words: str) -> Plan:
    Path("x.toml").write_text(text, "utf-8")
    return read_arguments(["--config", "x.toml", *words], CATALOGUE)


def wrong(text: str) -> list[str]:
    Path("x.toml").write_text(f"{text}\n[services.echo]\ntcp = 0\n", "utf-8")
    return [line.removeprefix("x.toml:") for line in survey_arguments(["--config", "x.toml"], CATALOGUE)[1]]


def test_a_file_and_a_command_line_say_the_same(here: Path) -> None:
    text = (
        'drain = 9\nlog = "json"\naccess = "access.log"\nstate = "kept"\n'
        'admin = { address = "192.0.2.1:9000", token = "token" }\n'
        "[services.echo]\ntcp = 0\ndrain = 1.5\n[services.gate]\nline = 0\n"
    )
    words = (
        *("--drain", "9", "--log", "json", "--access", "access.log", "--state=kept", "--admin", "192.0.2.1:9000"),
        *("--admin-token", "token", "--tcp", "0", "--echo-drain", "1.5", "--gate", "0"),
    )
    made = read(text)
    assert made == plan(*words)
    assert (made.log, made.access, made.state) == ("json", f"{here}/access.log", f"{here}/kept")
    assert made.admin == AdminUse(made.admin.address, f"{here}/token") if made.admin else None
    assert {key: use.drain for key, use in made.uses.items()} == {"echo": 1.5, "gate": None}
    assert made.admin is not None
    assert made.admin.origin == "x.toml:5: admin.address: "


def test_what_nobody_says_has_its_defaults() -> None:
    made = plan("--tcp", "0")
    assert (made.admin, made.log, made.access, made.state, made.longest_drain) == (None, "text", "log", None, 4)


def test_relative_paths_of_a_file_are_below_its_directory(here: Path) -> None:
    (here / "etc").mkdir()
    (here / "etc/x.toml").write_text(
        'access = "a.log"\nstate = "./kept"\nadmin = "unix:admin.sock"\n[services.echo]\ntcp = 0\n'
    )
    made = read_arguments(["--config", "etc/x.toml"], CATALOGUE)
    assert (made.access, made.state) == (f"{here}/etc/a.log", f"{here}/etc/kept")
    assert made.admin is not None
    assert made.admin.address.text == f"unix:{here}/etc/admin.sock"
    assert read('access = "off"\n[services.echo]\ntcp = 0\n').access == "off"
    assert plan("--tcp", "0", "--access", "log").access == "log"


def test_the_command_line_wins_over_the_file(here: Path) -> None:
    text = 'log = "json"\nstate = "one"\nadmin = 9000\n[services.echo]\ntcp = 0\ndrain = 5\n'
    made = read(text, "--log", "text", "--state", "two", "--admin", "localhost:9001", "--echo-drain", "0")
    assert (made.log, made.state, made.uses["echo"].drain) == ("text", f"{here}/two", 0)
    assert made.admin is not None
    assert made.admin.address.text == "localhost:9001"


def test_the_environment_is_put_in(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    monkeypatch.setenv("PLACE", "there")
    made = read(
        'state = "${PLACE}/x"\nlog = "${FORM:-json}"\n[admin]\naddress = "${ADMIN:-9000}"\n[services.echo]\ntcp=0'
    )
    assert (made.state, made.log) == (f"{here}/there/x", "json")
    assert made.admin is not None
    assert made.admin.address.port == 9000


def test_below_systemd_the_state_is_in_the_first_directory_of_the_unit() -> None:
    def state(environment: dict[str, str]) -> str | None:
        return Draft(CATALOGUE, environment=environment).plan().state

    assert state({"STATE_DIRECTORY": "/var/lib/netsvc:/var/lib/other"}) == "/var/lib/netsvc"
    assert state({"STATE_DIRECTORY": ""}) is None
    assert state({}) is None


def test_a_directory_that_is_named_goes_before_that_of_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/netsvc")
    assert plan("--tcp", "0").state == "/var/lib/netsvc"
    assert plan("--tcp", "0", "--state", "/srv").state == "/srv"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("log = 'xml'", ("1: log xml: ", "text", "json")),
        ("log = 5", ("1: log 5: ", "text", "json")),
        ("log = true", ("1: log: ", "text")),
        ("access = ''", ("1: access : ", "log", "off", "file")),
        ("access = []", ("1: access: ", "log", "off", "file")),
        ('state = "a\\u0000b"', ("1: state {here}/a\\x00b: ", "directory")),
        ("state = {}", ("1: state: ", "directory")),
        ("admin = true", ("1: admin: ", "9000", '"unix:admin.sock"')),
        ("admin = {}", ("1: admin: ", "address = 9000")),
        ("admin = { adress = 1 }", ("1: admin.adress: ", "did you mean address?")),
        ("admin = { address = 9000, token = [] }", ("1: admin.token: ", "file")),
        ("admin = { address = 9000, ca = '' }", ("1: admin.ca : ", "file")),
        ("admin = { token = 'token' }", ("1: admin.token: ", "--admin", "address", "[admin]")),
        (
            "admin.address = '0.0.0.0:9000'",
            ("1: admin.address: ", "admin cannot listen on 0.0.0.0:9000: ", "localhost", "unix:PATH", "token", "CA"),
        ),
        ("admin = 'udp:1'", ("1: admin udp:1: ", "udp:", "HOST:PORT")),
    ],
)
def test_mistakes_of_a_file_have_their_line(text: str, expected: tuple[str, ...], here: Path) -> None:
    [line] = wrong(text)
    facts = [fact.replace("{here}", str(here)) for fact in expected]
    assert line.startswith(facts[0])
    assert lacks(line, *facts) == []


def test_mistakes_of_the_command_line_name_the_option() -> None:
    assert lacks(mistake("--tcp", "0", "--log", "xml"), "--log xml: ", "text", "json") == []
    assert lacks(mistake("--tcp", "0", "--access="), "--access : ", "log", "off", "file") == []
    for option in ("log", "access", "state", "admin", "admin-token", "admin-ca", "drain", "echo-drain"):
        assert lacks(mistake("--tcp", "0", f"--{option}"), f"--{option} ", "needs a value") == []
    assert mistake("--tcp", "0", "--admin-ca", "x").startswith("--admin-ca: ")
    assert mistake("--tcp", "0", "--admin", "here").startswith("--admin here: ")
    assert states(mistake("--tcp", "0", "--admin", "0.0.0.0:1"), "admin ", "0.0.0.0:1: ")
    assert mistake("--tcp", "0", "--admin-tokn", "x").endswith("did you mean --admin-token or --admin-ca or --admin?")


def test_the_files_of_an_admin_page_that_runs_are_not_read_again(here: Path) -> None:
    words = ["--tcp", "0", "--admin", "192.0.2.1:1", "--admin-token", "token"]
    made = read_arguments(words, CATALOGUE)
    assert made.admin is not None
    (here / "token").unlink()
    assert survey_arguments(words, CATALOGUE)[1] != []
    assert read_arguments(words, CATALOGUE, None, [made.admin.address]) == made


def test_a_service_has_seconds_of_its_own_to_drain() -> None:
    assert plan("--tcp", "0", "--echo-drain=3").uses["echo"].drain == 3
    assert plan("--drain", "2", "0", alone="echo") == plan("--tcp", "0", "--drain", "2")
    bounds = f"0 to {LONGEST_DRAIN}"
    assert lacks(mistake("--tcp", "0", "--echo-drain", "soon"), "--echo-drain soon: ", bounds) == []
    [line] = wrong("services.gate = { line = 0, drain = -1 }")
    assert lacks(line, "1: services.gate.drain -1: ", bounds) == []
    [line] = wrong("services.gate = { line = 0, drain = [] }")
    assert lacks(line, "1: services.gate.drain: ", "a number") == []
    [line] = errors("--tcp", "0", "--gate-drain", "1")
    assert lacks(line, "--gate-drain ", " gate ", "--gate ADDRESS") == []
    assert mistake("--tcp", "0", "--echo-drian", "1").endswith("; did you mean --echo-drain?")


def test_a_service_alone_has_the_options_of_the_process() -> None:
    made = plan("0", "--log", "json", "--access=off", "--admin", "9000", "--state", "/s", alone="echo")
    assert (made.log, made.access, made.state) == ("json", "off", "/s")
    assert made.admin is not None
    assert mistake("0", "--lgo", "json", alone="echo").endswith("did you mean --log?")


def test_the_longest_drain_is_that_of_whoever_has_most_time() -> None:
    def longest(drain: float, *own: float | None, **more: object) -> float:
        uses = {str(place): ServiceUse("x", drain=each) for place, each in enumerate(own)}
        return Plan(uses, (), drain, **more).longest_drain  # type: ignore[arg-type]

    assert longest(4) == 4
    assert longest(4, 1, 2) == 2
    assert longest(4, 1, None) == 4
    assert longest(4, 1, 9) == 9
    assert longest(4, 1, twistd=("x",)) == 4


def test_a_plan_shows_all_of_it(here: Path) -> None:
    words = ["--tcp", "0", "--echo-drain", "9", "--log", "json", "--access", "a", "--state", "s", "--chat", "0"]
    shown = plan_page(
        read_arguments([*words, "--admin", "[2001:db8::1]:1", "--admin-token", "token"], discover()), discover()
    )
    rows = [
        line.split(maxsplit=1) for line in shown.partition("\nprocess\n")[2].replace("of echo", "of-echo").splitlines()
    ]
    assert [" ".join(row) for row in rows] == [
        "drain 4 s",
        "drain of-echo  9 s",
        "workers 1",
        "log json",
        f"access {here}/a",
        f"admin [2001:db8::1]:1, token {here}/token",
        f"state {here}/s",
    ]
    assert "admin" not in plan_page(plan("--tcp", "0"), CATALOGUE)


def test_a_file_is_read_with_the_environment_it_is_given(here: Path) -> None:
    (here / "x.toml").write_text('state = "${WHERE}"\n[services.echo]\ntcp = 0')
    draft = Draft(CATALOGUE, environment={"WHERE": os.fspath(here / "y")})
    read_config("x.toml", draft)
    draft.check()
    assert draft.plan().state == f"{here}/y"

"""What the pages say of limits, of a configuration file, and of other twistd plugins."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from twisted.internet.protocol import Protocol

from netsvc.base.errors import StartError
from netsvc.cli.run import check
from netsvc.config.arguments import read_arguments
from netsvc.config.discovery import Catalogue, FoundService, discover
from netsvc.config.pages import plan_page
from netsvc.plan.limits import DEFAULTS, LIMITS
from netsvc.service import Service
from tests.builders.arguments import Loaded


def section(page: str, title: str) -> list[list[str]]:
    """Return the rows under a title of a plan's page."""
    [found] = [part for part in page.split("\n\n") if part.partition("\n")[0] == title]
    return [row.split(maxsplit=2) for row in found.splitlines()[1:]]


def page(*words: str, catalogue: Catalogue | None = None) -> str:
    catalogue = catalogue or discover()
    return plan_page(read_arguments(words, catalogue), catalogue)


def test_a_plan_shows_the_limits_of_the_process_set_or_not() -> None:
    rows = section(
        page("--tcp", "0", "--limit", "idle=5", "--limit", "perip=none", "--limit", "rate=2.5"), "process limits"
    )
    assert ["idle", "5"] in rows
    assert ["perip", "none"] in rows
    assert ["rate", "2.5"] in rows
    assert ["connections", "20000", "default"] in rows
    assert ["periprate", "1000", "default"] in rows
    assert [row[0] for row in rows] == [name for name in LIMITS if name in {*DEFAULTS, "rate"}]


def test_a_plan_shows_the_limits_of_a_service_and_its_own_defaults() -> None:
    found = discover()
    quiet = Service("quiet", "Q", streams={"tcp": Protocol}, limits={"idle": 86400, "handshake": None, "perip": 4})
    found.add(FoundService("quiet", "q.py", "q:s", Loaded(quiet)))
    made = page("--quiet", "0", "--quiet-limit", "perip=5", "--tcp", "0", catalogue=found)
    assert section(made, "quiet limits") == [
        ["perip", "5"],
        ["handshake", "none", "default of quiet"],
        ["idle", "86400", "default of quiet"],
    ]
    assert "\necho limits\n" not in made


def test_a_plan_shows_the_limits_of_a_listener() -> None:
    made = page("--tcp", "guard:perip=2:9001", "--tcp", "9002")
    assert section(made, "echo tcp 9001 limits") == [["perip", "2"]]
    assert "9002 limits" not in made


def test_a_plan_marks_what_only_reports() -> None:
    rows = section(page("--tcp", "0", "--limit", "dryrun=idle,connections", "--limit", "idle=9"), "process limits")
    assert ["idle", "9", "reports only"] in rows
    assert ["connections", "20000", "default, reports only"] in rows
    assert ["dryrun", "connections, idle"] in [[*row[:1], " ".join(row[1:])] for row in rows]
    rows = section(page("--tcp", "0", "--echo-limit", "dryrun=all", "--echo-limit", "idle=9"), "echo limits")
    assert rows == [["idle", "9", "reports only"], ["dryrun", "all"]]


def test_a_plan_says_which_limits_hold_in_each_worker() -> None:
    made = page("--tcp", "guard:perip=2:9001", "--echo-limit", "idle=1", "--workers", "2")
    for title in ("echo limits", "echo tcp 9001 limits", "process limits"):
        assert f"\n{title}, in each worker\n" in made


def test_a_plan_says_which_service_has_a_name_of_its_own_and_from_which_file(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text("[services.lobby]\nservice = 'chat'\nline = 9002\nlimits = { perip = 5 }")
    made = page("--config", str(file))
    assert "\nlobby (chat) options\n" in made
    assert "\nlobby (chat) limits of its own\n" in made
    assert section(made, "lobby limits")[0] == ["perip", "5"]
    assert ["idle", "86400", "default of chat"] in section(made, "lobby limits")
    assert made.endswith(f"  config   {file}")


def test_a_plan_shows_other_plugins_their_limits_and_what_cannot_be_limited(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text("[[twistd]]\nrun = \"web --path '\\u001b a'\"\nlimits = { perip = 5 }")
    catalogue = discover()
    made = plan_page(read_arguments(["--config", str(file)], catalogue), catalogue, ["web: something"])
    assert made.startswith("with web --path '\\x1b a'\n\nwith web limits\n  perip  5\n\nnotes\n  web: something\n\n")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_check_reads_a_file_and_names_every_mistake_in_it(here: Path) -> None:
    (here / "x.toml").write_text("[services.files]\nclassic = 1\nroot = 'no'\nquite = 1\n[[twistd]]\nrun = 'wbe'")
    result = CliRunner().invoke(check, ["--config", "x.toml"])
    assert isinstance(result.exception, StartError)
    lines = str(result.exception).splitlines()
    assert [line.split(": ")[1] for line in lines] == ["x.toml:1", "x.toml:4", "x.toml:6"]


def test_check_says_what_of_other_plugins_it_cannot_limit(here: Path) -> None:
    result = CliRunner().invoke(check, ["--with", "dns --hosts-file hosts --port 0"])
    assert result.exit_code == 0, result.exception
    assert "\nnotes\n  dns: " in result.output

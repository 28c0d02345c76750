"""A service that is declared in the current directory and not found: the line names what is missing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from netsvc.cli.new import render
from netsvc.cli.run import check
from netsvc.config.declarations import why_missing
from tests.builders.facts import lacks

PLUGIN = Path("twisted/plugins/netsvc_lights_plugin.py")
POINTS = '\n[project.entry-points."{}"]\nlights = "lights:service"\n'


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `netsvc new lights` writes, in the current directory."""
    monkeypatch.chdir(tmp_path)
    for path, text in render("lights", {"stream", "datagram", "both", "coroutine"}):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    Path("netsvc.toml").unlink()
    return tmp_path


def installed(where: Path, *, editable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install its metadata, as pip does."""
    site = where / "site"
    info = site / "netsvc_lights-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: netsvc-lights\nVersion: 0.1.0\n")
    (info / "direct_url.json").write_text(json.dumps({"url": "file:///x", "dir_info": {"editable": editable}}))
    monkeypatch.syspath_prepend(str(site))


def only_points(group: str) -> None:
    PLUGIN.unlink()
    with open("pyproject.toml", "a") as file:
        file.write(POINTS.format(group))


def line() -> str:
    [found] = why_missing("lights")
    return found


def test_a_project_that_is_not_installed() -> None:
    assert lacks(line(), str(PLUGIN), "netsvc-lights is not installed", "pip install -e .") == []


def test_an_editable_install_that_leaves_the_plugin_file_out(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(project, editable=True, monkeypatch=monkeypatch)
    assert lacks(line(), str(PLUGIN), 'dev-mode-dirs = ["."]', "package_dir", "pip install -e .") == []


def test_a_wheel_that_leaves_it_out(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(project, editable=False, monkeypatch=monkeypatch)
    assert lacks(line(), str(PLUGIN), "include", "twisted.plugins") == []


def test_a_package_that_hides_it(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(project, editable=True, monkeypatch=monkeypatch)
    PLUGIN.with_name("__init__.py").touch()
    assert lacks(line(), str(PLUGIN.with_name("__init__.py")), "remove it") == []


def test_a_directory_on_the_path_whose_file_is_not_read(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(project, editable=True, monkeypatch=monkeypatch)
    monkeypatch.syspath_prepend(str(project))
    assert lacks(line(), str(PLUGIN), "netsvc list") == []


def test_no_declaration() -> None:
    PLUGIN.unlink()
    assert lacks(line(), "lights.py", "nothing declares it", '"netsvc.services"', 'lights = "lights:service"') == []


def test_an_entry_point_that_is_not_installed_or_was_added_later(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_points("netsvc.services")
    assert lacks(line(), "entry point", "is not installed", "pip install -e .") == []
    installed(project, editable=True, monkeypatch=monkeypatch)
    assert lacks(line(), "entry point", "0.1.0", "pip install -e .") == []


@pytest.mark.parametrize("group", ["netsvc.service", "netsvc-services"])
def test_an_entry_point_in_another_group(group: str) -> None:
    only_points(group)
    assert lacks(line(), f"group {group}", '"netsvc.services"') == []


def test_entry_points_of_setuptools() -> None:
    PLUGIN.unlink()
    Path("pyproject.toml").write_text('[build-system]\nrequires = ["setuptools"]\n')
    Path("setup.cfg").write_text("[options.entry_points]\nnetsvc.services =\n    lights = lights:service\n")
    assert lacks(line(), "entry point", "is not installed") == []


def test_nothing_is_said_of_other_names_and_directories(tmp_path: Path) -> None:
    assert why_missing("light") == []
    assert why_missing("lights", str(tmp_path / "missing")) == []


@given(st.sampled_from(["pyproject.toml", "setup.cfg", "lights.py", str(PLUGIN)]), st.binary(max_size=100))
def test_files_that_are_not_what_they_should_be_raise_nothing(name: str, content: bytes) -> None:
    before = Path(name).read_bytes() if Path(name).exists() else b""
    Path(name).write_bytes(content)
    why_missing("lights")
    Path(name).write_bytes(before)


@pytest.mark.parametrize("words", [["lights"], ["--lights", "0"], ["--lights-prefix", "x", "--tcp", "0"]])
def test_check_says_it(words: list[str]) -> None:
    result = CliRunner().invoke(check, words)
    assert result.exit_code == 1
    assert str(PLUGIN) in str(result.exception)


def test_check_of_a_service_shows_it_and_what_has_no_twistd_command(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = CliRunner().invoke(check, ["echo"])
    assert shown.exit_code == 0
    assert lacks(shown.output, "echo", "netsvc_plugins.py") == []
    assert "twistd" not in shown.output.replace("twisted", "")


def test_a_broken_target_is_said_with_its_file(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = project / "site" / "netsvc_lights-0.1.0.dist-info"
    installed(project, editable=True, monkeypatch=monkeypatch)
    for target, reason in (("lightz:service", "No module named 'lightz'"), ("lights:servic", "no attribute 'servic'")):
        (info / "entry_points.txt").write_text(f"[netsvc.services]\nlights = {target}\n")
        monkeypatch.syspath_prepend(str(project))
        result = CliRunner().invoke(check, ["lights"])
        assert lacks(str(result.exception), reason, "netsvc-lights 0.1.0") == []
        sys.modules.pop("lights", None)
    (info / "entry_points.txt").write_text("[netsvc.services]\nlights = lights:service\n")
    result = CliRunner().invoke(check, ["lights"])
    assert result.exit_code == 0
    sys.modules.pop("lights", None)

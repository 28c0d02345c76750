"""Relative paths begin where the process was started, or lead nowhere if that was removed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from netsvc.base.directory import entered, working_directory


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make two releases, and a link to the first."""
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    (tmp_path / "current").symlink_to("one")
    return tmp_path


def remove(directory: Path) -> None:
    (directory / "file").unlink()
    directory.rmdir()


def test_it_has_the_name_of_the_link_by_which_it_was_entered(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place / "current")
    monkeypatch.setenv("PWD", str(place / "current"))
    directory = working_directory()
    assert directory == str(place / "current")
    (place / "current").unlink()
    (place / "current").symlink_to("two")
    remove(place / "one")
    with entered(directory) as is_there:
        assert is_there and Path("file").read_text() == "two"
    # It is still known in a process that begins there.
    monkeypatch.chdir(place / "two")
    remove(place / "two")
    assert working_directory() == str(place / "current")
    monkeypatch.delenv("PWD")
    assert working_directory() == "."


@pytest.mark.parametrize("elsewhere", [False, True])
def test_in_a_removed_one_relative_paths_lead_nowhere(
    place: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: bool
) -> None:
    monkeypatch.chdir(place / ("two" if elsewhere else "one"))
    remove(place / "one")
    with entered(str(place / "one")) as is_there:
        assert not is_there
        assert not Path("file").exists() and (place / "two" / "file").exists()
        with pytest.raises(FileNotFoundError):
            os.path.abspath("file")
    if elsewhere:
        assert os.getcwd() == str(place / "two")
    assert sorted(os.listdir(place)) == ["current", "two"]


def test_one_that_cannot_be_entered_is_an_error(place: Path) -> None:
    (place / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="symbolic links"), entered(str(place / "loop")):
        pass
    assert os.getcwd() == str(place)

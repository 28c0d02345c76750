"""The options of the files service and its root: every mistake is one line with its cure."""

from __future__ import annotations

from pathlib import Path

import pytest

from netsvc.base.errors import UserError
from netsvc.options import parse_settings
from netsvc.services.files.core import FilesOptions
from tests.builders.facts import states
from tests.builders.files import make_core, open_below, read_all


@pytest.fixture
def root(tmp_path: Path) -> Path:
    top = tmp_path / "public"
    top.mkdir()
    (top / "f").write_bytes(b"content")
    return top


def errors(**settings: object) -> tuple[str, ...]:
    with pytest.raises(UserError) as caught:
        parse_settings(FilesOptions, {name.replace("_", "-"): value for name, value in settings.items()})
    return caught.value.errors


def test_a_root_is_required_and_the_message_names_the_option_as_the_user_writes_it() -> None:
    [line] = errors()
    assert states(line, "files", "--root DIR")
    with pytest.raises(UserError, match=r"^files .*--files-root DIR"):
        parse_settings(FilesOptions, {}, "--files-{}".format)
    assert errors(root="") == ("--root : the path of a directory",)
    assert errors(root="a\0b") == ("--root a\\x00b: the path of a directory",)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32-le", "cp037", "utf-8-sig", "unicode_escape", "utf-32"])
def test_an_encoding_whose_line_end_is_not_0a_is_refused(encoding: str) -> None:
    (line,) = errors(root=".", encoding=encoding)
    assert line.endswith("an encoding in which a line ends with the byte 0A, such as gbk, big5 or latin-1")


@pytest.mark.parametrize("encoding", ["gbk", "GB18030", "big5", "shift_jis", "euc-kr", "latin-1", "utf-8"])
def test_the_usual_encodings_are_accepted(encoding: str) -> None:
    assert parse_settings(FilesOptions, {"root": ".", "encoding": encoding})["encoding"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"name_limit": "0"},
        {"name_limit": "65537"},
        {"quiet": "0"},
        {"quiet": "61"},
        {"downloads": "0"},
        {"encoding": "x"},
    ],
)
def test_values_out_of_range_are_refused_in_one_line(wrong: dict[str, object]) -> None:
    assert len(errors(root=".", **wrong)) == 1


def test_the_limits_are_named_and_exist() -> None:
    assert set(FilesOptions.limits) <= set(parse_settings(FilesOptions, {"root": "."}))


def test_a_relative_root_is_the_one_seen_when_the_options_were_read(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root.parent)
    core, _ = make_core("public")
    monkeypatch.chdir("/")
    core.start()
    assert read_all(core, "f") == b"content"
    core.stop()


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("missing", "files root missing: no such directory; create it or give another root"),
        ("missing/too", "files root missing/too: no such directory; create it or give another root"),
        ("public/f", "files root public/f: not a directory; give another root"),
        ("public/f/g", "files root public/f/g: not a directory; give another root"),
        ("loop", "files root loop: too many levels of symbolic links; give another root"),
        ("a\x1b[2J", "files root a\\x1b[2J: no such directory; create it or give another root"),
    ],
)
def test_a_root_that_cannot_be_opened_is_one_line_with_the_cure(
    root: Path, monkeypatch: pytest.MonkeyPatch, path: str, line: str
) -> None:
    monkeypatch.chdir(root.parent)
    Path("loop").symlink_to("loop")
    core, _ = make_core(path)
    for attempt in (core.check, core.start):
        with pytest.raises(UserError) as caught:
            attempt()
        assert caught.value.errors == (line,)
    core.stop()


def test_check_leaves_nothing_open_and_stop_lets_go(root: Path) -> None:
    core, _ = make_core(root)
    core.check()
    assert open_below(root) == []
    core.start()
    assert open_below(root) == [str(root)]
    core.stop()
    core.stop()
    assert open_below(root) == []

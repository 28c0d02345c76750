"""Code that has changed since it was loaded is named, with what loads it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from netsvc.app.code import MOST_NAMED, LoadedCode


def load(directory: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = directory / f"{name}.py"
    path.write_text("one = 1\n")
    module = ModuleType(name)
    module.__file__ = str(path)
    monkeypatch.setitem(sys.modules, name, module)
    return path


def test_a_changed_and_a_removed_file_are_named_until_they_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = LoadedCode()
    changed, removed, same = (load(tmp_path, name, monkeypatch) for name in ("changed_one", "removed_one", "same_one"))
    code.remember()
    assert code.changed() == [] and code.hints("restart") == []
    os.utime(same)
    same_before = same.stat()
    code = LoadedCode()
    code.remember()
    changed.write_text("two = 2\n")
    os.utime(changed, ns=(1, 1))
    removed.unlink()
    os.utime(same, ns=(same_before.st_atime_ns, same_before.st_mtime_ns))
    assert sorted(code.changed()) == [str(changed), str(removed)]
    [line] = code.hints("restart netsvc")
    assert str(changed) in line and str(removed) in line and line.endswith("restart netsvc")
    # A reload does not load it: the next one says so again.
    assert sorted(code.changed()) == [str(changed), str(removed)]


def test_a_module_that_is_loaded_later_is_known_from_then_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = LoadedCode()
    code.remember()
    late = load(tmp_path, "late_one", monkeypatch)
    assert code.changed() == []
    late.write_text("")
    assert code.changed() == [str(late)]


def test_of_many_files_a_few_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [load(tmp_path, f"many_{number}", monkeypatch) for number in range(MOST_NAMED + 2)]
    code = LoadedCode()
    code.remember()
    for file in files:
        file.unlink()
    [line] = code.hints("restart")
    assert sum(str(file) in line for file in files) == MOST_NAMED and "2 more" in line

"""Nothing outside the root is opened whatever changes meanwhile, in whatever tree."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netsvc.services.files import root as files_root
from netsvc.services.files.root import READ_FLAGS, TRIES, OutsideError, Root, walk
from tests.builders.files import HAS_OPENAT2, content, needs_openat2, open_below, plant_tree


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return plant_tree(tmp_path)


@pytest.fixture(params=[pytest.param(True, id="openat2", marks=needs_openat2), pytest.param(False, id="walk")])
def root(tree: Path, request: pytest.FixtureRequest) -> Iterator[Root]:
    opened = Root(str(tree)) if request.param else Root(str(tree), resolve=None)
    yield opened
    opened.close()
    assert open_below(tree.parent) == []


@needs_openat2
def test_a_kernel_that_cannot_tell_is_asked_again_and_then_the_name_is_walked(tree: Path) -> None:
    answers = [errno.EAGAIN, errno.EINTR]

    def unsure(directory: int, name: bytes, flags: int) -> int:
        if answers:
            raise OSError(answers.pop(), "not now")
        return files_root.open_beneath(directory, name, flags)

    asked = 0

    def never_sure(directory: int, name: bytes, flags: int) -> int:
        nonlocal asked
        asked += 1
        raise OSError(errno.EAGAIN, "not now")

    for way in (unsure, never_sure):
        opened = Root(str(tree), resolve=way)
        assert content(opened, "d/f") == b"d/f"
        opened.close()
    assert asked == TRIES


def test_openat2_is_not_used_where_it_is_missing_or_numbered_otherwise(tree: Path) -> None:
    directory = os.open(tree, os.O_RDONLY)
    os.close(directory)
    assert not files_root.openat2_supported(directory)
    assert not files_root.openat2_supported(directory, machine="mips64")


@pytest.mark.parametrize(("meanwhile", "found"), [("file", b"new"), ("link", b"d/f"), ("nothing", None)])
def test_a_link_that_changes_before_it_is_read_is_looked_at_again(
    tree: Path, meanwhile: str, found: bytes | None
) -> None:
    link = tree / "link"
    link.symlink_to("f")

    def change_and_read(name: bytes, dir_fd: int) -> bytes:
        link.unlink()
        if meanwhile == "file":
            link.write_bytes(b"new")
        elif meanwhile == "link":
            link.symlink_to("d/f")
        return os.readlink(name, dir_fd=dir_fd)

    directory = os.open(tree, os.O_RDONLY)
    try:
        if found is None:
            with pytest.raises(FileNotFoundError):
                walk(directory, b"link", read_link=change_and_read)
        else:
            descriptor = walk(directory, b"link", read_link=change_and_read)
            assert os.read(descriptor, 100) == found
            os.close(descriptor)
    finally:
        os.close(directory)


#: Another process swaps `swapped` between two or three things, SWAPS times; the last of them stays, for SWAPS is a
#: multiple of both.
SWAPPER = """
import os, sys
count, *contents = sys.argv[1:]
for turn in range(int(count)):
    content = contents[turn % len(contents)]
    if content == "file":
        with open("next", "w") as file:
            file.write("f")
    else:
        os.symlink(content, "next")
    os.replace("next", "swapped")
"""
SWAPS = 1_500


def read_while_swapped(root: Root, tree: Path, name: str, contents: list[str]) -> set[bytes]:
    """Read `name` again and again while it is swapped; return all that was ever read."""
    found = set()
    with subprocess.Popen([sys.executable, "-S", "-c", SWAPPER, str(SWAPS), *contents], cwd=tree) as swapper:
        while swapper.poll() is None:
            # FileNotFoundError and NotADirectoryError: what it was when looked at has no such file.
            with contextlib.suppress(OutsideError, FileNotFoundError, NotADirectoryError):
                found.add(content(root, name))
    assert swapper.returncode == 0
    found.add(content(root, name))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("outside", "inside", "name"),
    [
        ("../secret", "f", "swapped"),
        ("..", "d", "swapped/f"),
        ("../public-not", "d/e", "swapped/f"),
        ("{root}/..", "{root}/d", "swapped/f"),
        ("/", "d/e", "swapped/../f"),
        ("..", "d", "swapped/../swapped/f"),
    ],
)
def test_a_link_swapped_all_the_while_leaks_nothing(
    root: Root, tree: Path, outside: str, inside: str, name: str
) -> None:
    (tree.parent / "f").write_bytes(b"outside")
    contents = [target.format(root=tree) for target in (outside, inside)]
    assert read_while_swapped(root, tree, name, contents) <= {b"f", b"d/f", b"d/e/f"}


@pytest.mark.slow
def test_a_file_swapped_for_a_link_leaks_nothing(root: Root, tree: Path) -> None:
    assert read_while_swapped(root, tree, "swapped", ["../secret", "d/f", "file"]) <= {b"f", b"d/f"}


PARTS = st.sampled_from(["a", "b", "c", "..", ".", ""])
PATHS = st.lists(PARTS, min_size=1, max_size=6).map("/".join)
PLACES = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=3).map("/".join)
KINDS = st.one_of(
    st.just("directory"),
    st.just("file"),
    PATHS.map(lambda path: "link:" + (path.lstrip("/") or ".")),
    PATHS.map(lambda path: "absolute:" + path),
)


def plant(top: Path, nodes: list[tuple[str, str]]) -> None:
    for place, kind in nodes:
        path = top / place
        try:
            # What is there already may be a link that leads elsewhere.
            if not path.parent.resolve(strict=True).is_relative_to(top):
                continue
            if kind == "directory":
                path.mkdir()
            elif kind == "file":
                path.write_bytes(b"x")
            elif kind.startswith("link:"):
                path.symlink_to(kind.removeprefix("link:"))
            else:
                path.symlink_to(f"{top}/{kind.removeprefix('absolute:')}")
        except (OSError, RuntimeError):
            # No such directory, taken already, a circle of links (RuntimeError before Python 3.13).
            continue


def outcome(descriptor: int, inside: set[int]) -> tuple[str, int]:
    """Say what was opened, close it, and make sure that it was inside."""
    status = os.fstat(descriptor)
    os.close(descriptor)
    if stat.S_ISDIR(status.st_mode):
        return "directory", 0
    assert status.st_ino in inside
    return "file", status.st_ino


def attempt(open_one: Callable[[bytes], int], name: bytes, inside: set[int]) -> tuple[str, int]:
    try:
        return outcome(open_one(name), inside)
    except IsADirectoryError:
        return "directory", 0
    except OutsideError:
        return "outside", 0
    except OSError as error:
        return "error", error.errno or 0


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(PLACES, KINDS), max_size=8), st.lists(PATHS, min_size=1, max_size=4))
def test_in_any_tree_any_name_is_inside_or_refused_and_both_ways_agree(
    nodes: list[tuple[str, str]], names: list[str]
) -> None:
    with tempfile.TemporaryDirectory() as parent:
        for secret in ("a", "b", "c"):
            (Path(parent) / secret).write_bytes(b"outside")
        top = Path(parent).resolve() / "root"
        top.mkdir()
        plant(top, nodes)
        inside = {os.lstat(os.path.join(path, name)).st_ino for path, _, files in os.walk(top) for name in files}
        top_descriptor = os.open(top, os.O_RDONLY)
        walking, asking = Root(str(top), resolve=None), Root(str(top))
        try:
            for text in names:
                name = text.encode()
                walked = attempt(walking.open, name, inside)
                assert attempt(asking.open, name, inside) == walked
                if HAS_OPENAT2 and name and not name.startswith(b"/"):
                    pure = attempt(lambda it: files_root.open_beneath(top_descriptor, it, READ_FLAGS), name, inside)
                    assert pure in (walked, ("error", errno.EXDEV))
        finally:
            walking.close()
            asking.close()
            os.close(top_descriptor)


@given(st.binary(max_size=40))
def test_any_bytes_are_a_name_that_opens_nothing_outside(name: bytes) -> None:
    with tempfile.TemporaryDirectory() as parent:
        for opened in (Root(parent), Root(parent, resolve=None)):
            try:
                descriptor = opened.open(name)
            except (OutsideError, OSError, ValueError):
                pass
            else:
                os.close(descriptor)
                pytest.fail("it opened something in an empty directory")
            finally:
                opened.close()

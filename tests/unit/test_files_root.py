"""Nothing outside the root is ever opened."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from netsvc.services.files import root as files_root
from netsvc.services.files.root import DEPTH_LIMIT, LINK_LIMIT, OutsideError, Root
from tests.builders.files import (
    SPECIAL,
    content,
    needs_openat2,
    open_below,
    opened_while,
    plant_special,
    plant_tree,
)

Resolve = Callable[[int, bytes, int], int] | None


@pytest.fixture(
    params=[pytest.param(files_root.open_beneath, id="openat2", marks=needs_openat2), pytest.param(None, id="walk")]
)
def resolve(request: pytest.FixtureRequest) -> Resolve:
    way: Resolve = request.param
    return way


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return plant_tree(tmp_path)


@pytest.fixture
def root(tree: Path, resolve: Resolve) -> Iterator[Root]:
    opened = Root(str(tree), resolve=resolve)
    yield opened
    opened.close()
    assert open_below(tree.parent) == []


@pytest.mark.parametrize("name", ["f", "d/f", "d/e/f"])
def test_files_at_any_depth_are_read(root: Root, name: str) -> None:
    assert content(root, name) == name.encode()


@pytest.mark.parametrize("name", ["./f", "d/../f", "d//../d/./../f", "d/e/../../f", "d/e/.././../f"])
def test_dots_inside_the_root_are_resolved(root: Root, name: str) -> None:
    assert content(root, name) == b"f"


@pytest.mark.parametrize(
    "name", ["../secret", "d/../../secret", "..", "../public/f", "/f", "/etc/passwd", "//f", "../public-not/f"]
)
def test_a_name_that_leads_outside_is_refused_even_if_it_comes_back(root: Root, name: str) -> None:
    with pytest.raises(OutsideError):
        content(root, name)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("missing", errno.ENOENT),
        ("d/missing/f", errno.ENOENT),
        ("f/f", errno.ENOTDIR),
        ("f/", errno.ENOTDIR),
        ("f/.", errno.ENOTDIR),
        ("f/..", errno.ENOTDIR),
        ("x" * 256, errno.ENAMETOOLONG),
    ],
)
def test_what_cannot_be_opened_says_so_as_open_does(root: Root, name: str, error: int) -> None:
    with pytest.raises(OSError, match=rf"\[Errno {error}\]"):
        content(root, name)


def test_a_nul_is_an_error_and_never_the_end_of_a_name(root: Root) -> None:
    with pytest.raises(ValueError, match="NUL"):
        content(root, b"f\0.txt")


LINKS_INSIDE = {
    "a file": ("f", "link"),
    "a file above": ("../f", "d/link"),
    "a directory": ("d/e", "link/f"),
    "a directory, with a slash": ("d/e/", "link/f"),
    "a chain": ("d/hop", "link"),
    "absolute": ("{root}/d/f", "link"),
    "absolute, untidy": ("/.//{root}//d/./f", "link"),
    "absolute, from a directory": ("{root}/f", "d/e/link"),
    "absolute directory": ("{root}/d/", "link/e/f"),
    "absolute, the root itself": ("{root}", "link/d/f"),
    "absolute, with dots": ("{root}/d/../d/e/f", "link"),
}


@pytest.mark.parametrize("case", LINKS_INSIDE)
def test_links_that_stay_inside_are_followed(root: Root, tree: Path, case: str) -> None:
    target, name = LINKS_INSIDE[case]
    (tree / "d" / "hop").symlink_to("../f")
    place = tree / (name[: name.index("link")] + "link")
    place.symlink_to(target.format(root=tree))
    assert content(root, name) in (b"f", b"d/f", b"d/e/f")


LINKS_OUTSIDE = {
    "relative": "../secret",
    "relative, back in": "../public/f",
    "absolute": "{root}/../secret",
    "absolute, elsewhere": "/etc/passwd",
    "a name that begins like the root": "{root}-not/f",
    "the directory above": "..",
}


@pytest.mark.parametrize("case", LINKS_OUTSIDE)
def test_links_that_leave_are_refused(root: Root, tree: Path, case: str) -> None:
    (tree / "link").symlink_to(LINKS_OUTSIDE[case].format(root=tree))
    for name in ("link", "link/secret"):
        with pytest.raises(OutsideError):
            content(root, name)


def test_a_root_that_is_itself_a_link_takes_absolute_links_by_both_of_its_names(tree: Path, resolve: Resolve) -> None:
    alias = tree.parent / "alias"
    alias.symlink_to("public")
    (tree / "by-alias").symlink_to(alias / "f")
    (tree / "by-path").symlink_to(tree / "f")
    opened = Root(str(alias), resolve=resolve)
    assert content(opened, "by-alias") == content(opened, "by-path") == b"f"
    opened.close()


def test_a_trailing_slash_of_an_absolute_link_asks_for_a_directory(root: Root, tree: Path) -> None:
    (tree / "link").symlink_to(f"{tree}/f/")
    with pytest.raises(NotADirectoryError):
        content(root, "link")


def test_links_are_followed_up_to_the_limit(root: Root, tree: Path) -> None:
    (tree / "l0").symlink_to("f")
    for number in range(1, LINK_LIMIT + 1):
        (tree / f"l{number}").symlink_to(f"l{number - 1}")
    assert content(root, f"l{LINK_LIMIT - 1}") == b"f"
    with pytest.raises(OSError, match=rf"\[Errno {errno.ELOOP}\]"):
        content(root, f"l{LINK_LIMIT}")


def test_a_link_to_itself_ends(root: Root, tree: Path) -> None:
    (tree / "link").symlink_to("link")
    (tree / "round").symlink_to(tree / "round")
    for name in ("link", "round", "link/f"):
        with pytest.raises(OSError, match=rf"\[Errno {errno.ELOOP}\]"):
            content(root, name)


def test_magic_links_are_no_way_out(resolve: Resolve) -> None:
    opened = Root("/proc/self", resolve=resolve)
    try:
        for name in ("root/etc/passwd", "cwd/setup.cfg", "exe"):
            with pytest.raises((OutsideError, OSError)):
                content(opened, name)
    finally:
        opened.close()


def test_the_walk_has_a_depth_limit(tree: Path) -> None:
    deep = tree
    for _ in range(DEPTH_LIMIT):
        deep = deep / "s"
        deep.mkdir()
    (deep / "f").write_bytes(b"deep")
    (deep / "s").mkdir()
    (deep / "s" / "f").write_bytes(b"deeper")
    opened = Root(str(tree), resolve=None)
    assert content(opened, "s/" * DEPTH_LIMIT + "f") == b"deep"
    with pytest.raises(OSError, match=rf"\[Errno {errno.ENAMETOOLONG}\]"):
        content(opened, "s/" * (DEPTH_LIMIT + 1) + "f")
    opened.close()


def test_the_root_stays_the_same_directory_when_it_is_renamed(tree: Path, resolve: Resolve) -> None:
    opened = Root(str(tree), resolve=resolve)
    tree.rename(tree.parent / "moved")
    tree.mkdir()
    (tree / "f").write_bytes(b"another")
    assert content(opened, "f") == b"f"
    opened.close()


@pytest.mark.parametrize("name", ["special", "d/e/../../special", "link", "absolute"])
@pytest.mark.parametrize("kind", SPECIAL)
def test_only_regular_files_are_opened(root: Root, tree: Path, kind: str, name: str) -> None:
    # The writer that waits at a FIFO would go on, and end by SIGPIPE.
    plant_special(tree / "special", kind)
    (tree / "link").symlink_to("d/chained")
    (tree / "d" / "chained").symlink_to("../special")
    (tree / "absolute").symlink_to(f"{tree}/special")

    def ask() -> None:
        with pytest.raises(OSError, match=rf"\[Errno {errno.ENXIO}\]"):
            root.open(os.fsencode(name))

    assert not opened_while(tree / "special", ask)
    assert opened_while(tree / "f", lambda: content(root, "f"))


def test_a_directory_is_not_opened(root: Root) -> None:
    for name in ("d", "d/", ".", "d/.", "d/.."):
        with pytest.raises(IsADirectoryError):
            root.open(os.fsencode(name))


@needs_openat2
def test_a_fifo_that_takes_the_place_of_a_file_is_not_waited_for(tree: Path) -> None:
    def replace_after_the_look(directory: int, name: bytes, flags: int) -> int:
        descriptor = files_root.open_beneath(directory, name, flags)
        if (tree / "f").is_file():
            (tree / "f").unlink()
            os.mkfifo(tree / "f")
        return descriptor

    opened = Root(str(tree), resolve=replace_after_the_look)
    assert content(opened, "f") == b""
    opened.close()


@pytest.fixture
def linked(tree: Path) -> Path:
    (tree / "link").symlink_to("d/f")
    (tree / "absolute").symlink_to(tree / "d" / "f")
    (tree / "directory").symlink_to("d")
    (tree / "out").symlink_to("../secret")
    (tree / "above").symlink_to("../public-not")
    return tree


@pytest.mark.parametrize("name", ["link", "absolute", "directory/f", "directory/e/f", "out", "above/f"])
def test_no_link_is_followed_if_none_may_be(linked: Path, resolve: Resolve, name: str) -> None:
    opened = Root(str(linked), links="none", resolve=resolve)
    try:
        with pytest.raises(OSError, match=rf"\[Errno {errno.ELOOP}\]"):
            content(opened, name)
        with pytest.raises(OSError, match=rf"\[Errno {errno.ELOOP}\]"):
            opened.open_directory(b"directory")
        for missing in ("../secret", "d/../../secret"):
            with pytest.raises(OutsideError):
                content(opened, missing)
        with pytest.raises(NotADirectoryError):
            content(opened, "f/f")
        assert content(opened, "d/../d/f") == b"d/f"
    finally:
        opened.close()
    assert open_below(linked.parent) == []


FOLLOWED = {
    "link": b"d/f",
    "absolute": b"d/f",
    "directory/e/f": b"d/e/f",
    "out": b"outside",
    "above/f": b"outside",
    # Not above the directory that the link leads to.
    "above/../f": b"f",
    "above/./../d//f": b"d/f",
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_all_links_are_followed_and_names_still_lead_nowhere_else(linked: Path, resolve: Resolve, name: str) -> None:
    opened = Root(str(linked), links="follow", resolve=resolve)
    try:
        assert content(opened, name) == FOLLOWED[name]
        for outside in ("../secret", "above/../../secret", "d/../../secret", "/etc/passwd", ".."):
            with pytest.raises(OutsideError):
                content(opened, outside)
        for directory in ("d/", "above/", "d/.", "."):
            with pytest.raises(IsADirectoryError):
                content(opened, directory)
        with pytest.raises(NotADirectoryError):
            content(opened, "f/")
        plant_special(linked / "special", "fifo")
        (linked / "to-special").symlink_to("special")
        with pytest.raises(OSError, match=rf"\[Errno {errno.ENXIO}\]"):
            content(opened, "to-special")
        assert opened.names(b"above", 1)[0] == [b"f"]
    finally:
        opened.close()
    assert open_below(linked.parent) == []


def test_an_unreadable_root_is_refused() -> None:
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o311)
        mine = os.geteuid()
        if mine == 0:
            os.seteuid(65534)
        try:
            with pytest.raises(PermissionError):
                Root(name)
            assert open_below(Path(name)) == []
        finally:
            os.seteuid(mine)

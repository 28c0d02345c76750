"""A file is written whole, or what was there before stays."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from netsvc.base.files import write_atomic
from tests.builders.processes import PATIENCE


def names(directory: Path) -> list[str]:
    return sorted(each.name for each in directory.iterdir())


def test_a_file_is_made_with_its_permissions_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_atomic(path, "héllo")
    assert path.read_text("utf-8") == "héllo"
    assert path.stat().st_mode & 0o777 == 0o600
    write_atomic(str(path), b"\0\xff" * 100_000, 0o644)
    assert path.read_bytes() == b"\0\xff" * 100_000
    assert path.stat().st_mode & 0o777 == 0o644
    assert names(tmp_path) == ["state"]


def test_who_has_it_open_goes_on_reading_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_atomic(path, "before")
    with path.open() as file:
        write_atomic(path, "after")
        assert file.read() == "before"
    assert path.read_text() == "after"


def test_a_link_in_its_place_is_replaced_and_not_followed(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "state"
    victim.write_text("theirs")
    path.symlink_to(victim)
    write_atomic(path, "ours")
    assert victim.read_text() == "theirs"
    assert path.read_text() == "ours"
    assert not path.is_symlink()


def test_a_name_as_long_as_there_may_be_is_no_hindrance(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 255)
    write_atomic(path, "here")
    assert names(tmp_path) == [path.name]


def test_what_cannot_be_renamed_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state/full").touch()
    with pytest.raises(OSError, match="directory"):
        write_atomic(tmp_path / "state", "x")
    assert names(tmp_path) == ["state"]


def test_without_the_directory_it_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomic(tmp_path / "no/state", "x")
    assert names(tmp_path) == []


def test_a_directory_that_cannot_be_read_can_be_written_in(tmp_path: Path) -> None:
    # Then the disk cannot be asked to know the name; root may read it all the same.
    tmp_path.chmod(0o300)
    try:
        write_atomic(tmp_path / "state", "x")
        assert (tmp_path / "state").read_text() == "x"
    finally:
        tmp_path.chmod(0o700)


#: In mount and user namespaces of its own, so that nothing of it is left, however it ends.
_FULL = """\
import errno, os, sys
from netsvc.base.files import write_atomic
place = sys.argv[1]
path = os.path.join(place, "state")
write_atomic(path, "before")
with open(os.path.join(place, "ballast"), "wb", buffering=0) as ballast:
    try:
        while True:
            ballast.write(bytes(4096))
    except OSError as error:
        assert error.errno == errno.ENOSPC
try:
    write_atomic(path, "x" * 10000)
except OSError as error:
    print(errno.errorcode[error.errno], sorted(os.listdir(place)), open(path).read())
os.remove(os.path.join(place, "ballast"))
write_atomic(path, "after")
print(sorted(os.listdir(place)), open(path).read())
"""


@pytest.mark.slow
def test_on_a_full_disk_what_was_there_stays(tmp_path: Path) -> None:
    mounting = f"mount -t tmpfs -o size=64k none {tmp_path} && exec {sys.executable} -c '{_FULL}' {tmp_path}"
    result = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "sh", "-c", mounting],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    if "unshare:" in result.stderr or "mount:" in result.stderr:
        pytest.skip(f"nothing may be mounted here: {result.stderr.strip()}")
    assert result.stdout == "ENOSPC ['ballast', 'state'] before\n['state'] after\n", result.stderr

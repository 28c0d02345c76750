"""A file is read whole if it is a regular one and short enough; nothing is waited for."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from netsvc.base.files import read_file
from tests.builders.files import SPECIAL, opened_while, plant_special


def test_a_regular_file_up_to_the_limit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 64)
    assert read_file(path, 64) == read_file(str(path), 1000) == b"x" * 64
    path.write_bytes(b"x" * 65)
    with pytest.raises(OSError, match="64") as raised:
        read_file(path, 64)
    assert raised.value.errno == errno.EFBIG


@pytest.mark.parametrize(
    ("name", "number"),
    [("none", errno.ENOENT), (".", errno.EISDIR), ("fifo", errno.EINVAL), ("a\0b", errno.EINVAL)],
)
def test_anything_else_is_refused_with_a_reason(tmp_path: Path, name: str, number: int) -> None:
    os.mkfifo(tmp_path / "fifo")
    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match=r"\w") as raised:
        read_file(tmp_path / name, 10)
    assert raised.value.errno == number
    assert raised.value.strerror
    assert len(os.listdir("/proc/self/fd")) == len(before)


@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_regular_file_is_not_even_opened(tmp_path: Path, kind: str) -> None:
    plant_special(tmp_path / "special", kind)
    (tmp_path / "link").symlink_to("special")

    def read() -> None:
        with pytest.raises(OSError, match=r"\w") as raised:
            read_file(tmp_path / "link", 10)
        assert raised.value.errno == errno.EINVAL

    assert not opened_while(tmp_path / "special", read)

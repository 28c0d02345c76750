"""The files that are downloaded: a pattern that the generator knows, so that a wrong byte is noticed."""

from __future__ import annotations

from array import array
from pathlib import Path

__all__ = ["BOOT", "LARGE", "MIDDLE", "SMALL", "make_file"]

#: Sizes by name.
SMALL = ("small.bin", 4096)
MIDDLE = ("middle.bin", 16 << 20)
BOOT = ("boot.bin", 32 << 20)
LARGE = ("large.bin", 1 << 30)
_BLOCK = 1 << 20


def make_file(path: Path, size: int) -> None:
    """Write a file: blocks of 1 MiB, each word a multiple of its place, the first one the block's number."""
    words = array("Q", ((place * 0x9E3779B97F4A7C15) & (2**64 - 1) for place in range(_BLOCK // 8)))
    block = bytearray(words.tobytes())
    with path.open("wb") as out:
        for number in range(-(-size // _BLOCK)):
            block[:8] = number.to_bytes(8, "little")
            out.write(block[: size - number * _BLOCK])
